"""A build of ggml through ctypes: the few functions that one attention needs.

There is no package of it; `--ggml PATH` names a libggml.so (its companions lie beside it). Without
one the import fails, and the provider's row says so.
"""

from __future__ import annotations

import ctypes
import os
from ctypes import c_bool, c_char_p, c_float, c_int, c_int64, c_size_t, c_void_p
from pathlib import Path
from typing import Any

from peers_ggml import PATH_VARIABLE

# enum ggml_type
F32, F16, BF16 = 0, 1, 30


class InitParams(ctypes.Structure):
    """struct ggml_init_params"""

    _fields_ = (("mem_size", c_size_t), ("mem_buffer", c_void_p), ("no_alloc", c_bool))


# name -> (result, arguments)
_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "ggml_version": (c_char_p, []),
    "ggml_init": (c_void_p, [InitParams]),
    "ggml_free": (None, [c_void_p]),
    "ggml_new_tensor_4d": (c_void_p, [c_void_p, c_int, *[c_int64] * 4]),
    "ggml_get_data": (c_void_p, [c_void_p]),
    "ggml_nbytes": (c_size_t, [c_void_p]),
    "ggml_flash_attn_ext": (c_void_p, [*[c_void_p] * 5, *[c_float] * 3]),
    "ggml_new_graph": (c_void_p, [c_void_p]),
    "ggml_build_forward_expand": (None, [c_void_p, c_void_p]),
    "ggml_tensor_overhead": (c_size_t, []),
    "ggml_graph_overhead": (c_size_t, []),
    "ggml_backend_cpu_init": (c_void_p, []),
    "ggml_backend_cpu_set_n_threads": (None, [c_void_p, c_int]),
    "ggml_backend_graph_compute": (c_int, [c_void_p, c_void_p]),
    "ggml_backend_free": (None, [c_void_p]),
}


def _load() -> ctypes.CDLL:
    path = os.environ.get(PATH_VARIABLE)
    if not path:
        raise ImportError("no build of ggml was named; pass --ggml PATH/libggml.so")
    try:
        # In the order of their dependences: a build tree has no run path to rely on.
        beside = Path(path).resolve().parent
        for name in ("libggml-base.so", "libggml-cpu.so"):
            if (beside / name).exists():
                ctypes.CDLL(str(beside / name), mode=ctypes.RTLD_GLOBAL)
        library = ctypes.CDLL(path, mode=ctypes.RTLD_GLOBAL)
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise ImportError(f"{path} cannot be used: {error}") from error
    return library


library = _load()
__version__ = library.ggml_version().decode()
