#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Forward and backward on the queries, keys and values of a trained model, beside random ones of the same shape.

    MOBA_LIBRARY=build/lib/libmoba.so python3 bench/real_routing.py results/qkv_*.safetensors

Random queries choose blocks evenly; a trained model's crowd on some blocks and make the lists of others short. The files are
those of examples/train_lm.py --dump; the one sequence in each is repeated to a batch of 8. Median of runs between device
events, bf16. `largest list` is the longest list of rows that chose one block of one head, over the mean.
"""
import pathlib
import sys

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1] / folder) for folder in ("python", "tools")]

import numpy
import torch

import moba.torch as mt
import safetensors_io
from peers import median_ms

BATCH, REPEAT = 8, 15


def measure(q, k, v, block, top):
    """(forward ms, backward ms, largest list over the mean)"""
    q, k, v = (x.to("cuda", torch.bfloat16)[None].repeat(BATCH, 1, 1, 1).requires_grad_() for x in (q, k, v))
    dout = torch.randn_like(q)
    o, _, selection = mt.moba_attention(q, k, v, block_size=block, top_k=top, return_routing=True)
    with torch.no_grad():
        forward = median_ms(lambda: mt.moba_attention(q, k, v, block_size=block, top_k=top), REPEAT)["median"]
    backward = median_ms(lambda: torch.autograd.grad(o, (q, k, v), dout, retain_graph=True), REPEAT)["median"]
    rows = selection.view(BATCH, -1, *selection.shape[1:])[0]
    n_blocks = -(-q.shape[1] // block)
    lists = torch.stack([torch.bincount(rows[:, h][rows[:, h] >= 0], minlength=n_blocks) for h in range(q.shape[2])])
    return forward, backward, (lists.max() / lists.float().mean()).item()


def main():
    print("| q, k, v | block_size | top_k | forward, ms | backward, ms | largest list / mean |\n" + "| --- " * 6 + "|")
    for path in sys.argv[1:]:
        tensors = safetensors_io.load(path)
        real = [torch.from_numpy(numpy.array(tensors[name])) for name in "qkv"]
        for name, data in ((pathlib.Path(path).stem, real), ("random normal", [torch.randn(x.shape) for x in real])):
            for block in (512, 256, 128):
                row = (name, block, 1024 // block, *measure(*data, block, 1024 // block))
                print("| %s | %d | %d | %.3f | %.3f | %.1f |" % row, flush=True)


if __name__ == "__main__":
    main()
