# SPDX-License-Identifier: Apache-2.0
"""PyTorch: ``moba_attention`` with gradients, ``key_conv``, and the ``MobaAttention`` module, for CPU and CUDA tensors.

Layouts (any strides, head_dim contiguous, no copies):
  thd   [tokens, heads, head_dim], with cu_seqlens_q / cu_seqlens_k for packed sequences
  bshd  [batch, tokens, heads, head_dim]
  bhsd  [batch, heads, tokens, head_dim]

Runs are on the current stream. Memory comes from torch's allocator. What docs/spec.md says of the function holds here.
"""
import functools
from typing import Optional, Tuple

import torch
from torch import Tensor
from torch.nn import functional

from ._library import (BF16, F16, F32, WORKSPACE_UNLIMITED, AttendArgs, BackwardArgs, Buffer, Context, ForwardArgs, Inputs,
                       Plan, Problem)
from ._library import Tensor as View

_DTYPES = {torch.float32: F32, torch.float16: F16, torch.bfloat16: BF16}
LAYOUTS = ("thd", "bshd", "bhsd")
ALIGNMENT = 256  # bytes, of workspace and saved buffers


def _sizes(x, layout):
    """(batch, tokens of one sequence, heads, head_dim)"""
    if layout == "thd":
        return 1, x.shape[0], x.shape[1], x.shape[2]
    if layout == "bshd":
        return x.shape[0], x.shape[1], x.shape[2], x.shape[3]
    return x.shape[0], x.shape[2], x.shape[1], x.shape[3]


def _tensor(x, layout):
    at = Buffer(x.data_ptr(), 0)
    if layout == "thd":
        return View(at, x.stride(0), x.stride(1), 0)
    if layout == "bshd":
        return View(at, x.stride(1), x.stride(2), x.stride(0))
    return View(at, x.stride(2), x.stride(1), x.stride(0))


def _buffer(x):
    return Buffer(x.data_ptr(), 0) if x is not None else Buffer(0, 0)


def _aligned_bytes(n_bytes, device):
    """Uninitialised bytes at a multiple of ALIGNMENT, which torch's CPU allocator alone does not promise."""
    room = torch.empty(n_bytes, dtype=torch.uint8, device=device)
    if room.data_ptr() % ALIGNMENT == 0:
        return room
    room = torch.empty(n_bytes + ALIGNMENT, dtype=torch.uint8, device=device)
    return room.narrow(0, -room.data_ptr() % ALIGNMENT, n_bytes)


def _aligned(x):
    """x itself, or an aligned copy: on the CPU, and where a saved-tensor hook brought it back to another place."""
    return x if x.data_ptr() % ALIGNMENT == 0 else _aligned_bytes(x.numel(), x.device).copy_(x)


# ---------------------------------------------------------------------------------------------------- plans --
@functools.lru_cache(maxsize=32)
def _context(kind, index, n_threads):
    return Context(kind, index, n_threads)


@functools.lru_cache(maxsize=256)
def _plan(device, n_threads, fields):
    if device.type == "cpu":
        context = _context("cpu", -1, n_threads)
    else:
        context = _context("hip" if torch.version.hip else "cuda", device.index, 0)
    return Plan(context, Problem(**dict(fields)))


def plan_for(q, k, block_size, top_k, causal=True, layout="bshd", batch=None, n_sink_blocks=0, n_local_blocks=0,
             softmax_scale=0.0, workspace_limit=0, kconv_width=0, dense=False, deterministic=False, max_seqlen_q=0,
             max_seqlen_k=0, inference=False):
    """The cached plan of these shapes. At most 256 are kept; the least recently used one goes first."""
    bq, sq, hq, d = _sizes(q, layout)
    bk, sk, hk, _ = _sizes(k, layout)
    fields = (("dtype", _DTYPES[q.dtype]), ("n_q_heads", hq), ("n_kv_heads", hk), ("head_dim", d), ("block_size", block_size),
              ("top_k", top_k), ("n_sink_blocks", n_sink_blocks), ("n_local_blocks", n_local_blocks),
              ("kconv_width", kconv_width), ("causal", int(causal)), ("dense", int(dense)),
              ("deterministic", int(deterministic)), ("softmax_scale", float(softmax_scale)),
              ("max_batch", batch if batch is not None else bq), ("max_total_q", bq * sq), ("max_total_k", bk * sk),
              ("max_seqlen_q", max_seqlen_q), ("max_seqlen_k", max_seqlen_k),
              ("workspace_limit", workspace_limit & WORKSPACE_UNLIMITED), ("inference", int(inference)))
    return _plan(q.device, torch.get_num_threads() if q.device.type == "cpu" else 0, fields)


def _plan_of(q, k, w, cu_q, options, inference):
    (block_size, top_k, causal, n_sink_blocks, n_local_blocks, dense, deterministic, softmax_scale, layout, max_seqlen_q,
     max_seqlen_k, workspace_limit) = options
    batch = cu_q.numel() - 1 if cu_q is not None else _sizes(q, layout)[0]
    return plan_for(q, k, block_size, top_k, causal, layout, batch, n_sink_blocks, n_local_blocks, softmax_scale,
                    workspace_limit, w.shape[-1] if w is not None else 0, dense, deterministic, max_seqlen_q, max_seqlen_k,
                    inference)


def _inputs(q, k, v, w, cu_q, cu_k, layout):
    b, sq, _, _ = _sizes(q, layout)
    bk, sk, _, _ = _sizes(k, layout)
    return Inputs(_tensor(q, layout), _tensor(k, layout), _tensor(v, layout), _buffer(w), _buffer(cu_q), _buffer(cu_k),
                  cu_q.numel() - 1 if cu_q is not None else b, b * sq, bk * sk)


def _stream(device):
    return torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else None


def _guard(device):
    return torch.cuda.device(device if device.type == "cuda" else -1)


# ------------------------------------------------------------------------------------------------ operators --
@torch.library.custom_op("moba::attention", mutates_args=(), device_types=("cpu", "cuda"))
def _attention(q: Tensor, k: Tensor, v: Tensor, kconv_weight: Optional[Tensor], cu_seqlens_q: Optional[Tensor],
               cu_seqlens_k: Optional[Tensor], selection: Optional[Tensor], block_size: int, top_k: int, causal: bool,
               n_sink_blocks: int, n_local_blocks: int, dense: bool, deterministic: bool, softmax_scale: float, layout: str,
               max_seqlen_q: int, max_seqlen_k: int, workspace_limit: int, train: bool,
               want_selection: bool) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """(o, lse, the selection where it is wanted and was not given, what the backward needs where train is set)"""
    options = (block_size, top_k, causal, n_sink_blocks, n_local_blocks, dense, deterministic, softmax_scale, layout,
               max_seqlen_q, max_seqlen_k, workspace_limit)
    b, sq, hq, _ = _sizes(q, layout)
    with _guard(q.device):
        w = kconv_weight.to(q.dtype).contiguous() if kconv_weight is not None else None
        plan = _plan_of(q, k, w, cu_seqlens_q, options, not train)
        o = torch.empty_like(q)
        lse = torch.empty(hq, b * sq, dtype=torch.float32, device=q.device)
        chosen = torch.empty((b * sq, hq, top_k) if want_selection else (0,), dtype=torch.int32, device=q.device)
        saved = _aligned_bytes(plan.saved_bytes if train else 0, q.device)
        workspace = _aligned_bytes(plan.workspace_bytes, q.device)
        common = dict(inputs=_inputs(q, k, v, w, cu_seqlens_q, cu_seqlens_k, layout), o=_tensor(o, layout), lse=_buffer(lse),
                      saved=_buffer(saved) if saved.numel() else _buffer(None), saved_bytes=saved.numel(),
                      workspace=_buffer(workspace), workspace_bytes=workspace.numel())
        if selection is not None:
            plan.attend(AttendArgs(selection=_buffer(selection), **common), _stream(q.device))
        else:
            plan.forward(ForwardArgs(selection=_buffer(chosen if want_selection else None), **common), _stream(q.device))
    # An operator's output is not to be a view into a larger buffer: compilers count on storage offset 0.
    return o, lse, chosen, saved.clone() if saved.storage_offset() else saved


@_attention.register_fake
def _(q, k, v, kconv_weight, cu_seqlens_q, cu_seqlens_k, selection, block_size, top_k, causal, n_sink_blocks, n_local_blocks,
      dense, deterministic, softmax_scale, layout, max_seqlen_q, max_seqlen_k, workspace_limit, train, want_selection):
    b, sq, hq, _ = _sizes(q, layout)
    saved_bytes = 0
    if train and not dense:
        sizes = (*q.shape, *k.shape, *(cu_seqlens_q.shape if cu_seqlens_q is not None else ()), max_seqlen_q, max_seqlen_k)
        if all(type(n) is int for n in sizes):
            saved_bytes = _plan_of(q, k, kconv_weight, cu_seqlens_q,
                                   (block_size, top_k, causal, n_sink_blocks, n_local_blocks, dense, deterministic,
                                    softmax_scale, layout, max_seqlen_q, max_seqlen_k, workspace_limit), False).saved_bytes
        else:
            saved_bytes = torch.library.get_ctx().new_dynamic_size()
    return (torch.empty_like(q), q.new_empty((hq, b * sq), dtype=torch.float32),
            q.new_empty((b * sq, hq, top_k) if want_selection else (0,), dtype=torch.int32),
            q.new_empty((saved_bytes,), dtype=torch.uint8))


@torch.library.custom_op("moba::attention_backward", mutates_args=(), device_types=("cpu", "cuda"))
def _attention_backward(dout: Tensor, q: Tensor, k: Tensor, v: Tensor, kconv_weight: Optional[Tensor],
                        cu_seqlens_q: Optional[Tensor], cu_seqlens_k: Optional[Tensor], o: Tensor, lse: Tensor,
                        saved: Tensor, block_size: int, top_k: int, causal: bool, n_sink_blocks: int, n_local_blocks: int,
                        dense: bool, deterministic: bool, softmax_scale: float, layout: str, max_seqlen_q: int,
                        max_seqlen_k: int, workspace_limit: int) -> Tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dq, dk, dv, dkconv_weight)"""
    options = (block_size, top_k, causal, n_sink_blocks, n_local_blocks, dense, deterministic, softmax_scale, layout,
               max_seqlen_q, max_seqlen_k, workspace_limit)
    with _guard(q.device):
        w = kconv_weight.to(q.dtype).contiguous() if kconv_weight is not None else None
        plan = _plan_of(q, k, w, cu_seqlens_q, options, False)
        dout = dout.to(q.dtype)
        if dout.stride(-1) != 1:
            dout = dout.contiguous()
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        dw = torch.empty(w.shape if w is not None else (0,), dtype=torch.float32, device=q.device)
        saved = _aligned(saved)
        workspace = _aligned_bytes(plan.workspace_bytes, q.device)
        plan.backward(
            BackwardArgs(inputs=_inputs(q, k, v, w, cu_seqlens_q, cu_seqlens_k, layout), o=_tensor(o, layout),
                         lse=_buffer(lse), dout=_tensor(dout, layout),
                         saved=_buffer(saved) if saved.numel() else _buffer(None), saved_bytes=saved.numel(),
                         dq=_tensor(dq, layout), dk=_tensor(dk, layout), dv=_tensor(dv, layout),
                         dkconv_weight=_buffer(dw if w is not None else None), workspace=_buffer(workspace),
                         workspace_bytes=workspace.numel()), _stream(q.device))
    return dq, dk, dv, dw.to(kconv_weight.dtype) if kconv_weight is not None else dw


@_attention_backward.register_fake
def _(dout, q, k, v, kconv_weight, cu_seqlens_q, cu_seqlens_k, o, lse, saved, *options):
    dw = torch.empty_like(kconv_weight, memory_format=torch.contiguous_format) if kconv_weight is not None else \
        q.new_empty((0,), dtype=torch.float32)
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), dw


def _save(ctx, inputs, output):
    q, k, v, w, cu_q, cu_k, _ = inputs[:7]
    ctx.options = inputs[7:19]
    ctx.train = inputs[19]
    o, lse, chosen, saved = output
    ctx.mark_non_differentiable(lse, chosen, saved)
    ctx.save_for_backward(q, k, v, w, cu_q, cu_k, o, lse, saved)


def _gradients(ctx, dout, *_):
    if not ctx.train:
        raise RuntimeError("moba::attention was called with train=False: it kept nothing for a backward")
    q, k, v, w, cu_q, cu_k, o, lse, saved = ctx.saved_tensors
    dq, dk, dv, dw = _attention_backward(dout, q, k, v, w, cu_q, cu_k, o, lse, saved, *ctx.options)
    return (dq, dk, dv, dw if w is not None else None) + (None,) * 17


_attention.register_autograd(_gradients, setup_context=_save)


# ----------------------------------------------------------------------------------------------- user calls --
def _check(q, k, v, layout, cu_q, cu_k, w, selection, top_k, dense):
    if layout not in LAYOUTS:
        raise ValueError("layout is %r; it must be one of %s" % (layout, ", ".join(LAYOUTS)))
    dims = 3 if layout == "thd" else 4
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != dims:
            raise ValueError("%s has %d dimensions; layout %s has %d" % (name, x.dim(), layout, dims))
        if x.device.type not in ("cpu", "cuda") or x.device != q.device:
            raise ValueError("%s is on %s and q on %s; both must be on one CPU or CUDA device" % (name, x.device, q.device))
        if x.dtype not in _DTYPES or x.dtype != q.dtype:
            raise ValueError("q, k, v are %s, %s, %s; they must be alike: float32, float16 or bfloat16" %
                             (q.dtype, k.dtype, v.dtype))
        if x.shape[-1] > 1 and x.stride(-1) != 1:
            raise ValueError("head_dim of %s must be contiguous; its stride is %d" % (name, x.stride(-1)))
    (bq, _, _, dq), (bk, _, _, dk) = _sizes(q, layout), _sizes(k, layout)
    if k.shape != v.shape:
        raise ValueError("k is %s and v is %s; they must have one shape" % (tuple(k.shape), tuple(v.shape)))
    if bq != bk or dq != dk:
        raise ValueError("q has batch %d and head_dim %d, k has %d and %d; they must agree" % (bq, dq, bk, dk))
    if (cu_q is None) != (cu_k is None):
        raise ValueError("give both cu_seqlens_q and cu_seqlens_k, or neither")
    if cu_q is not None:
        for name, cu in (("cu_seqlens_q", cu_q), ("cu_seqlens_k", cu_k)):
            if cu.dtype != torch.int32 or cu.dim() != 1 or not cu.is_contiguous() or cu.device != q.device:
                raise ValueError("%s must be a contiguous int32 vector on q's device" % name)
        if cu_q.shape != cu_k.shape or cu_q.shape[0] < 2:
            raise ValueError("cu_seqlens_q has %d entries and cu_seqlens_k %d; both must have batch + 1" %
                             (cu_q.shape[0], cu_k.shape[0]))
        if bq != 1:
            raise ValueError("batch is %d; cu_seqlens need the thd layout, or a batch of 1" % bq)
    if w is not None:
        heads = _sizes(k, layout)[2]
        if w.dim() != 3 or w.shape[0] != heads or w.shape[1] != dk or not w.is_floating_point() or w.device != q.device:
            raise ValueError("kconv_weight is %s; it must be [%d][%d][taps], floating point, on q's device" %
                             (tuple(w.shape), heads, dk))
    if selection is not None:
        rows = bq * _sizes(q, layout)[1]
        if dense:
            raise ValueError("selection is given with dense; dense attention has none")
        if selection.shape != (rows, _sizes(q, layout)[2], top_k) or selection.dtype != torch.int32 or \
                not selection.is_contiguous() or selection.device != q.device:
            raise ValueError("selection is %s %s; it must be contiguous int32 [%d][%d][%d] on q's device" %
                             (selection.dtype, tuple(selection.shape), rows, _sizes(q, layout)[2], top_k))


def moba_attention(q, k, v, *, block_size=128, top_k=8, causal=True, cu_seqlens_q=None, cu_seqlens_k=None, max_seqlen_q=None,
                   max_seqlen_k=None, n_sink_blocks=0, n_local_blocks=0, kconv_weight=None, selection=None, dense=False,
                   softmax_scale=None, layout=None, deterministic=None, workspace_limit=0, return_routing=False):
    """Block-routed attention with gradients; returns o, or (o, lse, selection) with ``return_routing``.

    Each query attends to ``top_k`` blocks of ``block_size`` keys, its own block included. ``layout`` defaults to thd for
    three dimensions and bshd for four. ``kconv_weight`` [kv heads, head_dim, taps] is the key convolution, in any floating
    dtype; tap l looks l keys back. ``selection`` (of the form that is returned) prescribes the blocks. ``dense`` attends to
    every key. ``lse`` is float32 [heads, tokens], ``selection`` int32 [tokens, heads, top_k], ascending block ids padded
    with -1, the tokens of all sequences one after another; neither carries a gradient. ``deterministic`` (default:
    torch.are_deterministic_algorithms_enabled()) asks for gradients that are bit-identical from run to run.
    ``workspace_limit`` is in bytes: 0 for the default, -1 for none. ``max_seqlen_q/k`` bound the packed sequences and may be
    left out. Under autocast q, k and v are cast as scaled_dot_product_attention casts them.
    """
    if layout is None:
        layout = "thd" if q.dim() == 3 else "bshd"
    kind = q.device.type
    if kind in ("cpu", "cuda") and torch.is_autocast_enabled(kind):
        to = torch.get_autocast_dtype(kind)
        q, k, v = q.to(to), k.to(to), v.to(to)
    _check(q, k, v, layout, cu_seqlens_q, cu_seqlens_k, kconv_weight, selection, top_k, dense)
    train = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad or
                                         (kconv_weight is not None and kconv_weight.requires_grad))
    if deterministic is None:
        deterministic = torch.are_deterministic_algorithms_enabled()
    want = return_routing and not dense and selection is None
    o, lse, chosen, _ = _attention(q, k, v, kconv_weight, cu_seqlens_q, cu_seqlens_k, selection, block_size, top_k, causal,
                                   n_sink_blocks, n_local_blocks, dense, deterministic, softmax_scale or 0.0, layout,
                                   max_seqlen_q or 0, max_seqlen_k or 0, workspace_limit, train, want)
    if not return_routing:
        return o
    return o, lse, selection if selection is not None else chosen if want else None


def key_conv(k, weight, *, layout=None, cu_seqlens=None):
    """The key convolution alone: ``k + SiLU(causal depthwise convolution of k)`` (docs/spec.md section 2).

    ``weight`` is [kv heads, head_dim, taps]; tap l looks l keys back and never across the start of a sequence.
    moba_attention(kconv_weight=weight) gives the same without storing the result.
    """
    if layout is None:
        layout = "thd" if k.dim() == 3 else "bshd"
    if layout not in LAYOUTS or k.dim() != (3 if layout == "thd" else 4):
        raise ValueError("k has %d dimensions with layout %r; thd has 3, bshd and bhsd have 4" % (k.dim(), layout))
    _, tokens, heads, d = _sizes(k, layout)
    if weight.dim() != 3 or weight.shape[0] != heads or weight.shape[1] != d or not 2 <= weight.shape[2] <= 8:
        raise ValueError("weight is %s; it must be [%d][%d][2..8]" % (tuple(weight.shape), heads, d))
    x = k.float() if layout != "bhsd" else k.float().transpose(1, 2)  # [..., token, head, head_dim]
    w = weight.to(k.dtype).float()
    into = None  # of each token, how many keys of its sequence precede it
    if cu_seqlens is not None:
        at = torch.arange(tokens, device=k.device)
        into = (at - cu_seqlens[torch.searchsorted(cu_seqlens, at, right=True, out_int32=True) - 1])[:, None, None]
    total = x * w[..., 0]
    for tap in range(1, weight.shape[2]):
        back = functional.pad(x, (0, 0, 0, 0, tap, 0))[..., :tokens, :, :]
        if into is not None:
            back = back.masked_fill(into < tap, 0.0)
        total = total + back * w[..., tap]
    out = (x + functional.silu(total)).to(k.dtype)
    return out.transpose(1, 2) if layout == "bhsd" else out


class MobaAttention(torch.nn.Module):
    """Multi-head attention with projections, over [batch, tokens, dim] or, with cu_seqlens, packed [tokens, dim].

    ``kconv_width`` 2..8 adds a learned key convolution, the identity at the start. ``rotary(q, k, positions)`` is applied to
    the projected queries and keys, [..., token, head, head_dim], before the convolution, and returns the pair.
    ``dense`` may be changed at any time, on one layer or through set_dense() on all; parameters are the same in both modes.
    """

    def __init__(self, dim, n_heads, *, n_kv_heads=None, head_dim=None, block_size=128, top_k=8, kconv_width=0, causal=True,
                 n_sink_blocks=0, n_local_blocks=0, dense=False, rotary=None, bias=False, softmax_scale=None, device=None,
                 dtype=None):
        super().__init__()
        self.n_heads, self.n_kv_heads = n_heads, n_kv_heads or n_heads
        self.head_dim = head_dim or dim // n_heads
        self.block_size, self.top_k, self.causal = block_size, top_k, causal
        self.n_sink_blocks, self.n_local_blocks = n_sink_blocks, n_local_blocks
        self.dense, self.rotary, self.softmax_scale = dense, rotary, softmax_scale
        where = {"device": device, "dtype": dtype}
        self.qkv = torch.nn.Linear(dim, (self.n_heads + 2 * self.n_kv_heads) * self.head_dim, bias=bias, **where)
        self.out = torch.nn.Linear(self.n_heads * self.head_dim, dim, bias=bias, **where)
        self.kconv_weight = None
        if kconv_width:
            self.kconv_weight = torch.nn.Parameter(torch.zeros(self.n_kv_heads, self.head_dim, kconv_width, **where))

    def extra_repr(self):
        return "block_size=%d, top_k=%d, dense=%s" % (self.block_size, self.top_k, self.dense)

    def project(self, x, positions=None):
        """(q, k, v) as the attention gets them, before the key convolution."""
        qkv = self.qkv(x).reshape(*x.shape[:-1], self.n_heads + 2 * self.n_kv_heads, self.head_dim)
        q, k, v = qkv.split((self.n_heads, self.n_kv_heads, self.n_kv_heads), dim=-2)
        if self.rotary is not None:
            q, k = self.rotary(q, k, positions)
        return q, k, v

    def forward(self, x, positions=None, cu_seqlens=None, max_seqlen=None):
        q, k, v = self.project(x, positions)
        if self.dense and cu_seqlens is None and x.dim() == 3:
            if self.kconv_weight is not None:
                k = key_conv(k, self.kconv_weight)
            o = functional.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2),
                                                        is_causal=self.causal, scale=self.softmax_scale,
                                                        enable_gqa=self.n_kv_heads != self.n_heads).transpose(1, 2)
        else:
            o = moba_attention(q, k, v, block_size=self.block_size, top_k=self.top_k, causal=self.causal,
                               cu_seqlens_q=cu_seqlens, cu_seqlens_k=cu_seqlens, max_seqlen_q=max_seqlen,
                               max_seqlen_k=max_seqlen, n_sink_blocks=self.n_sink_blocks,
                               n_local_blocks=self.n_local_blocks, kconv_weight=self.kconv_weight, dense=self.dense,
                               softmax_scale=self.softmax_scale)
        return self.out(o.flatten(-2))


def set_dense(module, dense):
    """Switches every MobaAttention inside ``module``: dense for the last tenth of a training run, say."""
    for layer in module.modules():
        if isinstance(layer, MobaAttention):
            layer.dense = dense
