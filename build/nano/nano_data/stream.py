"""The endless, seeded stream of conversations: example number i depends on the seed, the split and i alone."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from nano_data import calling, exact, filling, talk
from nano_data.draw import Draw, weighted
from nano_data.records import Draft, Example, Json, Mode, Split
from nano_data.render import MODE_FIELDS, Renderer, default_renderer

GENERATORS: dict[str, Callable[[Draw, Mode], Draft]] = {
    "tools": calling.make_tools,
    "greet": talk.make_greet,
    "unknown": talk.make_unknown,
    "arithmetic": exact.make_arithmetic,
    "json": filling.make_json,
    "sort": exact.make_sort,
    "copy": exact.make_copy,
    "parallel": calling.make_parallel,
}
LIGHT = ("greet", "unknown", "arithmetic", "sort", "copy")
FAMILIES = (*GENERATORS, "recall")


def _family_weights() -> dict[str, float]:
    light = {"greet": 1.5, "unknown": 2.0, "sort": 2.0, "copy": 1.5}
    return {"tools": 4.0, "recall": 3.0, "arithmetic": 4.0, "json": 2.0, "parallel": 1.5, **light}


def _mode_weights() -> dict[Mode, float]:
    return {"off": 0.5, "on": 0.35, "max": 0.15}


@dataclass(frozen=True, slots=True, kw_only=True)
class Mix:
    """What a stream is made of: weights of families and modes, the length of recalled lists and how many
    questions follow them at most, the longest example."""

    families: Mapping[str, float] = field(default_factory=_family_weights)
    modes: Mapping[Mode, float] = field(default_factory=_mode_weights)
    recall_tokens: tuple[int, int] = (10, 700)
    max_questions: int = 12
    max_tokens: int = 2048


DEFAULT_MIX = Mix()


def stream(
    seed: int, split: Split, mix: Mix = DEFAULT_MIX, *, start: int = 0, step: int = 1, renderer: Renderer | None = None
) -> Iterator[Example]:
    """Yield examples without end.

    Rule: `start` and `step` choose which numbers of the stream are made, so workers share one and a run resumes.
          Examples longer than mix.max_tokens are left out.
    """
    renderer = renderer or default_renderer()
    for number in itertools.count(start, step):
        example = make_example(f"{seed}/{split}/{number}", split, mix, renderer)
        if len(example.token_ids) <= mix.max_tokens:
            yield example


def make_example(seed: str, split: Split, mix: Mix = DEFAULT_MIX, renderer: Renderer | None = None) -> Example:
    """Return the one example that this seed names."""
    draw = Draw(seed, split)
    family, mode = weighted(draw, mix.families), weighted(draw, mix.modes)
    draft, fields = make_draft(draw, family, mode, mix)
    return (renderer or default_renderer()).render(family, mode, draft, fields)


def make_draft(draw: Draw, family: str, mode: Mode, mix: Mix = DEFAULT_MIX) -> tuple[Draft, dict[str, Json]]:
    """Return a conversation of a family as text, and the fields of its body that set the mode."""
    fields = draw.pick(MODE_FIELDS[mode])
    if family == "recall":
        low, high = mix.recall_tokens
        target = round(math.exp(math.log(low) + draw.real() * math.log(high / low)))
        return exact.make_recall(draw, mode, target, mix.max_questions), fields
    draft = GENERATORS[family](draw, mode)
    if family in LIGHT and draw.chance(0.25):
        draft = precede(draw, draft, mode)
    return draft, fields


def precede(draw: Draw, draft: Draft, mode: Mode) -> Draft:
    """Return the draft with an earlier exchange about something else."""
    before = GENERATORS[draw.pick(LIGHT)](draw, mode).turns
    return replace(draft, turns=before + draft.turns, values=tuple(draw.values), wordings=tuple(draw.wordings))
