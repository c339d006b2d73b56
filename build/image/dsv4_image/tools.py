"""Running Debian's container tools with settings of our own, whatever the machine's are."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PACKAGES = "buildah podman runc skopeo docker-registry mmdebstrap"
EPOCH = "1700000000"  # the time of every file in an image
# Without CAP_SYS_RESOURCE higher limits are refused; hybrid cgroups stop crun; without systemd its manager fails.
CONTAINERS_CONF = """[containers]
cgroups="enabled"
netns="host"
default_ulimits=["nofile=20000:20000","nproc=20000:20000"]
[engine]
cgroup_manager="cgroupfs"
runtime="runc"
events_logger="file"
"""
RUN_FOLDER_CHARACTERS = 50  # podman refuses longer ones: its sockets lie there
LIMIT_S = 3 * 3600.0  # a step that hangs; a busy machine needs an hour for a build
ACCEPT_ALL = {"default": [{"type": "insecureAcceptAnything"}]}


class ImageError(Exception):
    """A step of making, moving or running the image failed; the message ends with what the tool said."""


@dataclass(frozen=True)
class Tools:
    """Container tools whose images, settings and policy lie in `folder`.

    Rule: `policy` is what pulls and pushes must satisfy; by default anything goes, as for a build.
    """

    folder: Path
    policy: Path | None = None
    variables: Mapping[str, str] = field(default_factory=dict)

    def prepare(self) -> None:
        """Write the settings. Raises: ImageError naming every tool that is not there."""
        missing = [name for name in ("buildah", "podman", "skopeo", "runc") if not shutil.which(name)]
        if missing:
            raise ImageError(
                f"{', '.join(missing)}: not on PATH. Debian: apt-get install --no-install-recommends {PACKAGES}"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "containers.conf").write_text(CONTAINERS_CONF, encoding="utf-8")
        (self.folder / "policy.json").write_text(json.dumps(ACCEPT_ALL), encoding="utf-8")
        registries = self.folder / "registries.d"
        registries.mkdir(exist_ok=True)

    def run(self, command: Sequence[str], *, timeout_s: float = LIMIT_S, is_shown: bool = False) -> str:
        """Run a tool and return its output. Raises: ImageError with the end of what it said."""
        try:
            done = subprocess.run(
                list(command),
                env=self.environment(),
                stdout=None if is_shown else subprocess.PIPE,
                stderr=None if is_shown else subprocess.STDOUT,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise ImageError(
                f"`{' '.join(command[:3])} …` has not ended after {timeout_s:g} s. Is the machine or its disk busy?"
                " Run the step again when it is not."
            ) from error
        if done.returncode:
            told = "\n".join((done.stdout or "").splitlines()[-25:])
            raise ImageError(f"`{' '.join(command[:3])} …` ended with exit code {done.returncode}:\n{told}")
        return (done.stdout or "").strip()

    def buildah(self, *arguments: str, timeout_s: float = LIMIT_S) -> str:
        """Run buildah."""
        return self.run(["buildah", *self._storage(), *arguments], timeout_s=timeout_s)

    def podman(self, *arguments: str, timeout_s: float = LIMIT_S) -> str:
        """Run podman."""
        return self.run(self.podman_command(*arguments), timeout_s=timeout_s)

    def podman_command(self, *arguments: str) -> list[str]:
        """Return podman's command line, for a caller that starts it by itself."""
        return ["podman", "--cgroup-manager=cgroupfs", "--runtime=runc", *self._storage(), *arguments]

    def skopeo(self, *arguments: str, timeout_s: float = LIMIT_S) -> str:
        """Run skopeo under the policy."""
        options = ["--policy", str(self.policy or self.folder / "policy.json")]
        options += ["--registries.d", str(self.folder / "registries.d")]
        return self.run(["skopeo", *options, *arguments], timeout_s=timeout_s)

    def environment(self) -> dict[str, str]:
        """Our environment with the tools' settings; a registry login of the user's is not used."""
        kept = {name: value for name, value in os.environ.items() if name != "REGISTRY_AUTH_FILE"}
        return {
            **kept,
            "CONTAINERS_CONF": str(self.folder / "containers.conf"),
            "TMPDIR": str(self._scratch()),
            **self.variables,
        }

    def _scratch(self) -> Path:
        folder = self.folder / "tmp"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def _storage(self) -> list[str]:
        return ["--root", str(self.folder / "graph"), "--runroot", str(self.run_folder())]

    def run_folder(self) -> Path:
        """Where podman keeps what runs: beside the images, or where that name is too long, under one of its own."""
        beside = self.folder.absolute() / "run"
        if len(str(beside)) <= RUN_FOLDER_CHARACTERS:
            return beside
        name = hashlib.sha256(str(beside).encode()).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"dsv4-run-{name}"
