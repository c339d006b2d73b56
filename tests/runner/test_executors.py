"""Ranks are child processes: killed, broken or orphaned ones lose nobody's tokens."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from library import Answer, answer, prompt

from dsv4_backend.assemble import build_engine
from dsv4_backend.config import ServingConfig
from dsv4_backend.engine import Engine
from dsv4_backend.errors import ConfigError, ExecutorLostError
from dsv4_backend.records import Chunk, FinishReason, Request, StepPlan
from dsv4_backend.runner.executors import RankExecutor

WAIT_S = 60.0


@dataclass(frozen=True)
class Served:
    """An engine over a real rank process."""

    engine: Engine
    executor: RankExecutor


def _config(checkpoint: Path) -> ServingConfig:
    return ServingConfig(checkpoint=str(checkpoint), num_threads=1)


@pytest.fixture(scope="module")
def served(random_checkpoint: Path) -> Iterator[Served]:
    config = _config(random_checkpoint)
    executor = RankExecutor(config)
    engine = build_engine(config, executor=executor)
    engine.start()
    yield Served(engine, executor)
    engine.close()


class _KillOnce:
    """A sink that kills the rank when the request has got so many tokens."""

    def __init__(self, executor: RankExecutor, at_tokens: int) -> None:
        self.executor = executor
        self.at_tokens = at_tokens
        self.chunks: list[Chunk] = []
        self.ended = threading.Event()

    def put(self, chunk: Chunk) -> None:
        self.chunks.append(chunk)
        if sum(len(item.token_ids) for item in self.chunks) == self.at_tokens:
            os.kill(self.executor.pids[0], signal.SIGKILL)
        if chunk.is_final:
            self.ended.set()


def test_a_killed_rank_changes_no_token(served: Served) -> None:
    item = prompt(200, max_tokens=30)
    expected = answer(served.engine, item)
    sink = _KillOnce(served.executor, at_tokens=10)
    served.engine.submit(Request(id="killed", prompt=item), sink)
    assert sink.ended.wait(WAIT_S)
    got = Answer(tuple(sink.chunks))
    assert (got.token_ids, got.logprobs) == (expected.token_ids, expected.logprobs)


def test_other_streams_survive_the_killed_rank_too(served: Served) -> None:
    items = [prompt(50 + 60 * number, salt=number, max_tokens=30) for number in range(4)]
    expected = [answer(served.engine, item).token_ids for item in items]
    sinks = [_KillOnce(served.executor, at_tokens=15 if number == 2 else -1) for number in range(4)]
    for number, (item, sink) in enumerate(zip(items, sinks, strict=True)):
        served.engine.submit(Request(id=f"s{number}", prompt=item), sink)
    assert all(sink.ended.wait(WAIT_S) for sink in sinks)
    assert [Answer(tuple(sink.chunks)).token_ids for sink in sinks] == expected


def test_a_rank_whose_parent_is_killed_exits(random_checkpoint: Path) -> None:
    script = (
        "import sys, time\n"
        "from dsv4_backend.config import ServingConfig\n"
        "from dsv4_backend.runner.executors import RankExecutor\n"
        "executor = RankExecutor(ServingConfig(checkpoint=sys.argv[1], num_threads=1))\n"
        "executor.start()\n"
        "print(executor.pids[0], flush=True)\n"
        "sys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, str(random_checkpoint)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    descriptor = os.pidfd_open(pid)
    parent.kill()
    parent.wait()
    poller = select.poll()
    poller.register(descriptor, 1)
    assert poller.poll(10_000), "the rank is still running"
    os.close(descriptor)


def test_a_checkpoint_that_cannot_be_loaded_is_refused_with_the_reason(tmp_path: Path) -> None:
    executor = RankExecutor(ServingConfig(checkpoint=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"config\.json"):
        executor.start()
    executor.close()


def test_progress_is_told_while_weights_load(random_checkpoint: Path) -> None:
    told: list[tuple[int, int]] = []
    executor = RankExecutor(_config(random_checkpoint), lambda done, total: told.append((done, total)))
    executor.start()
    executor.close()
    assert told[-1][0] == told[-1][1] > 0


def test_a_closed_executor_runs_nothing(random_checkpoint: Path) -> None:
    executor = RankExecutor(_config(random_checkpoint))
    executor.start()
    executor.close()
    with pytest.raises(ExecutorLostError):
        executor.begin(StepPlan(step=1, rows=()))


def test_an_expired_request_ends_while_others_go_on(served: Served) -> None:
    late = prompt(5, max_tokens=500)
    late = type(late)(
        token_ids=late.token_ids, limits=type(late.limits)(max_tokens=500, ignore_eos=True, timeout_s=0.05)
    )
    assert answer(served.engine, late, "late").final.finish_reason is FinishReason.TIME_LIMIT
    assert answer(served.engine, prompt(5), "next").final.finish_reason is FinishReason.LENGTH
