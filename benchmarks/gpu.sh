#!/usr/bin/env bash
# What a card does with this package: its tests, its numbers against the CPU's, speed, and a training, in 8 minutes.
#
#   bash benchmarks/gpu.sh                        on a machine with CUDA
#   bash benchmarks/gpu.sh --tiny --device cpu    the same code in tiny sizes on a processor, about a minute
#   bash benchmarks/gpu.sh --help                 all options (those of gpu.py)
#
# It prints one table and leaves gpu.json, gpu.md and cars.png in $OUT, or in outputs/gpu where OUT is not set.
#
# The machine needs Python (3.10 to 3.12) with torch, triton, numpy, scipy, pillow, safetensors, torchmetrics, rich,
# markdown-it-py, filelock, pyyaml, pytest, pytest-timeout and hypothesis; it needs no network, no nerfstudio and no
# installation of this package, which is used from this checkout. What else is missing travels as wheels in the folder
# wheels/ beside pyproject.toml (or in $WHEELS), 37 MB in all, filled where there is a network by
#
#   python3 -m pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
#     --platform manylinux_2_28_x86_64 --platform manylinux_2_27_x86_64 --platform manylinux_2_17_x86_64 \
#     --platform manylinux2014_x86_64 -d wheels diffusers==0.42.1 importlib_metadata==10.2.0 tyro==1.0.17 \
#     docstring_parser==0.18.0 typeguard==4.6.0 trimesh==5.2.0 PyMCubes==0.1.6 embreex==4.4.0.post1 libigl==2.6.3 \
#     manifold3d==3.5.4
#
# (for Python 3.12 on x86-64; the versions are those of constraints.txt). They go into a temporary folder, not into the
# machine's Python. PYTHON names another interpreter than python3.
set -u -o pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1

PYTHON=${PYTHON:-python3}
WHEELS=${WHEELS:-wheels}
OUT=${OUT:-outputs/gpu}
site=$(mktemp -d) || exit 1
trap 'rm -rf "$site"' EXIT

shopt -s nullglob
packed=("$WHEELS"/*.whl)
shopt -u nullglob
if [ ${#packed[@]} -gt 0 ]; then
  "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --disable-pip-version-check --upgrade \
    --target "$site" "${packed[@]}" || { echo "error: the wheels in $WHEELS were not installed; see above." >&2; exit 1; }
fi
export PYTHONPATH="$PWD:$site${PYTHONPATH:+:$PYTHONPATH}"
export PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# So that asking for a device does not open CUDA in the process that all others are forked from.
export PYTORCH_NVML_BASED_CUDA_CHECK=1

"$PYTHON" - <<'CHECK' || exit 1
import importlib.util, sys
needed = "torch numpy scipy PIL safetensors torchmetrics rich markdown_it filelock yaml pytest pytest_timeout hypothesis " \
    "diffusers importlib_metadata tyro docstring_parser typeguard trimesh mcubes embreex igl manifold3d"
missing = [name for name in needed.split() if importlib.util.find_spec(name) is None]
if missing:
    sys.exit(f"error: {sys.executable} lacks {', '.join(missing)}; fill the folder wheels as the header of "
             "benchmarks/gpu.sh says, or set PYTHON to another interpreter.")
CHECK

"$PYTHON" benchmarks/gpu.py --output "$OUT" "$@"
