#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# check_memory.sh PROGRAM: the CPU backend's workspace at 64K tokens is at most 15 % of q, k, v and o, saved at most 10 %,
# and neither grows faster than the length. Two threads, since each has scratch of its own.
set -euo pipefail
program=$1

sizes() { # TOKENS DTYPE: bytes of the forward's and the backward's workspace and of saved
    taskset -c 0,1 "$program" explain "b1q$1k$1h8g8d128B128t8c,$2" --backend cpu |
        awk '/^forward workspace/ { f = $3 } /^backward workspace/ { b = $3 } /^saved/ { s = $2 } END { print f, b, s }'
}

for dtype in f32 f16 bf16; do
    bytes=$([ $dtype = f32 ] && echo 4 || echo 2)
    read -r -a at_64k < <(sizes 65536 $dtype)
    read -r -a at_256k < <(sizes 262144 $dtype)
    tensors=$((4 * 65536 * 8 * 128 * bytes))
    echo "$dtype: forward ${at_64k[0]}, backward ${at_64k[1]}, saved ${at_64k[2]} of $tensors bytes; at 256K ${at_256k[*]}"
    for i in 0 1 2; do
        limit=$([ $i = 2 ] && echo 10 || echo 15)
        ((at_64k[i] > 0 && at_64k[i] * 100 <= tensors * limit)) || { echo "more than $limit % at 64K tokens"; exit 1; }
        ((at_256k[i] <= 4 * at_64k[i])) || { echo "grows faster than the length"; exit 1; }
    done
done
