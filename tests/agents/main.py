"""Agents that are not in the lock, against the real server and the bundled model: `make test-agents`.

openai-node and OpenClaw (npm, Node 24), and the NeMo Agent Toolkit in an environment of its own; all are installed into
build/cache/agents. Results go to tests/results/agents.json; the exit code is 1 if a required check
failed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "gateway"), str(ROOT / "build" / "nano")]

from nat_client import install as install_nat  # noqa: E402
from nat_client import try_nat  # noqa: E402
from openclaw_client import try_openclaw  # noqa: E402
from own_calls import OwnCall, find_own_call  # noqa: E402
from real_rig import KEY, NANO, Real, run_real  # noqa: E402
from report import Check, Client  # noqa: E402

CACHE = ROOT / "build" / "cache" / "agents"
RESULT = ROOT / "tests" / "results" / "agents.json"
NODE, NPM_PACKAGES = "node@24.21.0", ("openai@7.57.0", "openclaw@2026.9.6")
NAMES = ("openai-node", "nvidia-nat", "openclaw")


def install_node() -> Path:
    """Install Node 24 and its packages once; return their `.bin`. Node comes first: OpenClaw asks for it."""
    folder = CACHE / "node"
    place = folder / "node_modules" / ".bin"
    environment = {**os.environ, "PATH": f"{place}:{os.environ['PATH']}"}
    for packages, found in (((NODE,), place / "node"), (NPM_PACKAGES, place / "openclaw")):
        if not found.exists():
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "package.json").touch()
            if not (folder / "package.json").read_text(encoding="utf-8"):
                (folder / "package.json").write_text('{"private": true}\n', encoding="utf-8")
            npm = ["npm", "install", "--no-audit", "--no-fund", *packages]
            subprocess.run(npm, cwd=folder, check=True, env=environment)
    return place


def try_node(place: Path, real: Real, own: OwnCall) -> Client:
    """Run openai-node's checks; the script stands beside its modules, where Node looks for them."""
    script = CACHE / "node" / "openai_node.mjs"
    shutil.copy2(Path(__file__).with_name("openai_node.mjs"), script)
    known = asdict(own)
    asked = {"name": own.name, "arguments": own.arguments} | {
        key: known["question"][key] for key in ("messages", "tools")
    }
    command = [str(place / "node"), str(script), f"{real.url}/v1", KEY, NANO, json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200, check=False)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    checks = [Check(line["check"], line["ok"], line["seconds"], line["why"]) for line in lines]
    if done.returncode:
        checks.append(Check("exit", False, 0.0, done.stderr[-600:]))
    version = json.loads((place.parent / "openai" / "package.json").read_text(encoding="utf-8"))["version"]
    node = subprocess.run([place / "node", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    return Client("openai-node", f"{version} on Node {node}", tuple(checks))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("clients", nargs="*", metavar="CLIENT", help=f"of {', '.join(NAMES)}; all, unless named")
    names = parser.parse_args().clients or list(NAMES)
    if unknown := sorted(set(names) - set(NAMES)):
        parser.error(f"there is no client {unknown[0]!r}. Name some of {', '.join(NAMES)}.")
    CACHE.mkdir(parents=True, exist_ok=True)
    node = install_node() if {"openai-node", "openclaw"} & set(names) else None
    nat = install_nat(CACHE) if "nvidia-nat" in names else None
    found: list[Client] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        with run_real(ROOT / "build" / "nano" / "checkpoints" / "official", folder) as real:
            if node and "openai-node" in names:
                found.append(try_node(node, real, find_own_call(real)))
            if nat:
                found.append(try_nat(nat, real.url, KEY, NANO, folder))
            if node and "openclaw" in names:
                found.append(try_openclaw(node, real.url, KEY, NANO, folder / "openclaw"))
    record(found)
    for client in found:
        for check in client.checks:
            sys.stdout.write(f"{client.name} {client.version}: {check.name} {check.ok} {check.seconds} s {check.why}\n")
    return int(not all(check.ok for client in found for check in client.checks if check.is_required))


def record(found: list[Client]) -> None:
    """Write the results of these clients; those of others stay, each with its own date and commit."""
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    system = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"
    clients = json.loads(RESULT.read_text(encoding="utf-8"))["clients"] if RESULT.is_file() else {}
    for client in found:
        run = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "commit": commit, "system": system}
        clients[client.name] = {**asdict(client), **run}
    RESULT.parent.mkdir(exist_ok=True)
    shown = {"command": "make test-agents", "clients": clients}
    text = json.dumps(shown, indent=2, ensure_ascii=False).replace(str(ROOT), ".")
    RESULT.write_text(f"{text}\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
