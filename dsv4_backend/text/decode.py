"""Ids → text, without state: all that the detokenizer needs comes with the chunk."""

from __future__ import annotations

from collections.abc import Sequence

from dsv4_backend.text.vocab import Vocabulary


def join_bytes(vocab: Vocabulary, token_ids: Sequence[int]) -> bytes:
    """Return the bytes of a run of ids."""
    return b"".join(map(vocab.token_bytes, token_ids))


def decode_chunk(vocab: Vocabulary, text_ids: Sequence[int], skip_bytes: int, keep_bytes: int) -> str:
    """Return bytes [skip_bytes, keep_bytes) of the joined tokens as text; invalid bytes become U+FFFD."""
    return join_bytes(vocab, text_ids)[skip_bytes:keep_bytes].decode("utf-8", "replace")
