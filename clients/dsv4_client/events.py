"""What a stream yields: any number of Delta, then exactly one Final."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

from dsv4_backend.records import FinishReason, TokenLogprob, Usage


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSpan:
    """Where the text of a delta lies: bytes [skip_bytes, keep_bytes) of the joined bytes of token_ids."""

    token_ids: tuple[int, ...]
    skip_bytes: int
    keep_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Delta:
    """Newly generated tokens and their text; `usage` counts up to here.

    Rule: text is empty when the runtime is addressed directly: only the ensemble has a detokenizer. `span` then says
          what a caller with a vocabulary may decode.
          prompt_logprobs stand in the first delta only, and only when `echo` asked for them.
    """

    text: str
    token_ids: tuple[int, ...]
    index: int
    logprobs: tuple[TokenLogprob, ...] = ()
    prompt_logprobs: tuple[TokenLogprob, ...] = ()
    usage: Usage | None = field(default=None, compare=False)
    span: TextSpan | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Final:
    """The end of a stream; `error` says what failed when finish_reason is ERROR."""

    finish_reason: FinishReason
    usage: Usage
    error: str = ""


Event: TypeAlias = Delta | Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A whole answer: what `Client.complete` returns."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]
    prompt_logprobs: tuple[TokenLogprob, ...]
    final: Final


def join_events(events: Iterable[Event]) -> Answer:
    """Put the events of one stream together.

    Raises: ValueError when the last event is missing; a Client never lets that happen.
    """
    deltas: list[Delta] = []
    for event in events:
        if isinstance(event, Final):
            return Answer(
                text="".join(delta.text for delta in deltas),
                token_ids=tuple(token for delta in deltas for token in delta.token_ids),
                logprobs=tuple(item for delta in deltas for item in delta.logprobs),
                prompt_logprobs=tuple(item for delta in deltas for item in delta.prompt_logprobs),
                final=event,
            )
        deltas.append(event)
    raise ValueError(f"the stream ended after {len(deltas)} deltas without a Final event")
