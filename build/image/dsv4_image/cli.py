"""`build`, `push`, `run`, `sbom`: what `make image push run` call."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from dsv4_image.build import Build, version
from dsv4_image.supply import SBOM_FILE, attach_sbom, make_sbom, push, sign
from dsv4_image.tools import ImageError, Tools

# As NVIDIA's operator and a careful host run it: nothing can be written but /tmp and the cache, no rights are left.
RUN_OPTIONS = (
    "--network=host", "--user=1000:1000", "--read-only", "--cap-drop=all", "--security-opt=no-new-privileges",
    "--tmpfs=/tmp:rw,noexec,nosuid,nodev,size=64m", "--shm-size=256m", "--stop-timeout=40",
)  # fmt: skip

# Run inside the image: Python packages of its environment and its base, Debian's list of packages, and whose they are.
ASK = """
import importlib.metadata as m, json, pathlib, platform
pins = sorted({f"{d.metadata['Name']}=={d.version}" for d in m.distributions()})
status = pathlib.Path("/var/lib/dpkg/status").read_text()
print(json.dumps({"pins": pins, "status": status, "distribution": platform.freedesktop_os_release()["ID"]}))
"""


def main(arguments: Sequence[str], *, root: Path) -> int:
    """Run one step and return the exit code."""
    options = _parser().parse_args(arguments)
    tools = Tools(options.store or root / "build" / "cache" / "image" / "store")
    try:
        tools.prepare()
        return {"build": _build, "push": _push, "run": _run, "sbom": _sbom}[options.step](options, root, tools)
    except (ImageError, OSError) as error:
        sys.stderr.write(f"image: {error}\n")
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="build/image/main.py", description="Build, push and run the image.")
    parser.add_argument("step", choices=("build", "push", "run", "sbom"))
    parser.add_argument("--tag", default="localhost/dsv4:latest", help="name of the image here (default %(default)s)")
    parser.add_argument("--base-image", default="", help="base with Triton (default: a Debian base, made here)")
    parser.add_argument("--python", default="", help="its Python, such as 3.12 (default: the running one)")
    parser.add_argument("--target", default="", help="push: name in the registry, host/repository:tag")
    parser.add_argument("--sign-by", default="", metavar="KEY", help="push: GPG key that signs it")
    parser.add_argument("--plain-http", action="store_true", help="push: the registry has no TLS")
    parser.add_argument("--cache", type=Path, default=Path("build/cache/nim"), help="run: folder of NIM_CACHE_PATH")
    parser.add_argument("--store", type=Path, help="where images are kept (default: build/cache/image/store)")
    return parser


def _build(options: argparse.Namespace, root: Path, tools: Tools) -> int:
    build = Build(
        root=root, tools=tools, tag=options.tag, base_image=options.base_image, python=options.python, say=_say
    )
    _say(f"{options.tag} {build.run()}")
    return 0


def _push(options: argparse.Namespace, root: Path, tools: Tools) -> int:
    if not options.target:
        raise ImageError("no registry is named. Type: make push TARGET=registry.example/dsv4:0.1.0")
    digest = push(tools, options.tag, options.target, is_plain_http=options.plain_http)
    name = attach_sbom(tools, bill(options.tag, root, tools), options.target, digest, is_plain_http=options.plain_http)
    if options.sign_by:
        sign(tools, options.target, digest, options.sign_by, is_plain_http=options.plain_http)
    _say(f"{options.target}@{digest}\nbill of materials: {name}")
    return 0


def _run(options: argparse.Namespace, root: Path, tools: Tools) -> int:
    options.cache.mkdir(parents=True, exist_ok=True)
    if os.geteuid() == 0:
        os.chown(options.cache, 1000, 0)
    volume = f"--volume={options.cache.resolve()}:/opt/nim/.cache"
    command = tools.podman_command("run", "--rm", *RUN_OPTIONS, "--env=NIM_LOG_LEVEL=INFO", volume, options.tag)
    return subprocess.run(command, env=tools.environment(), check=False).returncode


def _sbom(options: argparse.Namespace, root: Path, tools: Tools) -> int:
    target = root / "build" / "cache" / "image" / SBOM_FILE
    target.write_text(bill(options.tag, root, tools), encoding="utf-8")
    _say(str(target))
    return 0


def bill(image: str, root: Path, tools: Tools) -> str:
    """Return the bill of materials of an image: what is installed in it, asked of the image itself."""
    python = ("run", "--rm", "--network=none", "--entrypoint=/opt/nim/venv/bin/python", image, "-c", ASK)
    told = json.loads(tools.podman(*python))
    return make_sbom(told["pins"], told["status"], version(root), distribution=told["distribution"])


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
