"""Faults of data sets, one function each: lost and damaged files, wrong signs, frames, identities.

Every function spoils the ``Planted`` root it is given; ``tests/integration/test_verify_defects.py``
says what each is found as.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.helpers.planted import (
    Cloud,
    Planted,
    half_turn,
    on_boxes,
    on_object,
    on_points,
    on_pose,
    renamed,
    shifted,
    turned,
    with_twin,
    without_objects,
)
from turbotrain_plugin.data.vector_map import Lane, VectorMap, read_map, write_map
from turbotrain_plugin.geometry.boxes import transform_boxes
from turbotrain_plugin.geometry.poses import invert_rigid, matrix_to_pose, pose_to_matrix
from turbotrain_plugin.structures import AgentFrame

F64 = NDArray[np.float64]


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
