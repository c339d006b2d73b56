"""Start the ranks of a run: rank 0 in this process, the others as children; a signal ends them all after a step."""

from __future__ import annotations

import dataclasses
import signal
import sys
from collections.abc import Callable
from types import FrameType

import torch
from torch import multiprocessing

from nano_train.config import read_config
from nano_train.grow import grown
from nano_train.loop import NUM_REPORTED, Rank, Run
from nano_train.restart import read_trained
from nano_train.shared import Arena, Barrier
from nano_train.state import load_state, restore
from nano_train.weights import Weights, initial_weights


def train(run: Run) -> int:
    """Train from the saved state, or from the start; return the number of steps done.

    Raises: ValueError if the folder holds another run's state, a device other than the CPU has several ranks, or no
            weight has run.only in its name.
    """
    if run.device != "cpu" and run.num_ranks != 1:
        raise ValueError(f"{run.num_ranks} ranks cannot share {run.device}. Use --ranks 1 and more --packed-rows.")
    weights = first_weights(run)
    if not any(run.only in name for name in weights):
        raise ValueError(f"no weight has {run.only!r} in its name. Name a part such as indexer, or leave --only out.")
    arena = Arena.allocate(weights, run.num_ranks, NUM_REPORTED, run.device)
    state = load_state(run.folder)
    if state is not None:
        restore(arena, state)
        if state["plan"] != dataclasses.asdict(run.plan):
            sys.stdout.write("the plan has changed since the state was saved; going on with the new one\n")
    first = 0 if state is None else int(state["step"])
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(run.num_ranks)
    others = [
        context.Process(target=_other, args=(run, rank, arena, barrier, first), daemon=True)
        for rank in range(1, run.num_ranks)
    ]
    for process in others:
        process.start()
    try:
        done = Rank(run, 0, arena, barrier).train(first, _stopped_by_signal())
    except BaseException:
        barrier.abort()
        raise
    for process in others:
        process.join()
    return done


def first_weights(run: Run) -> Weights:
    """Return the weights with which a run begins; a smaller model is grown, a draft block that is nowhere starts anew.

    Raises: ValueError if a checkpoint cannot grow into the architecture.
    """
    config = read_config(run.values)
    weights = initial_weights(config, run.plan.seed)
    for folder in reversed(run.begin):
        found = read_trained(folder)
        try:
            weights = grown(found.weights, read_config(found.values), weights, config)
        except ValueError as error:
            raise ValueError(f"{folder} is of another architecture: {error}") from error
    return weights


def _other(run: Run, rank: int, arena: Arena, barrier: Barrier, first: int) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # rank 0 decides
    torch.set_num_threads(1)
    Rank(run, rank, arena, barrier).train(first, lambda: False)


def _stopped_by_signal() -> Callable[[], bool]:
    received: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        received.append(number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, remember)
    return lambda: bool(received)
