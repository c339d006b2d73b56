"""Beginnings that outlive the server: the same bits from disk, and a damaged file is a miss."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from library import Answer, answer, open_engine, prompt

from dsv4_backend.config import CacheFormat, parse_serving_config
from dsv4_backend.kv.listing import file_name
from dsv4_backend.runner.disk import DiskStore

TEXTS = [prompt(256 + offset, salt=offset, max_tokens=5) for offset in (1, 4, 127)]


def answers(checkpoint: Path, folder: Path, **settings: object) -> list[Answer]:
    """What a server says that is started for these texts and stopped after them."""
    with open_engine(checkpoint, cache_tokens=1024, disk_cache=str(folder), **settings) as engine:
        return [answer(engine, item) for item in TEXTS]


def bits(items: list[Answer]) -> list[object]:
    return [(item.token_ids, item.logprobs) for item in items]


def cached(items: list[Answer]) -> list[int]:
    return [item.final.usage.num_cached_tokens for item in items]


def files(folder: Path, kind: str) -> list[Path]:
    return sorted(folder.rglob(f"*.{kind}"))


@pytest.mark.parametrize("cache_format", [CacheFormat.FP32, CacheFormat.PACKED_FP4INDEX], ids=lambda item: item.value)
def test_a_server_that_starts_again_goes_on_from_disk(
    random_checkpoint: Path, tmp_path: Path, cache_format: CacheFormat
) -> None:
    first = answers(random_checkpoint, tmp_path, cache_format=cache_format)
    again = answers(random_checkpoint, tmp_path, cache_format=cache_format)
    assert bits(again) == bits(first)
    assert (cached(first), cached(again)) == ([0, 0, 0], [256, 256, 256])


@pytest.mark.ci
@pytest.mark.parametrize("kind", ["block", "state"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "swapped"])
def test_a_damaged_file_is_a_miss(random_checkpoint: Path, tmp_path: Path, kind: str, damage: str) -> None:
    first = answers(random_checkpoint, tmp_path)
    held = files(tmp_path, kind)
    whole = [path.read_bytes() for path in held]
    for number, path in enumerate(held):
        if damage == "flipped":
            path.write_bytes(whole[number][:-1] + bytes([whole[number][-1] ^ 1]))
        elif damage == "cut":
            path.write_bytes(whole[number][:-9])
        elif damage == "gone":
            path.unlink()
        else:
            path.write_bytes(whole[number - 1])
    again = answers(random_checkpoint, tmp_path)
    assert bits(again) == bits(first)
    assert cached(again) == [0, 0, 0]


def test_a_file_that_vanishes_while_the_server_runs_is_a_miss(random_checkpoint: Path, tmp_path: Path) -> None:
    first = answers(random_checkpoint, tmp_path)
    with open_engine(random_checkpoint, cache_tokens=1024, disk_cache=str(tmp_path)) as engine:
        for path in files(tmp_path, "block"):
            path.unlink()
        assert bits([answer(engine, TEXTS[0])]) == bits(first[:1])


@pytest.mark.ci
@pytest.mark.parametrize("settings", [{"numerics": "plain"}, {"cache_format": "bf16"}])
def test_other_settings_find_nothing(random_checkpoint: Path, tmp_path: Path, settings: dict[str, str]) -> None:
    answers(random_checkpoint, tmp_path)
    other = parse_serving_config(settings)
    kept = {name: getattr(other, name) for name in settings}
    assert cached(answers(random_checkpoint, tmp_path, **kept)) == [0, 0, 0]


def test_another_tenant_finds_nothing_on_disk(random_checkpoint: Path, tmp_path: Path) -> None:
    answers(random_checkpoint, tmp_path)
    with open_engine(random_checkpoint, cache_tokens=1024, disk_cache=str(tmp_path)) as engine:
        assert cached([answer(engine, replace(TEXTS[0], cache_salt="other"))]) == [0]


@pytest.mark.parametrize("damage", ["flipped", "cut", "swapped"])
def test_a_file_that_is_not_what_was_written_is_removed(tmp_path: Path, damage: str) -> None:
    store = DiskStore(tmp_path, max_bytes=10**6)
    store.save("block", b"1", bytes(range(100)))
    store.save("block", b"2", bytes(100))
    store.close()
    path, other = (tmp_path / file_name("block", key) for key in (b"1", b"2"))
    whole = path.read_bytes()
    damaged = {"flipped": whole[:-1] + b"x", "cut": whole[:-1], "swapped": other.read_bytes()}
    path.write_bytes(damaged[damage])
    store = DiskStore(tmp_path, max_bytes=10**6)
    assert store.load("block", b"1", 100) is None and store.load("block", b"2", 100) == bytes(100)
    store.close()
    assert not path.exists()


def test_the_longest_unused_files_leave_when_the_room_is_full(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, max_bytes=5000)
    for number in range(9):
        store.save("block", bytes([number]), bytes(900))
    store.close()
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 5000
    store = DiskStore(tmp_path, max_bytes=5000)
    assert store.load("block", bytes([8]), 900) == bytes(900) and store.load("block", bytes([0]), 900) is None
    store.close()


def test_what_is_being_written_can_be_read(tmp_path: Path) -> None:
    store = DiskStore(tmp_path, max_bytes=10**9)
    for number in range(20):
        store.save("state", bytes([number]), bytes([number]) * 100_000)
    assert store.load("state", bytes([19]), 100_000) == bytes([19]) * 100_000
    store.close()


def test_a_disk_that_cannot_be_written_is_no_failure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = DiskStore(tmp_path / "cache", max_bytes=10**9)
    (tmp_path / "cache").rmdir()
    store.save("block", b"1", b"contents")
    store.save("block", b"2", b"contents")
    store.close()
    assert caplog.text.count("cannot be written") == 1
