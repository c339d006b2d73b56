"""Logprobs in the form of OpenAI's completions API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dsv4_backend.records import TokenLogprob
from dsv4_backend.text import Vocabulary

Body = dict[str, Any]


class LogprobWriter:
    """Writes the logprobs of one answer piece by piece, and all of them at the end.

    Rule: the first token of an echoed prompt has no logprob. Offsets count characters from the beginning of the text.
    """

    def __init__(self, vocabulary: Vocabulary, prompt_ids: Sequence[int]) -> None:
        self._vocabulary = vocabulary
        self._head = list(prompt_ids[:1])
        self._offset = 0
        self._all: Body = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}

    def write(self, prompt: Sequence[TokenLogprob], tokens: Sequence[TokenLogprob]) -> Body | None:
        """Return the next piece, or None when there is nothing new."""
        piece: Body = {"tokens": [], "token_logprobs": [], "top_logprobs": [], "text_offset": []}
        if prompt and self._head:
            self._add(piece, self._head.pop(), None, None)
        for item in (*prompt, *tokens):
            top = {self._spell(token_id): logprob for token_id, logprob in item.top}
            self._add(piece, item.token_id, item.logprob, top or {self._spell(item.token_id): item.logprob})
        for name, values in piece.items():
            self._all[name] += values
        return piece if piece["tokens"] else None

    def whole(self) -> Body:
        """Return everything that was written."""
        return self._all

    def _add(self, piece: Body, token_id: int, logprob: float | None, top: Body | None) -> None:
        spelled = self._spell(token_id)
        piece["tokens"].append(spelled)
        piece["token_logprobs"].append(logprob)
        piece["top_logprobs"].append(top)
        piece["text_offset"].append(self._offset)
        if token_id not in self._vocabulary.special_ids:  # marks of structure are no part of the text
            self._offset += len(self._vocabulary.token_bytes(token_id).decode("utf-8", "ignore"))

    def _spell(self, token_id: int) -> str:
        """A token that is no whole text is spelled by its bytes, as OpenAI does."""
        data = self._vocabulary.token_bytes(token_id)
        try:
            return data.decode("utf-8")
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)
