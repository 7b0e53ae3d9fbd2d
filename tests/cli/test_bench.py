# SPDX-License-Identifier: Apache-2.0
"""moba bench and moba advise: lines, checks, inputs, bad usage."""
import json
import unittest

import numpy as np

import support
from support import BACKEND, CHECK, OK, USAGE, moba, safetensors_io

PROBLEM = "b2q200k200h4g2d32B32t3c,f32"
FIELDS = ("device driver version backend variant problem pass ms useful_tflops gbytes workspace_bytes saved_bytes verified "
          "max_err rel_err seed repeat threads").split()


def lines(result):
    return [json.loads(line) for line in result.stdout.splitlines()]


class Bench(support.Case):
    def test_lines(self):
        result = self.expect(moba("bench", PROBLEM, "--repeat=3", "--pass=route,fwd,bwd"), OK)
        measured = lines(result)
        self.assertEqual(sorted(line["pass"] for line in measured), ["bwd", "fwd", "route"])
        for line in measured:
            self.assertEqual(list(line), FIELDS)
            self.assertEqual((line["backend"], line["problem"], line["repeat"]), ("cpu", PROBLEM, 3))
            self.assertIs(line["verified"], True)
            self.assertEqual(list(line["ms"]), ["min", "median", "p90"])
            self.assertTrue(0 < line["ms"]["min"] <= line["ms"]["median"] <= line["ms"]["p90"])
            self.assertGreaterEqual(line["max_err"], 0)
        by_pass = {line["pass"]: line for line in measured}
        self.assertEqual(list(by_pass["fwd"]["variant"]), ["centroid", "gate", "index", "attend"])
        self.assertIn("attend_bwd", by_pass["bwd"]["variant"])
        self.assertEqual(list(by_pass["route"]["variant"]), ["centroid", "gate"])

    def test_useful_operations(self):
        """With every block selected the pairs are those of the causal triangle."""
        (line,) = lines(moba("bench", "b1q100k100h2g1d32B32t4c,f32", "--pass=fwd", "--repeat=1"))
        pairs = 2 * 100 * 101 // 2
        self.assertAlmostEqual(line["useful_tflops"] * line["ms"]["median"] * 1e9 / (4 * 32 * pairs), 1, places=6)
        (line,) = lines(moba("bench", "b1q100k100h2g1d32c,f32,dense", "--pass=fwd", "--repeat=1"))
        self.assertAlmostEqual(line["useful_tflops"] * line["ms"]["median"] * 1e9 / (4 * 32 * pairs), 1, places=6)
        self.assertAlmostEqual(line["gbytes"] * 1e9, 4 * (100 * 32 * (2 + 1 + 1 + 2) + 2 * 100))

    def test_default_passes(self):
        self.assertEqual([line["pass"] for line in lines(moba("bench", PROBLEM, "--repeat=1"))], ["fwd", "bwd"])
        dense = "b1q70k90h2g1d32n,f32,dense"
        checked = lines(self.expect(moba("bench", "--check", dense), OK))
        self.assertEqual([line["pass"] for line in checked], ["fwd", "bwd"])
        self.assertEqual(len(lines(moba("bench", "--check", PROBLEM))), 3)

    def test_problem_files(self):
        path = self.dir / "problems.txt"
        path.write_text(f"# comment\n\n  {PROBLEM}  # behind\nb1q64k64h1g1d16B16t2n,bf16\n")
        for argument in (f"@{path}", f"--problems={path}"):
            got = lines(self.expect(moba("bench", argument, "--pass=fwd", "--repeat=1"), OK))
            self.assertEqual([line["problem"] for line in got], [PROBLEM, "b1q64k64h1g1d16B16t2n,bf16"])
        self.expect(moba("bench", "@/nowhere"), USAGE, "/nowhere")

    def test_seed_and_threads(self):
        one, two = (lines(moba("bench", PROBLEM, "--pass=fwd", "--repeat=1", f"--seed={seed}"))[0] for seed in (1, 2))
        again = lines(moba("bench", PROBLEM, "--pass=fwd", "--repeat=1", "--seed=1", "--threads=1"))[0]
        self.assertNotEqual(one["max_err"], two["max_err"])
        self.assertEqual(one["max_err"], again["max_err"])
        self.assertEqual(again["threads"], 1)

    def test_input(self):
        path = self.dir / "x.safetensors"
        tensors = support.random_inputs(150, 170, 4, 2, 32)
        safetensors_io.save(path, tensors, {})
        (line,) = lines(self.expect(moba("bench", "B32t3n", f"--input={path}", "--pass=fwd", "--repeat=1"), OK))
        self.assertEqual(line["problem"], "b1q150k170h4g2d32B32t3n,f32")
        (line,) = lines(moba("bench", "B32t3n,bf16", f"--input={path}", "--pass=fwd", "--repeat=1"))
        self.assertEqual(line["problem"], "b1q150k170h4g2d32B32t3n,bf16")
        self.expect(moba("bench", "d64B32t3n", f"--input={path}"), USAGE, "d is 64", "32")
        self.expect(moba("bench", "B32t3n,lens=1", f"--input={path}"), USAGE, "lens")
        self.expect(moba("bench", "B32t3n", f"--input={self.dir}/none"), USAGE, "none")
        tensors.update(cu_seqlens_q=np.array([0, 50, 50, 150], np.int32), cu_seqlens_k=np.array([0, 60, 100, 170], np.int32),
                       do=tensors["q"] * 2)
        safetensors_io.save(path, tensors, {})
        got = lines(self.expect(moba("bench", "B32t3c", f"--input={path}", "--repeat=1"), OK))
        self.assertEqual([line["problem"] for line in got],
                         ["b3q100k70h4g2d32B32t3c,f32,lens=50+0+100/60+40+70"] * 2)
        for cu, words in [([0, 60, 50, 170], "descends"), ([1, 60, 100, 170], "must be 0"), ([0, 60, 100, 160], "170"),
                          ([0, 170], "cu_seqlens_k")]:
            safetensors_io.save(path, {**tensors, "cu_seqlens_k": np.array(cu, np.int32)}, {})
            self.expect(moba("bench", "B32t3c", f"--input={path}"), USAGE, words)
        del tensors["v"]
        safetensors_io.save(path, tensors, {})
        self.expect(moba("bench", "B32t3c", f"--input={path}"), USAGE, "'v'")

    def test_a_wrong_output_ends_in_exit_code_1(self):
        """Sums of such values overflow float32, though the outputs would fit."""
        path = self.dir / "x.safetensors"
        tensors = support.random_inputs(150, 150, 1, 1, 32)
        tensors["v"][:] = 3e38
        safetensors_io.save(path, tensors, {})
        for options in [("--repeat=1",), ("--check",)]:
            result = moba("bench", "B32t3n", f"--input={path}", "--pass=fwd", *options)
            self.assertEqual(result.returncode, CHECK, result.stderr)
            (line,) = lines(result)
            self.assertIs(line["verified"], False)
            self.assertIsNone(line["max_err"])
            said, again = result.stderr.splitlines()
            self.assertIn("o of row 0, head 0 is not finite", said)
            self.assertEqual(again, f"moba bench --check '{line['problem']}' --seed 1 --backend cpu --pass fwd --input '{path}'")

    def test_bad_usage(self):
        self.expect(moba("bench"), USAGE, "PROBLEM is missing")
        self.expect(moba("bench", "q8x"), USAGE, "problem 'q8x'", "column 3")
        self.expect(moba("bench", PROBLEM, "--pass=up"), USAGE, "--pass is 'up'")
        self.expect(moba("bench", PROBLEM, "--repeat=0"), USAGE, "--repeat is '0'")
        self.expect(moba("bench", PROBLEM, "--repeat=1001"), USAGE, "1000")
        self.expect(moba("bench", PROBLEM, "--seed=-1"), USAGE, "--seed is '-1'")
        self.expect(moba("bench", "--check=some", PROBLEM), USAGE, "'some'")
        self.expect(moba("bench", "--check", "all", PROBLEM), USAGE, "--check all")
        self.expect(moba("bench", PROBLEM.replace("d32", "d257")), USAGE, "257", "256")
        self.expect(moba("bench", PROBLEM.replace("h4g2", "h4g3")), USAGE, "3")
        self.expect(moba("bench", PROBLEM + ",kconv=1"), USAGE, "kconv")
        self.expect(moba("bench", PROBLEM, "--backend=tpu"), BACKEND, "tpu", "unknown")
        self.expect(moba("bench", PROBLEM, "--backend=cpu,tpu"), BACKEND, "tpu", "unknown")


class Advise(support.Case):
    def test_table(self):
        text = self.expect(moba("advise", "--length=32768", "--heads=8", "--head-dim=64", "--dtype=f32", "--delta-mu=4"), OK).stdout
        for word in ("block_size", "top_k", "SNR", "recall", "forward", "backward", "break-even", "dense", "head_dim 64"):
            self.assertIn(word, text)

    def test_json(self):
        choices = lines(moba("advise", "--length=32768", "--heads=8", "--kv-heads=2", "--head-dim=64", "--cluster=4,0.5",
                             "--json", "--rows=200", "--max-keys=512"))
        self.assertGreater(len(choices), 10)
        for choice in choices:
            self.assertLessEqual(choice["block_size"] * choice["top_k"], 512)
            snr = (0.8 + 3 * 0.5) * (64 / (2 * choice["block_size"])) ** 0.5
            self.assertAlmostEqual(choice["snr"], snr, places=6)
        reliable = [choice["reliable"] for choice in choices]
        self.assertEqual(reliable, sorted(reliable, reverse=True))

    def test_bad_usage(self):
        self.expect(moba("advise"), USAGE, "--length is missing")
        self.expect(moba("advise", "--length=0"), USAGE, "--length is '0'")
        self.expect(moba("advise", "--length=1024", "--cluster=4"), USAGE, "--cluster is '4'")
        self.expect(moba("advise", "--length=1024", "--delta-mu=x"), USAGE, "--delta-mu is 'x'")
        self.expect(moba("advise", "--length=1024", "--heads=4", "--kv-heads=3"), USAGE, "3")
        self.expect(moba("advise", "--length=1024", "--backend=tpu"), BACKEND, "tpu")
        self.expect(moba("advise", "1024"), USAGE, "unexpected argument '1024'")


if __name__ == "__main__":
    unittest.main()
