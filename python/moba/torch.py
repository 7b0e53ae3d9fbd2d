# SPDX-License-Identifier: Apache-2.0
"""PyTorch operator: ``moba_attention(q, k, v, ...)`` on CUDA tensors, without copies, on the current stream.

Layouts (any strides, head_dim contiguous):
  thd   [tokens, heads, head_dim], with cu_seqlens_q / cu_seqlens_k for packed sequences
  bshd  [batch, tokens, heads, head_dim]
  bhsd  [batch, heads, tokens, head_dim]
"""
import functools
from typing import Optional, Tuple

import torch

from ._library import BF16, F16, F32, WORKSPACE_UNLIMITED, Buffer, Context, ForwardArgs, Inputs, Plan, Problem, Tensor

_DTYPES = {torch.float32: F32, torch.float16: F16, torch.bfloat16: BF16}
LAYOUTS = ("thd", "bshd", "bhsd")


def _sizes(x, layout):
    """(batch, tokens of one sequence, heads, head_dim)"""
    if layout == "thd":
        return 1, x.shape[0], x.shape[1], x.shape[2]
    if layout == "bshd":
        return tuple(x.shape)
    return x.shape[0], x.shape[2], x.shape[1], x.shape[3]


def _tensor(x, layout):
    if x.stride(-1) != 1 and x.shape[-1] > 1:
        raise ValueError("head_dim must be contiguous; its stride is %d" % x.stride(-1))
    at = Buffer(x.data_ptr(), 0)
    if layout == "thd":
        return Tensor(at, x.stride(0), x.stride(1), 0)
    if layout == "bshd":
        return Tensor(at, x.stride(1), x.stride(2), x.stride(0))
    return Tensor(at, x.stride(2), x.stride(1), x.stride(0))


def _buffer(x):
    return Buffer(x.data_ptr(), 0) if x is not None else Buffer(0, 0)


@functools.lru_cache(maxsize=None)
def _context(device):
    return Context("cuda", device)


@functools.lru_cache(maxsize=256)
def _plan(device, *key):
    names = (
        "dtype n_q_heads n_kv_heads head_dim block_size top_k n_sink_blocks n_local_blocks causal softmax_scale "
        "max_batch max_total_q max_total_k workspace_limit"
    ).split()
    return Plan(_context(device), Problem(**dict(zip(names, key))))


def plan_for(q, k, block_size, top_k, causal=True, layout="bshd", batch=None, n_sink_blocks=0, n_local_blocks=0,
             softmax_scale=0.0, workspace_limit=0):
    """The cached plan of these shapes."""
    bq, sq, hq, d = _sizes(q, layout)
    bk, sk, hk, _ = _sizes(k, layout)
    n = batch if batch is not None else bq
    return _plan(q.device.index, _DTYPES[q.dtype], hq, hk, d, block_size, top_k, n_sink_blocks, n_local_blocks, int(causal),
                 float(softmax_scale), n, bq * sq, bk * sk, workspace_limit & WORKSPACE_UNLIMITED)


@torch.library.custom_op("moba::attention", mutates_args=(), device_types="cuda")
def _attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens_q: Optional[torch.Tensor],
               cu_seqlens_k: Optional[torch.Tensor], block_size: int, top_k: int, causal: bool, n_sink_blocks: int,
               n_local_blocks: int, softmax_scale: float, layout: str,
               workspace_limit: int) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    b, sq, hq, d = _sizes(q, layout)
    bk, sk, _, _ = _sizes(k, layout)
    batch = cu_seqlens_q.numel() - 1 if cu_seqlens_q is not None else b
    if cu_seqlens_q is not None and b != 1:
        raise ValueError("cu_seqlens need the thd layout, or a batch of 1")
    with torch.cuda.device(q.device):
        plan = plan_for(q, k, block_size, top_k, causal, layout, batch, n_sink_blocks, n_local_blocks, softmax_scale,
                        workspace_limit)
        o = torch.empty_like(q)
        lse = torch.empty(hq, b * sq, dtype=torch.float32, device=q.device)
        selection = torch.empty(b * sq, hq, top_k, dtype=torch.int32, device=q.device)
        workspace = torch.empty(plan.workspace_bytes, dtype=torch.uint8, device=q.device)
        inputs = Inputs(_tensor(q, layout), _tensor(k, layout), _tensor(v, layout), Buffer(0, 0), _buffer(cu_seqlens_q),
                        _buffer(cu_seqlens_k), batch, b * sq, bk * sk)
        plan.forward(
            ForwardArgs(inputs=inputs, o=_tensor(o, layout), lse=_buffer(lse), selection=_buffer(selection),
                        workspace=_buffer(workspace), workspace_bytes=plan.workspace_bytes),
            torch.cuda.current_stream().cuda_stream)
    return o, lse, selection


@_attention.register_fake
def _(q, k, v, cu_seqlens_q, cu_seqlens_k, block_size, top_k, causal, n_sink_blocks, n_local_blocks, softmax_scale, layout,
      workspace_limit):
    b, sq, hq, _ = _sizes(q, layout)
    return (torch.empty_like(q), q.new_empty((hq, b * sq), dtype=torch.float32),
            q.new_empty((b * sq, hq, top_k), dtype=torch.int32))


def moba_attention(q, k, v, *, block_size, top_k, causal=True, cu_seqlens_q=None, cu_seqlens_k=None, n_sink_blocks=0,
                   n_local_blocks=0, softmax_scale=None, layout=None, workspace_limit=0, return_routing=False):
    """Block-routed attention; returns o, or (o, lse, selection) with ``return_routing``.

    ``layout`` defaults to thd for three dimensions and bshd for four. ``lse`` is float32 [heads, tokens], ``selection``
    int32 [tokens, heads, top_k], ascending block ids padded with -1, the tokens of all sequences one after another.
    ``workspace_limit`` is in bytes: 0 for the default, -1 for none.
    """
    if layout is None:
        layout = "thd" if q.dim() == 3 else "bshd"
    if layout not in LAYOUTS:
        raise ValueError("layout is %r; it must be one of %s" % (layout, ", ".join(LAYOUTS)))
    if q.dtype not in _DTYPES or k.dtype != q.dtype or v.dtype != q.dtype:
        raise ValueError("q, k, v are %s, %s, %s; they must be alike: float32, float16 or bfloat16" %
                         (q.dtype, k.dtype, v.dtype))
    if (cu_seqlens_q is None) != (cu_seqlens_k is None):
        raise ValueError("give both cu_seqlens_q and cu_seqlens_k, or neither")
    for name, cu in (("cu_seqlens_q", cu_seqlens_q), ("cu_seqlens_k", cu_seqlens_k)):
        if cu is not None and (cu.dtype != torch.int32 or not cu.is_contiguous() or cu.device != q.device):
            raise ValueError("%s must be contiguous int32 on q's device" % name)
    out = _attention(q, k, v, cu_seqlens_q, cu_seqlens_k, block_size, top_k, causal, n_sink_blocks, n_local_blocks,
                     softmax_scale or 0.0, layout, workspace_limit)
    return out if return_routing else out[0]
