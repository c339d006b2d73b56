"""Packing, indexer, optimiser, balancing, plan and picture of the trainer, each alone."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest
import torch
from nano_data import FAMILIES, MODES, Mix
from nano_train.batch import NO_DOCUMENT, Document, geometry, pack
from nano_train.curves import draw
from nano_train.data import make_row
from nano_train.main import weights_of
from nano_train.model import Pass
from nano_train.moe import balanced_bias
from nano_train.muon import Rates, update
from nano_train.objective import losses
from nano_train.plan import Plan
from nano_train.row import IndexPhase
from nano_train_rig import packed, random_documents, random_weights, tiny_config


def test_documents_begin_at_multiples_of_four_with_position_zero() -> None:
    batch = packed(random_documents([5, 9, 70], 1))
    assert batch.starts[:3] == (0, 8, 20)
    assert batch.positions[list(batch.starts)].tolist() == [0] * len(batch.starts)


def test_targets_are_the_tokens_after_and_never_the_first_of_a_document() -> None:
    batch = pack([Document([7, 8, 9], [True, False, True]), Document([4, 5], [True, True])], 64, pad_id=2)
    wanted = {row: int(batch.next_ids[row]) for row in batch.is_target.nonzero().flatten().tolist()}
    assert wanted == {1: 9, 4: 5}


def test_documents_longer_than_the_row_are_refused() -> None:
    with pytest.raises(ValueError, match="need 68 tokens but the row holds 64"):
        pack(random_documents([30, 34], 1), 64, pad_id=0)


def test_entries_never_cross_documents() -> None:
    batch = packed(random_documents([133, 260, 127], 3))
    for entries in geometry(batch, 128, [4, 128]).entries.values():
        owners = batch.documents[entries.tokens]
        assert bool((owners == owners[:, :1]).all())


def test_a_row_depends_on_its_number_alone_and_fills_most_of_its_room() -> None:
    mix = Mix(max_tokens=512)
    row, again = make_row(5, 9, mix, 1024), make_row(5, 9, mix, 1024)
    assert torch.equal(row.batch.token_ids, again.batch.token_ids)
    assert int((row.batch.documents != NO_DOCUMENT).sum()) > 700


def test_jumps_move_positions_and_leave_what_entries_hold() -> None:
    [plain] = random_documents([700], 3)
    jumping = Document(plain.token_ids, plain.is_target, {128: 1280, 384: 256})
    near, far = (pack([*random_documents([133], 1), item], 1024, pad_id=0) for item in (plain, jumping))
    start = far.starts[1]
    assert far.positions[start + torch.tensor([127, 128, 383, 384])].tolist() == [127, 1408, 1663, 1920]
    for ratio, entries in geometry(far, 128, [4, 128]).entries.items():
        others = geometry(near, 128, [4, 128]).entries[ratio]
        assert torch.equal(entries.tokens, others.tokens)
        assert entries.ranges == others.ranges
        assert all(map(torch.equal, entries.masks, others.masks))
        assert torch.equal(entries.positions, far.positions[entries.tokens[:, 0]])


def test_short_rows_of_lists_reach_far_positions() -> None:
    mix = Mix(families={"recall": 1.0}, max_tokens=1024, recall_tokens=(500, 900))
    rows = [make_row(3, number, mix, 1024, reach=16_384) for number in range(20)]
    furthest = [int(row.batch.positions.max()) for row in rows]
    assert max(furthest) > 8_000
    assert max(furthest) < 16_384
    assert min(furthest) < 1_024
    for row in rows:
        first = row.batch.is_target.tolist().index(True)
        assert bool((row.batch.positions[first - 127 : first + 1].diff() == 1).all())


def test_the_indexers_loss_reaches_nothing_but_the_indexers() -> None:
    config = tiny_config()
    weights = random_weights(config, 2)
    run = Pass(config, weights, packed(random_documents([200], 4)), index=IndexPhase(frozenset({1, 2})))
    run.backbone()
    torch.stack(run.index_losses).sum().backward()  # type: ignore[no-untyped-call]
    reached = {name for name, tensor in weights.items() if tensor.grad is not None and bool(tensor.grad.any())}
    assert reached == {name for name in weights if ".indexer." in name}


def test_the_indexer_learns_what_its_layer_attends_to() -> None:
    config = tiny_config()
    weights = random_weights(config, 2)
    batch, phase = packed(random_documents([300], 4)), IndexPhase(frozenset({2, 3, 4}), is_dense=True)
    optimiser = torch.optim.Adam([tensor for name, tensor in weights.items() if ".indexer." in name], lr=0.02)
    found = []
    for _ in range(25):
        run = Pass(config, weights, batch, index=phase)
        run.backbone()
        loss = torch.stack(run.index_losses).sum()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        found.append(float(loss.detach()))
    assert 0 <= found[-1] < 0.5 * found[0]


def test_every_trained_weight_gets_a_gradient() -> None:
    config = tiny_config()
    weights = random_weights(config, 2)
    run = Pass(config, weights, packed(random_documents([300, 120], 4)), index=IndexPhase(frozenset({2, 3})))
    losses(run, draft_depth=2).total(0.3).backward()  # type: ignore[no-untyped-call]
    missing = [
        name for name, item in weights.items() if item.requires_grad and (item.grad is None or not item.grad.any())
    ]
    assert missing == []


def test_muon_moves_a_matrix_by_an_orthogonal_one() -> None:
    weight = torch.zeros(32, 64)
    gradient = torch.randn(32, 64, generator=torch.Generator().manual_seed(1))
    moments = {"first": torch.zeros_like(weight), "second": torch.zeros_like(weight)}
    update("layers.0.attn.wq_a.weight", weight, gradient, moments, Rates(learning_rate=1.0), 1)
    singular = torch.linalg.svdvals(weight / (0.2 * 64**0.5))
    assert float(singular.min()) > 0.6 and float(singular.max()) < 1.3


def test_balancing_raises_the_bias_of_experts_below_the_mean() -> None:
    bias = balanced_bias(torch.zeros(3), torch.tensor([9.0, 0.0, 3.0]), 0.1)
    assert bias.tolist() == pytest.approx([-0.1, 0.1, 0.1])


def test_the_rate_rises_stays_and_falls() -> None:
    plan = Plan(num_steps=1000, peak_rate=1.0, warmup_steps=10, decay_share=0.4, final_rate=0.1)
    assert [round(plan.rate(step), 2) for step in (0, 9, 300, 599, 800, 1000)] == [0.1, 1.0, 1.0, 1.0, 0.55, 0.1]


def test_a_run_that_begins_late_in_the_plan_keeps_its_last_stages() -> None:
    plan = Plan(num_steps=100, begin_share=0.5, warmup_steps=1)
    assert [plan.draft_depth(step) for step in (0, 86, 95)] == [0, 1, 2]
    assert plan.rate(50) < plan.rate(10) == plan.peak_rate


def test_the_rate_rises_only_to_where_a_late_run_begins() -> None:
    plan = Plan(num_steps=100, begin_share=0.9, warmup_steps=10)
    assert max(plan.rate(step) for step in range(100)) < plan.peak_rate * 0.27


def test_weights_of_families_and_modes_replace_those_of_the_stages() -> None:
    families, modes = weights_of(["copy=40", "sort=0.5"], FAMILIES), weights_of(["max=0.55"], MODES)
    mix, usual = Plan(num_steps=100, families=families, modes=modes).mix(80), Plan(num_steps=100).mix(80)
    assert mix.families == {**usual.families, "copy": 40.0, "sort": 0.5}
    assert mix.modes == {**usual.modes, "max": 0.55}
    with pytest.raises(ValueError, match=r"'copies=1'.*tools, greet"):
        weights_of(["copies=1"], FAMILIES)


def test_a_prompt_loss_leaves_targets_and_padding_out() -> None:
    config = tiny_config()
    weights = random_weights(config, 2)
    documents = [Document(range(30), [False] * 10 + [True] * 20)]
    run = Pass(config, weights, pack(documents, 64, pad_id=0))
    logits = run.logits(run.backbone()[:9])  # the tokens 1 ... 9 belong to the prompt
    expected = torch.nn.functional.cross_entropy(logits, torch.arange(1, 10))
    again = losses(Pass(config, weights, pack(documents, 64, pad_id=0)), 0, has_prompt=True)
    assert float(again.prompt.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)


def test_documents_grow_longer_in_the_course_of_a_run() -> None:
    plan = Plan(num_steps=100)
    lengths = [plan.mix(step).max_tokens for step in (0, 30, 99)]
    assert lengths == sorted(lengths) and lengths[-1] == plan.row_tokens


def test_the_picture_shows_every_family() -> None:
    log = [{"step": 1, "next_token": 2.0}, {"step": 2, "exact": {"tools": 0.5, "copy": 0.25}}]
    texts = {item.text for item in ElementTree.fromstring(draw(log)).iter() if item.text}
    assert {"tools", "copy", "next_token"} <= texts
