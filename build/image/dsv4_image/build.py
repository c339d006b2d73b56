"""From a checkout to an OCI image whose digest follows from the base's digest and the sources alone."""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from dsv4_image.base import make_base
from dsv4_image.context import fingerprint, snapshot
from dsv4_image.tools import EPOCH, ImageError, Tools
from dsv4_image.wheels import collect, server_wheel

CONTAINERFILE, BASE_CONTAINERFILE = "build/Containerfile", "build/image/Containerfile.base"
LOCAL_BASE, LOCAL_BUILDER = "localhost/dsv4-base:bookworm", "localhost/dsv4-builder:bookworm"
BASES = {LOCAL_BASE: False, LOCAL_BUILDER: True}  # name → is it the builder
CPU_LEAVES_OUT = ("triton",)  # a GB of compiler that only GPU kernels need


@dataclass(frozen=True, kw_only=True)
class Made:
    """An image that was built: from what (context.fingerprint), its id, and how long it took."""

    key: str
    image_id: str
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Build:
    """One way to build. base_image empty: the Debian base, made here."""

    root: Path
    tools: Tools
    tag: str
    base_image: str = ""
    python: str = ""
    say: Callable[[str], None] = field(default=print)

    @property
    def folder(self) -> Path:
        """Where what is fetched and made is kept between builds."""
        return self.root / "build" / "cache" / "image"

    @property
    def context(self) -> Path:
        """The copy of the sources that is built from."""
        return self.folder / "context"

    def run(self) -> str:
        """Build and return the image id; where nothing changed, the image that is there. Raises: ImageError."""
        self.tools.prepare()
        left_out = () if self.base_image else CPU_LEAVES_OUT
        collect(self.root, self.folder, python=self.python, left_out=left_out)
        snapshot(self.root, self.context)
        self._revision.write_text(revision(self.root), encoding="ascii")
        base, builder = self._named_base() if self.base_image else self.make_bases()
        key = fingerprint(self.context, self.tag, self.digest(base), self.digest(builder))
        made = self.last()
        if made and made.key == key and made.image_id == self.image_id(self.tag):
            self.say(f"image {self.tag}: nothing has changed since it was built")
            return made.image_id
        started = time.monotonic()
        made = Made(key=key, image_id=self.build_app(base, builder), seconds=round(time.monotonic() - started, 1))
        self._record.write_text(json.dumps(asdict(made)), encoding="utf-8")
        return made.image_id

    def last(self) -> Made | None:
        """Return how this tag was built last, as far as it is known."""
        try:
            return Made(**json.loads(self._record.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def image_id(self, image: str) -> str:
        """Return the id of an image; empty for one that is not stored here."""
        if not self._is_there(image):
            return ""
        return self.tools.buildah("inspect", "--type=image", "--format={{.FromImageID}}", image)

    @property
    def _revision(self) -> Path:
        """The commit of the context: a commit that is made while an image is built is not in it."""
        return self.folder / "revision"

    @property
    def _record(self) -> Path:
        return self.tools.folder / f"{re.sub(r'[^a-z0-9.]+', '-', self.tag)}.json"

    def _named_base(self) -> tuple[str, str]:
        """Return the base that was asked for, pulled where it is not here; it is its own builder."""
        if not self._is_there(self.base_image):
            self._timed(f"pull {self.base_image}", lambda: self.tools.buildah("pull", "--quiet", self.base_image))
        return self.base_image, self.base_image

    def make_bases(self) -> tuple[str, str]:
        """Return the Debian base and its builder, made side by side where they are not there yet."""
        wheel = server_wheel(self.root, self.folder)
        wanted = [(name, is_builder) for name, is_builder in BASES.items() if not self._is_there(name)]
        with ThreadPoolExecutor() as pool:
            made = [
                pool.submit(self._timed, f"base {name}", partial(self._make_base, name, wheel, is_builder=is_builder))
                for name, is_builder in wanted
            ]
        for each in made:
            each.result()
        return LOCAL_BASE, LOCAL_BUILDER

    def build_app(self, base: str, builder: str, tag: str = "") -> str:
        """Build the image from the context on a base and return its id."""
        options = [*OPTIONS, "--build-arg", f"BASE_IMAGE={base}", "--build-arg", f"BUILDER_IMAGE={builder}"]
        options += ["--build-arg", f"BASE_DIGEST={self.digest(base)}", "--build-arg", f"VERSION={version(self.root)}"]
        options += ["--build-arg", f"REVISION={self._revision.read_text(encoding='ascii')}", "--tag", tag or self.tag]
        command = ["bud", *options, "-f", str(self.context / CONTAINERFILE), str(self.context)]
        self._timed(f"image {tag or self.tag}", lambda: self.tools.buildah(*command))
        return self.image_id(tag or self.tag)

    def digest(self, image: str) -> str:
        """Return the digest of an image's manifest; empty for one that is not stored here."""
        if not self._is_there(image):
            return ""
        return self.tools.buildah("inspect", "--type=image", "--format={{.FromImageDigest}}", image)

    def _make_base(self, name: str, wheel: Path, *, is_builder: bool) -> None:
        packed = make_base(self.folder, wheel, is_builder=is_builder)
        dockerfile = self.root / BASE_CONTAINERFILE
        self.tools.buildah("bud", *OPTIONS, "--tag", name, "-f", str(dockerfile), str(packed.parent))

    def _is_there(self, name: str) -> bool:
        try:
            self.tools.buildah("inspect", "--type=image", "--format={{.FromImageID}}", name)
        except ImageError:
            return False
        return True

    def _timed(self, what: str, work: Callable[[], object]) -> None:
        started = time.monotonic()
        work()
        self.say(f"{what}: {time.monotonic() - started:.0f} s")


OPTIONS = ("--isolation", "chroot", "--format", "oci", "--layers=false", "--timestamp", EPOCH, "--pull-never")


def version(root: Path) -> str:
    """Return the project's version."""
    found = re.search(r'^version = "([^"]+)"', (root / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    return found.group(1) if found else "0"


def revision(root: Path) -> str:
    """Return the commit of a checkout, marked when something is not committed; empty outside of one."""
    done = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.strip()
