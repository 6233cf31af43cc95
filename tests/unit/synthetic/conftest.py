"""One small generated data set for all tests of the room."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.recordings import Recording
from turbotrain_plugin.synthetic import Preset, SensorModel, generate

UNIT = Preset(
    name="unit",
    scenes=(1, 0, 0),
    frames=51,
    vehicle=SensorModel(tuple(-22.0 + 26.0 * i / 31 for i in range(32)), 720, 100.0),
    roadside=SensorModel(tuple(-22.5 + 34.5 * i / 31 for i in range(32)), 512, 100.0),
    cloud_stride=5,
)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Root with one scene of 51 frames."""
    return generate(UNIT, tmp_path_factory.mktemp("synthetic") / "root", seed=4, workers=1)


@pytest.fixture(scope="session")
def recording(root: Path) -> Recording:
    """The scene of ``root``."""
    (folder,) = (root / "train").iterdir()
    return Recording(folder)
