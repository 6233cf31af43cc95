"""What is taken from any file before its content is looked at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from turbotrain_plugin.data.files import finite_points, read_bytes
from turbotrain_plugin.errors import UserError


def test_rows_without_a_position_are_dropped() -> None:
    """NaN and infinity are missing returns, 1e38 a damaged bit; the order of the rest stays."""
    rows = np.zeros((7, 4), np.float32)
    rows[:, 0] = np.arange(7)
    rows[1, 1], rows[2, 2], rows[3, 0], rows[4, 1] = np.nan, np.inf, 1e38, -1.1e6
    assert finite_points(rows)[:, 0].tolist() == [0, 5, 6]


def test_far_points_of_a_world_are_kept() -> None:
    """Positions in a map's coordinates are hundreds of kilometres large and right."""
    rows = np.array([[-9.9e5, 9.9e5, 3.0, 0.5]], np.float32)
    np.testing.assert_array_equal(finite_points(rows), rows)


def test_an_unknown_intensity_is_zero() -> None:
    rows = np.array([[1, 2, 3, np.nan], [4, 5, 6, np.inf], [7, 8, 9, 0.5]], np.float32)
    assert finite_points(rows)[:, 3].tolist() == [0.0, 0.0, 0.5]


def test_a_file_larger_than_its_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "large.bin"
    path.write_bytes(b"12345678")
    assert read_bytes(path, 8) == b"12345678"
    with pytest.raises(UserError, match=r"large\.bin: refused, 8 bytes where .* at most 7"):
        read_bytes(path, 7)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.bin: cannot be read"):
        read_bytes(tmp_path / "none.bin", 10)
