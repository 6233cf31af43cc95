"""V2V4Real: NumPy values in YAML without NumPy's names, matrix poses, boxes in LiDAR frames."""

from __future__ import annotations

import base64
import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.helpers.made_formats import REAL_SCENE, v2v4real_labels, write_v2v4real
from tests.helpers.made_scenes import (
    MadeScene,
    junction_scene,
    lidar_points,
    visible_objects,
    world_box,
    world_SE3_lidar,
)
from turbotrain_plugin.data.formats.numpy_yaml import NumpyLabelLoader
from turbotrain_plugin.data.formats.v2v4real import UNMATCHED_STEP, V2V4RealReader
from turbotrain_plugin.data.formats.yaml_text import parse_labels
from turbotrain_plugin.data.inspect import verify_root
from turbotrain_plugin.structures import AgentFrame, UserError

EYE = "lidar_pose: [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]\n"
CAR = "location: [10, 20, 1], center: [0, 0, 0], angle: [0, 90, 0], extent: [2, 1, 0.5]"


def made_scene(frames: int = 3) -> MadeScene:
    """Two tilted cars, as the format has them."""
    made = junction_scene(REAL_SCENE, frames, infrastructure=False)
    tilted = dataclasses.replace(made.agents[0], agent_id=0, roll_deg=4.0, pitch_deg=-3.0)
    objects = tuple(one for one in made.objects if one.labelled_by is None)
    return dataclasses.replace(
        made, agents=(tilted, dataclasses.replace(made.agents[1], agent_id=1)), objects=objects
    )


def labels(tmp_path: Path, text: str, agent_id: int = 1) -> AgentFrame:
    path = tmp_path / "000007.yaml"
    path.write_text(text)
    return V2V4RealReader.read_label_file(path, agent_id, 7)


def parsed(value: object) -> Any:  # noqa: ANN401 - whatever comes back
    return parse_labels(yaml.dump({"a": value}).encode(), "s", NumpyLabelLoader)["a"]


# ------------------------------------------------------------------------------------ NumPy in YAML


@pytest.mark.parametrize("dtype", ["<f8", "<f4", "<i8", "<i4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_arrays_of_the_real_dumper(dtype: str, order: Any) -> None:  # noqa: ANN401
    array = np.asarray(np.arange(12).reshape(3, 4), dtype=dtype, order=order)
    assert parsed(array) == array.tolist()


@pytest.mark.parametrize("value", [np.float64(1.5), np.float32(0.25), np.int64(-7), np.int32(3)])
def test_scalars_of_the_real_dumper(value: Any) -> None:  # noqa: ANN401
    assert parsed(value) == value.item()


@pytest.mark.parametrize("name", ["numpy.core", "numpy._core"])
def test_names_of_numpy_1_and_2(name: str) -> None:
    text = yaml.dump({"a": np.eye(2), "b": np.float64(2)})
    text = text.replace("numpy._core", "numpy.core").replace("numpy.core", name)
    assert parse_labels(text.encode(), "s", NumpyLabelLoader) == {
        "a": [[1.0, 0.0], [0.0, 1.0]],
        "b": 2.0,
    }


def test_aliases_share_the_matrix() -> None:
    matrix = np.eye(4)
    text = yaml.dump({"lidar_pose": matrix, "true_ego_pos": matrix})
    assert "*id" in text
    content = parse_labels(text.encode(), "s", NumpyLabelLoader)
    assert content["true_ego_pos"] == content["lidar_pose"] == np.eye(4).tolist()


def test_many_numbers_of_one_type() -> None:
    """Each refers to the type of the first by an alias."""
    values = [np.float64(i) for i in range(1000)]
    assert parsed(values) == list(range(1000))


def test_tuples_are_lists() -> None:
    assert parsed((1, (2, 3))) == [1, [2, 3]]


@pytest.mark.parametrize(
    "value",
    [
        np.array([None, 1], dtype=object),
        np.array(["text"]),
        np.array([1 + 2j]),
        np.zeros(3, dtype=">f8"),
        np.zeros(3, dtype=[("x", "f4")]),
        np.zeros(5000),
        np.zeros((1, 1, 1, 1, 1)),
        np.zeros((0, 4)),
        np.float16(1),
    ],
    ids=["object", "text", "complex", "big-endian", "record", "large", "5D", "empty", "half"],
)
def test_other_arrays_are_refused(value: object) -> None:
    with pytest.raises(UserError, match="refused, only plain values"):
        parsed(value)


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system ['touch PROOF']",
        "a: !!python/object/apply:builtins.eval ['1']",
        "a: !!python/object/apply:subprocess.Popen [['touch', 'PROOF']]",
        "a: !!python/object/apply:numpy.load ['PROOF']",
        "a: !!python/object/new:numpy.dtype [f8]",
        "a: !!python/name:os.system ''",
        "a: !!python/name:numpy.load ''",
        "a: !!python/module:os ''",
        "a: !!python/object/apply:numpy.core.multiarray.fromfile ['PROOF']",
    ],
)
def test_every_other_tag_is_refused_and_nothing_runs(tmp_path: Path, text: str) -> None:
    proof = tmp_path / "executed"
    with pytest.raises(UserError, match=r"000007\.yaml: refused.*nothing is executed"):
        labels(tmp_path, text.replace("PROOF", str(proof)) + "\n")
    assert not proof.exists()


ARRAY = (
    "a: !!python/object/apply:numpy.core.multiarray._reconstruct\n"
    "  args: [!!python/name:numpy.ndarray '', !!python/tuple [0], !!binary Yg==]\n"
    "  state: !!python/tuple [1, !!python/tuple [{shape}], "
    "!!python/object/apply:numpy.dtype [f8], {fortran}, !!binary {raw}]\n"
)
RAW = base64.b64encode(np.arange(2.0).tobytes()).decode()


def array_text(shape: str = "2", fortran: str = "false", raw: str = RAW) -> bytes:
    return ARRAY.format(shape=shape, fortran=fortran, raw=raw).encode()


def test_an_array_by_hand() -> None:
    assert parse_labels(array_text(), "s", NumpyLabelLoader)["a"] == [0.0, 1.0]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"shape": "3"}, "3 numbers does not fit its bytes"),
        ({"shape": "-2"}, "whole numbers above 0"),
        ({"shape": "2.0"}, "whole numbers above 0"),
        ({"shape": "true"}, "whole numbers above 0"),
        ({"shape": "999999999999"}, "whole numbers above 0"),
        ({"shape": "4096, 4096, 4096"}, "at most 4096 numbers"),
        ({"shape": ""}, "1 to 4 dimensions"),
        ({"raw": "AAAA"}, "does not fit its bytes"),
    ],
)
def test_arrays_that_lie(changed: dict[str, str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_labels(array_text(**changed), "s", NumpyLabelLoader)


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:numpy.core.multiarray.scalar []",
        "a: !!python/object/apply:numpy.core.multiarray.scalar [f8, 1]",
        "a: !!python/object/apply:numpy.core.multiarray._reconstruct []",
        "a: !!python/object/apply:numpy.core.multiarray._reconstruct {state: [1, [2], f8, 0, x]}",
        "a: !!python/object/apply:numpy.dtype []",
        "a: !!python/object/apply:numpy.dtype {args: [f8], kwds: {x: 1}}",
        "a: !!python/object/apply:numpy.dtype text",
        "a: !!python/tuple text",
        "a: !!python/tuple {b: 1}",
        "a: &x !!python/tuple [*x]",
        "? !!python/tuple [1]\n: 2",
    ],
)
def test_damaged_calls(text: str) -> None:
    with pytest.raises(UserError, match=r"^s: (refused|not valid YAML)"):
        parse_labels(text.encode(), "s", NumpyLabelLoader)


# ------------------------------------------------------------------------------------------ frames


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_v2v4real(tmp_path / "train", made_scene())
    return tmp_path


def test_frames_are_the_truth_in_the_world(root: Path) -> None:
    reader, made = V2V4RealReader([root]), made_scene()
    (scene,) = reader.scenes
    for agent in made.agents:
        for frame in range(made.frames):
            read = reader.read_frame(scene, agent.agent_id, frame)
            world = world_SE3_lidar(agent, frame)
            np.testing.assert_allclose(read.world_SE3_lidar, world, atol=1e-12)
            objects = visible_objects(made, agent.agent_id, frame)
            assert read.object_ids.tolist() == [one.object_id for one in objects]
            assert read.raw_types == tuple(one.raw_type for one in objects)
            expected = np.array([world_box(one, frame) for one in objects])
            np.testing.assert_allclose(read.world_boxes, expected, atol=1e-9)
            np.testing.assert_allclose(read.roll_pitch_rad, 0.0, atol=1e-9)
            points = reader.read_points(scene, agent.agent_id, frame)
            np.testing.assert_array_equal(points[:, :3], lidar_points(made, agent, frame)[:, :3])


def test_both_cars_see_the_same_world(root: Path) -> None:
    report = verify_root([root], cloud_stride=1)
    assert report.ok, report.findings
    assert report.ground_gap_m == pytest.approx(0.0, abs=1e-3)
    reader = V2V4RealReader([root])
    first, second = (reader.read_frame(reader.scenes[0], agent, 1) for agent in (0, 1))
    np.testing.assert_array_equal(first.object_ids, second.object_ids)
    np.testing.assert_allclose(first.world_boxes, second.world_boxes, atol=1e-9)


def test_the_matrix_is_kept_bit_for_bit(tmp_path: Path) -> None:
    made = made_scene()
    content = v2v4real_labels(made, made.agents[0], 2)
    read = labels(tmp_path, yaml.dump(content), agent_id=0)
    np.testing.assert_array_equal(read.world_SE3_lidar, content["lidar_pose"])


# -------------------------------------------------------------------------------------- identities


def test_ids(tmp_path: Path) -> None:
    text = f"{EYE}vehicles:\n"
    for number, shared in ((3, "ass_id: 12,"), (4, "ass_id: -1,"), (5, ""), (6, "ass_id: '8',")):
        text += f"  {number}: {{{shared} {CAR}}}\n"
    assert labels(tmp_path, text, 1).object_ids.tolist() == [12, 4 + UNMATCHED_STEP, 5, 8]
    assert labels(tmp_path, text, 0).object_ids.tolist() == [12, 4, 5, 8]


def test_unmatched_objects_of_two_cars_never_meet(tmp_path: Path) -> None:
    """With the hosts' id + 100 x agent the second car's 5 would be the first car's 105."""
    first = labels(tmp_path, f"{EYE}vehicles:\n  105: {{ass_id: -1, {CAR}}}\n", 0)
    second = labels(tmp_path, f"{EYE}vehicles:\n  5: {{ass_id: -1, {CAR}}}\n", 1)
    assert first.object_ids[0] != second.object_ids[0]


def test_an_id_twice_keeps_the_first(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    other = CAR.replace("[10, 20, 1]", "[50, 60, 1]")
    text = (
        f"{EYE}vehicles:\n  9: {{ass_id: 3, {CAR}}}\n  8: {{ass_id: 3, {other}}}\n"
        f"  2: {{ass_id: 1, {other}, obj_type: Truck}}\n"
    )
    with caplog.at_level(logging.WARNING):
        read = labels(tmp_path, text)
    assert read.object_ids.tolist() == [3, 1]
    assert read.world_boxes[:, 0].tolist() == [10, 50]
    assert read.raw_types == ("Car", "Truck")
    assert "000007.yaml: left out 1 object(s) with the id of another" in caplog.text


def test_class_names(tmp_path: Path) -> None:
    """A missing one is a Car; pedestrians are kept, `turbotrain.data.classes` drops them."""
    text = f"{EYE}vehicles:\n  1: {{{CAR}}}\n  2: {{{CAR}, obj_type: Pedestrian}}\n"
    assert labels(tmp_path, text).raw_types == ("Car", "Pedestrian")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vehicles: {}\n", "lidar_pose must be a 4 x 4 matrix"),
        ("lidar_pose: [1, 2, 3, 0, 0, 0]\n", "lidar_pose must be a 4 x 4 matrix"),
        (EYE.replace("[0, 1, 0, 0]", "[0, 1, 0]"), "4 x 4 matrix"),
        (EYE.replace("[0, 1, 0, 0]", "[0, .nan, 0, 0]"), "4 x 4 matrix of finite"),
        (EYE.replace("[0, 1, 0, 0]", "[0, x, 0, 0]"), "4 x 4 matrix of finite"),
        (EYE.replace("[0, 1, 0, 0]", "[0, -1, 0, 0]"), "rotation and a translation"),
        (EYE.replace("[0, 1, 0, 0]", "[0, 1.0001, 0, 0]"), "rotation and a translation"),
        (EYE.replace("[0, 0, 0, 1]", "[0, 0, 0, 2]"), "rotation and a translation"),
        (f"{EYE}vehicles: {{1: {{ass_id: x, {CAR}}}}}\n", "object 1: ass_id 'x' is not a whole"),
        (f"{EYE}vehicles: {{1: {{ass_id: 1.5, {CAR}}}}}\n", "object 1: ass_id 1.5 is not"),
        (
            f"{EYE}vehicles: {{{2**63 - 1}: {{ass_id: -1, {CAR}}}}}\n",
            "id .* is not a whole number",
        ),
    ],
)
def test_broken_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=rf"000007\.yaml: .*{message}"):
        labels(tmp_path, text)


def test_no_objects(tmp_path: Path) -> None:
    read = labels(tmp_path, EYE)
    assert read.world_boxes.shape == (0, 7)
    assert labels(tmp_path, f"{EYE}vehicles: null\n").object_ids.shape == (0,)
