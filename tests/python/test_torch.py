# SPDX-License-Identifier: Apache-2.0
"""How the operator lives in PyTorch: compile, fake tensors, checkpointing, autocast, DDP, the module, errors, plans."""
import os
import pathlib
import re
import tempfile

import pytest
import torch
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import moba
import moba.torch as mt

SMALL = {"block_size": 16, "top_k": 3}


def data(*shape, n=3, dtype=torch.float32):
    return [torch.randn(shape, dtype=dtype).requires_grad_() for _ in range(n)]


def schema_args(q, k, v, w=None, cu=None, train=True, want=True, dense=False):
    layout = "thd" if q.dim() == 3 else "bshd"
    return (q, k, v, w, cu, cu, None, 16, 3, True, 0, 0, dense, False, 0.0, layout, 0, 0, 0, train, want)


@pytest.mark.parametrize("case", ["bshd", "packed", "kconv", "dense", "inference"])
def test_opcheck(case):
    q, k, v = data(1, 70, 2, 16) if case != "packed" else data(70, 2, 16)
    args = schema_args(q, k, v)
    if case == "packed":
        args = schema_args(q, k, v, cu=torch.tensor([0, 30, 70], dtype=torch.int32))
    elif case == "kconv":
        args = schema_args(q, k, v, w=torch.randn(2, 16, 3).requires_grad_())
    elif case == "dense":
        args = schema_args(q, k, v, want=False, dense=True)
    elif case == "inference":
        args = schema_args(*(x.detach() for x in (q, k, v)), train=False)
    checks = ["test_schema", "test_autograd_registration", "test_faketensor"]
    if case in ("dense", "inference"):  # else an output, what the backward needs, has unspecified gaps and compares unequal
        checks.append("test_aot_dispatch_dynamic")
    torch.library.opcheck(torch.ops.moba.attention.default, args, test_utils=checks)


@pytest.mark.parametrize("layout", mt.LAYOUTS)
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compile_full_graph(layout, backend):
    shape = {"thd": (70, 2, 16), "bshd": (2, 70, 2, 16), "bhsd": (2, 2, 70, 16)}[layout]
    cu = torch.tensor([0, 30, 70], dtype=torch.int32) if layout == "thd" else None
    w = torch.randn(2, 16, 3).requires_grad_()

    def run(q, k, v, w):
        o = mt.moba_attention(q * 2, mt.key_conv(k, w, layout=layout, cu_seqlens=cu), v, layout=layout, cu_seqlens_q=cu,
                              cu_seqlens_k=cu, kconv_weight=w, **SMALL)
        return torch.sin(o)

    inputs = (*data(*shape), w)
    dout = torch.randn(shape)
    want = run(*inputs)
    got = torch.compile(run, fullgraph=True, backend=backend)(*inputs)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    for x, y in zip(torch.autograd.grad(got, inputs, dout), torch.autograd.grad(want, inputs, dout)):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)


def test_compile_with_dynamic_lengths():
    compiled = torch.compile(lambda *x: mt.moba_attention(*x, **SMALL), fullgraph=True, dynamic=True, backend="aot_eager")
    for n in (64, 100, 33):
        inputs = data(1, n, 2, 16)
        dout = torch.randn(1, n, 2, 16)
        want, got = mt.moba_attention(*inputs, **SMALL), compiled(*inputs)
        assert torch.equal(want, got)
        for x, y in zip(torch.autograd.grad(got, inputs, dout), torch.autograd.grad(want, inputs, dout)):
            assert torch.equal(x, y)


def test_compiled_module_switches_between_sparse_and_dense():
    layer = mt.MobaAttention(32, 2, kconv_width=3, **SMALL)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(1, 90, 32)
    sparse = compiled(x)
    mt.set_dense(layer, True)
    dense = compiled(x)
    assert (sparse - dense).abs().max() > 1e-4
    torch.testing.assert_close(dense, layer(x))
    mt.set_dense(layer, False)
    torch.testing.assert_close(compiled(x), sparse)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant):
    torch.manual_seed(1)
    layer = mt.MobaAttention(32, 2, kconv_width=3, **SMALL)
    x = torch.randn(2, 70, 32, requires_grad=True)
    want = torch.autograd.grad(layer(x).square().sum(), (x, *layer.parameters()))
    checkpoint(layer, x, use_reentrant=reentrant).square().sum().backward()
    for got, ref in zip((x, *layer.parameters()), want):
        assert torch.equal(got.grad, ref)


def test_saved_tensors_that_were_moved():
    inputs = data(1, 70, 2, 16)

    def elsewhere(x):  # one byte, so that no aligned copy comes back
        place = torch.empty(x.numel() * x.element_size() + 257, dtype=torch.uint8)
        place = place[1 - place.data_ptr() % 2:][:x.numel() * x.element_size()] if x.dtype == torch.uint8 else None
        return x.clone() if place is None else place.copy_(x)

    want = torch.autograd.grad(mt.moba_attention(*inputs, **SMALL).square().sum(), inputs)
    with torch.autograd.graph.saved_tensors_hooks(elsewhere, lambda x: x):
        o = mt.moba_attention(*inputs, **SMALL)
    for x, y in zip(torch.autograd.grad(o.square().sum(), inputs), want):
        assert torch.equal(x, y)


def test_autocast():
    layer = mt.MobaAttention(64, 4, n_kv_heads=2, kconv_width=3, **SMALL)
    x = torch.randn(1, 100, 64, requires_grad=True)
    want = torch.autograd.grad(layer(x).square().mean(), (x, *layer.parameters()))
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        q, k, v = data(1, 50, 2, 16)
        o = mt.moba_attention(q, k, v, kconv_weight=torch.zeros(2, 16, 3), **SMALL)
    assert y.dtype == torch.bfloat16 and o.dtype == torch.bfloat16
    got = torch.autograd.grad(y.float().square().mean(), (x, *layer.parameters()))
    for g, ref in zip(got, want):  # routing may turn on a rounding: the direction must hold, not each element
        assert g.dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(g.flatten(), ref.flatten(), 0) > 0.95
    assert o.sum().backward() is None and q.grad.dtype == torch.float32


def test_compile_with_autocast_and_checkpointing():
    layer = mt.MobaAttention(32, 2, kconv_width=3, **SMALL)
    x = torch.randn(2, 70, 32, requires_grad=True)

    def run(x):
        with torch.autocast("cpu", torch.bfloat16):
            return checkpoint(layer, x, use_reentrant=False)

    want = run(x)
    got = torch.compile(run, fullgraph=True, backend="aot_eager")(x)
    assert got.dtype == torch.bfloat16 and torch.equal(got, want)
    leaves = (x, *layer.parameters())
    for g, ref in zip(torch.autograd.grad(got.sum(), leaves), torch.autograd.grad(want.sum(), leaves)):
        torch.testing.assert_close(g, ref)


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = mt.MobaAttention(32, 2, kconv_width=3, **SMALL)
        self.head = torch.nn.Linear(32, 1)

    def forward(self, x):
        return self.head(checkpoint(self.attention, x, use_reentrant=False))


def _ddp(rank, folder):
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method="file://%s/rendezvous" % folder, rank=rank, world_size=2)
    torch.manual_seed(3)
    net = Net()
    model = DistributedDataParallel(net)
    x = torch.load("%s/x.pt" % folder)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        model(x[rank::2]).square().mean().backward()
        optimizer.step()
    if rank == 0:
        torch.save(net.state_dict(), "%s/trained.pt" % folder)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def test_two_processes_train_as_one():
    with tempfile.TemporaryDirectory() as folder:
        x = torch.randn(4, 60, 32)
        torch.save(x, folder + "/x.pt")
        torch.multiprocessing.spawn(_ddp, (folder,), nprocs=2)
        got = torch.load(folder + "/trained.pt")
    torch.manual_seed(3)
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
    for name, value in net.state_dict().items():
        torch.testing.assert_close(got[name], value, rtol=1e-4, atol=1e-6)


def test_inference_keeps_nothing():
    q, k, v = (x.detach() for x in data(1, 70, 2, 16))
    assert torch.ops.moba.attention(*schema_args(q, k, v, train=False))[3].numel() == 0
    with torch.no_grad():
        assert mt.moba_attention(q.requires_grad_(), k, v, **SMALL).grad_fn is None


def test_inference_plans_are_smaller():
    q, k, _ = (x.detach() for x in data(1, 2048, 8, 64))
    training, inference = (mt.plan_for(q, k, 16, 3, inference=x) for x in (False, True))
    assert training.saved_bytes > 0 and inference.saved_bytes == 0
    assert inference.workspace_bytes <= training.workspace_bytes
    assert training.kernel("attend_bwd") and inference.kernel("attend_bwd") is None


def test_routing_has_no_gradient():
    o, lse, selection = mt.moba_attention(*data(1, 70, 2, 16), **SMALL, return_routing=True)
    assert o.requires_grad and not lse.requires_grad and not selection.requires_grad


def test_backward_through_a_call_that_kept_nothing():
    o = torch.ops.moba.attention(*schema_args(*data(1, 70, 2, 16), train=False))[0]
    with pytest.raises(RuntimeError, match="train=False: it kept nothing"):
        o.sum().backward()


def test_deterministic_follows_torch(monkeypatch):
    asked, plan_for = [], mt.plan_for
    monkeypatch.setattr(mt, "plan_for", lambda *args: asked.append(args[13]) or plan_for(*args))
    inputs = data(1, 70, 2, 16)
    for by_torch, by_call, want in ((False, None, False), (True, None, True), (True, False, False), (False, True, True)):
        torch.use_deterministic_algorithms(by_torch)
        try:
            mt.moba_attention(*inputs, **SMALL, deterministic=by_call)
        finally:
            torch.use_deterministic_algorithms(False)
        assert asked.pop() is want


def test_gradients_of_gradients_are_refused():
    q, k, v = data(1, 70, 2, 16)
    first, = torch.autograd.grad(mt.moba_attention(q, k, v, **SMALL).sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="moba.attention_backward.default but no autograd formula"):
        first.sum().backward()


def test_plans_are_cached_and_bounded():
    q, k, v = (x.detach() for x in data(1, 70, 2, 16))
    mt.moba_attention(q, k, v, **SMALL)
    before = mt._plan.cache_info()
    mt.moba_attention(q, k, v, **SMALL)
    after = mt._plan.cache_info()
    assert after.hits == before.hits + 1 and after.misses == before.misses
    for n in range(1, 300):
        x = torch.zeros(1, n, 1, 4)
        mt.moba_attention(x, x, x, **SMALL)
    assert mt._plan.cache_info().currsize == 256


@pytest.mark.parametrize("packed", [False, True])
def test_module_modes(packed):
    """Sparse with every block, dense through the library and dense through torch are one function with one gradient."""
    torch.manual_seed(2)

    def rotary(q, k, positions):
        return q * torch.cos(positions)[..., None, None], k * torch.cos(positions)[..., None, None]

    layer = mt.MobaAttention(32, 4, n_kv_heads=2, kconv_width=3, block_size=16, top_k=8, rotary=rotary, bias=True)
    torch.nn.init.normal_(layer.kconv_weight)
    x, cu = torch.randn(1, 100, 32), torch.tensor([0, 40, 100], dtype=torch.int32)
    positions = torch.arange(100.0)[None]
    results = []
    for dense in (False, True):
        mt.set_dense(layer, dense)
        y = layer(x[0], positions[0], cu, 60) if packed else layer(x, positions)
        results.append((y, *torch.autograd.grad(y.square().sum(), list(layer.parameters()))))
    for a, b in zip(*results):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dense", [False, True])
def test_rotary_hook(dense):
    """It gets projected queries and keys and the positions, before the key convolution, and what it returns is attended to."""
    seen = []

    def rotary(q, k, positions):
        seen.append((q, k, positions))
        return q * positions[..., None, None], k * positions[..., None, None]

    layer = mt.MobaAttention(32, 4, n_kv_heads=2, kconv_width=3, dense=dense, rotary=rotary, **SMALL)
    torch.nn.init.normal_(layer.kconv_weight)
    x, positions = torch.randn(2, 70, 32), torch.rand(2, 70)
    got = layer(x, positions)
    q, k, v = layer.qkv(x).reshape(2, 70, 8, 8).split((4, 2, 2), dim=2)
    assert torch.equal(seen[0][0], q) and torch.equal(seen[0][1], k) and seen[0][2] is positions
    turn = positions[..., None, None]
    o = mt.moba_attention(q * turn, k * turn, v, kconv_weight=layer.kconv_weight, dense=dense, **SMALL)
    torch.testing.assert_close(got, layer.out(o.flatten(-2)), rtol=1e-4, atol=1e-5)
    layer.rotary = None
    assert (layer(x, positions) - got).abs().max() > 1e-3


def test_one_layer_may_be_dense():
    layers = torch.nn.Sequential(*(mt.MobaAttention(32, 2, **SMALL) for _ in range(2)))
    x = torch.randn(1, 120, 32)
    sparse = layers(x)
    layers[1].dense = True
    first = layers[0](x)
    torch.testing.assert_close(layers(x), layers[1](first))
    assert (layers(x) - sparse).abs().max() > 1e-4
    mt.set_dense(layers, False)
    assert torch.equal(layers(x), sparse)


def test_training_as_in_the_readme():
    readme = pathlib.Path(__file__).resolve().parents[2] / "README.md"
    lines = re.search(r"^```python\n(.*?)^```$", readme.read_text(), re.S | re.M).group(1).splitlines()
    assert len(lines) == 6
    names = {}
    exec("\n".join(lines[:-1]), names)
    before = [p.detach().clone() for p in names["layer"].parameters()]
    exec(lines[-1], names)
    after = list(names["layer"].parameters())
    assert len(after) == 3 and all(p.grad.any() and (p != b).any() for p, b in zip(after, before))


def test_key_convolution_starts_as_the_identity():
    torch.manual_seed(4)
    plain, conv = mt.MobaAttention(32, 2, **SMALL), mt.MobaAttention(32, 2, kconv_width=3, **SMALL)
    conv.load_state_dict(plain.state_dict(), strict=False)
    x = torch.randn(1, 80, 32)
    y = conv(x)
    torch.testing.assert_close(y, plain(x))
    y.square().sum().backward()
    assert conv.kconv_weight.grad.abs().max() > 0


def call(change):
    args = dict(zip("qkv", (torch.randn(1, 40, 2, 16) for _ in range(3))))
    return mt.moba_attention(**{**SMALL, **args, **change})


@pytest.mark.parametrize("change,sentence", [
    ({"layout": "sbhd"}, "layout is 'sbhd'; it must be one of thd, bshd, bhsd"),
    ({"layout": "thd"}, "q has 4 dimensions; layout thd has 3"),
    ({"k": torch.zeros(1, 40, 2, 16).half()}, "they must be alike: float32, float16 or bfloat16"),
    ({"k": torch.zeros(1, 40, 2, 16, device="meta")}, "k is on meta and q on cpu"),
    ({"v": torch.zeros(1, 41, 2, 16)}, r"k is \(1, 40, 2, 16\) and v is \(1, 41, 2, 16\); they must have one shape"),
    ({"q": torch.zeros(2, 40, 2, 16)}, "q has batch 2 and head_dim 16, k has 1 and 16"),
    ({"q": torch.zeros(1, 40, 16, 2).mT}, "head_dim of q must be contiguous; its stride is 2"),
    ({"cu_seqlens_q": torch.tensor([0, 40], dtype=torch.int32)}, "give both cu_seqlens_q and cu_seqlens_k, or neither"),
    ({"cu_seqlens_q": torch.tensor([0, 40]), "cu_seqlens_k": torch.tensor([0, 40])}, "must be a contiguous int32 vector"),
    ({"cu_seqlens_q": torch.tensor([0, 40], dtype=torch.int32), "cu_seqlens_k": torch.tensor([0], dtype=torch.int32)},
     "cu_seqlens_q has 2 entries and cu_seqlens_k 1"),
    ({"kconv_weight": torch.zeros(2, 15, 3)}, r"kconv_weight is \(2, 15, 3\); it must be \[2\]\[16\]\[taps\]"),
    ({"selection": torch.zeros(40, 2, 2, dtype=torch.int32)}, r"it must be contiguous int32 \[40\]\[2\]\[3\]"),
    ({"selection": torch.zeros(40, 2, 3, dtype=torch.int32), "dense": True}, "dense attention has none"),
])
def test_refusals_of_this_layer(change, sentence):
    with pytest.raises(ValueError, match=sentence):
        call(change)


@pytest.mark.parametrize("change,sentence", [
    ({"block_size": 8}, "block_size is 8; it must be at least 16"),
    ({"top_k": 0}, "top_k is 0; it must be 1..128"),
    ({"n_sink_blocks": 3}, "top_k is 3"),
    ({"k": torch.zeros(1, 40, 3, 16), "v": torch.zeros(1, 40, 3, 16)}, "n_q_heads is 2; it must be a multiple of n_kv_heads"),
    ({"kconv_weight": torch.zeros(2, 16, 9)}, "kconv_width is 9; it must be 0 \\(none\\) or 2..8"),
    ({"workspace_limit": 1}, "workspace_limit is 1 bytes; the forward of this problem needs at least"),
])
def test_refusals_of_the_library(change, sentence):
    with pytest.raises(moba.Error, match=sentence) as caught:
        call(change)
    assert caught.value.status in (1, 2)


def test_key_conv_refusals():
    k = torch.zeros(40, 2, 16)
    with pytest.raises(ValueError, match="k has 3 dimensions with layout 'bshd'"):
        mt.key_conv(k, torch.zeros(2, 16, 3), layout="bshd")
    with pytest.raises(ValueError, match=r"weight is \(2, 16, 1\); it must be \[2\]\[16\]\[2..8\]"):
        mt.key_conv(k, torch.zeros(2, 16, 1))


def test_context_refusal():
    with pytest.raises(moba.Error, match="no-such-backend"):
        moba.Context("no-such-backend")


def test_a_library_that_is_not_there():
    code = "import moba\ntry: moba.version()\nexcept OSError as e: print('no-such-folder' in str(e))"
    import subprocess
    import sys
    env = {**os.environ, "MOBA_LIBRARY": "no-such-folder/libmoba.so", "PYTHONPATH": os.path.dirname(os.path.dirname(moba.__file__))}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr
