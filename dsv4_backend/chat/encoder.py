"""API body → Prompt, through deepseek-recipe, DeepSeek's own library. With reply.py the only file that imports it."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

import deepseek_recipe as recipe

from dsv4_backend.chat.answer import forced_tools, free_tools, json_answer, regex_answer, tools_or_json
from dsv4_backend.chat.body import (
    Body,
    ForcedTool,
    Protocol,
    allows_parallel_calls,
    answer_schema,
    forced_tool,
    normalise,
    parse_body,
    parse_protocol,
    tool_schemas,
    with_free_choice,
    without_form_of_tools,
)
from dsv4_backend.chat.options import read_cache_salt, read_limits, read_priority, read_sampling
from dsv4_backend.chat.reply import REQUESTS, ReplyStream
from dsv4_backend.errors import RequestError
from dsv4_backend.records import Constraint, Prompt
from dsv4_backend.text.constraint import check_constraint, check_schema
from dsv4_backend.text.vocab import Vocabulary, tokenizer_file


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A request body that was understood but not yet tokenised."""

    protocol: Protocol
    body: Body
    request: recipe.ConversationRequest
    echo: recipe.ResponsesEcho | None
    constraint: Constraint | None

    @property
    def is_thinking(self) -> bool:
        """Whether the answer begins with reasoning."""
        return bool(self.request.conversation.thinking_mode)

    @property
    def has_tools(self) -> bool:
        """Whether the answer may hold tool calls."""
        return bool(self.request.parsing_options.parse_tool_calls)


class ChatEncoder:
    """Converts and encodes request bodies with the tokenizer of one checkpoint. Holds no state of requests."""

    def __init__(self, path: Path | str) -> None:
        file = tokenizer_file(path)
        self._tokenizer = recipe.Tokenizer.from_file(str(file))
        self._vocabulary = Vocabulary.load(file)
        self._encoding = recipe.DeepseekV4Encoding().with_tokenizer(self._tokenizer)
        self._options = recipe.ConversionOptions()

    def encode(self, protocol: str, body: str) -> Prompt:
        """Return the prompt that a request body asks for.

        Rule:   special-token spellings inside messages stay text. A forced tool call is possible while thinking: the
                constraint forces it after the reasoning. Sampling values of the body count, thinking or not.
        Raises: RequestError with the place or the value; ConstraintError for a schema that cannot be enforced.
        """
        return self.prompt(self.read(parse_protocol(protocol), parse_body(body)))

    def read(self, protocol: Protocol, body: Body) -> Reading:
        """Understand a request body. Raises: as `encode`, but for what only its tokens tell."""
        given = normalise(protocol, body)
        for tool in tool_schemas(given):
            if tool.is_strict:
                check_schema(tool.schema, tool.place)
        forced = forced_tool(given)
        request, echo = self._convert_forced(protocol, given) if forced else self._convert(protocol, given)
        constraint = _constraint(request, given, forced, answer_schema(protocol, given))
        if constraint is not None:
            check_constraint(constraint)
        return Reading(protocol=protocol, body=given, request=request, echo=echo, constraint=constraint)

    def reply(self, reading: Reading, *, reply_id: str, model: str) -> ReplyStream:
        """Return what turns the answer's tokens into events of the body's API."""
        return ReplyStream(
            reading.protocol,
            reading.request,
            reading.echo,
            tokenizer=self._tokenizer,
            vocabulary=self._vocabulary,
            names=(reply_id, model),
        )

    def prompt(self, reading: Reading) -> Prompt:
        """Return the prompt of an understood body. Raises: RequestError."""
        converted, given = reading.request, reading.body
        options, parsing = converted.inference_options, converted.parsing_options
        return Prompt(
            token_ids=self._encode(converted),
            sampling=read_sampling(
                given,
                temperature=1.0 if options.temperature is None else options.temperature,
                top_p=1.0 if options.top_p is None else options.top_p,
                logprobs=(options.top_logprobs or 0) if options.logprobs else -1,
            ),
            limits=read_limits(
                given,
                max_tokens=options.max_tokens,
                stop=tuple(parsing.stop_sequences),
                is_thinking=converted.conversation.thinking_mode,
            ),
            constraint=reading.constraint,
            priority=read_priority(given),
            cache_salt=read_cache_salt(given),
            stream=converted.stream,
        )

    def _convert(
        self, protocol: Protocol, body: Body
    ) -> tuple[recipe.ConversationRequest, recipe.ResponsesEcho | None]:
        try:
            request = REQUESTS[protocol](json.dumps(without_form_of_tools(protocol, body), ensure_ascii=False))
            echo = request.echo() if isinstance(request, recipe.ResponsesRequest) else None
            return request.convert(self._options), echo
        except (recipe.ConversionError, ValueError, TypeError) as error:
            raise RequestError(_explain(protocol, body, str(error))) from error

    def _convert_forced(
        self, protocol: Protocol, body: Body
    ) -> tuple[recipe.ConversationRequest, recipe.ResponsesEcho | None]:
        """Convert a body that forces a tool call: the library refuses that while thinking, so it is left free there."""
        free = self._convert(protocol, with_free_choice(protocol, body))
        return free if free[0].conversation.thinking_mode else self._convert(protocol, body)

    def _encode(self, converted: recipe.ConversationRequest) -> tuple[int, ...]:
        try:
            return tuple(self._encoding.encode(converted.conversation))
        except RuntimeError as error:
            raise RequestError(f"the conversation cannot be encoded: {error}. Change the messages.") from error


def _constraint(
    converted: recipe.ConversationRequest, body: Body, forced: ForcedTool | None, schema: object
) -> Constraint | None:
    """Return what binds the answer. Rule: schemas are those of the body; the converter's have lost keywords."""
    found = converted.inference_options.output_constraint
    if found is None and schema is not None and not forced:
        return json_answer(json.dumps(schema))
    if found is None:
        if forced:
            raise RequestError("tool_choice forces a call but there are no tools. Send `tools`, or leave it out.")
        return None
    if found.kind == "json":
        return json_answer(found.schema if schema is None else json.dumps(schema))
    if found.kind == "regex":
        return regex_answer(found.schema)
    tools = _with_own_schemas(json.loads(found.schema), body)
    is_parallel = allows_parallel_calls(body)
    if forced is None and schema is not None:
        return tools_or_json(tools, schema, is_parallel=is_parallel)
    if forced is None:
        return free_tools(tools, is_parallel=is_parallel)
    return forced_tools(
        [tool for tool in tools if forced.name in (None, tool["function"]["name"])],
        is_parallel=is_parallel,
        is_open=converted.parsing_options.starts_in_tool_calls,
    )


def _with_own_schemas(tools: list[Body], body: Body) -> list[Body]:
    own = {tool.name: tool.schema for tool in tool_schemas(body)}
    for tool in tools:
        function = tool["function"]
        function["parameters"] = own.get(function["name"], function.get("parameters"))
    return tools


def _explain(protocol: Protocol, body: Body, reason: str) -> str:
    """Return the library's reason with the value that it speaks of."""
    named = re.search(r"Invalid '?(\w+)", reason)
    value = f" {named[1]} is {body[named[1]]!r:.60}." if named and named[1] in body else ""
    return f"the {protocol.value} request is refused: {reason.rstrip('. ')}.{value} Change the request body."
