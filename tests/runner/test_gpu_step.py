"""The model on the GPU's operators, without a GPU.

On meta tensors a step runs all of its Python but has no data: whatever would wait for a result raises, and so does a
tensor that was left on the host. In Triton's interpreter it computes, and must give the logits of the CPU's operators.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from dsv4_kernels.dispatch import OPERATORS, bind
from dsv4_kernels.errors import FormatError
from dsv4_kernels.ops import OpTable
from dsv4_kernels.placement import HOST, DevicePlacement, Placement
from dsv4_kernels.sampling import SampleRows
from dsv4_kernels.triton_lang.arch import arch_named
from dsv4_kernels.triton_lang.launch import Device, Launch, execute
from dsv4_kernels.triton_lang.table import functions
from hf_oracle import HfSource, make_oracle, random_tokens, stored_fp32
from model_rig import Driver
from test_batch_invariance import stored_official
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton_interpreter import repair

from dsv4_backend.checkpoint.load import Checkpoint
from dsv4_backend.config import CacheFormat, DeviceKind, Numerics, ServingConfig
from dsv4_backend.errors import ConfigError
from dsv4_backend.kv.layout import KINDS, make_layout
from dsv4_backend.kv.manager import CacheManager, CacheRules
from dsv4_backend.model import Transformer
from dsv4_backend.model.transformer import Computed
from dsv4_backend.records import PlanRow, SamplingParams, SequenceStart, StepPlan
from dsv4_backend.runner.cache import RankCache
from dsv4_backend.runner.drafting import DraftRow, load_draft_model
from dsv4_backend.runner.graphs import DecodeGraphs
from dsv4_backend.runner.inputs import InputBuilder
from dsv4_backend.runner.padding import Padding
from dsv4_backend.runner.target import open_target
from dsv4_backend.runner.upload import Upload

META = DevicePlacement(torch.device("meta"))
NUM_PAGES = 12
PROMPT_TOKENS = 300  # past a window, two pages and an HCA block


def recording(arch: str) -> tuple[OpTable, list[Launch]]:
    """Operators that launch nothing, and what they would have launched."""
    launches: list[Launch] = []
    return OpTable(**functions(Device(arch_named(arch), launches.append), OPERATORS)), launches


class Steps:
    """A sequence on a model without data: its prompt in one step, then decode steps with a draft model, if it has one.

    What is chosen is always token 7: a test has no logits to choose from.
    """

    def __init__(self, checkpoint: Path, arch: str, cache_format: CacheFormat, max_drafts: int) -> None:
        opened = Checkpoint.open(checkpoint)
        opened = opened.with_draft() if max_drafts else opened
        ops, self.launches = recording(arch)
        num_stages = opened.config.draft.num_stages if max_drafts else 0
        layout = make_layout(opened.config, cache_format, max_drafts, num_stages)
        with opened.source() as source:
            self.model = Transformer.load(opened.config, source, ops, Numerics.TRAINED, META)
            self.drafts = load_draft_model(self.model, source, layout) if max_drafts else None
        places = dict.fromkeys(KINDS, NUM_PAGES)
        self.manager, self.builder = CacheManager(CacheRules(device=places)), InputBuilder(opened.config, layout)
        self.cache = RankCache(layout, places, device=META.device, num_spare=1)
        self.padding = Padding(self.builder, layout, NUM_PAGES, NUM_PAGES)
        self.graphs = DecodeGraphs(self.model, self.cache, self.padding, (), record_nothing)
        self.upload, self.done, self.max_drafts = Upload(META.device), 0, max_drafts

    def step(self, count: int, *, is_replayed: bool) -> Tensor:
        """Compute `count` more tokens; the last ones of a decode step are drafts."""
        grants = self.manager.reserve(1, self.done + count)
        assert grants is not None
        num_drafts = min(self.max_drafts, count - 1) if self.done else 0
        row = PlanRow(sequence_id=1, start=self.done, token_ids=(7,) * count, num_drafts=num_drafts, grants=grants)
        start = SequenceStart(sequence_id=1, token_ids=(7,), num_prompt_tokens=1, sampling=SamplingParams())
        plan = StepPlan(step=1, rows=(row,), starts=() if self.done else (start,))
        inputs = self.builder.build(plan)
        if is_replayed:
            replayed = self.graphs.run(inputs, plan)
            assert replayed is not None
            computed, logits = replayed
        else:
            inputs = self.upload(inputs)
            computed = self.model.run(inputs, self.cache, self.drafts.tapped if self.drafts else ())
            logits = self.model.logits(computed.at(inputs.logit_tokens))
        self.model.ops.sample_tokens(logits, SampleRows.of([(1.0, 20, 0.9, 0.1, 0.5)] * logits.shape[0]))
        if self.drafts is not None:
            self._propose(count, computed)
        self.done += count
        return logits

    def _propose(self, count: int, computed: Computed) -> None:
        assert self.drafts is not None
        told = DraftRow(
            sequence_id=1,
            state=0,
            first_token=0,
            start=self.done,
            next_ids=[7] * count,
            known_from=0,
            num_wanted=self.max_drafts,
            choose=lambda scores, number: 7,
        )
        self.drafts.propose([told], computed, self.cache)


class NothingFromTheHost(TorchDispatchMode):
    """Refuses operations with host tensors: a graph that is recorded cannot wait for their copies."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        seen = [each for each in tree_leaves((args, kwargs, out)) if isinstance(each, Tensor)]
        assert all(each.device == META.device for each in seen), f"{func} touches the host"
        return out


def record_nothing(compute: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
    """A recording that is never replayed: there is no data."""
    with NothingFromTheHost():
        return (lambda: None), compute()


@pytest.mark.parametrize("arch", ["sm_90", "sm_100a", "sm_120a"])  # sm_103a is as sm_100a
@pytest.mark.parametrize("is_replayed", [False, True], ids=["plain", "recorded"])
@pytest.mark.parametrize("cache_format", [CacheFormat.FP32, CacheFormat.PACKED_FP4INDEX])
def test_a_step_waits_for_nothing(
    cache_format: CacheFormat, is_replayed: bool, arch: str, nano_checkpoint: Path
) -> None:
    for layout, max_drafts in (("official", 0), ("nvfp4", 0), ("official", 2)):
        steps = Steps(nano_checkpoint.parent / layout, arch, cache_format, max_drafts)
        vocab = steps.model.config.vocab_size
        assert steps.step(PROMPT_TOKENS, is_replayed=False).shape == (1, vocab)
        for count in (1, 1 + max_drafts, 1):
            before = len(steps.launches)
            logits = steps.step(count, is_replayed=is_replayed)
            assert logits.device == META.device and tuple(logits.shape) == (count, vocab)
            assert len(steps.launches) > before or is_replayed
        held = [each for launch in steps.launches for each in launch.arguments if isinstance(each, Tensor)]
        assert {each.device.type for each in held} == {"meta"}


def interpreted(arch: str) -> tuple[OpTable, Placement]:
    repair()
    table = OpTable(**functions(Device(arch_named(arch), execute), OPERATORS))
    return table, DevicePlacement(torch.device("cpu"))


def logits_of(
    ops: OpTable, placement: Placement, numerics: Numerics, cache_format: CacheFormat, chunks: list[int]
) -> Tensor:
    """A tiny model with a layer of each kind and rates so small that 44 tokens close blocks and fill the indexer."""
    rates = {"compressed_sparse_attention": 4, "heavily_compressed_attention": 32}
    shape: dict[str, Any] = {"num_hidden_layers": 3, "compress_ratios": [0, 4, 128], "index_topk": 6}
    oracle, config = make_oracle(31, compress_rates=rates, **shape)
    source = HfSource(oracle, stored_fp32 if numerics is Numerics.PLAIN else stored_official)
    model = Transformer.load(config, source, ops, numerics, placement)
    return Driver(model, num_pages=2, cache_format=cache_format).run(random_tokens(sum(chunks), 31), chunks)


@pytest.mark.ci
def test_float32_weights_give_the_logits_of_the_cpu() -> None:
    rest = (Numerics.PLAIN, CacheFormat.FP32, [30, 4, 1, 1])
    got, want = logits_of(*interpreted("sm_90"), *rest), logits_of(bind("cpu"), HOST, *rest)
    assert float((got - want).abs().max()) < 1e-4 * float(want.abs().max())


@pytest.mark.ci
@pytest.mark.parametrize("arch", ["sm_90", "sm_100a"])
def test_packed_weights_and_caches_give_nearly_the_logits_of_the_cpu(arch: str) -> None:
    rest = (Numerics.TRAINED, CacheFormat.PACKED_FP4INDEX, [30, 4, 1, 1])
    got, want = logits_of(*interpreted(arch), *rest), logits_of(bind("cpu"), HOST, *rest)
    assert float((got - want).norm() / want.norm()) < 0.15  # bf16 tokens, then FP8 steps of 6 %


def test_a_gpu_that_is_not_there_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = ServingConfig(checkpoint="x", device=DeviceKind.CUDA)
    with pytest.raises(ConfigError, match=r"torch sees no GPU.*device=cpu"):
        open_target(config)
    assert open_target(replace(config, device=DeviceKind.AUTO)).placement is HOST


def test_the_cpus_operators_refuse_weights_of_a_gpu() -> None:
    oracle, config = make_oracle(31, num_hidden_layers=1, compress_ratios=[0])
    placement = DevicePlacement(torch.device("cpu"))
    with pytest.raises(FormatError, match="no matrix on this side"):
        Transformer.load(config, HfSource(oracle), bind("cpu"), Numerics.PLAIN, placement)
