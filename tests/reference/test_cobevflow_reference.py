"""CoBEVFlow against loops over cells and objects in plain Python."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.made_contexts import CELL_M, INTERVAL_S, made_context
from turbotrain_plugin.config import FusionConfig
from turbotrain_plugin.models.fusion.cobevflow import CoBEVFlow, follow
from turbotrain_plugin.structures import FusionContext

C, SHAPE = 3, (9, 12)
CELL = CELL_M[0]
Place = tuple[float, float]


def sharp(**keys: object) -> CoBEVFlow:
    """Return a network whose confidence has peaks and valleys on random maps."""
    torch.manual_seed(0)
    fusion = CoBEVFlow(
        FusionConfig(core_method="cobevflow", **keys),  # type: ignore[arg-type]
        C,
    )
    nn.init.normal_(fusion.confidence.weight, std=1.5)
    return fusion


def confidence_of(fusion: CoBEVFlow, maps: Tensor) -> list[list[float]]:
    weight = fusion.confidence.weight.flatten().tolist()
    assert fusion.confidence.bias is not None
    bias = fusion.confidence.bias.item()
    rows, columns = SHAPE
    return [
        [
            1 / (1 + math.exp(-bias - sum(w * v for w, v in zip(weight, cell, strict=True))))
            for cell in (maps[:, y, x].tolist() for x in range(columns))
        ]
        for y in range(rows)
    ]


def smoothed(values: list[list[float]]) -> list[list[float]]:
    """Return the values under a 5 x 5 Gaussian of deviation 1, the border repeated."""
    bell = [math.exp(-k * k / 2) for k in range(-2, 3)]
    total = sum(bell) ** 2
    rows, columns = SHAPE

    def at(y: int, x: int) -> float:
        return values[min(max(y, 0), rows - 1)][min(max(x, 0), columns - 1)]

    return [
        [
            sum(
                bell[i] * bell[j] * at(y + i - 2, x + j - 2) / total
                for i in range(5)
                for j in range(5)
            )
            for x in range(columns)
        ]
        for y in range(rows)
    ]


def objects_of(fusion: CoBEVFlow, maps: Tensor, score: float, reach: int) -> list[Place]:
    values = confidence_of(fusion, maps)
    about = smoothed(values)
    rows, columns = SHAPE
    found = []
    for y in range(rows):
        for x in range(columns):
            square = [
                (i, j)
                for i in range(max(0, y - reach), min(rows, y + reach + 1))
                for j in range(max(0, x - reach), min(columns, x + reach + 1))
                if values[i][j] >= score
            ]
            if (y, x) not in square or about[y][x] < max(about[i][j] for i, j in square):
                continue
            total = sum(values[i][j] for i, j in square)
            found.append(
                (
                    CELL * sum(j * values[i][j] for i, j in square) / total,
                    CELL * sum(i * values[i][j] for i, j in square) / total,
                )
            )
    return found


def steps_of(newer: list[Place], older: list[Place], limit_m: float) -> list[Place | None]:
    """Return how far each newer object came, None without a partner."""

    def nearest(place: Place, others: list[Place]) -> int:
        return min(range(len(others)), key=lambda k: math.dist(place, others[k]))

    steps: list[Place | None] = []
    for index, place in enumerate(newer):
        step = None
        if older:
            partner = nearest(place, older)
            close = math.dist(place, older[partner]) <= limit_m
            if close and nearest(older[partner], newer) == index:
                step = (place[0] - older[partner][0], place[1] - older[partner][1])
        steps.append(step)
    return steps


def bilinear(maps: Tensor, y: float, x: float) -> Tensor:
    rows, columns = maps.shape[1:]
    value = torch.zeros(len(maps))
    for i in (math.floor(y), math.floor(y) + 1):
        for j in (math.floor(x), math.floor(x) + 1):
            if 0 <= i < rows and 0 <= j < columns:
                value += maps[:, i, j] * (1 - abs(y - i)) * (1 - abs(x - j))
    return value


def arrived_cell(
    maps: Tensor,
    sent: list[list[bool]],
    objects: list[Place],
    steps: list[Place | None],
    cell: tuple[int, int],
    *,
    intervals: float,
    half_m: float,
    keep: bool,
) -> Tensor | None:
    """Return the feature of one late cell, None where it shows nothing."""

    def apart(centre: Place) -> float:
        return max(abs(cell[1] * CELL - centre[0]), abs(cell[0] * CELL - centre[1]))

    ways = [step or (0.0, 0.0) for step in steps]
    aims = [
        (at[0] + intervals * way[0], at[1] + intervals * way[1])
        for at, way in zip(objects, ways, strict=True)
    ]
    covering = [k for k in range(len(aims)) if apart(aims[k]) <= half_m]
    if not covering:
        was_left = any(apart(at) <= half_m for at in objects)
        shown = keep and sent[cell[0]][cell[1]] and not was_left
        return maps[:, cell[0], cell[1]] if shown else None
    owner = min(covering, key=lambda k: apart(aims[k]))
    if not keep and steps[owner] is None:
        return None
    y = cell[0] - intervals * ways[owner][1] / CELL
    x = cell[1] - intervals * ways[owner][0] / CELL
    visible = bilinear(torch.tensor(sent, dtype=torch.float32).unsqueeze(0), y, x).item() > 0.5
    return bilinear(maps, y, x) if visible else None


def expected_of(
    fusion: CoBEVFlow, frames: Tensor, context: FusionContext, keys: FusionConfig
) -> Tensor:
    reach = int(keys.roi_half_m / CELL)
    fused = frames[0, -1].clone()
    for agent in range(1, len(frames)):
        about = smoothed(confidence_of(fusion, frames[agent, -1]))
        roi = context.roi[agent, 0]
        sent = [
            [bool(roi[y, x]) and about[y][x] > keys.confidence for x in range(SHAPE[1])]
            for y in range(SHAPE[0])
        ]
        newer, older = (
            objects_of(fusion, frames[agent, frame], keys.roi_score, reach) for frame in (-1, -2)
        )
        intervals = context.time_offset_s[agent].item() / INTERVAL_S
        steps = steps_of(newer, older, keys.match_m)
        for y in range(SHAPE[0]):
            for x in range(SHAPE[1]):
                if intervals:
                    cell = arrived_cell(
                        frames[agent, -1],
                        sent,
                        newer,
                        steps,
                        (y, x),
                        intervals=intervals,
                        half_m=keys.roi_half_m,
                        keep=keys.background == "keep",
                    )
                else:
                    cell = frames[agent, -1, :, y, x] if sent[y][x] else None
                if cell is not None:
                    fused[:, y, x] = torch.maximum(fused[:, y, x], cell)
    return fused


@torch.no_grad()
@pytest.mark.parametrize("background", ["keep", "drop"])
@pytest.mark.parametrize("half_m", [0.9, 1.7])
def test_the_whole_fusion(background: str, half_m: float) -> None:
    keys = {"background": background, "roi_half_m": half_m, "roi_score": 0.3, "match_m": 2.0}
    fusion = sharp(confidence=0.15, **keys).eval()
    torch.manual_seed(3)
    base = torch.randn(3, 1, C, *SHAPE)
    frames = base + 0.3 * torch.randn(3, 2, C, *SHAPE)
    context = made_context([3], frames, SHAPE, late_s=[0.0, 0.4, 0.0])
    args = FusionConfig(core_method="cobevflow", confidence=0.15, **keys)  # type: ignore[arg-type]
    found = fusion(frames[:, -1], context).features[0]
    expected = expected_of(fusion, frames, context, args)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    stale = expected_of(fusion, frames, made_context([3], frames, SHAPE), args)
    assert (expected - stale).abs().gt(1e-2).sum() > 20


def test_following_random_objects() -> None:
    torch.manual_seed(0)
    newer, older = torch.rand(12, 2) * 10, torch.rand(9, 2) * 10
    motion = follow(newer, older, 2.5)
    expected = steps_of(
        [(x, y) for x, y in newer.tolist()], [(x, y) for x, y in older.tolist()], 2.5
    )
    assert motion.matched.tolist() == [step is not None for step in expected]
    assert 3 < int(motion.matched.sum()) < 12
    for found, step in zip(motion.step.tolist(), expected, strict=True):
        assert found == pytest.approx(step or (0.0, 0.0), abs=1e-5)


def test_the_confidence_loss_cell_by_cell() -> None:
    fusion = sharp()
    frames = torch.randn(3, 2, C, *SHAPE)
    labels = torch.randint(-1, 2, (2, *SHAPE, 2), dtype=torch.int8)
    context = made_context([2, 1], frames, SHAPE, labels=labels)
    context.roi[1] = torch.rand(1, *SHAPE) > 0.5
    found = fusion(frames.mean(1), context).auxiliary_losses["confidence"].item()
    terms = []
    for maps in (frames.mean(1), frames[:, -1]):
        total, positives = 0.0, 0
        for agent, sample in enumerate((0, 0, 1)):
            scores = confidence_of(fusion, maps[agent])
            for y in range(SHAPE[0]):
                for x in range(SHAPE[1]):
                    anchors = labels[sample, y, x].tolist()
                    p = scores[y][x]
                    if agent == 1 and not context.roi[1, 0, y, x]:
                        continue
                    if 1 in anchors:
                        positives += 1
                        total -= 0.25 * (1 - p) ** 2 * math.log(p)
                    elif anchors == [0, 0]:
                        total -= 0.75 * p**2 * math.log(1 - p)
        terms.append(total / positives)
    assert found == pytest.approx(0.1 * sum(terms) / 2, rel=1e-4)
