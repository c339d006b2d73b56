"""An engine over a scripted executor: no model, every step under the test's control."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from dsv4_backend.config import ServingConfig
from dsv4_backend.engine import Engine
from dsv4_backend.engine.admission import AdmissionLimits
from dsv4_backend.engine.loop import StepLoop
from dsv4_backend.engine.stream import StreamRules
from dsv4_backend.errors import ExecutorLostError
from dsv4_backend.kv.manager import CacheManager, cache_rules
from dsv4_backend.metrics import NullMetrics
from dsv4_backend.records import (
    CHOSEN_BEFORE,
    Chunk,
    Limits,
    Prompt,
    Request,
    RowResult,
    SamplingParams,
    StepPlan,
    StepResult,
)
from dsv4_backend.scheduler.reasoning import ThinkTokens
from dsv4_backend.scheduler.scheduler import Scheduler

WAIT_S = 20.0
EOS = 1


def next_token(tokens: tuple[int, ...]) -> int:
    """The scripted model: a letter that depends on every token before it."""
    return ord("a") + (sum(tokens) * 31 + len(tokens)) % 26


def prompt_ids(num_prompt: int) -> tuple[int, ...]:
    """A prompt of so many tokens, none of them special."""
    return tuple(10 + index % 190 for index in range(num_prompt))


class ScriptedExecutor:
    """Computes `next_token` from its own memory of each sequence, and fails where told to."""

    def __init__(self) -> None:
        self.tokens: dict[int, list[int]] = {}
        self.chosen: dict[int, int] = {}
        self.begun: deque[StepPlan] = deque()
        self.most_begun = 0
        self.num_steps = 0
        self.num_restarts = 0
        self.fail_at: set[int] = set()
        self.fail_when: Callable[[StepPlan], bool] = lambda plan: False
        self.fail_restart = False
        self.row_error: dict[int, str] = {}
        self.gate = threading.Event()
        self.gate.set()
        self.is_closed = False

    def start(self) -> None:
        """Nothing to load."""

    def restart(self) -> None:
        self.num_restarts += 1
        if self.fail_restart:
            raise ExecutorLostError("no memory left")
        self.tokens.clear()
        self.begun.clear()

    def close(self) -> None:
        self.is_closed = True
        self.gate.set()

    def begin(self, plan: StepPlan) -> None:
        self.begun.append(plan)
        self.most_begun = max(self.most_begun, len(self.begun))

    def finish(self) -> StepResult:
        plan = self.begun.popleft()
        assert self.gate.wait(WAIT_S)
        self.num_steps += 1
        if self.num_steps in self.fail_at or self.fail_when(plan):
            raise ExecutorLostError("rank 0 ended with signal 9.")
        for sequence_id in plan.finished:
            del self.tokens[sequence_id]
        for start in plan.starts:
            assert start.sequence_id not in self.tokens
            shared = next(row.start for row in plan.rows if row.sequence_id == start.sequence_id)
            self.tokens[start.sequence_id] = list(start.token_ids[:shared])
        rows = []
        for row in plan.rows:
            known = self.tokens[row.sequence_id]
            assert len(known) == row.start
            known.extend(row.token_ids)
            if known[-1] == CHOSEN_BEFORE:
                known[-1] = self.chosen[row.sequence_id]
            token = row.forced_token_id if row.forced_token_id is not None else next_token(tuple(known))
            self.chosen[row.sequence_id] = token
            sampled = (token,) if row.is_sampled else ()
            rows.append(
                RowResult(sequence_id=row.sequence_id, token_ids=sampled, error=self.row_error.get(row.sequence_id, ""))
            )
        return StepResult(step=plan.step, rows=tuple(rows))


@dataclass
class Collected:
    """A sink that a test can wait on."""

    chunks: list[Chunk] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    begun: threading.Event = field(default_factory=threading.Event)

    def put(self, chunk: Chunk) -> None:
        assert not self.ended.is_set(), "a chunk came after the final one"
        self.chunks.append(chunk)
        self.begun.set()
        if chunk.is_final:
            self.ended.set()

    def wait(self) -> Collected:
        assert self.ended.wait(WAIT_S), "no final chunk"
        return self

    @property
    def final(self) -> Chunk:
        return self.chunks[-1]

    @property
    def token_ids(self) -> list[int]:
        return [token for chunk in self.chunks for token in chunk.token_ids]


@dataclass
class Rig:
    """Engine, executor and loop of one test."""

    engine: Engine
    executor: ScriptedExecutor
    loop: StepLoop
    cache: CacheManager

    def submit(self, request_id: str = "r", num_prompt: int = 4, **limits: object) -> Collected:
        sink = Collected()
        prompt = Prompt(
            token_ids=prompt_ids(num_prompt),
            sampling=SamplingParams(temperature=0.0),
            limits=Limits(**({"max_tokens": 8} | limits)),  # type: ignore[arg-type]
        )
        self.engine.submit(Request(id=request_id, prompt=prompt), sink)
        return sink


def expected_tokens(num_prompt: int, count: int) -> list[int]:
    """What an undisturbed request generates."""
    tokens = list(prompt_ids(num_prompt))
    for _ in range(count):
        tokens.append(next_token(tuple(tokens)))
    return tokens[num_prompt:]


def make_rig(**settings: object) -> Rig:
    """Build an engine that is not started."""
    config = ServingConfig(**({"max_step_tokens": 256, "max_sequences": 4, "cache_tokens": 1024} | settings))  # type: ignore[arg-type]
    cache = CacheManager(cache_rules(config))
    executor = ScriptedExecutor()
    rules = StreamRules(
        token_bytes=lambda token: bytes([token % 256]),
        eos_token_ids=(EOS,),
        bos_token_id=0,
        default_time_limit_s=config.request_time_limit_s,
    )
    loop = StepLoop(
        scheduler=Scheduler(config, cache),
        cache=cache,
        executor=executor,
        rules=rules,
        metrics=NullMetrics(),
        max_restarts=config.max_restarts,
    )
    limits = AdmissionLimits(
        vocab_size=256,
        context_tokens=min(config.context_tokens, 4096),
        max_output_tokens=config.max_output_tokens,
        capacity_tokens=cache.capacity_tokens,
        default_max_tokens=0,
    )
    think = ThinkTokens(open_id=200, close_id=201)
    return Rig(Engine(config=config, limits=limits, think=think, executor=executor, loop=loop), executor, loop, cache)
