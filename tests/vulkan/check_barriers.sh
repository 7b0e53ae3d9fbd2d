#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# check_barriers.sh LAYER_ROOT MOBA LIBRARY_DIR INTERPOSER_DIR LOADER TEST_LAYERED
#
# Forward and backward under the Vulkan validation layer with synchronization checks: no report; and with the barriers
# before one dispatch dropped: a report. The layer sees what a dispatch touches through descriptors, not through buffer
# addresses, so the second half runs with -bda; the barriers are the same code. LAYER_ROOT holds a validation layer newer
# than Debian 12's, which misses a barrier between two dispatches, with the C library it needs (ci/install-deps). Exit 77
# (skipped) where it is not installed.
set -eu
root=$1 moba=$2 libraries=$3 interposer=$4 loader=$5 layered=$6
lib=$root/usr/lib/x86_64-linux-gnu
[ -e "$lib/libVkLayer_khronos_validation.so" ] || { echo "no validation layer in $root: run ci/install-deps"; exit 77; }
export VK_LAYER_PATH="$root/usr/share/vulkan/explicit_layer.d" VK_INSTANCE_LAYERS=VK_LAYER_KHRONOS_validation
export VK_KHRONOS_VALIDATION_VALIDATE_SYNC=1 VK_KHRONOS_VALIDATION_SYNCVAL_SHADER_ACCESSES_HEURISTIC=1
export MOBA_TEST_VULKAN="$loader"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
failed=0
fail() { echo "FAILED: $1"; grep -E -A3 'VUID|SYNC-|rror' "$log" | head -40; failed=1; }
reports() { grep -c -E 'VUID-|SYNC-HAZARD|UNASSIGNED-' "$log" || true; }
run() { # program and arguments, in the layer's C library
    "$lib/ld-linux-x86-64.so.2" --library-path "$interposer:$lib:$libraries" "$@" >"$log" 2>&1
}
bench() { run "$moba" bench "$@" --check --backend vulkan --repeat 1; }

for mask in -bda ""; do
    export MOBA_CAPS_MASK=$mask
    for problem in b2q100k100h4g2d64B32t3c,f16,kconv=3 b1q90k90h2g1d33B16t2c,f32,det b1q90k90h2g1d64B16t1c,bf16,dense; do
        bench "$problem" || fail "$problem (mask '$mask') exits $?"
        [ "$(reports)" = 0 ] || fail "$problem (mask '$mask'): $(reports) reports"
        pushed=$(sed -n 's/.*push constants up to \([0-9]*\) bytes.*/\1/p' "$log")
        [ "$pushed" -gt 0 ] && [ "$pushed" -le 128 ] || fail "$problem (mask '$mask') pushes $pushed bytes"
    done
done
unset MOBA_CAPS_MASK
[ -x "$layered" ] || fail "the layer was installed after configuring: configure and build again"
LD_LIBRARY_PATH="$interposer:$lib:$libraries" "$layered" --jobs 1 --filter 'adopted/recording_without*' >"$log" 2>&1 || fail "recording: exit $?"
grep -q 'Tested: 1 ' "$log" || fail "recording: not one test"
[ "$(reports)" = 0 ] || fail "recording: $(reports) reports"

# Dispatches of a route come first: kconv, centroid, gate. Each depends on the one before, which 1 and 2 drop.
export MOBA_CAPS_MASK=-bda
for dropped in 1 2; do
    MOBA_TEST_DROP=$dropped bench b2q100k100h4g2d64B32t3c,f16,kconv=3 || true
    grep -q "SYNC-HAZARD-READ-AFTER-WRITE" "$log" || fail "without the barriers before dispatch $dropped there is no report"
done
exit $failed
