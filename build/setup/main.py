"""Set this checkout up, or say what is missing: `python3 build/setup/main.py --help`. Standard library only."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from dsv4_setup.cli import main

WANTED = ("python3.11", "python3.12")


def _suitable_python() -> str:
    """Return another interpreter that runs and is of a version that the locks are for; empty when there is none."""
    for name in WANTED:
        path = shutil.which(name)
        if path and subprocess.run([path, "-c", ""], capture_output=True, check=False).returncode == 0:
            return path
    return ""


if __name__ == "__main__":
    if sys.version_info[:2] not in ((3, 11), (3, 12)):
        found = _suitable_python()
        if found:
            print(f"set-up: python {sys.version.split()[0]} is not 3.11 or 3.12, so {found} is used", flush=True)
            os.execv(found, [found, *sys.argv])
    raise SystemExit(main(sys.argv[1:], root=Path(__file__).resolve().parents[2]))
