"""The endless, seeded stream of conversations: example number i depends on the seed, the split and i alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace

from nano_data import calling, everyday, exact, filling, talk
from nano_data.draw import Draw, weighted
from nano_data.records import DEFAULT_MIX, Draft, Example, Json, Mix, Mode, Split
from nano_data.render import MODE_FIELDS, Renderer, default_renderer

GENERATORS: dict[str, Callable[[Draw, Mode, Mix], Draft]] = {
    "tools": calling.make_tools,
    "greet": talk.make_greet,
    "unknown": talk.make_unknown,
    "arithmetic": exact.make_arithmetic,
    "json": filling.make_json,
    "sort": exact.make_sort,
    "copy": exact.make_copy,
    "parallel": calling.make_parallel,
    "recall": exact.make_recall,
    "everyday": everyday.make_everyday,
}
LIGHT = ("greet", "unknown", "arithmetic", "sort", "copy")
FAMILIES = tuple(GENERATORS)


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
    draft = GENERATORS[family](draw, mode, mix)
    if family in LIGHT and draw.chance(0.25):
        draft = precede(draw, draft, mode, mix)
    return draft, fields


def precede(draw: Draw, draft: Draft, mode: Mode, mix: Mix) -> Draft:
    """Return the draft with an earlier exchange about something else."""
    before = GENERATORS[draw.pick(LIGHT)](draw, mode, mix).turns
    return replace(draft, turns=before + draft.turns, values=tuple(draw.values), wordings=tuple(draw.wordings))
