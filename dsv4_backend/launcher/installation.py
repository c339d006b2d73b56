"""Where tritonserver, its Python backend and the Python library of its stubs lie on this machine."""

from __future__ import annotations

import importlib.util
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dsv4_backend.errors import ConfigError

IMAGE_ROOT = Path("/opt/tritonserver")
STUB = "triton_python_backend_stub"


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """One tritonserver tree (`bin/`, `backends/`, `caches/`) and the interpreter that its Python models use.

    Rule: python_bin stands first on PATH, which is how the stub finds its virtual environment;
          library_dirs stand first on LD_LIBRARY_PATH, or the stub takes the distribution's libpython.
    """

    root: Path
    python_bin: Path
    library_dirs: tuple[Path, ...] = ()

    @property
    def server(self) -> Path:
        """The executable."""
        return self.root / "bin" / "tritonserver"

    @property
    def stub(self) -> Path:
        """The process that runs a Python model."""
        return self.root / "backends" / "python" / STUB

    def check(self) -> None:
        """Raises: ConfigError when the server or its stub is not there."""
        if not self.server.is_file():
            raise ConfigError(f"tritonserver is not at {self.server}. Run `make setup`, or name its folder.")
        if not self.stub.is_file():
            raise ConfigError(f"the Python stub is not at {self.stub}. Run `make setup`, which copies it there.")


def find_installation(explicit: Path | None = None, *, image_root: Path = IMAGE_ROOT) -> Installation:
    """Return the tree at `explicit`, else NVIDIA's image, else the nvidia-pytriton wheel of this interpreter.

    Raises: ConfigError naming every place that was looked at.
    """
    places = [explicit] if explicit else [image_root, *_wheel_roots()]
    for root in places:
        if (root / "bin" / "tritonserver").is_file():
            found = Installation(
                root=root, python_bin=Path(sys.prefix) / "bin", library_dirs=tuple(libpython_dirs(_library_places()))
            )
            found.check()
            return found
    looked = ", ".join(str(place) for place in places) or "no nvidia-pytriton wheel"
    raise ConfigError(f"tritonserver is not on this machine (looked at {looked}). Run `make setup`.")


def libpython_dirs(places: Sequence[Path]) -> list[Path]:
    """Return the first of `places` that holds the shared library of the running Python; empty when none does."""
    name = f"libpython{sys.version_info.major}.{sys.version_info.minor}.so.1.0"
    return [place for place in places if (place / name).is_file()][:1]


def _wheel_roots() -> list[Path]:
    spec = importlib.util.find_spec("pytriton")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    return [Path(folder) / "tritonserver" for folder in folders]


def _library_places() -> list[Path]:
    architecture = sysconfig.get_config_var("MULTIARCH") or "x86_64-linux-gnu"
    configured = sysconfig.get_config_var("LIBDIR")
    places = [Path(sys.base_prefix) / "lib"]
    if configured:
        places.insert(0, Path(configured))
    return [*places, Path("/usr/lib") / architecture, Path("/lib") / architecture, Path("/usr/local/lib")]
