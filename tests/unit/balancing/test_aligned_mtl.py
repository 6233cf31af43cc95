"""Aligned-MTL: orthogonal gradients of one length, by eigenvalues and by the closed form."""

from __future__ import annotations

import itertools

import pytest
import torch

from tests.helpers.graded_gradients import graded, gramian_of, many, relative_gap
from turbotrain_plugin.balancing import AlignedMTL
from turbotrain_plugin.balancing.aligned_mtl import _roots, _roots_of_two
from turbotrain_plugin.structures import UserError


@pytest.mark.parametrize("tasks", [2, 3, 5])
@pytest.mark.parametrize("seed", range(10))
def test_the_aligned_gradients_are_orthogonal_and_of_one_length(tasks: int, seed: int) -> None:
    rows = graded(tasks, seed, decades=2.0)
    gramian = gramian_of(rows)
    eigenvalues, root = (_roots_of_two if tasks == 2 else _roots)(gramian) or _roots(gramian)
    aligned = (eigenvalues.min().sqrt() * root) @ rows
    expected = torch.linalg.eigvalsh(gramian).min() * torch.eye(tasks, dtype=torch.float64)
    torch.testing.assert_close(gramian_of(aligned), expected, rtol=1e-9, atol=1e-9)
    update = AlignedMTL().weigh(gramian) @ rows
    torch.testing.assert_close(update, aligned.sum(dim=0), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("mode", ["min", "median", "rmse"])
def test_two_tasks_in_closed_form_agree_with_eigenvalues(seed: int, mode: str) -> None:
    method = AlignedMTL(scale_mode=mode)
    for rows in many(2, range(seed, seed + 1), dependent=False):
        gramian = gramian_of(rows)
        normed = gramian / gramian.diagonal().max()
        if _roots_of_two(normed) is None:
            continue
        values, root = _roots(normed)
        expected = (method._length(values) * root.sum(dim=1)) @ rows
        assert relative_gap(method.weigh(gramian) @ rows, expected) < 1e-7


def test_pinned_values() -> None:
    """M = [[2, -1], [-1, 2]] has the eigenvalues 1 and 3: B 1 = (1, 1)."""
    gramian = torch.tensor([[2.0, -1.0], [-1.0, 2.0]], dtype=torch.float64)
    torch.testing.assert_close(
        AlignedMTL().weigh(gramian), torch.ones(2, dtype=torch.float64), rtol=1e-12, atol=0.0
    )
    # sigma^2 = 2, the mean of the eigenvalues, and the mean of the tasks.
    found = AlignedMTL("rmse", "mean").weigh(gramian)
    torch.testing.assert_close(found, torch.full_like(found, 2.0**0.5 / 2.0), rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_orthogonal_gradients_of_one_length_are_summed(tasks: int) -> None:
    weights = AlignedMTL().weigh(4.0 * torch.eye(tasks, dtype=torch.float64))
    torch.testing.assert_close(
        weights, torch.ones(tasks, dtype=torch.float64), rtol=1e-12, atol=0.0
    )


@pytest.mark.parametrize("tasks", [2, 3])
def test_one_gradient_for_all_tasks_is_kept(tasks: int) -> None:
    """Rank one: the only direction is left as it is, of the length of the common gradient."""
    rows = graded(1, 0).repeat(tasks, 1)
    update = AlignedMTL().weigh(gramian_of(rows)) @ rows
    torch.testing.assert_close(update, tasks * rows[0], rtol=1e-9, atol=0.0)


def test_opposite_gradients_leave_nothing() -> None:
    row = graded(1, 0)
    rows = torch.cat([row, -row])
    assert relative_gap(AlignedMTL().weigh(gramian_of(rows)) @ rows + row[0], row[0]) < 1e-9


@pytest.mark.parametrize("tasks", [2, 3, 5])
@pytest.mark.parametrize("seed", range(10))
def test_a_common_scale_changes_nothing(tasks: int, seed: int) -> None:
    rows = graded(tasks, seed)
    plain = AlignedMTL().weigh(gramian_of(rows)) @ rows
    for scale in (2.0**40, 1e-12, 3e9):
        scaled = AlignedMTL().weigh(gramian_of(rows * scale)) @ rows
        assert relative_gap(scaled, plain) < 1e-7


@pytest.mark.parametrize("seed", range(5))
def test_permuting_the_tasks_changes_nothing(seed: int) -> None:
    rows = graded(4, seed)
    plain = AlignedMTL().weigh(gramian_of(rows)) @ rows
    for order in itertools.permutations(range(4)):
        moved = rows[torch.tensor(order)]
        assert relative_gap(AlignedMTL().weigh(gramian_of(moved)) @ moved, plain) < 1e-7


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"scale_mode": "max"}, "'aligned_mtl' needs scale_mode to be one of min, median, rmse"),
        ({"scale": "total"}, "'aligned_mtl' needs scale to be sum or mean. Found 'total'"),
    ],
)
def test_mistakes(args: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        AlignedMTL(**args)
