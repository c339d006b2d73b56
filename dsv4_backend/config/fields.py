"""Read typed fields out of a JSON object and collect every problem, so that a user sees them all at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

Number = TypeVar("Number", int, float)


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean …?)" for the nearest known name, or an empty string."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


class Fields:
    """A JSON object being read: remembers which keys were used and what was wrong with them."""

    def __init__(self, values: Mapping[str, object]) -> None:
        self.values = values
        self.problems: list[str] = []
        self.used: set[str] = set()

    def get(self, *names: str) -> object:
        """Return the first of `names` that is present and not null, and mark all of them as known."""
        self.used.update(names)
        return next((self.values[name] for name in names if self.values.get(name) is not None), None)

    def integer(self, *names: str, default: int | None = None, minimum: int = 1) -> int:
        """Read an int of at least `minimum`; a missing one without default is a problem."""
        return self._number(names, default, minimum, int)

    def real(self, *names: str, default: float | None = None, minimum: float = 0.0) -> float:
        """Read a float of at least `minimum`; a missing one without default is a problem."""
        return self._number(names, default, minimum, float)

    def text(self, *names: str, default: str = "") -> str:
        """Read a string."""
        value = self.get(*names)
        if value is None:
            return default
        if not isinstance(value, str):
            self.problems.append(f"{names[0]} is {value!r} but must be a string.")
            return default
        return value

    def integers(self, *names: str) -> tuple[int, ...] | None:
        """Read a list of ints, or None when absent."""
        value = self.get(*names)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, int) for item in value):
            self.problems.append(f"{names[0]} is {value!r} but must be a list of integers.")
            return None
        return tuple(value)

    def names(self, *names: str) -> tuple[str, ...] | None:
        """Read a list of strings, or None when absent."""
        value = self.get(*names)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.problems.append(f"{names[0]} is {value!r} but must be a list of strings.")
            return None
        return tuple(value)

    def section(self, *names: str) -> Mapping[str, object]:
        """Read a nested object; an absent one is empty."""
        value = self.get(*names)
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.problems.append(f"{names[0]} is {value!r} but must be an object.")
            return {}
        return value

    def require(self, name: str, allowed: tuple[object, ...]) -> None:
        """Refuse a present value that this runtime does not implement."""
        value = self.get(name)
        if value is not None and value not in allowed:
            wanted = " or ".join(repr(item) for item in allowed)
            self.problems.append(f"{name} is {value!r}; this runtime implements {wanted}.")

    def adopt(self, name: str, section: Fields) -> None:
        """Take over the problems of a nested section, under its name."""
        self.problems += [f"{name}: {problem}" for problem in section.problems]

    def refuse_unknown(self, ignorable: Iterable[str]) -> None:
        """Name every key that was neither read nor known to be harmless."""
        known = self.used | set(ignorable)
        for name in sorted(set(self.values) - known):
            self.problems.append(f"unknown key {name}{nearest_name(name, known)}: refused rather than half-run.")

    def _number(self, names: tuple[str, ...], default: Number | None, minimum: Number, kind: type[Number]) -> Number:
        value = self.get(*names)
        if value is None:
            if default is None:
                self.problems.append(f"{names[0]} is missing.")
                return minimum
            return default
        accepted = (int,) if kind is int else (int, float)
        if isinstance(value, bool) or not isinstance(value, accepted) or value < minimum:
            self.problems.append(f"{names[0]} is {value!r} but must be a {kind.__name__} of at least {minimum}.")
            return minimum
        return kind(value)
