"""dsv4_tokenizer without Triton's types: validate what the client sent, and turn it into ids and options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

import numpy as np

from dsv4_backend.errors import RequestError
from dsv4_backend.records import Prompt
from dsv4_backend.server.codec import (
    Array,
    Value,
    apply_options,
    check_prompt,
    decode_inputs,
    text_array,
)
from dsv4_backend.server.prepared import STOP, dump_prompt
from dsv4_backend.server.wire import CLIENT_INPUTS


class RawEncoder(Protocol):
    """Encodes raw prompts."""

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the ids of a text. Raises: RequestError."""


class BodyEncoder(Protocol):
    """Encodes API bodies."""

    def encode(self, protocol: str, body: str) -> Prompt:
        """Return the prompt that a request body asks for. Raises: RequestError."""


class PromptMaker:
    """One request's tensors in, the runtime's tensors out. Stateless."""

    def __init__(self, text: RawEncoder, chat: BodyEncoder, *, vocab_size: int) -> None:
        self._text = text
        self._chat = chat
        self._vocab_size = vocab_size

    def make(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """Return `input_ids` and `prepared`. Raises: RequestError."""
        values = decode_inputs(tensors, CLIENT_INPUTS)
        if values.get("stop"):
            return {"input_ids": np.zeros(0, np.int32), "prepared": text_array(STOP)}
        prompt = apply_options(self._encode(values), values)
        check_prompt(prompt, self._vocab_size)
        return {
            "input_ids": np.array(prompt.token_ids, np.int32),
            "prepared": text_array(dump_prompt(replace(prompt, token_ids=()))),
        }

    def _encode(self, values: Mapping[str, Value]) -> Prompt:
        text, body, protocol = (values.get(name) for name in ("text_input", "request", "protocol"))
        if text is not None and body is not None:
            raise RequestError("text_input and request are both there, but a request has one prompt. Send one of them.")
        if body is not None:
            return self._chat.encode("chat" if protocol is None else str(protocol), str(body))
        if protocol is not None:
            raise RequestError(f"protocol is {protocol!r} but request is missing. Send the API body as request.")
        if text is None:
            raise RequestError("there is no prompt. Send text_input, or request with protocol.")
        if not text:
            raise RequestError("text_input is empty but must have at least 1 character.")
        return Prompt(token_ids=self._text.encode(str(text)))
