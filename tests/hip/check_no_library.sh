#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# check_no_library.sh PROGRAM CC: where no HIP library is installed, or one that cannot be opened, `moba info` says which of
# the two it is, and the backend is refused by name with the same words. Exit 77 (skipped) where one is installed.
set -eu
program=$1 cc=$2
if /sbin/ldconfig -p | grep -q libamdhip64 || [ -e /opt/rocm/lib/libamdhip64.so ]; then
    echo "a HIP library is installed"
    exit 77
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

# expect REASON: from info, and from a refusal with exit code 3.
expect() {
    "$program" info | grep -xF "hip: $1"
    status=0
    MOBA_BACKEND=hip "$program" explain b1q64k64h1g1d64B16t2c,f32 2> "$folder/said" || status=$?
    [ $status -eq 3 ] || { echo "exit code $status, not 3"; exit 1; }
    grep -F "no usable backend in \"hip\": hip: $1" "$folder/said"
}

expect "libamdhip64.so (.7, .6 or .5) was not found: no ROCm is installed"

# A ROCm whose runtime lacks a library of its own.
export LD_LIBRARY_PATH="$folder"
echo 'int gone(void) { return 0; }' > "$folder/gone.c"
echo 'int gone(void); int hipInit(unsigned f) { return gone() + (int)f; }' > "$folder/hip.c"
"$cc" -shared -fPIC -o "$folder/libgone.so" "$folder/gone.c"
"$cc" -shared -fPIC -o "$folder/libamdhip64.so.5" "$folder/hip.c" -L"$folder" -lgone
mv "$folder/libgone.so" "$folder/present.so"
expect "ROCm's library cannot be opened: libgone.so: cannot open shared object file: No such file or directory"

# One that is older than what is needed.
mv "$folder/present.so" "$folder/libgone.so"
expect "libamdhip64.so has no hipGetDeviceProperties; HIP 5.2 (ROCm 5.2) or newer is needed"
