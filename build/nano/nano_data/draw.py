"""Random choice that keeps the two splits apart: every wording and every value belongs to one of them."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from nano_data.records import Split

T = TypeVar("T")
K = TypeVar("K")
HELD_OUT_SHARE = 8  # one value in this many is for evaluation
MAX_TRIES = 2000


@dataclass(frozen=True, slots=True)
class Wordings:
    """Templates for training and templates that occur in evaluation only."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]

    def of(self, split: Split) -> tuple[str, ...]:
        """Return the templates of one split."""
        return self.held_out if split == "eval" else self.train

    def only(self, keep: Callable[[str], bool]) -> Wordings:
        """Return those templates that may be kept."""
        return Wordings(*(tuple(filter(keep, part)) for part in (self.train, self.held_out)))


def owner(value: str) -> Split:
    """Return the split to which a value belongs, by a hash of its lower-case text."""
    digest = hashlib.blake2b(value.lower().encode(), digest_size=4).digest()
    return "eval" if int.from_bytes(digest, "little") % HELD_OUT_SHARE == 0 else "train"


class Draw:
    """A seeded source of choices for one conversation; remembers which wordings and values it gave."""

    def __init__(self, seed: str, split: Split) -> None:
        self._random = random.Random(seed)
        self.split: Split = split
        self.values: list[str] = []
        self.wordings: list[str] = []

    def integer(self, low: int, high: int) -> int:
        """Return a whole number from low to high, both included."""
        return low + int(self._random.random() * (high - low + 1))

    def number(self, low: int, high: int) -> int:
        """Return a whole number whose digits are to be copied: in training one in four repeats a digit, as 442 does."""
        digits = str(self.integer(low, high))
        if self.split == "eval" or len(digits) == 1 or not self.chance(0.25):
            return int(digits)
        place = self.integer(1, len(digits) - 1)
        doubled = int(digits[:place] + digits[place - 1] + digits[place + 1 :])
        return doubled if low <= doubled <= high else int(digits)

    def chance(self, probability: float) -> bool:
        """Return true with this probability."""
        return self._random.random() < probability

    def real(self) -> float:
        """Return a number in [0, 1)."""
        return self._random.random()

    def pick(self, items: Sequence[T]) -> T:
        """Return one item."""
        return items[int(self._random.random() * len(items))]

    def sample(self, items: Sequence[T], count: int) -> list[T]:
        """Return `count` different items in random order."""
        return self._random.sample(items, count)

    def wording(self, wordings: Wordings) -> str:
        """Return a template of this split."""
        found = self.pick(wordings.of(self.split))
        self.wordings.append(found)
        return found

    def casual(self, text: str) -> str:
        """Return the text as it is, or now and then as people type it: with a small first letter, without its end."""
        if self.chance(0.2):
            text = text[0].lower() + text[1:]
        return text.rstrip(".?!") if self.chance(0.2) else text

    def own(self, make: Callable[[], T], key: Callable[[T], str] = str) -> T:
        """Return what `make` gives, repeated until its key belongs to this split.

        Raises: ValueError if that never happens.
        """
        num_before = len(self.values)
        for _ in range(MAX_TRIES):
            del self.values[num_before:]  # what a refused try has drawn
            made = make()
            text = key(made)
            if owner(text) == self.split:
                self.values.append(text)
                return made
        raise ValueError(f"no {self.split} value in {MAX_TRIES} tries. Widen the generator.")


def weighted(draw: Draw, weights: Mapping[K, float]) -> K:
    """Return one key, by weight."""
    point = draw.real() * sum(weights.values())
    for key, weight in weights.items():
        point -= weight
        if point < 0:
            return key
    return key
