"""Build, push and run the image: `python build/image/main.py --help`."""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "build" / "image"), str(ROOT / "build" / "setup")]

from dsv4_image.cli import main  # noqa: E402

if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:], root=ROOT))
