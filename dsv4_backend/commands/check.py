"""`dsv4 check PATH`: validate a checkpoint without loading it, and say how large it is."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from dsv4_backend.checkpoint.inspect import Report, inspect_checkpoint
from dsv4_backend.errors import CheckpointError, ConfigError
from dsv4_backend.parallel import Mesh


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("path", type=Path, metavar="PATH", help="folder with config.json and the safetensors index")
    parser.add_argument("--tp", type=int, default=1, metavar="N", help="ranks that share every weight (default 1)")
    parser.add_argument("--ep", type=int, default=1, metavar="N", help="groups that share the experts (default 1)")
    parser.add_argument("--json", action="store_true", dest="is_json", help="print one JSON object")


def run(args: argparse.Namespace) -> int:
    """Print the report. Returns 0 for a sound checkpoint, 1 if there are problems.

    Raises: ConfigError if --tp or --ep is not a size.
    """
    mesh = Mesh(tp=args.tp, ep=args.ep)
    try:
        report = inspect_checkpoint(args.path, mesh)
    except CheckpointError as error:
        return _refuse(args, error.problems)
    except ConfigError as error:
        return _refuse(args, (str(error),))
    text = json.dumps(asdict(report) | {"is_valid": not report.problems}, indent=2) if args.is_json else _text(report)
    sys.stdout.write(text + "\n")
    return 1 if report.problems else 0


def _refuse(args: argparse.Namespace, problems: tuple[str, ...]) -> int:
    """There is too little to describe: print only what is wrong."""
    if args.is_json:
        values = {"path": str(args.path), "is_valid": False, "problems": list(problems)}
        sys.stdout.write(json.dumps(values, indent=2) + "\n")
    else:
        sys.stdout.write("\n".join([f"checkpoint  {args.path}", *_problem_lines(problems)]) + "\n")
    return 1


def _text(report: Report) -> str:
    seen = "headers read" if report.has_headers else "index only: names checked, sizes computed from the config"
    lines = [
        f"checkpoint  {report.path}",
        f"tensors     {report.num_tensors:,} in {report.num_files} files ({seen})",
        f"parameters  {_billions(report.num_parameters)}, without the draft",
        f"active      {_billions(report.num_active_parameters)} per token, with the output head, without the embedding",
        f"draft       {report.draft}: {_billions(report.num_draft_parameters)}",
        f"bytes       {report.num_bytes:,} ({_gibibytes(report.num_bytes)})",
    ]
    lines += [f"  {name:<9} {size:,}" for name, size in sorted(report.bytes_by_format.items())]
    lines += [f"skipped     {count:,} tensors ({rule})" for rule, count in report.skipped.items()]
    lines += _rank_lines(report)
    return "\n".join(lines + _problem_lines(report.problems))


def _rank_lines(report: Report) -> list[str]:
    """One line, or one per different size: ranks hold equal bytes unless their experts are stored differently."""
    mesh = report.mesh
    by_size: dict[int, int] = {}
    for size in report.rank_bytes:
        by_size[size] = by_size.get(size, 0) + 1
    return [
        f"per rank    {size:,} bytes ({_gibibytes(size)}) on {count} of {mesh.num_ranks} (tp {mesh.tp}, ep {mesh.ep})"
        for size, count in by_size.items()
    ]


def _problem_lines(problems: tuple[str, ...]) -> list[str]:
    if not problems:
        return ["sound       no problem found"]
    return [f"unusable    {len(problems)} problem(s)", *(f"  - {problem}" for problem in problems)]


def _billions(count: int) -> str:
    return f"{count / 1e9:,.2f} B" if count >= 10_000_000 else f"{count / 1e6:,.2f} M"


def _gibibytes(size: int) -> str:
    return f"{size / 2**30:,.2f} GiB" if size >= 1 << 30 else f"{size / 2**20:,.2f} MiB"
