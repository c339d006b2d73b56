"""Load generation: so many concurrent streams, what the server delivers, and how evenly.

Source: the clocks are this process's own, and it shares the machine with the server: on few cores the figures are a
        lower bound of what the server can do.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from dsv4_backend.errors import Dsv4Error
from dsv4_client.aio import AsyncClient
from dsv4_client.events import Delta
from dsv4_client.wire import PromptLike


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadPlan:
    """What to send. Every stream sends its next request when the last one has ended."""

    prompt: PromptLike
    num_streams: int
    num_requests: int
    max_tokens: int
    is_streamed: bool = True
    timeout_s: float = 300.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A distribution in milliseconds."""

    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """What came back.

    Rule: a response is one gRPC message with tokens; gaps lie between two responses of one stream.
          num_out_of_order counts responses whose index is not the one expected; errors lists distinct messages.
    """

    num_streams: int
    num_requests: int
    num_responses: int
    num_tokens: int
    seconds: float
    responses_per_s: float
    tokens_per_s: float
    requests_per_s: float
    time_to_first_token: Spread
    gap: Spread
    num_out_of_order: int
    num_errors: int
    errors: tuple[str, ...]


@dataclass(slots=True)
class _Tally:
    """What the streams of one run have seen."""

    num_requests: int = 0
    num_tokens: int = 0
    num_out_of_order: int = 0
    first_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


async def run_load(client: AsyncClient, plan: LoadPlan) -> LoadResult:
    """Send plan.num_requests requests over plan.num_streams streams and measure."""
    tally = _Tally()
    tickets = iter(range(plan.num_requests))
    start_s = time.perf_counter()
    await asyncio.gather(*(_stream(client, plan, tickets, tally) for _ in range(plan.num_streams)))
    return _result(plan, tally, time.perf_counter() - start_s)


async def _stream(client: AsyncClient, plan: LoadPlan, tickets: Iterator[int], tally: _Tally) -> None:
    for _ in tickets:
        try:
            await _request(client, plan, tally)
        except Dsv4Error as error:
            tally.errors.append(str(error))


async def _request(client: AsyncClient, plan: LoadPlan, tally: _Tally) -> None:
    last_s = time.perf_counter()
    num_seen = 0
    events = client.generate(
        plan.prompt,
        timeout_s=plan.timeout_s,
        max_tokens=plan.max_tokens,
        ignore_eos=True,
        exclude_input_in_output=True,
        stream=plan.is_streamed,
    )
    async for event in events:
        if not isinstance(event, Delta):
            if event.error:
                tally.errors.append(event.error)
            continue
        now_s = time.perf_counter()
        (tally.gaps_s if num_seen else tally.first_s).append(now_s - last_s)
        last_s = now_s
        tally.num_out_of_order += event.index != num_seen
        tally.num_tokens += len(event.token_ids)
        num_seen += 1
    tally.num_requests += 1


def _result(plan: LoadPlan, tally: _Tally, seconds: float) -> LoadResult:
    num_responses = len(tally.first_s) + len(tally.gaps_s)
    return LoadResult(
        num_streams=plan.num_streams,
        num_requests=tally.num_requests,
        num_responses=num_responses,
        num_tokens=tally.num_tokens,
        seconds=round(seconds, 3),
        responses_per_s=round(num_responses / seconds, 1),
        tokens_per_s=round(tally.num_tokens / seconds, 1),
        requests_per_s=round(tally.num_requests / seconds, 2),
        time_to_first_token=spread(tally.first_s),
        gap=spread(tally.gaps_s),
        num_out_of_order=tally.num_out_of_order,
        num_errors=len(tally.errors),
        errors=tuple(sorted(set(tally.errors))[:5]),
    )


def spread(seconds: list[float]) -> Spread:
    """Summarise durations; nearest rank, and zeros when there are none."""
    ordered = sorted(seconds) or [0.0]

    def rank(share: float) -> float:
        return round(1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))], 3)

    return Spread(p50_ms=rank(0.5), p90_ms=rank(0.9), p99_ms=rank(0.99), max_ms=rank(1.0))
