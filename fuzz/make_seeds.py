#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes a small seed corpus for each fuzz target: make_seeds.py DIR."""
import json
import pathlib
import struct
import sys


def npy(text: str, data: bytes, version: int = 1) -> bytes:
    length = struct.pack("<H" if version == 1 else "<I", len(text))
    return b"\x93NUMPY" + bytes([version, 0]) + length + text.encode() + data


def safetensors(header: object, data: bytes, length: int = -1) -> bytes:
    text = header.encode() if isinstance(header, str) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length < 0 else length) + text + data


def tensor(dtype: str, shape: list, begin: int, end: int) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def measurement(problem: str, **fields: object) -> bytes:
    return json.dumps({
        "device": "d", "driver": "r", "version": "0", "backend": "cpu", "problem": problem, "pass": "fwd",
        "ms": {"min": 1, "median": 1.5, "p90": 2e0}, "useful_tflops": 0.5, "gbytes": 0.1, "workspace_bytes": 9,
        "saved_bytes": 0, "verified": True, "max_err": 1e-6, "rel_err": 1e-7, "seed": 1, "repeat": 3, "threads": 2, **fields,
    }).encode()


SEEDS = {
    "fuzz_npy": [
        npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 1, 3), }\n", bytes(24)),
        npy("{'descr': '<f2', 'fortran_order': False, 'shape': (4,), }\n", bytes(8), 2),
        npy('{"shape": (), "descr": "<i4", "fortran_order": False}', bytes(4), 3),
        npy("{'descr': '>f8', 'fortran_order': True, 'shape': (0, 9223372036854775807), }\n", b""),
    ],
    "fuzz_safetensors": [
        safetensors({"q": tensor("F32", [1, 1, 2], 0, 8), "k": tensor("F16", [1, 1, 2], 8, 12),
                     "v": tensor("BF16", [1, 1, 2], 12, 16), "__metadata__": {"format": "pt"}}, bytes(16)),
        safetensors({"selection": tensor("I32", [1, 1, 1], 0, 4), "q": tensor("U8", [0], 4, 4)}, bytes(4)),
        safetensors({"q": tensor("F32", [1], 0, 9223372036854775807)}, bytes(4)),
        safetensors('{"q":{"dtype":"F32","shape":[1],"data_offsets":[0,9223372036854775808]}}  ', bytes(4)),
        safetensors({}, b"", 2**63),
    ],
    "fuzz_problem": [
        b"b2q8192k8192h16g16d128B128t8c,bf16",
        b"q512h4g2d64B64t3n,f32,sink=1,kconv=3,det",
        b"b3h2d32B16t4c,f16,local=2,lens=513+0+129/600+5+129",
        b"q1k4096h8d128c,bf16,dense",
    ],
    "fuzz_compare": [
        measurement("b2q8192k8192h16g16d128B128t8c,bf16", device_copy_gbytes=2800, device_matrix_tflops=690.5),
        measurement("q1k4096h8d128c,bf16,dense", verified=False, max_err=None),
        measurement("b2h2d32B16t4c,f16,lens=513+129/600+129", extra=["\u00e9", {}]),
    ],
    "fuzz_env": [
        b"cuda,vulkan,cpu", b"1023", b"dispatch", b"1", b"-avx512,-wgmma", b"attend=*avx2*,gate=plain", b",,=,-",
    ],
}


def main() -> None:
    for target, seeds in SEEDS.items():
        folder = pathlib.Path(sys.argv[1]) / target
        folder.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(seeds):
            (folder / f"seed{number}").write_bytes(seed)


if __name__ == "__main__":
    main()
