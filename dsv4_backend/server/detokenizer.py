"""dsv4_detokenizer without Triton's types: the ids of a response become its text. No state is kept."""

from __future__ import annotations

from collections.abc import Mapping

from dsv4_backend.errors import RequestError
from dsv4_backend.server.codec import Array, decode_inputs, text_array
from dsv4_backend.server.wire import TEXT_INPUTS
from dsv4_backend.text import Vocabulary, decode_chunk


def make_text(vocabulary: Vocabulary, tensors: Mapping[str, Array]) -> dict[str, Array]:
    """Return `text_output`. Raises: RequestError for ranges that no runtime sends."""
    values = decode_inputs(tensors, TEXT_INPUTS)
    ids, skip_bytes, keep_bytes = (values[item.name] for item in TEXT_INPUTS)
    if not isinstance(ids, tuple) or not 0 <= int(str(skip_bytes)) <= int(str(keep_bytes)):
        raise RequestError(f"skip_bytes is {skip_bytes} and keep_bytes {keep_bytes} but must rise from 0.")
    text_ids = [int(item) for item in ids]
    return {"text_output": text_array(decode_chunk(vocabulary, text_ids, int(str(skip_bytes)), int(str(keep_bytes))))}
