# SPDX-License-Identifier: Apache-2.0
"""Our forward and backward beside PyTorch's dense attention, in one process on one CUDA device.

    MOBA_LIBRARY=build/lib/libmoba.so python3 bench/peers.py [--pass fwd,bwd] [--lengths 8192,65536] [--json FILE]

Every time is the median of runs between device events after warm-up, on random normal data past the L2 cache. Outputs and
gradients of a run are verified against float64 given its own selection, and the selection by its regret, before the time
is printed; of the dense peers, sampled rows of the output and of dq. With --pass fwd the plan is one for inference; otherwise
the forward writes what the backward needs, and the row `sum` adds the medians of both. JSON lines are such as `moba compare`
reads; the table is the one of docs/performance.md.
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
TOLERANCE = {"fwd": {"bf16": 4e-3, "f16": 5e-4}, "bwd": {"bf16": 6e-3, "f16": 1e-3}}  # docs/spec.md section 7
STAGES = {"fwd": ("centroid", "gate", "index", "attend", "combine"), "bwd": ("delta", "attend_bwd", "dq_sum")}
SEED = 1
PEERS = (SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION)


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


def largest(values):
    """Infinite where a value is NaN, which max() would pass over."""
    return max(math.inf if math.isnan(x) else x for x in values)


def verify(q, k, v, o, lse, selection, block, top):
    """Sampled rows of causal self-attention against float64: (relative and largest error, largest lse error, largest regret)."""
    batch, n, heads, d = q.shape
    group, n_blocks = heads // k.shape[2], (n + block - 1) // block
    rows = sorted({0, 1, n - 1, n // 2} | set(torch.randint(0, n, (60,)).tolist()))
    position = torch.tensor(rows, device=q.device)
    own = position // block
    ids = torch.arange(n_blocks, device=q.device)
    error = norm = largest_error = lse_error = regret = 0.0
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
            difference = o[b, rows, h].double() - want
            error += difference.square().sum().item()
            largest_error = largest((largest_error, difference.abs().max().item()))
            norm += want.square().sum().item()
            lse_error = largest((lse_error, (lse.view(heads, batch, n)[h, b, rows].double() - want_lse).abs().max().item()))
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
    return math.sqrt(error / norm), largest_error, lse_error, regret


class Errors:
    """Squared errors over squared values of some tensors, each added in parts, and the largest error of all."""

    def __init__(self, n):
        self.errors, self.norms, self.plain, self.largest = [0.0] * n, [0.0] * n, [0.0] * n, 0.0

    def add(self, i, got, want, plain=None):
        difference = got.double() - want
        self.errors[i] += difference.square().sum().item()
        self.norms[i] += want.square().sum().item()
        self.plain[i] += (plain - want).square().sum().item() if plain is not None else 0.0
        self.largest = largest((self.largest, difference.abs().max().item()))

    def relative(self):
        """Of what goes beyond twice the errors of a plain implementation, where those were given."""
        beyond = [math.sqrt(e) - 2 * math.sqrt(p) for e, p in zip(self.errors, self.plain)]
        return largest(e if math.isnan(e) or not x else max(e, 0.0) / math.sqrt(x) for e, x in zip(beyond, self.norms))


def exact_rows(q, k, v, dout, chosen, b, h, rows, block, o=None):
    """Of query rows of one head in float64: chosen keys, values, probabilities, score gradients, [row][pick, key].

    With ``o``, as a plain implementation has them: probabilities and score gradients rounded, the latter from the rounded o."""
    g = h // (q.shape[2] // k.shape[2])
    ids = chosen[b, rows, h].long()
    at = (ids.clamp(min=0)[:, :, None] * block + torch.arange(block, device=q.device)).flatten(1)
    seen = (ids >= 0).repeat_interleave(block, 1) & (at <= rows[:, None])
    at = at.clamp(max=q.shape[1] - 1)
    keys, values = k[b, at, g].double(), v[b, at, g].double()
    scores = torch.einsum("rd,rtd->rt", q[b, rows, h].double(), keys) / math.sqrt(q.shape[3])
    p = torch.softmax(scores.masked_fill(~seen, -math.inf), 1)
    dp = torch.einsum("rd,rtd->rt", dout[b, rows, h].double(), values)
    if o is None:
        return keys, values, p, p * (dp - (p * dp).sum(1, keepdim=True))
    delta = (o[b, rows, h].double() * dout[b, rows, h].double()).sum(1, keepdim=True)
    return keys, values, p.to(q.dtype).double(), (p * (dp - delta)).to(q.dtype).double()


def verify_gradients(q, k, v, dout, selection, dq, dk, dv, block, top, o=None):
    """Sampled rows of dq and key blocks of dk and dv against float64: (the three's largest relative error, largest error).

    For scores beyond the range of docs/spec.md section 7 give ``o``: twice a plain implementation's error is let pass."""
    batch, n, heads, d = q.shape
    group, scale, chosen = heads // k.shape[2], 1 / math.sqrt(d), selection.view(batch, n, heads, top)
    sums = Errors(3)
    sample = torch.tensor(sorted({0, 1, n - 1, n // 2} | set(torch.randint(0, n, (60,)).tolist())), device=q.device)
    last = (n - 1) // block
    for b, h in {(0, 0), (batch - 1, heads - 1)}:
        ways = [None] if o is None else [None, o]
        want = [scale * torch.einsum("rt,rtd->rd", ds, keys) for keys, _, _, ds in (
            exact_rows(q, k, v, dout, chosen, b, h, sample, block, way) for way in ways)]
        sums.add(0, dq[b, sample, h], *want)
        for j in {0, last // 2, last}:
            want_k, want_v = torch.zeros(2, len(ways), block, d, dtype=torch.float64, device=q.device)
            for head in range(h // group * group, (h // group + 1) * group):
                for rows in (chosen[b, :, head] == j).any(1).nonzero()[:, 0].split(256):
                    pick = (chosen[b, rows, head] == j).int().argmax(1)
                    for i, way in enumerate(ways):
                        _, _, p, ds = exact_rows(q, k, v, dout, chosen, b, head, rows, block, way)
                        p, ds = (x.view(len(rows), top, block)[torch.arange(len(rows)), pick] for x in (p, ds))
                        want_k[i] += scale * ds.T @ q[b, rows, head].double()
                        want_v[i] += p.T @ dout[b, rows, head].double()
            own, length = slice(j * block, (j + 1) * block), min(block, n - j * block)
            sums.add(1, dk[b, own, h // group], *want_k[:, :length])
            sums.add(2, dv[b, own, h // group], *want_v[:, :length])
    return sums.relative(), sums.largest


def verify_dense(q, k, v, dout, o, dq):
    """Sampled rows of dense causal attention, bhsd, and where given of dq: (relative, largest error) of each pass."""
    q, k, v, dout, o = (x.transpose(1, 2) for x in (q, k, v, dout, o))
    n, h = q.shape[1], q.shape[2] - 1
    everything = torch.zeros(q.shape[0], n, q.shape[2], 1, dtype=torch.int32, device=q.device)
    forward, backward = Errors(1), Errors(1)
    for row in sorted({0, n - 1, n // 2} | set(torch.randint(0, n, (9,)).tolist())):
        at = torch.tensor([row], device=q.device)
        keys, values, p, ds = exact_rows(q, k, v, dout, everything, 0, h, at, n)
        forward.add(0, o[0, at, h], torch.einsum("rt,rtd->rd", p, values))
        if dq is not None:
            backward.add(0, dq[0, h, at], torch.einsum("rt,rtd->rd", ds, keys) / math.sqrt(q.shape[3]))
    return {"fwd": (forward.relative(), forward.largest),
            "bwd": (backward.relative(), backward.largest) if dq is not None else None}


def kernel_times(run):
    """ms of each kernel of a run, by the profiler."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as p:
        for _ in range(5):
            run()
        torch.cuda.synchronize()
    return {e.key: round(e.self_device_time_total / 5e3, 4) for e in p.key_averages() if e.self_device_time_total > 0}


def line(backend, version, problem, name, ms, pairs, shape, repeat, workspace, saved):
    """A line of `moba bench`, but for what verification adds."""
    batch, n, heads, kv_heads, d = shape
    q_bytes, k_bytes = 2 * batch * n * heads * d, 2 * batch * n * kv_heads * d
    tensors = (2 * q_bytes + 2 * k_bytes) * (1 if name == "fwd" else 2) + 4 * batch * n * heads
    return {"device": torch.cuda.get_device_name(), "driver": "CUDA %s" % torch.version.cuda, "version": version,
            "backend": backend, "problem": problem, "pass": name, "ms": ms,
            "useful_tflops": (4 if name == "fwd" else 10) * d * pairs / ms["median"] / 1e9, "gbytes": tensors / 1e9,
            "workspace_bytes": workspace, "saved_bytes": saved, "seed": SEED, "repeat": repeat,
            "threads": torch.cuda.get_device_properties(0).multi_processor_count}


def ours(shape, dtype, block, top, limit, repeat, stages, passes):
    """{pass: record}"""
    batch, n, heads, kv_heads, d = shape
    q = torch.randn(batch, n, heads, d, device="cuda", dtype=DTYPES[dtype])
    k = torch.randn(batch, n, kv_heads, d, device="cuda", dtype=DTYPES[dtype])
    v = torch.randn_like(k)
    plan = mt.plan_for(q, k, block, top, workspace_limit=limit, inference="bwd" not in passes)
    o, lse = torch.full_like(q, math.nan), torch.full((heads, batch * n), math.nan, device="cuda")
    selection = torch.full((batch * n, heads, top), -7, dtype=torch.int32, device="cuda")
    work = torch.empty(plan.workspace_bytes, dtype=torch.uint8, device="cuda")
    saved = torch.empty(plan.saved_bytes, dtype=torch.uint8, device="cuda")
    none = moba.Buffer(0, 0)
    view = lambda x: mt._tensor(x, "bshd")  # noqa: E731
    common = {"inputs": moba.Inputs(view(q), view(k), view(v), none, none, none, batch, batch * n, batch * n), "o": view(o),
              "lse": mt._buffer(lse), "saved": mt._buffer(saved) if plan.saved_bytes else none, "saved_bytes": plan.saved_bytes,
              "workspace": mt._buffer(work), "workspace_bytes": plan.workspace_bytes}
    stream = torch.cuda.current_stream().cuda_stream
    forward_args = moba.ForwardArgs(selection=mt._buffer(selection), **common)
    runs = {"fwd": lambda: plan.forward(forward_args, stream)}
    if "bwd" in passes:
        dout = torch.randn_like(q)
        gradients = [torch.full_like(x, math.nan) for x in (q, k, v)]
        backward_args = moba.BackwardArgs(dout=view(dout), **dict(zip(("dq", "dk", "dv"), map(view, gradients))), **common)
        runs["bwd"] = lambda: plan.backward(backward_args, stream)
    pairs = batch * heads * sum(min(i // block, top - 1) * block + i % block + 1 for i in range(n))
    records = {}
    for name, run in runs.items():
        if name not in passes:
            run()
            continue
        ms = median_ms(run, repeat)
        problem = "b%dq%dk%dh%dg%dd%dB%dt%dc,%s" % (batch, n, n, heads, kv_heads, d, block, top, dtype)
        records[name] = line("cuda", moba.version(), problem, name, ms, pairs, shape, repeat, plan.workspace_bytes,
                             plan.saved_bytes)
        records[name]["variant"] = {s: plan.kernel(s) for s in STAGES[name] if plan.kernel(s)}
        if stages:
            records[name]["kernels_ms"] = kernel_times(run)
    rel_err, max_err, lse_err, regret = verify(q, k, v, o, lse, selection, block, top)
    verified = rel_err <= TOLERANCE["fwd"][dtype] and lse_err < 1e-2 and regret <= 1e-3
    if "fwd" in records:
        records["fwd"].update(verified=bool(verified), max_err=max_err, rel_err=rel_err, max_lse_err=lse_err, regret=regret)
    if "bwd" in records:  # gradients of a wrong forward are not right either
        rel_err, max_err = verify_gradients(q, k, v, dout, selection, *gradients, block, top)
        records["bwd"].update(verified=bool(verified and rel_err <= TOLERANCE["bwd"][dtype]), max_err=max_err, rel_err=rel_err)
    return records


def dense(shape, dtype, backend, repeat, passes):
    """{pass: record}"""
    batch, n, heads, kv_heads, d = shape
    q = torch.randn(batch, heads, n, d, device="cuda", dtype=DTYPES[dtype])
    k = torch.randn(batch, kv_heads, n, d, device="cuda", dtype=DTYPES[dtype])
    v, dout, dq, times = torch.randn_like(k), torch.randn_like(q), None, {}
    attend = lambda: torch.nn.functional.scaled_dot_product_attention(  # noqa: E731
        q, k, v, is_causal=True, enable_gqa=heads != kv_heads)
    with sdpa_kernel(backend):
        if "fwd" in passes:
            with torch.no_grad():
                times["fwd"] = median_ms(attend, repeat)
        inputs = [x.requires_grad_() for x in (q, k, v)]
        o = attend()
        if "bwd" in passes:
            latest = {}  # dq of the last timed run: at 512K another one would take ten seconds
            times["bwd"] = median_ms(
                lambda: latest.update(dq=torch.autograd.grad(o, inputs, dout, retain_graph=True)[0]), repeat)
            dq = latest["dq"]
    errors = verify_dense(*(x.detach() for x in (q, k, v, dout, o)), dq)
    problem = "b%dq%dk%dh%dg%dd%dc,dense,%s" % (batch, n, n, heads, kv_heads, d, dtype)
    records = {}
    for name, ms in times.items():
        rel_err, max_err = errors[name]
        records[name] = line("torch " + backend.name, torch.__version__, problem, name, ms, batch * heads * n * (n + 1) // 2,
                             shape, repeat, 0, 0)
        records[name].update(variant={}, verified=rel_err <= TOLERANCE[name][dtype], max_err=max_err, rel_err=rel_err)
    return records


def lengths(text):
    values = [int(x) for x in text.split(",")]
    if min(values) < 1:
        raise ValueError(text)
    return values


def some_of(allowed):
    def parse(text):
        names = text.split(",")
        for name in names:
            if name not in allowed:
                raise argparse.ArgumentTypeError("%r is none of %s" % (name, ", ".join(allowed)))
        return names
    return parse


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pass", dest="passes", type=some_of(("fwd", "bwd")), default="fwd",
                        help="fwd (the default), bwd or fwd,bwd")
    parser.add_argument("--lengths", type=lengths, default="8192,16384,32768,65536")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--kv-heads", type=int, default=0, help="0: as many as heads")
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--block-size", type=int, default=128)
    parser.add_argument("--top-k", type=int, default=8)
    parser.add_argument("--dtype", choices=sorted(DTYPES), default="bf16")
    parser.add_argument("--dense-up-to", type=int, default=65536, help="longest length at which the dense peers are timed")
    parser.add_argument("--peers", type=some_of([p.name for p in PEERS]), default=",".join(p.name for p in PEERS),
                        help="SDPBackend names")
    parser.add_argument("--stages", action="store_true", help="time of each kernel, by the profiler")
    parser.add_argument("--json", help="file for the JSON lines; default stderr")
    a = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch finds no CUDA device")
    return a


def print_rows(n, passes, records, peers):
    """{pass: record} each: ``records`` without a limit and with the default one, ``peers`` of each of PEERS."""
    def row(name, ours_ms, peer_ms, mib, tflops, good=(True,) * 4):
        cells = [("%.3f" % x if x else "-") + ("" if ok else " NOT VERIFIED") for x, ok in zip(ours_ms + peer_ms, good)]
        cells.insert(2, mib)
        cells += ["%.2f" % (peer_ms[0] / ours_ms[1]) if peer_ms[0] and ours_ms[1] else "-", tflops]
        print("| %d | %s | %s |" % (n, name, " | ".join(cells)), flush=True)

    sums = [[], []]
    for name in passes:
        found = [r.get(name) for r in records + peers]
        medians = [r["ms"]["median"] if r else None for r in found]
        medians = [medians[:2], medians[2:]]
        row(name, *medians, "%d" % (found[1]["workspace_bytes"] >> 20) if found[1] else "-",
            "%.0f" % found[0]["useful_tflops"] if found[0] else "-", [not r or r["verified"] for r in found])
        for total, values in zip(sums, medians):
            total.append(values)
    if len(passes) > 1:
        both = [[sum(x) if all(x) else None for x in zip(*total, strict=True)] for total in sums]
        row("sum", *both, "", "")


def main():
    a = arguments()
    torch.manual_seed(SEED)
    out = open(a.json, "a") if a.json else sys.stderr
    passes = [x for x in ("fwd", "bwd") if x in a.passes]
    print("| N | pass | ours, no limit | ours, default | workspace MiB | cuDNN | FlashAttention-2 | cuDNN / ours | TFLOP/s |")
    print("| --- " * 9 + "|", flush=True)
    good = True
    for n in a.lengths:
        shape = (a.batch, n, a.heads, a.kv_heads or a.heads, a.head_dim)
        records, peers = [], []
        for limit in (-1, 0):
            try:
                records.append(ours(shape, a.dtype, a.block_size, a.top_k, limit, 20 if n <= 131072 else 10, a.stages, passes))
            except (moba.Error, torch.cuda.OutOfMemoryError) as e:
                print("length %d: %s" % (n, str(e).splitlines()[0]), file=sys.stderr)
                records.append({})
            for record in records[-1].values():
                print(json.dumps(record), file=out, flush=True)
            torch.cuda.empty_cache()
        for backend in PEERS:
            peers.append({})
            if n > a.dense_up_to or backend.name not in a.peers:
                continue
            try:
                peers[-1] = dense(shape, a.dtype, backend, 20 if n <= 16384 else 7 if n <= 131072 else 1, passes)
            except RuntimeError as e:  # out of memory among them
                print("length %d, %s: %s" % (n, backend.name, str(e).splitlines()[0]), file=sys.stderr)
            for record in peers[-1].values():
                print(json.dumps(record), file=out, flush=True)
            torch.cuda.empty_cache()
        good = good and all(records) and all(x["verified"] for r in records + peers for x in r.values())
        print_rows(n, passes, records, peers)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
