"""Family "json": fill an object to the schema that the request carries, from the user's text."""

from __future__ import annotations

import json

from nano_data.calling import capital, join_said
from nano_data.draw import Draw
from nano_data.records import Check, Draft, Json, Mix, Mode, Turn
from nano_data.slots import make_slots, sample_all, say
from nano_data.tooling import DOMAINS, article
from nano_data.wordings import wordings

HEADS, SUBJECTS = wordings("json_heads"), wordings("json_subjects")


def make_json(draw: Draw, mode: Mode, _mix: Mix) -> Draft:
    """Return a text and a schema; the answer is the object, its keys in the order of the schema."""
    domain = draw.pick(DOMAINS)
    slots = {slot.name: slot for slot in make_slots(draw, domain.kinds, draw.integer(2, 5))}
    values = sample_all(draw, list(slots.values()))
    said = [say(draw, slot, values[name]) for name, slot in slots.items()]
    if draw.chance(0.4):
        said = draw.sample(said, len(said))
    subject = draw.wording(SUBJECTS).format(a=article(draw.pick(domain.nouns)))
    text = join_said(draw, [subject, *said])
    schema = {
        "type": "object",
        "properties": {name: slot.kind.schema for name, slot in slots.items()},
        "required": list(slots),
    }
    turn = Turn(
        user=capital(draw.wording(HEADS).format(t=text) + "."),
        reasoning=think_json(values, mode),
        content=json.dumps(values, ensure_ascii=False),
    )
    return Draft(
        turns=(turn,),
        check=Check(kind="json", value=values),
        values=tuple(draw.values),
        wordings=tuple(draw.wordings),
        schema=schema,
    )


def think_json(values: dict[str, Json], mode: Mode) -> str:
    """Return the reasoning before the object."""
    if mode == "off":
        return ""
    text = f"The schema asks for {', '.join(values)}."
    return text + " I take each value from the text as it stands." if mode == "max" else text
