"""The build context: a copy of what the image is made from, so that a file edited meanwhile is in no build by half."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from dsv4_image.tools import ImageError
from dsv4_image.wheels import pin_of

SOURCES = (
    "pyproject.toml", "README.md", "LICENSE", "dsv4_backend", "kernels", "clients", "model_repository",
    "build/nim/dsv4_nim", "build/nano/checkpoints/official", "build/Containerfile", ".containerignore",
)  # fmt: skip
FETCHED = "build/cache/image"


def snapshot(root: Path, target: Path) -> Path:
    """Copy the tracked sources of a checkout, as they are now, and link what was fetched for them.

    Rule:   modes are those that git keeps, whatever the umask: they are part of the image's digest.
    Raises: ImageError when this is no checkout.
    """
    shutil.rmtree(target, ignore_errors=True)
    for name in _tracked(root):
        source, copy = root / name, target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, copy)
        copy.chmod(0o755 if os.access(source, os.X_OK) and source.stat().st_mode & 0o100 else 0o644)
    wheels = target / FETCHED / "wheels"
    wheels.mkdir(parents=True)
    wanted = (root / FETCHED / "requirements.txt").read_text(encoding="utf-8")
    for wheel in (root / FETCHED / "wheels").glob("*.whl"):
        if pin_of(wheel) in wanted.split():
            os.link(wheel, wheels / wheel.name)
    (target / FETCHED / "requirements.txt").write_text(wanted, encoding="utf-8")
    for folder in (path for path in target.rglob("*") if path.is_dir()):
        folder.chmod(0o755)
    return target


def fingerprint(context: Path, *more: str) -> str:
    """Return a hash of everything that an image is made from: the files of a context, and what else counts.

    Rule: a wheel counts by its name, which is its pin.
    """
    digest = hashlib.sha256("\n".join(more).encode())
    for path in sorted(path for path in context.rglob("*") if path.is_file()):
        digest.update(f"\n{path.relative_to(context)} {path.stat().st_mode:o}\n".encode())
        if path.suffix != ".whl":
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _tracked(root: Path) -> list[str]:
    done = subprocess.run(
        ["git", "-C", str(root), "ls-files", "-z", "--", *SOURCES], capture_output=True, text=True, check=False
    )
    names = [name for name in done.stdout.split("\0") if name and (root / name).is_file()]
    if done.returncode or not names:
        raise ImageError(f"{root} is not a git checkout: {done.stderr.strip()}. Build from a clone.")
    return names
