#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# check_no_library.sh PROGRAM: where no HIP library is installed, the reason says so and the backend is refused by name.
# Exit 77 (skipped) where one is installed.
set -eu
program=$1
if /sbin/ldconfig -p | grep -q libamdhip64 || [ -e /opt/rocm/lib/libamdhip64.so ]; then
    echo "a HIP library is installed"
    exit 77
fi
"$program" info | grep -x 'hip: libamdhip64.so (.7, .6 or .5) was not found: no ROCm is installed'
status=0
MOBA_BACKEND=hip "$program" explain b1q64k64h1g1d64B16t2c,f32 || status=$?
[ $status -eq 3 ] || { echo "exit code $status, not 3"; exit 1; }
