"""Look at what the generators make.

python build/nano/show.py --family tools --n 3 [--mode on] [--split eval] [--stats 300]
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from nano_data import FAMILIES, MODES, Mix, grade, stream
from nano_data.records import Example
from nano_data.render import default_renderer


def show(example: Example) -> str:
    """Return an example as text: the prompt, then what the model must answer, then its verdict."""
    prompt = default_renderer().decode(list(example.token_ids[: example.num_prompt_tokens]))
    verdict = grade(example, example.answer)
    return (
        f"=== {example.family}, thinking {example.mode}, {example.num_prompt_tokens} prompt tokens, "
        f"{sum(example.loss_mask)} trained ===\n{prompt}\n--- answer (correct: {verdict.is_correct}) ---\n"
        f"{example.answer}\n"
    )


def statistics(count: int, split: str) -> str:
    """Return a table of tokens per family and mode, and how many examples are made in a second."""
    lines = [f"{'family':<12}{'mode':<6}{'mean':>7}{'p95':>7}{'max':>7}{'trained':>9}{'per s':>8}"]
    for family, mode in itertools.product(FAMILIES, MODES):
        mix = Mix(families={family: 1}, modes={mode: 1}, max_tokens=10**6)
        begun = time.perf_counter()
        examples = list(itertools.islice(stream(7, split, mix), count))  # type: ignore[arg-type]
        seconds = time.perf_counter() - begun
        sizes = sorted(len(example.token_ids) for example in examples)
        trained = sum(sum(example.loss_mask) for example in examples) / count
        lines.append(
            f"{family:<12}{mode:<6}{sum(sizes) / count:>7.0f}{sizes[int(count * 0.95)]:>7}{sizes[-1]:>7}"
            f"{trained:>9.0f}{count / seconds:>8.0f}"
        )
    return "\n".join(lines)


def main() -> None:
    """Print examples or statistics."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=FAMILIES)
    parser.add_argument("--mode", choices=MODES)
    parser.add_argument("--split", choices=("train", "eval"), default="train")
    parser.add_argument("--n", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stats", type=int, default=0, metavar="EXAMPLES", help="print token statistics instead")
    arguments = parser.parse_args()
    if arguments.stats:
        sys.stdout.write(statistics(arguments.stats, arguments.split) + "\n")
        return
    mix = Mix()
    if arguments.family:
        mix = Mix(families={arguments.family: 1}, modes={arguments.mode: 1} if arguments.mode else mix.modes)
    for example in itertools.islice(stream(arguments.seed, arguments.split, mix), arguments.n):
        sys.stdout.write(show(example) + "\n")


if __name__ == "__main__":
    main()
