"""The Debian base: mmdebstrap, then tritonserver from the wheel where NVIDIA's image has it, packed into one tar."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable
from pathlib import Path

from dsv4_image.tools import EPOCH, ImageError

SUITE = "bookworm"
# /bin is a link from the start, as Debian has it: otherwise usrmerge makes it one, and brings 46 MB of Perl.
MERGED = "usr-is-merged"
MERGED_HOOK = "/usr/share/mmdebstrap/hooks/merged-usr"
RUNTIME_PACKAGES = ("python3", "python3-venv", "libpython3.11", "libgomp1", "ca-certificates")
BUILDER_PACKAGES = ("g++",)
PYTHON = "3.11"
WHEEL_HOME = Path("opt/pytriton")
USER = "triton-server:x:1000:1000::/opt/nim/home:/usr/sbin/nologin"
# What a build leaves behind and nothing needs: the first is where packages came from, the others differ each time.
RUBBISH = (
    "etc/apt/sources.list", "etc/apt/sources.list.d", "var/lib/apt/lists", "var/cache/apt", "var/cache/debconf",
    "var/log", "var/cache/ldconfig", "etc/machine-id", "etc/hostname", "etc/resolv.conf",
    "usr/share/doc", "usr/share/man", "usr/share/locale", "usr/share/info", "var/lib/dpkg/status-old",
)  # fmt: skip


def debian_mirror() -> str:
    """Return the mirror that this machine's apt uses, or DEBIAN_MIRROR. Raises: ImageError when there is none."""
    named = os.environ.get("DEBIAN_MIRROR")
    if named:
        return named
    files = [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]
    text = "\n".join(path.read_text(encoding="utf-8") for path in files if path.is_file())
    found = re.search(r"^(?:URIs:|deb(?: \[[^]]*\])?)\s+(https?://\S+/debian/?)(?=\s|$)", text, re.MULTILINE)
    if not found:
        raise ImageError("apt's sources name no Debian mirror. Set DEBIAN_MIRROR to one.")
    return found.group(1)


def make_base(folder: Path, wheel: Path, *, is_builder: bool) -> Path:
    """Return rootfs.tar of the base, or of its builder with a compiler; one that is there is kept.

    Raises: ImageError with the end of what mmdebstrap said.
    """
    packed = folder / ("builder" if is_builder else "base") / "rootfs.tar"
    if packed.is_file():
        return packed
    if os.geteuid():
        raise ImageError("mmdebstrap needs root here. Run the same command with sudo, or give BASE_IMAGE.")
    packed.parent.mkdir(parents=True, exist_ok=True)
    packages = [*RUNTIME_PACKAGES, *(BUILDER_PACKAGES if is_builder else ())]
    with tempfile.TemporaryDirectory(dir=packed.parent) as temporary:
        root = Path(temporary) / "rootfs"
        _bootstrap(root, packages)
        install_server(root, wheel)
        finish(root)
        pack(root, packed)
    return packed


def _bootstrap(root: Path, packages: Iterable[str]) -> None:
    if not shutil.which("mmdebstrap"):
        raise ImageError("mmdebstrap is not on PATH. Debian: apt-get install --no-install-recommends mmdebstrap")
    command = ["mmdebstrap", "--mode=root", "--variant=minbase", f"--hook-dir={MERGED_HOOK}"]
    command.append(f"--include={','.join([MERGED, *packages])}")
    done = subprocess.run(
        [*command, SUITE, str(root), debian_mirror()],
        env={**os.environ, "SOURCE_DATE_EPOCH": EPOCH}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise ImageError("mmdebstrap failed:\n" + "\n".join((done.stdout + done.stderr).splitlines()[-15:]))


def install_server(root: Path, wheel: Path) -> None:
    """Unpack the wheel under /opt/pytriton, make /opt/tritonserver point at its server, and put the stub in place."""
    home = root / WHEEL_HOME
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if _is_wanted(name)]
        archive.extractall(home, names)
    server = home / "pytriton" / "tritonserver"
    stub = server / "backends" / "python" / "triton_python_backend_stub"
    shutil.copy2(server / "python_backend_stubs" / PYTHON / stub.name, stub)
    for program in (server / "bin" / "tritonserver", stub):
        program.chmod(0o755)
    link = root / "opt" / "tritonserver"
    link.symlink_to(Path("/") / WHEEL_HOME / "pytriton" / "tritonserver")


def _is_wanted(name: str) -> bool:
    """The server, its libraries and the stub of our Python; of the wheel's Python package nothing."""
    if "python_backend_stubs/" in name:
        return f"python_backend_stubs/{PYTHON}/" in name
    return name.startswith(("pytriton/tritonserver/", "nvidia_pytriton.libs/")) or ".dist-info/licenses" in name


def finish(root: Path) -> None:
    """Add the user that NVIDIA's image has, and remove what a build leaves behind."""
    for name, line in (("passwd", USER), ("group", "triton-server:x:1000:")):
        with (root / "etc" / name).open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    for path in (root / each for each in RUBBISH):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    for cache in root.rglob("__pycache__"):
        shutil.rmtree(cache)
    for folder in ("var/log", "var/lib/apt/lists/partial", "var/cache/apt/archives/partial", "etc/apt/sources.list.d"):
        (root / folder).mkdir(parents=True, exist_ok=True)


def pack(root: Path, packed: Path) -> None:
    """Write a tar whose bytes follow from the files alone: sorted names, no times, owners by number, no devices."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
        member.mtime, member.uname, member.gname = 0, "", ""
        return None if member.ischr() or member.isblk() or member.isfifo() else member

    part = packed.with_suffix(".part")
    with tarfile.open(part, "w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(root.rglob("*")):
            archive.add(path, arcname=str(path.relative_to(root)), recursive=False, filter=plain)
    part.rename(packed)
