#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Forward and backward on the queries, keys and values of a trained model, beside random ones of the same shape.

    MOBA_LIBRARY=build/lib/libmoba.so python3 bench/real_routing.py results/qkv_*.safetensors

Random queries choose blocks evenly; a trained model's crowd on some blocks and make the lists of others short. The files are
those of examples/train_lm.py --dump; the one sequence in each is repeated to a batch of 8. Median of runs between device
events, bf16, default workspace limit; outputs and gradients are verified against float64 as bench/peers.py does. `largest
list` is the longest list of rows that chose one block of one head, over the mean.
"""
import math
import pathlib
import sys

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1] / folder) for folder in ("python", "tools")]

import numpy
import torch

import moba
import moba.torch as mt
import safetensors_io
from peers import TOLERANCE, median_ms, verify, verify_gradients

BATCH, REPEAT, KEYS_READ = 8, 15, 1024


def largest_list(selection, batch, n_blocks):
    """Rows that chose a block, at most over the blocks and heads of the first sequence, over their mean."""
    rows = selection.view(batch, -1, *selection.shape[1:])[0]
    lists = torch.stack([torch.bincount(x[x >= 0], minlength=n_blocks) for x in rows.unbind(1)])
    return (lists.max() / lists.float().mean()).item()


def measure(q, k, v, block, top, device="cuda", batch=BATCH):
    """(forward ms, backward ms, largest list over the mean, whether results are right)"""
    q, k, v = (x.to(device, torch.bfloat16)[None].repeat(batch, 1, 1, 1).requires_grad_() for x in (q, k, v))
    dout = torch.randn_like(q)
    attend = lambda: mt.moba_attention(q, k, v, block_size=block, top_k=top)  # noqa: E731
    o, lse, selection = mt.moba_attention(q, k, v, block_size=block, top_k=top, return_routing=True)
    with torch.no_grad():
        forward = median_ms(attend, REPEAT)["median"]
    backward = median_ms(lambda: torch.autograd.grad(o, (q, k, v), dout, retain_graph=True), REPEAT)["median"]
    gradients = torch.autograd.grad(o, (q, k, v), dout)
    q, k, v, o = (x.detach() for x in (q, k, v, o))
    error, _, lse_error, regret = verify(q, k, v, o, lse, selection, block, top)
    right = error <= TOLERANCE["fwd"]["bf16"] and lse_error < 1e-2 and regret <= 1e-3
    error = verify_gradients(q, k, v, dout, selection, *gradients, block, top, o)[0]  # trained scores may be large
    right = right and error <= TOLERANCE["bwd"]["bf16"]
    return forward, backward, largest_list(selection, batch, math.ceil(q.shape[1] / block)), right


def main():
    if not sys.argv[1:] or not torch.cuda.is_available():
        print("usage: real_routing.py FILE...; torch must find a CUDA device", file=sys.stderr)
        return 2
    good = True
    print("| q, k, v | tokens | block_size | top_k | forward, ms | backward, ms | largest list / mean |\n" + "| --- " * 7 + "|")
    for path in sys.argv[1:]:
        tensors = safetensors_io.load(path)
        real = [torch.from_numpy(numpy.array(tensors[name])) for name in "qkv"]
        random = [torch.randn(x.shape) for x in real]
        for block in (128, 256, 512):
            for name, data in ((pathlib.Path(path).stem, real), ("random normal", random)):
                try:
                    *row, right = measure(*data, block, KEYS_READ // block)
                except (moba.Error, torch.cuda.OutOfMemoryError) as e:
                    print("%s, block_size %d: %s" % (name, block, str(e).splitlines()[0]), file=sys.stderr)
                    good = False
                    continue
                good = good and right
                print("| %s | %d | %d | %d | %.3f | %.3f | %.1f |%s" % (
                    name, data[0].shape[0], block, KEYS_READ // block, *row, "" if right else " NOT VERIFIED"), flush=True)
                torch.cuda.empty_cache()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
