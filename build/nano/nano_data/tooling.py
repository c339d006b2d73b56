"""Tools made from a grammar: what they act on, what they do, what they take and what they give back."""

from __future__ import annotations

from dataclasses import dataclass

from nano_data import lexicon
from nano_data.draw import Draw, Wordings
from nano_data.records import Json
from nano_data.slots import Slot, make_slots
from nano_data.wordings import WORDINGS, all_divided, read_toml


@dataclass(frozen=True, slots=True)
class Action:
    """Something a tool does: the verbs in its name, and how a user asks for it."""

    verbs: tuple[str, ...]
    phrases: Wordings


@dataclass(frozen=True, slots=True)
class Domain:
    """Things that share parameters, actions and results."""

    nouns: tuple[str, ...]
    kinds: tuple[str, ...]
    actions: tuple[str, ...]
    results: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """One tool as the prompt shows it, and what is needed to talk about it."""

    name: str
    noun: str
    action: Action
    slots: tuple[Slot, ...]
    required: tuple[str, ...]
    description: str
    results: tuple[str, ...]
    is_verbose: bool

    def schema(self) -> dict[str, Json]:
        """Return the function as a chat-completions body carries it."""
        function: dict[str, Json] = {"name": self.name}
        if self.description:
            function["description"] = self.description
        function["parameters"] = {
            "type": "object",
            "properties": {slot.name: self._property(slot) for slot in self.slots},
            "required": list(self.required),
        }
        return {"type": "function", "function": function}

    def _property(self, slot: Slot) -> dict[str, Json]:
        described = {"description": f"The {slot.words} of the {self.noun}"} if self.is_verbose else {}
        return slot.kind.schema | described


ACTIONS = {
    name: Action(tuple(WORDINGS["actions"][name]["verbs"].split()), phrases)
    for name, phrases in all_divided("actions").items()
}
DOMAINS = tuple(
    Domain(**{part: tuple(text.split()) for part, text in item.items()}) for item in read_toml("domains").values()
)
NAMINGS = ("snake", "snake", "snake", "camel", "kebab", "noun_first", "long")
FILLERS = ("current", "new", "my", "user", "full", "one", "daily", "next")
STATES = tuple(
    """active blocked clear closed confirmed delayed empty failed full idle late missing
     open paid pending ready shipped sunny rainy cloudy""".split()
)


def plural(noun: str) -> str:
    """Return the plural of a noun."""
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def article(noun: str) -> str:
    """Return a noun with its indefinite article."""
    return f"an {noun}" if noun[0] in "aeio" else f"a {noun}"


def make_tool(draw: Draw, domain: Domain, noun: str, action: str, max_slots: int = 4) -> Tool:
    """Return a tool that does `action` to `noun`."""
    slots = make_slots(draw, domain.kinds, draw.integer(1, max_slots))
    verb = draw.pick(ACTIONS[action].verbs)
    return Tool(
        name=tool_name(draw, verb, noun),
        noun=noun,
        action=ACTIONS[action],
        slots=slots,
        required=tuple(slot.name for index, slot in enumerate(slots) if index == 0 or draw.chance(0.7)),
        description=f"{verb.capitalize()} {article(noun)}" if draw.chance(0.4) else "",
        results=domain.results,
        is_verbose=draw.chance(0.08),
    )


def tool_name(draw: Draw, verb: str, noun: str) -> str:
    """Return a function name in one of the usual spellings."""
    naming = draw.pick(NAMINGS)
    if naming == "long":
        return f"{verb}_{draw.pick(FILLERS)}_{noun}"
    if naming == "camel":
        return verb + noun.capitalize()
    if naming == "kebab":
        return f"{verb}-{noun}"
    return f"{noun}_{verb}" if naming == "noun_first" else f"{verb}_{noun}"


def make_thing(draw: Draw, domain: Domain) -> str:
    """Return what a tool acts on: mostly a thing of the domain, else any other, or one that does not exist."""
    move = draw.real()
    if move < 0.75:
        return draw.pick(domain.nouns)
    if move < 0.88:
        return draw.own(lambda: lexicon.noun(draw))
    return draw.own(lambda: lexicon.surname(draw).lower())


def make_toolset(draw: Draw, count: int) -> list[Tool]:
    """Return tools of which no two do the same to the same thing; some share the thing, some the action."""
    tools: dict[tuple[str, str], Tool] = {}
    domain = draw.pick(DOMAINS)
    noun, action = make_thing(draw, domain), draw.pick(domain.actions)
    while len(tools) < count:
        if (noun, action) not in tools:
            tools[noun, action] = make_tool(draw, domain, noun, action)
        move = draw.real()
        if move < 0.3:  # another action on the same thing
            action = draw.pick(domain.actions)
        elif move < 0.5:  # the same domain
            noun, action = make_thing(draw, domain), draw.pick(domain.actions)
        else:
            domain = draw.pick(DOMAINS)
            noun, action = make_thing(draw, domain), draw.pick(domain.actions)
    return draw.sample(list(tools.values()), count)


def make_result(draw: Draw, tool: Tool) -> dict[str, Json] | str:
    """Return what a call of this tool gives back: an object, or now and then plain text."""
    if draw.chance(0.08):
        return draw.own(lambda: lexicon.phrase(draw))
    if draw.chance(0.08):
        return {"error": f"{tool.noun} {draw.pick(('not found', 'not available', 'timed out', 'locked'))}"}
    chosen = draw.sample(tool.results, draw.integer(1, min(3, len(tool.results))))
    pairs = [item.split(":") for item in chosen]
    return {(lexicon.noun(draw) if draw.chance(0.08) else name): result_value(draw, kind) for name, kind in pairs}


def result_value(draw: Draw, kind: str) -> Json:
    """Return a value of a result: n number, p price, w word, c code, t time, d date, o person, f file, h phrase."""
    if kind == "w":
        return draw.pick(STATES)
    makers = {
        "n": lambda: draw.number(0, 999),
        "p": lambda: draw.number(1, 900) + draw.integer(1, 9) / 10,
        "c": lambda: lexicon.code(draw),
        "t": lambda: lexicon.clock(draw),
        "d": lambda: lexicon.date(draw),
        "o": lambda: lexicon.person(draw),
        "f": lambda: lexicon.file_name(draw),
        "h": lambda: lexicon.phrase(draw),
    }
    return draw.own(makers[kind])
