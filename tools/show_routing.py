#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Shows block routing at work on real activations: data/minilm_layer*.safetensors through `moba run`.

For each layer and block size it prints
  mass      the share of dense attention's probability mass that lies in the selected blocks (mean over rows),
  chance    the share of keys that are selected: what blocks chosen blindly would hold of evenly spread attention,
  error     |o - o_dense| / |o_dense| (Frobenius norm),
and mass and error once more after the keys and values of every document were shuffled. Shuffling leaves dense attention
as it is, but a block is then no longer a passage of text, so its mean key says less about its keys.

Everything that `moba run` wrote is checked: the dense output and the sparse output, given its selection, against numpy
in float64. Exit code 1 if a check fails.
"""
import argparse
import pathlib
import subprocess
import sys

import numpy as np

import safetensors_io

SETTINGS = ((16, 8), (32, 4))  # (block_size, top_k): 128 keys a row in both
TOLERANCE = 5e-4  # float16 outputs, docs/spec.md section 7


def moba_run(moba, source, out, *options):
    """Runs `moba run` and returns what it wrote as {name: array}."""
    out.mkdir(parents=True, exist_ok=True)
    for old in [*out.glob("*.npy"), *out.glob("*.safetensors")]:
        old.unlink()
    command = [moba, "run", "--input", str(source), "--non-causal", "--out", str(out), *options]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    results = {path.stem: np.load(path) for path in out.glob("*.npy")}
    for path in out.glob("*.safetensors"):
        results.update(safetensors_io.load(path))
    return results


def probabilities(q, k):
    """Dense attention weights [head][query][key] of one document, float64."""
    scores = np.einsum("ihd,jhd->hij", q.astype(float), k.astype(float)) / np.sqrt(q.shape[-1])
    p = np.exp(scores - scores.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True)


def selected_keys(selection, n_keys, block_size):
    """Mask [head][query][key] of the keys in the selected blocks of one document."""
    n_blocks = -(-n_keys // block_size)
    picks = np.zeros((*selection.shape[:2], n_blocks + 1), bool)
    np.put_along_axis(picks, selection, True, axis=2)  # -1, no block, falls on the extra last entry
    return np.repeat(picks[:, :, :n_blocks], block_size, axis=2)[:, :, :n_keys].transpose(1, 0, 2)


def relative(a, b):
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def analyse(tensors, sparse, dense, block_size):
    """Returns mass, chance and error over all documents, and the largest deviation of the outputs from numpy."""
    cu = tensors["cu_seqlens_q"]
    mass, chance, reference, dense_reference = [], [], [], []
    for begin, end in zip(cu[:-1], cu[1:]):
        q, k, v = (tensors[name][begin:end] for name in "qkv")
        p = probabilities(q, k)
        mask = selected_keys(sparse["selection"][begin:end], end - begin, block_size)
        held = (p * mask).sum(-1)
        mass.append(held.ravel())
        chance.append(mask.mean(-1).ravel())
        v = v.astype(float)
        dense_reference.append(np.einsum("hij,jhd->ihd", p, v))
        reference.append(np.einsum("hij,jhd->ihd", p * mask / held[..., None], v))
    deviation = max(
        relative(sparse["o"].astype(float), np.concatenate(reference)),
        relative(dense["o"].astype(float), np.concatenate(dense_reference)),
    )
    error = relative(sparse["o"].astype(float), dense["o"].astype(float))
    return np.concatenate(mass).mean(), np.concatenate(chance).mean(), error, deviation


def shuffled(tensors, seed):
    """The same tensors with the keys and values of each document in random order."""
    random = np.random.default_rng(seed)
    cu = tensors["cu_seqlens_k"]
    order = np.concatenate([begin + random.permutation(end - begin) for begin, end in zip(cu[:-1], cu[1:])])
    return {**tensors, "k": tensors["k"][order], "v": tensors["v"][order]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--moba", required=True, help="the moba program")
    parser.add_argument("--data", required=True, help="folder of minilm_layer*.safetensors")
    parser.add_argument("--out", required=True, help="folder for what moba run writes")
    args = parser.parse_args()
    out = pathlib.Path(args.out)

    files = sorted(pathlib.Path(args.data).glob("minilm_layer*.safetensors"))
    if not files:
        sys.exit(f"{args.data} holds no minilm_layer*.safetensors")
    out.mkdir(parents=True, exist_ok=True)
    lengths = np.diff(safetensors_io.load(files[0])["cu_seqlens_q"])
    print(f"all-MiniLM-L6-v2, {len(lengths)} documents of {', '.join(map(str, lengths))} tokens, 4 heads, head_dim 32")
    print()
    print("                            |   keys in order    |   keys shuffled")
    print("layer block_size top_k chance |   mass    error    |   mass    error")
    worst, gains = 0.0, []
    for path in files:
        tensors = safetensors_io.load(path)
        mixed = shuffled(tensors, seed=1)
        mixed_path = out / "shuffled.safetensors"
        safetensors_io.save(mixed_path, mixed, {})
        for block_size, top_k in SETTINGS:
            options = ("--block-size", str(block_size), "--top-k", str(top_k))
            row = []
            for source, values in ((path, tensors), (mixed_path, mixed)):
                sparse = moba_run(args.moba, source, out / "sparse", *options)
                dense = moba_run(args.moba, source, out / "dense", "--dense")
                row.append(analyse(values, sparse, dense, block_size))
                worst = max(worst, row[-1][3])
            (mass, chance, error, _), (mixed_mass, _, mixed_error, _) = row
            gains.append(mass - mixed_mass)
            layer = path.stem.removeprefix("minilm_layer")
            print(
                f"{layer:>5} {block_size:>10} {top_k:>5} {chance:6.1%} | {mass:6.1%}  {error:7.3f}    "
                f"| {mixed_mass:6.1%}  {mixed_error:7.3f}"
            )
    print()
    print(f"largest deviation from float64 numpy: {worst:.1e} (limit {TOLERANCE:.0e})")
    print(
        "Limits: a bidirectional encoder (--non-causal), head_dim 32, documents of at most 512 tokens, and a model that was\n"
        "trained with dense attention, never with block routing: this shows the mechanism, not what training with it gains."
    )
    if not worst <= TOLERANCE:
        sys.exit("FAILED: an output of moba run deviates from numpy")
    if not min(gains) > 0:
        sys.exit("FAILED: routing holds no more of the mass in order than shuffled")


if __name__ == "__main__":
    main()
