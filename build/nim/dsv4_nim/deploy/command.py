"""Write Kubernetes manifests for a profile (or a compose file, alerts, a dashboard) to stdout or a folder."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import yaml

from dsv4_backend import __version__
from dsv4_nim.deploy.monitoring import dashboard, rules
from dsv4_nim.deploy.objects import compose, manifests
from dsv4_nim.deploy.options import Options
from dsv4_nim.judge import runtime_gap, select

KINDS = ("manifests", "nimservice", "compose", "alerts", "dashboard")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("--profile", default="triton-fp32-tp1-pp1", metavar="ID",
                        help="id or name of list-model-profiles (default: the bundled model on a CPU)")  # fmt: skip
    parser.add_argument("--write", choices=KINDS, default="manifests", help="what (default %(default)s)")
    parser.add_argument("--image", default=f"dsv4:{__version__}", help="image, best by digest (default %(default)s)")
    parser.add_argument("--name", default="dsv4", help="name of the deployment (default %(default)s)")
    parser.add_argument("--namespace", default="default", help="namespace (default %(default)s)")
    parser.add_argument("--storage-class", default="", help="class of the cache's volume (default: the cluster's)")
    parser.add_argument("--pull-secret", default="", metavar="NAME", help="Secret with the registry's login")
    parser.add_argument("--key-secret", default="", metavar="NAME", help="Secret with HF_TOKEN and NGC_API_KEY")
    parser.add_argument("--max-replicas", type=int, default=4, metavar="N", help="the autoscaler's limit (default 4)")
    parser.add_argument("--queue-target", type=float, default=1.0, metavar="S",
                        help="p90 of queue time that the autoscaler aims at, in seconds (default 1)")  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="FILE", help="write here instead of stdout")


def run(args: argparse.Namespace) -> int:
    """Write. Returns 0. Raises: SettingError for a profile that is unknown."""
    (profile, *_) = select(args.profile)
    options = Options(
        profile=profile,
        image=args.image,
        name=args.name,
        namespace=args.namespace,
        storage_class=args.storage_class,
        pull_secret=args.pull_secret,
        key_secret=args.key_secret,
        max_replicas=args.max_replicas,
        queue_target_s=args.queue_target,
    )
    gap = runtime_gap(profile)
    if gap:
        sys.stderr.write(f"dsv4 k8s: {profile.name}: {gap}; its pods will refuse to start until a version has it.\n")
    text = render(args.write, options)
    if args.out:
        args.out.write_text(text, encoding="utf-8")
    else:
        sys.stdout.write(text)
    return 0


def render(kind: str, options: Options) -> str:
    """Return the text of one of KINDS."""
    if kind == "dashboard":
        return json.dumps(dashboard(), indent=2) + "\n"
    if kind == "alerts":
        return str(yaml.safe_dump(rules(), sort_keys=False, width=200))
    if kind == "compose":
        return str(yaml.safe_dump(compose(options), sort_keys=False))
    return str(yaml.safe_dump_all(manifests(options, as_nim_service=kind == "nimservice"), sort_keys=False))
