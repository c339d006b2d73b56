"""Where things lie: in the image under /opt/nim, in a checkout in its folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dsv4_nim.errors import SettingError

IMAGE_HOME = Path("/opt/nim")
CHECKOUT = Path(__file__).resolve().parents[3]
FILE_SCHEME = "file://"


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Folders that do not change while the container runs."""

    repository: Path
    bundled_models: Path
    license: Path

    def bundled(self, uri: str) -> Path:
        """Return the folder of a file:// uri of a profile, which names where the image has it."""
        return self.bundled_models / Path(uri.removeprefix(FILE_SCHEME)).name


def find_places() -> Places:
    """Return the image's places, or the checkout's. Raises: SettingError when this is neither."""
    if (IMAGE_HOME / "model_repository").is_dir():
        return Places(
            repository=IMAGE_HOME / "model_repository",
            bundled_models=IMAGE_HOME / "models",
            license=IMAGE_HOME / "LICENSE",
        )
    if (CHECKOUT / "model_repository").is_dir():
        return Places(
            repository=CHECKOUT / "model_repository",
            bundled_models=CHECKOUT / "build" / "nim" / "models",
            license=CHECKOUT / "LICENSE",
        )
    raise SettingError(
        f"there is no model repository in {IMAGE_HOME} or {CHECKOUT}. Run inside the image, or a checkout."
    )
