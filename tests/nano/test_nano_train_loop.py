"""A run learns, resumes bit for bit, and stops when asked."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from nano_train.config import nano_values, read_config
from nano_train.export import Trained, export
from nano_train.loop import NUM_REPORTED, Rank, Run
from nano_train.main import VOCAB_SIZE
from nano_train.plan import Plan
from nano_train.run import first_weights, train
from nano_train.shared import Arena
from nano_train.ship import figures, without_draft
from nano_train.state import load_state, read_log, restore
from nano_train.weights import initial_weights
from nano_train_rig import TINY

from dsv4_backend.checkpoint.write import LayoutName

PLAN = Plan(num_steps=6, row_tokens=512, warmup_steps=2, deep_draft_share=0.5, rounding_share=0.8, dense_share=0.3)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def make_run(folder: Path, plan: Plan = PLAN) -> Run:
    values = nano_values(VOCAB_SIZE, **(TINY | {"num_hidden_layers": 3, "compress_ratios": [0, 4, 128, 0]}))
    return Run(values=values, plan=plan, folder=folder, num_ranks=1, evaluate_steps=100, evaluate_rows=1)


def train_alone(run: Run, stop_after: int = 1000) -> Arena:
    """Train in this process; ask to stop after some steps."""
    arena = Arena.allocate(initial_weights(read_config(run.values), run.plan.seed), 1, NUM_REPORTED)
    state = load_state(run.folder)
    if state is not None:
        restore(arena, state)
    asked = iter(range(1, 1000))
    first = 0 if state is None else int(state["step"])
    Rank(run, 0, arena, threading.Barrier(1)).train(first, lambda: next(asked) >= stop_after)
    return arena


def test_a_resumed_run_ends_with_the_weights_of_an_undisturbed_one(tmp_path: Path) -> None:
    whole = train_alone(make_run(tmp_path / "whole"))
    train_alone(make_run(tmp_path / "parts"), stop_after=2)
    resumed = train_alone(make_run(tmp_path / "parts"))
    assert torch.equal(resumed.values, whole.values)


def test_a_run_that_is_asked_to_stop_saves_the_step_it_has_reached(tmp_path: Path) -> None:
    train_alone(make_run(tmp_path), stop_after=3)
    state = load_state(tmp_path)
    assert state is not None and state["step"] == 3


def test_the_log_has_one_line_per_step_also_after_a_resume(tmp_path: Path) -> None:
    train_alone(make_run(tmp_path), stop_after=4)
    train_alone(make_run(tmp_path))
    steps = [line["step"] for line in read_log(tmp_path) if "next_token" in line]
    assert steps == list(range(1, PLAN.num_steps + 1))


def test_the_figures_of_a_run_are_added_to_those_of_the_weights_it_began_with(tmp_path: Path) -> None:
    train_alone(make_run(tmp_path))
    state, log = load_state(tmp_path), read_log(tmp_path)
    assert state is not None
    alone = figures(state, log, {})
    both = figures(state, log, {"steps": 5, "tokens": 1000, "seconds": 20.5})
    assert alone["steps"] == PLAN.num_steps
    assert both["steps"] == alone["steps"] + 5
    assert both["tokens"] == alone["tokens"] + 1000
    assert both["seconds"] == pytest.approx(alone["seconds"] + 20.5)


def test_a_run_of_the_indexers_alone_changes_nothing_else(tmp_path: Path) -> None:
    run = dataclasses.replace(make_run(tmp_path, dataclasses.replace(PLAN, begin_share=0.7)), only="indexer")
    trained = train_alone(run)
    begun = initial_weights(read_config(run.values), run.plan.seed)
    now = trained.views(trained.values) | trained.buffers
    changed = {name for name, tensor in begun.items() if not torch.equal(now[name], tensor)}
    assert changed == {name for name in begun if ".indexer." in name}


def test_a_part_that_no_weight_belongs_to_is_refused(tmp_path: Path) -> None:
    run = dataclasses.replace(make_run(tmp_path), only="indexers")
    with pytest.raises(ValueError, match="no weight has 'indexers' in its name"):
        train(run)


def test_the_last_step_grades_held_out_conversations(tmp_path: Path) -> None:
    train_alone(make_run(tmp_path))
    graded = [line for line in read_log(tmp_path) if "exact" in line]
    assert graded[-1]["step"] == PLAN.num_steps and sum(graded[-1]["seen"].values()) > 0


def test_training_lowers_the_loss(tmp_path: Path) -> None:
    plan = dataclasses.replace(PLAN, num_steps=16, rounding_share=1.0, deep_draft_share=1.0)
    train_alone(make_run(tmp_path, plan))
    lines = [line["next_token"] for line in read_log(tmp_path) if "next_token" in line]
    assert lines[-1] < lines[0] - 1


def test_two_ranks_change_the_weights_that_one_of_them_trains(tmp_path: Path) -> None:
    run = dataclasses.replace(make_run(tmp_path, dataclasses.replace(PLAN, num_steps=2)), num_ranks=2)
    assert train(run) == 2
    lines = [line for line in read_log(tmp_path) if "next_token" in line]
    assert len(lines) == 2


def test_a_state_of_another_architecture_is_refused(tmp_path: Path) -> None:
    train_alone(make_run(tmp_path), stop_after=1)
    other = dataclasses.replace(make_run(tmp_path), values=nano_values(VOCAB_SIZE, **(TINY | {"hidden_size": 32})))
    with pytest.raises(ValueError, match="another architecture"):
        train_alone(other)


def test_a_run_begins_with_the_weights_of_a_checkpoint(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    train_alone(run, stop_after=1)
    state = load_state(tmp_path)
    assert state is not None
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text("{}", "utf-8")
    model = Trained.from_state(state)
    export(without_draft(model), tmp_path / "bf16", LayoutName.BF16, tokenizer)
    weights = first_weights(dataclasses.replace(run, begin=(tmp_path / "bf16",)))
    fresh = initial_weights(read_config(run.values), run.plan.seed)
    assert list(weights) == list(fresh)
    assert torch.allclose(weights["embed.weight"], model.weights["embed.weight"], rtol=2**-8)
    assert torch.equal(weights["mtp.0.e_proj.weight"], fresh["mtp.0.e_proj.weight"])
