"""The evaluation counts what it says: cells, grades, drafts, the table, and weights read back from a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from nano_data import FAMILIES, MODES, Grader
from nano_eval.cells import LISTS, QUESTIONS, Cell, all_cells
from nano_eval.drafts import draft_hits, walk
from nano_eval.reach import CHECKPOINT, distance, with_entries
from nano_eval.report import as_rows, table
from nano_eval.score import Played, score
from nano_train.config import nano_values
from nano_train.export import Trained, export
from nano_train.model import Pass
from nano_train.restart import read_trained
from nano_train_rig import TINY, VOCAB, packed, random_documents, random_weights, tiny_config

from dsv4_backend.checkpoint.write import LayoutName


def test_every_family_mode_and_length_has_a_cell() -> None:
    cells = all_cells(8)
    assert len(cells) == len(FAMILIES) * len(MODES) + len(LISTS) * len(MODES)
    assert {cell.count for cell in cells if cell.length} == {QUESTIONS}


def test_long_lists_have_the_length_that_their_cell_names() -> None:
    for length, tokens in (("2k", 2048), ("4k", 4096), ("16k", 16384)):
        (group,) = Cell(family="recall", mode="off", length=length, count=QUESTIONS).groups()
        assert all(0.8 * tokens < len(example.token_ids) < 1.2 * tokens for example in group)
        assert len({example.check.texts for example in group}) == len(group) == QUESTIONS


def test_the_distance_of_an_answer_is_where_its_line_stands_in_the_list() -> None:
    (group,) = Cell(family="recall", mode="off", length="2k", count=QUESTIONS).groups()
    for example in group:
        (line,) = example.check.texts
        prompt = str(group[0].body["messages"][-1]["content"])
        assert prompt[round((1 - distance(example)) * len(prompt)) :].startswith(line)


def test_a_copied_checkpoint_chooses_as_many_entries_as_it_is_told(tmp_path: Path) -> None:
    changed = with_entries(CHECKPOINT, tmp_path / "changed", 512)
    assert json.loads((CHECKPOINT / "config.json").read_text("utf-8"))["index_topk"] == 64
    assert json.loads((changed / "config.json").read_text("utf-8"))["index_topk"] == 512


def test_the_given_answers_of_a_cell_are_all_right_and_cut_ones_are_not() -> None:
    cell = Cell(family="json", mode="off", count=3)
    played = [Played(example=item, answer=item.token_ids[item.num_prompt_tokens :]) for item in cell.examples()]
    cut = [Played(example=item.example, answer=item.answer[:-1]) for item in played]
    grader = Grader()
    assert (score(cell, played, grader).share, score(cell, cut, grader).share) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("hits", "steps"),
    [
        ([[False] * 6, [False] * 6], 6),
        ([[True, True, True, True, True, False], [True, True, True, True, False, False]], 2),
        ([[True, False, True, False, True, False], [True] * 6], 3),
        ([[False, True, True, False, False, False], [False, True, False, False, False, False]], 4),
    ],
)
def test_a_step_takes_one_token_and_the_drafts_before_the_first_wrong_one(hits: list[list[bool]], steps: int) -> None:
    assert walk(hits, 6) == (6, steps)


def test_drafts_are_compared_with_the_tokens_that_follow() -> None:
    config, weights = tiny_config(), random_weights(tiny_config(), 3)
    document = random_documents([60], 4)[0]
    run = Pass(config, weights, packed([document]))
    with torch.no_grad():
        streams = run.draft(run.backbone())
        best = run.logits(streams[20:58], "mtp.0.").argmax(1)
        hits = draft_hits(run, 21, 60)
    assert hits[0][:-1] == (best == torch.tensor(document.token_ids[22:60])).tolist()
    assert not hits[0][-1] and not hits[1][-2]  # beyond the end


def test_weights_of_a_bf16_checkpoint_come_back_as_they_were_written(tmp_path: Path) -> None:
    weights = random_weights(tiny_config(), 11)
    tokenizer = tmp_path / "tokenizer.json"
    tokenizer.write_text("{}", "utf-8")
    export(Trained(nano_values(VOCAB, **TINY), weights), tmp_path / "out", LayoutName.BF16, tokenizer)
    found = read_trained(tmp_path / "out").weights
    assert list(found) == list(weights)
    for name, tensor in weights.items():
        assert torch.allclose(found[name].detach(), tensor.detach(), rtol=2**-8), name


def test_the_table_has_one_line_per_task_with_its_baseline() -> None:
    cells = [Cell(family="json", mode=mode, count=2) for mode in MODES]
    grader = Grader()
    scores = [
        score(cell, [Played(example=item, answer=item.token_ids[item.num_prompt_tokens :]) for item in cell.examples()],
              grader)
        for cell in cells
    ]  # fmt: skip
    lines = table(as_rows(scores, scores[:1])).splitlines()
    assert lines[2:] == ["| json | 100.0 % | 100.0 % | 100.0 % | 100.0 % | 100.0 % |"]
