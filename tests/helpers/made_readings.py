"""The fake host's data set over made scenes, read by it or by us."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.helpers.made_host import host_hypes, write_hypes
from tests.helpers.made_scenes import MadeAgent, MadeScene, junction_scene
from turbotrain_plugin.hosts import host_named
from turbotrain_plugin.hosts.hypes import read
from turbotrain_plugin.hosts.session import enter

REAL_NAME = "2023-03-17-15-53-02_1_0"


@contextmanager
def data_set(
    fake_host: Path,
    tmp_path: Path,
    data: Path,
    *,
    train: bool = False,
    **changes: Any,  # noqa: ANN401
) -> Iterator[Any]:
    """Yield the host's data set over ``data/train`` or ``data/validate``."""
    hypes = host_hypes(data, **{"fusion": {"core_method": "CloudFusionDataset"}, **changes})
    found = read(write_hypes(tmp_path / "hypes.yaml", hypes))
    with enter(host_named("auto", fake_host), fake_host) as session:
        parsed = found.parsed(session.host, session.modules)
        yield session.modules.datasets.build_dataset(parsed, visualize=False, train=train)


def ours(**keys: object) -> dict[str, Any]:
    """Return a block that asks for our reader."""
    data = {"format": "auto", "classes": [], **keys}
    return {
        "host": {"workers": 0, "data": data},
        "balance": {"free_steps": 2, "balance_steps": 2},
        "logging": {"tensorboard": False},
    }


def broken_scene(frames: int = 6) -> MadeScene:
    """Vehicles 2 and 10, units -1 and -2; each lacks something."""
    agents = (
        MadeAgent(2, (0.0, 0.0, 1.9), (5.0, 0.0), without_labels=frozenset({1})),
        MadeAgent(10, (4.0, 5.0, 1.9), without_cloud=frozenset({2, 3}), yaw_deg=90.0),
        MadeAgent(-1, (8.0, -8.0, 4.0), without_labels=frozenset({3})),
        MadeAgent(-2, (-8.0, 8.0, 4.0), without_cloud=frozenset(range(1, frames))),
    )
    return MadeScene(REAL_NAME, agents, junction_scene("x").objects[:3], frames)


def agents_of(frame: dict[str, Any]) -> tuple[list[str], list[str]]:
    """Return the agents of a frame and those among them that lead."""
    return list(frame), [name for name, agent in frame.items() if agent["ego"]]
