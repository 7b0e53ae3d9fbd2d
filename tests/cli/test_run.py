# SPDX-License-Identifier: Apache-2.0
"""`moba run` against the float64 reference, and the formats it reads and writes."""
import struct
import unittest

import numpy as np

import support
from support import OK, moba, random_inputs, reference, relative_error, safetensors_io

TOLERANCE = {"o": 2e-6, "lse": 2e-6, "dq": 1e-5, "dk": 1e-5, "dv": 1e-5, "dw": 1e-5}  # docs/spec.md section 7, float32

# Written by the safetensors package for Python from {"v": f16 ones, "q": f32 0.5, "k": bf16 2, "selection": i32 0}.
WRITTEN_BY_PACKAGE = (
    b'\xf8\x00\x00\x00\x00\x00\x00\x00{"q":{"dtype":"F32","shape":[2,1,4],"data_offsets":[0,32]},'
    b'"selection":{"dtype":"I32","shape":[2,1,1],"data_offsets":[32,40]},"k":{"dtype":"BF16","shape":[2,1,4],'
    b'"data_offsets":[40,56]},"v":{"dtype":"F16","shape":[2,1,4],"data_offsets":[56,72]}}   '
    + b"\x00\x00\x00?" * 8 + bytes(8) + b"\x00@" * 8 + b"\x00<" * 8
)


class Run(support.Case):
    def run_files(self, tensors, *options):
        self.expect(moba("run", *self.files(tensors), *options, f"--out={self.out}"), OK)
        return self.outputs()

    def compare(self, outputs, tensors, block_size, selection="selection", **keywords):
        arguments = {"do": tensors.get("do"), "w": tensors.get("kconv_weight"), "cu_q": tensors.get("cu_seqlens_q"),
                     "cu_k": tensors.get("cu_seqlens_k"), **keywords}
        chosen = outputs[selection] if selection else None
        want = reference(tensors["q"], tensors["k"], tensors["v"], chosen, block_size, **arguments)
        self.assertEqual(set(outputs) - {"selection"}, set(want))
        for name, array in want.items():
            self.assertEqual(outputs[name].dtype, np.float32)
            self.assertEqual(outputs[name].shape, array.shape)
            self.assertLess(relative_error(outputs[name], array), TOLERANCE[name], name)

    def test_forward(self):
        tensors = random_inputs(150, 150, 4, 2, 24)
        outputs = self.run_files(tensors, "--block-size=16", "--top-k=3")
        self.compare(outputs, tensors, 16)
        selection = outputs["selection"]
        self.assertEqual((selection.dtype, selection.shape), (np.int32, (150, 4, 3)))
        own = np.arange(150) // 16
        self.assertTrue(np.array_equal(selection.max(axis=2), np.repeat(own[:, None], 4, axis=1)))

    def test_gradients_of_packed_sequences(self):
        tensors = random_inputs(100, 120, 4, 2, 16)
        tensors["do"] = np.random.default_rng(5).standard_normal((100, 4, 16)).astype(np.float32)
        tensors["cu_seqlens_q"] = np.array([0, 40, 40, 41, 90], np.int32)
        tensors["cu_seqlens_k"] = np.array([0, 40, 50, 90, 110], np.int32)
        for options, keywords in [((), {}), (("--deterministic",), {}), (("--non-causal",), {"causal": False}),
                                  (("--softmax-scale=0.5",), {"scale": 0.5}), (("--sink=1", "--local=1"), {})]:
            outputs = self.run_files(tensors, "--block-size=16", "--top-k=2", *options)
            self.compare(outputs, tensors, 16, **keywords)
            self.assertTrue(np.all(outputs["o"][90:] == 0) and np.all(outputs["lse"][:, 90:] == -np.inf))
            self.assertTrue(np.all(outputs["selection"][90:] == -1))

    def test_key_convolution(self):
        tensors = random_inputs(70, 70, 2, 2, 16)
        random = np.random.default_rng(6)
        tensors["kconv_weight"] = random.standard_normal((2, 16, 3)).astype(np.float32)
        tensors["do"] = random.standard_normal((70, 2, 16)).astype(np.float32)
        outputs = self.run_files(tensors, "--block-size=16", "--top-k=5")
        self.compare(outputs, tensors, 16)
        self.assertEqual(outputs["dw"].shape, (2, 16, 3))

    def test_dense(self):
        tensors = random_inputs(90, 90, 2, 1, 16)
        tensors["do"] = np.random.default_rng(7).standard_normal((90, 2, 16)).astype(np.float32)
        outputs = self.run_files(tensors, "--dense")
        self.assertNotIn("selection", outputs)
        self.compare(outputs, tensors, 1, selection=None)
        routed = self.run_files(tensors, "--block-size=16", "--top-k=6")
        for name, array in outputs.items():
            self.assertLess(relative_error(routed[name], array.astype(np.float64)), TOLERANCE[name], name)

    def test_prescribed_selection(self):
        tensors = random_inputs(80, 80, 2, 1, 16)
        tensors["do"] = np.random.default_rng(8).standard_normal((80, 2, 16)).astype(np.float32)
        first = self.run_files(tensors, "--block-size=16", "--top-k=3")
        tensors["selection"] = first["selection"]
        second = self.run_files(tensors, "--block-size=16", "--top-k=3", "--sink=9")
        for name in first:
            self.assertTrue(np.array_equal(first[name], second[name]), name)
        tensors["selection"] = np.full((80, 2, 3), -1, np.int32)
        tensors["selection"][:, :, 0] = 1
        outputs = self.run_files(tensors, "--block-size=16", "--top-k=3")
        self.compare(outputs, tensors, 16)
        self.assertTrue(np.array_equal(outputs["selection"], tensors["selection"]))

    def test_no_rows(self):
        for total_q, total_k in [(0, 20), (20, 0), (0, 0)]:
            tensors = random_inputs(total_q, total_k, 2, 1, 16)
            tensors["do"] = np.ones((total_q, 2, 16), np.float32)
            outputs = self.run_files(tensors, "--block-size=16", "--top-k=2")
            self.compare(outputs, tensors, 16)


class Formats(support.Case):
    OPTIONS = ("--block-size=16", "--top-k=2")

    def run_ok(self, *arguments):
        self.expect(moba("run", *arguments, *self.OPTIONS, f"--out={self.out}"), OK)
        return self.outputs()

    def test_dtype_rounds_the_files(self):
        tensors = random_inputs(60, 60, 2, 1, 16)
        whole = self.run_ok(*self.files(tensors))
        half = self.run_ok(*self.files(tensors), "--dtype=f16")
        rounded = {name: array.astype(np.float16) for name, array in tensors.items()}
        for name, array in self.run_ok(*self.files(rounded)).items():
            self.assertTrue(np.array_equal(half[name], array), name)
        widened = self.run_ok(*self.files({**rounded, "k": rounded["k"].astype(np.float32)}), "--dtype=f32")
        want = reference(rounded["q"], rounded["k"], rounded["v"], widened["selection"], 16)
        self.assertLess(relative_error(widened["o"], want["o"]), 2e-6)
        self.assertFalse(np.array_equal(half["o"], whole["o"]))
        brain = self.run_ok(*self.files(tensors), "--dtype=bf16")
        self.assertTrue(np.all(brain["o"].view(np.uint32) & 0xFFFF == 0))
        self.assertLess(relative_error(brain["o"], whole["o"].astype(np.float64)), 0.1)

    def test_npy_versions(self):
        tensors = random_inputs(40, 40, 1, 1, 16)
        want = self.run_ok(*self.files(tensors))
        for version in [(1, 0), (2, 0), (3, 0)]:
            options = []
            for name, array in tensors.items():
                with open(self.dir / f"{name}.npy", "wb") as file:
                    np.lib.format.write_array(file, array, version)
                options.append(f"--{name}={self.dir / name}.npy")
            self.assertTrue(np.array_equal(self.run_ok(*options)["o"], want["o"]))

    def test_npy_outputs_are_aligned(self):
        self.run_ok(*self.files(random_inputs(40, 40, 1, 1, 16)))
        for path in self.out.glob("*.npy"):
            blob = path.read_bytes()
            self.assertEqual((struct.unpack_from("<H", blob, 8)[0] + 10) % 64, 0)
            with open(path, "rb") as file:
                self.assertEqual(np.lib.format.read_magic(file), (1, 0))

    def safetensors(self, tensors):
        path = self.dir / "x.safetensors"
        safetensors_io.save(path, tensors, {"made": "by a test"})
        return f"--input={path}"

    def test_safetensors_equal_npy(self):
        tensors = random_inputs(60, 70, 2, 1, 16)
        random = np.random.default_rng(9)
        tensors["do"] = random.standard_normal((60, 2, 16)).astype(np.float32)
        tensors["kconv_weight"] = random.standard_normal((1, 16, 2)).astype(np.float32)
        tensors["cu_seqlens_q"] = np.array([0, 20, 60], np.int32)
        tensors["cu_seqlens_k"] = np.array([0, 30, 70], np.int32)
        want = self.run_ok(*self.files(tensors))
        self.run_ok(self.safetensors({**tensors, "unused": np.zeros(3, np.uint8)}))
        got = safetensors_io.load(self.out / "out.safetensors")
        self.assertEqual(sorted(got), ["dk", "dq", "dv", "dw", "lse", "o", "selection"])
        for name, array in want.items():
            self.assertEqual((got[name].dtype, got[name].shape), (array.dtype, array.shape))
            self.assertTrue(np.array_equal(got[name], array), name)

    def test_safetensors_keep_their_types(self):
        tensors = {name: array.astype(np.float16) for name, array in random_inputs(40, 40, 2, 1, 16).items()}
        tensors["do"] = np.ones((40, 2, 16), np.float16)
        self.run_ok(self.safetensors(tensors))
        got = safetensors_io.load(self.out / "out.safetensors")
        types = {name: str(array.dtype) for name, array in got.items()}
        self.assertEqual(types, {"o": "float16", "dq": "float16", "dk": "float16", "dv": "float16", "lse": "float32",
                                 "selection": "int32"})
        want = self.run_ok(*self.files(tensors))
        for name, array in want.items():
            self.assertTrue(np.array_equal(got[name].astype(array.dtype), array), name)

    def test_safetensors_with_an_npy_tensor(self):
        tensors = random_inputs(40, 40, 2, 1, 16)
        selection = np.zeros((40, 2, 2), np.int32)
        selection[:, :, 1] = -1
        path = self.save("selection", selection)
        self.run_ok(self.safetensors(tensors), f"--selection={path}")
        got = safetensors_io.load(self.out / "out.safetensors")
        self.assertTrue(np.array_equal(got["selection"], selection))

    def test_dense_ignores_a_selection_in_the_file(self):
        tensors = random_inputs(40, 40, 2, 1, 16)
        tensors["selection"] = np.full((1, 1, 1), 99, np.int32)
        self.run_ok(self.safetensors(tensors), "--dense")
        self.assertEqual(sorted(safetensors_io.load(self.out / "out.safetensors")), ["lse", "o"])

    def test_file_of_the_safetensors_package(self):
        path = self.dir / "package.safetensors"
        path.write_bytes(WRITTEN_BY_PACKAGE)
        self.expect(moba("run", f"--input={path}", "--dtype=f32", "--block-size=16", "--top-k=1", f"--out={self.out}"), OK)
        got = safetensors_io.load(self.out / "out.safetensors")
        self.assertTrue(np.array_equal(got["o"], np.ones((2, 1, 4), np.float32)))
        score = 0.5 * 2 * 4 / 2
        self.assertTrue(np.allclose(got["lse"], [[score, score + np.log(2)]], rtol=1e-6))
        blob = (self.out / "out.safetensors").read_bytes()
        self.assertIn(b'"dtype":"F32"', blob)


if __name__ == "__main__":
    unittest.main()
