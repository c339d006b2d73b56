"""Families "tools" and "parallel": choose the tool, copy the arguments, answer from what the tool gives back."""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass

from nano_data import talk
from nano_data.draw import Draw, Wordings
from nano_data.records import Call, Check, Draft, Json, Mix, Mode, Turn
from nano_data.slots import sample_all, say, say_list
from nano_data.tooling import Tool, article, make_result, make_toolset, plural
from nano_data.wordings import wordings

FRAMES, OPEN_FRAMES, JOINTS = wordings("frames"), wordings("open_frames"), wordings("joints")
SYSTEMS = wordings("agent_systems")
NO_ORDER = re.compile(r"what|which|how|I ", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Request:
    """What a user asks of one tool, in words and as the call that serves it."""

    words: str
    call: Call
    tool: Tool


@functools.cache
def orders(phrases: Wordings) -> Wordings:
    """Return those phrases that can follow "please"."""
    return phrases.only(lambda phrase: not NO_ORDER.match(phrase))


def make_request(draw: Draw, tool: Tool, *, is_order: bool = False) -> Request:
    """Return a request with made-up arguments that belongs to the split of `draw`."""
    slots = [slot for slot in tool.slots if slot.name in tool.required or draw.chance(0.5)]
    values = sample_all(draw, slots, tool.name)
    said = [say(draw, slot, values[slot.name]) for slot in slots]
    if draw.chance(0.35):
        said = draw.sample(said, len(said))
    wish = draw.wording(orders(tool.action.phrases) if is_order else tool.action.phrases)
    wish = wish.format(n=f"the {tool.noun}", a=article(tool.noun), s=plural(tool.noun), n0=tool.noun)
    return Request(join_said(draw, [wish, *said]), Call(name=tool.name, arguments=values), tool)


def join_said(draw: Draw, parts: list[str]) -> str:
    """Return the parts of a request, joined by blanks or commas."""
    text = parts[0]
    for index, part in enumerate(parts[1:]):
        is_pair = ":" in part or " is " in part or " = " in part
        text += (", " if index and (is_pair or draw.chance(0.3)) else " ") + part
    return text


def say_result(result: dict[str, Json] | str) -> str:
    """Return the sentence that reports a tool's result."""
    if isinstance(result, str):
        return f"The tool says: {result}."
    if "error" in result:
        return f"That did not work: {result['error']}."
    spoken = {name: say_value(value) for name, value in result.items()}
    return "The " + say_list([f"{name} is {value}" for name, value in spoken.items()]) + "."


def say_value(value: Json) -> str:
    """Return one value of a result as text."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return say_list(value) if isinstance(value, list) else str(value)


def think_call(requests: list[Request], mode: Mode) -> str:
    """Return the reasoning before calls: for each what is wanted, by its plain name, and the tool that does it."""
    if mode == "off":
        return ""
    starts = ("The user wants",) if len(requests) == 1 else ("First, the user wants", "Second, the user wants")
    return " ".join(f"{start} {plan(item)}" for start, item in zip(starts, requests, strict=True))


def plan(request: Request) -> str:
    """Return the reasoning about one call. It is short, so that the request stays within the window of the call."""
    return f"to {request.tool.action.verbs[0]} {article(request.tool.noun)}. I call {request.call.name}."


def plain(value: Json) -> str:
    """Return a value as it is written in a call."""
    return value if isinstance(value, str) else json.dumps(value)


def think_result(results: list[dict[str, Json] | str], mode: Mode) -> str:
    """Return the reasoning before the answer from results."""
    if mode == "off":
        return ""
    names = ["a text" if isinstance(result, str) else ", ".join(result) for result in results]
    text = f"The result has {' and '.join(names)}."
    return text + " I report it as it is." if mode == "max" else text


def serve(draw: Draw, requests: list[Request], user: str, mode: Mode) -> list[Turn]:
    """Return the turn that calls and the turn that answers from the results."""
    results = [make_result(draw, item.tool) for item in requests]
    asked = Turn(user=user, reasoning=think_call(requests, mode), calls=tuple(item.call for item in requests))
    told = Turn(
        results=tuple(plain(result) for result in results),
        reasoning=think_result(results, mode),
        content=" ".join(say_result(result) for result in results),
    )
    return [asked, told]


def make_tools(draw: Draw, mode: Mode, mix: Mix) -> Draft:
    """Return a conversation with several tools: one or more requests, now and then one that needs no tool."""
    tools = make_toolset(draw, draw.integer(*mix.num_tools))
    turns: list[Turn] = []
    for _ in range(draw.integer(*mix.num_requests)):
        if draw.chance(0.1):
            turns.append(talk.small_talk(draw, mode))
        elif mix.pair_share and draw.chance(mix.pair_share):
            turns += serve_pair(draw, tools, mode)
        else:
            request = make_request(draw, draw.pick(tools))
            frames = OPEN_FRAMES if NO_ORDER.match(request.words) else FRAMES
            user = capital(draw.wording(frames).format(r=request.words))
            turns += serve(draw, [request], user, mode)
    return conclude(draw, tools, turns)


def make_parallel(draw: Draw, mode: Mode, mix: Mix) -> Draft:
    """Return a conversation in which one message asks for two calls."""
    tools = make_toolset(draw, draw.integer(*mix.num_tools))
    return conclude(draw, tools, serve_pair(draw, tools, mode))


def serve_pair(draw: Draw, tools: list[Tool], mode: Mode) -> list[Turn]:
    """Return the turns of one message that asks for two calls."""
    first = draw.pick(tools)
    second = first if draw.chance(0.3) else draw.pick(tools)
    requests = [make_request(draw, tool, is_order=True) for tool in (first, second)]
    user = capital(draw.wording(JOINTS).format(a=requests[0].words, b=requests[1].words))
    return serve(draw, requests, user, mode)


def conclude(draw: Draw, tools: list[Tool], turns: list[Turn]) -> Draft:
    """Return the draft; half of the time it ends with the calls, before their results are known."""
    if turns[-1].results and draw.chance(0.5):
        turns = turns[:-1]
    last = turns[-1]
    return Draft(
        turns=tuple(turns),
        check=Check(kind="calls", calls=last.calls)
        if last.calls
        else Check(kind="text", texts=talk.equivalents(last.content)),
        values=tuple(draw.values),
        wordings=tuple(draw.wordings),
        system=draw.wording(SYSTEMS) if draw.chance(0.4) else "",
        tools=tuple(tool.schema() for tool in tools),
    )


def capital(text: str) -> str:
    """Return the text with a capital first letter."""
    return text[:1].upper() + text[1:]
