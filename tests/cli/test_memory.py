# SPDX-License-Identifier: Apache-2.0
"""Every request for memory refused in turn: exit code 4 and a sentence, or the result as if nothing had happened."""
import json
import os
import unittest

import numpy as np

import support
from support import FAILED, OK, moba, random_inputs, safetensors_io

PRELOAD = os.environ["MOBA_TEST_PRELOAD"]


def tree(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


class Memory(support.Case):
    def refuse_in_turn(self, *arguments, output=str, least_failures=1):
        """`output`: what of the standard output must be as ever where the program goes on."""
        count = self.dir / "count"
        good = moba(*arguments, env={"LD_PRELOAD": PRELOAD, "MOBA_TEST_COUNT": str(count)})
        self.expect(good, OK)
        files = tree(self.out) if self.out.exists() else {}
        n_requests, n_failed = int(count.read_text()), 0
        for n in range(1, n_requests + 1):
            for name in files:
                (self.out / name).write_text("kept")
            result = moba(*arguments, env={"LD_PRELOAD": PRELOAD, "MOBA_TEST_REFUSE": str(n)})
            what = f"request {n} of {n_requests}: exit code {result.returncode}: {result.stderr}"
            self.assertIn(result.returncode, (OK, FAILED), what)
            if result.returncode == OK:
                self.assertEqual(output(result.stdout), output(good.stdout), what)
                self.assertEqual(tree(self.out) if files else {}, files, what)
                continue
            n_failed += 1
            self.assertRegex(result.stderr, r"^moba \w+: .*(memory|could not be started)", what)
            if files:
                self.assertEqual(tree(self.out), {name: b"kept" for name in files}, what)
        self.assertGreaterEqual(n_failed, least_failures)

    def test_run(self):
        tensors = random_inputs(40, 40, 2, 1, 16)
        tensors.update(do=tensors["q"], cu_seqlens_q=np.array([0, 9, 40], np.int32), cu_seqlens_k=np.array([0, 9, 40], np.int32))
        options = ("--block-size=16", "--top-k=2", f"--out={self.out}")
        self.refuse_in_turn("run", *self.files(tensors), *options, least_failures=20)
        for path in self.out.iterdir():
            path.unlink()
        path = self.dir / "x.safetensors"
        safetensors_io.save(path, tensors, {})
        self.refuse_in_turn("run", f"--input={path}", *options, least_failures=100)

    def test_bench(self):
        problem = "b2h1d16B16t2c,f16,kconv=2,lens=20+3"
        self.refuse_in_turn("bench", problem, "--repeat=1", "--pass=bwd", output=lambda text: sorted(json.loads(text)), least_failures=50)

    def test_others(self):
        self.refuse_in_turn("explain", "b1q64h1d16B16t2c,f32", output=lambda text: len(text.splitlines()), least_failures=10)
        path = self.dir / "lines.jsonl"
        path.write_text(moba("bench", "b1q64h1d16B16t2c,f32", "--repeat=1", "--pass=fwd").stdout)
        self.refuse_in_turn("compare", path, least_failures=10)

    def test_info(self):
        backends = json.loads(moba("info", "--json").stdout)["backends"]
        if any(b["built"] for b in backends if b["name"] != "cpu"):
            self.skipTest("drivers abort, or cannot be opened, without memory: ci/test runs this in a build for the CPU alone")
        model = backends[-1]["devices"][0]["name"]
        self.refuse_in_turn("info", "--json", output=lambda text: text.replace(f'"{model}"', '"CPU"'), least_failures=10)


if __name__ == "__main__":
    unittest.main()
