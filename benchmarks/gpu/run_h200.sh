#!/usr/bin/env bash
# All evidence about the CUDA kernels that a machine with a GPU can give, in one command:
#
#   benchmarks/gpu/run_h200.sh [OUT] [--minutes N] [--wheels DIR] [--rehearse]
#
# OUT (default build/gpu-evidence) gets at most eight files; the same command again goes on where the
# last one stopped. --wheels installs optional peers (nvidia-cudnn-frontend, flash-attn-4 and its
# CuTe DSL, ...) from a folder of wheels, for a machine without network. --rehearse runs the same
# steps here, without a GPU, on the CPU library. Needs python3 with NumPy and ml_dtypes, g++, and on
# a GPU nvcc, CMake and PyTorch. PYTHON names another python3. --library takes one that was built
# elsewhere from the same sources.
#
# Any GPU of compute capability 8.0 or later will do; the targets are an H200's.
set -euo pipefail
cd "$(dirname "$0")/../.."
out=build/gpu-evidence wheels= options=()
while (($#)); do
  case $1 in
    --wheels) wheels=$2 && shift ;;
    --minutes | --commit | --device | --library) options+=("$1" "$2") && shift ;;
    --rehearse) options+=("$1") ;;
    -h | --help) sed -n '2,16s/^# \{0,1\}//p' "$0" && exit ;;
    -*) echo "unknown option $1; --help lists them" >&2 && exit 2 ;;
    *) out=$1 ;;
  esac
  shift
done
python=${PYTHON:-python3}
for module in numpy ml_dtypes; do
  "$python" -c "import $module" || { echo "$python has no $module; PYTHON names another" >&2; exit 2; }
done
# nvcc is often installed and not on the PATH.
if ! command -v nvcc > /dev/null; then
  for folder in "${CUDA_HOME:-}" /usr/local/cuda; do
    [[ -x $folder/bin/nvcc ]] && PATH=$folder/bin:$PATH && break
  done
fi
if [[ -n $wheels ]]; then
  "$python" -m pip install -q --no-index --no-deps --upgrade --target build/gpu-wheels "$wheels"/*.whl
fi
export PATH PYTHONPATH="$PWD:$PWD/build/gpu-wheels${PYTHONPATH:+:$PYTHONPATH}"
exec "$python" -m benchmarks.gpu.evidence "$out" ${options[@]+"${options[@]}"}
