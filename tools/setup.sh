#!/usr/bin/env bash
# setup.sh [engine|dev]: make .venv ready to run (engine) or to develop (dev) neobench. Safe to run again: it does only what is missing.
#
# Environment: PYTHON (interpreter to start from), NEOBENCH_ISPC (an ispc compiler, or "off"), NEOBENCH_TORCH (what to
# pip install for torch, e.g. "torch==2.13.0"; default: the CPU-only build where there is no NVIDIA GPU).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
extra=${1:-engine}
cpu_torch=torch==2.13.0+cpu
say() { printf '==> %s\n' "$*"; }
die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

python=${PYTHON:-python3}
command -v "$python" >/dev/null || die "$python not found; install Python 3.10 or newer (sudo apt install python3 python3-venv)"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || die "$("$python" --version) is too old; set PYTHON to 3.10 or newer"
command -v g++ >/dev/null || command -v clang++ >/dev/null || [ -n "${CXX:-}" ] || die "no C++ compiler; sudo apt install g++"

# What the installation was made from; when none of it changed there is nothing to do.
stamp=.venv/.neobench-$extra
state=$({ "$python" --version; echo "${NEOBENCH_ISPC:-} ${NEOBENCH_TORCH:-} $(command -v ispc || true)"
          cat pyproject.toml constraints.txt CMakeLists.txt tools/*.sh
          find pacpu -type f \( -name '*.cpp' -o -name '*.h' -o -name '*.ispc' -o -name '*.isph' -o -name 'CMakeLists.txt' -o -name '*.cmake' \) -print0 | sort -z | xargs -0 cat
        } | sha256sum)
[ "$(cat "$stamp" 2>/dev/null)" = "$state" ] && exit 0

if [ ! -x .venv/bin/python ]; then
  say "creating .venv with $("$python" --version)"
  "$python" -m venv .venv 2>/dev/null || { rm -rf .venv; "$python" -m virtualenv -q .venv 2>/dev/null; } \
    || die "cannot create a virtual environment; sudo apt install python3-venv"
fi
pip() { .venv/bin/python -m pip --disable-pip-version-check "$@"; }

if ! .venv/bin/python -c 'import torch' 2>/dev/null; then
  if [ -n "${NEOBENCH_TORCH:-}" ]; then
    say "installing $NEOBENCH_TORCH"
    pip install -q "$NEOBENCH_TORCH"
  elif command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
    say "installing torch for the NVIDIA GPU of this machine"
    pip install -q torch
  else
    say "installing the CPU-only $cpu_torch (no NVIDIA GPU here)"
    pip install -q "$cpu_torch" 2>/dev/null \
      || pip install -q "$cpu_torch" --extra-index-url https://download.pytorch.org/whl/cpu \
      || die "cannot install $cpu_torch; set NEOBENCH_TORCH to a torch that your index has, e.g. NEOBENCH_TORCH=torch"
  fi
fi

ispc=${NEOBENCH_ISPC:-}
if [ "$ispc" = off ]; then
  say "without ISPC, as NEOBENCH_ISPC=off asks: CPU attention is built in portable C++, correct but several times slower"
elif [ -z "$ispc" ] && ! ispc=$(command -v ispc); then
  # It says itself when there is none to be had.
  if tools/get_ispc.sh .cache/ispc; then ispc=$PWD/.cache/ispc/bin/ispc; else ispc=off; fi
fi
export NEOBENCH_ISPC=$ispc

include=$(.venv/bin/python -c 'import sysconfig; print(sysconfig.get_path("include"))')
if [ ! -e "$include/Python.h" ]; then
  headers=$(tools/get_python_headers.sh .cache/python-headers .venv/bin/python) || exit 1
  export NEOBENCH_PYTHON_INCLUDE=$headers
fi

say "building and installing neobench[$extra]"
pip install -q -c constraints.txt -e ".[$extra]" || die "the build failed; the lines above say why"
printf '%s\n' "$state" > "$stamp"
say "ready: .venv/bin/neobench"
