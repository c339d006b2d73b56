"""How far apart two wordings are."""

from __future__ import annotations

import re


def plain_words(text: str) -> list[str]:
    """The words of a wording in small letters and without punctuation."""
    return re.sub(r"[^a-z{}+= -]", "", text.lower()).split()


def words_apart(first: str, second: str) -> int:
    """The words to be changed, added or taken away to come from one wording to the other."""
    left, right = plain_words(first), plain_words(second)
    row = list(range(len(right) + 1))
    for i, word in enumerate(left, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(right, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (word != other))
    return row[-1]
