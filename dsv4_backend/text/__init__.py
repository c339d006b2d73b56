"""Text on both ends of the story: prompts to ids, ids to text, and where a stream of bytes may be cut."""

from dsv4_backend.text.decode import decode_chunk, join_bytes
from dsv4_backend.text.encode import TextEncoder
from dsv4_backend.text.stop import StopMatcher, StopState
from dsv4_backend.text.utf8 import complete_length
from dsv4_backend.text.vocab import Vocabulary

__all__ = [
    "StopMatcher",
    "StopState",
    "TextEncoder",
    "Vocabulary",
    "complete_length",
    "decode_chunk",
    "join_bytes",
]
