# SPDX-License-Identifier: Apache-2.0
"""Outputs and gradients of moba_attention against float64 autograd of tests/python/reference.py on the same selection."""
import math

import pytest
import torch

import moba.torch as mt
import reference

TOLERANCE = {torch.float32: (2e-6, 1e-5), torch.float16: (5e-4, 1e-3), torch.bfloat16: (4e-3, 6e-3)}  # docs/spec.md section 7


def error(got, want):
    return ((got.double() - want).norm() / want.norm()).item()


def leaves(*shapes, dtype=torch.float32):
    return [torch.randn(s).to(dtype).requires_grad_() for s in shapes]


def doubles(*tensors):
    return [x.detach().double().requires_grad_() if x is not None else None for x in tensors]


def compare(q, k, v, w, cu_q, cu_k, block, top, causal=True, dense=False, **kwargs):
    """Packed rows: forward and backward of both, with the library's own selection."""
    o, lse, selection = mt.moba_attention(q, k, v, block_size=block, top_k=top, causal=causal, dense=dense, kconv_weight=w,
                                          cu_seqlens_q=torch.tensor(cu_q, dtype=torch.int32),
                                          cu_seqlens_k=torch.tensor(cu_k, dtype=torch.int32), return_routing=True, **kwargs)
    qr, kr, vr, wr = doubles(q, k, v, w)
    want, want_lse = reference.packed(qr, kr, vr, selection, cu_q, cu_k, block, causal, wr, dense, q.dtype)
    dout = torch.randn(o.shape).to(o.dtype)
    o.backward(dout)
    want.backward(dout[:cu_q[-1]].double())
    forward, backward = TOLERANCE[q.dtype]
    assert error(o[:cu_q[-1]], want) < forward
    finite = want_lse.isfinite()
    assert torch.equal(lse[:, :cu_q[-1]].isfinite(), finite)
    assert (lse[:, :cu_q[-1]][finite].double() - want_lse[finite]).abs().max() < 1e-2
    for got, ref in zip((q, k, v, w), (qr, kr, vr, wr)):
        if got is not None:
            assert got.grad.dtype == got.dtype and got.grad.isfinite().all()
            assert error(got.grad, ref.grad) < backward
    return selection


def test_reference_gradients_are_right():
    q, k, v = (torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((7, 2, 3), (9, 1, 3), (9, 1, 3)))
    w = torch.randn(1, 3, 3, dtype=torch.float64, requires_grad=True)
    selection = reference.route(q.detach(), k.detach(), 2, 2)
    assert torch.autograd.gradcheck(lambda *x: reference.attention(*x[:3], selection, 2, kconv_weight=x[3])[0], (q, k, v, w))


@pytest.mark.parametrize("heads", [(1, 1), (4, 2)])
def test_selection_is_the_specified_one(heads):
    q, k = torch.randint(-3, 4, (300, heads[0], 8)).float(), torch.randint(-3, 4, (320, heads[1], 8)).float() * 16
    _, _, selection = mt.moba_attention(q, k, k, block_size=16, top_k=5, return_routing=True)
    assert torch.equal(selection, reference.route(q, k, 16, 5))


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("heads,d", [((2, 2), 64), ((4, 1), 32), ((4, 2), 128)])
def test_gradients(dtype, heads, d):
    q, k, v = leaves((300, heads[0], d), (300, heads[1], d), (300, heads[1], d), dtype=dtype)
    compare(q, k, v, None, [0, 300], [0, 300], 32, 3)


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("width", [2, 3, 5])
def test_key_convolution_gradients(dtype, width):
    q, k, v = leaves((200, 4, 32), (200, 2, 32), (200, 2, 32), dtype=dtype)
    w = (0.5 * torch.randn(2, 32, width)).to(dtype).float().requires_grad_()
    compare(q, k, v, w, [0, 130, 200], [0, 130, 200], 16, 4)


@pytest.mark.parametrize("causal", [True, False])
def test_packed_with_empty_sequences(causal):
    cu_q, cu_k = [0, 0, 90, 90, 150, 190], [0, 40, 140, 140, 140, 240]  # no queries, more keys, nothing, no keys, equal
    q, k, v = leaves((200, 2, 16), (250, 1, 16), (250, 1, 16))
    compare(q, k, v, None, cu_q, cu_k, 16, 3, causal)
    assert not k.grad[:40].any() and not k.grad[240:].any() and not q.grad[90:150].any()


@pytest.mark.parametrize("bounds", [{}, {"max_seqlen_q": 90, "max_seqlen_k": 100}])
def test_storage_past_the_last_sequence(bounds):
    q, k, v = leaves((100, 2, 16), (110, 2, 16), (110, 2, 16))
    cu_q, cu_k = (torch.tensor([0, 60, n], dtype=torch.int32) for n in (90, 100))
    o, lse, _ = mt.moba_attention(q, k, v, block_size=16, top_k=2, cu_seqlens_q=cu_q, cu_seqlens_k=cu_k, return_routing=True,
                                  **bounds)
    o.sum().backward()
    assert not o[90:].any() and torch.equal(lse[:, 90:], torch.full((2, 10), -math.inf))
    assert not q.grad[90:].any() and not k.grad[100:].any() and not v.grad[100:].any()


def test_dense_and_full_selection_agree():
    grads = []
    q, k, v = leaves((1, 200, 2, 32), (1, 200, 2, 32), (1, 200, 2, 32))
    dout = torch.randn(q.shape)
    for kwargs in ({"dense": True}, {"block_size": 32, "top_k": 7}):
        o = mt.moba_attention(q, k, v, **kwargs)
        grads.append(torch.autograd.grad(o, (q, k, v), dout))
    want = torch.nn.functional.scaled_dot_product_attention(*(x.double().transpose(1, 2) for x in (q, k, v)), is_causal=True)
    want = torch.autograd.grad(want.transpose(1, 2), (q, k, v), dout.double())
    for dense, full, ref in zip(*grads, want):
        assert error(dense, ref.double()) < 1e-5 and error(full, ref.double()) < 1e-5


def test_dense_with_key_convolution():
    q, k, v = leaves((90, 2, 16), (90, 2, 16), (90, 2, 16))
    compare(q, k, v, torch.randn(2, 16, 3).requires_grad_(), [0, 90], [0, 90], 16, 2, dense=True)


def test_layouts_and_strides():
    b, n, h, d = 2, 100, 3, 16
    fused = torch.randn(b, n, 3 * h, d)
    cut = [x.detach() for x in fused.split(h, dim=2)]  # slices of a wider tensor
    dout = torch.randn(b, n, h, d)
    options = {"block_size": 16, "top_k": 3}

    def run(tensors, dout, **kwargs):
        tensors = [x.detach().requires_grad_() for x in tensors]
        o = mt.moba_attention(*tensors, **options, **kwargs)
        return [o.detach(), *torch.autograd.grad(o, tensors, dout)]

    want = run([x.contiguous() for x in cut], dout)
    turn = lambda x: x.transpose(1, 2)  # noqa: E731
    forms = {
        "slices": run(cut, dout),
        "bhsd": [turn(x) for x in run([turn(x).contiguous() for x in cut], turn(dout).contiguous(), layout="bhsd")],
        "bhsd strided": [turn(x) for x in run([turn(x) for x in cut], turn(dout), layout="bhsd")],
        "a gradient of odd strides": run(cut, dout.transpose(1, 3).contiguous().transpose(1, 3)),
    }
    cu = torch.tensor([0, n, 2 * n], dtype=torch.int32)
    packed = run([x.reshape(b * n, h, d) for x in cut], dout.reshape(b * n, h, d), cu_seqlens_q=cu, cu_seqlens_k=cu)
    forms["thd"] = [x.view(b, n, h, d) for x in packed]
    for name, got in forms.items():
        for x, y in zip(got, want):
            assert torch.equal(x, y), name


def test_expanded_gradient():
    q, k, v = leaves((1, 64, 2, 16), (1, 64, 2, 16), (1, 64, 2, 16))
    by_sum = torch.autograd.grad(mt.moba_attention(q, k, v, block_size=16, top_k=2).sum(), (q, k, v))
    by_ones = torch.autograd.grad(mt.moba_attention(q, k, v, block_size=16, top_k=2), (q, k, v), torch.ones(1, 64, 2, 16))
    assert all(torch.equal(x, y) for x, y in zip(by_sum, by_ones))


def test_unselected_keys_have_no_gradient():
    q, k, v = leaves((64, 1, 16), (64, 1, 16), (64, 1, 16))
    selection = torch.full((64, 1, 2), -1, dtype=torch.int32)
    selection[:, 0, 0] = torch.arange(64) // 16
    selection[48:, 0, 0], selection[48:, 0, 1] = 1, 3
    o, _, given = mt.moba_attention(q, k, v, block_size=16, top_k=2, selection=selection, return_routing=True)
    o[48:].square().sum().backward()
    assert given is selection
    unread = torch.cat([torch.arange(16), torch.arange(32, 48)])
    assert not k.grad[unread].any() and not v.grad[unread].any() and k.grad[16:32].any() and k.grad[48:].any()


def test_prescribed_selection_repeats_the_routed_result():
    q, k, v = leaves((120, 2, 16), (120, 2, 16), (120, 2, 16))
    o, lse, selection = mt.moba_attention(q, k, v, block_size=16, top_k=3, return_routing=True)
    again, lse_again, _ = mt.moba_attention(q, k, v, block_size=16, top_k=3, selection=selection, return_routing=True)
    assert torch.equal(o, again) and torch.equal(lse, lse_again)
    dout = torch.randn(o.shape)
    for x, y in zip(torch.autograd.grad(o, (q, k, v), dout), torch.autograd.grad(again, (q, k, v), dout)):
        assert torch.equal(x, y)


def test_deterministic_repeats():
    q, k, v = leaves((2, 150, 4, 32), (2, 150, 2, 32), (2, 150, 2, 32), dtype=torch.bfloat16)
    dout = torch.randn(2, 150, 4, 32).bfloat16()
    runs = [torch.autograd.grad(mt.moba_attention(q, k, v, block_size=32, top_k=3, deterministic=True), (q, k, v), dout)
            for _ in range(5)]
    assert all(torch.equal(x, y) for run in runs[1:] for x, y in zip(run, runs[0]))


@pytest.mark.parametrize("layout", mt.LAYOUTS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_key_conv_alone(layout, dtype):
    shape = {"thd": (60, 2, 8), "bshd": (2, 30, 2, 8), "bhsd": (2, 2, 30, 8)}[layout]
    k, = leaves(shape, dtype=dtype)
    w = torch.randn(2, 8, 4).to(dtype).float().requires_grad_()
    cu = torch.tensor([0, 2, 2, 45, 60], dtype=torch.int32) if layout == "thd" else None
    out = mt.key_conv(k, w, layout=layout, cu_seqlens=cu)
    kr, wr = doubles(k, w)
    rows = {"thd": [kr[a:b] for a, b in ((0, 2), (2, 45), (45, 60))], "bshd": list(kr), "bhsd": list(kr.transpose(1, 2))}
    want = [reference.key_conv(x, wr) for x in rows[layout]]
    want = torch.cat(want) if layout == "thd" else torch.stack(want)
    want = want.transpose(1, 2) if layout == "bhsd" else want
    forward, backward = TOLERANCE[dtype]
    assert out.dtype == dtype and error(out, want) < forward
    dout = torch.randn(shape).to(dtype)
    out.backward(dout)
    want.backward(dout.double())
    assert error(k.grad, kr.grad) < backward and error(w.grad, wr.grad) < backward


def test_fused_key_convolution_is_key_conv():
    q, k, v = leaves((1, 100, 4, 16), (1, 100, 2, 16), (1, 100, 2, 16))
    w = torch.randn(2, 16, 3).requires_grad_()
    dout = torch.randn(1, 100, 4, 16)
    fused = mt.moba_attention(q, k, v, kconv_weight=w, block_size=16, top_k=3)
    alone = mt.moba_attention(q, mt.key_conv(k, w), v, block_size=16, top_k=3)
    assert error(fused, alone.double()) < 1e-5
    for x, y in zip(torch.autograd.grad(fused, (q, k, v, w), dout), torch.autograd.grad(alone, (q, k, v, w), dout)):
        assert error(x, y.double()) < 1e-4
