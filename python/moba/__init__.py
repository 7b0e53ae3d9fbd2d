# SPDX-License-Identifier: Apache-2.0
"""Mixture-of-Block-Attention: a thin ctypes layer over libmoba.

``moba.Context`` and ``moba.Plan`` mirror include/moba/moba.h; ``moba.torch`` has the PyTorch operator, its gradients and
a module. libmoba.so is looked for at ``MOBA_LIBRARY``, beside this package, in the source tree's build/lib, and then by the
system's loader.
"""
from ._library import (
    AttendArgs,
    BackwardArgs,
    Buffer,
    Context,
    Error,
    ForwardArgs,
    Inputs,
    Plan,
    Problem,
    Stream,
    Tensor,
    version,
    WORKSPACE_UNLIMITED,
)

__all__ = [
    "AttendArgs",
    "BackwardArgs",
    "Buffer",
    "Context",
    "Error",
    "ForwardArgs",
    "Inputs",
    "Plan",
    "Problem",
    "Stream",
    "Tensor",
    "version",
    "WORKSPACE_UNLIMITED",
]
