"""Parameters of tools and fields of JSON objects: their names and schemas, and how a user gives their values."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from nano_data import lexicon
from nano_data.draw import Draw
from nano_data.records import Json
from nano_data.wordings import read_toml, wordings

ANYTHING = 10**6  # values of this kind are divided between the splits one by one
MIN_DIVIDED = 100  # fewer combinations of values than these occur in both splits
GENERIC, FLAG_ON, FLAG_OFF = wordings("generic"), wordings("flag_on"), wordings("flag_off")
GIVINGS = {name: tuple(text.split("|")) for name, text in read_toml("givings").items()}
ASIDES = wordings("asides").train


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of parameter.

    Rule: `train` and `held_out` are natural ways to give it; the generic ones always fit too.
          A quoted one is free text.
    """

    names: tuple[str, ...]
    schema: dict[str, Json]
    sample: Callable[[Draw], Json]
    num_values: int = ANYTHING
    is_quoted: bool = False
    train: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Slot:
    """A parameter of one tool."""

    name: str
    kind: Kind

    @property
    def words(self) -> str:
        """The name as a user writes it."""
        return self.name.replace("_", " ")


def _text(names: str, make: Callable[[Draw], str], train: str = "", held_out: str = "") -> Kind:
    return Kind(
        names=tuple(names.split()),
        schema={"type": "string"},
        sample=lambda draw: draw.own(lambda: make(draw)),
        is_quoted='"' in train,
        train=tuple(filter(None, train.split("|"))),
        held_out=tuple(filter(None, held_out.split("|"))),
    )


def _whole(names: str, low: int, high: int, train: str = "", held_out: str = "") -> Kind:
    def sample(draw: Draw) -> int:
        if high < 100:
            return draw.number(low, high)
        return draw.own(lambda: draw.number(low, high))

    return Kind(
        names=tuple(names.split()),
        schema={"type": "integer"},
        sample=sample,
        num_values=ANYTHING if high >= 100 else high - low + 1,
        train=tuple(filter(None, train.split("|"))),
        held_out=tuple(filter(None, held_out.split("|"))),
    )


def _real(names: str, high: int, train: str = "", held_out: str = "") -> Kind:
    return Kind(
        names=tuple(names.split()),
        schema={"type": "number"},
        sample=lambda draw: draw.own(lambda: draw.number(1, high) + draw.integer(1, 9) / 10),
        train=tuple(filter(None, train.split("|"))),
        held_out=tuple(filter(None, held_out.split("|"))),
    )


def _choice(names: str, options: str, train: str = "", held_out: str = "") -> Kind:
    values = options.split()
    return Kind(
        names=tuple(names.split()),
        schema={"type": "string", "enum": values},
        sample=lambda draw: draw.pick(values),
        num_values=len(values),
        train=tuple(filter(None, train.split("|"))),
        held_out=tuple(filter(None, held_out.split("|"))),
    )


def _flag(names: str) -> Kind:
    return Kind(
        names=tuple(names.split()), schema={"type": "boolean"}, sample=lambda draw: draw.chance(0.5), num_values=2
    )


def _words(names: str, make: Callable[[Draw], str]) -> Kind:
    def sample(draw: Draw) -> list[str]:
        return draw.own(lambda: list(dict.fromkeys(make(draw) for _ in range(draw.integer(2, 4)))), json.dumps)

    return Kind(names=tuple(names.split()), schema={"type": "array", "items": {"type": "string"}}, sample=sample)


def _wholes(names: str, high: int) -> Kind:
    def sample(draw: Draw) -> list[int]:
        return draw.own(lambda: [draw.number(1, high) for _ in range(draw.integer(2, 4))], json.dumps)

    return Kind(names=tuple(names.split()), schema={"type": "array", "items": {"type": "integer"}}, sample=sample)


KINDS: dict[str, Kind] = {
    "place": _text(
        "city location place town", lexicon.place, "in {v}|at {v}|near {v}", "over in {v}|somewhere near {v}"
    ),
    "origin": _text("origin from_city start", lexicon.place, "from {v}|leaving {v}", "coming from {v}"),
    "target": _text("destination to_city goal", lexicon.place, "to {v}|going to {v}", "all the way to {v}"),
    "person": _text(
        "name customer guest person", lexicon.person, "for {v}|in the name of {v}|under {v}", "for a person called {v}"
    ),
    "recipient": _text("recipient contact receiver", lexicon.person, "to {v}|for {v}", "addressed to {v}"),
    "owner": _text("owner author assignee", lexicon.person, "by {v}|owned by {v}", "that is owned by {v}"),
    "email": _text("email address mail", lexicon.email, "to {v}|at {v}", "at the address {v}"),
    "title": _text(
        "title subject label topic", lexicon.phrase, 'called "{v}"|titled "{v}"|about "{v}"', 'that is named "{v}"'
    ),
    "message": _text("message text body note", lexicon.phrase, 'saying "{v}"|with the text "{v}"', 'that reads "{v}"'),
    "query": _text("query keyword term search", lexicon.phrase, 'for "{v}"|matching "{v}"', 'containing "{v}"'),
    "code": _text("id code number sku key", lexicon.code, "{v}|number {v}", "with the number {v}"),
    "file": _text("path file file_name", lexicon.file_name, "at {v}|{v}|in {v}", "in the file {v}"),
    "label": _text("tag branch version alias", lexicon.label, "{v}|on {v}", "on the one called {v}"),
    "date": _text("date day due_date", lexicon.date, "on {v}|for {v}", "on the day {v}"),
    "until": _text("end_date until deadline", lexicon.date, "until {v}|by {v}", "until the day {v}"),
    "time": _text("time start_time hour", lexicon.clock, "at {v}|from {v}", "from {v} on"),
    "people": _whole("people guests seats passengers", 1, 20, "for {v} people|for {v}", "for a group of {v} people"),
    "count": _whole("count quantity amount units", 1, 99, "{v} times|{v} pieces", "{v} pieces in all"),
    "limit": _whole("limit max_results top", 1, 50, "at most {v}|only {v}", "at the most {v}"),
    "days": _whole("days nights duration", 1, 30, "for {v} days|for the next {v} days", "for {v} days in all"),
    "minutes": _whole("minutes delay timeout", 1, 90, "for {v} minutes|in {v} minutes", "for {v} minutes in all"),
    "level": _whole("level percent brightness volume", 0, 99, "to {v}|at {v} percent", "up to {v} percent"),
    "port": _whole("port size memory", 100, 9999, "with {v}", "with just {v}"),
    "year": _whole("year", 1900, 2099, "from {v}|of {v}", "from the year {v}"),
    "price": _real("price max_price cost total", 900, "for {v} euros|under {v}", "for not more than {v}"),
    "weight": _real("weight width height distance", 90, "of {v}", "of about {v}"),
    "unit": _choice("unit units", "celsius fahrenheit kelvin", "in {v}", "all in {v}"),
    "currency": _choice("currency", "EUR USD GBP JPY CHF", "in {v}", "all in {v}"),
    "priority": _choice("priority importance", "low normal high", "with {v} priority", "as {v} priority"),
    "color": _choice("color colour", "red green blue white black yellow", "in {v}", "all in {v}"),
    "format": _choice("format type output", "pdf csv json text", "as {v}", "as a {v} file"),
    "language": _choice("language lang", "english german french spanish italian", "in {v}", "all in {v}"),
    "class": _choice("class tier seat_class", "economy business first", "in {v} class", "all in {v} class"),
    "size": _choice("size scale", "small medium large", "in {v}", "all in {v}"),
    "room": _choice(
        "room area zone", "kitchen bedroom office garage bathroom hall", "in the {v}|for the {v}", "over in the {v}"
    ),
    "flag": _flag("urgent private recurring express gift"),
    "extra": _flag("breakfast insurance parking details history"),
    "switch": _flag("verbose recursive force dry_run notify"),
    "tags": _words("tags labels keywords", lexicon.noun),
    "items": _words("items products ingredients", lexicon.noun),
    "people_list": _words("names attendees members", lexicon.person),
    "numbers": _wholes("ids numbers pages", 99),
    "scores": _wholes("scores values readings", 999),
}
KINDS = {name: replace(kind, train=(*kind.train, *GIVINGS.get(name, ()))) for name, kind in KINDS.items()}
UNNAMED = ("title", "code", "label", "place", "count", "price", "flag", "numbers", "tags", "port", "date")


def make_slot(draw: Draw, kind: str) -> Slot:
    """Return a parameter of this kind, or now and then one with a name and options that only its schema explains."""
    if not draw.chance(0.12):
        return Slot(draw.pick(KINDS[kind].names), KINDS[kind])
    name = lexicon.noun(draw) if draw.chance(0.5) else lexicon.label(draw).replace("-", "_")
    if draw.chance(0.2):
        return Slot(name, _choice(name, " ".join(draw.sample(lexicon.NOUNS, draw.integer(2, 4)))))
    return Slot(name, replace(KINDS[draw.pick(UNNAMED)], names=(name,), train=(), held_out=()))


def make_slots(draw: Draw, kinds: Sequence[str], count: int) -> tuple[Slot, ...]:
    """Return up to `count` parameters with different names."""
    slots: dict[str, Slot] = {}
    for kind in draw.sample(kinds, min(count, len(kinds))):
        slot = make_slot(draw, kind)
        slots.setdefault(slot.name, slot)
    return tuple(slots.values())


def sample_all(draw: Draw, slots: Sequence[Slot], title: str = "") -> dict[str, Json]:
    """Return a value for each slot.

    Rule: a value that can be anything belongs to the split of `draw`. Where all are small, it is the values together
          with the title, unless they are too few to divide.
    """

    def sample() -> dict[str, Json]:
        return {slot.name: slot.kind.sample(draw) for slot in slots}

    sizes = [slot.kind.num_values for slot in slots]
    if max(sizes) >= ANYTHING or math.prod(sizes) < MIN_DIVIDED:
        return sample()
    return draw.own(sample, lambda found: f"{title} {json.dumps(found)}")


def say_list(values: list[Json]) -> str:
    """Return values as in a sentence: a, b and c."""
    texts = [str(value) for value in values]
    return ", ".join(texts[:-1]) + " and " + texts[-1] if len(texts) > 1 else "".join(texts)


def say(draw: Draw, slot: Slot, value: Json) -> str:
    """Return words by which a user gives this value for this slot."""
    if isinstance(value, bool):
        return draw.wording(FLAG_ON if value else FLAG_OFF).format(words=slot.words)
    natural = slot.kind.train if draw.split == "train" else slot.kind.held_out
    if natural and draw.chance(0.65):
        template = draw.pick(natural)
        draw.wordings.append(template)
    else:
        template = draw.wording(GENERIC)
    text = say_list(value) if isinstance(value, list) else str(value)
    if slot.kind.is_quoted and '"' not in template:
        text = f'"{text}"'
    said = template.format(words=slot.words, v=text)
    return draw.pick(ASIDES).format(s=said) if draw.split == "train" and draw.chance(0.15) else said
