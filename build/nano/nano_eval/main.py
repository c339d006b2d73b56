"""Grade the small trained model and print the table of the README: python build/nano/evaluate.py [--count 16]."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nano_data import Grader
from nano_train.config import read_config
from nano_train.export import Trained, export
from nano_train.restart import read_trained
from nano_train.weights import initial_weights

from dsv4_backend.checkpoint.write import LayoutName
from nano_eval.card import write_cards
from nano_eval.cells import QUESTIONS, Cell, all_cells, short_cells
from nano_eval.drafts import accepted_length
from nano_eval.equality import logit_difference
from nano_eval.play import player
from nano_eval.report import as_rows, summary, table
from nano_eval.score import Played, Score, score, total_share

HERE = Path(__file__).resolve().parents[1]
CHECKPOINTS = HERE / "checkpoints"
RESULT, TRAINING = HERE / "results" / "eval.json", HERE / "results" / "training.json"
DRAFT_PROMPTS = 3  # of each cell
EQUALITY_PROMPTS = 3


def grade_checkpoint(
    folder: Path, cells: Sequence[Cell], title: str, questions: int = QUESTIONS
) -> tuple[list[Score], list[list[Played]]]:
    """Play and grade all cells at once. questions: how many of each long list are asked."""
    asked = [(index, group[:questions]) for index, cell in enumerate(cells) for group in cell.groups()]
    total, done = sum(len(group) for _, group in asked), 0

    def answered() -> None:
        nonlocal done
        done += 1
        if done % 20 == 0 or done == total:
            sys.stderr.write(f"\r{title}: {done} of {total} answers")
            sys.stderr.flush()

    with player(folder) as playing:
        answers = playing.answers([group for _, group in asked], answered)
    sys.stderr.write("\n")
    played: list[list[Played]] = [[] for _ in cells]
    for (index, group), found in zip(asked, answers, strict=True):
        played[index] += [Played(example=item, answer=tuple(ids)) for item, ids in zip(group, found, strict=True)]
    return grade(cells, played), played


def grade(cells: Sequence[Cell], played: Sequence[Sequence[Played]]) -> list[Score]:
    """Grade what was answered in each cell."""
    grader = Grader()
    return [score(cell, items, grader) for cell, items in zip(cells, played, strict=True)]


def make_random(folder: Path) -> Trained:
    """Write a checkpoint of the same architecture whose weights were never trained."""
    values = json.loads((CHECKPOINTS / "official" / "config.json").read_text("utf-8"))
    model = Trained(values, initial_weights(read_config(values), seed=5))
    export(model, folder, LayoutName.OFFICIAL)
    return model


def first_of(played: Sequence[Sequence[Played]], count: int) -> list[Played]:
    """The first few prompts of every cell."""
    return [item for items in played for item in items[:count]]


def evaluate(count: int) -> dict[str, Any]:
    """Measure everything; every long part tells how far it is."""
    started = time.monotonic()
    few = max(count // 3, 1)
    scores, played = grade_checkpoint(CHECKPOINTS / "official", all_cells(count), "official layout")
    shorts = [items[:few] for items, item in zip(played, scores, strict=True) if not item.cell.length]
    layouts = {LayoutName.OFFICIAL.value: round(total_share(grade(short_cells(few), shorts)), 4)}
    for layout in (LayoutName.BF16, LayoutName.NVFP4):
        own, _ = grade_checkpoint(CHECKPOINTS / layout.value, short_cells(few), f"{layout.value}, fewer prompts")
        layouts[layout.value] = round(total_share(own), 4)
    with tempfile.TemporaryDirectory() as temporary:
        random_model = make_random(Path(temporary) / "random")
        few_random = max(count // 10, 1)
        baseline, random_played = grade_checkpoint(
            Path(temporary) / "random", all_cells(few_random), "random weights", questions=1
        )
    drafted = [items for items, item in zip(played, scores, strict=True) if not item.cell.length]
    prompts = [item.example.token_ids for item in first_of(played, 1)[:EQUALITY_PROMPTS]]
    return {
        "command": f"make nano-eval NANO_COUNT={count}",
        "hardware": f"{os.cpu_count()} CPU cores",
        "rows": as_rows(scores, baseline),
        "layouts": layouts,
        "layout_prompts": len(short_cells(few)) * few,
        "accepted_length": round(
            accepted_length(read_trained(CHECKPOINTS / "official"), first_of(drafted, DRAFT_PROMPTS)), 3
        ),
        "random_accepted_length": round(accepted_length(random_model, first_of(random_played[:9], 1)), 3),
        "transformers": logit_difference(CHECKPOINTS / "bf16", prompts),
        "seconds": round(time.monotonic() - started, 1),
    }


def main(arguments: Sequence[str]) -> int:
    """Print the table and keep the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=16, help="prompts of each family and mode")
    record = evaluate(parser.parse_args(arguments).count)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n", "utf-8")
    write_cards(CHECKPOINTS, record, json.loads(TRAINING.read_text("utf-8")))
    sys.stdout.write(f"{table(record['rows'])}\n\n{summary(record)}\n")
    return 0
