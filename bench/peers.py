# SPDX-License-Identifier: Apache-2.0
"""Our forward beside PyTorch's dense attention, in one process on one CUDA device.

    MOBA_LIBRARY=build/lib/libmoba.so python3 bench/peers.py [--lengths 8192,65536] [--json FILE] [--stages]

Every time is the median of runs between device events after warm-up, on random normal data past the L2 cache. Outputs of
a run are verified against float64 given its own selection, and the selection by its regret, before the time is printed.
JSON lines have the fields of `moba bench`; the table is the one of docs/performance.md.
"""
import argparse
import json
import math
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "python"))

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import moba
import moba.torch as mt

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}
TOLERANCE = {"bf16": 4e-3, "f16": 5e-4}


def median_ms(run, repeat):
    for _ in range(min(3, repeat)):
        run()
    torch.cuda.synchronize()
    events = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(repeat)]
    for begin, end in events:
        begin.record()
        run()
        end.record()
    torch.cuda.synchronize()
    times = sorted(begin.elapsed_time(end) for begin, end in events)
    return {"min": times[0], "median": times[repeat // 2], "p90": times[min(repeat - 1, repeat * 9 // 10)]}


def verify(q, k, v, o, lse, selection, block, top):
    """Sampled rows of causal self-attention against float64: (relative error, largest lse error, largest regret)."""
    batch, n, heads, d = q.shape
    group, n_blocks = heads // k.shape[2], (n + block - 1) // block
    rows = sorted({0, 1, n - 1, n // 2} | set(torch.randint(0, n, (60,)).tolist()))
    position = torch.tensor(rows, device=q.device)
    own = position // block
    ids = torch.arange(n_blocks, device=q.device)
    error = norm = lse_error = regret = 0.0
    for b in range(batch):
        chosen = selection.view(batch, n, heads, top)[b, rows].long()
        for h in sorted({0, heads // 2, heads - 1}):
            keys, values = k[b, :, h // group].double(), v[b, :, h // group].double()
            query = q[b, rows, h].double()
            mask = torch.zeros(len(rows), n_blocks + 1, dtype=torch.bool, device=q.device)
            mask.scatter_(1, torch.where(chosen[:, h] < 0, n_blocks, chosen[:, h]), True)
            mask = mask[:, :n_blocks]
            seen = mask.repeat_interleave(block, 1)[:, :n] & (torch.arange(n, device=q.device)[None] <= position[:, None])
            scores = (query @ keys.T / math.sqrt(d)).masked_fill(~seen, -math.inf)
            want_lse = torch.logsumexp(scores, 1)
            want = torch.softmax(scores, 1) @ values
            error += (o[b, rows, h].double() - want).square().sum().item()
            norm += want.square().sum().item()
            lse_error = max(lse_error, (lse.view(heads, batch, n)[h, b, rows].double() - want_lse).abs().max().item())
            whole = keys[: n // block * block].view(-1, block, d).mean(1).to(k.dtype).double()
            gate = query @ whole.T
            past = ids[None, : gate.shape[1]] < own[:, None]
            gate = gate.masked_fill(~past, -math.inf)
            need = min(top - 1, gate.shape[1])
            best = gate.topk(need, 1).values[:, -1] if need else None
            worst = gate.masked_fill(~(mask[:, : gate.shape[1]] & past), math.inf).amin(1)
            full = own >= top - 1
            if best is not None and full.any():
                gap = (best - worst)[full] / best[full].abs().clamp(min=1)
                regret = max(regret, gap.max().item())
            if ((mask & (ids[None] <= own[:, None])).sum(1) != torch.clamp(own + 1, max=top)).any():
                regret = math.inf
    return math.sqrt(error / norm), lse_error, regret


def ours(shape, dtype, block, top, limit, repeat, stages):
    batch, n, heads, kv_heads, d = shape
    q = torch.randn(batch, n, heads, d, device="cuda", dtype=DTYPES[dtype])
    k = torch.randn(batch, n, kv_heads, d, device="cuda", dtype=DTYPES[dtype])
    v = torch.randn_like(k)
    plan = mt.plan_for(q, k, block, top, workspace_limit=limit, inference=True)
    o, lse = torch.full_like(q, math.nan), torch.full((heads, batch * n), math.nan, device="cuda")
    selection = torch.full((batch * n, heads, top), -7, dtype=torch.int32, device="cuda")
    work = torch.empty(plan.workspace_bytes, dtype=torch.uint8, device="cuda")
    none = moba.Buffer(0, 0)
    inputs = moba.Inputs(*(mt._tensor(x, "bshd") for x in (q, k, v)), none, none, none, batch, batch * n, batch * n)
    args = moba.ForwardArgs(inputs=inputs, o=mt._tensor(o, "bshd"), lse=mt._buffer(lse), selection=mt._buffer(selection),
                            workspace=mt._buffer(work), workspace_bytes=plan.workspace_bytes)
    stream = torch.cuda.current_stream().cuda_stream
    run = lambda: plan.forward(args, stream)  # noqa: E731
    ms = median_ms(run, repeat)
    rel_err, lse_err, regret = verify(q, k, v, o, lse, selection, block, top)
    verified = rel_err <= TOLERANCE[dtype] and lse_err < 1e-2 and regret <= 1e-3
    pairs = batch * heads * sum(min(i // block, top - 1) * block + i % block + 1 for i in range(n))
    table = {}
    if stages:
        from torch.profiler import ProfilerActivity, profile

        with profile(activities=[ProfilerActivity.CUDA]) as p:
            for _ in range(5):
                run()
            torch.cuda.synchronize()
        table = {e.key: round(e.self_device_time_total / 5e3, 4) for e in p.key_averages() if e.self_device_time_total > 0}
    names = ("centroid", "gate", "index", "attend", "combine")
    record = {
        "device": torch.cuda.get_device_name(),
        "driver": "CUDA %s" % torch.version.cuda,
        "version": moba.version(),
        "backend": "cuda",
        "variant": {s: plan.kernel(s) for s in names},
        "problem": "b%dq%dk%dh%dg%dd%dB%dt%dc,%s" % (batch, n, n, heads, kv_heads, d, block, top, dtype),
        "pass": "fwd",
        "ms": ms,
        "useful_tflops": 4 * d * pairs / ms["median"] / 1e9,
        "workspace_bytes": plan.workspace_bytes,
        "verified": bool(verified),
        "rel_err": rel_err,
        "max_lse_err": lse_err,
        "regret": regret,
        "repeat": repeat,
    }
    if table:
        record["kernels_ms"] = table
    return record


def dense(shape, dtype, backend, repeat):
    batch, n, heads, kv_heads, d = shape
    q = torch.randn(batch, heads, n, d, device="cuda", dtype=DTYPES[dtype])
    k = torch.randn(batch, kv_heads, n, d, device="cuda", dtype=DTYPES[dtype])
    v = torch.randn_like(k)
    with torch.no_grad(), sdpa_kernel(backend):
        return median_ms(
            lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=heads != kv_heads),
            repeat)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", default="8192,16384,32768,65536")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--kv-heads", type=int, default=0, help="0: as many as heads")
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--block-size", type=int, default=128)
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bf16")
    parser.add_argument("--dense-up-to", type=int, default=65536, help="longest length at which the dense peers are timed")
    parser.add_argument("--peers", default="CUDNN_ATTENTION,FLASH_ATTENTION", help="SDPBackend names")
    parser.add_argument("--stages", action="store_true", help="time of each kernel, by the profiler")
    parser.add_argument("--json", help="file for the JSON lines; default stderr")
    a = parser.parse_args()
    torch.manual_seed(1)
    out = open(a.json, "a") if a.json else sys.stderr
    print("| N | ours, no limit | ours, default | workspace MiB | cuDNN | FlashAttention-2 | cuDNN / ours | TFLOP/s |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    good = True
    for n in (int(x) for x in a.lengths.split(",")):
        shape = (a.batch, n, a.heads, a.kv_heads or a.heads, a.head_dim)
        records = []
        for limit in (-1, 0):
            try:
                records.append(ours(shape, a.dtype, a.block_size, a.top_k, limit, 20 if n <= 131072 else 10, a.stages))
                print(json.dumps(records[-1]), file=out, flush=True)
            except (moba.Error, torch.cuda.OutOfMemoryError) as e:
                print("length %d: %s" % (n, str(e).splitlines()[0]), file=sys.stderr)
                records.append(None)
            torch.cuda.empty_cache()
        peers = []
        for backend in (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION):
            if n > a.dense_up_to or backend.name not in a.peers.split(","):
                peers.append(None)
                continue
            peers.append(dense(shape, a.dtype, backend, 20 if n <= 16384 else 7 if n <= 131072 else 1))
            print(json.dumps({"backend": "torch " + backend.name, "problem": "b%dq%dh%dg%dd%dc,dense,%s" % (
                a.batch, n, a.heads, a.kv_heads or a.heads, a.head_dim, a.dtype), "pass": "fwd", "ms": peers[-1]}), file=out,
                  flush=True)
            torch.cuda.empty_cache()
        good = good and all(r and r["verified"] for r in records)
        show = lambda r, f: f(r) if r else "-"  # noqa: E731
        time = lambda r: "%.3f%s" % (r["ms"]["median"], "" if r["verified"] else " NOT VERIFIED")  # noqa: E731
        ratio = "%.2f" % (peers[0]["median"] / records[1]["ms"]["median"]) if peers[0] and records[1] else "-"
        print("| %d | %s | %s | %s | %s | %s | %s | %s |" % (
            n, show(records[0], time), show(records[1], time), show(records[1], lambda r: "%d" % (r["workspace_bytes"] >> 20)),
            show(peers[0], lambda r: "%.3f" % r["median"]), show(peers[1], lambda r: "%.3f" % r["median"]), ratio,
            show(records[0], lambda r: "%.0f" % r["useful_tflops"])), flush=True)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
