"""`dsv4 kernels`: which implementation of each operator is chosen on this machine or on a GPU, and why."""

from __future__ import annotations

import argparse
import sys

import torch
from dsv4_kernels.dispatch import Needs, choose
from dsv4_kernels.errors import KernelError
from dsv4_kernels.triton_lang.arch import ARCHES, Arch, arch_named, arch_of
from dsv4_kernels.triton_lang.native import why
from dsv4_kernels.triton_lang.pairs import Pair, pairs_of
from dsv4_kernels.triton_lang.profiles import PROFILES

from dsv4_backend.errors import ConfigError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--arch", default="", metavar="NAME",
                        help=f"cpu, {', '.join(ARCHES)} (default: this machine's)")  # fmt: skip
    parser.add_argument("--model", default="pro", choices=sorted(PROFILES), help="whose shapes (default pro)")
    parser.add_argument("--pairs", action="store_true", help="print every configuration of every kernel too")


def run(args: argparse.Namespace) -> int:
    """Print the table of operators, and for a GPU the kernels behind them.

    Raises: ConfigError naming the known architectures.
    """
    try:
        arch = _arch(args.arch)
    except KernelError as error:
        raise ConfigError(f"{error} Or type: dsv4 kernels --arch cpu.") from error
    lines = _operator_lines(arch)
    if arch is not None:
        lines += ["", *_kernel_lines(arch, pairs_of(arch, PROFILES[args.model]), args.model, is_full=args.pairs)]
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


def _arch(name: str) -> Arch | None:
    """The architecture of that name, or of this machine's GPU; None is the CPU.

    Raises: BindError if the kernels were not written for it.
    """
    if name == "cpu" or not (name or torch.cuda.is_available()):
        return None
    return arch_named(name) if name else arch_of(torch.cuda.get_device_capability())


def _operator_lines(arch: Arch | None) -> list[str]:
    where = "cpu" if arch is None else arch.name
    lines = [f"{'operator':<18}{'arch':<10}{'dtype':<10}{'chosen':<14}why"]
    for one in choose(Needs(target="cpu" if arch is None else "cuda")):
        lines.append(f"{one.op:<18}{where:<10}{one.needs.dtype:<10}{one.source:<14}{one.reason}")
    return lines


def _kernel_lines(arch: Arch, pairs: tuple[Pair, ...], model: str, *, is_full: bool) -> list[str]:
    """A line per kernel and format, or per configuration. Tokens: the smallest step that launches it."""
    lines = [f"{model} on {arch.name}: {len(pairs)} (kernel, configuration) pairs; tokens from which each is launched"]
    lines.append(f"{'operator':<18}{'kernel':<22}{'multiplied as':<16}{'tokens':<8}why")
    seen: set[tuple[str, str, str]] = set()
    for pair in pairs:
        key = (pair.op, pair.name, pair.format)
        if key in seen and not is_full:
            continue
        seen.add(key)
        lines.append(f"{pair.op:<18}{pair.name:<22}{pair.format or '-':<16}{pair.tokens:<8}{why(arch, pair.format)}")
        lines += [f"    {pair.configuration}"] if is_full else []
    return lines
