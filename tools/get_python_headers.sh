#!/bin/sh
# get_python_headers.sh PREFIX [PYTHON]: prints the folder of Python.h for PYTHON (default python3), without root.
# Where the interpreter came without its headers, they are taken from the distribution's package into PREFIX; the build
# reads the folder from NEOBENCH_PYTHON_INCLUDE.
set -eu

[ $# -ge 1 ] || { echo "usage: $0 PREFIX [PYTHON]" >&2; exit 2; }
mkdir -p "$1"
prefix=$(cd "$1" && pwd)
python=${2:-python3}
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
include=$("$python" -c 'import sysconfig; print(sysconfig.get_path("include"))')
private=$prefix/usr/include/python$version

for folder in "$include" "$private"; do
    if [ -f "$folder/Python.h" ]; then
        echo "$folder"
        exit 0
    fi
done

give_up() {
    echo "Python.h of $python is missing and could not be fetched: install python$version-dev (or python3-dev)." >&2
    exit 1
}

command -v apt-get >/dev/null && command -v dpkg >/dev/null || give_up
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/cache/archives/partial"
private_apt() {
    apt-get -o Dir::State::Lists="$work/lists" -o Dir::Cache="$work/cache" -o APT::Sandbox::User="$(id -un)" \
        -o Debug::NoLocking=1 "$@"
}
fetch() { (cd "$work" && "$@" -qq download "libpython$version-dev") >/dev/null 2>&1; }

fetch apt-get || { private_apt -qq update >/dev/null 2>&1 && fetch private_apt; } || give_up
dpkg -x "$work"/libpython*.deb "$prefix" 2>/dev/null || give_up
[ -f "$private/Python.h" ] || give_up
echo "$private"
