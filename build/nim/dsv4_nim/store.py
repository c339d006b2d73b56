"""`create-model-store`: a checked copy of a model with the profile's settings beside it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

from dsv4_backend.checkpoint.inspect import inspect_checkpoint
from dsv4_backend.errors import CheckpointError
from dsv4_nim.cache import RECORD, Cache, explained, is_remote
from dsv4_nim.download import fetch
from dsv4_nim.errors import CacheError, DownloadError
from dsv4_nim.places import Places
from dsv4_nim.profiles import Profile
from dsv4_nim.resolve import RUNTIME_CONFIG


def make_store(profile: Profile, cache: Cache, places: Places, target: Path, say: Callable[[str], None]) -> None:
    """Copy the profile's model to `target`, checked, with the profile's limits in runtime_config.json.

    Rule:   the copy appears at once, when it is whole: a killed command leaves `target` as it was.
    Raises: CacheError when target is not empty or cannot be written; DownloadError for a model that cannot be had,
            or is not a sound checkpoint.
    """
    if target.exists() and any(target.iterdir()):
        raise CacheError(f"{target} is not empty. Name a new folder, or empty it.")
    source = _source(profile, cache, places, say)
    _check(source)
    part = target.with_name(f"{target.name}.part")
    with explained(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(source, part, ignore=shutil.ignore_patterns(RECORD, "*.part"))
        values = {"context_tokens": profile.context_tokens, "max_sequences": profile.max_sequences}
        (part / RUNTIME_CONFIG).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        part.rename(target)
    say(f"{target} holds {profile.model} for {profile.name}. Serve it with NIM_MODEL_PATH={target}")


def _source(profile: Profile, cache: Cache, places: Places, say: Callable[[str], None]) -> Path:
    if not profile.uri:
        raise DownloadError(f"nobody publishes the weights of {profile.name}. Name a profile whose weights are.")
    return fetch(profile.uri, cache, say) if is_remote(profile.uri) else places.bundled(profile.uri)


def _check(source: Path) -> None:
    try:
        report = inspect_checkpoint(source)
        # An index alone is enough for a description, not for a store.
        problems = report.problems if report.has_headers else (*report.problems, "files of the index are missing")
    except CheckpointError as error:
        problems = error.problems
    if problems:
        told = "\n".join(f"  - {problem}" for problem in problems)
        raise DownloadError(f"{source} is no sound checkpoint:\n{told}\nFetch it again.")
