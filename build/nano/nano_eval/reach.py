"""How far back the bundled model finds a key in a long list: python -m nano_eval.reach [--length 16k], in build/nano.

Prints the share of right answers by how far from the end of the prompt the line that was asked for stands.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from nano_data import Example, Grader

from nano_eval.cells import LISTS, QUESTIONS, Cell
from nano_eval.play import player

CHECKPOINT = Path(__file__).resolve().parents[1] / "checkpoints" / "bf16"
NUM_PARTS = 6


def distance(example: Example) -> float:
    """Return how far before the end of the prompt the line of the answer stands, from 0 to 1 of the prompt."""
    messages = example.body["messages"]
    [line] = example.check.texts
    lines = next(str(item["content"]) for item in messages if f"{line}\n" in f"{item['content']}\n")
    return 1 - lines.index(line) / len(lines)


def measured(checkpoint: Path, length: str, num_lists: int) -> list[tuple[float, bool]]:
    """Return for every question, with thinking off and on, how far back its line stands and whether it was found."""
    cells = [Cell(family="recall", mode=mode, length=length, count=num_lists * QUESTIONS) for mode in ("off", "on")]
    groups, grader = [group for cell in cells for group in cell.groups()], Grader()
    with player(checkpoint) as playing:
        answers = playing.answers(groups)
    pairs = [pair for group, found in zip(groups, answers, strict=True) for pair in zip(group, found, strict=True)]
    return sorted((distance(example), grader.grade(example, ids).is_correct) for example, ids in pairs)


def with_entries(checkpoint: Path, folder: Path, num_entries: int) -> Path:
    """Copy a checkpoint so that its indexers choose another number of entries."""
    shutil.copytree(checkpoint, folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | {"index_topk": num_entries}), "utf-8")
    return folder


def main(arguments: Sequence[str]) -> int:
    """Print one line per part of the list, the nearest first."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--length", choices=list(LISTS), default="16k", help="tokens of the lists")
    parser.add_argument("--lists", type=int, default=6, help="lists of each mode; six questions are asked of each")
    parser.add_argument(
        "--entries", type=int, help="entries that the indexers choose, instead of what config.json says"
    )
    options = parser.parse_args(arguments)
    with ExitStack() as stack:
        folder = options.checkpoint
        if options.entries is not None:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory())) / "changed"
            folder = with_entries(folder, place, options.entries)
        found = measured(folder, options.length, options.lists)
    size = -(-len(found) // NUM_PARTS)
    for part in (found[begin : begin + size] for begin in range(0, len(found), size)):
        right = sum(is_right for _, is_right in part)
        sys.stdout.write(f"{part[0][0]:.2f} to {part[-1][0]:.2f} of the list back: {right} of {len(part)} right\n")
    sys.stdout.write(f"all: {sum(is_right for _, is_right in found)} of {len(found)} right\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
