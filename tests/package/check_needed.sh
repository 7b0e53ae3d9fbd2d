#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# check_needed.sh LIBRARY PROGRAM: SONAME, linked libraries and size. GPU libraries are opened at run time, never linked;
# with the kernels of every backend in it, the library stays below 30 MB.
set -euo pipefail
export LC_ALL=C
library=$1 program=$2

soname=$(readelf -d "$library" | sed -nE 's/.*\(SONAME\).*\[(.*)\]/\1/p')
[[ $soname =~ ^libmoba\.so\.[0-9]+$ ]] || { echo "SONAME is '$soname', not libmoba.so.N"; exit 1; }

check() { # FILE ALLOWED
    local needed
    needed=$(readelf -d "$1" | sed -nE 's/.*\(NEEDED\).*\[(.*)\]/\1/p')
    echo "$1 needs:" $needed
    local bad
    bad=$(grep -vE "^($2)$" <<<"$needed" || true)
    [ -z "$bad" ] || { echo "$1 must not link:" $bad; exit 1; }
}
libc='libc\.so\.6|libm\.so\.6|libpthread\.so\.0|libdl\.so\.2|ld-linux[-a-z0-9_]*\.so\.[0-9]'
check "$library" "$libc"
check "$program" "$libc|libjansson\.so\.4|libmoba\.so\.[0-9]+"

bytes=$(stat -L -c %s "$library")
echo "$library has $bytes bytes"
((bytes < 30000000)) || { echo "$library has $bytes bytes; the limit is 30 MB"; exit 1; }
