"""What is asked: one cell of the table is a family, a mode of thinking and, for recall, a length of the list."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace

from nano_data import DEFAULT_MIX, FAMILIES, MODES, Check, Example, Mix, Mode, stream
from nano_data.draw import Draw
from nano_data.records import Draft
from nano_data.render import default_renderer
from nano_data.stream import make_draft

EVALUATION_SEED = 2026
LISTS = {"2k": 1_900, "4k": 3_800, "16k": 15_800}  # tokens of the recalled list
QUESTIONS = 6  # asked of every long list, one after the other, in one conversation


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """One cell of `count` prompts. Rule: in a cell with long lists it is a multiple of QUESTIONS."""

    family: str
    mode: Mode
    length: str = ""
    count: int

    @property
    def task(self) -> str:
        """The row of the table."""
        return f"{self.family} {self.length}".strip()

    def mix(self) -> Mix:
        """What the stream is made of."""
        mix = replace(DEFAULT_MIX, families={self.family: 1.0}, modes={self.mode: 1.0}, max_tokens=2048)
        if not self.length:
            return mix
        tokens = LISTS[self.length]
        return replace(mix, recall_tokens=(tokens, tokens), max_questions=QUESTIONS, max_tokens=2 * tokens)

    def groups(self) -> list[list[Example]]:
        """The conversations of this cell, from the held-out split; those of a group go on from each other."""
        if self.length:
            return list(itertools.islice(self._long_lists(), self.count // QUESTIONS))
        seed = EVALUATION_SEED + MODES.index(self.mode)  # other prompts for each mode
        return [[example] for example in itertools.islice(stream(seed, "eval", self.mix()), self.count)]

    def examples(self) -> list[Example]:
        """All conversations, group by group."""
        return [example for group in self.groups() for example in group]

    def _long_lists(self) -> Iterator[list[Example]]:
        """Yield lists with QUESTIONS questions; every question is graded, with the right answers before it."""
        for number in itertools.count():
            draw = Draw(f"{EVALUATION_SEED}/{self.task}/{self.mode}/{number}", "eval")
            draft, fields = make_draft(draw, self.family, self.mode, self.mix())
            if len(draft.turns) == QUESTIONS:
                parts = (until(draft, count) for count in range(1, QUESTIONS + 1))
                yield [default_renderer().render(self.family, self.mode, part, fields) for part in parts]


def until(draft: Draft, num_turns: int) -> Draft:
    """Return the beginning of a conversation, to be graded by the last answer of it."""
    turns = draft.turns[:num_turns]
    return replace(draft, turns=turns, check=Check(kind="text", texts=frozenset((turns[-1].content,))))


def all_cells(count: int) -> list[Cell]:
    """Every cell with `count` prompts; fewer where they are long."""
    cells = [Cell(family=family, mode=mode, count=count) for family in FAMILIES for mode in MODES]
    for length, share in (("2k", 8), ("4k", 8), ("16k", 16)):
        lists = max(count // share, 1)
        cells += [Cell(family="recall", mode=mode, length=length, count=lists * QUESTIONS) for mode in MODES]
    return cells


def short_cells(count: int) -> list[Cell]:
    """The cells without long lists."""
    return [cell for cell in all_cells(count) if not cell.length]
