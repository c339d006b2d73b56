"""Models come whole or not at all: every kind of place, resumed, checked, and what stands in the way told."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from dsv4_nim import commands
from dsv4_nim.cache import Cache, explained, is_remote, read_record
from dsv4_nim.catalog import all_profiles
from dsv4_nim.download import fetch
from dsv4_nim.errors import CacheError, DownloadError, SettingError
from dsv4_nim.places import find_places
from dsv4_nim.store import make_store
from remote_rig import Place, serving

WEIGHTS = bytes(range(256)) * 1024
FILES = {"config.json": b"{}", "model.safetensors": WEIGHTS}
URIS = {"s3": "s3://bucket/m", "gs": "gs://bucket/m", "hf": "hf://org/model"}


def silent(line: str) -> None:
    """Nobody listens."""


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache")


@contextlib.contextmanager
def reachable(patch: pytest.MonkeyPatch, scheme: str, files: dict[str, bytes] | None = None) -> Iterator[Place]:
    """Files at a place of that scheme, to which the real clients are sent."""
    held = FILES if files is None else files
    with serving(held if scheme == "hf" else {f"m/{name}": data for name, data in held.items()}) as place:
        for name in ("AWS_ENDPOINT_URL", "STORAGE_EMULATOR_HOST", "HF_ENDPOINT"):
            patch.setenv(name, place.address)
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.delenv("HF_TOKEN", raising=False)
        yield place


def folder_with(folder: Path, files: dict[str, bytes]) -> str:
    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return f"file://{folder}"


@pytest.mark.parametrize("scheme", URIS)
def test_a_model_comes_from_every_kind_of_place(monkeypatch: pytest.MonkeyPatch, cache: Cache, scheme: str) -> None:
    with reachable(monkeypatch, scheme):
        folder = fetch(URIS[scheme], cache, silent)
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES
    assert cache.is_complete(URIS[scheme])


def test_a_folder_is_copied_and_recorded_with_checksums(cache: Cache, tmp_path: Path) -> None:
    folder = fetch(folder_with(tmp_path / "model", FILES), cache, silent)
    found = {file.name: (file.num_bytes, file.sha256) for file in read_record(folder)}
    assert found == {name: (len(data), hashlib.sha256(data).hexdigest()) for name, data in FILES.items()}


def test_a_second_fetch_takes_nothing_from_the_network(monkeypatch: pytest.MonkeyPatch, cache: Cache) -> None:
    with reachable(monkeypatch, "s3"):
        fetch(URIS["s3"], cache, silent)
    assert fetch(URIS["s3"], cache, silent) == cache.folder(URIS["s3"])


@pytest.mark.parametrize("scheme", ["s3", "hf"])
def test_an_interrupted_file_goes_on_where_it_stopped(
    monkeypatch: pytest.MonkeyPatch, cache: Cache, scheme: str
) -> None:
    half = len(WEIGHTS) // 2
    part = cache.folder(URIS[scheme]) / "model.safetensors.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(WEIGHTS[:half])
    with reachable(monkeypatch, scheme) as place:
        folder = fetch(URIS[scheme], cache, silent)
        assert place.num_sent < half + 4096
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_a_connection_that_breaks_is_tried_again(monkeypatch: pytest.MonkeyPatch, cache: Cache) -> None:
    with reachable(monkeypatch, "hf") as place:
        told: list[str] = []

        def say(line: str) -> None:
            told.append(line)
            place.break_after = 1000 if "config.json" in line else 0

        folder = fetch(URIS["hf"], cache, say, pause_s=0.0)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_a_file_with_a_wrong_checksum_is_refused_and_removed(cache: Cache, tmp_path: Path) -> None:
    sums = f"{'0' * 64}  model.safetensors\n".encode()
    uri = folder_with(tmp_path / "model", FILES | {"SHA256SUMS": sums})
    with pytest.raises(DownloadError, match=r"model.safetensors came twice with the checksum .* was announced"):
        fetch(uri, cache, silent)
    assert not cache.is_complete(uri)
    assert not list(cache.folder(uri).glob("model.safetensors*"))


def test_a_corrupt_part_does_not_survive_its_checksum(monkeypatch: pytest.MonkeyPatch, cache: Cache) -> None:
    part = cache.folder(URIS["hf"]) / "model.safetensors.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(b"\xff" * 1000)
    with reachable(monkeypatch, "hf"):
        folder = fetch(URIS["hf"], cache, silent)
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_a_file_that_changed_in_the_cache_is_fetched_again(cache: Cache, tmp_path: Path) -> None:
    uri = folder_with(tmp_path / "model", FILES)
    folder = fetch(uri, cache, silent)
    (folder / "model.safetensors").write_bytes(b"\0" * len(WEIGHTS))
    told: list[str] = []
    fetch(uri, cache, told.append)
    assert "model.safetensors does not have the checksum that was fetched" in told[0]
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS


def test_a_place_that_does_not_answer_is_told_with_what_to_check(monkeypatch: pytest.MonkeyPatch, cache: Cache) -> None:
    with reachable(monkeypatch, "s3", {}), pytest.raises(DownloadError, match=r"s3://bucket/m (cannot be|holds no)"):
        fetch(URIS["s3"], cache, silent)


def test_ngc_is_refused_with_the_way_round(cache: Cache) -> None:
    with pytest.raises(DownloadError, match="NGC's registry has no open client"):
        fetch("ngc://org/model", cache, silent)


def test_an_unknown_scheme_is_refused() -> None:
    with pytest.raises(DownloadError, match="has the scheme 'ftp'"):
        is_remote("ftp://host/model")


def test_a_full_disk_is_told_with_what_is_kept(tmp_path: Path) -> None:
    with pytest.raises(CacheError, match="is full"), explained(tmp_path):
        Path("/dev/full").write_bytes(b"one")


def test_too_little_room_is_told_before_anything_is_fetched(cache: Cache) -> None:
    cache.require_writable()
    with pytest.raises(CacheError, match=r"free but 1000000000.00 GB are needed. Mount a larger volume"):
        cache.require_room(10**18)


def test_download_to_cache_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NIM_CACHE_PATH", str(tmp_path / "cache"))
    uri = folder_with(tmp_path / "model", FILES)
    assert commands.download_to_cache(["--model-uri", uri]) == 0
    told = capsys.readouterr().out
    assert "%" in told
    assert "2 files, 0.26 MB, are in" in told


def test_the_bundled_model_needs_no_download(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.download_to_cache(["--profile", all_profiles()[0].id]) == 0
    assert "is in the image; there is nothing to fetch" in capsys.readouterr().out


def test_nothing_is_fetched_where_downloads_are_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIM_DISABLE_MODEL_DOWNLOAD", "1")
    with pytest.raises(SettingError, match="NIM_DISABLE_MODEL_DOWNLOAD is 1"):
        commands.download_to_cache(["--all"])


def test_a_model_store_is_a_checked_copy_with_the_profiles_limits(cache: Cache, tmp_path: Path) -> None:
    profile, target = all_profiles()[0], tmp_path / "store"
    make_store(profile, cache, find_places(), target, silent)
    names = {path.name for path in target.iterdir()}
    assert {"config.json", "runtime_config.json", "model.safetensors.index.json"} <= names
    with pytest.raises(CacheError, match="is not empty"):
        make_store(profile, cache, find_places(), target, silent)


def test_a_broken_model_makes_no_store(cache: Cache, tmp_path: Path) -> None:
    places, profile = find_places(), all_profiles()[0]
    broken = tmp_path / "models" / "dsv4-nano"
    broken.mkdir(parents=True)
    for name in ("config.json", "model.safetensors.index.json"):
        (broken / name).write_bytes((places.bundled(profile.uri) / name).read_bytes())
    damaged = type(places)(repository=places.repository, bundled_models=tmp_path / "models", license=places.license)
    with pytest.raises(DownloadError, match="is no sound checkpoint"):
        make_store(profile, cache, damaged, tmp_path / "store", silent)
    assert not (tmp_path / "store").exists()
