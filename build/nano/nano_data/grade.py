"""Grade what a model wrote: read it with the official stream parser, then compare with the example's check."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import deepseek_recipe as recipe

from nano_data.records import Check, Example, Json, Verdict
from nano_data.render import EOS_ID, TOKENIZER_FILE, convert

MARKUP = re.compile(r"｜DSML｜|</?think>")
TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer as the API would report it. A call whose arguments are no JSON object has None."""

    reasoning: str | None
    content: str
    calls: tuple[tuple[str, Json], ...]


class Grader:
    """Grades answers with one tokenizer."""

    def __init__(self, tokenizer_file: Path = TOKENIZER_FILE) -> None:
        self._tokenizer = recipe.Tokenizer.from_file(str(tokenizer_file))
        self._think_end_id = self._tokenizer.encode("</think>")[0]

    def read(self, body: dict[str, Json], ids: Sequence[int]) -> Reply:
        """Return the reply that the official parser makes of answer tokens without their EOS."""
        request = convert(body)
        options = request.parsing_options
        parser = recipe.StreamProcessor(
            recipe.ChatCompletionRequest.chunk_generator(request, "x", "nano"), options, self._tokenizer
        )
        chunks = parser.push(recipe.InferenceChunk.ready())
        chunks += parser.push(recipe.InferenceChunk.tokens(list(ids)))
        chunks += (
            [] if parser.finished else parser.push(recipe.InferenceChunk.finish(recipe.InferenceFinishReason.Stop))
        )
        chunks += parser.finish()
        response = recipe.ChatCompletionResponse("x", "nano", 0, 0, 0)
        for chunk in chunks:
            response.accumulate(cast(recipe.ChatCompletionChunk, chunk))
        message = json.loads(response.to_json())["choices"][0]["message"]
        return Reply(
            reasoning=message.get("reasoning_content"),
            content=message.get("content") or "",
            calls=tuple(_call(item["function"]) for item in message.get("tool_calls") or ()),
        )

    def grade(self, example: Example, answer: Sequence[int] | str) -> Verdict:
        """Grade an answer given as text, or as token ids that end with EOS if the model ended by itself."""
        if isinstance(answer, str):
            ids = self._tokenizer.encode(answer)
        else:
            ids = list(answer)
            if not ids or ids[-1] != EOS_ID:
                return _wrong("the answer does not end")
            ids = ids[:-1]
        if EOS_ID in ids:
            return _wrong("the answer ends more than once")
        is_thinking = example.mode != "off"
        if ids.count(self._think_end_id) != int(is_thinking):
            return _wrong("reasoning does not end" if is_thinking else "there is reasoning although thinking is off")
        return grade_reply(example, self.read(example.body, ids))


def _call(function: dict[str, str]) -> tuple[str, Json]:
    try:
        arguments = json.loads(function["arguments"])
    except json.JSONDecodeError:
        arguments = None
    return function["name"], arguments if isinstance(arguments, dict) else None


def grade_reply(example: Example, reply: Reply) -> Verdict:
    """Compare a reply with what the example wants."""
    if MARKUP.search(reply.content) or MARKUP.search(reply.reasoning or ""):
        return _wrong("markup stands in the text")
    check = example.check
    if check.kind == "calls":
        return grade_calls(example, reply)
    if reply.calls:
        return Verdict(is_correct=False, reason="a tool was called where none fits")
    if check.kind == "json":
        return grade_json(check, example.body["response_format"]["json_schema"]["schema"], reply.content)
    found = reply.content.rstrip("\n").rpartition("\n")[2] if check.kind == "last_line" else reply.content
    return Verdict(is_correct=True) if found in check.texts else Verdict(is_correct=False, reason=f"text {found!r:.80}")


def grade_calls(example: Example, reply: Reply) -> Verdict:
    """Compare tool calls, in any order: names, and arguments with their types."""
    if not reply.calls:
        return _wrong(f"no tool call in {reply.content!r:.80}")
    schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in example.body["tools"]}
    for name, arguments in reply.calls:
        if arguments is None:
            return _wrong(f"the arguments of {name} are no JSON object")
        if name not in schemas or not fits(schemas[name], arguments):
            return Verdict(is_correct=False, matches_schema=False, reason=f"{name}({arguments}) fits no schema")
    wanted = sorted(call_key(call.name, call.arguments) for call in example.check.calls)
    found = sorted(call_key(name, arguments) for name, arguments in reply.calls)
    return Verdict(is_correct=True) if found == wanted else Verdict(is_correct=False, reason=f"called {found}")


def call_key(name: str, arguments: dict[str, Json]) -> str:
    """Return a text that is equal for equal calls; 1, 1.0 and true differ."""
    return f"{name} {json.dumps(arguments, sort_keys=True)}"


def grade_json(check: Check, schema: dict[str, Json], content: str) -> Verdict:
    """Compare a JSON answer with the object that is wanted."""
    try:
        found = json.loads(content)
    except json.JSONDecodeError:
        return _wrong(f"no JSON: {content!r:.80}")
    if not fits(schema, found):
        return Verdict(is_correct=False, matches_schema=False, reason=f"{found!r:.80} does not fit the schema")
    is_same = call_key("", found) == call_key("", check.value)
    return Verdict(is_correct=is_same, reason="" if is_same else f"object {found!r:.80}")


def fits(schema: dict[str, Json], value: Json) -> bool:
    """Say whether a value fits a schema of the kinds that the generators write; other properties are not allowed."""
    kind = schema.get("type", "object")
    if not isinstance(value, TYPES[kind]) or (isinstance(value, bool) and kind != "boolean"):
        return False
    if isinstance(value, list):
        return all(fits(schema["items"], item) for item in value)
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        is_whole = all(name in value for name in schema.get("required", ()))
        return is_whole and all(name in properties and fits(properties[name], item) for name, item in value.items())
    return "enum" not in schema or value in schema["enum"]


def _wrong(reason: str) -> Verdict:
    return Verdict(is_correct=False, parses=False, matches_schema=False, reason=reason)


@functools.cache
def _default_grader() -> Grader:
    return Grader()


def grade(example: Example, answer: Sequence[int] | str) -> Verdict:
    """Grade an answer with the committed tokenizer."""
    return _default_grader().grade(example, answer)
