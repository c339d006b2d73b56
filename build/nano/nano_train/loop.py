"""The training loop of one rank: row, loss, gradient; then, together with the others, the update.

Step ─► rows by number ─► gradients into the arena ─► meet ─► update of this rank's weights ─► meet ─► …
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from dsv4_kernels.dispatch import bind
from dsv4_kernels.ops import OpTable

from dsv4_backend.config import ModelConfig
from nano_train.batch import target_chunks
from nano_train.config import read_config
from nano_train.data import RowMaker, make_row
from nano_train.evaluate import Tally, merged, tally
from nano_train.model import Pass
from nano_train.moe import balanced_bias
from nano_train.muon import Rates
from nano_train.numerics import Rounding, quantised_names, rounded_weights
from nano_train.objective import Losses, losses
from nano_train.plan import Plan
from nano_train.products import is_half
from nano_train.row import IndexPhase
from nano_train.shared import Arena, Barrier, meet
from nano_train.state import Log, save_state
from nano_train.weights import Weights

REPORTED = ("next_token", "draft", "index", "hit", "draft_hit", "tokens", "stop")
NUM_COMPILED = 10_000  # shapes of products; 60,000 took 20 GB within an hour
NUM_REPORTED = 512  # room for the loads of every router as well
LARGEST_NORM = 1.0
BAR_WIDTH = 24
EVALUATION_SEED = 77


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What all ranks of a run know. Units: steps between evaluations, seconds between saved states.

    Rule: a run without a saved state begins with the weights of the checkpoints `begin`, the first before the next;
          what none of them holds begins with random ones.
          On another device than the CPU there is one rank, for which other processes make the rows ahead.
          has_bfloat16: matrix products as `products` describes. only: train the weights with this in their names.
    """

    values: dict[str, object]
    plan: Plan
    folder: Path
    num_ranks: int
    begin: tuple[Path, ...] = ()
    device: str = "cpu"
    has_bfloat16: bool = False
    only: str = ""
    evaluate_steps: int = 200
    evaluate_rows: int = 4
    save_s: float = 180.0


class Rank:
    """One rank of a run."""

    def __init__(self, run: Run, rank: int, arena: Arena, barrier: Barrier) -> None:
        quieten()
        is_half.set(run.has_bfloat16)
        self.run, self.rank, self.arena, self.barrier = run, rank, arena, barrier
        self.config: ModelConfig = read_config(run.values)
        self.weights = arena.weights(rank, run.only)
        self.updater = arena.updater(rank, run.only)
        self.kernels: OpTable = bind("cpu")
        self.storages = quantised_names(self.config)
        self.rows = RowMaker(run.plan, run.num_ranks * run.plan.rows_per_rank, is_ahead=run.device != "cpu")

    def train(self, first: int, is_stopping: Callable[[], bool]) -> int:
        """Train from a step until the end or until rank 0 is told to stop; return the next step."""
        log = Log(self.run.folder, first) if self.rank == 0 else None
        saved_at = time.monotonic()
        for step in range(first, self.run.plan.num_steps):
            started = time.monotonic()
            self._gradients(step)
            self.arena.report[self.rank, REPORTED.index("stop")] = float(is_stopping())
            meet(self.barrier)
            should_stop = bool(self.arena.report[0, REPORTED.index("stop")])
            loads = self.arena.report.sum(0)[len(REPORTED) :]
            self._update(step)
            meet(self.barrier)
            self._balance(loads)
            is_last = should_stop or step + 1 == self.run.plan.num_steps
            if log is not None:
                self._log(log, step, time.monotonic() - started)
            if (step + 1) % self.run.evaluate_steps == 0 or step + 1 == self.run.plan.num_steps:
                self._evaluate(log, step)
            meet(self.barrier)
            if self.rank == 0 and (is_last or time.monotonic() - saved_at > self.run.save_s):
                saved_at = time.monotonic()
                save_state(self.run.folder, self.arena, step + 1, self.run.values, dataclasses.asdict(self.run.plan))
            if is_last:
                return step + 1
        return self.run.plan.num_steps

    def _gradients(self, step: int) -> None:
        """Add up the gradients of this rank's rows, and report their losses and loads."""
        plan = self.run.plan
        self.arena.gradients[self.rank].zero_()
        report = torch.zeros(NUM_REPORTED, dtype=torch.float64)
        for part in range(plan.rows_per_rank):
            number = (step * plan.rows_per_rank + part) * self.run.num_ranks + self.rank
            row = self.rows.take(step, number)
            chunks = plan.index_chunks(step) | (target_chunks(row.batch) if self.run.only else frozenset())
            phase = IndexPhase(chunks, plan.is_dense(step))
            weights, rounding = self._numerics(is_rounding=plan.is_rounding(step))
            forward = Pass(self.config, weights, row.batch, rounding, phase)
            found = losses(forward, plan.draft_depth(step), has_prompt=plan.prompt(step) > 0)
            (found.total(plan.draft_weight, plan.prompt(step)) / plan.rows_per_rank).backward()  # type: ignore[no-untyped-call]
            report += _reported(found, forward, plan)
        self.arena.report[self.rank] = report

    def _numerics(self, *, is_rounding: bool) -> tuple[Weights, Rounding]:
        if not is_rounding:
            return self.weights, Rounding()
        return rounded_weights(self.weights, self.storages), Rounding(self.kernels)

    def _update(self, step: int) -> None:
        self.updater.step(Rates(learning_rate=self.run.plan.rate(step)), step + 1, LARGEST_NORM)

    def _balance(self, loads: torch.Tensor) -> None:
        """Move the router biases; rank 0 alone writes them, between two meetings."""
        if self.rank or self.run.only:
            return
        names = [name for name in self.arena.buffers if name.endswith("gate.bias")]
        for index, name in enumerate(names):
            part = (
                loads[index * self.config.num_experts : (index + 1) * self.config.num_experts]
                .float()
                .to(self.run.device)
            )
            bias = self.arena.buffers[name]
            bias.copy_(balanced_bias(bias, part, self.run.plan.balance_rate))

    def _log(self, log: Log, step: int, seconds: float) -> None:
        mean = self.arena.report.mean(0).tolist()
        values = dict(zip(REPORTED[:5], (round(item, 4) for item in mean), strict=False))
        tokens = float(self.arena.report[:, REPORTED.index("tokens")].sum())
        rate = round(tokens / seconds)
        line = {"step": step + 1, **values, "tokens": int(tokens), "tokens_per_s": rate}
        log.write(line | {"rate": round(self.run.plan.rate(step), 6)})
        losses_text = " ".join(f"{name} {value:.3f}" for name, value in values.items())
        sys.stdout.write(f"{progress(self.run.plan, step + 1, rate, self.run.num_ranks)} {losses_text} {rate} tok/s\n")
        sys.stdout.flush()

    def _evaluate(self, log: Log | None, step: int) -> None:
        """Grade held-out rows: every rank some of them, in files that rank 0 reads after a meeting."""
        plan, found = self.run.plan, []
        weights, rounding = self._numerics(is_rounding=plan.is_rounding(step))
        for part in range(self.run.evaluate_rows):
            number = part * self.run.num_ranks + self.rank
            row = make_row(EVALUATION_SEED, number, plan.mix(step), plan.tokens(step), "eval")
            found.append(tally(Pass(self.config, weights, row.batch, rounding), row))
        write_tally(self.run.folder, self.rank, merged(found))
        meet(self.barrier)
        if log is not None:
            total = merged([read_tally(self.run.folder, rank) for rank in range(self.run.num_ranks)])
            accepted = round(total.accepted_length, 3)
            log.write(
                {"step": step + 1, "exact": total.shares(), "accepted_length": accepted, "seen": dict(total.seen)}
            )
            sys.stdout.write(f"held out, exact: {total.shares()} accepted length {accepted}\n")


def progress(plan: Plan, done: int, tokens_per_s: float, num_ranks: int) -> str:
    """A bar, the steps done, and the time that is left at this speed."""
    left = sum(plan.tokens(step) for step in range(done, plan.num_steps)) * plan.rows_per_rank * num_ranks
    minutes = left / max(tokens_per_s, 1.0) / 60
    bar = "#" * round(BAR_WIDTH * done / plan.num_steps)
    return f"[{bar:<{BAR_WIDTH}}] step {done}/{plan.num_steps}, {minutes:.0f} min left:"


def _reported(found: Losses, forward: Pass, plan: Plan) -> torch.Tensor:
    """What a rank tells of one row, as `REPORTED`, then the loads of the routers in the order of their names."""
    draft = sum(float(item.detach()) for item in found.drafts) / max(len(found.drafts), 1)
    numbers = [float(found.next_token.detach()), draft, float(found.index.detach()), found.hits[0], found.hits[-1]]
    numbers = [item / plan.rows_per_rank for item in numbers] + [forward.batch.num_tokens, 0.0]
    loads = torch.cat([forward.loads[name] for name in forward.loads]).cpu().to(torch.float64)
    room = torch.zeros(NUM_REPORTED - len(numbers) - len(loads), dtype=torch.float64)
    return torch.cat([torch.tensor(numbers, dtype=torch.float64), loads, room])


def quieten() -> None:
    """One thread per rank, freed memory kept for the next step, and every compiled shape of a product kept as well."""
    torch.set_num_threads(1)
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(NUM_COMPILED))
    libc = ctypes.CDLL(None)
    for option, value in ((-3, 32 << 20), (-1, (1 << 31) - 1), (-2, 64 << 20)):  # mmap and trim thresholds, top pad
        libc.mallopt(option, value)


def write_tally(folder: Path, rank: int, found: Tally) -> None:
    """Leave a rank's tally for rank 0."""
    values = [dict(found.seen), dict(found.exact), found.answer_tokens, found.accepted_drafts]
    (folder / f"tally{rank}.json").write_text(json.dumps(values), "utf-8")


def read_tally(folder: Path, rank: int) -> Tally:
    """Return what a rank left, and remove it."""
    file = folder / f"tally{rank}.json"
    seen, exact, answer_tokens, accepted_drafts = json.loads(file.read_text("utf-8"))
    file.unlink()
    return Tally(Counter(seen), Counter(exact), answer_tokens, accepted_drafts)
