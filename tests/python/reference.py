# SPDX-License-Identifier: Apache-2.0
"""docs/spec.md in a few lines of float64 torch, differentiable, one sequence after another. Shares no code with moba."""
import math

import torch


class _Round(torch.autograd.Function):
    """Rounds to a storage type; the gradient passes as if it had not."""

    @staticmethod
    def forward(ctx, x, dtype):
        return x.to(dtype).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        return grad, None


def key_conv(k, weight):
    """k [tokens][heads][head_dim] of one sequence."""
    rows = []
    for t in range(k.shape[0]):
        total = sum(weight[:, :, tap] * k[t - tap] for tap in range(min(weight.shape[2], t + 1)))
        rows.append(k[t] + total * torch.sigmoid(total))
    return torch.stack(rows) if rows else k


def allowed(selection, n_queries, n_keys, block_size, causal, dense=False):
    """mask [queries][heads][keys] of one sequence."""
    position = torch.arange(n_queries) + n_keys - n_queries
    key = torch.arange(n_keys)
    mask = key[None, None] <= position[:, None, None] if causal else torch.ones(n_queries, 1, n_keys, dtype=torch.bool)
    if dense:
        return mask
    return mask & (selection[:, :, :, None] == (key // block_size)[None, None, None]).any(2)


def attention(q, k, v, selection, block_size, causal=True, kconv_weight=None, dense=False, storage=None):
    """One sequence, [tokens][heads][head_dim]; returns (o, lse [heads][tokens])."""
    if kconv_weight is not None:
        k = key_conv(k, kconv_weight)
        k = _Round.apply(k, storage) if storage is not None else k
    group = q.shape[1] // k.shape[1]
    mask = allowed(selection, q.shape[0], k.shape[0], block_size, causal, dense)
    mask = mask.expand(-1, q.shape[1], -1).permute(1, 0, 2)
    scores = torch.einsum("ihd,jhd->hij", q, k.repeat_interleave(group, 1)) / math.sqrt(q.shape[2])
    scores = scores.masked_fill(~mask, -math.inf)
    some = mask.any(2, keepdim=True)
    lse = torch.logsumexp(torch.where(some, scores, torch.zeros_like(scores)), 2)
    p = torch.where(some, torch.exp(scores - lse[:, :, None]), torch.zeros_like(scores))
    return torch.einsum("hij,jhd->ihd", p, v.repeat_interleave(group, 1)), lse.masked_fill(~some[:, :, 0], -math.inf)


def packed(q, k, v, selection, cu_q, cu_k, *args, **kwargs):
    """Sequences one after another; selection [tokens][heads][top_k]."""
    out = []
    for b in range(len(cu_q) - 1):
        rows, keys = slice(cu_q[b], cu_q[b + 1]), slice(cu_k[b], cu_k[b + 1])
        if cu_q[b] < cu_q[b + 1]:
            chosen = selection[rows] if selection is not None else None
            out.append(attention(q[rows], k[keys], v[keys], chosen, *args, **kwargs))
    return torch.cat([o for o, _ in out]), torch.cat([lse for _, lse in out], 1)


def route(q, k, block_size, top_k):
    """The causal selection of one sequence in exact arithmetic (small integers), one row at a time."""
    n = -(-k.shape[0] // block_size)
    group = q.shape[1] // k.shape[1]
    centroids = torch.stack([k[j * block_size:(j + 1) * block_size].mean(0) for j in range(n)])
    chosen = torch.full((q.shape[0], q.shape[1], top_k), -1, dtype=torch.int32)
    for i in range(q.shape[0]):
        own = (i + k.shape[0] - q.shape[0]) // block_size
        for h in range(q.shape[1]):
            past = sorted(range(own), key=lambda j: (-float(q[i, h] @ centroids[j, h // group]), -j))
            row = sorted(past[:top_k - 1] + [own])
            chosen[i, h, :len(row)] = torch.tensor(row, dtype=torch.int32)
    return chosen
