"""Wordings and tables that stand in TOML files beside the code."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from nano_data.draw import Wordings


def read_toml(name: str) -> dict[str, Any]:
    """Return the table of a file of this package."""
    return tomllib.loads(Path(__file__).with_name(f"{name}.toml").read_text("utf-8"))


WORDINGS = read_toml("wordings")


def divided(item: dict[str, str]) -> Wordings:
    """Return the two groups of wordings in a table, one per line."""
    return Wordings(tuple(item["train"].splitlines()), tuple(item["held_out"].splitlines()))


def wordings(name: str) -> Wordings:
    """Return the wordings of that name."""
    return divided(WORDINGS[name])
