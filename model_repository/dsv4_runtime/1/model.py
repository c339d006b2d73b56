"""dsv4_runtime: the code is dsv4_backend/server; this file only finds it."""

import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("dsv4_backend") is None:  # not installed: run straight from the checkout
    checkout = Path(__file__).resolve().parents[3]
    sys.path[:0] = [str(checkout / name) for name in ("", "kernels", "clients")]

from dsv4_backend.server.models import RuntimeModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
