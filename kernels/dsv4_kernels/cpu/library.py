"""The compiled library with the type of every function."""

from __future__ import annotations

import ctypes
from ctypes import c_double, c_float, c_int, c_long, c_void_p
from pathlib import Path

from dsv4_kernels.errors import BuildError

# One letter per argument: p pointer, l long, d double, f float, i int; blanks part inputs, outputs, sizes and threads.
SIGNATURES = {
    "dsv4_linear": "ppp ll i i",
    "dsv4_rms_norm": "ppp llf i",
    "dsv4_rope_rotate": "pppp lll i",
    "dsv4_fp8_round_trip": "pp lll i",
    "dsv4_int8_round_trip": "pp lll i",
    "dsv4_fp4_round_trip": "pp lll i",
    "dsv4_hadamard": "pp llf i",
    "dsv4_compress_pool": "ppp lll i",
    "dsv4_hyper_maps": "pppp ppp lll ffl i",
    "dsv4_hyper_collapse": "ppp lll i",
    "dsv4_hyper_mix": "pppp p lll i",
    "dsv4_hyper_head": "pppp p lll ff i",
    "dsv4_route": "ppp pp lllf i",
    "dsv4_moe": "pppp pp p lll fii i",
    "dsv4_enter": "ppppp ppp lll ffl i",
    "dsv4_query": "pppppp pp lll f ii i",
    "dsv4_keys": "ppppp p ll f ii i",
    "dsv4_attention_output": "ppppp p llll i i",
    "dsv4_compress_inputs": "pppp p pp ll i i",
    "dsv4_feed_forward": "pppp pppppp p ll ff iii i",
    "dsv4_layer": "ppp p p i",
    "dsv4_backbone": "ppp p i",
    "dsv4_head": "pp p l i",
    "dsv4_compress_fold": "ppppppp p ll i",
    "dsv4_pack_rows": "p p lllll i",
    "dsv4_index_select": "ppppp p lllll i",
    "dsv4_sparse_attention": "ppppppp p lllll f i",
    "dsv4_sample_tokens": "ppppppp p lld i",
    "dsv4_plan_step": "pp p",
    "dsv4_take_step": "p",
}
TYPES = {"p": c_void_p, "l": c_long, "d": c_double, "f": c_float, "i": c_int}
WITH_STATUS = (
    "dsv4_route",
    "dsv4_moe",
    "dsv4_feed_forward",
    "dsv4_compress_inputs",
    "dsv4_index_select",
    "dsv4_sparse_attention",
    "dsv4_layer",
    "dsv4_backbone",
)


def load(path: Path) -> ctypes.CDLL:
    """Load the library; every function gets its argument types.

    Raises: BuildError if the file cannot be loaded or lacks a function.
    """
    try:
        library = ctypes.CDLL(str(path))
        for name, letters in SIGNATURES.items():
            function = getattr(library, name)
            function.argtypes = [TYPES[letter] for letter in letters.replace(" ", "")]
            function.restype = c_int if name in WITH_STATUS else None
    except (OSError, AttributeError) as error:
        raise BuildError(f"cannot load {path}: {error}. Remove it and run python -m dsv4_kernels.build.") from error
    return library
