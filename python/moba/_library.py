# SPDX-License-Identifier: Apache-2.0
"""ctypes declarations of include/moba/moba.h and the objects that own its handles."""
import ctypes
import ctypes.util
import os
import pathlib
from ctypes import POINTER, Structure, byref, c_char_p, c_double, c_float, c_int, c_int32, c_int64, c_size_t, c_uint64, c_void_p

WORKSPACE_UNLIMITED = 2**64 - 1
F32, F16, BF16 = 0, 1, 2


class Error(RuntimeError):
    """A call that failed; ``status`` is the moba_status, the text is moba_last_error()."""

    def __init__(self, status, text):
        super().__init__(text)
        self.status = status


class Buffer(Structure):
    _fields_ = [("handle", c_uint64), ("offset", c_uint64)]


class Tensor(Structure):
    _fields_ = [("buffer", Buffer), ("token_stride", c_int64), ("head_stride", c_int64), ("batch_stride", c_int64)]


class Stream(Structure):
    _fields_ = [("native", c_void_p)]


class Problem(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("dtype", c_int),
        ("n_q_heads", c_int32),
        ("n_kv_heads", c_int32),
        ("head_dim", c_int32),
        ("block_size", c_int32),
        ("top_k", c_int32),
        ("n_sink_blocks", c_int32),
        ("n_local_blocks", c_int32),
        ("kconv_width", c_int32),
        ("causal", c_int32),
        ("dense", c_int32),
        ("deterministic", c_int32),
        ("softmax_scale", c_float),
        ("max_batch", c_int64),
        ("max_total_q", c_int64),
        ("max_total_k", c_int64),
        ("max_seqlen_q", c_int64),
        ("max_seqlen_k", c_int64),
        ("workspace_limit", c_uint64),
        ("inference", c_int32),
        ("reserved", c_int32),
    ]

    def __init__(self, **fields):
        super().__init__(struct_size=ctypes.sizeof(Problem), **fields)


class Inputs(Structure):
    _fields_ = [
        ("q", Tensor),
        ("k", Tensor),
        ("v", Tensor),
        ("kconv_weight", Buffer),
        ("cu_seqlens_q", Buffer),
        ("cu_seqlens_k", Buffer),
        ("batch", c_int64),
        ("total_q", c_int64),
        ("total_k", c_int64),
    ]


class ForwardArgs(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("inputs", Inputs),
        ("o", Tensor),
        ("lse", Buffer),
        ("selection", Buffer),
        ("saved", Buffer),
        ("saved_bytes", c_size_t),
        ("workspace", Buffer),
        ("workspace_bytes", c_size_t),
    ]

    def __init__(self, **fields):
        super().__init__(struct_size=ctypes.sizeof(ForwardArgs), **fields)


class AttendArgs(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("inputs", Inputs),
        ("selection", Buffer),
        ("o", Tensor),
        ("lse", Buffer),
        ("saved", Buffer),
        ("saved_bytes", c_size_t),
        ("workspace", Buffer),
        ("workspace_bytes", c_size_t),
    ]

    def __init__(self, **fields):
        super().__init__(struct_size=ctypes.sizeof(AttendArgs), **fields)


class BackwardArgs(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("inputs", Inputs),
        ("o", Tensor),
        ("lse", Buffer),
        ("dout", Tensor),
        ("saved", Buffer),
        ("saved_bytes", c_size_t),
        ("dq", Tensor),
        ("dk", Tensor),
        ("dv", Tensor),
        ("dkconv_weight", Buffer),
        ("workspace", Buffer),
        ("workspace_bytes", c_size_t),
    ]

    def __init__(self, **fields):
        super().__init__(struct_size=ctypes.sizeof(BackwardArgs), **fields)


class _ContextOptions(Structure):
    _fields_ = [
        ("struct_size", c_size_t),
        ("backend", c_char_p),
        ("device", c_int32),
        ("n_threads", c_int32),
        ("native", c_void_p),
    ]


def _find():
    named = os.environ.get("MOBA_LIBRARY")
    if named:
        return named
    beside = pathlib.Path(__file__).parent / "libmoba.so"
    if beside.exists():
        return str(beside)
    built = pathlib.Path(__file__).resolve().parents[2] / "build" / "lib" / "libmoba.so"
    if built.exists():
        return str(built)
    return ctypes.util.find_library("moba") or "libmoba.so.0"


_loaded = None


def library():
    """The loaded libmoba; opened by the first use, so that importing this package needs no library."""
    global _loaded
    if _loaded is None:
        lib = ctypes.CDLL(_find())
        lib.moba_last_error.restype = c_char_p
        lib.moba_version.restype = c_char_p
        lib.moba_plan_kernel.restype = c_char_p
        lib.moba_context_create.argtypes = [POINTER(_ContextOptions), POINTER(c_void_p)]
        lib.moba_context_destroy.argtypes = [c_void_p]
        lib.moba_plan_create.argtypes = [c_void_p, POINTER(Problem), POINTER(c_void_p)]
        lib.moba_plan_destroy.argtypes = [c_void_p]
        lib.moba_plan_workspace.argtypes = [c_void_p, POINTER(c_size_t)]
        lib.moba_plan_saved.argtypes = [c_void_p, POINTER(c_size_t)]
        lib.moba_plan_explain.argtypes = [c_void_p, c_char_p, c_size_t]
        lib.moba_plan_kernel.argtypes = [c_void_p, c_char_p]
        lib.moba_plan_cost.argtypes = [c_void_p, c_char_p, POINTER(c_double)]
        lib.moba_forward.argtypes = [c_void_p, Stream, POINTER(ForwardArgs)]
        lib.moba_attend.argtypes = [c_void_p, Stream, POINTER(AttendArgs)]
        lib.moba_backward.argtypes = [c_void_p, Stream, POINTER(BackwardArgs)]
        _loaded = lib
    return _loaded


def check(status):
    if status:
        raise Error(status, library().moba_last_error().decode())


def version():
    return library().moba_version().decode()


class Context:
    """moba_context_create(): one backend on one device."""

    def __init__(self, backend=None, device=-1, n_threads=0):
        options = _ContextOptions(ctypes.sizeof(_ContextOptions), backend.encode() if backend else None, device, n_threads,
                                  None)
        self.handle = c_void_p()
        check(library().moba_context_create(byref(options), byref(self.handle)))

    def __del__(self):
        if getattr(self, "handle", None):
            library().moba_context_destroy(self.handle)


class Plan:
    """moba_plan_create(): keeps its context alive."""

    def __init__(self, context, problem):
        self.context = context
        self.handle = c_void_p()
        check(library().moba_plan_create(context.handle, byref(problem), byref(self.handle)))
        self.workspace_bytes = self._size(library().moba_plan_workspace)
        self.saved_bytes = self._size(library().moba_plan_saved)

    def _size(self, query):
        size = c_size_t()
        check(query(self.handle, byref(size)))
        return size.value

    def kernel(self, stage):
        name = library().moba_plan_kernel(self.handle, stage.encode())
        return name.decode() if name else None

    def explain(self):
        text = ctypes.create_string_buffer(1 << 16)
        check(library().moba_plan_explain(self.handle, text, len(text)))
        return text.value.decode()

    def forward(self, args, stream=None):
        check(library().moba_forward(self.handle, Stream(stream), byref(args)))

    def attend(self, args, stream=None):
        check(library().moba_attend(self.handle, Stream(stream), byref(args)))

    def backward(self, args, stream=None):
        check(library().moba_backward(self.handle, Stream(stream), byref(args)))

    def __del__(self):
        if getattr(self, "handle", None):
            library().moba_plan_destroy(self.handle)
