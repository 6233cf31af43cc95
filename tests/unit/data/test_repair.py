"""Reversed headings, second ids and gaps: mended where the rule says so, and nothing else is."""

from __future__ import annotations

import logging
import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.made_scenes import MadeAgent, MadeObject, MadeScene, write_root
from turbotrain_plugin.config import DataConfig, RepairConfig, RunConfig, TurboTrainBlock
from turbotrain_plugin.data import CooperativeDataset, SampleKey
from turbotrain_plugin.data.formats import ScenarioReader, open_root
from turbotrain_plugin.data.repair import RepairedReader, plan_scene, repaired
from turbotrain_plugin.structures import AgentFrame

FLIPS = RepairConfig(heading_flips=True)
MERGE = RepairConfig(duplicate_ids=True)
FILL = RepairConfig(fill_gaps_s=0.5)
EVERYTHING = RepairConfig(heading_flips=True, duplicate_ids=True, fill_gaps_s=0.5)

FIRST, SECOND = MadeAgent(1, (0.0, 0.0, 1.9)), MadeAgent(2, (10.0, -10.0, 1.9), yaw_deg=90.0)
CAR = MadeObject(7, (10.0, 0.0, 0.8), velocity_mps=(6.0, 0.0))


def label_frames(
    *objects: MadeObject, frames: int = 31, agents: tuple[MadeAgent, ...] = (FIRST, SECOND)
) -> list[AgentFrame]:
    """Label files as a reader returns them, made without files."""
    made = []
    for agent in agents:
        for frame in range(frames):
            seen = [
                one
                for one in objects
                if one.first_frame <= frame <= one.last_frame
                and (one.labelled_by is None or agent.agent_id in one.labelled_by)
            ]
            boxes = [
                [
                    one.start_xyz_m[0] + one.velocity_mps[0] * frame * 0.1,
                    one.start_xyz_m[1] + one.velocity_mps[1] * frame * 0.1,
                    one.start_xyz_m[2],
                    *one.size_m,
                    np.deg2rad(one.yaw_deg),
                ]
                for one in seen
            ]
            made.append(
                AgentFrame(
                    agent.agent_id,
                    agent.agent_id < 0,
                    frame,
                    np.eye(4),
                    np.array([one.object_id for one in seen], np.int64),
                    np.array(boxes, np.float64).reshape(-1, 7),
                    np.tile([0.05, -0.02], (len(seen), 1)),
                    tuple(one.raw_type for one in seen),
                )
            )
    return made


def mended(frames: list[AgentFrame], repair: RepairConfig) -> list[AgentFrame]:
    plan = plan_scene(frames, repair)
    return [plan.apply(frame) for frame in frames]


def assert_same(one: list[AgentFrame], two: list[AgentFrame]) -> None:
    for a, b in zip(one, two, strict=True):
        np.testing.assert_array_equal(a.object_ids, b.object_ids)
        np.testing.assert_array_equal(a.world_boxes, b.world_boxes)
        np.testing.assert_array_equal(a.roll_pitch_rad, b.roll_pitch_rad)
        assert a.raw_types == b.raw_types


# ----------------------------------------------------------------------------------- heading flips


def test_a_reversed_track_is_turned_and_nothing_else_of_it() -> None:
    other = MadeObject(8, (10.0, 6.0, 0.8), velocity_mps=(6.0, 0.0))
    wrong = label_frames(replace(CAR, yaw_deg=180.0), other)
    right = label_frames(CAR, other)
    assert plan_scene(wrong, FLIPS).turned == {(1, 7), (2, 7)}
    for got, expected in zip(mended(wrong, FLIPS), right, strict=True):
        difference = got.world_boxes - expected.world_boxes
        turns = np.abs((difference[:, 6] + np.pi) % (2 * np.pi) - np.pi)
        np.testing.assert_allclose(difference[:, :6], 0, atol=1e-12)
        np.testing.assert_allclose(turns, 0, atol=1e-9)
        # Half a turn about the own up axis: what leant forward leans backward.
        np.testing.assert_allclose(got.roll_pitch_rad, [[-0.05, 0.02], [0.05, -0.02]])
        assert (np.abs(got.world_boxes[:, 6]) <= np.pi).all()


def test_only_the_agent_that_has_it_wrong_is_mended() -> None:
    wrong = replace(CAR, yaw_deg=180.0, labelled_by=(2,))
    plan = plan_scene(label_frames(replace(CAR, labelled_by=(1,)), wrong), FLIPS)
    assert plan.turned == {(2, 7)}


@pytest.mark.parametrize(
    "kept",
    [
        pytest.param(replace(CAR, yaw_deg=0.0), id="right"),
        pytest.param(replace(CAR, yaw_deg=130.0), id="130 degrees"),
        pytest.param(replace(CAR, velocity_mps=(0.0, 0.0), yaw_deg=180.0), id="standing"),
        pytest.param(replace(CAR, velocity_mps=(0.5, 0.0), yaw_deg=180.0), id="creeping"),
        pytest.param(replace(CAR, yaw_deg=180.0, raw_type="Pedestrian"), id="walking"),
        pytest.param(replace(CAR, yaw_deg=180.0, last_frame=6), id="a glimpse"),
    ],
)
def test_headings_that_stay(kept: MadeObject) -> None:
    frames = label_frames(kept)
    assert plan_scene(frames, FLIPS).turned == frozenset()
    assert_same(mended(frames, FLIPS), frames)


def test_headings_must_be_wrong_nearly_always() -> None:
    """10 % of the moving steps may look right, more may not."""

    def with_right(count: int) -> list[AgentFrame]:
        frames = label_frames(replace(CAR, yaw_deg=180.0), frames=45, agents=(FIRST,))
        for frame in frames[:count]:
            frame.world_boxes[0, 6] = 0.0
        return frames

    assert plan_scene(with_right(4), FLIPS).turned  # 4 of 40 steps
    assert not plan_scene(with_right(5), FLIPS).turned


def test_a_parked_car_that_drifts_is_not_driving() -> None:
    """Every step of 0.5 s moves 0.6 m backwards, but all of them together less than 2 m."""
    drifting = replace(CAR, velocity_mps=(-1.2, 0.0))
    assert not plan_scene(label_frames(drifting, frames=17), FLIPS).turned  # 1.92 m
    assert plan_scene(label_frames(drifting, frames=18), FLIPS).turned  # 2.04 m


# ------------------------------------------------------------------------------------ duplicate ids


def test_two_ids_of_two_agents_become_the_smaller_one() -> None:
    frames = label_frames(
        replace(CAR, labelled_by=(1,)),
        replace(CAR, object_id=70, start_xyz_m=(10.5, 0.3, 0.8), yaw_deg=10.0, labelled_by=(2,)),
        MadeObject(9, (30.0, 9.0, 0.8)),
    )
    plan = plan_scene(frames, MERGE)
    assert plan.merged == {70: 7}
    for got, given in zip(mended(frames, MERGE), frames, strict=True):
        assert got.object_ids.tolist() == [7, 9]
        np.testing.assert_array_equal(got.world_boxes, given.world_boxes)


@pytest.mark.parametrize(
    ("change", "merged"),
    [
        # Limit of two cars of 4.6 m: 0.225 * 9.2 + 0.4 = 2.47 m.
        ({"start_xyz_m": (12.4, 0.0, 0.8)}, True),
        ({"start_xyz_m": (12.5, 0.0, 0.8)}, False),
        ({"yaw_deg": 34.0}, True),
        ({"yaw_deg": 36.0}, False),
        ({"yaw_deg": 180.0}, False),
        ({"labelled_by": (1, 2)}, False),  # agent 1 sees both: two objects
        ({"first_frame": 30}, False),  # a single shared frame proves little
        ({"velocity_mps": (0.0, 0.0)}, False),  # meets the other and stays behind
    ],
)
def test_when_two_ids_are_one_object(change: dict[str, object], merged: bool) -> None:
    other = replace(CAR, object_id=70, labelled_by=(2,))
    frames = label_frames(replace(CAR, labelled_by=(1,)), replace(other, **change))  # type: ignore[arg-type]
    assert plan_scene(frames, MERGE).merged == ({70: 7} if merged else {})


def test_chains_of_ids_meet_in_one_unless_an_agent_sees_two() -> None:
    third = MadeAgent(-1, (5.0, 5.0, 4.0))
    ids = [replace(CAR, object_id=i, labelled_by=(a,)) for i, a in ((9, 1), (5, 2), (8, -1))]
    frames = label_frames(*ids, agents=(FIRST, SECOND, third))
    assert plan_scene(frames, MERGE).merged == {9: 5, 8: 5}
    near = replace(CAR, object_id=4, start_xyz_m=(10.0, 1.0, 0.8), labelled_by=(1,))
    frames = label_frames(*ids, near, agents=(FIRST, SECOND, third))
    assert plan_scene(frames, MERGE).merged == {9: 5, 8: 5}  # 4 is listed beside 9
    for frame in mended(frames, MERGE):
        assert len(set(frame.object_ids.tolist())) == len(frame.object_ids)


def test_ids_that_are_never_listed_together_stay_apart() -> None:
    """One car that leaves and another that comes are not joined over time."""
    frames = label_frames(
        replace(CAR, labelled_by=(1,), last_frame=10),
        replace(CAR, object_id=70, labelled_by=(2,), first_frame=11),
    )
    assert plan_scene(frames, MERGE).merged == {}


# ---------------------------------------------------------------------------------------- gaps


def with_gap(missing: range, **change: object) -> tuple[MadeObject, MadeObject]:
    made = replace(CAR, **change)  # type: ignore[arg-type]
    return (
        replace(made, last_frame=missing.start - 1),
        replace(made, first_frame=missing.stop),
    )


def test_short_gaps_are_filled_along_the_line() -> None:
    frames = label_frames(*with_gap(range(10, 15)), agents=(FIRST,))
    for got, expected in zip(mended(frames, FILL), label_frames(CAR, agents=(FIRST,)), strict=True):
        assert got.object_ids.tolist() == [7]
        np.testing.assert_allclose(got.world_boxes, expected.world_boxes, atol=1e-9)
        assert got.raw_types == ("Car",)
        assert got.roll_pitch_rad.shape == (1, 2)


@pytest.mark.parametrize(("limit_s", "filled"), [(0.4, 0), (0.5, 5), (2.0, 5)])
def test_longer_gaps_stay(limit_s: float, filled: int) -> None:
    frames = label_frames(*with_gap(range(10, 15)), agents=(FIRST,))
    plan = plan_scene(frames, RepairConfig(fill_gaps_s=limit_s))
    assert plan.counts["filled"] == filled


def test_ends_are_no_gaps() -> None:
    frames = label_frames(replace(CAR, first_frame=5, last_frame=20))
    assert_same(mended(frames, FILL), frames)


def test_what_another_agent_saw_is_not_guessed() -> None:
    frames = label_frames(
        *with_gap(range(10, 13), labelled_by=(1,)), replace(CAR, labelled_by=(2,))
    )
    assert_same(mended(frames, FILL), frames)


def test_the_box_goes_to_who_saw_it_last_and_was_there() -> None:
    before, after = with_gap(range(10, 13))
    frames = label_frames(replace(before, labelled_by=(2,)), replace(after, labelled_by=(1,)))
    assert set(plan_scene(frames, FILL).filled) == {(2, 10), (2, 11), (2, 12)}
    gone = [f for f in frames if (f.agent_id, f.frame) not in ((2, 11), (1, 12), (2, 12))]
    assert set(plan_scene(gone, FILL).filled) == {(2, 10), (1, 11)}


def test_headings_turn_the_short_way() -> None:
    before, after = with_gap(range(10, 13), velocity_mps=(0.0, 0.0))
    frames = label_frames(
        replace(before, yaw_deg=170.0), replace(after, yaw_deg=-150.0), agents=(FIRST,)
    )
    yaws = [np.rad2deg(frame.world_boxes[0, 6]) for frame in mended(frames, FILL)[10:13]]
    np.testing.assert_allclose(yaws, [180 - 360, -170, -160], atol=1e-9)


# ------------------------------------------------------------------------------------- as a reader


def flawed(folder: Path) -> Path:
    """A car with two ids, the second one looking back, and a gap that only the merge shows."""
    one = replace(CAR, labelled_by=(1,), last_frame=20)
    two = replace(CAR, object_id=70, yaw_deg=180.0, labelled_by=(2,), last_frame=22)
    late = replace(one, first_frame=26, last_frame=40)
    made = MadeScene("s_1_0", (FIRST, SECOND), (one, two, late), 31)
    return write_root(folder, {"train": [made]}, with_map=False)


def test_the_rules_help_one_another(tmp_path: Path) -> None:
    reader = RepairedReader(open_root([flawed(tmp_path)]), EVERYTHING)
    assert reader.counts == {"turned": 1, "merged": 1, "filled": 3}
    scene = reader.scenes[0]
    for agent, frame in ((1, 20), (2, 20), (2, 24), (1, 26)):
        read = reader.read_frame(scene, agent, frame)
        assert read.object_ids.tolist() == [7]
        np.testing.assert_allclose(read.world_boxes[0, :2], [10 + 0.6 * frame, 0], atol=1e-6)
        assert abs(read.world_boxes[0, 6]) == pytest.approx(0, abs=1e-9)
    alone = RepairedReader(open_root([tmp_path]), MERGE)
    assert alone.counts == {"turned": 0, "merged": 0, "filled": 0}  # the headings disagree


def test_off_is_the_reader_itself(tmp_path: Path) -> None:
    reader = open_root([flawed(tmp_path)])
    assert repaired(reader, RepairConfig()) is reader


def test_clouds_and_maps_are_the_reader_s(tmp_path: Path) -> None:
    plain = open_root([flawed(tmp_path)])
    reader: ScenarioReader = repaired(plain, EVERYTHING)
    scene = reader.scenes[0]
    np.testing.assert_array_equal(
        reader.read_points(scene, 1, 3), plain.read_points(plain.scenes[0], 1, 3)
    )
    assert reader.read_map(scene) is None
    copy = pickle.loads(pickle.dumps(reader))
    assert_same([copy.read_frame(scene, 2, 24)], [reader.read_frame(scene, 2, 24)])


def test_counts_are_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "turbotrain_plugin")
    logging.getLogger("turbotrain_plugin").propagate = True
    keys = DataConfig(repair=EVERYTHING, num_workers=0, use_map=False, min_points=0)
    config = RunConfig(turbotrain=TurboTrainBlock(data=keys))
    root = flawed(tmp_path)
    data = CooperativeDataset(config, [root], split="train", purpose="evaluate")
    told = "1 track(s) turned round, 1 id(s) merged, 3 box(es) put into gaps"
    assert caplog.text.count(told) == 1
    truth = data.sample(SampleKey(0, 24)).truth
    assert truth is not None
    assert truth.object_ids.tolist() == [7]
    assert truth.past_valid.all()
    assert caplog.text.count("repaired") == 1


def test_pretraining_reads_no_labels_to_repair(tmp_path: Path) -> None:
    keys = DataConfig(repair=EVERYTHING, num_workers=0, use_map=False, min_points=0)
    config = RunConfig(turbotrain=TurboTrainBlock(data=keys))
    data = CooperativeDataset(config, [flawed(tmp_path)], split="train", purpose="pretrain")
    assert not isinstance(data.reader, RepairedReader)
