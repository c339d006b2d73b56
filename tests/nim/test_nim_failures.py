"""What stops a command: each reason has an exit code of its own and a sentence with value, limit and fix."""

from __future__ import annotations

import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from dsv4_nim import main
from dsv4_nim.catalog import all_profiles
from dsv4_nim.errors import CacheError, DownloadError, HardwareError, PortError, SettingError
from image_rig import PORTS
from nim_rig import command

from dsv4_backend.launcher import free_ports

H100S = "NVIDIA H100 80GB HBM3, 81559, 0\\n"
NOBODY = 65_534
MB = 10**6


def model_in(folder: Path, num_bytes: int = 4096, sums: str = "") -> str:
    """A folder that looks like a model, as a uri."""
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"\0" * num_bytes)
    if sums:
        (folder / "SHA256SUMS").write_text(f"{sums}  model.safetensors\n")
    return f"file://{folder}"


@contextlib.contextmanager
def as_somebody(folder: Path) -> Iterator[int]:
    """Not root, whose writes nothing stops; the way to `folder` is opened for them."""
    if os.geteuid():
        yield os.geteuid()
        return
    for parent in list(folder.parents)[:3]:
        parent.chmod(parent.stat().st_mode | 0o055)
    os.seteuid(NOBODY)
    try:
        yield NOBODY
    finally:
        os.seteuid(0)


def test_codes_of_exit_tell_the_reasons_apart() -> None:
    kinds = (SettingError, HardwareError, CacheError, DownloadError, PortError)
    assert [kind.exit_code for kind in kinds] == [2, 3, 4, 5, 6]


def test_a_bad_profile_id_ends_with_code_2_and_where_ids_are_listed() -> None:
    wanted = all_profiles()[0].id[:-1] + "x"
    done = command("nim-serve", {"NIM_MODEL_PROFILE": wanted})
    assert done.returncode == 2
    assert f"NIM_MODEL_PROFILE is '{wanted}' but no profile has that id or name" in done.stderr
    assert "list-model-profiles prints all ids and names" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_wrong_gpu_ends_with_code_3_and_one_sentence(tmp_path: Path) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text(f"#!/bin/sh\nprintf '{H100S * 8}'\n")
    smi.chmod(0o755)
    path = f"{tmp_path}:{os.environ['PATH']}"
    wanted = next(each for each in all_profiles() if each.gpu == "b200" and each.num_gpus == 8)
    done = command("nim-serve", {"PATH": path, "NIM_MODEL_PROFILE": wanted.name})
    assert done.returncode == 3
    assert "needs 8 x B200; this machine has 8 x NVIDIA H100 80GB HBM3" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_cache_that_cannot_be_written_ends_with_code_4_uid_and_fix(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uri, cache = model_in(tmp_path / "model"), tmp_path / "cache"
    cache.mkdir()
    cache.chmod(0o555)
    monkeypatch.setenv("NIM_CACHE_PATH", str(cache))
    monkeypatch.setattr(sys, "argv", ["download-to-cache", "--model-uri", uri])
    with as_somebody(cache) as uid:
        code = main.download_to_cache()
    told = capsys.readouterr().err
    assert code == 4
    assert f"the cache {cache} cannot be written by uid {uid}" in told
    assert f"`chown -R {uid} {cache}`" in told


def test_a_full_disk_ends_with_code_4_room_and_fix(tmp_path: Path) -> None:
    uri, cache = model_in(tmp_path / "model", 4 * MB), tmp_path / "cache"
    cache.mkdir()
    space = ["unshare", "--mount", *(["--map-root-user"] if os.geteuid() else []), "sh", "-c"]
    small = f'mount -t tmpfs -o size=1m none {cache} && exec "$@"'
    done = command(
        "download-to-cache", {"NIM_CACHE_PATH": str(cache)}, "--model-uri", uri, before=[*space, small, "small-disk"]
    )
    assert done.returncode == 4, done.stderr
    assert f"the cache {cache} has 1.05 MB free but 4.00 MB are needed" in done.stderr
    assert "Mount a larger volume at NIM_CACHE_PATH" in done.stderr


def test_a_corrupt_download_ends_with_code_5_and_leaves_nothing_of_it(tmp_path: Path) -> None:
    uri, cache = model_in(tmp_path / "model", sums="0" * 64), tmp_path / "cache"
    done = command("download-to-cache", {"NIM_CACHE_PATH": str(cache)}, "--model-uri", uri)
    assert done.returncode == 5
    assert "model.safetensors came twice with the checksum" in done.stderr
    assert "0000000000000000… was announced. It was removed: try again" in done.stderr
    assert not list(cache.rglob("model.safetensors*"))


@pytest.mark.parametrize("name", PORTS)
def test_a_port_in_use_ends_with_code_6_and_the_variable(name: str) -> None:
    ports = {each: str(port) for each, port in zip(PORTS, free_ports(len(PORTS)), strict=True)}
    with socket.create_server(("127.0.0.1", int(ports[name]))):
        done = command("nim-serve", {**ports, "NIM_SERVER_HOST": "127.0.0.1"})
    assert done.returncode == 6
    assert name in done.stderr and ports[name] in done.stderr
    assert "Stop what listens there, or set" in done.stderr
