# SPDX-License-Identifier: Apache-2.0
"""Outputs and gradients of 16-bit tensors against float64, reruns bit by bit, cut lists, tails, slices.

Usage: MOBA_LIBRARY=build/lib/libmoba.so python3 tests/cuda/backward_test.py [--device cpu] [NAME...]; exit code 1 when one
fails. On the CPU the same calls run through the CPU backend.
"""
import argparse
import math
import pathlib
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "python"))

import torch

import moba
import moba.torch as mt

DEVICE = "cuda"
BOUND = {torch.bfloat16: (4e-3, 6e-3), torch.float16: (5e-4, 1e-3)}  # docs/spec.md, section 7: o; dq, dk, dv


def data(sq, sk, hq, hk, d, dtype):
    """q, k, v, do of packed tokens."""
    draw = lambda n, h: torch.randn(n, h, d, device=DEVICE).to(dtype)  # noqa: E731
    return draw(sq, hq), draw(sk, hk), draw(sk, hk), draw(sq, hq)


def gradients(q, k, v, do, **options):
    """(selection, o, dq, dk, dv)"""
    q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
    o, _, selection = mt.moba_attention(q, k, v, return_routing=True, **options)
    return (selection, o.detach(), *torch.autograd.grad(o, (q, k, v), do))


def reference(q, k, v, do, selection, block, causal, cu_q, cu_k):
    """(o, dq, dk, dv) of the attention that `selection` prescribes, by float64 autograd."""
    q, k, v = (x.detach().double().requires_grad_() for x in (q, k, v))
    group, out = q.shape[1] // k.shape[1], []
    for q0, q1, k0, k1 in zip(cu_q, cu_q[1:], cu_k, cu_k[1:]):
        n_q, n_k = q1 - q0, k1 - k0
        if n_q == 0 or n_k == 0:
            out.append(torch.zeros(n_q, *q.shape[1:], dtype=torch.float64, device=q.device))
            continue
        keys, values = (x[k0:k1].repeat_interleave(group, 1) for x in (k, v))
        scores = torch.einsum("qhd,khd->hqk", q[q0:q1], keys) / math.sqrt(q.shape[2])
        ids = torch.arange(n_k, device=q.device) // block
        seen = (selection[q0:q1].long().unsqueeze(-1) == ids).any(2).transpose(0, 1)
        if causal:
            position = torch.arange(n_q, device=q.device) + n_k - n_q
            seen = seen & (torch.arange(n_k, device=q.device) <= position[:, None])
        none = ~seen.any(-1, keepdim=True)
        p = torch.softmax(scores.masked_fill(~seen & ~none, -math.inf), -1) * seen
        out.append(torch.einsum("hqk,khd->qhd", p, values))
    tail = q.shape[0] - cu_q[-1]
    out.append(torch.zeros(tail, *q.shape[1:], dtype=torch.float64, device=q.device))
    o = torch.cat(out)
    return (o.detach(), *torch.autograd.grad(o, (q, k, v), do.double()))


def compare(name, got, want, dtype):
    for what, x, y in zip(("o", "dq", "dk", "dv"), got, want):
        bound = BOUND[dtype][what != "o"]
        if not torch.isfinite(x).all():
            return "%s: %s is not finite" % (name, what)
        error = ((x.double() - y).norm() / y.norm().clamp(min=1e-30)).item()
        if not error <= bound:
            return "%s: %s is off by %.2e; %.0e is allowed" % (name, what, error, bound)
    return None


def float64():
    """Every tuned shape, mask and layout of sequences."""
    for dtype in (torch.bfloat16, torch.float16):
        for d in (64, 128):
            for block, top, hq, hk, causal, cu_q, cu_k in (
                (128, 3, 2, 2, True, [0, 700], [0, 700]), (64, 5, 4, 1, True, [0, 700], [0, 700]),
                (192, 2, 2, 1, True, [0, 650], [0, 900]), (256, 3, 2, 2, False, [0, 300], [0, 1000]),
                (128, 4, 4, 2, True, [0, 513, 513, 642], [0, 600, 605, 734]),
                (64, 3, 2, 2, False, [0, 1, 1, 300], [0, 65, 130, 130]),
                (128, 2, 2, 2, True, [0, 300], [0, 129]), (64, 12, 4, 2, True, [0, 300], [0, 1500]),
                (64, 24, 2, 2, True, [0, 150, 300], [0, 1700, 1800])):
                q, k, v, do = data(cu_q[-1], cu_k[-1], hq, hk, d, dtype)
                packed = dict(cu_seqlens_q=torch.tensor(cu_q, dtype=torch.int32, device=DEVICE),
                              cu_seqlens_k=torch.tensor(cu_k, dtype=torch.int32, device=DEVICE))
                selection, *got = gradients(q, k, v, do, block_size=block, top_k=top, causal=causal, **packed)
                want = reference(q, k, v, do, selection, block, causal, cu_q, cu_k)
                problem = compare("%s d%d B%d k%d heads %d/%d %s %s" % (dtype, d, block, top, hq, hk, cu_q, cu_k), got, want,
                                  dtype)
                if problem:
                    return problem


def popular(n, heads, block):
    """A selection in which every row takes block 0 beside its own: one very long list."""
    own = torch.arange(n, device=DEVICE, dtype=torch.int32) // block
    chosen = torch.stack([torch.zeros_like(own), torch.where(own > 0, own, -1)], 1)
    return chosen.unsqueeze(1).expand(n, heads, 2).contiguous()


def holes():
    """A repeated id behind an illegal one counts once."""
    n, block = 1024, 128
    q, k, v, do = data(n, n, 2, 2, 128, torch.bfloat16)
    selection = torch.full((n, 2, 4), -1, dtype=torch.int32, device=DEVICE)
    selection[:, :, 0] = selection[:, :, 2] = 0
    selection[:, :, 1] = 77
    got = gradients(q, k, v, do, block_size=block, top_k=4, selection=selection)[1:]
    return compare("holes", got, reference(q, k, v, do, selection, block, True, [0, n], [0, n]), torch.bfloat16)


def cut_lists():
    """A list long enough to be cut: its pieces are summed, and every rerun gives the same bits."""
    for block, d, dtype in ((128, 128, torch.bfloat16), (64, 64, torch.float16)):
        n, heads = 6000 if DEVICE == "cuda" else 1200, 4
        q, k, v, do = data(n, n, heads, 1, d, dtype)
        selection = popular(n, heads, block)
        run = lambda: gradients(q, k, v, do, block_size=block, top_k=2, selection=selection, deterministic=True)[1:]  # noqa: E731
        got = run()
        problem = compare("block %d" % block, got, reference(q, k, v, do, selection, block, True, [0, n], [0, n]), dtype)
        if problem:
            return problem
        for i in range(10):
            if not all(torch.equal(a, b) for a, b in zip(run(), got)):
                return "block %d: rerun %d differs" % (block, i)


def rerun():
    """50 runs of one input give the same bits."""
    for n, hq, hk, d, block, top, dtype in ((3000, 4, 2, 128, 128, 8, torch.bfloat16), (5000, 2, 2, 64, 64, 16, torch.float16),
                                            (2500, 2, 1, 128, 256, 4, torch.bfloat16)):
        n = n if DEVICE == "cuda" else n // 5
        q, k, v, do = data(n, n, hq, hk, d, dtype)
        first = gradients(q, k, v, do, block_size=block, top_k=top, deterministic=True)
        for i in range(50 if DEVICE == "cuda" else 5):
            again = gradients(q, k, v, do, block_size=block, top_k=top, deterministic=True)
            if not all(torch.equal(a, b) for a, b in zip(again, first)):
                return "run %d of n %d, head_dim %d, block_size %d differs" % (i, n, d, block)


def tails():
    """Storage rows past the last sequence, keys that nobody selects and rows without keys get zeros."""
    q, k, v, do = data(1000, 1000, 2, 2, 64, torch.bfloat16)
    cu = torch.tensor([0, 300, 300, 777], dtype=torch.int32, device=DEVICE)
    do[777:] = math.nan
    _, _, *got = gradients(q, k, v, do, block_size=64, top_k=1, cu_seqlens_q=cu, cu_seqlens_k=cu)
    if any(x[777:].any() or not torch.isfinite(x).all() for x in got):
        return "rows past the last sequence have gradients"
    selection = popular(1000, 2, 128)
    selection[:, :, 1] = -1
    _, _, *got = gradients(q, k, v, do.nan_to_num(), block_size=128, top_k=2, selection=selection)
    if got[1][128:].any() or got[2][128:].any() or not got[2][:128].any():
        return "keys that nobody selected have gradients, or selected ones none"


def slices():
    """The gradients whatever the workspace limit: by kv heads, and by query ranges down to the least."""
    n = 6000 if DEVICE == "cuda" else 1500
    for hq, hk, d, block, top, kconv in ((8, 4, 128, 128, 8, 0), (8, 4, 64, 128, 8, 3), (8, 1, 128, 128, 8, 3), (8, 2, 64, 64, 16, 0), (6, 2, 128, 192, 5, 0)):
        q, k, v, do = data(n, n, hq, hk, d, torch.bfloat16)
        options = dict(block_size=block, top_k=top, deterministic=True)
        if kconv:
            options["kconv_weight"] = (torch.randn(hk, d, kconv, device=DEVICE) / 4).to(q.dtype)
        want = gradients(q, k, v, do, workspace_limit=-1, **options)
        limit, seen = 1 << 30, 0
        while limit > 1 << 20:
            try:
                got = gradients(q, k, v, do, workspace_limit=limit, **options)
            except moba.Error as e:
                if "workspace" not in str(e):
                    return "limit %d: %s" % (limit, e)
                break
            seen += 1
            name = "heads %d/%d, head_dim %d, block_size %d, limit %d" % (hq, hk, d, block, limit)
            problem = compare(name, got[1:], [x.double() for x in want[1:]], torch.bfloat16)
            if problem:
                return problem
            again = gradients(q, k, v, do, workspace_limit=limit, **options)
            if not all(torch.equal(a, b) for a, b in zip(again, got)):
                return name + ": a rerun differs"
            limit = limit * 3 // 4
        if seen < 2:
            return "only %d limits were possible" % seen


def extremes():
    """Large logits and very negative lse give finite gradients."""
    for dtype in (torch.bfloat16, torch.float16):
        q, k, v, do = data(777, 777, 2, 2, 64, dtype)
        _, _, *got = gradients(q * 30, k * -30, v, do, block_size=64, top_k=3)
        _, _, *more = gradients(q.abs() * 30, k.abs() * -30, v, do, block_size=128, top_k=3)
        if not all(torch.isfinite(x).all() for x in got + more):
            return "%s: a gradient is not finite" % dtype


def ragged():
    """Every ragged tail modulo 64, one sequence or many of them, with an lse of -360 or less, of which exp(-lse) is infinite."""
    for dtype in (torch.bfloat16, torch.float16):
        for d, block in ((64, 64), (64, 128), (128, 64), (128, 128)):
            lengths = [[128 + t for t in range(64)]] + [[128 + t] for t in range(64)] + [[1 + t for t in range(64)]]
            for n in lengths[:1] + lengths[-1:] if (d, block) in ((64, 128), (128, 64)) else lengths:
                cu = [0]
                for x in n:
                    cu.append(cu[-1] + x)
                q, k, v, do = data(cu[-1], cu[-1], 2, 1, d, dtype)
                q[:, :, 0], k[:, :, 0] = 16.0, -256.0  # the same for all keys
                packed = torch.tensor(cu, dtype=torch.int32, device=DEVICE)
                selection, *got = gradients(q, k, v, do, block_size=block, top_k=2, cu_seqlens_q=packed, cu_seqlens_k=packed)
                want = reference(q, k, v, do, selection, block, True, cu, cu)
                name = "%s d%d B%d, %d sequences of %d to %d rows" % (dtype, d, block, len(n), n[0], n[-1])
                if not torch.isfinite(got[1]).all():
                    return name + ": dq is not finite"
                for x in (got, want):  # in element 0 of dq exact sums cancel, of terms 256 times as large
                    x[1][:, :, 0] = 0
                problem = compare(name, got, want, dtype)
                if problem:
                    return problem


def full_selection():
    """With every block selected the gradients are those of dense attention."""
    for dtype in (torch.bfloat16, torch.float16):
        for d, block, top, causal in ((64, 64, 11, True), (128, 128, 6, True), (128, 64, 32, False), (64, 256, 8, False)):
            q, k, v, do = data(700, 700, 4, 2, d, dtype)
            exact = [x.double().transpose(0, 1).requires_grad_() for x in (q, k, v)]
            o = torch.nn.functional.scaled_dot_product_attention(
                exact[0], *(x.repeat_interleave(2, 0) for x in exact[1:]), is_causal=causal)
            want = [x.transpose(0, 1) for x in (o, *torch.autograd.grad(o, exact, do.double().transpose(0, 1)))]
            _, *got = gradients(q, k, v, do, block_size=block, top_k=top, causal=causal)
            problem = compare("%s d%d B%d k%d causal %s" % (dtype, d, block, top, causal), got, want, dtype)
            if problem:
                return problem


TESTS = (float64, ragged, full_selection, holes, cut_lists, rerun, tails, slices, extremes)


def main():
    global DEVICE
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("names", nargs="*", help="of %s; default all" % ", ".join(t.__name__ for t in TESTS))
    a = parser.parse_args()
    DEVICE = a.device
    torch.manual_seed(1)
    failed = 0
    for test in TESTS:
        if a.names and test.__name__ not in a.names:
            continue
        begin = time.time()
        try:
            problem = test()
        except Exception as e:  # noqa: BLE001: a test that raises has failed; the others still run
            problem = "%s: %s" % (type(e).__name__, str(e)[:300])
        print("%-4s %-10s %.1f s  %s" % ("FAIL" if problem else "ok", test.__name__, time.time() - begin, problem or ""),
              flush=True)
        failed += bool(problem)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
