"""KV bytes and FLOPs against context as a PNG. The one file that knows matplotlib, loaded only when a plot is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dsv4_backend.errors import ConfigError
from dsv4_backend.plan.cost import WEIGHTING, ModelCost

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_FIRST_EXPONENT, _LAST_EXPONENT = 10, 20  # 1k … 1M tokens


def draw(models: Sequence[ModelCost], file: Path) -> None:
    """Write the plot of several models.

    Raises: ConfigError if matplotlib is missing, the name does not end in .png, or the file cannot be written.
    """
    if file.suffix.lower() != ".png":
        raise ConfigError(f"the plot file is {file} but its name must end in .png. Set --plot {file.stem}.png.")
    figure = _figure_class()(figsize=(11, 4.5), layout="constrained")
    left, right = figure.subplots(1, 2)
    contexts = [2**exponent for exponent in range(_FIRST_EXPONENT, _LAST_EXPONENT + 1)]
    for model in models:
        left.plot(contexts, [model.cache_bytes(tokens) for tokens in contexts], marker=".", label=model.name)
        right.plot(contexts, [model.weighted_flops(tokens) for tokens in contexts], marker=".", label=model.name)
    left.set(title="Cache of one sequence", ylabel="bytes")
    right.set(title="One token, FP8-equivalent", ylabel="FLOPs")
    for axes in (left, right):
        axes.set(xscale="log", yscale="log", xlabel="context in tokens")
        axes.grid(visible=True, which="major", alpha=0.3)
        axes.legend()
    figure.supxlabel(WEIGHTING, fontsize="x-small")
    try:
        figure.savefig(file, dpi=120, format="png")
    except OSError as error:
        raise ConfigError(
            f"the plot {file} cannot be written: {error.strerror}. Name a file in a folder that exists."
        ) from error


def _figure_class() -> type[Figure]:
    """matplotlib's Figure, which needs no display."""
    try:
        from matplotlib.figure import Figure  # noqa: PLC0415 - optional, and slow to load
    except ImportError as error:
        raise ConfigError(
            f"--plot needs matplotlib, which cannot be imported ({error})."
            " Install it: .venv/bin/python -m pip install 'matplotlib>=3.11,<4' 'numpy<2' (the extra `plot`)."
        ) from error
    return Figure
