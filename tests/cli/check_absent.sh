#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# check_absent.sh MOBA BACKEND LIBRARY NO_DRIVER WORK_DIR: what a user is told where the backend's loader is missing, is too
# old, or finds no driver (NO_DRIVER: VARIABLE=VALUE that hides them), or has no device of that number. Each is exit code 3
# where the backend is named, another backend is taken where one is, and a cache that cannot be written is no error.
set -u
unset RUSTICL_ENABLE
moba=$1 backend=$2 library=$3 no_driver=$4 work=$5
problem=b1q17k40h2g1d20B16t2c,f32
failed=0
rm -rf "$work"
mkdir -p "$work/broken" "$work/old"
echo "no library" >"$work/broken/$library"
ln -s "$(ldd "$moba" | sed -n 's/.*=> \(.*libm\.so\.6\) .*/\1/p')" "$work/old/$library"

# told SETTING WORDS: `moba info` and the error of `moba bench` say so under SETTING; cpu is taken behind the backend.
told() {
    env "$1" "$moba" info | grep -qF "$backend: $2" || { echo "FAILED: info under $1 does not say: $2"; failed=1; }
    code=0
    env "$1" "$moba" bench --backend "$backend" "$problem" >"$work/out" 2>"$work/err" || code=$?
    if [ $code != 3 ] || [ -s "$work/out" ] || ! grep -qF "$2" "$work/err"; then
        echo "FAILED: bench under $1: exit $code: $(cat "$work/err")"
        failed=1
    fi
    env "$1" MOBA_VERBOSE=dispatch MOBA_BACKEND="$backend,cpu" "$moba" explain "$problem" >"$work/out" 2>"$work/err" ||
        { echo "FAILED: cpu is not taken under $1"; failed=1; }
    grep -q "^backend: cpu" "$work/out" && grep -q "backend $backend skipped: .*$2" "$work/err" ||
        { echo "FAILED: under $1: $(cat "$work/err")"; failed=1; }
}
told "LD_LIBRARY_PATH=$work/broken" "$library cannot be opened; install "
case $backend in
opencl)
    told "LD_LIBRARY_PATH=$work/old" "$library lacks clGetPlatformIDs; OpenCL 1.2 is needed"
    told "$no_driver" "no OpenCL device was found on 0 platforms"
    # rusticl is a platform without devices unless it is told which to have.
    empty=/etc/OpenCL/vendors/rusticl.icd
    [ ! -f $empty ] || told "OCL_ICD_VENDORS=$empty" "no OpenCL device was found on 1 platforms" ;;
vulkan)
    told "LD_LIBRARY_PATH=$work/old" "$library lacks vkGetInstanceProcAddr"
    told "$no_driver" "vkCreateInstance failed: VkResult -9 (no Vulkan driver?)" ;;
esac

code=0
MOBA_DEVICE=999 "$moba" bench --backend "$backend" "$problem" >/dev/null 2>"$work/err" || code=$?
[ $code = 3 ] && grep -q "device 999 was asked for, but there" "$work/err" || { echo "FAILED: device 999: exit $code: $(cat "$work/err")"; failed=1; }
# The same driver named twice is two devices to the Vulkan loader.
driver=$(ls /usr/share/vulkan/icd.d/lvp_icd*.json 2>/dev/null | head -n 1)
if [ "$backend" = vulkan ] && [ -n "$driver" ]; then
    cp "$driver" "$work/again.json"
    VK_ICD_FILENAMES=$driver:$work/again.json MOBA_DEVICE=1 "$moba" bench --check --pass route --backend vulkan "$problem" >"$work/out" 2>"$work/err"
    grep -q '"verified": true' "$work/out" || { echo "FAILED: the second device: $(cat "$work/err")"; failed=1; }
    VK_ICD_FILENAMES=$driver:$work/again.json "$moba" info | grep -q "device 1: llvmpipe" || { echo "FAILED: there is no second device"; failed=1; }
fi
for dir in "$work/broken/$library" "$work/none"; do
    MOBA_CACHE_DIR=$dir "$moba" bench --check --pass route --backend "$backend" "$problem" >"$work/out" 2>"$work/err" ||
        { echo "FAILED: with the cache in $dir: $(cat "$work/err")"; failed=1; }
    grep -q '"verified": true' "$work/out" || { echo "FAILED: nothing verified with the cache in $dir"; failed=1; }
done
exit $failed
