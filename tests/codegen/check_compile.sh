#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# check_compile.sh TARGET GENERATED_DIR WORK_DIR: compiles every generated text of a target with that target's own tools.
# Exit 77 (skipped) where the tool is missing.
set -eu
target=$1 generated=$2 work=$3
failed=0 n=0
need() { command -v "$1" >/dev/null 2>&1 || { echo "$1 is not installed"; exit 77; }; }
mkdir -p "$work"
try() { # file, command...
    file=$1
    shift
    n=$((n + 1))
    "$@" >"$work/log" 2>&1 || { echo "FAILED: $(basename "$file")"; cat "$work/log"; failed=1; }
}
case $target in
opencl)
    need clang-19
    for f in "$generated"/opencl/*.cl; do
        try "$f" clang-19 -x cl -cl-std=CL1.2 -Xclang -finclude-default-header -target spir64 -Xclang -cl-ext=-cl_khr_fp16 \
            -fsyntax-only -Wall -Werror "$f"
    done ;;
glsl)
    need glslc
    need spirv-val
    for f in "$generated"/glsl/*.comp; do
        try "$f" glslc --target-env=vulkan1.2 -O -Werror "$f" -o "$work/a.spv"
        try "$f" spirv-val --target-env vulkan1.2 "$work/a.spv"
        try "$f" glslc --target-env=vulkan1.2 -DMOBA_BOUND -Werror "$f" -o "$work/a.spv"
        try "$f" spirv-val --target-env vulkan1.2 "$work/a.spv"
    done ;;
cuda)
    need nvcc
    # PTX for the oldest architecture, and what sm_90 makes of it. ptxas gives some instances of attend_bwd with head_dim tiles
    # of 32 and 64 no more than 128 registers, so that two work-groups fit a multiprocessor, and keeps up to 184 bytes of
    # addresses a lane in memory, outside the inner loops. Nothing else may spill, and no array may end there.
    for f in "$generated"/cuda/unit_*.cu; do
        try "$f" nvcc -gencode arch=compute_75,code=compute_75 -gencode arch=compute_90,code=sm_90 -fatbin -Werror all-warnings \
            -Xptxas -v "$f" -o "$work/a.fatbin"
        case $(basename "$f") in unit_attend_bwd_*) most=200 ;; *) most=0 ;; esac
        worst=$(sed -n 's/.* \([0-9]*\) bytes spill stores.*/\1/p' "$work/log" | sort -n | tail -n 1)
        [ "${worst:-0}" -le $most ] || { echo "FAILED: $(basename "$f") spills $worst bytes"; failed=1; }
    done ;;
hip-*)
    need clang-19
    need llvm-readelf-19
    # hip-ARCH or hip-ARCH-wave64. No vector register may be spilled. (Scratch memory alone is no spill: it is set aside where
    # scalar registers, which hold addresses, are kept in vector ones.)
    arch=${target#hip-} wave=
    case $arch in *-wave64) arch=${arch%-wave64} wave=-mwavefrontsize64 ;; esac
    for f in "$generated"/hip/unit_*.hip; do
        # shellcheck disable=SC2086
        try "$f" clang-19 -x hip "--offload-arch=$arch" $wave --offload-device-only --no-gpu-bundle-output -nogpuinc -nogpulib -O3 \
            "$f" -o "$work/a.hsaco"
        llvm-readelf-19 --notes "$work/a.hsaco" | grep vgpr_spill_count >"$work/spills" || { echo "FAILED: no notes"; failed=1; }
        if grep -v ' 0$' "$work/spills"; then echo "FAILED: $(basename "$f") spills"; failed=1; fi
    done ;;
*)
    echo "unknown target $target"
    exit 2 ;;
esac
echo "$n compilations for $target"
[ $n -gt 0 ] || failed=1
exit $failed
