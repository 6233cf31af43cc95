"""`format: auto`: what each layout is told by, one log line, and no guess in a doubt."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from tests.helpers.made_formats import OPV2V_SCENE, REAL_SCENE, write_opv2v, write_v2v4real
from tests.helpers.made_scenes import MadeAgent, MadeObject, MadeScene, write_root
from turbotrain_plugin.data.formats import (
    OPV2VReader,
    V2V4RealReader,
    V2XPnPSeqReader,
    open_root,
)
from turbotrain_plugin.data.formats.detect import detect_format
from turbotrain_plugin.structures import UserError


def made_scene(name: str) -> MadeScene:
    objects = (MadeObject(5, (10.0, 3.0, 1.0)),)
    return MadeScene(name, (MadeAgent(0, (0, 0, 2)), MadeAgent(1, (9, 0, 2))), objects, 2)


def v2xpnp(root: Path) -> Path:
    return write_root(root, {"train": [made_scene("2023-01-01-00-00-00_1_0")]}, with_map=False)


def opv2v(root: Path) -> Path:
    write_opv2v(root / "train", made_scene(OPV2V_SCENE))
    return root


def v2v4real(root: Path) -> Path:
    write_v2v4real(root / "train", made_scene(REAL_SCENE))
    return root


def to_pcd(root: Path) -> None:
    for path in root.rglob("*.bin"):
        path.rename(path.with_suffix(".pcd"))


def rewrite(root: Path, old: str, new: str) -> None:
    for path in root.rglob("*.yaml"):
        path.write_text(path.read_text().replace(old, new))


@pytest.mark.parametrize(
    ("write", "name", "reader", "reason"),
    [
        (v2xpnp, "v2xpnp_seq", V2XPnPSeqReader, ".bin clouds, the key true_ego_pose, "),
        (opv2v, "opv2v", OPV2VReader, ".pcd clouds, the key true_ego_pos, the key predicted"),
        (v2v4real, "v2v4real", V2V4RealReader, ".pcd clouds, a 4 x 4 lidar_pose"),
    ],
)
def test_layouts_are_told_apart_in_one_log_line(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    write: object,
    name: str,
    reader: type,
    reason: str,
) -> None:
    assert callable(write)
    root = write(tmp_path)
    for given in (root, root / "train"):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            assert type(open_root([given])) is reader
        (line,) = caplog.messages
        assert line.startswith(f"{given}: read as {name} ({reason}")


def test_a_named_format_is_not_looked_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        open_root([opv2v(tmp_path)], "v2xset")
    assert caplog.messages == []


def test_v2x_real_with_pcd_clouds_only(tmp_path: Path) -> None:
    """Right-handed like its labels say, whatever the clouds are kept as."""
    root = v2xpnp(tmp_path)
    to_pcd(root)
    assert detect_format([root]) == "v2xpnp_seq"
    # Only obj_type is left to tell it from OPV2V.
    rewrite(root, "true_ego_pose", "x")
    rewrite(root, "infra", "y")
    assert detect_format([root]) == "v2xpnp_seq"


def test_opv2v_labels_with_nothing_but_a_pose(tmp_path: Path) -> None:
    root = opv2v(tmp_path)
    for key in ("true_ego_pos", "predicted_ego_pos", "plan_trajectory"):
        rewrite(root, key, f"x{len(key)}")
    assert detect_format([root]) == "opv2v"  # by the scene's name
    (root / "train" / OPV2V_SCENE).rename(root / "train" / "town05")
    with pytest.raises(UserError, match=r"format is unknown\. Looked for v2xpnp_seq .* opv2v .*"):
        detect_format([root])


def test_class_names_in_opv2v_do_not_confuse(tmp_path: Path) -> None:
    """Our writer adds them, and what it writes must be found again."""
    root = opv2v(tmp_path)
    rewrite(root, "    speed: 0.0", "    obj_type: Car")
    assert detect_format([root]) == "opv2v"


def test_marks_of_two_formats(tmp_path: Path) -> None:
    root = opv2v(tmp_path)
    rewrite(root, "ego_speed", "infra")
    with pytest.raises(
        UserError,
        match=r"format is ambiguous\. Looked for .*Found for v2xpnp_seq: the key infra; "
        r"for opv2v: the key true_ego_pos.*Set turbotrain\.data\.format",
    ):
        detect_format([root])
    assert type(open_root([root], "opv2v")) is OPV2VReader


def test_carla_labels_beside_bin_clouds(tmp_path: Path) -> None:
    root = opv2v(tmp_path)
    for path in root.rglob("*.pcd"):
        path.rename(path.with_suffix(".bin"))
    with pytest.raises(UserError, match=r"ambiguous.*for v2xpnp_seq: \.bin clouds"):
        detect_format([root])


def test_labels_of_opv2v_without_clouds(tmp_path: Path) -> None:
    root = opv2v(tmp_path)
    for path in root.rglob("*.pcd"):
        path.unlink()
    with pytest.raises(UserError, match="ambiguous"):
        detect_format([root])


def test_damaged_first_files_are_passed_over(tmp_path: Path) -> None:
    root = v2v4real(tmp_path)
    (root / "train" / REAL_SCENE / "0" / "000000.yaml").write_text("[")
    assert detect_format([root]) == "v2v4real"


def test_all_files_damaged(tmp_path: Path) -> None:
    root = v2v4real(tmp_path)
    for path in root.rglob("*.yaml"):
        path.write_text("a: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(UserError, match=r"unknown.*unreadable label file: .*000000\.yaml: refused"):
        detect_format([root])


def test_roots_of_two_formats(tmp_path: Path) -> None:
    roots = [opv2v(tmp_path / "a"), v2v4real(tmp_path / "b")]
    with pytest.raises(UserError, match=r"different formats.*a: opv2v .*b: v2v4real .*Read them"):
        detect_format(roots)


def test_pcd_beside_bin_is_a_copy(tmp_path: Path) -> None:
    root = v2xpnp(tmp_path)
    for path in root.rglob("*.bin"):
        shutil.copy(path, path.with_suffix(".pcd"))
    assert detect_format([root]) == "v2xpnp_seq"
