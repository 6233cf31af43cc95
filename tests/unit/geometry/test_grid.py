"""The BEV grid and what of it an agent sees; the room's public names."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch

from turbotrain_plugin import geometry
from turbotrain_plugin.geometry import BevGrid, pose_to_matrix, roi_mask

PAPER = BevGrid((-102.4, -40.0, -5.0, 102.4, 40.0, 3.0), (0.1, 0.1, 0.2), 8)
SMALL = BevGrid((-4.0, -2.0, -3.0, 4.0, 2.0, 1.0), (0.5, 0.5, 4.0), 2)
AHEAD = BevGrid((0.0, -2.0, -3.0, 8.0, 2.0, 1.0), (0.5, 0.5, 4.0), 2)


def test_sizes_of_the_papers_grid() -> None:
    assert PAPER.voxel_counts == (2048, 800, 40)
    assert (PAPER.height, PAPER.width) == (100, 256)
    assert PAPER.cell_m == pytest.approx((0.8, 0.8))


def test_cell_centres() -> None:
    centres = SMALL.cell_centres()
    assert centres.shape == (4, 8, 2)
    np.testing.assert_allclose(centres[0, 0], [-3.5, -1.5])
    np.testing.assert_allclose(centres[3, 7], [3.5, 1.5])
    np.testing.assert_allclose(centres[0, 1], [-2.5, -1.5])


@pytest.mark.parametrize(
    ("range_m", "voxel_m", "stride", "match"),
    [
        ((0, 0, 0, 1, 1, 1), (0.3, 0.5, 1), 1, "The x range must be a positive whole number"),
        ((0, 0, 0, 1, -1, 1), (0.5, 0.5, 1), 1, "The y range must be a positive whole number"),
        ((0, 0, 0, 1, 1, 1), (0.5, 0.5, 1), 4, "must be divisible by the stride 4"),
    ],
)
def test_refuses_ranges_that_do_not_fit(
    range_m: tuple[float, float, float, float, float, float],
    voxel_m: tuple[float, float, float],
    stride: int,
    match: str,
) -> None:
    with pytest.raises(ValueError, match=match):
        BevGrid(range_m, voxel_m, stride)


def _pose(
    x: float = 0.0, y: float = 0.0, yaw_deg: float = 0.0, pitch_deg: float = 0.0
) -> torch.Tensor:
    return torch.from_numpy(pose_to_matrix([x, y, 0, 0, yaw_deg, pitch_deg])).float()[None]


@pytest.mark.parametrize("grid", [PAPER, SMALL, AHEAD])
def test_the_ego_sees_its_whole_grid(grid: BevGrid) -> None:
    mask = roi_mask(torch.eye(4)[None], grid)
    assert mask.shape == (1, 1, grid.height, grid.width)
    assert mask.dtype == torch.bool
    assert mask.all()


def test_an_agent_ahead_sees_the_front() -> None:
    mask = roi_mask(_pose(x=3.0), SMALL)[0, 0]
    assert mask[:, 3:].all()
    assert not mask[:, :3].any()


def test_an_agent_to_the_left_sees_the_rows_of_larger_y() -> None:
    mask = roi_mask(_pose(y=1.0), SMALL)[0, 0]
    assert mask[1:].all()
    assert not mask[:1].any()


def test_crosswise_the_range_is_turned() -> None:
    mask = roi_mask(_pose(yaw_deg=90.0), SMALL)[0, 0]
    assert mask[:, 2:6].all()
    assert not mask[:, :2].any()
    assert not mask[:, 6:].any()


def test_an_oncoming_agent_with_a_forward_range() -> None:
    # It stands 6 m ahead, looks back, and sees x from -2 to 6 of the ego's 0 to 8.
    mask = roi_mask(_pose(x=6.0, yaw_deg=180.0), AHEAD)[0, 0]
    assert mask[:, :6].all()
    assert not mask[:, 6:].any()
    # Looking the same way it sees from 6 m on.
    mask = roi_mask(_pose(x=6.0), AHEAD)[0, 0]
    assert mask[:, 6:].all()
    assert not mask[:, :6].any()


def test_far_agents_see_nothing_and_none_give_an_empty_mask() -> None:
    assert not roi_mask(_pose(x=500.0), SMALL).any()
    assert roi_mask(torch.zeros(0, 4, 4), SMALL).shape == (0, 1, 4, 8)


def test_brute_force_over_cells() -> None:
    rng = np.random.default_rng(0)
    poses = [[*rng.uniform(-5, 5, 2), 0.3, *rng.uniform(-20, 20, 1), rng.uniform(-180, 180), 9.0]]
    poses += [[1.0, 0.5, 0.0, 0.0, 45.0, 0.0]]
    matrices = np.stack([pose_to_matrix(pose) for pose in poses])
    mask = roi_mask(torch.from_numpy(matrices), AHEAD)
    seen = 0
    for agent, matrix in enumerate(matrices):
        for row in range(AHEAD.height):
            for column in range(AHEAD.width):
                x, y = AHEAD.cell_centres()[row, column]
                local = np.linalg.solve(matrix, [x, y, 0.0, 1.0])
                inside = 0 <= local[0] <= 8 and -2 <= local[1] <= 2
                seen += inside
                assert mask[agent, 0, row, column].item() == inside
    assert 0 < seen < 2 * AHEAD.height * AHEAD.width


def test_turned_around_a_symmetric_range_changes_nothing() -> None:
    assert roi_mask(_pose(yaw_deg=180.0), SMALL).all()


def test_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"`ego_SE3_agent` must have shape \(N, 4, 4\)"):
        roi_mask(torch.eye(4), SMALL)


def test_every_public_name_resolves() -> None:
    for name in geometry.__all__:
        assert getattr(geometry, name).__name__ == name
    assert set(geometry._DOORS) == set(geometry.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = geometry.nothing


def test_poses_and_boxes_load_no_torch() -> None:
    code = (
        "import sys; from turbotrain_plugin.geometry import bev_corners, pose_to_matrix; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
