"""Compile the pairs of models and architectures, and print what they became; `--docs FILE` writes the lowering table.

python -m dsv4_kernels.triton_lang.report [--arch NAME …] [--model NAME …] [--op TEXT] [--sample] [--products]

Exit status 1 if a pair does not compile, multiplies with an opcode that is not due, cannot be launched, or spills.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import triton

from dsv4_kernels.triton_lang.arch import ARCHES, arch_named
from dsv4_kernels.triton_lang.lower import Lowered, lower
from dsv4_kernels.triton_lang.native import FALLBACKS
from dsv4_kernels.triton_lang.pairs import Pair, pairs_of
from dsv4_kernels.triton_lang.profiles import PROFILES

BEGIN, END = "<!-- lowering: begin -->", "<!-- lowering: end -->"


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, print a line per pair, write the table where asked."""
    args = _parser().parse_args(arguments)
    results: list[Lowered] = []
    for arch_name in args.arch or ARCHES:
        for model in args.model or PROFILES:
            arch = arch_named(arch_name)
            chosen = [pair for pair in pairs_of(arch, PROFILES[model]) if args.op in f"{pair.op} {pair.name}"]
            if args.products:
                chosen = [pair for pair in chosen if pair.format]
            if args.sample:
                chosen = list({(pair.op, pair.name, pair.format): pair for pair in reversed(chosen)}.values())[::-1]
            for pair in _new(chosen, arch_name, results):
                results.append(lower(pair, arch))
                sys.stdout.write(line(results[-1], is_json=args.is_json) + "\n")
                sys.stdout.flush()
    if args.docs is not None:
        write_table(args.docs, results)
    return int(any(one.problems for one in results))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--arch", action="append", choices=list(ARCHES), help="one architecture; may be repeated")
    parser.add_argument("--model", action="append", choices=list(PROFILES), help="one model; may be repeated")
    parser.add_argument("--op", default="", metavar="TEXT", help="only operators and kernels that contain it")
    parser.add_argument("--sample", action="store_true", help="one configuration of each operator, kernel and format")
    parser.add_argument("--products", action="store_true", help="only kernels with a matrix product")
    parser.add_argument("--json", action="store_true", dest="is_json", help="one JSON object per line")
    parser.add_argument("--docs", type=Path, metavar="FILE", help="write the table between its markers in FILE")
    return parser


def _new(pairs: Iterable[Pair], arch: str, results: Sequence[Lowered]) -> list[Pair]:
    """Pairs that were not compiled for another model already."""
    known = {_key(one.pair) for one in results if one.arch.name == arch}
    return [pair for pair in pairs if _key(pair) not in known]


def _key(pair: Pair) -> tuple[object, ...]:
    return pair.op, pair.name, pair.types, pair.constants, pair.aligned, pair.num_warps, pair.num_stages


def line(one: Lowered, *, is_json: bool = False) -> str:
    """One pair and what it became."""
    values = {
        "arch": one.arch.name,
        "op": one.pair.op,
        "kernel": one.pair.name,
        "configuration": one.pair.configuration,
        "opcodes": list(one.opcodes),
        "shared_bytes": one.shared_bytes,
        "tensor_columns": one.tensor_columns,
        "instructions": one.num_instructions,
        "spills": one.num_spills,
        "problems": list(one.problems),
    }
    if is_json:
        return json.dumps(values)
    verdict = "; ".join(one.problems) or "ok"
    head = f"{one.arch.name:<8} {one.pair.op:<18} {one.pair.name:<20} {', '.join(one.opcodes) or '-':<40}"
    sizes = f"{one.shared_bytes:>7} B shared {one.num_instructions:>6} instructions"
    return f"{head} {sizes}  {verdict}\n    {one.pair.configuration}"


def table(results: Sequence[Lowered]) -> str:
    """Operator × architecture: the opcodes of its products, fallbacks by number, and what is wrong."""
    names = [name for name in ARCHES if any(one.arch.name == name for one in results)]
    ops = list(dict.fromkeys(one.pair.op for one in results))
    reasons = list(FALLBACKS)
    lines = [f"| operator | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for op in ops:
        cells = [
            _cell([one for one in results if one.pair.op == op and one.arch.name == name], reasons) for name in names
        ]
        lines.append(f"| {op} | {' | '.join(cells)} |")
    lines += ["", *(f"{number}. `{name}`: {FALLBACKS[name]}." for number, name in enumerate(reasons, 1))]
    counts = ", ".join(f"{sum(1 for one in results if one.arch.name == name)} on {name}" for name in names)
    bad = sum(1 for one in results if one.problems)
    lines += ["", f"{len(results)} pairs compiled with Triton {triton.__version__} ({counts}); {bad} with a problem."]
    return "\n".join(lines)


def _cell(results: Sequence[Lowered], reasons: Sequence[str]) -> str:
    """The opcodes of one operator on one architecture; "–" without a product, ⚠ with a problem."""
    opcodes: dict[str, None] = {}
    for one in results:
        for opcode in one.opcodes:
            note = f" ({reasons.index(one.pair.format) + 1})" if one.pair.format in reasons else ""
            opcodes[f"`{opcode}`{note}"] = None
    problems = sorted({problem for one in results for problem in one.problems})
    shown = "<br>".join(opcodes) or ("–" if results else "no kernel of its own")
    return shown + "".join(f"<br>⚠ {problem}" for problem in problems)


def write_table(path: Path, results: Sequence[Lowered]) -> None:
    """Replace what stands between the markers. The file must hold both."""
    text = path.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n{table(results)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
