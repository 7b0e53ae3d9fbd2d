#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# check_newer.sh SOURCE CLANG ARCH: with a compiler that knows ARCH as well (here CLANG, told that ARCH is gfx942), a build
# folder that was configured without it gets its code object; asking for an architecture that is not known is refused.
set -eu
source=$1 clang=$2 arch=$3
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/clang" <<END
#!/bin/bash
exec "$clang" "\${@/--offload-arch=$arch/--offload-arch=gfx942}"
END
chmod +x "$folder/clang"
configure() {
    cmake -S "$source" -B "$folder/build" -G Ninja -DMOBA_CUDA=OFF -DMOBA_OPENCL=OFF -DMOBA_VULKAN=OFF "$@" > "$folder/log" 2>&1
}
codes=$folder/build/backends/hip/hip_codes.inc

configure "-DMOBA_HIP_CLANG=$clang"
grep "does not know.*$arch" "$folder/log"
! grep "($arch)" "$codes"
configure "-DMOBA_HIP_CLANG=$folder/clang"
grep "($arch)" "$codes"

if configure "-DMOBA_HIP_CLANG=$clang" "-DMOBA_HIP_ARCHS=$arch"; then
    echo "an unknown architecture was taken"
    exit 1
fi
grep "MOBA_HIP_ARCHS has $arch" "$folder/log"
