# SPDX-License-Identifier: Apache-2.0
"""bench/peers.py and bench/real_routing.py where there is no GPU: what is verified and what not, tables, refusals."""
import importlib.util
import pathlib
import subprocess
import sys

import pytest
import torch

import moba.torch as mt

PATH = pathlib.Path(__file__).resolve().parents[2] / "bench" / "peers.py"
spec = importlib.util.spec_from_file_location("peers", PATH)
peers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(peers)
BLOCK, TOP = 16, 3


@pytest.fixture(params=[(2, 2), (4, 2)])
def run(request):
    """(q, k, v, o, lse, selection, dout, [dq, dk, dv]) of a length that ends within a block"""
    heads, kv_heads = request.param
    q, k, v = (torch.randn(2, 150, h, 32).bfloat16().requires_grad_() for h in (heads, kv_heads, kv_heads))
    o, lse, selection = mt.moba_attention(q, k, v, block_size=BLOCK, top_k=TOP, return_routing=True)
    dout = torch.randn_like(o)
    gradients = torch.autograd.grad(o, (q, k, v), dout)
    return (*(x.detach() for x in (q, k, v, o)), lse, selection, dout, [x.clone() for x in gradients])


def gradient_error(run):
    q, k, v, _, _, selection, dout, gradients = run
    return peers.verify_gradients(q, k, v, dout, selection, *gradients, BLOCK, TOP)[0]


def test_right_results_are_verified(run):
    error, largest_error, lse_error, regret = peers.verify(*run[:6], BLOCK, TOP)
    assert error < peers.TOLERANCE["fwd"]["bf16"] and 0 < largest_error < 0.1 and lse_error < 1e-4 and regret < 1e-3
    assert gradient_error(run) < peers.TOLERANCE["bwd"]["bf16"]


@pytest.mark.parametrize("which", range(3))
@pytest.mark.parametrize("wrong", [lambda x: x.mul_(1.02), lambda x: x[:, 149].zero_(), lambda x: x.fill_(float("nan"))])
def test_wrong_gradients_are_not(run, which, wrong):
    wrong(run[-1][which])
    assert not gradient_error(run) <= peers.TOLERANCE["bwd"]["bf16"]


@pytest.mark.parametrize("wrong", [lambda x: x.fill_(float("nan")), lambda x: x[..., 149].add_(0.1)])
def test_a_wrong_lse_is_not(run, wrong):
    wrong(run[4])
    assert peers.verify(*run[:6], BLOCK, TOP)[2] > 1e-2


def test_large_scores_are_judged_beside_a_plain_implementation():
    q, k, v = (x.bfloat16().requires_grad_() for x in (8 * torch.randn(2, 1, 150, 2, 32)[0], *torch.randn(2, 1, 150, 2, 32) * 8))
    o, _, selection = mt.moba_attention(q, k, v, block_size=BLOCK, top_k=TOP, return_routing=True)
    dout = torch.randn_like(o)
    gradients = [x.clone() for x in torch.autograd.grad(o, (q, k, v), dout)]
    q, k, v, o = (x.detach() for x in (q, k, v, o))
    error = lambda way: peers.verify_gradients(q, k, v, dout, selection, *gradients, BLOCK, TOP, way)[0]  # noqa: E731
    assert error(None) > peers.TOLERANCE["bwd"]["bf16"] >= error(o)
    for x in gradients:
        x.mul_(1.5)
        assert error(o) > peers.TOLERANCE["bwd"]["bf16"]
        x.div_(1.5)


@pytest.mark.parametrize("kv_heads", [1, 2])
def test_dense_peers_are_verified(kv_heads):
    q, k, v = (torch.randn(2, h, 70, 16).requires_grad_() for h in (2, kv_heads, kv_heads))
    o = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=kv_heads == 1)
    dout = torch.randn(2, 2, 70, 16)
    dq, = torch.autograd.grad(o, q, dout)
    q, k, v, o = (x.detach() for x in (q, k, v, o))
    for name, (error, largest_error) in peers.verify_dense(q, k, v, dout, o, dq).items():
        assert error < 1e-5 and 0 < largest_error < 1e-4, name
    assert peers.verify_dense(q, k, v, dout, 1.1 * o, 1.1 * dq)["fwd"][0] > 0.05
    assert peers.verify_dense(q, k, v, dout, o, 1.1 * dq)["bwd"][0] > 0.05
    assert peers.verify_dense(q, k, v, dout, o, None)["bwd"] is None


def test_table(capsys):
    record = lambda ms, ok: {"ms": {"median": ms}, "workspace_bytes": 3 << 20, "useful_tflops": 7.4, "verified": ok}  # noqa: E731
    records = [{"fwd": record(1.0, True), "bwd": record(2.0, True)}, {"fwd": record(1.5, True), "bwd": record(2.5, False)}]
    peers.print_rows(64, ["fwd", "bwd"], records, [{"fwd": record(3.0, True), "bwd": record(10.0, True)}, {}])
    peers.print_rows(64, ["bwd"], [{}, {}], [{}, {}])
    assert capsys.readouterr().out.splitlines() == [
        "| 64 | fwd | 1.000 | 1.500 | 3 | 3.000 | - | 2.00 | 7 |",
        "| 64 | bwd | 2.000 | 2.500 NOT VERIFIED | 3 | 10.000 | - | 4.00 | 7 |",
        "| 64 | sum | 3.000 | 4.000 |  | 13.000 | - | 3.25 |  |",
        "| 64 | bwd | - | - | - | - | - | - | - |"]


@pytest.mark.parametrize("args,sentence", [
    (["--pass", "fwd,both"], "argument --pass: 'both' is none of fwd, bwd"),
    (["--lengths", "8192,0"], "argument --lengths: invalid lengths value: '8192,0'"),
    (["--peers", "MATH"], "argument --peers: 'MATH' is none of CUDNN_ATTENTION, FLASH_ATTENTION"),
    (["--dtype", "f32"], "argument --dtype: invalid choice: 'f32'"),
])
def test_refusals(args, sentence):
    done = subprocess.run([sys.executable, str(PATH), *args], capture_output=True, text=True)
    assert done.returncode == 2 and sentence in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu():
    done = subprocess.run([sys.executable, str(PATH), "--pass", "fwd,bwd"], capture_output=True, text=True)
    assert done.returncode == 2 and "torch finds no CUDA device" in done.stderr


def test_real_routing(monkeypatch):
    """The longest list: of 4 blocks, block 0 is chosen by every row."""
    monkeypatch.syspath_prepend(str(PATH.parent))
    import real_routing

    selection = torch.stack([torch.zeros(64, dtype=torch.int32), torch.arange(64, dtype=torch.int32) // 16], 1)[:, None]
    assert real_routing.largest_list(selection.repeat(2, 1, 1), 2, 4) == (64 + 16) / 32
    monkeypatch.setattr(real_routing, "median_ms", lambda run, repeat: {"median": run() is not None})
    q, k, v = torch.randn(3, 200, 2, 32).unbind(0)
    forward, backward, longest, right = real_routing.measure(q, k, v, 16, 3, "cpu", 2)
    assert forward and backward and right and 1 <= longest < 13
    done = subprocess.run([sys.executable, str(PATH.parent / "real_routing.py")], capture_output=True, text=True)
    assert done.returncode == 2 and "usage: real_routing.py FILE" in done.stderr
