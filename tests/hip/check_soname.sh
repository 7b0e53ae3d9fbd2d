#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# check_soname.sh PROGRAM LIBRARY FOLDER VERSION: with nothing but FOLDER's libamdhip64.so.VERSION, of that release, the
# backend finds its device and its kernels' results are right; the library opens no hipRTC.
set -eu
program=$1 library=$2 folder=$3 version=$4
only=$(mktemp -d)
trap 'rm -rf "$only"' EXIT
cp "$folder/libamdhip64.so.$version" "$only/"
export LD_LIBRARY_PATH="$only" FAKE_HIP_ARCHS=gfx1100 FAKE_HIP_VERSION="${version}0040093"
"$program" info | tee "$only/info"
grep -q "HIP $version.0.40093, gfx1100" "$only/info" || { echo "no device of HIP $version"; exit 1; }
"$program" bench --check --backend hip --pass fwd --repeat 1 b1q40k70h2g1d64B32t2c,bf16
if grep -qi hiprtc "$library"; then
    echo "$library names hipRTC"
    exit 1
fi
