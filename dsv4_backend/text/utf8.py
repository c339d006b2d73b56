"""Where a stream of bytes may be cut so that the pieces decode to the same text as the whole."""

from __future__ import annotations

# Lead byte → (length of the sequence, lowest and highest second byte). Source: Unicode 15, table 3-7.
_SECOND_BYTES = {
    0xE0: (3, 0xA0, 0xBF),
    0xED: (3, 0x80, 0x9F),
    0xF0: (4, 0x90, 0xBF),
    0xF4: (4, 0x80, 0x8F),
}


def complete_length(data: bytes) -> int:
    """Return how many bytes may be decoded now: all but a trailing valid beginning of a character.

    Rule: at most 3 bytes are held back. Bytes that can no longer become a character are complete at once, one U+FFFD
          per maximal subpart, which is what Python and the tokenizers library do.
    """
    size = len(data)
    for held in range(1, min(3, size) + 1):
        lead = data[size - held]
        if 0x80 <= lead <= 0xBF:
            continue
        return size - held if _may_continue(lead, data[size - held + 1 :]) else size
    return size


def _may_continue(lead: int, rest: bytes) -> bool:
    """True if `lead` and the continuation bytes after it are the unfinished beginning of a character."""
    if not 0xC2 <= lead <= 0xF4:
        return False
    length = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
    length, lowest, highest = _SECOND_BYTES.get(lead, (length, 0x80, 0xBF))
    if rest and not lowest <= rest[0] <= highest:
        return False
    return len(rest) + 1 < length
