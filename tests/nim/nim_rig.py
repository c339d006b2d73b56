"""Running a command of the image from the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence


def command(
    name: str, environment: dict[str, str], *arguments: str, before: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    """Run a command as the image does; `before` stands in front of it, as `unshare …`."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("NIM_")}
    paths = os.pathsep.join(path for path in sys.path if path)
    return subprocess.run(
        [*before, sys.executable, "-m", "dsv4_nim.main", name, *arguments],
        env={**kept, "PYTHONPATH": paths, **environment}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
