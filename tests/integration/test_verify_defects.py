"""Every kind of fault that `data verify` knows, planted into one clean generated scene, is found.

The scene itself has no finding, so what is reported is what was planted. A case says which agent is
named and which other problems the fault brings along; nothing else may be reported. Faults of
content are also planted into OPV2V and V2V4Real files of the same scene.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.helpers.planted import Cloud, Planted, on_boxes, on_object, on_points, on_pose
from turbotrain_plugin.data.checks.findings import KINDS, Finding
from turbotrain_plugin.data.convert import convert_roots
from turbotrain_plugin.data.formats import FORMATS, SequenceReader
from turbotrain_plugin.data.inspect import VerifyReport, verify_root
from turbotrain_plugin.data.vector_map import Lane, VectorMap, read_map, write_map
from turbotrain_plugin.geometry.boxes import transform_boxes
from turbotrain_plugin.geometry.poses import invert_rigid, matrix_to_pose, pose_to_matrix
from turbotrain_plugin.structures import AgentFrame, UserError
from turbotrain_plugin.synthetic import Preset, SensorModel, generate

SCENE = Preset(
    name="defects",
    scenes=(1, 0, 0),
    frames=36,
    vehicle=SensorModel(tuple(-22.0 + 26.0 * i / 15 for i in range(16)), 450, 100.0),
    roadside=SensorModel(tuple(-22.5 + 34.5 * i / 15 for i in range(16)), 256, 100.0),
    cloud_stride=5,
    label_stride=5,
)
"""Eight frames of four agents, all within sight of each other with this seed."""
SEED = 2
STRIDE = 3

F64 = NDArray[np.float64]
Plant = Callable[[Planted], None]


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Format to a root of the same scene."""
    folder = tmp_path_factory.mktemp("clean")
    roots = {"v2xpnp_seq": generate(SCENE, folder / "v2xpnp_seq", seed=SEED, workers=1)}
    for name in ("opv2v", "v2v4real"):
        convert_roots([roots["v2xpnp_seq"]], "v2xpnp_seq", name, folder / name)
        roots[name] = folder / name
    return roots


@pytest.fixture(scope="module", autouse=True)
def parsed_once() -> Iterator[None]:
    """Parse equal label files once: most of the time would go into YAML that did not change."""
    with pytest.MonkeyPatch.context() as patch:
        for reader in set(FORMATS.values()):
            patch.setattr(reader, "read_label_file", staticmethod(_remembering(reader)))
        yield


def _remembering(reader: type[SequenceReader]) -> Callable[[Path, int, int], AgentFrame]:
    parse = reader.read_label_file
    place: list[Path] = []

    @lru_cache(maxsize=1000)
    def remembered(_content: bytes, agent_id: int, frame: int) -> AgentFrame:
        return parse(place[-1], agent_id, frame)

    def read(path: Path, agent_id: int, frame: int) -> AgentFrame:
        place[:] = [path]
        return remembered(path.read_bytes(), agent_id, frame)

    return read


@pytest.fixture
def spoilt(clean: dict[str, Path], tmp_path: Path) -> Callable[[str], Planted]:
    def copy(name: str) -> Planted:
        planted = Planted(Path(shutil.copytree(clean[name], tmp_path / "root")), name)
        assert planted.scene.agents  # indexed before anything is planted
        return planted

    return copy


def verify(planted: Planted) -> VerifyReport:
    return verify_root([planted.root], cloud_stride=STRIDE)


# ------------------------------------------------------------------------------------------ faults


def empty_scene(p: Planted) -> None:
    (p.folder.parent / "2030-09-09-00-00-00_1_0" / "1").mkdir(parents=True)


def agent_without_files(p: Planted) -> None:
    (p.folder / "7").mkdir()


def cloud_lost(p: Planted) -> None:
    p.cloud(1, 10).unlink()


def label_lost(p: Planted) -> None:
    p.label(2, 15).unlink()


def frame_lost(p: Planted) -> None:
    p.remove(2, 15)


def three_frames_lost(p: Planted) -> None:
    p.remove(-1, 10, 15, 20)


def agent_late(p: Planted) -> None:
    p.remove(2, 0, 5, 10, 15)


def agents_out_of_step(p: Planted) -> None:
    for shift, agent_id in enumerate(p.scene.agents):
        for path in sorted((p.folder / str(agent_id)).iterdir(), reverse=True):
            path.rename(path.with_name(f"{int(path.stem) + shift:06d}{path.suffix}"))


def short_names(p: Planted) -> None:
    for path in (p.label(1, 10), p.cloud(1, 10)):
        path.rename(path.with_name(f"10{path.suffix}"))


def agent_with_a_name(p: Planted) -> None:
    (p.folder / "2").rename(p.folder / "cav2")


def label_cut(p: Planted) -> None:
    p.label(1, 10).write_text("lidar_pose: [1, 2")


def pose_not_finite(p: Planted) -> None:
    p.edit_text(1, 10, "lidar_pose: [", "lidar_pose: [.nan, 0, 0, 0, 0, 0]\nold: [")


def extent_negative(p: Planted) -> None:
    p.edit_text(1, 10, "extent: [", "extent: [-")


def flat_object(p: Planted) -> None:
    p.edit(on_object(parked(p), lambda box: box * [1, 1, 1, 1, 1, 0.02, 1]), agents=[1])


def full_sizes_as_extent(p: Planted) -> None:
    p.edit(on_boxes(lambda boxes: boxes * [1, 1, 1, 2, 2, 2, 1]))


def object_on_its_side(p: Planted) -> None:
    number = parked(p)

    def lean(frame: AgentFrame, points: Cloud) -> tuple[AgentFrame, Cloud]:
        angles = frame.roll_pitch_rad.copy()
        angles[frame.object_ids == number, 0] += 1.4
        return dataclasses.replace(frame, roll_pitch_rad=angles), points

    p.edit(lean, agents=[1])


def object_at_the_sensor(p: Planted) -> None:
    number = parked(p)

    def move(frame: AgentFrame, points: Cloud) -> tuple[AgentFrame, Cloud]:
        here = frame.world_SE3_lidar[:3, 3] - [0, 0, 1]
        return on_object(number, lambda box: np.concatenate([here, box[3:]]))(frame, points)

    p.edit(move, agents=[1])


def nothing_labelled(p: Planted) -> None:
    p.edit(lambda frame, points: (without_objects(frame), points), agents=[-2])


def foreign_class(p: Planted) -> None:
    p.edit(lambda frame, points: (renamed(frame, parked(p), "Tram"), points))


def two_classes(p: Planted) -> None:
    p.edit(lambda frame, points: (renamed(frame, parked(p), "Truck"), points), agents=[-1])


def sensor_on_its_side(p: Planted) -> None:
    p.edit(on_pose(lambda pose: turned(pose, roll_deg=50.0)), agents=[2])


def pose_far_away_once(p: Planted) -> None:
    p.edit(on_pose(lambda pose: shifted(pose, x_m=300.0)), agents=[1], frames=[15])


def roadside_unit_drives(p: Planted) -> None:
    def drift(frame: AgentFrame, points: Cloud) -> tuple[AgentFrame, Cloud]:
        pose = shifted(frame.world_SE3_lidar, x_m=0.07 * frame.frame)
        return dataclasses.replace(frame, world_SE3_lidar=pose), points

    p.edit(drift, agents=[-1])


def one_object_two_ids(p: Planted) -> None:
    p.edit(lambda frame, points: (with_twin(frame, parked(p)), points), agents=[2, -1])


def agent_with_other_places(p: Planted) -> None:
    p.edit(on_boxes(lambda boxes: boxes + np.array([3.0, 3.0, 0, 0, 0, 0, 0])), agents=[2])


def object_jumps(p: Planted) -> None:
    p.edit(on_object(parked(p), lambda box: box + np.array([70.0, 0, 0, 0, 0, 0, 0])), frames=[20])


def heading_round_once(p: Planted) -> None:
    p.edit(on_object(parked(p), half_turn), frames=[20])


def heading_round_always(p: Planted) -> None:
    p.edit(on_object(driving(p), half_turn))


def radians_for_degrees(p: Planted) -> None:
    p.edit(on_boxes(lambda boxes: np.concatenate([boxes[:, :6], np.deg2rad(boxes[:, 6:])], axis=1)))


def cloud_of_no_bytes(p: Planted) -> None:
    p.cloud(1, 10).write_bytes(b"")


def cloud_cut(p: Planted) -> None:
    path = p.cloud(1, 15)
    path.write_bytes(path.read_bytes()[:-3])


def cloud_of_something_else(p: Planted) -> None:
    for frame in p.frames:
        path = p.cloud(1, frame)
        path.with_suffix(".pcd").write_bytes(b"not a cloud" * 1000)
        path.unlink()


def points_missing(p: Planted) -> None:
    def spoil(points: Cloud) -> Cloud:
        points[::10, 0] = np.nan
        return points

    p.edit(on_points(spoil), agents=[1])


def cloud_nearly_empty(p: Planted) -> None:
    p.edit(on_points(lambda points: points[:40]), agents=[1], frames=[20])


def millimetres(p: Planted) -> None:
    p.edit(
        on_points(lambda points: points * np.array([1e3, 1e3, 1e3, 1], dtype=np.float32)),
        agents=[1],
    )


def sensor_height_in_the_points(p: Planted) -> None:
    p.edit(on_points(lambda points: points + np.array([0, 0, 6, 0], dtype=np.float32)), agents=[1])


def cloud_repeated(p: Planted) -> None:
    shutil.copyfile(p.cloud(1, 10), p.cloud(1, 15))


def boxes_in_the_lidar_frame(p: Planted) -> None:
    p.edit(
        lambda frame, points: (
            dataclasses.replace(
                frame,
                world_boxes=transform_boxes(invert_rigid(frame.world_SE3_lidar), frame.world_boxes),
            ),
            points,
        ),
        agents=[1],
    )


def boxes_in_the_world(p: Planted) -> None:
    p.edit(
        lambda frame, points: (
            dataclasses.replace(
                frame, world_boxes=transform_boxes(frame.world_SE3_lidar, frame.world_boxes)
            ),
            points,
        ),
        agents=[1],
    )


def boxes_beside_the_points(p: Planted) -> None:
    p.edit(on_boxes(lambda boxes: boxes + np.array([12.0, 12.0, 9.0, 0, 0, 0, 0])))


def boxes_too_high(p: Planted) -> None:
    p.edit(on_boxes(lambda boxes: boxes + np.array([0, 0, 0.9, 0, 0, 0, 0])))


def sensor_too_high(p: Planted) -> None:
    p.edit(on_pose(lambda pose: shifted(pose, z_m=0.9)), agents=[-1])


def yaw_negated(p: Planted) -> None:
    p.edit(repose(lambda pose: pose * [1, 1, 1, 1, -1, 1], p.format), agents=[2])


def pitch_negated(p: Planted) -> None:
    """All sensors lean by 8 degrees more, in files of the other sign."""
    lean = np.array([0, 0, 0, 6.0, 0, 6.0])
    for agent_id in p.scene.agents:
        p.edit(repose(lambda pose: pose * [1, 1, 1, -1, 1, -1] - lean, p.format), [agent_id])
        p.edit(on_points(lambda points: points), [agent_id])


def cloud_mirrored(p: Planted) -> None:
    p.edit(on_points(lambda points: points * np.array([1, -1, 1, 1], dtype=np.float32)), agents=[2])


def pose_beside(p: Planted) -> None:
    p.edit(repose(lambda pose: pose + np.array([4.0, 4.0, 0, 0, 15.0, 0]), p.format), agents=[2])


def no_map(p: Planted) -> None:
    shutil.rmtree(p.root / "map")


def damaged_map(p: Planted) -> None:
    map_file(p).write_bytes(b"\x80\x03cos\nsystem\n(S'true'\ntR.")


def map_elsewhere(p: Planted) -> None:
    move_map(p, np.array([900.0, 0.0, 0.0]))


def map_beside(p: Planted) -> None:
    move_map(p, np.array([0.0, 20.0, 0.0]), turn=True)


def map_too_high(p: Planted) -> None:
    move_map(p, np.array([0.0, 0.0, 12.0]))


def scene_in_two_splits(p: Planted) -> None:
    shutil.copytree(p.folder, p.root / "test" / p.scene.name)


def clip_of_a_scene_in_test(p: Planted) -> None:
    """Another name, other frame numbers, two agents, half of the frames."""
    clip = p.root / "test" / "2031-01-01-00-00-00_1_0"
    for agent_id in (1, -1):
        (clip / str(agent_id)).mkdir(parents=True)
        for number, frame in enumerate(p.frames[4:]):
            for path in (p.label(agent_id, frame), p.cloud(agent_id, frame)):
                shutil.copyfile(path, clip / str(agent_id) / f"{5 * number:06d}{path.suffix}")


def scene_under_another_name(p: Planted) -> None:
    shutil.copytree(p.folder, p.folder.with_name("2031-01-01-00-00-00_1_0"))


def tick_between_frames(p: Planted) -> None:
    path = p.label(1, 10)
    shutil.copyfile(path, path.with_name(f"{int(path.stem) + 1:06d}.yaml"))


# ------------------------------------------------------------------------- what they are made of


@lru_cache
def _tracks(root: Path, name: str) -> dict[int, list[F64]]:
    planted = Planted(root, name)
    tracks: dict[int, list[F64]] = {}
    for frame in planted.frames:
        seen: dict[int, F64] = {}
        for agent_id, found in planted.scene.agents.items():
            if found.has_labels(frame):
                one = planted.reader.read_label_file(
                    planted.label(agent_id, frame), agent_id, frame
                )
                for number, box, kind in zip(
                    one.object_ids.tolist(), one.world_boxes, one.raw_types, strict=True
                ):
                    if kind == "Car":
                        seen.setdefault(number, box)
        for number, box in seen.items():
            tracks.setdefault(number, []).append(box)
    return {number: track for number, track in tracks.items() if len(track) == len(planted.frames)}


def parked(p: Planted) -> int:
    """Return a car that is labelled all the time and moves least, seen by all vehicles' files."""
    tracks = _tracks(p.root, p.format)
    return min(tracks, key=lambda one: (way(tracks[one]), one))


def driving(p: Planted) -> int:
    """Return the car that is labelled all the time and moves most."""
    tracks = _tracks(p.root, p.format)
    return max(tracks, key=lambda one: (way(tracks[one]), one))


def way(track: list[F64]) -> float:
    return round(float(np.hypot(*(track[-1] - track[0])[:2])), 3)


def half_turn(box: F64) -> F64:
    return np.concatenate([box[:6], box[6:] + np.pi])


def shifted(pose: F64, x_m: float = 0.0, z_m: float = 0.0) -> F64:
    moved = pose.copy()
    moved[:3, 3] += [x_m, 0, z_m]
    return moved


def turned(pose: F64, roll_deg: float) -> F64:
    return pose_to_matrix(matrix_to_pose(pose) + np.array([0, 0, 0, roll_deg, 0, 0]))


def repose(
    change: Callable[[F64], F64], name: str
) -> Callable[[AgentFrame, Cloud], tuple[AgentFrame, Cloud]]:
    """Return an edit of the six numbers of a pose; V2V4Real's boxes go where the pose goes."""

    def edit(frame: AgentFrame, points: Cloud) -> tuple[AgentFrame, Cloud]:
        pose = pose_to_matrix(change(matrix_to_pose(frame.world_SE3_lidar)))
        boxes = frame.world_boxes
        if name == "v2v4real":
            boxes = transform_boxes(pose @ invert_rigid(frame.world_SE3_lidar), boxes)
        return dataclasses.replace(frame, world_SE3_lidar=pose, world_boxes=boxes), points

    return edit


def without_objects(frame: AgentFrame) -> AgentFrame:
    return dataclasses.replace(
        frame,
        object_ids=frame.object_ids[:0],
        world_boxes=frame.world_boxes[:0],
        roll_pitch_rad=frame.roll_pitch_rad[:0],
        raw_types=(),
    )


def renamed(frame: AgentFrame, number: int, kind: str) -> AgentFrame:
    pairs = zip(frame.object_ids.tolist(), frame.raw_types, strict=True)
    return dataclasses.replace(
        frame, raw_types=tuple(kind if one == number else old for one, old in pairs)
    )


def with_twin(frame: AgentFrame, number: int) -> AgentFrame:
    """Return a frame in which the object has a second id 0.4 m beside it."""
    (rows,) = np.nonzero(frame.object_ids == number)
    return dataclasses.replace(
        frame,
        object_ids=np.concatenate([frame.object_ids, frame.object_ids[rows] + 5000]),
        world_boxes=np.concatenate(
            [frame.world_boxes, frame.world_boxes[rows] + [0.4, 0, 0, 0, 0, 0, 0]]
        ),
        roll_pitch_rad=np.concatenate([frame.roll_pitch_rad, frame.roll_pitch_rad[rows]]),
        raw_types=frame.raw_types + tuple(frame.raw_types[row] for row in rows.tolist()),
    )


def map_file(p: Planted) -> Path:
    (path,) = (p.root / "map").glob("*.pkl")
    return path


def move_map(p: Planted, offset: F64, *, turn: bool = False) -> None:
    """Move all lanes; with ``turn`` also by 45 degrees about their middle."""
    lanes = read_map(map_file(p)).lanes
    middle = np.concatenate([lane.polyline for lane in lanes]).mean(axis=0)
    angle = np.deg2rad(45.0 if turn else 0.0)
    turning = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )

    def moved(lane: Lane) -> Lane:
        line = (lane.polyline - middle) @ turning.T + middle + offset
        return dataclasses.replace(lane, polyline=line)

    write_map(map_file(p), VectorMap(tuple(moved(lane) for lane in lanes)))


# ------------------------------------------------------------------------------------------- cases


@dataclasses.dataclass(frozen=True)
class Case:
    """A fault, the kind it is found as, who is named, and what else may be reported with it."""

    kind: str
    plant: Plant
    agent: int | None = None
    frame: int | None = None
    also: frozenset[str] = frozenset()


def case(
    kind: str, plant: Plant, agent: int | None = None, frame: int | None = None, also: str = ""
) -> Case:
    return Case(kind, plant, agent, frame, frozenset(also.split()))


POSE = "poses-disagree ground-gap points-outside-z boxes-off-points box-height"
"""What a cloud in the wrong place of the world brings along."""
CASES = [
    case("empty-scene", empty_scene, also="no-frames"),
    case("no-frames", agent_without_files, 7),
    case("label-without-cloud", cloud_lost, 1, 10),
    case("cloud-without-label", label_lost, 2, 15),
    case("frame-missing", frame_lost, 2, 15),
    case("frame-gap", three_frames_lost, -1, 10),
    case("frames-differ", frame_lost, None, 15),
    case("span-differs", agent_late, 2, 20),
    case("no-shared-frames", agents_out_of_step),
    case("odd-file-name", short_names, 1),
    case("odd-folder", agent_with_a_name),
    case("bad-label", label_cut, 1, 10),
    case("bad-pose", pose_not_finite, 1, 10),
    case("bad-object", extent_negative, 1, 10),
    case("odd-size", flat_object, 1),
    case("size-convention", full_sizes_as_extent, also="box-height duplicate-id box-at-sensor"),
    case("tilted-box", object_on_its_side, 1),
    case("box-at-sensor", object_at_the_sensor, 1, also="label-conflict track-jump duplicate-id"),
    case("no-objects", nothing_labelled, -2),
    case("unknown-class", foreign_class),
    case("class-conflict", two_classes),
    case("tilted-sensor", sensor_on_its_side, 2, also=POSE),
    case("pose-jump", pose_far_away_once, 1, 15),
    case("roadside-moves", roadside_unit_drives, -1, also="poses-disagree"),
    case("duplicate-id", one_object_two_ids),
    case("label-conflict", agent_with_other_places, also="box-at-sensor"),
    case("track-jump", object_jumps, frame=20),
    case("heading-flip", heading_round_once, frame=20),
    case("heading-reversed", heading_round_always),
    case("heading-off", radians_for_degrees, also="duplicate-id heading-reversed"),
    case("empty-cloud", cloud_of_no_bytes, 1, 10),
    case("truncated-cloud", cloud_cut, 1, 15),
    case("bad-cloud", cloud_of_something_else, 1, 0),
    case("nan-points", points_missing, 1),
    case("thin-cloud", cloud_nearly_empty, 1, 20),
    case("far-points", millimetres, 1, also=POSE),
    case("points-outside-z", sensor_height_in_the_points, 1, also=POSE),
    case("frozen-cloud", cloud_repeated, 1, 15),
    case("label-frame", boxes_in_the_lidar_frame, 1, also="label-conflict"),
    case("boxes-off-points", boxes_beside_the_points, also="objects-off-map box-height"),
    case("box-height", boxes_too_high, -1),
    case("ground-gap", sensor_too_high, -1, also="box-height"),
    case("pose-convention", yaw_negated, 2),
    case("pose-convention", cloud_mirrored, 2, also="boxes-off-points"),
    case("poses-disagree", pose_beside, 2),
    case("map-missing", no_map),
    case("bad-map", damaged_map),
    case("agent-off-map", map_elsewhere, 1, also="objects-off-map"),
    case("objects-off-map", map_beside),
    case("map-height", map_too_high, 1),
    case("scene-twice", scene_in_two_splits),
    case("split-overlap", clip_of_a_scene_in_test, also="no-shared-frames"),
    case("repeated-content", scene_under_another_name),
]
OTHER_FORMATS = [
    ("opv2v", case("off-grid-files", tick_between_frames, 1)),
    *(
        (name, one)
        for name in ("opv2v", "v2v4real")
        for one in (
            case("label-without-cloud", cloud_lost, 1, 10),
            case("bad-label", label_cut, 1, 10),
            case("bad-cloud", cloud_cut, 1, 15),
            case("duplicate-id", one_object_two_ids),
            case("track-jump", object_jumps, frame=20),
            case("heading-reversed", heading_round_always),
            case("heading-off", radians_for_degrees, also="duplicate-id"),
            case("box-height", boxes_too_high, -1 if name == "opv2v" else 1),
            case("boxes-off-points", boxes_beside_the_points, also="box-height"),
            case("pose-convention", cloud_mirrored, 2, also="boxes-off-points"),
            case("repeated-content", scene_under_another_name),
        )
    ),
    ("opv2v", case("label-frame", boxes_in_the_lidar_frame, 1, also="label-conflict")),
    ("v2v4real", case("label-frame", boxes_in_the_world, 1, also="label-conflict")),
    ("v2v4real", case("pose-convention", yaw_negated, 2, also="label-conflict")),
]


@pytest.mark.parametrize("name", ["v2xpnp_seq", "opv2v", "v2v4real"])
def test_the_clean_scene_has_no_problem(clean: dict[str, Path], name: str) -> None:
    report = verify_root([clean[name]], cloud_stride=1)
    assert report.problems == ()
    assert report.scenes == 1
    assert report.clouds_read >= (14 if name == "v2v4real" else 30)


@pytest.mark.parametrize("one", CASES, ids=lambda one: f"{one.kind}-{one.plant.__name__}")
def test_a_planted_fault_is_found(spoilt: Callable[[str], Planted], one: Case) -> None:
    planted = spoilt("v2xpnp_seq")
    one.plant(planted)
    assert_found(verify(planted), one)


@pytest.mark.parametrize(
    ("name", "one"), OTHER_FORMATS, ids=[f"{name}-{one.kind}" for name, one in OTHER_FORMATS]
)
def test_a_planted_fault_of_another_format_is_found(
    spoilt: Callable[[str], Planted], name: str, one: Case
) -> None:
    planted = spoilt(name)
    one.plant(planted)
    assert_found(verify(planted), one)


def assert_found(report: VerifyReport, one: Case) -> None:
    found = [finding for finding in report.findings if finding.kind == one.kind]
    assert found, report.table()
    assert {finding.severity for finding in found} == {KINDS[one.kind][0]}
    if one.agent is not None:
        assert one.agent in {finding.agent for finding in found}, report.table()
    if one.frame is not None:
        assert one.frame in {finding.frame for finding in found}, report.table()
    surplus = {finding.kind for finding in report.problems} - {one.kind} - one.also
    assert not surplus, report.table()


def test_every_kind_is_planted() -> None:
    planted = {one.kind for one in CASES} | {one.kind for _, one in OTHER_FORMATS}
    assert planted == set(KINDS)


def test_findings_say_who_is_at_fault(spoilt: Callable[[str], Planted]) -> None:
    """One agent is wrong: the other three agree, and are not blamed."""
    planted = spoilt("v2xpnp_seq")
    yaw_negated(planted)
    blamed = [one for one in verify(planted).problems if one.kind == "pose-convention"]
    assert [one.agent for one in blamed] == [2]
    assert "the sign of yaw is turned round" in blamed[0].message


def test_a_sentence_for_every_finding(spoilt: Callable[[str], Planted]) -> None:
    planted = spoilt("v2xpnp_seq")
    for plant in (frame_lost, object_jumps, boxes_too_high, map_too_high, extent_negative):
        plant(planted)
    findings: tuple[Finding, ...] = verify(planted).findings
    assert len({one.kind for one in findings}) >= 5
    for one in findings:
        assert one.message.strip() == one.message
        assert "\n" not in one.message
        assert len(one.message) < 400


def test_labels_are_remembered_by_content(clean: dict[str, Path], tmp_path: Path) -> None:
    """The test's own shortcut: a changed file must be read anew, and errors must not stick."""
    planted = Planted(Path(shutil.copytree(clean["v2xpnp_seq"], tmp_path / "root")))
    path = planted.label(1, 10)
    before = planted.reader.read_label_file(path, 1, 10)
    good = path.read_text()
    path.write_text("")
    for _ in range(2):
        with pytest.raises(UserError):
            planted.reader.read_label_file(path, 1, 10)
    path.write_text(good)
    assert planted.reader.read_label_file(path, 1, 10) is before
