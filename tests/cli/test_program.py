# SPDX-License-Identifier: Apache-2.0
"""The program as a whole: usage, help, exit codes, info, explain."""
import json
import os
import re
import subprocess
import unittest

import support
from support import BACKEND, OK, USAGE, moba

SUBCOMMANDS = ["info", "run", "bench", "compare", "advise", "explain"]
PROBLEM = "b1q256k256h4g2d32B32t3c,f32"


class Usage(support.Case):
    def test_no_subcommand(self):
        result = moba()
        self.assertEqual((result.returncode, result.stdout), (USAGE, ""))
        for name in SUBCOMMANDS:
            self.assertIn(name, result.stderr)

    def test_help(self):
        for arguments in [["--help"], *([name, "--help"] for name in SUBCOMMANDS)]:
            result = moba(*arguments)
            self.assertEqual((result.returncode, result.stderr), (OK, ""), arguments)
            self.assertRegex(result.stdout, "^Usage: moba")

    def test_every_option_of_run_is_in_its_help(self):
        text = moba("run", "--help").stdout
        for option in ("q k v do kconv-weight selection cu-seqlens-q cu-seqlens-k input block-size top-k non-causal dense "
                       "sink local softmax-scale deterministic dtype backend out").split():
            self.assertRegex(text, rf"(?m)^ +--{option}[= \n]")

    def test_version(self):
        self.assertRegex(moba("--version").stdout, r"^moba \d+\.\d+\.\d+\n$")
        self.assertRegex(moba("run", "--version").stdout, r"^moba \d+\.\d+\.\d+\n$")

    def test_unknown_words(self):
        self.expect(moba("train"), USAGE, "unknown subcommand 'train'")
        for name in SUBCOMMANDS:
            self.expect(moba(name, "--no-such-option"), USAGE, "--no-such-option")

    def test_full_standard_output(self):
        for arguments in [["--help"], ["info"], ["info", "--json"], ["explain", PROBLEM]]:
            with open("/dev/full", "w") as full:
                result = moba(*arguments, capture_output=False, stdout=full, stderr=subprocess.PIPE)
            self.assertEqual(result.returncode, USAGE, arguments)
            self.assertIn("cannot write standard output: No space left on device", result.stderr)


class Info(support.Case):
    def test_json(self):
        result = self.expect(moba("info", "--json"), OK)
        info = json.loads(result.stdout)
        backends = {backend["name"]: backend for backend in info["backends"]}
        self.assertEqual(sorted(backends), ["cpu", "cuda", "hip", "opencl", "vulkan"])
        for backend in backends.values():
            self.assertEqual(backend["usable"], backend["reason"] == "")
            self.assertEqual(backend["usable"], len(backend["devices"]) > 0)
            self.assertTrue(backend["built"] or not backend["usable"])
        (device,) = backends["cpu"]["devices"]
        self.assertEqual(device["software"], False)
        self.assertEqual(device["n_compute_units"], len(os.sched_getaffinity(0)))
        self.assertGreater(device["memory_bytes"], 1 << 28)
        self.assertTrue(device["name"] and device["driver"])

    def test_text(self):
        text = self.expect(moba("info"), OK).stdout
        self.assertRegex(text, r"(?m)^cpu: usable$")
        for backend in json.loads(moba("info", "--json").stdout)["backends"]:
            shown = "usable" if backend["usable"] else backend["reason"]
            self.assertIn(f"{backend['name']}: {shown}\n", text)
            for device in backend["devices"]:
                self.assertIn(device["name"], text)

    def test_argument(self):
        self.expect(moba("info", "cpu"), USAGE, "unexpected argument 'cpu'")


class Explain(support.Case):
    def test_kernels_and_memory(self):
        text = self.expect(moba("explain", PROBLEM), OK).stdout
        for word in ("block_size 32", "backend: cpu", "centroid", "gate", "index", "attend", "workspace", "saved"):
            self.assertIn(word, text)
        again = moba("explain", PROBLEM, "--backend=cpu", env={"MOBA_BACKEND": None}).stdout
        timeless = [re.sub(r"[\d.e+]+ us", "", shown) for shown in (text, again)]  # rates are measured anew
        self.assertEqual(*timeless)

    def test_hidden_capability_is_named(self):
        info = json.loads(moba("info", "--json").stdout)
        words = [b["devices"][0]["capabilities"] for b in info["backends"] if b["name"] == "cpu"][0]
        if words:
            shown = moba("explain", PROBLEM, env={"MOBA_CAPS_MASK": f"-{words[0]}"}).stdout
            self.assertNotRegex(shown.split("capabilities:")[1].split("\n")[0], rf"\b{words[0]}\b")

    def test_bad_problems(self):
        self.expect(moba("explain"), USAGE, "PROBLEM is missing")
        self.expect(moba("explain", PROBLEM, PROBLEM), USAGE, "one problem at a time")
        self.expect(moba("explain", "q8x"), USAGE, "problem 'q8x'", "column")
        self.expect(moba("explain", PROBLEM.replace("d32", "d257")), USAGE, "257", "256")
        self.expect(moba("explain", PROBLEM.replace("B32", "B8")), USAGE, "8", "16")
        self.expect(moba("explain", PROBLEM + ",sink=9"), USAGE, "9", "top_k is 3")


class Backends(support.Case):
    def test_unknown(self):
        for arguments, env in [((PROBLEM, "--backend=tpu"), {}), ((PROBLEM,), {"MOBA_BACKEND": "tpu"}),
                               ((PROBLEM,), {"MOBA_BACKEND": "cpu,tpu"})]:
            self.expect(moba("explain", *arguments, env=env), BACKEND, "tpu", "unknown")

    def test_unusable_with_reason(self):
        for backend in json.loads(moba("info", "--json").stdout)["backends"]:
            if not backend["usable"]:
                result = moba("explain", PROBLEM, f"--backend={backend['name']}")
                self.expect(result, BACKEND, backend["name"], backend["reason"])

    def test_list_goes_on_to_the_next(self):
        unusable = [b["name"] for b in json.loads(moba("info", "--json").stdout)["backends"] if not b["usable"]]
        result = moba("explain", PROBLEM, env={"MOBA_BACKEND": ",".join([*unusable, "cpu"])})
        self.assertIn("backend: cpu", self.expect(result, OK).stdout)

    def test_bad_environment(self):
        for name, value in [("MOBA_DEVICE", "x"), ("MOBA_CAPS_MASK", "-nothing"), ("MOBA_KERNEL", "attend"),
                            ("MOBA_VALIDATE", "yes")]:
            self.expect(moba("explain", PROBLEM, env={name: value}), USAGE, name, value)

    def test_no_progress_in_a_pipe(self):
        self.assertFalse(re.search(r"[\r\033]", moba("explain", PROBLEM).stderr))


if __name__ == "__main__":
    unittest.main()
