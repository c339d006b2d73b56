"""The bundled checkpoint: its files are whole and small, and a sample of its answers is as right as the figures say."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from nano_eval.cells import short_cells
from nano_eval.main import CHECKPOINTS, RESULT, grade_checkpoint
from nano_eval.report import as_rows, table
from nano_eval.score import Score, total_share
from nano_train.export import HASHES_NAME, LAYOUTS, num_bytes

MOST_BYTES = 16_000_000
PER_CELL = 2
SPREAD = 0.12  # four standard deviations of the share of 54 prompts of which 95 % are right

LAYOUT_NAMES = [layout.value for layout in LAYOUTS]


@pytest.fixture(scope="module")
def scores() -> list[Score]:
    """Grades of the first prompts of every cell without long lists."""
    return grade_checkpoint(CHECKPOINTS / "official", short_cells(PER_CELL), "sample")[0]


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_every_file_of_a_bundled_checkpoint_has_its_hash(layout: str) -> None:
    folder = CHECKPOINTS / layout
    listed = dict(reversed(line.split("  ")) for line in (folder / HASHES_NAME).read_text("utf-8").splitlines())
    found = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}
    found.pop(HASHES_NAME)
    assert listed == found
    assert {"config.json", "tokenizer.json", "generation_config.json", "README.md"} <= set(found)


@pytest.mark.parametrize("layout", LAYOUT_NAMES)
def test_a_bundled_checkpoint_is_small(layout: str) -> None:
    folder = CHECKPOINTS / layout
    assert max(file.stat().st_size for file in folder.iterdir()) <= MOST_BYTES
    room = 1.5 if layout == "bf16" else 1.0  # BF16 is there to compare with; its experts are four times as large as FP4
    assert num_bytes(folder) <= MOST_BYTES * room


def test_the_sampled_share_of_right_answers_is_that_of_the_figures(scores: list[Score]) -> None:
    rows = json.loads(RESULT.read_text("utf-8"))["rows"]
    shares = [share for row in rows if " " not in row["task"] for share in row["correct"].values()]
    told = sum(shares) / len(shares)
    assert total_share(scores) >= told - SPREAD, table(as_rows(scores, []))


def test_the_readme_shows_the_figures_of_the_last_evaluation() -> None:
    readme = (Path(__file__).resolve().parents[2] / "README.md").read_text("utf-8")
    assert table(json.loads(RESULT.read_text("utf-8"))["rows"]) in readme
