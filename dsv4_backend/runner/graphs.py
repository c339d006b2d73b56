"""Decode steps recorded once per bucket and replayed: as CUDA graphs on a GPU. The plain step is the readable form.

A recorded step reads its inputs from a buffer that each step fills anew, and leaves its outputs where they were at the
recording. Recording runs the step's operators twice: once to compile kernels, once to record.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from dsv4_backend.model.step import StepCache, StepInputs
from dsv4_backend.model.transformer import Computed, Transformer
from dsv4_backend.records import StepPlan
from dsv4_backend.runner.padding import Bucket, Padding
from dsv4_backend.runner.upload import rebuilt, staged

Outputs = TypeVar("Outputs")


class Recorder(Protocol):
    """Records a computation over fixed tensors."""

    def __call__(self, compute: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        """Return what computes it again, and the outputs that this writes to. The outputs hold values only after it."""


class CudaRecorder:
    """CUDA graphs that share one pool of memory: only one of them runs at a time."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, compute: Callable[[], Outputs]) -> tuple[Callable[[], None], Outputs]:
        """As `Recorder`. Raises: RuntimeError if something in it waits for the GPU."""
        aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            compute()  # compiles the kernels of these shapes
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            outputs = compute()
        self._pool = self._pool or graph.pool()
        return graph.replay, outputs


@dataclass(frozen=True, slots=True)
class _Recorded:
    """One bucket. Shapes: flat int64, the inputs; streams, logits and taps of all its tokens."""

    flat: Tensor
    replay: Callable[[], None]
    computed: Computed
    logits: Tensor


class DecodeGraphs:
    """Computes decode steps by replaying what was recorded for their bucket, recording it where it is new."""

    def __init__(
        self,
        model: Transformer,
        cache: StepCache,
        padding: Padding,
        tapped: tuple[int, ...],
        recorder: Recorder,
    ) -> None:
        self._model = model
        self._cache = cache
        self._padding = padding
        self._tapped = tapped
        self._recorder = recorder
        self._recorded: dict[Bucket, _Recorded] = {}

    @property
    def buckets(self) -> tuple[Bucket, ...]:
        """What was recorded."""
        return tuple(self._recorded)

    def run(self, inputs: StepInputs, plan: StepPlan) -> tuple[Computed, Tensor] | None:
        """Compute a step; None where it fits in no bucket. Shapes: logits [L, V], as inputs.logit_tokens name them.

        Rule: the results are valid until the next step. Inputs are on the host.
        """
        bucket = self._padding.bucket(plan)
        if bucket is None:
            return None
        recorded = self._recorded.get(bucket)
        if recorded is None:
            recorded = self._recorded[bucket] = self._record(self._padding.idle(inputs, bucket))
        padded = self._padding.pad(inputs, plan, bucket)
        recorded.flat.copy_(staged(padded, self._model.placement.device), non_blocking=True)
        recorded.replay()
        count, computed = inputs.token_ids.shape[0], recorded.computed
        taps = None if computed.taps is None else computed.taps[:count]
        return Computed(computed.streams[:count], taps), recorded.logits[:count]

    def _record(self, idle: StepInputs) -> _Recorded:
        """Record a bucket with work that nobody reads: a step may not be computed twice."""
        device = self._model.placement.device
        held = staged(idle, device).to(device)
        inputs = rebuilt(idle, held)

        def compute() -> tuple[Computed, Tensor]:
            computed = self._model.run(inputs, self._cache, self._tapped)
            return computed, self._model.logits(computed.streams)

        replay, (computed, logits) = self._recorder(compute)
        return _Recorded(held, replay, computed, logits)
