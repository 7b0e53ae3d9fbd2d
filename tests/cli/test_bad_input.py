# SPDX-License-Identifier: Apache-2.0
"""What `moba run` refuses: each case ends with exit code 2 and a sentence that names the value and the limit."""
import json
import os
import struct
import unittest

import numpy as np

import support
from support import BACKEND, OK, USAGE, moba, random_inputs, safetensors_io

ROUTED = ("--block-size=16", "--top-k=2")


class Options(support.Case):
    def refused(self, *words, options, out=True):
        arguments = [*self.files(random_inputs(40, 40, 2, 1, 16)), *options]
        if out:
            arguments.append(f"--out={self.out}")
        self.expect(moba("run", *arguments), USAGE, *words)
        self.assertFalse(self.out.exists() and any(self.out.iterdir()))

    def test_missing(self):
        self.expect(moba("run"), USAGE, "--q is missing")
        self.expect(moba("run", "--q=x", "--k=x"), USAGE, "--v is missing")
        self.refused("--out is missing", options=ROUTED, out=False)
        self.refused("--block-size is missing", options=["--top-k=2"])
        self.refused("--top-k is missing", options=["--block-size=16"])

    def test_numbers(self):
        for option in ("block-size", "top-k", "sink", "local"):
            for value in ("", "x", "1.5", "-1", "2147483648", "99999999999999999999", " 3", "0x10"):
                self.refused(f"--{option} is '{value}'", "2147483647", options=[*ROUTED, f"--{option}={value}"])
        for value in ("", "x", "nan", "inf", "0", "1e-60", "1e39", "1x"):
            self.refused(f"--softmax-scale is '{value}'", "finite", options=[*ROUTED, f"--softmax-scale={value}"])
        self.refused("--dtype is 'f64'", "f32, f16 or bf16", options=[*ROUTED, "--dtype=f64"])

    def test_limits(self):
        self.refused("block_size is 15", "16", options=["--block-size=15", "--top-k=2"])
        self.refused("top_k is 0", "1..128", options=["--block-size=16", "--top-k=0"])
        self.refused("2", "top_k is 2", options=[*ROUTED, "--sink=2"])
        self.refused("n_local_blocks is 1 without causal", options=[*ROUTED, "--local=1", "--non-causal"])

    def test_contradictions(self):
        self.refused("exclude each other", options=["--dense", "--selection=x.npy"])
        self.refused("unexpected argument 'extra'", options=[*ROUTED, "extra"])

    def test_backend(self):
        files = self.files(random_inputs(40, 40, 2, 1, 16))
        for name in ("", "tpu", "cpu,tpu"):
            result = moba("run", *files, *ROUTED, f"--backend={name}", f"--out={self.out}", env={"MOBA_BACKEND": None})
            self.expect(result, BACKEND, f'"{name.split(",")[-1]}"', "unknown")
            self.assertFalse(self.out.exists())


class Shapes(support.Case):
    def refused(self, *words, options=ROUTED, **replaced):
        tensors = {**random_inputs(40, 50, 4, 2, 16), **replaced}
        self.expect(moba("run", *self.files(tensors), *options, f"--out={self.out}"), USAGE, *words)
        self.assertFalse(self.out.exists())

    def test_tensors(self):
        ones = lambda *shape: np.ones(shape, np.float32)  # noqa: E731
        self.refused("q.npy has shape [40, 64]", "[total_q, n_q_heads, head_dim]", q=ones(40, 64))
        self.refused("q.npy has shape []", q=np.float32(1))
        self.refused("q.npy has shape [40, 4, 257]", "1 to 256", q=ones(40, 4, 257), k=ones(50, 2, 257))
        self.refused("q.npy has shape [40, 4, 0]", "1 to 256", q=ones(40, 4, 0), k=ones(50, 2, 0))
        self.refused("q.npy has shape [40, 0, 16]", "at least one head", q=ones(40, 0, 16))
        self.refused("k.npy has shape [50, 3, 16]", "4 query heads", k=ones(50, 3, 16))
        self.refused("k.npy has shape [50, 8, 16]", "4 query heads", k=ones(50, 8, 16))
        self.refused("k.npy has shape [50, 2, 17]", "[any, any, 16]", k=ones(50, 2, 17))
        self.refused("v.npy has shape [49, 2, 16]", "[50, 2, 16]", v=ones(49, 2, 16))
        self.refused("do.npy has shape [40, 4, 15]", "[40, 4, 16]", do=ones(40, 4, 15))
        self.refused("kconv_weight.npy has shape [2, 16, 9]", "2 to 8", kconv_weight=ones(2, 16, 9))
        self.refused("kconv_weight.npy has shape [2, 16, 1]", "2 to 8", kconv_weight=ones(2, 16, 1))
        self.refused("kconv_weight.npy has shape [4, 16, 3]", "[2, 16, any]", kconv_weight=ones(4, 16, 3))

    def test_types(self):
        q = random_inputs(40, 50, 4, 2, 16)["q"]
        self.refused("q.npy has element type '<f8'", "float32", q=q.astype(np.float64))
        self.refused("q.npy is big-endian", "'>f4'", q=q.astype(">f4"))
        self.refused("q.npy has element type '|b1'", q=q > 0)
        self.refused("q.npy has element type that is not a plain number".replace("has", "has an", 1),
                     q=np.zeros(3, [("a", "<f4")]))
        self.refused("q.npy is int32; q must be a float type", q=q.astype(np.int32))
        self.refused("q.npy is in Fortran order", "ascontiguousarray", q=np.asfortranarray(q))
        self.refused("k.npy is float16, but", "q.npy is float32", "--dtype",
                     k=random_inputs(40, 50, 4, 2, 16)["k"].astype(np.float16))

    def test_cu_seqlens(self):
        good_q, good_k = np.array([0, 10, 40], np.int32), np.array([0, 20, 50], np.int32)

        def both(*words, q=good_q, k=good_k):
            self.refused(*words, cu_seqlens_q=np.array(q), cu_seqlens_k=np.array(k))

        int32 = lambda *values: np.array(values, np.int32)  # noqa: E731
        self.refused("cu_seqlens_q is given without cu_seqlens_k", cu_seqlens_q=good_q)
        self.refused("cu_seqlens_k is given without cu_seqlens_q", cu_seqlens_k=good_k)
        both("cu_seqlens_q.npy begins with 1", q=int32(1, 10, 40))
        both("cu_seqlens_q.npy is not ascending: entry 1 is 30, entry 2 is 20", q=int32(0, 30, 20))
        both("cu_seqlens_k.npy ends with 51, but there are only 50 rows", k=int32(0, 20, 51))
        both("cu_seqlens_q.npy begins with -1", q=int32(-1, 0, 40))
        both("entry 1 is -2147483648", k=int32(0, -2147483648, 50))
        both("cu_seqlens_k.npy has shape [2]", "as many entries", k=int32(0, 50))
        both("cu_seqlens_q.npy has shape [1]", "at least one sequence", q=int32(0))
        both("cu_seqlens_q.npy has shape [1, 3]", q=good_q[None])
        both("cu_seqlens_q.npy has element type '<i8'", "int32", q=good_q.astype(np.int64))
        both("cu_seqlens_q.npy is float32; cu_seqlens_q must be int32", q=good_q.astype(np.float32))

    def test_selection(self):
        def refused(*words, row=None, shape=(40, 4, 2), options=ROUTED, **others):
            selection = np.full(shape, -1, np.int32)
            if row is not None:
                selection[7, 3] = row
            self.refused(*words, selection=selection, options=options, **others)

        refused("selection.npy has shape [40, 4, 3]", "[40, 4, 2]", "--top-k", shape=(40, 4, 3))
        refused("at [7, 3, 1] holds block 4", "4 blocks of 16 keys", row=[0, 4])
        refused("at [7, 3, 0] holds block -2", row=[-2, -1])
        refused("at [7, 3, 1] holds block 1 twice", row=[1, 1])
        refused("at [7, 3, 1] holds block 0 after a larger one", row=[1, 0])
        refused("at [7, 3, 1] holds block 3 after -1", row=[-1, 3])
        refused("--block-size is 0", options=("--block-size=0", "--top-k=2"))
        packed = {"cu_seqlens_q": np.array([0, 8, 40], np.int32), "cu_seqlens_k": np.array([0, 17, 50], np.int32)}
        refused("at [7, 3, 1] holds block 2", "2 blocks of 16 keys", row=[0, 2], **packed)

    def test_legal_selections(self):
        selection = np.full((40, 4, 2), -1, np.int32)
        selection[7, 3] = [2, 3]  # later blocks than the row's own: the causal mask leaves no key
        selection[39] = 99  # past the last sequence
        tensors = {**random_inputs(40, 50, 4, 2, 16), "selection": selection, "cu_seqlens_q": np.array([0, 39], np.int32),
                   "cu_seqlens_k": np.array([0, 50], np.int32)}
        self.expect(moba("run", *self.files(tensors), *ROUTED, f"--out={self.out}"), OK)
        self.assertTrue(np.all(self.outputs()["o"] == 0))


class Npy(support.Case):
    def refused(self, blob, *words):
        options = self.files(random_inputs(3, 3, 1, 1, 4))
        (self.dir / "q.npy").write_bytes(blob)
        self.expect(moba("run", *options, *ROUTED, f"--out={self.out}"), USAGE, "q.npy", *words)

    def header(self, text, data=b"", version=1, length=None):
        size = struct.pack("<H" if version == 1 else "<I", len(text) if length is None else length)
        return b"\x93NUMPY" + bytes([version, 0]) + size + text.encode() + data

    def test_paths(self):
        options = self.files(random_inputs(3, 3, 1, 1, 4))[1:]
        os.mkfifo(self.dir / "pipe")
        for path, words in [(self.dir / "none.npy", "cannot be opened: No such file"), (self.dir, "is a directory"),
                            ("/dev/zero", "a device or pipe"), (self.dir / "pipe", "a device or pipe"),
                            ("", "cannot be opened")]:
            self.expect(moba("run", f"--q={path}", *options, *ROUTED, f"--out={self.out}"), USAGE, path, words)

    def test_damaged(self):
        shape = "{'descr': '<f4', 'fortran_order': False, 'shape': %s}"
        good = self.header(shape % "(3, 1, 4)", bytes(48))
        for size in range(0, len(good)):
            self.refused(good[:size])
        self.refused(good + b"x", "holds 49 bytes of data", "needs 48")
        self.refused(b"", "is not an npy file")
        self.refused(b"PK\x03\x04" + bytes(100), "is not an npy file")
        self.refused(b"\x93NUMPY\x04\x00" + bytes(100), "version 4.0")
        self.refused(self.header("x" * 20, version=2, length=2**32 - 1), "claims a header of 4294967295 bytes", "65536")
        self.refused(self.header(shape % "(3, 1, 5)", bytes(48)), "holds 48 bytes of data", "needs 60")
        self.refused(self.header(shape % "(4611686018427387904, 4, 4)"), "more than 2^62 bytes")
        self.refused(self.header(shape % "(9223372036854775808,)"), "larger than 2^62")
        self.refused(self.header(shape % "(-3, 1, 4)"), "not a count")
        self.refused(self.header(shape % "3"), "not a tuple")
        self.refused(self.header(shape % "(3"), "does not end")
        self.refused(self.header(shape % ("(" + "1, " * 9 + ")")), "more than 8 dimensions")
        self.refused(self.header(shape % "(3,)" + "}"), "text follows")
        self.refused(self.header("{}"), "are needed")
        self.refused(self.header("[]"), "not a dictionary")
        self.refused(self.header("{'shape': (1,), 'shape': (2,)}"), "'shape' stands twice")
        self.refused(self.header("{'order': 1}"), "unknown key 'order'")
        self.refused(self.header("{'fortran_order': 0}"), "neither True nor False")


class Safetensors(support.Case):
    def refused(self, header, *words, data=b"", length=None):
        text = header if isinstance(header, bytes) else json.dumps(header).encode()
        self.refused_blob(struct.pack("<Q", len(text) if length is None else length) + text + data, *words)

    def refused_blob(self, blob, *words):
        path = self.dir / "x.safetensors"
        path.write_bytes(blob)
        self.expect(moba("run", f"--input={path}", *ROUTED, f"--out={self.out}"), USAGE, "x.safetensors", *words)
        self.assertFalse(self.out.exists())

    @staticmethod
    def tensor(begin, end, shape=(1, 1, 1), dtype="F32"):
        return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}

    def test_header_length(self):
        self.refused_blob(b"", "only 0 bytes")
        self.refused_blob(bytes(7), "only 7 bytes")
        for length in (1, 2**31, 2**32 + 2, 2**63 - 1, 2**63, 2**64 - 1):
            self.refused(b"", f"claims a header of {length} bytes", length=length)
        self.refused(b"", "not usable JSON", length=0)
        with open(self.dir / "x.safetensors", "wb") as file:
            file.write(struct.pack("<Q", 200_000_000))
            file.truncate(300_000_000)
        result = moba("run", f"--input={self.dir / 'x.safetensors'}", *ROUTED, f"--out={self.out}")
        self.expect(result, USAGE, "200000000", "at most 100000000")

    def test_truncated_anywhere(self):
        path = self.dir / "good.safetensors"
        safetensors_io.save(path, random_inputs(2, 2, 1, 1, 2), {})
        blob = path.read_bytes()
        for size in range(len(blob)):
            self.refused_blob(blob[:size])

    def test_offsets(self):
        t = self.tensor
        self.refused({"q": t(0, 8, (2, 1, 1))}, "bytes 0 to 8", "holds only 4", data=bytes(4))
        self.refused({"q": t(0, 4), "k": t(2, 6)}, "overlaps another tensor", data=bytes(6))
        self.refused({"q": t(0, 4), "k": t(0, 4)}, "overlaps another tensor", data=bytes(4))
        self.refused({"q": t(0, 4), "k": t(8, 12)}, "leaves a gap", data=bytes(12))
        self.refused({"q": t(0, 4)}, "holds 8 bytes of data, but its tensors describe 4", data=bytes(8))
        self.refused({"q": t(0, 4, (2, 1, 1))}, "4 bytes, but its shape and type need 8", data=bytes(4))
        self.refused({"q": t(0, 4, dtype="F64")}, "need 8", data=bytes(4))
        self.refused({"q": t(4, 0)}, "data_offsets", data=bytes(4))
        self.refused({"q": t(-4, 0)}, "data_offsets", data=bytes(4))
        self.refused({"q": t(0, 4.0)}, "data_offsets", data=bytes(4))
        self.refused({"q": t(0, 2**63 - 1)}, "holds only 4", data=bytes(4))
        self.refused({"q": t(0, 2**63)}, "too big integer", data=bytes(4))
        self.refused({"q": t(2**63 - 4, 2**63 - 1)}, "holds only 4", data=bytes(4))
        self.refused({"q": {**t(0, 4), "data_offsets": [0]}}, "data_offsets", data=bytes(4))

    def test_shapes(self):
        t = self.tensor
        self.refused({"q": t(0, 4, (2**32, 2**32))}, "more than 2^56 elements", data=bytes(4))
        self.refused({"q": t(0, 4, (-1,))}, "not made of counts", data=bytes(4))
        self.refused({"q": t(0, 4, (1.0,))}, "not made of counts", data=bytes(4))
        self.refused({"q": {**t(0, 4), "shape": 1}}, "no shape", data=bytes(4))
        self.refused({"q": t(0, 4, [1] * 9)}, "9 dimensions; at most 8", data=bytes(4))

    def test_not_json(self):
        self.refused(b"not json at all", "not usable JSON")
        self.refused(b'{"q":', "not usable JSON")
        self.refused(b"[" * 100_000, "not usable JSON")
        self.refused(b'{"\xff":1}', "not usable JSON")
        self.refused([], "not a JSON object")
        self.refused({"q": []}, "not an object")
        self.refused({"q": {}}, "no dtype")
        self.refused({"__metadata__": 3}, "__metadata__")
        same = json.dumps(self.tensor(0, 4))
        self.refused(f'{{"q":{same},"q":{same}}}'.encode(), "duplicate", data=bytes(4))

    def test_tensors(self):
        t = self.tensor
        self.refused({}, "has no tensor 'q'", "--q")
        self.refused({"q": t(0, 8, dtype="F64")}, "tensor 'q' of type F64", "F32, F16, BF16 and I32", data=bytes(8))
        self.refused({"q": t(0, 3, dtype="NEW")}, "tensor 'q' of type NEW", data=bytes(3))
        mixed = {"q": t(0, 4), "k": t(4, 6, dtype="BF16"), "v": t(6, 10)}
        self.refused(mixed, "k of", "is bfloat16, but", "is float32", "--dtype", data=bytes(10))

    def test_tensor_given_twice(self):
        tensors = random_inputs(4, 4, 1, 1, 4)
        safetensors_io.save(self.dir / "x.safetensors", tensors, {})
        path = self.save("q", tensors["q"])
        result = moba("run", f"--input={self.dir / 'x.safetensors'}", f"--q={path}", *ROUTED, f"--out={self.out}")
        self.expect(result, USAGE, "q is given twice")


if __name__ == "__main__":
    unittest.main()
