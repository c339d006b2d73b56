"""Command line: python -m nano_train.main train | curves | export (run in build/nano)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from nano_train.config import nano_values
from nano_train.loop import Run
from nano_train.plan import Plan
from nano_train.run import train
from nano_train.state import default_folder

VOCAB_SIZE = 2048


def main(arguments: list[str]) -> int:
    """Run one command."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    train_parser = commands.add_parser("train", help="train, or go on training, until the last step")
    train_parser.add_argument("--folder", type=Path, default=default_folder())
    train_parser.add_argument("--steps", type=int, default=3000)
    train_parser.add_argument("--ranks", type=int, default=2)
    train_parser.add_argument("--rate", type=float, default=3e-3)
    train_parser.add_argument("--row-tokens", type=int, default=4096)
    train_parser.add_argument("--evaluate-steps", type=int, default=200)
    options = parser.parse_args(arguments)
    plan = Plan(num_steps=options.steps, peak_rate=options.rate, row_tokens=options.row_tokens)
    run = Run(
        values=nano_values(VOCAB_SIZE),
        plan=plan,
        folder=options.folder,
        num_ranks=options.ranks,
        evaluate_steps=options.evaluate_steps,
    )
    done = train(run)
    sys.stdout.write(f"{done} of {plan.num_steps} steps are done; the state is in {options.folder}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
