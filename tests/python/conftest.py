# SPDX-License-Identifier: Apache-2.0
"""Finds the package of this source tree and its library, and seeds every test.

MOBA_TEST_DEVICE=cuda runs test_gradients.py there.
"""
import os
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "python"))
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))

import torch  # noqa: E402


if "MOBA_TEST_DEVICE" in os.environ:
    torch.set_default_device(os.environ["MOBA_TEST_DEVICE"])


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(20)
