#!/bin/sh
# get_ispc.sh PREFIX: makes sure of an ISPC compiler without root.
# Takes the distribution's own package into PREFIX, with the libraries it needs, and leaves PREFIX/bin/ispc, which runs
# it through its own loader: nothing else on the system changes. Exit status 3: none to be had; the build then falls
# back to the portable C++ kernel.
set -eu

[ $# -eq 1 ] || { echo "usage: $0 PREFIX" >&2; exit 2; }
mkdir -p "$1"
prefix=$(cd "$1" && pwd)

works() { "$1" --version >/dev/null 2>&1; }

give_up() {
    echo "No ISPC compiler: $1. Building the portable C++ kernel instead; it is several times slower." \
        "With an ispc on PATH, run the setup again." >&2
    exit 3
}

if command -v ispc >/dev/null && works ispc; then
    echo "ISPC is already on PATH: $(command -v ispc)"
    exit 0
fi
if [ -x "$prefix/bin/ispc" ] && works "$prefix/bin/ispc"; then
    echo "ISPC is already in $prefix/bin"
    exit 0
fi
[ "$(uname -m)" = x86_64 ] || give_up "its kernels here are for x86-64"
command -v apt-get >/dev/null && command -v dpkg >/dev/null || give_up "this system has no apt"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/debs" "$work/tree"

# The system's own package lists; when they are missing or name no ispc, private ones of the same sources. Bookworm's
# archive has no ispc, and its successor's build carries every library it needs.
private_apt() {
    apt-get -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work/cache" -o APT::Sandbox::User="$(id -un)" \
        -o Debug::NoLocking=1 -o Acquire::Retries=1 -o Acquire::http::Timeout=20 "$@"
}
successor_apt() { private_apt -o Dir::Etc::SourceList="$work/successor.list" -o Dir::Etc::SourceParts=/dev/null "$@"; }

depends_of() { # apt command -> the package's whole closure of hard dependencies
    "$@" -qq --print-uris -o Dir::State::status="$work/status" --no-install-recommends install ispc 2>/dev/null |
        sed -n "s/^'[^']*' \([^_]*\)_.*/\1/p"
}

fetch() { # apt command: downloads ispc and its dependencies as if nothing was installed
    : >"$work/status"
    packages=$(depends_of "$@") && [ -n "$packages" ] || return 1
    # shellcheck disable=SC2086
    (cd "$work/debs" && "$@" -qq download $packages) >/dev/null 2>&1
}

successor_sources() {
    codename=$(. /etc/os-release && echo "${ID:-}-${VERSION_CODENAME:-}")
    [ "$codename" = debian-bookworm ] || return 1
    site=$(apt-get indextargets --format '$(SITE) $(ORIGIN) $(LABEL)' 'Created-By: Packages' |
        awk '$2 == "Debian" && $3 == "Debian" { print $1; exit }')
    [ -n "$site" ] || return 1
    echo "deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] $site trixie main" >"$work/successor.list"
}

if fetch apt-get -o Debug::NoLocking=1; then
    :
elif private_apt -qq update >/dev/null 2>&1 && fetch private_apt; then
    :
elif successor_sources && successor_apt -qq update >/dev/null 2>&1 && fetch successor_apt; then
    :
else
    give_up "apt's sources offer none that could be fetched"
fi

for package in "$work"/debs/*.deb; do
    dpkg -x "$package" "$work/tree" 2>/dev/null || give_up "$(basename "$package") cannot be unpacked"
done
libraries=$(dirname "$(find "$work/tree" -name 'libc.so.6' | head -n 1)")
loader=$(find "$work/tree" -name 'ld-linux-x86-64.so.2' ! -type l | head -n 1)
[ -x "$work/tree/usr/bin/ispc" ] && [ -n "$loader" ] || give_up "the package is not as expected"

rm -rf "$prefix/bin" "$prefix/lib" "$prefix/libexec"
mkdir -p "$prefix/bin" "$prefix/lib" "$prefix/libexec"
search=$libraries:$work/tree/usr/lib/x86_64-linux-gnu:$work/tree/lib/x86_64-linux-gnu:$work/tree/usr/lib
"$loader" --library-path "$search" --list "$work/tree/usr/bin/ispc" |
    sed -n 's/.*=> \(\/[^ ]*\) .*/\1/p' | sort -u | while read -r library; do cp -L "$library" "$prefix/lib/"; done
cp -L "$loader" "$prefix/lib/ld-linux-x86-64.so.2"
cp "$work/tree/usr/bin/ispc" "$prefix/libexec/ispc"
cat >"$prefix/bin/ispc" <<'WRAPPER'
#!/bin/sh
prefix=$(dirname -- "$(dirname -- "$(readlink -f -- "$0")")")
exec "$prefix/lib/ld-linux-x86-64.so.2" --library-path "$prefix/lib" "$prefix/libexec/ispc" "$@"
WRAPPER
chmod +x "$prefix/bin/ispc"
works "$prefix/bin/ispc" || { rm -rf "$prefix/bin"; give_up "the fetched compiler does not run here"; }
echo "ISPC is in $prefix/bin: $("$prefix/bin/ispc" --version | head -n 1)"
