"""What a constraint costs in one step, beside the model: `python build/bench/masks.py --tokenizer DIR`.

ROWS sequences inside a string of a schema; CPU time of one thread per step, the median of many: filling the masks,
choosing with and without them, and moving the grammars on. DIR holds a tokenizer.json (default: the bundled one).
Figures go to build/bench/results/gateway/NAME.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "build" / "loadtools"))

import record  # noqa: E402  (found beside the load tools)
import torch  # noqa: E402
from dsv4_kernels.dispatch import bind  # noqa: E402
from dsv4_kernels.sampling import num_words  # noqa: E402

from dsv4_backend.grammar import GrammarCompiler  # noqa: E402
from dsv4_backend.records import Constraint, ConstraintKind, SamplingParams, SequenceStart  # noqa: E402
from dsv4_backend.sampling import Choosing, SequenceSampling, sample  # noqa: E402
from dsv4_backend.text import TextEncoder, Vocabulary  # noqa: E402

ROWS, REPEATS = 16, 50
SCHEMA = {"type": "object", "properties": {"a": {"type": "array", "items": {"type": "string", "minLength": 4}}}}
LONG = {"type": "object", "properties": {"a": {"type": "string", "maxLength": 600}}, "required": ["a"]}
BUNDLED = ROOT / "build" / "nano" / "checkpoints" / "official"


def cost_ms(work: Callable[[], object]) -> float:
    """Return the median CPU time of this thread in ms."""
    found = []
    for _ in range(REPEATS):
        started_s = time.thread_time()
        work()
        found.append((time.thread_time() - started_s) * 1e3)
    return round(statistics.median(found), 3)


def make_state(seed: int, size: int, eos_id: int) -> SequenceSampling:
    params = SamplingParams(temperature=1.0, seed=seed)
    start = SequenceStart(sequence_id=seed, token_ids=(0,), num_prompt_tokens=1, sampling=params)
    return SequenceSampling(start, size, [eos_id])


def measure(folder: Path) -> dict[str, float]:
    vocab, encoder, ops = Vocabulary.load(folder), TextEncoder(folder / "tokenizer.json"), bind("cpu")
    compiler = GrammarCompiler(vocab, vocab.size, [vocab.eos_id])
    constraint = Constraint(kind=ConstraintKind.JSON_SCHEMA, value=json.dumps(SCHEMA))
    matchers = [compiler.matcher(constraint) for _ in range(ROWS)]
    *begin, last = encoder.encode_bare('{"a": ["some words')
    for matcher in matchers:
        for token_id in begin:
            matcher.accept(token_id)
    logits = torch.randn(ROWS, vocab.size, generator=torch.Generator().manual_seed(1))
    rows = [Choosing(state=make_state(seed, vocab.size, vocab.eos_id)) for seed in range(ROWS)]
    words = torch.empty(ROWS, num_words(vocab.size), dtype=torch.int32)

    def fill() -> None:
        for index, matcher in enumerate(matchers):
            matcher.fill(words, index)

    def move() -> None:
        for matcher in matchers:
            matcher.accept(last)
            matcher.rollback(1)

    return {
        "vocabulary": vocab.size,
        "rows": ROWS,
        "fill_ms": cost_ms(fill),
        "choose_free_ms": cost_ms(lambda: sample(logits, rows, ops)),
        "choose_masked_ms": cost_ms(lambda: sample(logits, rows, ops, words)),
        "accept_and_rollback_ms": cost_ms(move),
        **compile_s(compiler),
    }


def compile_s(compiler: GrammarCompiler) -> dict[str, float]:
    """Return the CPU seconds of the process for a long bounded string, new and once more."""
    constraint = Constraint(kind=ConstraintKind.JSON_SCHEMA, value=json.dumps(LONG))
    found = {}
    for name in ("new", "again"):
        started_s = time.process_time()
        compiler.matcher(constraint)
        found[f"compile_600_characters_{name}_s"] = round(time.process_time() - started_s, 4)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--tokenizer", type=Path, default=BUNDLED, help="folder with a tokenizer.json")
    parser.add_argument("--name", default="masks", help="of the file of figures")
    args = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(args.tokenizer)
    record.RESULTS = ROOT / "build" / "bench" / "results" / "gateway"
    record.write(args.name, ["python", "build/bench/masks.py", *sys.argv[1:]], {}, found)
    sys.stdout.write(json.dumps(found, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
