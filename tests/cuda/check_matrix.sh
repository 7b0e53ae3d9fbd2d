#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# check_matrix.sh NVCC FILE...: kernels on matrix cores over mma.sync, for the two architectures that have machine code, no
# register is spilled.
set -eu
nvcc=$1
shift
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
failed=0
for file in "$@"; do
    for arch in 80 90; do
        "$nvcc" -O3 -std=c++17 -cubin -gencode "arch=compute_$arch,code=sm_$arch" -Xptxas -v "$file" -o "$work/a.cubin" > "$work/log" 2>&1 ||
            { cat "$work/log"; exit 1; }
        kernels=$(grep -c 'Compiling entry function' "$work/log")
        clean=$(grep -c ' 0 bytes spill stores, 0 bytes spill loads' "$work/log" || true)
        echo "$(basename "$file") sm_$arch: $kernels kernels, $clean without spills"
        [ "$kernels" -gt 0 ] && [ "$kernels" -eq "$clean" ] || failed=1
    done
done
exit $failed
