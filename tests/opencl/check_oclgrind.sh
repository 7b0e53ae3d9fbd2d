#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# check_oclgrind.sh MOBA WORK_DIR: every kernel under Oclgrind, on a device with the least that the library asks for (32 KiB
# of local memory, 256 lanes): no race, no access out of bounds, no wrong API call. Then the same with the barriers taken
# out, which must be reported. Exit 77 (skipped) where Oclgrind is missing.
set -u
moba=$1 work=$2
runtime=$(ls /usr/lib/oclgrind/liboclgrind-rt.so /usr/lib/*/oclgrind/liboclgrind-rt.so 2>/dev/null | head -n 1)
command -v oclgrind >/dev/null 2>&1 && [ -n "$runtime" ] || { echo "oclgrind is not installed"; exit 77; }
rm -rf "$work"
mkdir -p "$work"
ln -s "$runtime" "$work/libOpenCL.so.1" # the library opens it by this name
unset MOBA_CACHE_DIR
failed=0
check() { # name, options of oclgrind, arguments of moba...
    log=$work/$1.log options=$2
    shift 2
    # shellcheck disable=SC2086
    LD_LIBRARY_PATH="$work${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}" oclgrind --data-races --local-mem-size 32768 --max-wgsize 256 \
        --max-errors 3 --log "$log" $options "$moba" bench --check --backend opencl "$@" >"$work/out" 2>"$work/err"
}
for problem in b1q17k40h2g1d20B16t2c,f32,kconv=2 b2q9k40h1g1d40B16t2n,bf16,lens=9+3/40+5 b1q5k20h1g1d8B16t1c,f16,dense; do
    if ! check "$problem" --check-api "$problem" || [ -s "$work/$problem.log" ]; then
        echo "FAILED: $problem"
        cat "$work/err" "$work/$problem.log"
        failed=1
    fi
done
check no_barriers "--build-options -Dbarrier(x)=" --pass route b1q17k40h1g1d8B16t2c,f32
if ! grep -q 'data race' "$work/no_barriers.log"; then
    echo "FAILED: kernels without barriers are not reported"
    cat "$work/err"
    failed=1
fi
exit $failed
