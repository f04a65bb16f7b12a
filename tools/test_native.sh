#!/usr/bin/env bash
# test_native.sh: after tools/setup.sh dev, runs tests/native on a copy of neobench built under AddressSanitizer and UBSan, and
# the stress of the flags under ThreadSanitizer and as released. Needs g++, whose sanitizers come as shared libraries.
#
# Environment: CXX (another g++), NEOBENCH_STRESS_ROUNDS (default 1000000, a fifth of it as released).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export CXX=${CXX:-g++}
rounds=${NEOBENCH_STRESS_ROUNDS:-1000000}
build=$PWD/build/sanitized
site=$build/site
python=.venv/bin/python
say() { printf '==> %s\n' "$*"; }
die() { printf 'test_native: %s\n' "$*" >&2; exit 1; }

# Both have to be there before Python is: the first because the module needs it, the second because the first asks it
# for what throws exceptions.
preload=
for library in libasan.so libstdc++.so; do
  path=$("$CXX" -print-file-name="$library")
  [ "$path" != "$library" ] || die "$CXX has no $library; set CXX to a g++ with sanitizers (sudo apt install g++)"
  preload=$preload${preload:+:}$path
done

say "building neobench under AddressSanitizer and UBSan"
include=$($python -c 'import sysconfig; print(sysconfig.get_path("include"))')
if [ ! -e "$include/Python.h" ]; then
  NEOBENCH_PYTHON_INCLUDE=$(tools/get_python_headers.sh .cache/python-headers $python) || exit 1
  export NEOBENCH_PYTHON_INCLUDE
fi
$python -m pip --disable-pip-version-check install -q -c constraints.txt --no-deps --upgrade --target "$site" \
  -C build-dir="$build/cmake" -C cmake.build-type=RelWithDebInfo -C cmake.define.PACPU_SANITIZE=address,undefined . \
  || die "the build failed; the lines above say why"

# Without site-packages of its own (-S) Python does not see the editable install.
run_sanitized() {
  env LD_PRELOAD="$preload" PYTHONPATH="$site:$($python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 $python -S "$@"
}
run_sanitized -c 'import sys; from neobench.pacpu import _pacpu; sys.exit(not _pacpu.__file__.startswith(sys.argv[1]))' \
  "$site" || die "Python does not load the module in $site"

say "tests/native under AddressSanitizer and UBSan"
# A report must reach the terminal although it ends the process; test_build.py tests the build, not the module.
run_sanitized -m pytest tests/native -q --capture=sys -p no:faulthandler -p no:cacheprovider --ignore=tests/native/test_build.py

sources=(tests/native/stress_flags.cpp pacpu/src/flag_sequence.cpp pacpu/src/worker_pool.cpp)
stress() {  # ROUNDS OPTION...
  "$CXX" -std=c++17 -g "${@:2}" -Ipacpu/src "${sources[@]}" -pthread -o "$build/stress_flags"
  "$build/stress_flags" "$1"
}
say "stress of the flags under ThreadSanitizer"
stress "$rounds" -O1 -fsanitize=thread
say "stress of the flags as released"
stress $((rounds / 5)) -O3
