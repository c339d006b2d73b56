"""Tool questions of the bundled model's own kind, from the held-out part of its data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from nano_data.draw import Draw
from nano_data.stream import make_draft


@dataclass(frozen=True)
class Question:
    """A user's words, the tools, and what the right tool gives back."""

    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    result: str


def questions(count: int) -> Iterator[Question]:
    """Yield questions that want a call in the first turn."""
    for number in range(count * 4):
        draft, _ = make_draft(Draw(f"gateway/{number}", "eval"), "tools", "off")
        turn, after = draft.turns[0], draft.turns[1:]
        if not turn.calls or not after or not after[0].results:
            continue
        system = [{"role": "system", "content": draft.system}] if draft.system else []
        yield Question([*system, {"role": "user", "content": turn.user}], list(draft.tools), after[0].results[0])
