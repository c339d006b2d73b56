"""dsv4_detokenizer: the code is dsv4_backend/server; this file only finds it."""

import sys
from importlib.util import find_spec
from pathlib import Path

if not all(map(find_spec, ("dsv4_backend", "dsv4_kernels", "dsv4_client"))):  # not installed: use the checkout
    checkout = Path(__file__).resolve().parents[3]
    sys.path[:0] = [str(checkout / name) for name in ("", "kernels", "clients")]

from dsv4_backend.server.models import DetokenizerModel as TritonPythonModel

__all__ = ["TritonPythonModel"]
