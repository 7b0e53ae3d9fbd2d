# SPDX-License-Identifier: Apache-2.0
"""Shared by the tests of the `moba` program: calling it, and a float64 reference of docs/spec.md sections 2 to 6."""
import os
import pathlib
import subprocess
import sys
import tempfile
import unittest

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tools"))
import safetensors_io  # noqa: E402

PROGRAM = os.environ.get("MOBA_PROGRAM", str(ROOT / "build" / "bin" / "moba"))

OK, CHECK, USAGE, BACKEND, FAILED = range(5)


def moba(*arguments, env=None, **keywords):
    """Runs the program on the backend under test, cpu unless MOBA_TEST_BACKEND or env says otherwise."""
    environment = {**os.environ, "MOBA_BACKEND": os.environ.get("MOBA_TEST_BACKEND", "cpu"), **(env or {})}
    environment = {name: value for name, value in environment.items() if value is not None}
    keywords = {"capture_output": True, "text": True, "timeout": 120, **keywords}
    return subprocess.run([PROGRAM, *map(str, arguments)], env=environment, **keywords)


class Case(unittest.TestCase):
    """A test with a directory of its own."""

    def setUp(self):
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.dir = pathlib.Path(directory.name)
        self.out = self.dir / "out"

    def expect(self, result, code, *words):
        """The exit code, and for a failure one sentence that starts with the program's name and holds the words."""
        self.assertEqual(result.returncode, code, f"{result.args}\n{result.stdout}\n{result.stderr}")
        if code == OK:
            self.assertEqual(result.stderr, "")
        else:
            self.assertEqual(result.stdout, "")
            self.assertTrue(result.stderr.startswith("moba"), result.stderr)
        for word in words:
            self.assertIn(str(word), result.stderr)
        return result

    def save(self, name, array):
        path = self.dir / f"{name}.npy"
        np.save(path, array)
        return path

    def files(self, tensors):
        """Saves each tensor and gives the options that name them."""
        return [f"--{name.replace('_', '-')}={self.save(name, array)}" for name, array in tensors.items()]

    def outputs(self):
        return {path.stem: np.load(path) for path in self.out.glob("*.npy")}


def random_inputs(total_q, total_k, n_q_heads, n_kv_heads, head_dim, dtype=np.float32, seed=0):
    random = np.random.default_rng(seed)
    shapes = {"q": (total_q, n_q_heads, head_dim), "k": (total_k, n_kv_heads, head_dim), "v": (total_k, n_kv_heads, head_dim)}
    return {name: random.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def convolve(k, w, bounds):
    """Key convolution; returns k' and a function from dk' to (dk, dw)."""
    total, _, _ = k.shape
    width = w.shape[2]
    first = np.zeros(total, int)
    for begin, end in zip(bounds, bounds[1:]):
        first[begin:end] = begin
    taps = np.zeros((width, *k.shape))
    for lag in range(width):
        rows = np.arange(total) - lag
        legal = rows >= first
        taps[lag, legal] = k[rows[legal]]
    u = np.einsum("ltgc,gcl->tgc", taps, w)
    sigmoid = 1 / (1 + np.exp(-u))

    def backward(dkprime):
        du = dkprime * sigmoid * (1 + u * (1 - sigmoid))
        dk = dkprime.copy()
        for lag in range(width):
            rows = np.arange(total) - lag
            legal = rows >= first
            np.add.at(dk, rows[legal], du[legal] * w[:, :, lag])
        return dk, np.einsum("ltgc,tgc->gcl", taps, du)

    return k + u * sigmoid, backward


def reference(q, k, v, selection, block_size, causal=True, do=None, cu_q=None, cu_k=None, scale=None, w=None):
    """Attention over `selection` (None: every key) in float64, with gradients where `do` is given."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    cu_q = [0, len(q)] if cu_q is None else list(cu_q)
    cu_k = [0, len(k)] if cu_k is None else list(cu_k)
    scale = scale or 1 / np.sqrt(q.shape[2])
    kprime, conv_backward = convolve(k, w.astype(np.float64), cu_k) if w is not None else (k, None)
    group = q.shape[1] // k.shape[1]
    out = {"o": np.zeros_like(q), "lse": np.full((q.shape[1], len(q)), -np.inf)}
    grad = {"dq": np.zeros_like(q), "dk": np.zeros_like(k), "dv": np.zeros_like(v)}
    for b in range(len(cu_q) - 1):
        n_q, n_k = cu_q[b + 1] - cu_q[b], cu_k[b + 1] - cu_k[b]
        for t in range(cu_q[b], cu_q[b + 1]):
            position = t - cu_q[b] + n_k - n_q
            for h in range(q.shape[1]):
                keys = np.arange(n_k)
                if selection is not None:
                    keys = keys[np.isin(keys // block_size, [j for j in selection[t, h] if j >= 0])]
                if causal:
                    keys = keys[keys <= position]
                if len(keys) == 0:
                    continue
                rows, g = cu_k[b] + keys, h // group
                score = scale * kprime[rows, g] @ q[t, h]
                top = score.max()
                p = np.exp(score - top)
                out["lse"][h, t] = top + np.log(p.sum())
                p /= p.sum()
                out["o"][t, h] = p @ v[rows, g]
                if do is not None:
                    dp = v[rows, g] @ do[t, h].astype(np.float64)
                    ds = scale * p * (dp - p @ dp)
                    grad["dq"][t, h] = ds @ kprime[rows, g]
                    grad["dk"][rows, g] += np.outer(ds, q[t, h])
                    grad["dv"][rows, g] += np.outer(p, do[t, h])
    if do is not None:
        if conv_backward:
            grad["dk"], grad["dw"] = conv_backward(grad["dk"])
        out.update(grad)
    return out


def relative_error(got, want):
    """Relative Frobenius error over the finite elements; the infinite ones must agree."""
    finite = np.isfinite(want)
    assert np.array_equal(np.where(finite, 0, want), np.where(finite, 0, got)), "infinite elements differ"
    difference = np.where(finite, got, 0).astype(np.float64) - np.where(finite, want, 0)
    return np.linalg.norm(difference) / max(np.linalg.norm(np.where(finite, want, 0)), 1e-30)
