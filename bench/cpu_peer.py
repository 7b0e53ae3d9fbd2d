#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The CPU backend's whole forward beside PyTorch's dense causal attention, in one run, float32, the same threads.

    pip install torch==2.13.0 --index-url <PyTorch's CPU wheels>
    python3 bench/cpu_peer.py [--moba build/bin/moba] [--threads N]

Problem: batch 1, 8 heads, head_dim 128, block_size 128, top_k 8, 16384 and 65536 tokens. Ours is `moba bench`, which
verifies its outputs; the peer is scaled_dot_product_attention(is_causal=True). Both take turns and the least time of
each counts. At 65536 tokens the peer computes 2 of the 8 heads and its time is multiplied by 4: its work per head is
the same and at least one head keeps each of two threads busy. Exit code 0 when both ratios meet the project's
thresholds, 1 when not.
"""
import argparse
import json
import os
import subprocess
import sys
import time

import torch

HEADS, HEAD_DIM = 8, 128
# tokens, heads that the peer computes, turns, least ratio
CASES = [(16384, 8, 3, 4.0), (65536, 2, 2, 14.0)]


def ours_ms(moba, tokens, threads):
    problem = f"b1q{tokens}k{tokens}h{HEADS}g{HEADS}d{HEAD_DIM}B128t8c,f32"
    command = [moba, "bench", problem, "--backend", "cpu", "--pass", "fwd", "--repeat", "3", "--threads", str(threads)]
    line = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    if not line["verified"]:
        sys.exit(f"{problem}: the outputs are wrong")
    return line["ms"]["min"]


def peer_ms(tokens, heads):
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randn(1, heads, tokens, HEAD_DIM, generator=generator) for _ in range(3))
    begin = time.perf_counter()
    torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    return 1e3 * (time.perf_counter() - begin) * HEADS / heads


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moba", default="build/bin/moba")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.set_grad_enabled(False)
    print(f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {options.threads} threads")
    peer_ms(1024, HEADS)
    missed = False
    for tokens, heads, turns, least_ratio in CASES:
        ours, peer = float("inf"), float("inf")
        for _ in range(turns):
            ours = min(ours, ours_ms(options.moba, tokens, options.threads))
            peer = min(peer, peer_ms(tokens, heads))
        ratio = peer / ours
        missed |= ratio < least_ratio
        print(f"{tokens} tokens: dense {peer:.0f} ms ({heads} of {HEADS} heads measured), moba {ours:.0f} ms, "
              f"ratio {ratio:.2f} (at least {least_ratio:g}) {'met' if ratio >= least_ratio else 'MISSED'}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
