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
MORE = read_toml("more_wordings")


def divided(item: dict[str, str], more: dict[str, str]) -> Wordings:
    """Return the groups of wordings in two tables, one per line; `more` adds to those for training."""
    train = item["train"].splitlines() + more.get("train", "").splitlines()
    return Wordings(tuple(train), tuple(item["held_out"].splitlines()))


def wordings(name: str) -> Wordings:
    """Return the wordings of that name."""
    return divided(WORDINGS[name], MORE.get(name, {}))


def all_divided(name: str) -> dict[str, Wordings]:
    """Return the wordings of every table in the table of that name."""
    return {key: divided(item, MORE[name].get(key, {})) for key, item in WORDINGS[name].items()}
