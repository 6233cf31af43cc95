"""Who takes part: agents, egos and labels of every mode, and what 50 m means. See docs/data.md.

One scene of two vehicles and two roadside units. Each agent has an object only it has labelled
(100 + its number, 200 - for roadside units), and all have labelled object 5.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from tests.helpers.made_clips import OPTIONS
from tests.helpers.made_scenes import MadeAgent, MadeObject, MadeScene, write_root
from turbotrain_plugin.config import DataConfig, RunConfig, TurboTrainBlock
from turbotrain_plugin.data import CooperativeDataset, SampleKey
from turbotrain_plugin.data.clips import build_sample, select_objects
from turbotrain_plugin.data.formats import ScenarioReader, open_root
from turbotrain_plugin.errors import UserError
from turbotrain_plugin.structures import Sample

FRAMES = 3
V1, V2, I1, I2 = 1, 2, -1, -2
OWN = {V1: 101, V2: 102, I1: 201, I2: 202}
SHARED = 5
PLACES = {V1: (0.0, 0.0), V2: (30.0, 0.0), I1: (12.0, 16.0), I2: (12.0, -24.0)}

WIDE = replace(OPTIONS, range_m=(-102.4, -80.0, -8.0, 102.4, 80.0, 4.0))


def agent(agent_id: int, x_m: float, y_m: float) -> MadeAgent:
    return MadeAgent(agent_id, (x_m, y_m, 4.1 if agent_id < 0 else 1.9))


def scene(places: dict[int, tuple[float, float]], name: str = "s_1_0") -> MadeScene:
    """Each agent's own object stands 9 m beside it."""
    own = tuple(
        MadeObject(OWN[i], (x, y + 9.0, 0.8), labelled_by=(i,)) for i, (x, y) in places.items()
    )
    shared = MadeObject(SHARED, (20.0, -8.0, 0.8))
    agents = tuple(agent(i, *where) for i, where in places.items())
    return MadeScene(name, agents, (*own, shared), FRAMES)


@pytest.fixture(scope="module")
def junction(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_root(tmp_path_factory.mktemp("modes"), {"train": [scene(PLACES)]}, with_map=False)


def sample_of(
    reader: ScenarioReader,
    mode: str,
    rng: np.random.Generator | None = None,
    **options: Any,  # noqa: ANN401
) -> Sample:
    chosen = replace(WIDE, mode=mode, **options)
    return select_objects(build_sample(reader, reader.scenes[0], 1, chosen, rng), chosen)


def labels(sample: Sample) -> set[int]:
    assert sample.truth is not None
    return set(sample.truth.object_ids.tolist())


class Row(NamedTuple):
    """One line of the table in docs/data.md."""

    mode: str
    ego: int
    drawn: set[int]
    team: tuple[int, ...]


TABLE = [
    # ego of an evaluation, egos drawn in training, agents of the evaluation: ego, then nearest
    Row("vc", V1, {V1, V2}, (V1, I1, I2, V2)),
    Row("ic", I1, {I1, I2}, (I1, V1, V2, I2)),
    Row("v2v", V1, {V1, V2}, (V1, V2)),
    Row("i2i", I1, {I1, I2}, (I1, I2)),
]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.mode)
def test_agents_and_labels_of_an_evaluation(junction: Path, row: Row) -> None:
    sample = sample_of(open_root([junction]), row.mode)
    assert sample.agent_ids == row.team
    assert sample.agent_ids[0] == row.ego
    assert labels(sample) == {SHARED, *(OWN[one] for one in row.team)}


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.mode)
def test_egos_of_training_are_of_the_leading_kind(junction: Path, row: Row) -> None:
    reader = open_root([junction])
    drawn = [sample_of(reader, row.mode, np.random.default_rng(seed)) for seed in range(30)]
    assert {sample.agent_ids[0] for sample in drawn} == row.drawn
    for sample in drawn:
        assert set(sample.agent_ids) == set(row.team)  # whoever leads, the same take part
        assert labels(sample) == {SHARED, *(OWN[one] for one in row.team)}


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.mode)
def test_fixed_ego_in_training_is_that_of_an_evaluation(junction: Path, row: Row) -> None:
    keys = DataConfig(hist_frames=1, future_steps=1, use_map=False, train_ego="fixed")
    config = RunConfig(dataset_mode=row.mode, turbotrain=TurboTrainBlock(data=keys))
    for purpose in ("train", "evaluate"):
        data = CooperativeDataset(config, [junction], split="train", purpose=purpose)
        egos = {data.sample(SampleKey(epoch, 1)).agent_ids[0] for epoch in range(4)}
        assert egos == {row.ego}


@pytest.mark.parametrize(
    ("mode", "present", "team"),
    [
        ("vc", {V2, I1}, (V2, I1)),
        ("ic", {V2, I2}, (I2, V2)),
        ("v2v", {V1, I1, I2}, (V1,)),
        ("i2i", {V1, V2, I2}, (I2,)),
        ("vc", {I1, I2}, None),
        ("v2v", {I1}, None),
        ("ic", {V1, V2}, None),
        ("i2i", {V1}, None),
    ],
)
def test_scenes_that_lack_agents(
    tmp_path: Path, mode: str, present: set[int], team: tuple[int, ...] | None
) -> None:
    """An ego may be alone; a scene without any ego of the mode gives no sample."""
    made = scene({one: PLACES[one] for one in PLACES if one in present})
    write_root(tmp_path, {"train": [made]}, with_map=False)
    keys = DataConfig(hist_frames=1, future_steps=1, use_map=False)
    config = RunConfig(dataset_mode=mode, turbotrain=TurboTrainBlock(data=keys))
    if team is None:
        with pytest.raises(UserError, match="No sample remains"):
            CooperativeDataset(config, [tmp_path], split="train", purpose="evaluate")
        return
    data = CooperativeDataset(config, [tmp_path], split="train", purpose="evaluate")
    assert data.sample(SampleKey(0, 1)).agent_ids == team


# ------------------------------------------------------------------------------------------- range

BORDER = [
    pytest.param((50.0, 0.0), True, id="exactly 50 m"),
    pytest.param((30.0, 40.0), True, id="30, 40"),
    pytest.param((35.355339, 35.355339), True, id="50 m in six decimals, rounded down"),
    pytest.param((50.000001, 0.0), True, id="a micrometre more: rounding of the file"),
    pytest.param((50.00001, 0.0), False, id="a hundredth of a millimetre more"),
    pytest.param((50.001, 0.0), False, id="a millimetre more"),
    pytest.param((30.0, 40.001), False, id="30, 40.001"),
]


@pytest.mark.parametrize(("away", "kept"), BORDER)
@pytest.mark.parametrize("mode", ["vc", "ic", "v2v", "i2i"])
@pytest.mark.parametrize("origin", [(0.0, 0.0), (437.3, -211.7)])
def test_fifty_metres_are_within(
    tmp_path: Path, mode: str, origin: tuple[float, float], away: tuple[float, float], kept: bool
) -> None:
    leading, other = {"vc": (V1, I1), "ic": (I1, V1), "v2v": (V1, V2), "i2i": (I1, I2)}[mode]
    there = (round(origin[0] + away[0], 6), round(origin[1] + away[1], 6))
    made = scene({leading: origin, other: there})
    reader = open_root([write_root(tmp_path, {"train": [made]}, with_map=False)])
    sample = sample_of(reader, mode)
    assert sample.agent_ids == ((leading, other) if kept else (leading,))
    # Labels go with their agent; one that both have is not labelled twice.
    expected = {OWN[leading], OWN[other]} if kept else {OWN[leading]}
    assert labels(sample) - {SHARED} == expected


def test_height_does_not_count(tmp_path: Path) -> None:
    high = MadeAgent(I1, (50.0, 0.0, 31.9))
    made = MadeScene("s_1_0", (agent(V1, 0, 0), high), scene(PLACES).objects, FRAMES)
    reader = open_root([write_root(tmp_path, {"train": [made]}, with_map=False)])
    assert sample_of(reader, "vc").agent_ids == (V1, I1)


@pytest.mark.parametrize(("limit_m", "team"), [(70.0, (V1, I1)), (49.999, (V1,))])
def test_the_limit_is_a_key(tmp_path: Path, limit_m: float, team: tuple[int, ...]) -> None:
    made = scene({V1: (0.0, 0.0), I1: (50.0, 0.0)})
    reader = open_root([write_root(tmp_path, {"train": [made]}, with_map=False)])
    assert sample_of(reader, "vc", comm_range_m=limit_m).agent_ids == team


def test_objects_of_who_is_cut_are_no_labels(junction: Path) -> None:
    """The number of agents cuts like the range does: the farthest goes, with what only it saw."""
    sample = sample_of(open_root([junction]), "vc", max_agents=3)
    assert sample.agent_ids == (V1, I1, I2)
    assert labels(sample) == {SHARED, OWN[V1], OWN[I1], OWN[I2]}


def test_what_others_saw_is_a_target_all_the_same(tmp_path: Path) -> None:
    """The future of an object is looked up with everyone in the scene, in range or not."""
    made = scene({V1: (0.0, 0.0), V2: (60.0, 0.0)})
    leaving = MadeObject(9, (8.0, 4.0, 0.8), (5.0, 0.0), labelled_by=(V1,), last_frame=1)
    seen_on = replace(leaving, labelled_by=(V2,), first_frame=2, last_frame=40)
    made = replace(made, objects=(leaving, seen_on), frames=8)
    reader = open_root([write_root(tmp_path, {"train": [made]}, with_map=False)])
    sample = sample_of(reader, "vc")
    assert sample.agent_ids == (V1,)
    assert sample.truth is not None
    assert sample.truth.future_valid[0].tolist() == [True, False, False, False]
    np.testing.assert_allclose(sample.truth.futures[0, 0], [8.0 + 0.5 + 2.5, 4.0], atol=1e-4)
