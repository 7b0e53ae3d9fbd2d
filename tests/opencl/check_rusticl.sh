#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# check_rusticl.sh MOBA: forward and backward on Mesa's rusticl, whose limits are those of a GPU (32 KiB of local memory).
# Exit 77 (skipped) where it is missing.
set -eu
[ -f /etc/OpenCL/vendors/rusticl.icd ] || { echo "mesa-opencl-icd is not installed"; exit 77; }
unset MOBA_CACHE_DIR
# One cache for two drivers: each has programs of its own there.
cache=$(mktemp -d)
trap 'rm -rf "$cache"' EXIT
MOBA_CACHE_DIR=$cache "$1" bench --check --backend opencl --pass route b1q90k90h2g1d33B16t3c,f32 | grep -v llvmpipe
first=$(find "$cache" -type f | wc -l)
[ "$first" -gt 0 ]
export RUSTICL_ENABLE=llvmpipe OCL_ICD_VENDORS=/etc/OpenCL/vendors/rusticl.icd
"$1" info | grep -i llvmpipe
MOBA_CACHE_DIR=$cache "$1" bench --check --backend opencl --pass route b1q90k90h2g1d33B16t3c,f32
[ "$(find "$cache" -type f | wc -l)" = $((2 * first)) ]
for problem in b1q90k90h2g1d33B16t3c,f32,kconv=3 b2q70k90h4g2d64B32t2c,f16,det b2q40k60h2g1d128B16t1n,bf16,dense; do
    "$1" bench --check --backend opencl "$problem"
done
