"""A plan becomes flat tensors: rows through page tables, blocks through rings, logits by request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import pytest
import torch
from dsv4_kernels.cpu.plan import unplanned
from dsv4_kernels.dispatch import bind
from hf_oracle import TINY, HfSource, make_oracle
from hypothesis import given
from hypothesis import strategies as st

from dsv4_backend.config import CacheFormat, Numerics, parse_model_config
from dsv4_backend.kv.layout import KINDS, make_layout
from dsv4_backend.kv.manager import CacheManager, CacheRules
from dsv4_backend.model import FoldInputs, PoolInputs, StepInputs, Transformer
from dsv4_backend.model.transformer import Computed
from dsv4_backend.records import PageCopy, PageGrant, PlanRow, SamplingParams, SequenceStart, StepPlan, Tier
from dsv4_backend.runner.cache import RankCache
from dsv4_backend.runner.inputs import InputBuilder

CONFIG = parse_model_config(dict(TINY))
LAYOUT = make_layout(CONFIG)
CSA_RATIO, HCA_RATIO = 4, 128


class Rig:
    """A builder whose page tables are filled by a real cache manager."""

    def __init__(self, num_pages: int = 24, max_drafts: int = 0) -> None:
        self.manager = CacheManager(CacheRules(device=dict.fromkeys(KINDS, num_pages)))
        layout = make_layout(CONFIG, max_drafts=max_drafts)
        self.builder, self.compiled = InputBuilder(CONFIG, layout), InputBuilder(CONFIG, layout, bind("cpu"))
        self.grants: dict[int, list[PageGrant]] = {}
        self.done: dict[int, int] = {}
        self.written: dict[int, int] = {}
        self.last: dict[int, int] = {}

    def take_back(self, sequence_id: int, count: int) -> None:
        """The last tokens were drafts."""
        if count:
            self.done[sequence_id] -= count

    def build(self, counts: Sequence[tuple[int, int]], **row_fields: Any) -> StepInputs:
        """Inputs of a step that computes the next tokens of each sequence; unknown sequences begin."""
        starts = tuple(start_of(sequence_id) for sequence_id, _ in counts if sequence_id not in self.done)
        rows = []
        for sequence_id, count in counts:
            begin = self.done.setdefault(sequence_id, 0)
            grants = self.manager.reserve(sequence_id, begin + count)
            assert grants is not None
            self.grants.setdefault(sequence_id, []).extend(grants)
            tokens = tuple(range(begin, begin + count))
            written = self.written.get(sequence_id, 0)
            row = {"sequence_id": sequence_id, "start": begin, "token_ids": tokens, "num_written": written}
            rows.append(PlanRow(**row, grants=grants, **row_fields))
            self.done[sequence_id], self.last[sequence_id] = begin + count, count
            self.written[sequence_id] = max(written, begin + count)
        plan = StepPlan(step=0, rows=tuple(rows), starts=starts)
        inputs = unplanned(self.builder.build(plan))
        assert_same(unplanned(self.compiled.build(plan)), inputs)
        return inputs

    def row(self, sequence_id: int, kind: str, entry: int) -> int:
        """The cache row of an entry, found the slow way."""
        spec = LAYOUT.entry(kind)
        assert spec is not None
        block, offset = divmod(entry, spec.rows_per_page)
        for grant in self.grants[sequence_id]:
            if grant.kind == "block" and grant.first_block <= block < grant.first_block + len(grant.page_ids):
                return grant.page_ids[block - grant.first_block] * spec.rows_per_page + offset
        raise AssertionError(f"sequence {sequence_id} has no page for {kind} entry {entry}")

    def state(self, sequence_id: int) -> int:
        (state,) = [grant.page_ids[0] for grant in self.grants[sequence_id] if grant.kind == "state"]
        return state


def assert_same(got: object, want: object) -> None:
    """The compiled planner's inputs are the readable form's, tensor by tensor."""
    if isinstance(want, torch.Tensor):
        assert isinstance(got, torch.Tensor) and got.dtype == want.dtype and torch.equal(got, want)
    elif isinstance(want, tuple) and not is_dataclass(want):
        assert isinstance(got, tuple) and len(got) == len(want)
        for mine, theirs in zip(got, want, strict=True):
            assert_same(mine, theirs)
    elif is_dataclass(want):
        assert type(got) is type(want)
        for item in fields(want):
            assert_same(getattr(got, item.name), getattr(want, item.name))
    else:
        assert got == want


def start_of(sequence_id: int) -> SequenceStart:
    return SequenceStart(sequence_id=sequence_id, token_ids=(), num_prompt_tokens=0, sampling=SamplingParams())


Owner = tuple[int, int]


class Rings:
    """Rings and folded states that hold (sequence, position) where the model holds channels."""

    def __init__(self) -> None:
        self.window: dict[int, Owner] = {}
        self.pool: dict[int, Owner] = {}
        self.raw: dict[int, Owner] = {}
        self.folded: dict[int, list[Owner]] = {}

    def pooled(self, blocks: PoolInputs, owners: Sequence[Owner]) -> list[list[Owner | None]]:
        """What each slot of each closing block reads; then the ring takes this step's tokens."""
        found = []
        for tokens, rows in zip(blocks.source_tokens.tolist(), blocks.source_rows.tolist(), strict=True):
            assert all(token < 0 or row < 0 for token, row in zip(tokens, rows, strict=True))
            slots = zip(tokens, rows, strict=True)
            found.append([owners[t] if t >= 0 else self.pool[r] if r >= 0 else None for t, r in slots])
        _take(self.pool, blocks, owners)
        return found

    def closed(self, blocks: FoldInputs, owners: Sequence[Owner]) -> list[list[Owner]]:
        """What each closing block was folded from; then states and raw rows take what they take."""
        rows, runs, found = [*owners, *(self.raw[row] for row in blocks.raw_rows.tolist())], blocks.runs, []
        offsets = runs.offsets.tolist()
        for run, (begin, end) in enumerate(zip(runs.begins.tolist(), runs.ends.tolist(), strict=True)):
            before = self.folded[begin] if begin >= 0 else []
            folded = before + [rows[source] for source in runs.sources[offsets[run] : offsets[run + 1]].tolist()]
            if end < 0:
                found.append(folded)
            else:
                self.folded[end] = folded
        _take(self.raw, blocks, owners)
        return found

    def seen(self, inputs: StepInputs, token: int, owners: Sequence[Owner]) -> list[Owner | None]:
        """What the window of a token shows."""
        rows = inputs.window_rows[token].tolist()
        return [None if row == -1 else self.window[row] if row >= 0 else owners[-2 - row] for row in rows]


def _take(ring: dict[int, Owner], kept: PoolInputs | FoldInputs | StepInputs, owners: Sequence[Owner]) -> None:
    for token, row in zip(kept.ring_tokens.tolist(), kept.ring_rows.tolist(), strict=True):
        ring[row] = owners[token]


STEPS = st.lists(
    st.dictionaries(st.integers(0, 3), st.sampled_from([1, 1, 2, 3, 4, 5, 9, 127, 128, 130]), min_size=1),
    min_size=1,
    max_size=6,
)


@given(steps=STEPS, max_drafts=st.sampled_from([0, 1, 5]), data=st.data())
def test_every_token_and_block_reads_exactly_its_own_positions(
    steps: list[dict[int, int]], max_drafts: int, data: st.DataObject
) -> None:
    """Also when the last tokens of a step are taken back by the next one, again and again."""
    rig, rings = Rig(64, max_drafts), Rings()
    for step in steps:
        for sequence in step:
            most = min(max_drafts, rig.last.get(sequence, 1) - 1)
            rig.take_back(sequence, data.draw(st.integers(0, most)) if most > 0 else 0)
        begun = {sequence: rig.done.get(sequence, 0) for sequence in step}
        inputs = rig.build(list(step.items()))
        owners = [(s, begun[s] + offset) for s, count in step.items() for offset in range(count)]
        assert inputs.csa is not None and inputs.hca is not None
        for token in {0, len(owners) // 2, len(owners) - 1}:
            sequence, position = owners[token]
            window = range(position - CONFIG.window + 1, position + 1)
            assert rings.seen(inputs, token, owners) == [(sequence, p) if p >= 0 else None for p in window]
        _take(rings.window, inputs, owners)
        closing = [(s, i) for s in step for i in range(begun[s] // CSA_RATIO, rig.done[s] // CSA_RATIO)]
        assert rings.pooled(inputs.csa, owners) == [
            [(s, p) if p >= 0 else None for p in range((i - 1) * CSA_RATIO, (i + 1) * CSA_RATIO)] for s, i in closing
        ]
        assert inputs.csa.positions.tolist() == [i * CSA_RATIO for _, i in closing]
        closing = [(s, i) for s in step for i in range(begun[s] // HCA_RATIO, rig.done[s] // HCA_RATIO)]
        assert rings.closed(inputs.hca, owners) == [
            [(s, p) for p in range(i * HCA_RATIO, (i + 1) * HCA_RATIO)] for s, i in closing
        ]
        assert inputs.hca.positions.tolist() == [i * HCA_RATIO for _, i in closing]


@given(steps=STEPS)
def test_every_token_reads_its_visible_entries(steps: list[dict[int, int]]) -> None:
    rig = Rig(64)
    for step in steps:
        begun = {sequence: rig.done.get(sequence, 0) for sequence in step}
        inputs = rig.build(list(step.items()))
        owners = [(s, begun[s] + offset) for s, count in step.items() for offset in range(count)]
        for token in {0, len(owners) // 2, len(owners) - 1}:
            sequence, position = owners[token]
            entries = [rig.row(sequence, "hca", i) for i in range((position + 1) // HCA_RATIO)]
            assert [row for row in inputs.hca_rows[token].tolist() if row >= 0] == entries
            assert int(inputs.num_visible[token]) == (position + 1) // CSA_RATIO


def test_a_row_of_a_ring_belongs_to_the_state_of_its_sequence() -> None:
    rig = Rig()
    inputs = rig.build([(1, 130), (2, 3)])
    rows = [rig.state(1) * 128 + position % 128 for position in range(2, 130)]
    assert inputs.ring_rows.tolist() == rows + [rig.state(2) * 128 + position for position in range(3)]


def test_entries_of_each_sequence_cover_every_closed_block() -> None:
    rig = Rig()
    rig.build([(1, 130)])
    inputs = rig.build([(2, 9), (1, 3)])
    assert inputs.csa_tables[1].tokens == slice(9, 12)
    assert inputs.csa_tables[1].index_rows.tolist() == [rig.row(1, "index", i) for i in range(33)]
    assert inputs.csa_rows[int(inputs.first_entries[9]) :].tolist() == [rig.row(1, "csa", i) for i in range(33)]


def test_rows_that_are_sampled_give_one_logit_and_the_others_none() -> None:
    rig = Rig()
    rig.build([(1, 5)])
    inputs = rig.build([(2, 7), (1, 1)], is_sampled=True)
    assert inputs.logit_tokens.tolist() == [6, 7]
    assert inputs.logit_spans == ((0, 1), (1, 2))
    assert rig.build([(3, 7)], is_sampled=False).logit_spans == ((0, 0),)


def test_rows_that_want_prompt_logprobs_give_every_logit() -> None:
    inputs = Rig().build([(1, 3), (2, 2)], wants_prompt_logprobs=True, is_sampled=False)
    assert inputs.logit_tokens.tolist() == [0, 1, 2, 3, 4]
    assert inputs.logit_spans == ((0, 3), (3, 5))


@pytest.mark.parametrize("tokens", [[0, 1, 2], [0, 2], []])
def test_the_streams_of_some_tokens_are_theirs_also_where_these_are_all(tokens: list[int]) -> None:
    streams = torch.arange(24.0).view(3, 4, 2)
    wanted = torch.tensor(tokens, dtype=torch.int64)
    assert torch.equal(Computed(streams, None).at(wanted), streams[wanted])


def test_a_finished_sequence_leaves_no_page_table() -> None:
    rig = Rig()
    rig.build([(1, 3)])
    row = PlanRow(sequence_id=2, start=0, token_ids=(1,), grants=rig.manager.reserve(2, 1) or ())
    rig.builder.build(StepPlan(step=1, rows=(row,), starts=(start_of(2),), finished=(1,)))
    assert rig.builder.tables.num_sequences == 1


def test_a_model_without_compressed_layers_needs_no_block_inputs() -> None:
    config = parse_model_config(TINY | {"compress_ratios": [0, 0, 0, 0]})
    layout = make_layout(config)
    grants = CacheManager(CacheRules(device=dict.fromkeys(KINDS, 4))).reserve(1, 3) or ()
    row = PlanRow(sequence_id=1, start=0, token_ids=(1, 2, 3), grants=grants)
    inputs = InputBuilder(config, layout).build(StepPlan(step=0, rows=(row,), starts=(start_of(1),)))
    assert (inputs.csa, inputs.hca, inputs.csa_tables, inputs.hca_rows.shape[1]) == (None, None, (), 0)


def test_a_step_that_wants_no_logits_gives_none() -> None:
    oracle, config = make_oracle(41)
    model = Transformer.load(config, HfSource(oracle), bind("cpu"), Numerics.PLAIN)
    cache = RankCache(LAYOUT, dict.fromkeys(KINDS, 24))
    logits = model.forward(Rig().build([(1, 3)], is_sampled=False), cache)
    assert logits.shape == (0, config.vocab_size)


@pytest.mark.parametrize("cache_format", list(CacheFormat))
@pytest.mark.parametrize("max_drafts", [0, 5])
def test_the_cache_takes_the_bytes_that_the_layout_names(cache_format: CacheFormat, max_drafts: int) -> None:
    layout = make_layout(CONFIG, cache_format, max_drafts)
    cache = RankCache(layout, {"block": 3, "state": 2})
    assert cache.num_bytes == 3 * layout.page_bytes + 2 * layout.state_bytes


def test_copies_between_places_and_tiers_keep_every_byte() -> None:
    layout = make_layout(CONFIG, CacheFormat.PACKED_FP4INDEX, 2)
    cache = RankCache(layout, {"block": 3, "state": 3}, {"block": 2, "state": 2})
    parts = [part for kind in KINDS for part in cache._device.parts[kind]]
    for part in parts:
        part.at(1).copy_(torch.randint(1, 99, part.at(1).shape))
    for kind in KINDS:
        cache.copy(
            [
                PageCopy(kind=kind, source=1, target=0, target_tier=Tier.HOST),
                PageCopy(kind=kind, source=0, target=2, source_tier=Tier.HOST),
                PageCopy(kind=kind, source=2, target=0),
            ]
        )
    assert all(torch.equal(part.at(0), part.at(1)) and torch.equal(part.at(2), part.at(1)) for part in parts)
