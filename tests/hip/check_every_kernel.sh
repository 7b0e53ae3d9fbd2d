#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# check_every_kernel.sh NAMES RAN: every kernel named in NAMES is named in RAN too.
set -eu
[ -s "$2" ] || { echo "no kernel ran"; exit 1; }
if grep -vxFf "$2" "$1"; then
    echo "were not run by any test of hip/parity"
    exit 1
fi
echo "$(wc -l < "$1") kernels ran"
