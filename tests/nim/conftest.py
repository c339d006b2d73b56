"""What the tests of the image share: figures that are kept, and the image of a module in a registry."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from dsv4_image.build import Build
from image_rig import ROOT, Figures, Pushed, push_measured, registry


@pytest.fixture(scope="module")
def figures(request: pytest.FixtureRequest) -> Iterator[Figures]:
    """Times and sizes; at the end they go to the file in tests/results that the module names as RESULTS."""
    found = Figures()
    with found.timing("all"):
        yield found
    mark, path = request.module.pytestmark.name, Path(request.module.__file__).relative_to(ROOT)
    found.write(request.module.RESULTS, f"python -m pytest -m {mark} {path}")


@pytest.fixture(scope="module")
def pushed(build: Build, figures: Figures, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pushed]:
    """The module's image in a registry of its own."""
    folder = tmp_path_factory.mktemp("registry")
    with registry(folder) as address:
        yield push_measured(build, folder, address, figures)
