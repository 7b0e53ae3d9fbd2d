#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Does Mixture-of-Block-Attention train? A byte-level language model, dense against routed, on one command.

    MOBA_LIBRARY=build/lib/libmoba.so python3 examples/train_lm.py --short --out results

Text: the source of Python's standard library and /usr/share/common-licenses. Into it a recall task is mixed: a key byte and
a value byte, drawn anew for each sequence, stand together at random places; where a key is seen again, its value is
scored. Layers alternate: a local one (the last 16 to 32 bytes, with rotary positions) and a global one without positions,
which is dense or routed. Variants differ in nothing but the global layers; all routed ones read the same number of keys. All
go on from one dense warm-up on sequences so short that routing would select every block, and which must have learned to recall.

Writes results.md, results.json, curves.png and curves.svg, and with --dump the queries, keys and values of each global layer
of the routed variant with the smallest blocks. docs/science.md reads the results.
"""
import argparse
import dataclasses
import json
import math
import pathlib
import re
import statistics
import sys
import sysconfig
import time

sys.path[:0] = [str(pathlib.Path(__file__).resolve().parents[1] / folder) for folder in ("python", "tools")]

import torch
from torch import nn
from torch.nn import functional

import moba.torch as mt

N_KEYS = N_VALUES = 64
FIRST_KEY, FIRST_VALUE = 128, 192  # bytes that the text, reduced to ASCII, does not use


@dataclasses.dataclass
class Setting:
    length: int = 8192
    dim: int = 256
    heads: int = 4
    layers: int = 4
    batch: int = 4
    keys_read: int = 1024  # top_k * block_size of every routed variant
    blocks: tuple = (512, 256, 128)
    events: int = 1024  # key-value pairs in a training sequence at most, and N_KEYS at least; evenly spread in logarithm
    tail: int = 1024  # last positions: trailing loss, and where probes ask
    probes: tuple = (8192, 16384)
    eval_batches: int = 8
    warm_length: int = 32  # of the warm-up's first sequences
    recall_steps: int = 600  # of the warm-up, at most, on recall alone; sequences grow to keys_read as it is learned
    attempts: int = 3  # at a warm-up: weights that did not find recall in those steps are given up for others
    recall_needed: float = 0.9  # after the warm-up, on held-out text; below it a seed is not compared
    warm_steps: int = 250  # of the warm-up, on text and recall and keys_read bytes, where routing would select every block
    steps: int = 280
    lr: float = 2e-3
    seeds: tuple = (0,)
    budget: float = 0.0  # seconds for all seeds, measurements included; 0: `steps` as given


SMOKE = Setting(length=256, dim=32, heads=2, layers=2, batch=2, keys_read=64, blocks=(32, 16), events=48,
                tail=64, probes=(256, 512), eval_batches=1, recall_steps=4, attempts=2, recall_needed=0.0,
                warm_steps=4, steps=4)
SMALL = Setting(length=512, dim=64, heads=1, layers=4, batch=8, keys_read=128, blocks=(64, 32, 16), tail=128, probes=(512, 1024),
                eval_batches=8, recall_steps=800, warm_steps=100, steps=150, lr=6e-3)
SHORT = Setting()
LONG = dataclasses.replace(SHORT, seeds=(0, 1, 2))


# ----------------------------------------------------------------------------------------------------- text --
def corpus():
    """(training bytes, held-out bytes), whole files in a fixed order; every 20th is held out. Bytes past ASCII become '?'."""
    library = pathlib.Path(sysconfig.get_paths()["stdlib"])
    files = sorted(p for p in library.rglob("*.py") if not {"site-packages", "dist-packages"} & set(p.parts))
    files += sorted(p for p in pathlib.Path("/usr/share/common-licenses").glob("*") if p.is_file() and not p.is_symlink())
    parts = ([], [])
    for i, path in enumerate(files):
        parts[i % 20 == 19].append(path.read_text(encoding="utf-8", errors="replace").encode("ascii", "replace"))
    return tuple(torch.frombuffer(bytearray(b"\n".join(p)), dtype=torch.uint8) for p in parts)


def uniform(generator, *shape):
    return torch.rand(shape, generator=generator, device=generator.device)


def windows(text, batch, length, generator):
    start = (uniform(generator, batch).double() * (text.numel() - length)).long()
    return text[start[:, None] + torch.arange(length, device=text.device)].long()


def place(tokens, slots, keys, values, where=True):
    """Overwrites two bytes at each slot of each row, a slot being a pair of positions, or only at those that `where` names."""
    for at, what in ((2 * slots, FIRST_KEY + keys), (2 * slots + 1, FIRST_VALUE + values)):
        tokens.scatter_(1, at, torch.where(torch.as_tensor(where, device=at.device), what, tokens.gather(1, at)))


def pick(n_slots, batch, n, generator):
    """n distinct slots a row, ascending."""
    return uniform(generator, batch, n_slots).topk(n, 1).indices.sort(1).values


def training_batch(text, s, length, generator):
    """(tokens, mask of text targets, mask of recall targets); both masks tell what is predicted at a position.

    A sequence uses 4 to N_KEYS different keys, evenly spread in logarithm: with few, copying any value seen before is a first
    step towards copying the right one. Shorter sequences are more in number and hold fewer pairs, in proportion."""
    batch = s.batch * s.length // length
    events = min(max(s.events * length // s.length, 2 * N_KEYS), length // 4)
    tokens = windows(text, batch, length + 1, generator)
    slots = pick(length // 2, batch, events, generator)
    n_keys = 4 * (N_KEYS / 4) ** uniform(generator, batch, 1)
    chosen = (uniform(generator, *slots.shape) * n_keys).long()
    keys = uniform(generator, batch, N_KEYS).argsort(1).gather(1, chosen)
    values = (uniform(generator, batch, N_KEYS) * N_VALUES).long().gather(1, keys)
    share = max(events / N_KEYS, 1.0) ** -uniform(generator, batch, 1)
    kept = uniform(generator, *slots.shape) < share
    place(tokens, slots, keys, values, kept)
    one_hot = functional.one_hot(keys, N_KEYS) * kept[:, :, None]
    seen = kept & ((one_hot.cumsum(1) - one_hot).gather(2, keys[:, :, None])[:, :, 0] > 0)
    recall = torch.zeros(batch, length, dtype=torch.bool, device=text.device).scatter_(1, 2 * slots, seen)
    return tokens, tokens[:, 1:] < FIRST_KEY, recall


def probe_batch(text, s, length, generator):
    """Every key once, anywhere before the tail, and once more within it."""
    tokens = windows(text, s.batch, length + 1, generator)
    keys = uniform(generator, s.batch, N_KEYS).argsort(1)
    values = (uniform(generator, *keys.shape) * N_VALUES).long()
    n = min(N_KEYS, s.tail // 4)
    place(tokens, pick((length - s.tail) // 2, s.batch, n, generator), keys[:, :n], values[:, :n])
    slots = (length - s.tail) // 2 + pick(s.tail // 2, s.batch, n, generator)
    order = uniform(generator, s.batch, n).argsort(1)
    place(tokens, slots, keys.gather(1, order), values.gather(1, order))
    return tokens, torch.zeros(s.batch, length, dtype=torch.bool, device=text.device).scatter_(1, 2 * slots, True)


# ---------------------------------------------------------------------------------------------------- model --
def rotary(q, k, positions):
    """Rotary embedding with base 10000; q and k are [batch][token][head][head_dim]."""
    half = q.shape[-1] // 2
    rate = 10000.0 ** (-torch.arange(half, device=q.device) / half)
    angle = positions[:, None].float() * rate
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]

    def turn(x):
        a, b = x[..., :half].float(), x[..., half:].float()
        return torch.cat([a * cos - b * sin, a * sin + b * cos], -1).to(x.dtype)

    return turn(q), turn(k)


class LocalAttention(nn.Module):
    """Each block of 16 positions sees itself and the block before, causally: enough for words, too little for recall."""

    def __init__(self, dim, heads, block=16):
        super().__init__()
        self.heads, self.block = heads, block
        self.qkv, self.out = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim, bias=False)

    def forward(self, x, positions):
        batch, tokens, dim = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, self.heads, -1).unbind(2)
        q, k = rotary(q, k, positions)
        q, k, v = (t.unflatten(1, (-1, self.block)).transpose(2, 3) for t in (q, k, v))  # [batch][block][head][row][head_dim]
        k, v = (torch.cat([functional.pad(t, (0, 0) * 3 + (1, 0))[:, :-1], t], 3) for t in (k, v))
        seen = torch.ones(self.block, 2 * self.block, dtype=torch.bool, device=x.device).tril(self.block)
        seen = seen.repeat(tokens // self.block, 1, 1, 1)
        seen[0, :, :, :self.block] = False
        q, k, v, seen = (t.flatten(0, 1) for t in (q, k, v, seen.expand(batch, -1, 1, -1, -1)))
        o = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return self.out(o.transpose(1, 2).reshape(batch, tokens, dim))


class Layer(nn.Module):
    def __init__(self, s, local, block=128, kconv=0, dense=True):
        super().__init__()
        self.norm_attention, self.norm_mlp = nn.RMSNorm(s.dim), nn.RMSNorm(s.dim)
        if local:
            self.attention = LocalAttention(s.dim, s.heads)
        else:
            self.attention = mt.MobaAttention(s.dim, s.heads, block_size=block, top_k=s.keys_read // block, kconv_width=kconv,
                                              dense=dense)
        self.up, self.down = nn.Linear(s.dim, 4 * s.dim, bias=False), nn.Linear(4 * s.dim, s.dim, bias=False)

    def forward(self, x, positions, attend):
        if attend:
            x = x + self.attention(self.norm_attention(x), positions)
        return x + self.down(functional.gelu(self.up(self.norm_mlp(x))))


class Model(nn.Module):
    """Local and global layers in turn over embeddings of this byte and the one before, so that one global layer can recall.

    ``n_dense`` global layers, the last ones, stay dense. Where ``local`` is cleared, local layers do not attend."""

    def __init__(self, s, block, kconv, n_dense):
        super().__init__()
        self.embed, self.embed_before = nn.Embedding(256, s.dim), nn.Embedding(256, s.dim)
        n_global = s.layers // 2
        self.layers, self.local = nn.ModuleList(), True
        for i in range(n_global):
            self.layers += [Layer(s, True), Layer(s, False, block or s.blocks[-1], kconv, block == 0 or i >= n_global - n_dense)]
        self.norm, self.head = nn.RMSNorm(s.dim), nn.Linear(s.dim, 256, bias=False)
        for name, p in self.named_parameters():
            if p.dim() == 2:
                depth = math.sqrt(2 * s.layers) if name.endswith(("out.weight", "down.weight")) else 1
                nn.init.normal_(p, std=1.0 if "embed" in name else 1 / math.sqrt(p.shape[1]) / depth)

    def global_layers(self):
        return self.layers[1::2]

    def forward(self, tokens):
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.embed(tokens) + self.embed_before(functional.pad(tokens, (1, 0))[:, :-1])
        for i, layer in enumerate(self.layers):
            x = layer(x, positions, self.local or i % 2 == 1)
        return self.head(self.norm(x))


@dataclasses.dataclass
class Variant:
    name: str
    block: int = 0  # 0: dense
    kconv: int = 0
    n_dense: int = 0
    dense_from: float = 1.0  # share of the steps after which every layer is dense


def variants(s):
    last = s.blocks[-1]
    return ([Variant("dense")] + [Variant("B=%d, k=%d" % (b, s.keys_read // b), b) for b in s.blocks] +
            [Variant("B=%d, kconv3" % last, last, kconv=3), Variant("B=%d, last global layer dense" % last, last, n_dense=1),
             Variant("B=%d, last tenth of the steps dense" % last, last, dense_from=0.9)])


# ------------------------------------------------------------------------------------------------- training --
class Run:
    """One variant and seed, from its first step to its measurements."""

    def __init__(self, s, variant, seed, texts, device):
        self.s, self.variant, self.texts, self.device = s, variant, texts, device
        self.length = s.length
        torch.manual_seed(seed)
        self.data = torch.Generator(device).manual_seed(1000 + seed)  # the same batches for every variant
        self.model = Model(s, variant.block, variant.kconv, variant.n_dense).to(device)
        matrices = [p for p in self.model.parameters() if p.dim() == 2]
        others = [p for p in self.model.parameters() if p.dim() != 2]
        self.optimizer = torch.optim.AdamW([{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}],
                                           lr=s.lr, betas=(0.9, 0.95), fused=device.type == "cuda")
        self.curve = []

    def logits(self, tokens):
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            return self.model(tokens)

    def step(self, at, n_steps, decay=True, text_weight=1.0):
        s = self.s
        rate = min((at + 1) / 20, 1.0, max(0.05, (n_steps - at) / (0.5 * n_steps)) if decay else 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = s.lr * rate
        tokens, text, recall = training_batch(self.texts[0], s, self.length, self.data)
        logits = self.logits(tokens[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1).float(), tokens[:, 1:].flatten(), reduction="none").view_as(text)
        text_loss = (loss * text).sum() / text.sum()
        recall_loss = ((loss * recall).sum(1) / recall.sum(1).clamp(min=1)).mean()
        (text_weight * text_loss + recall_loss).backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if at % 10 == 9 or at == n_steps - 1:
            right = ((logits.argmax(-1) == tokens[:, 1:]) & recall).sum() / recall.sum().clamp(min=1)
            self.curve.append((at + 1, *torch.stack([text_loss.detach(), recall_loss.detach(), right]).tolist()))
            if at % 50 == 49:
                print("%s: step %d, loss %.3f, recall loss %.3f, recall %.1f %%" %
                      (self.variant.name, *self.curve[-1][:3], 100 * self.curve[-1][3]), flush=True)
            if not math.isfinite(self.curve[-1][1]):
                raise SystemExit("%s: the loss is not finite at step %d" % (self.variant.name, at + 1))

    def train(self, first, last, n_steps):
        """Steps first..last-1 of n_steps; seconds."""
        wait(self.device)
        begin = time.monotonic()
        for at in range(first, last):
            self.step(at, n_steps)
        wait(self.device)
        return time.monotonic() - begin

    def warm_up(self):
        """Recall alone, until it is learned on sequences of keys_read or recall_steps are over: whether it is, and steps made.

        The first sequences are short, for what a query can learn from one key falls with the number of keys; where recall is
        right in 90 % of cases they double. Local layers do not attend: they would learn to recall what is within their reach
        and leave the global ones little to learn from."""
        s, self.length, self.model.local = self.s, self.s.warm_length, False
        recent = []
        for at in range(s.recall_steps):
            self.step(at, s.recall_steps, decay=False, text_weight=0.0)
            if at % 10 == 9:
                recent = recent[-1:] + [self.curve[-1][3]]
                if len(recent) == 2 and min(recent) >= 0.9:
                    if self.length == s.keys_read:
                        return True, at + 1
                    self.length, recent = min(2 * self.length, s.keys_read), []
        return False, s.recall_steps

    def lengthen(self, at):
        """The warm-up's second part, from step `at` on: text and recall on longer sequences; steps made in all."""
        self.length, self.model.local = self.s.keys_read, True
        for i in range(self.s.warm_steps):
            self.step(at + i, at + self.s.warm_steps, decay=False)
        return at + self.s.warm_steps

    @torch.no_grad()
    def recall(self):
        """Share of recalls that are right on held-out text, in sequences like those trained on last."""
        generator, right, n = torch.Generator(self.device).manual_seed(8), 0, 0
        for _ in range(self.s.eval_batches):
            tokens, _, asked = training_batch(self.texts[1], self.s, self.length, generator)
            right += ((self.logits(tokens[:, :-1]).argmax(-1) == tokens[:, 1:]) & asked).sum().item()
            n += asked.sum().item()
        return right / max(n, 1)

    @torch.no_grad()
    def measure(self):
        """Held-out loss a byte in nats, over all positions and over the tail; recall at each probe length."""
        s, out = self.s, {}
        generator = torch.Generator(self.device).manual_seed(7)
        means, tails = [], []
        for _ in range(s.eval_batches):
            tokens = windows(self.texts[1], s.batch, s.length + 1, generator)
            loss = functional.cross_entropy(self.logits(tokens[:, :-1]).float().transpose(1, 2), tokens[:, 1:], reduction="none")
            means.append(loss.mean().item())
            tails.append(loss[:, -s.tail:].mean().item())
        out["loss"], out["tail_loss"] = statistics.mean(means), statistics.mean(tails)
        for length in s.probes:
            right = []
            for _ in range(s.eval_batches):
                tokens, asked = probe_batch(self.texts[1], s, length, generator)
                right.append((self.logits(tokens[:, :-1]).argmax(-1) == tokens[:, 1:])[asked].float().mean().item())
            out["recall_%d" % length] = statistics.mean(right)
        return out


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize()


def warm_up(s, seed, texts, device):
    """(run, record) of a dense model that has learned to recall, or of the last attempt at one."""
    for attempt in range(s.attempts):
        run = Run(s, Variant("warm-up"), seed + 100 * attempt, texts, device)
        found, steps = run.warm_up()
        if found:
            break
        print("seed %d, attempt %d: no recall after %d steps" % (seed, attempt + 1, steps), flush=True)
    steps = run.lengthen(steps)
    record = {"variant": "warm-up", "seed": seed, "attempts": attempt + 1, "steps": steps, "recall": run.recall()}
    print(json.dumps(record), flush=True)
    return run, {**record, "curve": run.curve}


def steps_within(seconds, s, choices, texts, device):
    """How many steps each variant can make, each of them measured, when all together may take that many seconds."""
    begin, each, measuring = time.monotonic(), 0.0, 0.0
    for variant in choices:
        run = Run(s, variant, 0, texts, device)
        run.train(0, 3, 1000)
        took = run.train(3, 13, 1000) / 10
        each += took * (1.0 if variant.dense_from == 1 else 1 - variant.dense_from)
        run.measure()
        wait(device)
        before = time.monotonic()
        run.measure()
        measuring += time.monotonic() - before
        print("%s: %.1f ms a step" % (variant.name, 1e3 * took), flush=True)
    seconds -= time.monotonic() - begin + measuring
    return max(20, int(seconds / each) // 20 * 20)


def train_all(s, choices, texts, device, save=lambda results, routed: None):
    """Results a variant and seed, and the first seed's routed run with the smallest blocks.

    A variant that turns dense late goes on from the routed one it shares its start with. ``save`` is called after each
    variant, with the results so far and, once, that run. With a budget, a seed that would end past it is not begun."""
    results, kept, n_steps, start = [], None, 0 if s.budget else s.steps, time.monotonic()
    for i, seed in enumerate(s.seeds):
        begin = time.monotonic()
        if s.budget and i and begin - start + 0.9 * (begin - start) / i > s.budget:
            print("%d of %d seeds within the budget" % (i, len(s.seeds)), flush=True)
            break
        warm, record = warm_up(s, seed, texts, device)
        results.append(record)
        if record["recall"] < s.recall_needed:
            print("seed %d: the dense model recalls %.1f %% after the warm-up; a comparison would say nothing" %
                  (seed, 100 * record["recall"]), flush=True)
            continue
        n_steps = n_steps or steps_within(s.budget / len(s.seeds) - (time.monotonic() - begin), s, choices, texts, device)
        half_way = {}
        for variant in choices:
            run = Run(s, variant, seed, texts, device)
            run.model.load_state_dict(warm.model.state_dict(), strict=False)  # but for a key convolution, still the identity
            turn = int(n_steps * 0.9)
            routed = (variant.block, variant.kconv, variant.n_dense)
            if variant.dense_from < 1 and routed in half_way:
                model, optimizer, data, curve, seconds = half_way[routed]
                run.model.load_state_dict(model)
                run.optimizer.load_state_dict(optimizer)
                run.data.set_state(data)
                run.curve = list(curve)
            else:
                seconds = run.train(0, turn, n_steps)
                half_way[routed] = ({k: v.clone() for k, v in run.model.state_dict().items()},
                                    copy_state(run.optimizer.state_dict()), run.data.get_state(), list(run.curve), seconds)
            if variant.dense_from < 1:
                for layer in run.model.global_layers():
                    layer.attention.dense = True
            tail_seconds = run.train(turn, n_steps, n_steps)
            record = {"variant": variant.name, "seed": seed, "steps": n_steps,
                      "ms_a_step": 1e3 * (seconds + tail_seconds) / n_steps, **run.measure()}
            print(json.dumps({k: round(v, 4) if isinstance(v, float) else v for k, v in record.items()}), flush=True)
            results.append({**record, "curve": run.curve})
            first = variant.block == s.blocks[-1] and routed[1:] == (0, 0) and variant.dense_from == 1 and not kept
            kept = run if first else kept
            save(results, run if first else None)
        results[-1]["seconds_of_seed"] = time.monotonic() - begin
    return results, kept


def copy_state(state):
    if torch.is_tensor(state):
        return state.clone()
    if isinstance(state, dict):
        return {k: copy_state(v) for k, v in state.items()}
    return [copy_state(v) for v in state] if isinstance(state, list) else state


# -------------------------------------------------------------------------------------------------- results --
def table(s, results):
    """A row a variant: means over the seeds and, of several, the least and the largest. What a variant loses to the dense one
    is the mean of differences within a seed, whose warm-up and batches both share."""
    dense = {r["seed"]: r["loss"] for r in results if r["variant"] == "dense"}
    results = [{**r, "above": r["loss"] - dense.get(r["seed"], math.nan)} for r in results]
    probes = ["recall_%d" % n for n in s.probes]
    names = {"loss": "loss", "above": "above dense", "tail_loss": "loss, last %d" % s.tail,
             **{p: "recall at %s" % p[7:] for p in probes}, "ms_a_step": "ms a step"}
    lines = ["| global layers | " + " | ".join(names.values()) + " |", "| --- |" + " --- |" * len(names)]
    for variant in dict.fromkeys(r["variant"] for r in results):
        cells = []
        for field in names:
            values = [r[field] * (100 if field in probes else 1) for r in results if r["variant"] == variant]
            show = (lambda x: "%.1f" % x) if field in probes or field == "ms_a_step" else lambda x: "%.4f" % x
            text = show(statistics.mean(values)) + (" %" if field in probes else "")
            if len(values) > 1:
                text += " (%s to %s)" % (show(min(values)), show(max(values)))
            cells.append("" if math.isnan(values[0]) else text)
        lines.append("| " + " | ".join([variant, *cells]) + " |")
    return "\n".join(lines)


def draw(results, folder):
    try:
        import matplotlib
    except ImportError:
        print("matplotlib is not installed: no picture of the curves")
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2))
    for i, variant in enumerate(dict.fromkeys(r["variant"] for r in results)):
        for r in (r for r in results if r["variant"] == variant):
            if not r["curve"]:
                continue
            steps, text, _, recall = zip(*r["curve"])
            if variant == "warm-up":  # its loss on text is another scale: recall alone is learned first
                steps = [x - r["steps"] for x in steps]
            else:
                left.plot(steps, smooth(text), color="C%d" % i, lw=1.2)
            label = variant if r["seed"] == results[0]["seed"] else None
            right.plot(steps, smooth([100 * x for x in recall]), color="C%d" % i, lw=1.2, label=label)
    left.set_ylabel("training loss on text, nats a byte")
    right.set_ylabel("training recall, %")
    left.set_xlabel("step")
    right.set_xlabel("step (below 0: the common warm-up)")
    for axes in (left, right):
        axes.grid(alpha=0.3)
    right.legend(fontsize=7)
    figure.tight_layout()
    for kind in ("png", "svg"):
        figure.savefig(folder / ("curves." + kind), dpi=110)


def smooth(values, keep=0.7):
    out = []
    for x in values:
        out.append(x if not out else keep * out[-1] + (1 - keep) * x)
    return out


@torch.no_grad()
def dump(run, folder, lengths):
    """Queries, keys and values of every global layer on one held-out sequence of probes a length, float16, as
    moba run --input reads them: a file a layer and length."""
    import safetensors_io

    for length in lengths:
        tokens, _ = probe_batch(run.texts[1], run.s, length, torch.Generator(run.device).manual_seed(9))

        def keep(index):
            def hook(module, args):
                arrays = {name: x[0].half().cpu().numpy() for name, x in zip("qkv", module.project(*args))}
                safetensors_io.save(folder / ("qkv_%d_%d.safetensors" % (index, length)), arrays,
                                    {"made by": "examples/train_lm.py --dump"})
            return hook

        hooks = [x.attention.register_forward_pre_hook(keep(i)) for i, x in enumerate(run.model.global_layers())]
        run.logits(tokens[:1, :-1])
        for hook in hooks:
            hook.remove()


def report(s, results, name, folder):
    """Writes tables and results; the tables."""
    trained = [r for r in results if "loss" in r]
    if not trained:
        return "no seed's warm-up learned to recall: there is nothing to compare\n"
    n_parameters = sum(p.numel() for p in Model(s, 0, 0, 0).parameters())
    about = "%s, torch %s, %d steps of %d x %d bytes, %.2f M parameters, %d of %d seeds" % (
        name, torch.__version__, trained[-1]["steps"], s.batch, s.length, n_parameters / 1e6, len({r["seed"] for r in trained}),
        len(s.seeds))
    warm = "; ".join("seed %d: %d steps, attempt %d, recall %.1f %%" % (r["seed"], r["steps"], r["attempts"], 100 * r["recall"])
                     for r in results if "attempts" in r)
    text = "%s\n\nWarm-up: %s\n\n%s\n" % (about, warm, table(s, trained))
    dense = [r["recall_%d" % s.length] for r in trained if r["variant"] == "dense"]
    if dense and min(dense) < s.recall_needed:
        text += "\nDense recall ends below %.0f %%: its gap to the others says nothing.\n" % (100 * s.recall_needed)
    (folder / "results.md").write_text(text)
    (folder / "results.json").write_text(json.dumps({"about": about, "setting": dataclasses.asdict(s), "results": results}))
    return text


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--smoke", action="store_true", help="seconds on a CPU: that everything runs, not that anything is learned")
    size.add_argument("--small", action="store_true", help="512 bytes and blocks of 64, 32 and 16: some 10 minutes on a CPU core")
    size.add_argument("--short", action="store_true", help="one seed, under 10 minutes on an H100 (the default)")
    size.add_argument("--long", action="store_true", help="the short setting with three seeds")
    parser.add_argument("--out", default="results", type=pathlib.Path, help="folder for tables, curves and dumps")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--only", help="variants whose name matches this regular expression")
    parser.add_argument("--dump", metavar="LENGTHS", nargs="?", const="",
                        help="q, k, v of the global layers of the first seed's routed variant with the smallest blocks, on a "
                        "sequence of each of LENGTHS, or as long as those trained on")
    for field in dataclasses.fields(Setting):
        default = getattr(SHORT, field.name)
        if field.type in (int, float):
            parser.add_argument("--" + field.name.replace("_", "-"), type=field.type, help="default %s" % default)
        else:
            parser.add_argument("--" + field.name.replace("_", "-"), type=lambda x: tuple(int(n) for n in x.split(",")),
                                help="default %s" % ",".join(map(str, default)))
    args = parser.parse_args()
    given = {f.name: getattr(args, f.name) for f in dataclasses.fields(Setting) if getattr(args, f.name) is not None}
    s = dataclasses.replace(SMOKE if args.smoke else SMALL if args.small else LONG if args.long else SHORT, **given)
    device = torch.device(args.device)
    choices = [v for v in variants(s) if not args.only or re.search(args.only, v.name)]
    if not choices:
        parser.error("no variant's name matches %r; they are %s" % (args.only, "; ".join(v.name for v in variants(s))))
    args.out.mkdir(parents=True, exist_ok=True)
    texts = tuple(text.to(device) for text in corpus())
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print("%s; %s, %.1f MB of text, %.1f MB held out" % (s, name, texts[0].numel() / 1e6, texts[1].numel() / 1e6), flush=True)

    def save(so_far, routed):
        report(s, so_far, name, args.out)
        if routed and args.dump is not None:
            dump(routed, args.out, [int(n) for n in args.dump.split(",")] if args.dump else [s.length])

    results, _ = train_all(s, choices, texts, device, save)
    print("\n" + report(s, results, name, args.out))
    draw(results, args.out)
    return 0 if any("loss" in r for r in results) else 1


if __name__ == "__main__":
    sys.exit(main())
