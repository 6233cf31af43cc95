"""Assignment by trying every permutation; displacement and EPA by loops over the found pairs."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from tests.helpers.made_detections import evaluated, random_sample
from turbotrain_plugin.config import EvaluationConfig
from turbotrain_plugin.evaluation import Displacement, EndToEnd, EvaluatedSample
from turbotrain_plugin.evaluation.matching import match_centres
from turbotrain_plugin.structures import DetectedObjects, GroundTruth

PairList = list[tuple[int, int]]


def best_by_permutation(detected: list[list[float]], truth: list[list[float]]) -> PairList:
    """Most pairs within 2 m, and of those the least total distance."""
    distance = [[math.dist(a[:2], b[:2]) for b in truth] for a in detected]
    best: tuple[int, float] = (0, 0.0)
    best_pairs: PairList = []
    # Every detection takes an object or, padded, nobody.
    slots = [*range(len(truth)), *([None] * len(detected))]
    for choice in set(itertools.permutations(slots, len(detected))):
        pairs = [(i, j) for i, j in enumerate(choice) if j is not None]
        if any(distance[i][j] > 2.0 for i, j in pairs):
            continue
        rank = (-len(pairs), sum(distance[i][j] for i, j in pairs))
        if rank < best:
            best, best_pairs = rank, pairs
    return best_pairs


@pytest.mark.parametrize("seed", range(12))
def test_assignment_equals_the_best_permutation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    n, m = int(rng.integers(0, 5)), int(rng.integers(0, 5))
    detected = rng.uniform(0, 3.5, (n, 7)).astype(np.float32)
    truth = rng.uniform(0, 3.5, (m, 7)).astype(np.float32)
    found = match_centres(detected, truth, gate_m=2.0)
    expected = best_by_permutation(detected.tolist(), truth.tolist())
    assert list(zip(found.detected.tolist(), found.truth.tolist(), strict=True)) == expected


def errors_by_loop(
    detected: DetectedObjects, truth: GroundTruth, pairs: PairList
) -> tuple[list[float], list[float], list[float]]:
    """ADE of each pair with a valid step, FDE and FDE of staying of each with a valid last one."""
    assert detected.trajectories is not None
    ade, fde, static = [], [], []
    for i, j in pairs:
        errors = [
            math.dist(detected.trajectories[i, k].tolist(), truth.futures[j, k].tolist())
            for k in range(truth.futures.shape[1])
            if truth.future_valid[j, k]
        ]
        if errors:
            ade.append(sum(errors) / len(errors))
        if truth.future_valid[j, -1]:
            fde.append(errors[-1])
            static.append(math.dist(detected.boxes[i, :2].tolist(), truth.futures[j, -1].tolist()))
    return ade, fde, static


@pytest.mark.parametrize("seed", range(6))
def test_displacement_and_epa_equal_the_loops(seed: int) -> None:
    rng = np.random.default_rng(seed)
    displacement, accuracy = Displacement(EvaluationConfig()), EndToEnd(EvaluationConfig())
    ade: list[float] = []
    fde: list[float] = []
    static: list[float] = []
    n_fp = n_gt = 0
    for frame in range(8):
        sample: EvaluatedSample = evaluated(
            *random_sample(rng, objects=4, false_positives=1), key=("scene", frame, 0)
        )
        displacement.update(sample)
        accuracy.update(sample)
        pairs = best_by_permutation(sample.detected.boxes.tolist(), sample.truth.boxes.tolist())
        for total, part in zip(
            (ade, fde, static),
            errors_by_loop(sample.detected, sample.truth, pairs),
            strict=True,
        ):
            total.extend(part)
        n_fp += len(sample.detected.scores) - len(pairs)
        n_gt += sum(bool(valid[-1]) for valid in sample.truth.future_valid)
    moved, values = displacement.compute(), accuracy.compute()
    assert moved.ade_m == pytest.approx(sum(ade) / len(ade))
    assert moved.fde_m == pytest.approx(sum(fde) / len(fde))
    assert moved.fde_static_m == pytest.approx(sum(static) / len(static))
    missed = sum(error > 2.0 for error in fde)
    assert moved.mr == pytest.approx(missed / len(fde))
    assert values.epa_unclipped == pytest.approx((len(fde) - missed - 0.5 * n_fp) / n_gt)
