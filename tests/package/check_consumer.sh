#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# check_consumer.sh BUILD COMPILER: installs BUILD into a fresh prefix, moves that prefix, and builds and runs a project
# outside the tree against it: with find_package (shared and static), with pkg-config (shared and static).
set -euo pipefail
build=$1 cc=$2
here=$(cd "$(dirname "$0")" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cmake --install "$build" --prefix "$work/first" >/dev/null
mv "$work/first" "$work/prefix" # package files must not hold the prefix they were installed to
cp -r "$here/consumer" "$work/consumer"
cp "$here/../../examples/forward.c" "$work/consumer/"

if grep -rlF -e "$build" -e "$work/first" "$work/prefix" --include=*.cmake --include=*.pc; then
    echo "package files name the build folder or the first prefix"
    exit 1
fi

export CC=$cc MOBA_BACKEND=cpu
cmake -S "$work/consumer" -B "$work/build" -DCMAKE_PREFIX_PATH="$work/prefix" >/dev/null
cmake --build "$work/build"
"$work/build/consumer_shared"
"$work/build/consumer_static"

pc=$(dirname "$(find "$work/prefix" -name moba.pc)")
export PKG_CONFIG_PATH=$pc
libdir=$(pkg-config --variable=libdir moba)
"$cc" -std=c11 "$work/consumer/forward.c" $(pkg-config --cflags --libs moba) -o "$work/pc_shared"
LD_LIBRARY_PATH=$libdir "$work/pc_shared"
readelf -d "$work/pc_shared" | grep -q 'NEEDED.*libmoba\.so\.0'
"$cc" -std=c11 "$work/consumer/forward.c" $(pkg-config --cflags moba) "$libdir/libmoba.a" \
    $(pkg-config --static --libs moba | sed 's/-lmoba//') -o "$work/pc_static"
"$work/pc_static"
if readelf -d "$work/pc_static" | grep 'NEEDED.*libmoba'; then
    echo "the static program links the shared library"
    exit 1
fi

"$work/prefix/bin/moba" info >/dev/null
echo "consumer: find_package and pkg-config, shared and static"
