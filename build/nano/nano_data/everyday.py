"""Family "everyday": tools as agents define them and requests as people type them."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

from nano_data import talk
from nano_data.calling import Request, capital, conclude, say_value, serve
from nano_data.coined import coined
from nano_data.common import COMMON, word
from nano_data.draw import Draw, Wordings
from nano_data.facts import make_facts
from nano_data.records import Call, Draft, Json, Mix, Mode, Turn
from nano_data.slots import Slot
from nano_data.tooling import DOMAINS, Action, Tool, make_toolset
from nano_data.wordings import divided, read_toml, wordings

OPTIONAL = re.compile(r"\[([^]]*)\]")
NAMED = re.compile(r"\{(\w+)\}")
RUNNING_ON = re.compile(r"\{a\}([,;]| and)")
NEW_SENTENCE = re.compile(r"(\}|:) \{b\}")
FRAMES, JOINTS = wordings("everyday_frames"), wordings("everyday_joints")
NO_WORDINGS = Wordings((), ())


@dataclass(frozen=True, slots=True)
class Parameter:
    """A parameter of an everyday tool: what its requests call it, its kind, its possible names."""

    key: str
    kind: str
    names: tuple[str, ...]
    is_required: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What a tool can be: names, descriptions, parameters, and how people ask for it. `kin` are tools like it."""

    key: str
    kin: str
    verb: str
    noun: str
    names: tuple[str, ...]
    abouts: tuple[str, ...]
    parameters: tuple[Parameter, ...]
    results: tuple[str, ...]
    asks: Wordings


@dataclass(frozen=True, slots=True)
class Everyday:
    """A tool in one conversation: what it is about, and the names that its parameters have there, by key."""

    offer: Offer
    tool: Tool
    names: dict[str, str]
    thing: str


def _parameter(text: str) -> Parameter:
    key, kind, names = text.split(":")
    return Parameter(key.removesuffix("?"), kind, tuple(names.split("|")), not key.endswith("?"))


def _offer(key: str, kin: str, item: dict[str, Any]) -> Offer:
    verb, _, noun = item["does"].partition(" ")
    return Offer(
        key=key,
        kin=kin,
        verb=verb,
        noun=noun,
        names=tuple(item["names"].split()),
        abouts=tuple(item["about"].split("|")),
        parameters=tuple(map(_parameter, item["params"].split())),
        results=tuple(item["results"].split()),
        asks=divided(item, {}),
    )


def _offers() -> tuple[Offer, ...]:
    table = read_toml("everyday")
    kins = {name: kin for kin, names in table.pop("kin").items() for name in names.split()}
    return tuple(_offer(key, kins.get(key, key), item) for key, item in table.items())


def _is_many(offer: Offer) -> bool:
    return "{t}" in offer.noun


OFFERS = _offers()
SINGLE, MANY = (tuple(offer for offer in OFFERS if _is_many(offer) == is_many) for is_many in (False, True))


def make_everyday(draw: Draw, mode: Mode, mix: Mix) -> Draft:
    """Return a conversation with everyday tools: requests, pairs of them, and now and then what no tool can do.

    Rule: one in ten has no tools; a user tells something and asks for it.
    """
    if draw.chance(0.1):
        return make_facts(draw, mode)
    tools = choose_tools(draw, draw.integer(1, mix.num_tools[1]))
    others = make_toolset(draw, draw.integer(1, 2)) if draw.chance(0.2) else []
    turns: list[Turn] = []
    for _ in range(draw.pick((1, 1, 2, 3))):
        move = draw.real()
        if move < 0.08:
            turns.append(talk.small_talk(draw, mode))
        elif move < 0.16:
            turns.append(refuse(draw, tools, mode))
        else:
            requests, user = ask_twice(draw, tools) if move < 0.36 else ask_once(draw, tools)
            turns += serve(draw, requests, user, mode)
    return conclude(draw, [*(item.tool for item in tools), *others], turns)


def choose_tools(draw: Draw, count: int) -> list[Everyday]:
    """Return everyday tools with different names, of which this split has requests for at least one."""
    askable = [offer for offer in SINGLE if offer.asks.of(draw.split)]
    unseen = [offer for offer in askable if not offer.asks.train]
    first = draw.pick(unseen if unseen and draw.chance(0.4) else MANY if draw.chance(0.35) else askable)
    rest = [offer for offer in askable if offer is not first]
    tools: dict[str, Everyday] = {}
    for offer in [first, *draw.sample(rest, count - 1)]:
        item = make_everyday_tool(draw, draw.pick(MANY) if draw.chance(0.25) and offer is not first else offer)
        tools.setdefault(item.tool.name, item)
    return draw.sample(list(tools.values()), len(tools))


def make_thing(draw: Draw) -> str:
    """Return what a tool of the many is about: one or two words."""
    move = draw.real()
    if move < 0.35:
        return draw.pick(draw.pick(DOMAINS).nouns)
    if move < 0.75:
        return draw.own(lambda: word(draw)).lower()
    return draw.own(lambda: f"{word(draw)} {word(draw)}")


def make_everyday_tool(draw: Draw, offer: Offer) -> Everyday:
    """Return the tool with one of its names; now and then the names have a part that nobody knows."""
    thing = make_thing(draw) if _is_many(offer) else ""
    parameters = [item for item in offer.parameters if item.is_required or draw.chance(0.8)]
    known = {item.key for item in parameters}
    if not any(known >= needed(text) for text in offer.asks.of(draw.split)):
        parameters = list(offer.parameters)
    names: dict[str, str] = {}
    for item in parameters:
        free = [name for name in item.names if name not in names.values()]
        names[item.key] = as_name(draw.pick(free or item.names), thing)
    name = as_name(draw.pick(offer.names), thing)
    if draw.split == "train" and draw.chance(0.12):
        name = f"{name}_{coined(draw)}" if draw.chance(0.5) else f"{coined(draw)}_{name}"
    if draw.split == "train" and len(parameters) == 1 and draw.chance(0.15):
        names[parameters[0].key] = coined(draw)
    described = draw.pick(offer.abouts) if draw.chance(0.8) else ""
    tool = Tool(
        name=name,
        noun=offer.noun.replace("{t}", thing),
        action=Action((offer.verb,), NO_WORDINGS),
        slots=tuple(Slot(names[item.key], COMMON[item.kind]) for item in parameters),
        required=tuple(names[item.key] for item in parameters if item.is_required),
        description=described.replace("{t}", thing).replace("{T}", thing.capitalize()),
        results=offer.results,
        is_verbose=draw.chance(0.25),
    )
    return Everyday(offer, tool, names, thing)


def as_name(template: str, thing: str) -> str:
    """Return the name of a function or parameter of a thing: get_air_quality or getAirQuality."""
    return template.replace("{t}", thing.replace(" ", "_")).replace("{T}", thing.title().replace(" ", ""))


def ask_once(draw: Draw, tools: list[Everyday]) -> tuple[list[Request], str]:
    """Return one request and the message that makes it."""
    request = make_request(draw, draw.pick(tools))
    return [request], frame(draw, request.words)


def ask_twice(draw: Draw, tools: list[Everyday]) -> tuple[list[Request], str]:
    """Return two requests and the message that makes both."""
    chosen = draw.pick(tools)
    single = [text for text in chosen.offer.asks.of(draw.split) if len(mentioned(text)) == 1 and "[" not in text]
    if single and draw.chance(0.4) and not is_list(chosen):
        template = draw.pick(single)
        draw.wordings.append(template)
        requests = [make_request(draw, chosen, template) for _ in range(2)]
        (key,) = mentioned(template)
        values = [say_value(item.call.arguments[chosen.names[key]]) for item in requests]
        doubled = draw.pick(("{a} and {b}", "{a} and {b}", "{a} and also {b}")).format(a=values[0], b=values[1])
        return requests, frame(draw, about(template, chosen.thing)[0].replace(f"{{{key}}}", doubled))
    requests = [make_request(draw, item) for item in (chosen, draw.pick(tools))]
    joint = draw.wording(JOINTS)
    first, second = (item.words for item in requests)
    if RUNNING_ON.search(joint):
        first = first.rstrip(".?!")
    if not NEW_SENTENCE.search(joint):
        second = second[:1].lower() + second[1:]
    return requests, capital(joint.format(a=first, b=second))


def is_list(item: Everyday) -> bool:
    """Say whether a tool takes a list, of which two could not be told apart in one sentence."""
    return any(slot.kind.schema["type"] == "array" for slot in item.tool.slots)


def make_request(draw: Draw, item: Everyday, template: str = "") -> Request:
    """Return a request with made-up arguments that belongs to the split of `draw`."""
    known = item.names.keys()
    template = template or draw.wording(item.offer.asks.only(lambda text: known >= needed(text)))
    text, fixed = about(template, item.thing)
    text = OPTIONAL.sub(lambda piece: piece[1] if known >= needed(piece[1]) and draw.chance(0.5) else "", text)
    slots = {slot.name: slot for slot in item.tool.slots}
    given = implied(fixed)
    spoken = {}
    for key in NAMED.findall(text):
        given[key] = slots[item.names[key]].kind.sample(draw)
        spoken[key] = say_value(given[key])
    arguments = {name: given[key] for key, name in item.names.items() if key in given}
    return Request(text.format(**spoken), Call(name=item.tool.name, arguments=arguments), item.tool)


def needed(template: str) -> set[str]:
    """Return the keys of the parameters without which a template cannot be said."""
    text, fixed = about(template)
    return {*mentioned(OPTIONAL.sub("", text)), *implied(fixed)}


def about(template: str, thing: str = "") -> tuple[str, str]:
    """Return what is said about a thing, and the arguments that the words imply."""
    text, _, fixed = template.replace("{t}", thing).partition(" => ")
    return text, fixed


def mentioned(template: str) -> list[str]:
    """Return the keys of the parameters whose values a template says."""
    return NAMED.findall(about(template)[0])


def implied(fixed: str) -> dict[str, Json]:
    """Return the arguments that the words of a template imply, such as on=true."""
    return {key: json.loads(value) for key, _, value in (pair.partition("=") for pair in fixed.split())}


def frame(draw: Draw, words: str) -> str:
    """Return a message: mostly the request alone, as people type it."""
    return draw.wording(FRAMES).format(r=words) if draw.chance(0.25) else draw.casual(capital(words))


def refuse(draw: Draw, tools: list[Everyday], mode: Mode) -> Turn:
    """Return a turn that asks for what none of the tools can do."""
    kins = {item.offer.kin for item in tools}
    kins |= {item.thing for item in tools}
    missing = [offer for offer in SINGLE if offer.asks.of(draw.split) and not kins & {offer.kin, offer.noun}]
    if not missing or "general" in kins:
        return talk.small_talk(draw, mode)
    request = make_request(draw, make_everyday_tool(draw, draw.pick(missing)))
    is_question = request.words.endswith("?") and not request.words.startswith(("Can you", "Could you"))
    return talk.unanswered(draw.casual(request.words), mode, is_task=not is_question)
