# SPDX-License-Identifier: Apache-2.0
"""moba compare: joining, ratios, shares of rates, unverified lines, the page, foreign and broken lines."""
import base64
import html.parser
import json
import os
import re
import resource
import unittest
import xml.etree.ElementTree

import support
from support import OK, USAGE, moba

SVG = "{http://www.w3.org/2000/svg}"


def problem(tokens):
    return f"b1q{tokens}k{tokens}h2g2d64B64t4c,f32"


def line(backend="cpu", tokens=1024, median=2.0, **fields):
    return {"device": "Device", "driver": "Driver 1", "version": "0.1.0", "backend": backend, "variant": {},
            "problem": problem(tokens), "pass": "fwd", "ms": {"min": median * 0.9, "median": median, "p90": median * 1.5},
            "useful_tflops": 0.5, "gbytes": 0.002, "workspace_bytes": 3 << 20, "saved_bytes": 1 << 20, "verified": True,
            "max_err": 5e-7, "rel_err": 2.5e-7, "seed": 1, "repeat": 20, "threads": 2, **fields}


class Page(html.parser.HTMLParser):
    """Collects what a reader sees, the plots, and every reference; complains about tags that do not match."""
    VOID = {"meta", "img", "br"}

    def __init__(self, text):
        super().__init__()
        self.open, self.images, self.references, self.text = [], [], [], ""
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "img":
            kind, data = attributes["src"].split(",")
            assert kind == "data:image/svg+xml;base64", kind
            self.images.append((attributes["alt"], base64.b64decode(data, validate=True).decode()))
        self.references += [attributes[name] for name in ("href", "src") if name in attributes and tag != "img"]

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (tag, self.open)
        self.open.pop()

    def handle_data(self, data):
        self.text += data


class Compare(support.Case):
    def write(self, name, lines):
        path = self.dir / name
        path.write_text("".join(json.dumps(x) + "\n" for x in lines))
        return path

    def rows(self, *arguments):
        """The rows of measurements, split into columns, under their problem strings."""
        text = self.expect(moba("compare", *arguments), OK).stdout
        rows, shown = [], None
        for row in text.splitlines():
            if re.match(r"b\d", row):
                shown = row
            elif re.match(r"  (route|fwd|bwd) ", row):
                rows.append((shown, *row.replace(" %", "%").replace("NOT VERIFIED", "NOT_VERIFIED").split()))
        return rows

    def page(self, *arguments):
        path = self.dir / "page.html"
        self.expect(moba("compare", *arguments, f"--html={path}"), OK)
        return Page(path.read_text())


class Table(Compare):
    def test_real_lines(self):
        result = self.expect(moba("bench", "b1q512k512h2g2d64B64t4c,f32", "b1q256k256h2g2d64B64t4c,f32", "--repeat=2",
                                  "--pass=fwd,bwd,route", "--rates=1.5"), OK)
        measured = [json.loads(x) for x in result.stdout.splitlines()]
        path = self.dir / "real.jsonl"
        path.write_text(result.stdout)
        rows = self.rows(path, "--base=cpu")
        self.assertEqual([(r[0], r[1]) for r in rows],
                         [(p, x) for p in (problem(256), problem(512)) for x in ("route", "fwd", "bwd")])
        by_key = {(x["problem"], x["pass"]): x for x in measured}
        for row in rows:
            x = by_key[row[0], row[1]]
            self.assertAlmostEqual(float(row[4]) / x["ms"]["median"], 1, places=2)
            self.assertAlmostEqual(float(row[7]) / x["useful_tflops"], 1, places=2)
            self.assertEqual(x["device_matrix_tflops"], 1.5)
            self.assertGreater(x["device_copy_gbytes"], 0)
            share = 100 * x["gbytes"] / (1e-3 * x["ms"]["median"]) / x["device_copy_gbytes"]
            self.assertAlmostEqual(float(row[8].rstrip("%")) / share, 1, delta=0.06)
            self.assertAlmostEqual(float(row[9].rstrip("%")) / (100 * x["useful_tflops"] / 1.5), 1, delta=0.06)
            self.assertEqual(row[10], "1")

    def test_rates(self):
        (measured,) = moba("bench", problem(128), "--repeat=1", "--pass=fwd", "--rates").stdout.splitlines()
        self.assertGreater(json.loads(measured)["device_matrix_tflops"], 0)
        self.expect(moba("bench", problem(128), "--rates=0"), USAGE, "--rates is '0'")

    def test_columns(self):
        path = self.write("a.jsonl", [line(median=2.0, useful_tflops=0.5, gbytes=0.002, device_copy_gbytes=20, device_matrix_tflops=2)])
        (row,) = self.rows(path)
        # 0.002 GB in 2 ms is 1 GB/s of 20; 0.5 TFLOP/s of 2; 3 + 1 MiB
        self.assertEqual(row, (problem(1024), "fwd", "[1]", "cpu", "2", "1.8", "3", "0.5", "5%", "25%", "5e-07", "2.5e-07", "4"))
        path = self.write("b.jsonl", [line(max_err=None, rel_err=None)])
        (row,) = self.rows(path)
        self.assertEqual(row[8:], ("-", "-", "-", "-", "4"))

    def test_joined_by_problem_and_pass(self):
        """The same problem, spelled in two ways, in two files; order is by length, then pass, then series."""
        a = self.write("a.jsonl", [line(tokens=16384), line(tokens=2048), line(**{"pass": "bwd"}), line()])
        b = self.write("b.jsonl", [line("cuda", problem="q1024h2d64B64t4c,f32")])
        rows = self.rows(a, b)
        self.assertEqual([(r[0], r[1], r[3]) for r in rows],
                         [(problem(1024), "fwd", "cpu"), (problem(1024), "fwd", "cuda"), (problem(1024), "bwd", "cpu"),
                          (problem(2048), "fwd", "cpu"), (problem(16384), "fwd", "cpu")])
        self.assertEqual(self.rows(a, b), rows)

    def test_series(self):
        """Device, driver, version, threads, backend and file each make a series of their own."""
        first = self.write("a.jsonl", [line(), line(tokens=2048), line("cuda"), line(device="Other"), line(driver="2"),
                                       line(version="0.2.0"), line(threads=1)])
        second = self.write("b.jsonl", [line()])
        text = self.expect(moba("compare", first, second), OK).stdout
        self.assertEqual(re.findall(r"(?m)^\[(\d+)\] \w+:", text), list("1234567"))

    def test_units_that_the_driver_does_not_tell(self):
        path = self.write("a.jsonl", [line(threads=0), line(threads=3)])
        text = self.expect(moba("compare", path), OK).stdout
        self.assertEqual(re.findall(r"(\d+) threads or compute units", text), ["3"])
        self.assertRegex(self.page(path).text, r"Driver 10\.1\.0---0/.*a\.jsonl\n.*Driver 10\.1\.03--0/")

    def test_standard_input(self):
        text = json.dumps(line())  # no newline behind the last line
        self.assertIn(problem(1024), self.expect(moba("compare", "-", input="\n" + text), OK).stdout)

    def test_base_backend(self):
        """The backend in the same file comes first; else the only one anywhere."""
        a = self.write("a.jsonl", [line(median=8.0), line("cuda", median=2.0)])
        b = self.write("b.jsonl", [line("vulkan", median=4.0)])
        ratios = {r[3]: r[10] for r in self.rows(a, b, "--base=cpu")}
        self.assertEqual(ratios, {"cpu": "1", "cuda": "4", "vulkan": "2"})
        c = self.write("c.jsonl", [line(median=6.0), line("cuda", median=3.0)])
        rows = self.rows(a, b, c, "--base", "cpu")
        # vulkan's file has no cpu, and two others have one each
        self.assertEqual([(r[2], r[10]) for r in rows], [("[1]", "1"), ("[2]", "4"), ("[3]", "-"), ("[4]", "1"), ("[5]", "2")])

    def test_base_file(self):
        """Two versions: each backend against itself; a backend that the base lacks, against its only one."""
        old = self.write("old.jsonl", [line(median=8.0), line("cuda", median=2.0)])
        new = self.write("new.jsonl", [line(median=4.0), line("cuda", median=4.0), line("vulkan", median=1.0)])
        rows = self.rows(old, new, f"--base={old}")
        self.assertEqual([(r[3], r[10]) for r in rows],
                         [("cpu", "1"), ("cuda", "1"), ("cpu", "2"), ("cuda", "0.5"), ("vulkan", "-")])
        self.write("old.jsonl", [line("cuda", median=2.0)])
        self.assertEqual([r[10] for r in self.rows(old, new, f"--base={old}")], ["1", "0.5", "0.5", "2"])

    def test_base_of_other_problem_or_pass(self):
        path = self.write("a.jsonl", [line(), line("cuda", tokens=2048), line("cuda", **{"pass": "bwd"})])
        self.assertEqual([r[10] for r in self.rows(path, "--base=cpu")], ["1", "-", "-"])

    def test_repeated_base(self):
        """Of repeated measurements the fastest is the base."""
        path = self.write("a.jsonl", [line(median=8.0), line(median=4.0), line("cuda", median=2.0)])
        self.assertEqual([r[10] for r in self.rows(path, "--base=cpu")], ["0.5", "1", "2"])

    def test_unverified(self):
        """Marked, counted, without a ratio, and no base."""
        path = self.write("a.jsonl", [line(verified=False), line("cuda", median=1.0), line("vulkan", verified=False)])
        rows = self.rows(path, "--base=cpu")
        self.assertEqual([(r[3], r[10], r[-1] == "NOT_VERIFIED") for r in rows],
                         [("cpu", "-", True), ("cuda", "-", False), ("vulkan", "-", True)])
        self.assertEqual([r[10] for r in self.rows(path, "--base=cuda")], ["-", "1", "-"])
        self.assertIn("(2 of 3 lines)", moba("compare", path).stdout)

    def test_terminal_is_safe(self):
        path = self.write("a.jsonl", [line("c\x1b[31mpu", device="De\x1b[2Jvice\n", driver="\u009b1m")])
        text = self.expect(moba("compare", path), OK).stdout
        self.assertTrue(all(c == "\n" or " " <= c <= "~" for c in text), repr(text))


class Refusals(Compare):
    def refuse(self, text, *words, number=1):
        path = self.dir / "bad.jsonl"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        page = self.dir / "page.html"
        self.expect(moba("compare", path, f"--html={page}"), USAGE, f"{path}:{number}: ", *words)
        self.assertFalse(page.exists())

    def test_broken_lines(self):
        good = json.dumps(line())
        self.refuse(good + "\n" + good[:100] + "\n" + good + "\n", "not a JSON line", number=2)
        self.refuse(good + "\n\n" + good[:100], "not a JSON line", "ends within this line", number=3)
        self.refuse("problem,ms\n1,2\n", "not a JSON line")
        self.refuse("[1, 2]\n", "not a JSON object")
        self.refuse(b"\xff\xfe\x00", "not a JSON line")
        self.refuse(b'{"device": "\x80"}\n', "not a JSON line")
        self.refuse(b"\0\n", "not a JSON line")
        self.refuse("[" * 100000, "not a JSON line")
        self.refuse('{"device": 1, "device": 2}', "not a JSON line", "device")
        self.refuse(" " * ((16 << 20) + 1), "a line of more than")

    def test_foreign_fields(self):
        for name in line():
            if name == "variant":
                continue
            fields = line()
            del fields[name]
            self.refuse(json.dumps(fields), f"'{name}'", "missing")
        for fields, word in [({"device": 3}, "'device' is not a string"), ({"pass": "up"}, "'up'"), ({"verified": 1}, "'verified'"),
                             ({"ms": 3}, "'ms'"), ({"ms": {"min": 1, "median": 2}}, "'p90'"),
                             ({"ms": {"min": 2, "median": 1, "p90": 3}}, "min <= median"),
                             ({"ms": {"min": 0, "median": 1, "p90": 3}}, "0 < min"),
                             ({"ms": {"min": None, "median": 1, "p90": 3}}, "0 < min"),
                             ({"useful_tflops": -1}, "'useful_tflops' is -1"), ({"gbytes": "1"}, "'gbytes' is not a number"),
                             ({"threads": 1.5}, "'threads'"), ({"threads": -1}, "-1"), ({"problem": "q8x"}, "column 3"),
                             ({"device_copy_gbytes": "fast"}, "'device_copy_gbytes'")]:
            self.refuse(json.dumps(line(**fields)), word)
        self.refuse(json.dumps(line()).replace("0.002", "1e999"), "not a JSON line")

    def test_unknown_fields_are_welcome(self):
        self.assertEqual(len(self.rows(self.write("a.jsonl", [line(clock_mhz=1980, note="x")]))), 1)

    def test_files(self):
        good, empty = self.write("good.jsonl", [line()]), self.write("empty.jsonl", [])
        self.expect(moba("compare", good, "/nowhere"), USAGE, "cannot open /nowhere")
        self.expect(moba("compare", empty), USAGE, "empty.jsonl: no measurement")
        self.expect(moba("compare", good, self.dir), USAGE, "cannot read", self.dir)
        self.expect(moba("compare", good, good), USAGE, "named twice")
        self.expect(moba("compare", good, "--html=/nowhere/page.html"), USAGE, "/nowhere/page.html cannot be written: No such")
        self.expect(moba("compare", good, "--html=/dev/full"), USAGE, "/dev/full cannot be written: No space")

    def test_usage(self):
        good = self.write("good.jsonl", [line()])
        self.expect(moba("compare"), USAGE, "FILE is missing")
        self.expect(moba("compare", good, "--base=cuda"), USAGE, "--base is 'cuda'")

    def test_no_gnuplot(self):
        good, page = self.write("good.jsonl", [line()]), self.dir / "page.html"
        self.expect(moba("compare", good, f"--html={page}", env={"PATH": str(self.dir)}), USAGE, "gnuplot", "gnuplot-nox")
        self.assertFalse(page.exists())
        tool = self.dir / "gnuplot"
        for body, words in [("echo no such terminal >&2; exit 1", "gnuplot failed: no such terminal"), ("exit 0", "no picture")]:
            tool.write_text(f"#!/bin/sh\n{body}\n")
            tool.chmod(0o755)
            self.expect(moba("compare", good, f"--html={page}", env={"PATH": str(self.dir)}), USAGE, words)
            self.assertFalse(page.exists())


class Html(Compare):
    def test_page(self):
        path = self.write("a.jsonl", [line(backend, tokens, tokens * rate) for backend, rate in (("cpu", 1e-2), ("cuda", 1e-4))
                                      for tokens in (1024, 2048, 4096)])
        page = self.page(path, "--base=cpu")
        self.assertEqual([alt.split(" against")[0] for alt, _ in page.images],
                         ["forward: time", "forward: useful operations", "memory beyond the tensors"])
        self.assertEqual(page.references, [])
        for _, svg in page.images:
            root = xml.etree.ElementTree.fromstring(svg)
            self.assertEqual(root.tag, SVG + "svg")
            self.assertEqual(list(root.iter(SVG + "script")), [])
            shown = " ".join("".join(x.itertext()) for x in root.iter(SVG + "text"))
            for word in ("1K", "2K", "4K", "[1] cpu", "[2] cuda"):
                self.assertIn(word, shown)
        for word in ("TFLOP/s", "MiB", "median", "float64", "Every one is verified", problem(4096), "1 sequence of N tokens",
                     "blocks of 64 keys", "100"):
            self.assertIn(word, page.text)

    def test_reproducible(self):
        path = self.write("a.jsonl", [line(), line("cuda", 2048)])
        pages = []
        for _ in range(2):
            self.page(path)
            pages.append((self.dir / "page.html").read_bytes())
        self.assertEqual(*pages)

    def test_an_old_page_stays_until_the_new_one_is_complete(self):
        path, page = self.write("a.jsonl", [line(), line("cuda", 2048)]), self.dir / "page.html"
        self.page(path)
        size = page.stat().st_size

        def limit():
            resource.setrlimit(resource.RLIMIT_FSIZE, (size - 1, size - 1))

        page.write_text("kept")
        before = sorted(os.listdir(self.dir))
        result = moba("compare", path, f"--html={page}", preexec_fn=limit)
        self.expect(result, USAGE, f"{page} cannot be written: File too large")
        self.assertEqual(page.read_text(), "kept")
        self.assertEqual(sorted(os.listdir(self.dir)), before)
        self.expect(moba("compare", path, f"--html={page.name}", cwd=self.dir), OK)
        self.assertEqual(page.stat().st_size, size)
        self.assertGreater(len(moba("compare", path, "--html=/dev/stdout").stdout), size)
        page.unlink()
        page.symlink_to("elsewhere.html")
        self.expect(moba("compare", path, f"--html={page}"), OK)
        self.assertTrue(page.is_symlink() and (self.dir / "elsewhere.html").stat().st_size == size)

    def test_unverified_is_never_plotted(self):
        """A page with the unverified lines draws the very plots of a page without them."""
        verified = [line(tokens=tokens, median=tokens * 1e-2) for tokens in (1024, 4096)]
        unverified = [line(tokens=2048, median=1e-3, useful_tflops=99.0, workspace_bytes=1 << 40, verified=False),
                      line(tokens=1024, median=1e-3, useful_tflops=99.0, verified=False, **{"pass": "bwd"})]
        without = self.page(self.write("a.jsonl", verified))
        page = self.page(self.write("a.jsonl", [*unverified, *verified]))
        self.assertEqual(page.images, without.images)
        self.assertIn("2 of them are not verified", page.text)
        self.assertEqual(page.text.count("NOT VERIFIED"), 2)
        page = self.page(self.write("a.jsonl", unverified))
        self.assertEqual(page.images, [])
        self.assertIn("there is no plot", page.text)

    def test_best_of_repeated(self):
        once = self.page(self.write("a.jsonl", [line(median=2.0, useful_tflops=0.5), line(tokens=2048)]))
        twice = self.page(self.write("a.jsonl", [line(median=3.0, useful_tflops=0.3), line(median=2.0, useful_tflops=0.5),
                                                 line(median=4.0, useful_tflops=0.2), line(tokens=2048)]))
        self.assertEqual(once.images, twice.images)

    def test_hostile_texts(self):
        """Names from a file can neither become markup nor commands of gnuplot."""
        mark = self.dir / "mark"
        name = f"'; system('touch {mark}'); `touch {mark}` <script>alert(1)</script> & \"x\""
        path = self.write("a.jsonl", [line(name, device=name, driver=name, version=name), line(name, 2048)])
        page = self.page(path)
        self.assertFalse(mark.exists())
        self.assertIn(name, page.text)
        text = (self.dir / "page.html").read_text()
        self.assertNotIn("<script", text)
        self.assertEqual(len(page.images), 3)

    def test_shapes(self):
        """One length alone, listed lengths, keys without as many queries, no memory at all."""
        path = self.write("a.jsonl", [line(problem="b2h2g1d32B32t2c,f16,lens=100+7"), line(problem="b1q1k4096h2g1d32B32t2n,f32"),
                                      line(problem="b1q64k64h2g1d32c,f32,dense", workspace_bytes=0, saved_bytes=0)])
        page = self.page(path)
        self.assertEqual(len(page.images), 3 + 2)
        for word in ("N keys and 1 query rows", "dense (every block)", "lens=100+7", "b1q1kNh2g1d32B32t2n,f32"):
            self.assertIn(word, page.text)

    def test_many(self):
        many = [line(backend, problem=f"b1q{64 * n}k{64 * n}h1g1d{d}B16t2c,f32") for backend in "abcdefghij" for n in range(1, 13)
                for d in (16, 32)]
        page = self.page(self.write("a.jsonl", many))
        self.assertEqual(len(page.images), 2 * 3)
        many = [line(problem=f"b{b}q64k64h1g1d16B16t2c,f32") for b in range(1, 31)]
        page = self.page(self.write("a.jsonl", many))
        self.assertEqual(len(page.images), 24 * 3)
        self.assertIn("6 more shapes are in the table only", page.text)


if __name__ == "__main__":
    unittest.main()
