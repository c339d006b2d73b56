"""Command line: python -m nano_train.main train | curves | export | ship, run in build/nano."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from nano_data import FAMILIES, MODES

from dsv4_backend.checkpoint.write import LayoutName
from nano_train.config import nano_values
from nano_train.curves import draw
from nano_train.export import LAYOUTS, Trained, export, num_bytes
from nano_train.loop import Run
from nano_train.plan import Plan
from nano_train.run import train
from nano_train.ship import ship
from nano_train.state import default_folder, load_state, read_log

VOCAB_SIZE = 2048
USUAL = Plan(num_steps=1)
Name = TypeVar("Name", bound=str)
HERE = Path(__file__).resolve().parents[1]


def main(arguments: list[str]) -> int:
    """Run one command."""
    options = _parser().parse_args(arguments)
    if options.command == "train":
        return _train(options)
    if options.command == "curves":
        options.out.write_text(draw(read_log(options.folder)), "utf-8")
        return 0
    if options.command == "ship":
        return _ship(options.folder, options.out, options.before)
    return _export(options.folder, options.out, LayoutName(options.layout))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("train", help="train, or go on training, until the last step")
    one.add_argument("--steps", type=int, default=3000)
    one.add_argument(
        "--begin",
        type=Path,
        nargs="+",
        default=[],
        help="checkpoints the run begins with: the first, then what it lacks from the next; smaller models are grown",
    )
    one.add_argument("--begin-share", type=float, default=0.0, help="where in the whole run it begins, from 0 to 1")
    one.add_argument("--seed", type=int, default=1, help="another one gives a run that goes on other conversations")
    one.add_argument("--ranks", type=int, default=2, help="processes of one thread each; use one per core")
    one.add_argument("--rate", type=float, default=USUAL.peak_rate, help="peak learning rate")
    one.add_argument("--row-tokens", type=int, default=USUAL.row_tokens, help="tokens per rank and step")
    one.add_argument(
        "--prompt-weight",
        type=float,
        default=USUAL.prompt_weight,
        help="weight of the prompt's own tokens in the loss",
    )
    one.add_argument("--device", default="cpu", help="cuda: one rank, many rows at once")
    one.add_argument("--bfloat16", action="store_true", help="multiply bfloat16: faster on CPUs with AVX512-BF16")
    one.add_argument(
        "--packed-rows", type=int, default=USUAL.packed_rows, help="rows of a step that are computed as one"
    )
    one.add_argument(
        "--rounding-share", type=float, default=USUAL.rounding_share, help="from where numbers are rounded"
    )
    one.add_argument(
        "--draft-share", type=float, default=USUAL.draft_share, help="from where drafts are trained; 2: never"
    )
    one.add_argument("--families", nargs="*", default=[], metavar="NAME=WEIGHT", help="instead of the plan's weights")
    one.add_argument("--modes", nargs="*", default=[], metavar="NAME=WEIGHT", help="the same for the modes of thinking")
    one.add_argument("--only", default="", metavar="PART", help="train the weights with this in their names: indexer")
    one.add_argument("--evaluate-steps", type=int, default=100)
    two = commands.add_parser("curves", help="draw the log of a run")
    two.add_argument("out", type=Path)
    three = commands.add_parser("export", help="write the saved state as a checkpoint")
    three.add_argument("out", type=Path)
    three.add_argument("--layout", choices=[layout.value for layout in LAYOUTS], default=LayoutName.OFFICIAL.value)
    four = commands.add_parser("ship", help="write every layout, the curves and the figures of the run")
    four.add_argument("--out", type=Path, default=HERE, help="folder of `checkpoints` and `results`")
    four.add_argument("--before", type=Path, help="training.json of the weights the run began with; its sums are added")
    for command in (one, two, three, four):
        command.add_argument("--folder", type=Path, default=default_folder(), help="where the run is kept")
    return parser


def _train(options: argparse.Namespace) -> int:
    plan = Plan(
        num_steps=options.steps,
        begin_share=options.begin_share,
        seed=options.seed,
        peak_rate=options.rate,
        row_tokens=options.row_tokens,
        prompt_weight=options.prompt_weight,
        packed_rows=options.packed_rows,
        rounding_share=options.rounding_share,
        draft_share=options.draft_share,
        deep_draft_share=max(options.draft_share, USUAL.deep_draft_share),
        families=weights_of(options.families, FAMILIES),
        modes=weights_of(options.modes, MODES),
    )
    run = Run(
        values=nano_values(VOCAB_SIZE),
        plan=plan,
        folder=options.folder,
        begin=tuple(options.begin),
        num_ranks=options.ranks,
        device=options.device,
        has_bfloat16=options.bfloat16,
        only=options.only,
        evaluate_steps=options.evaluate_steps,
    )
    done = train(run)
    sys.stdout.write(f"{done} of {plan.num_steps} steps are done; the state is in {options.folder}\n")
    return 0


def weights_of(texts: Sequence[str], names: Sequence[Name]) -> dict[Name, float]:
    """Return the weights of names given as name=weight. Raises: ValueError naming what is no such pair."""
    known = {str(name): name for name in names}
    found: dict[Name, float] = {}
    for text in texts:
        name, sign, weight = text.partition("=")
        if name not in known or not sign:
            raise ValueError(f"got the weight {text!r}; it must be NAME=WEIGHT, the names being {', '.join(known)}.")
        found[known[name]] = float(weight)
    return found


def _ship(folder: Path, out: Path, before: Path | None) -> int:
    state, sums = load_state(folder), json.loads(before.read_text("utf-8")) if before else {}
    if state is None:
        return _refuse(folder)
    for name, size in ship(state, read_log(folder), out, sums).items():
        sys.stdout.write(f"{name}: {size / 1e6:.1f} MB\n")
    return 0


def _refuse(folder: Path) -> int:
    sys.stderr.write(f"{folder} holds no state. Train first: python -m nano_train.main train\n")
    return 1


def _export(folder: Path, out: Path, layout: LayoutName) -> int:
    state = load_state(folder)
    if state is None:
        return _refuse(folder)
    export(Trained.from_state(state), out, layout)
    sys.stdout.write(f"{layout.value}: {num_bytes(out) / 1e6:.1f} MB after step {state['step']} in {out}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
