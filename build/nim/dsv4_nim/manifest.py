"""model_manifest.yaml, schema 2.0.0, as NVIDIA's NIM operator reads it from the image.

python -m dsv4_nim.manifest     prints it
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable

from dsv4_nim.catalog import all_profiles
from dsv4_nim.profiles import Profile

SCHEMA_VERSION = "2.0.0"


def manifest(profiles: Iterable[Profile]) -> dict[str, object]:
    """Return the manifest; a profile whose weights nobody publishes has no files."""
    return {
        "schema_version": SCHEMA_VERSION,
        "profile_selection_criteria": "default",
        "profiles": [
            {
                "id": profile.id,
                "tags": profile.tags,
                "workspace": {"files": {"checkpoint": {"uri": profile.uri}} if profile.uri else {}},
            }
            for profile in profiles
        ],
    }


def render(profiles: Iterable[Profile]) -> str:
    """Return the manifest as YAML. JSON strings are YAML strings too, so the flow style needs no library."""
    content = manifest(profiles)
    lines = [f"{key}: {content[key]}" for key in ("schema_version", "profile_selection_criteria")]
    lines.append("profiles:")
    lines.extend(f"  - {json.dumps(row)}" for row in content["profiles"])  # type: ignore[attr-defined]
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the manifest of this image."""
    sys.stdout.write(render(all_profiles()))


if __name__ == "__main__":
    main()
