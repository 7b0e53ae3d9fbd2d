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
    for f in "$generated"/cuda/unit_*.cu; do try "$f" nvcc -arch=compute_75 -ptx -Werror all-warnings "$f" -o "$work/a.ptx"; done ;;
hip-*)
    need clang-19
    # Spills would show as scratch memory; private arrays are all indexed by unrolled loops.
    for f in "$generated"/hip/unit_*.hip; do
        try "$f" clang-19 -x hip "--offload-arch=${target#hip-}" --offload-device-only --no-gpu-bundle-output -nogpuinc -nogpulib -O3 \
            "$f" -o "$work/a.hsaco"
    done ;;
*)
    echo "unknown target $target"
    exit 2 ;;
esac
echo "$n compilations for $target"
[ $n -gt 0 ] || failed=1
exit $failed
