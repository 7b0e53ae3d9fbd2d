# SPDX-License-Identifier: Apache-2.0
"""Output files appear complete or not at all, and old ones stay until then."""
import os
import pty
import resource
import signal
import stat
import subprocess
import time
import unittest

import numpy as np

import support
from support import FAILED, OK, PROGRAM, USAGE, moba, random_inputs

ROUTED = ("--block-size=16", "--top-k=2")
NAMES = ["lse.npy", "o.npy", "selection.npy"]


def tree(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


class Outputs(support.Case):
    def arguments(self, rows=40, heads=2, seed=0, options=ROUTED):
        return ["run", *self.files(random_inputs(rows, rows, heads, 1, 16, seed=seed)), *options, f"--out={self.out}"]

    def test_directory_is_made(self):
        self.out = self.dir / "a" / "b//c"
        self.expect(moba(*self.arguments()), OK)
        self.assertEqual(sorted(os.listdir(self.out)), NAMES)

    def test_mode_follows_umask(self):
        self.expect(moba(*self.arguments(), umask=0o027), OK)
        for path in self.out.iterdir():
            self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o640)

    def test_replaced_as_a_whole(self):
        self.expect(moba(*self.arguments()), OK)
        before = tree(self.out)
        (self.out / "notes.txt").write_text("kept")
        self.expect(moba(*self.arguments(seed=1)), OK)
        after = tree(self.out)
        self.assertEqual(after.pop("notes.txt"), b"kept")
        self.assertEqual(sorted(after), NAMES)
        self.assertFalse(before["o.npy"] == after["o.npy"])

    def test_directory_that_cannot_be_made(self):
        (self.dir / "file").write_text("kept")
        for path, word in [(self.dir / "file", "is not a directory"), (self.dir / "file" / "x", "is not a directory"),
                           ("/proc/moba", "cannot be made"), ("", "empty name"), ("x" * 5000, "longer than")]:
            self.out = path
            self.expect(moba(*self.arguments()), USAGE, word)
        self.assertEqual((self.dir / "file").read_text(), "kept")

    def test_file_that_cannot_be_replaced(self):
        (self.out / "o.npy").mkdir(parents=True)
        (self.out / "lse.npy").write_text("kept")
        self.expect(moba(*self.arguments()), USAGE, "o.npy cannot be written: it is a directory")
        self.assertEqual(tree(self.out), {"lse.npy": b"kept"})

    def test_directory_without_files(self):
        self.out = "/proc/self"
        self.expect(moba(*self.arguments()), USAGE, "cannot be written")

    def test_file_too_large(self):
        self.out.mkdir()
        (self.out / "o.npy").write_text("kept")

        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))

        self.expect(moba(*self.arguments(), preexec_fn=limit), USAGE, "cannot be written: File too large")
        self.assertEqual(tree(self.out), {"o.npy": b"kept"})

    def test_failed_run_leaves_the_old_files(self):
        self.expect(moba(*self.arguments()), OK)
        before = tree(self.out)
        self.expect(moba(*self.arguments(options=("--block-size=15", "--top-k=2"))), USAGE, "block_size is 15")
        self.assertEqual(tree(self.out), before)

    def test_input_in_the_output_directory(self):
        self.out = self.dir
        self.save("o", np.zeros(3))
        self.expect(moba(*self.arguments()), OK)
        self.assertEqual(np.load(self.dir / "o.npy").shape, (40, 2, 16))

    def test_ended_by_a_signal(self):
        arguments = self.arguments(rows=20000, heads=8, options=("--dense",))
        self.expect(moba(*self.arguments()), OK)
        before = tree(self.out)
        arguments = self.arguments(rows=20000, heads=8, options=("--dense",))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            process = subprocess.Popen([PROGRAM, *map(str, arguments)], env={**os.environ, "MOBA_BACKEND": "cpu"},
                                       stderr=subprocess.DEVNULL)
            deadline = time.monotonic() + 60
            while len(os.listdir(self.out)) <= len(before) and time.monotonic() < deadline and process.poll() is None:
                time.sleep(0.002)
            process.send_signal(number)
            self.assertEqual(process.wait(60), -number)
            self.assertEqual(sorted(os.listdir(self.out)), NAMES)
            self.assertTrue(tree(self.out) == before)

    def test_signal_at_any_moment(self):
        """The files are those of before or those of a complete run, and no temporary one stays."""
        arguments = self.arguments(rows=2000, options=("--block-size=16", "--top-k=4"))
        begin = time.monotonic()
        self.expect(moba(*arguments), OK)
        whole = time.monotonic() - begin
        done = tree(self.out)
        ended = set()
        for step in range(40):
            for path in self.out.iterdir():
                path.unlink()
            process = subprocess.Popen([PROGRAM, *map(str, arguments)], env={**os.environ, "MOBA_BACKEND": "cpu"},
                                       stderr=subprocess.DEVNULL)
            time.sleep(whole * step / 32)
            process.send_signal(signal.SIGTERM)
            ended.add(process.wait(60))
            if tree(self.out) != {}:
                self.assertTrue(tree(self.out) == done, f"step {step}: {sorted(os.listdir(self.out))}")
        self.assertTrue(ended <= {OK, -signal.SIGTERM} and -signal.SIGTERM in ended, ended)

    def test_out_of_memory(self):
        # Files with holes: 2 TiB of q take no room on the disk, and no machine has the memory.
        options = self.files(random_inputs(1, 1, 1, 1, 256))
        with open(self.dir / "q.npy", "wb") as file:
            shape = (2**31 - 1, 1, 256)
            np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
            file.truncate(file.tell() + 4 * shape[0] * shape[2])
        sanitizers = {f"{name}_OPTIONS": "allocator_may_return_null=1:log_path=/dev/null" for name in ("ASAN", "TSAN")}
        result = moba("run", *options, "--dense", f"--out={self.out}", env=sanitizers)
        self.expect(result, FAILED, "memory", "bytes")
        self.assertEqual(tree(self.out), {})


class Progress(support.Case):
    """Progress is shown on a terminal, and only for work over a second."""

    def on_a_terminal(self, rows, heads):
        arguments = ["run", *self.files(random_inputs(rows, rows, heads, 1, 64)), "--dense", f"--out={self.out}"]
        parent, child = pty.openpty()
        process = subprocess.Popen([PROGRAM, *map(str, arguments)], stderr=child, env={**os.environ, "MOBA_BACKEND": "cpu"})
        os.close(child)
        text = b""
        while True:
            try:
                piece = os.read(parent, 4096)
            except OSError:
                break
            text += piece
        os.close(parent)
        self.assertEqual(process.wait(120), OK, text)
        return text.decode()

    def test_short_work_is_silent(self):
        self.assertEqual(self.on_a_terminal(40, 1), "")

    def test_long_work_is_shown_and_cleared(self):
        rows = 4000
        text = self.on_a_terminal(rows, 8)
        while "forward on cpu" not in text and rows < 100_000:  # a fast machine needs more work
            rows *= 2
            text = self.on_a_terminal(rows, 8)
        self.assertIn("forward on cpu", text)
        self.assertTrue(text.endswith("\r\033[K"), repr(text[-40:]))


if __name__ == "__main__":
    unittest.main()
