#!/bin/sh
# Makes src/encode/nvenc/kernels.ptx from kernels.cu, with clang alone (no CUDA toolkit). PTX 4.0 for sm_50 is
# what every driver that serves NVENC API 11.1 loads; the driver compiles it for its own chip.
#
#   scripts/make_ptx.sh            writes the file
#   scripts/make_ptx.sh OUT.ptx    writes elsewhere, for comparison
set -eu
cd "$(dirname "$0")/.."
clang=${CLANG:-clang-14}
out=${1:-src/encode/nvenc/kernels.ptx}
if ! command -v "$clang" >/dev/null 2>&1; then
    echo "make_ptx: $clang is not installed (apt-get install --no-install-recommends clang-14)" >&2
    exit 3
fi
"$clang" -x cuda --cuda-device-only --cuda-gpu-arch=sm_50 -nocudainc -nocudalib \
    -Xclang -target-feature -Xclang +ptx40 -O3 -S src/encode/nvenc/kernels.cu -o "$out"
