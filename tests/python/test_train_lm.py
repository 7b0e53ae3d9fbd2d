# SPDX-License-Identifier: Apache-2.0
"""examples/train_lm.py: its task is what it says it is, and its smoke setting runs and writes what it promises."""
import importlib.util
import json
import pathlib
import subprocess
import sys

import torch

PATH = pathlib.Path(__file__).resolve().parents[2] / "examples" / "train_lm.py"
spec = importlib.util.spec_from_file_location("train_lm", PATH)
train_lm = importlib.util.module_from_spec(spec)
sys.modules["train_lm"] = train_lm  # dataclasses look their module up
spec.loader.exec_module(train_lm)
TEXT = torch.randint(32, 127, (5000,), dtype=torch.uint8)


def test_what_is_scored_can_be_known():
    """Each scored value follows a key whose pair was in the sequence before; no other value is scored."""
    s = train_lm.SMOKE
    tokens, text, recall = train_lm.training_batch(TEXT, s, s.length, torch.Generator().manual_seed(1))
    assert recall.any(1).all() and not (text & recall).any()
    for row, scored in zip(tokens.tolist(), recall.tolist()):
        seen = {}
        for t, (a, b) in enumerate(zip(row, row[1:])):
            is_pair = 128 <= a < 192 and b >= 192
            assert scored[t] == (is_pair and a in seen)
            if is_pair:
                assert seen.setdefault(a, b) == b
    assert torch.equal(text, tokens[:, 1:] < 128)


def test_probes_ask_in_the_tail_for_what_stood_before_it():
    s = train_lm.SMOKE
    tokens, asked = train_lm.probe_batch(TEXT, s, 512, torch.Generator().manual_seed(1))
    assert (asked.sum(1) == s.tail // 4).all() and not asked[:, :512 - s.tail].any()
    for row, at in zip(tokens, asked):
        for t in at.nonzero()[:, 0]:
            before = (row[:512 - s.tail] == row[t]).nonzero()[:, 0]
            assert len(before) == 1 and row[before[0] + 1] == row[t + 1] and row[t + 1] >= 192


def test_late_dense_continues_the_routed_run():
    s = train_lm.dataclasses.replace(train_lm.SMOKE, steps=10)
    choices = [v for v in train_lm.variants(s) if v.block == 16 and not v.kconv and not v.n_dense]
    texts, cpu = (TEXT, TEXT), torch.device("cpu")
    shared, kept = train_lm.train_all(s, choices, texts, cpu)
    alone, _ = train_lm.train_all(s, choices[1:], texts, cpu)
    assert [c.dense_from for c in choices] == [1.0, 0.9] and kept.variant is choices[0]
    assert [r["variant"] for r in shared] == ["warm-up", *(c.name for c in choices)]
    assert abs(shared[2]["curve"][-1][1] - alone[1]["curve"][-1][1]) < 1e-4
    assert not kept.model.global_layers()[0].attention.dense


def test_smoke_setting(tmp_path):
    done = subprocess.run([sys.executable, str(PATH), "--smoke", "--dump", "--out", str(tmp_path), "--device", "cpu"],
                          capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = json.loads((tmp_path / "results.json").read_text())["results"]
    names = [v.name for v in train_lm.variants(train_lm.SMOKE)]
    assert [r["variant"] for r in results] == ["warm-up", *names] and all(r["tail_loss"] > 0 for r in results[1:])
    lines = (tmp_path / "results.md").read_text().splitlines()
    assert [x.split("|")[1].strip() for x in lines if x.startswith("|")][2:] == names
    import safetensors_io  # beside train_lm's own folders on sys.path
    q = safetensors_io.load(tmp_path / "qkv_0_256.safetensors")["q"]
    assert q.shape == (256, 2, 16) and q.any()


def test_unknown_variant():
    done = subprocess.run([sys.executable, str(PATH), "--smoke", "--only", "nothing"], capture_output=True, text=True)
    assert done.returncode == 2 and "no variant's name matches 'nothing'" in done.stderr


def test_table_over_seeds():
    s = train_lm.SMOKE
    rows = [{"variant": v, "seed": seed, "loss": loss, "tail_loss": 3.0, "recall_256": 0.5, "recall_512": 0.25, "ms_a_step": 1.0}
            for v, seed, loss in (("dense", 0, 2.0), ("B=16", 0, 2.25), ("dense", 1, 1.0), ("B=16", 1, 1.5))]
    lines = train_lm.table(s, rows).splitlines()
    assert lines[0].startswith("| global layers | loss | above dense | loss, last 64 | recall at 256 |")
    assert lines[3].startswith("| B=16 | 1.8750 (1.5000 to 2.2500) | 0.3750 (0.2500 to 0.5000) | 3.0000 (3.0000 to 3.0000) | 50.0 %")
    assert train_lm.table(s, rows[1:2]).splitlines()[2].startswith("| B=16 | 2.2500 |  | 3.0000 | 50.0 % | 25.0 % | 1.0 |")


def test_a_model_that_does_not_recall_is_not_compared(capsys):
    s = train_lm.dataclasses.replace(train_lm.SMOKE, recall_needed=1.1, seeds=(0, 1))
    saved = []
    results, kept = train_lm.train_all(s, train_lm.variants(s)[:1], (TEXT, TEXT), torch.device("cpu"),
                                       lambda *what: saved.append(what))
    assert [(r["variant"], r["seed"], r["attempts"]) for r in results] == [("warm-up", 0, 2), ("warm-up", 1, 2)]
    assert kept is None and not saved and "a comparison would say nothing" in capsys.readouterr().out
    assert "nothing to compare" in train_lm.report(s, results, "CPU", None)
