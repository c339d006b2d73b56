"""The profiles of this image, read from profiles.json, which `generate` writes: a start waits for no arithmetic."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from functools import cache
from pathlib import Path

from dsv4_backend.parallel import Mesh
from dsv4_nim.profiles import Goal, Profile, Weights

PROFILES_FILE = Path(__file__).with_name("profiles.json")


@cache
def all_profiles() -> tuple[Profile, ...]:
    """Return the CPU profile, then the GPU profiles, in a fixed order."""
    return load(PROFILES_FILE.read_text(encoding="utf-8"))


def find_profiles(text: str) -> list[Profile]:
    """Return the profiles of an id, of a name, or of a NIM name that several share."""
    wanted = text.strip().lower()
    return [each for each in all_profiles() if wanted in (each.id, each.name, each.short_name)]


def dump(profiles: Iterable[Profile]) -> str:
    """Return the profiles as JSON, one a line."""
    lines = [json.dumps(_plain(profile)) for profile in profiles]
    return "[\n" + ",\n".join(lines) + "\n]\n"


def load(text: str) -> tuple[Profile, ...]:
    """Return the profiles of `dump`."""
    return tuple(_profile(row) for row in json.loads(text))


def _plain(profile: Profile) -> dict[str, object]:
    row = asdict(profile)
    return row | {
        "weights": profile.weights.value,
        "goal": profile.goal.value,
        "mesh": [profile.mesh.tp, profile.mesh.ep],
    }


def _profile(row: dict[str, object]) -> Profile:
    tp, ep = row["mesh"]  # type: ignore[misc]
    typed = {"weights": Weights(row["weights"]), "goal": Goal(row["goal"]), "mesh": Mesh(tp=tp, ep=ep)}  # type: ignore[has-type]
    return Profile(**(row | typed))  # type: ignore[arg-type]
