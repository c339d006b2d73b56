"""A plan becomes flat tensors: rows through page tables, blocks through rings, logits by request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from dsv4_kernels.dispatch import bind
from hf_oracle import TINY, HfSource, make_oracle
from hypothesis import given
from hypothesis import strategies as st

from dsv4_backend.config import Numerics, parse_model_config
from dsv4_backend.kv.layout import make_layout
from dsv4_backend.kv.manager import CacheManager
from dsv4_backend.model import BlockInputs, StepInputs, Transformer
from dsv4_backend.records import PageGrant, PlanRow, SamplingParams, SequenceStart, StepPlan
from dsv4_backend.runner.cache import RankCache
from dsv4_backend.runner.inputs import InputBuilder

CONFIG = parse_model_config(dict(TINY))
LAYOUT = make_layout(CONFIG)
CSA_RATIO, HCA_RATIO = 4, 128


class Rig:
    """A builder whose page tables are filled by a real cache manager."""

    def __init__(self, num_pages: int = 24) -> None:
        self.manager = CacheManager(LAYOUT, {kind.name: num_pages for kind in LAYOUT.kinds})
        self.builder = InputBuilder(CONFIG, LAYOUT)
        self.grants: dict[int, list[PageGrant]] = {}
        self.done: dict[int, int] = {}

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
            rows.append(PlanRow(sequence_id=sequence_id, start=begin, token_ids=tokens, grants=grants, **row_fields))
            self.done[sequence_id] += count
        return self.builder.build(StepPlan(step=0, rows=tuple(rows), starts=starts))

    def row(self, sequence_id: int, kind: str, entry: int) -> int:
        """The cache row of an entry, found the slow way."""
        spec = LAYOUT.kind(kind)
        assert spec is not None
        block, offset = divmod(entry, spec.rows_per_page)
        for grant in reversed(self.grants[sequence_id]):
            if grant.kind == kind and grant.first_block <= block < grant.first_block + len(grant.page_ids):
                return grant.page_ids[block - grant.first_block] * spec.rows_per_page + offset
        raise AssertionError(f"sequence {sequence_id} has no page for {kind} entry {entry}")


def start_of(sequence_id: int) -> SequenceStart:
    return SequenceStart(sequence_id=sequence_id, token_ids=(), num_prompt_tokens=0, sampling=SamplingParams())


class Positions:
    """A ring that holds (sequence, position) where the model holds channels."""

    def __init__(self) -> None:
        self.rows: dict[int, tuple[int, int]] = {}

    def sources(self, blocks: BlockInputs, owners: Sequence[tuple[int, int]]) -> list[list[tuple[int, int] | None]]:
        """What each slot of each closing block reads; then the ring takes this step's tokens."""
        found = []
        for tokens, rows in zip(blocks.source_tokens.tolist(), blocks.source_rows.tolist(), strict=True):
            assert all(token < 0 or row < 0 for token, row in zip(tokens, rows, strict=True))
            slots = zip(tokens, rows, strict=True)
            found.append([owners[t] if t >= 0 else self.rows[r] if r >= 0 else None for t, r in slots])
        for token, row in zip(blocks.ring_tokens.tolist(), blocks.ring_rows.tolist(), strict=True):
            self.rows[row] = owners[token]
        return found


STEPS = st.lists(
    st.dictionaries(st.integers(0, 3), st.sampled_from([1, 1, 2, 3, 4, 5, 9, 127, 128, 130]), min_size=1),
    min_size=1,
    max_size=6,
)


@given(steps=STEPS)
def test_every_block_reads_exactly_its_own_positions(steps: list[dict[int, int]]) -> None:
    rig, rings = Rig(64), {CSA_RATIO: Positions(), HCA_RATIO: Positions()}
    for step in steps:
        begun = {sequence: rig.done.get(sequence, 0) for sequence in step}
        inputs = rig.build(list(step.items()))
        owners = [(s, begun[s] + offset) for s, count in step.items() for offset in range(count)]
        for ratio, blocks, overlap in ((CSA_RATIO, inputs.csa, CSA_RATIO), (HCA_RATIO, inputs.hca, 0)):
            assert blocks is not None
            closing = [(s, i) for s in step for i in range(begun[s] // ratio, rig.done[s] // ratio)]
            expected = [
                [(s, p) if p >= 0 else None for p in range(i * ratio - overlap, (i + 1) * ratio)] for s, i in closing
            ]
            assert rings[ratio].sources(blocks, owners) == expected
            assert blocks.positions.tolist() == [i * ratio for _, i in closing]


@given(steps=STEPS)
def test_every_token_reads_its_window_and_its_visible_entries(steps: list[dict[int, int]]) -> None:
    rig = Rig(64)
    for step in steps:
        begun = {sequence: rig.done.get(sequence, 0) for sequence in step}
        inputs = rig.build(list(step.items()))
        owners = [(s, begun[s] + offset) for s, count in step.items() for offset in range(count)]
        for token in {0, len(owners) // 2, len(owners) - 1}:
            sequence, position = owners[token]
            window = [
                rig.row(sequence, "window", p) if p >= 0 else -1
                for p in range(position - CONFIG.window + 1, position + 1)
            ]
            assert inputs.window_rows[token].tolist() == window
            entries = [rig.row(sequence, "hca", i) for i in range((position + 1) // HCA_RATIO)]
            assert [row for row in inputs.hca_rows[token].tolist() if row >= 0] == entries
            assert int(inputs.num_visible[token]) == (position + 1) // CSA_RATIO


def test_a_token_is_written_where_its_window_ends() -> None:
    inputs = Rig().build([(1, 130), (2, 3)])
    assert inputs.window_write_rows.tolist() == inputs.window_rows[:, -1].tolist()


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


def test_a_finished_sequence_leaves_no_page_table() -> None:
    rig = Rig()
    rig.build([(1, 3)])
    row = PlanRow(sequence_id=2, start=0, token_ids=(1,), grants=rig.manager.reserve(2, 1) or ())
    rig.builder.build(StepPlan(step=1, rows=(row,), starts=(start_of(2),), finished=(1,)))
    assert rig.builder.tables.num_sequences == 1


def test_a_model_without_compressed_layers_needs_no_block_inputs() -> None:
    config = parse_model_config(TINY | {"compress_ratios": [0, 0, 0, 0]})
    layout = make_layout(config)
    grants = CacheManager(layout, {"window": 4}).reserve(1, 3) or ()
    row = PlanRow(sequence_id=1, start=0, token_ids=(1, 2, 3), grants=grants)
    inputs = InputBuilder(config, layout).build(StepPlan(step=0, rows=(row,), starts=(start_of(1),)))
    assert (inputs.csa, inputs.hca, inputs.csa_tables, inputs.hca_rows.shape[1]) == (None, None, (), 0)


def test_a_step_that_wants_no_logits_gives_none() -> None:
    oracle, config = make_oracle(41)
    model = Transformer.load(config, HfSource(oracle), bind("cpu"), Numerics.PLAIN)
    cache = RankCache(LAYOUT, {kind.name: 24 for kind in LAYOUT.kinds})
    logits = model.forward(Rig().build([(1, 3)], is_sampled=False), cache)
    assert logits.shape == (0, config.vocab_size)


def test_the_cache_takes_the_bytes_that_the_layout_names() -> None:
    cache = RankCache(LAYOUT, {kind.name: 3 for kind in LAYOUT.kinds})
    assert cache.num_bytes == 3 * sum(kind.page_bytes for kind in LAYOUT.kinds)
    assert cache.window(0).dtype == torch.float32
