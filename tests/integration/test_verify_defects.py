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

import pytest

from tests.helpers import planted_faults as faults
from tests.helpers.planted import Planted
from turbotrain_plugin.data.checks.findings import KINDS, Finding
from turbotrain_plugin.data.convert import convert_roots
from turbotrain_plugin.data.formats import FORMATS, SequenceReader
from turbotrain_plugin.data.inspect import VerifyReport, verify_root
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
BOXES = "label-conflict track-jump duplicate-id box-height box-at-sensor"
"""What boxes of a wrong size or place bring along."""
CASES = [
    case("empty-scene", faults.empty_scene, also="no-frames"),
    case("no-frames", faults.agent_without_files, 7),
    case("label-without-cloud", faults.cloud_lost, 1, 10),
    case("cloud-without-label", faults.label_lost, 2, 15),
    case("frame-missing", faults.frame_lost, 2, 15),
    case("frame-gap", faults.three_frames_lost, -1, 10),
    case("frames-differ", faults.frame_lost, None, 15),
    case("span-differs", faults.agent_late, 2, 20),
    case("no-shared-frames", faults.agents_out_of_step),
    case("odd-file-name", faults.short_names, 1),
    case("odd-folder", faults.agent_with_a_name),
    case("bad-label", faults.label_cut, 1, 10),
    case("bad-pose", faults.pose_not_finite, 1, 10),
    case("bad-object", faults.extent_negative, 1, 10),
    case("odd-size", faults.flat_object, 1),
    case(
        "size-convention", faults.full_sizes_as_extent, also="box-height duplicate-id box-at-sensor"
    ),
    case("tilted-box", faults.object_on_its_side, 1),
    case(
        "box-at-sensor",
        faults.object_at_the_sensor,
        1,
        also="label-conflict track-jump duplicate-id",
    ),
    case("no-objects", faults.nothing_labelled, -2),
    case("unknown-class", faults.foreign_class),
    case("class-conflict", faults.two_classes),
    case("tilted-sensor", faults.sensor_on_its_side, 2, also=POSE),
    case("pose-jump", faults.pose_far_away_once, 1, 15),
    case("roadside-moves", faults.roadside_unit_drives, -1, also="poses-disagree"),
    case("duplicate-id", faults.one_object_two_ids),
    case("label-conflict", faults.agent_with_other_places, also="box-at-sensor"),
    case("track-jump", faults.object_jumps, frame=20),
    case("heading-flip", faults.heading_round_once, frame=20),
    case("heading-reversed", faults.heading_round_always),
    case("heading-off", faults.radians_for_degrees, also="duplicate-id heading-reversed"),
    case("empty-cloud", faults.cloud_of_no_bytes, 1, 10),
    case("truncated-cloud", faults.cloud_cut, 1, 15),
    case("bad-cloud", faults.cloud_of_something_else, 1, 0),
    case("nan-points", faults.points_missing, 1),
    case("thin-cloud", faults.cloud_nearly_empty, 1, 20),
    case("far-points", faults.millimetres, 1, also=POSE),
    case("points-outside-z", faults.sensor_height_in_the_points, 1, also=POSE),
    case("frozen-cloud", faults.cloud_repeated, 1, 15),
    case("label-frame", faults.boxes_in_the_lidar_frame, 1, also="label-conflict"),
    case("boxes-off-points", faults.boxes_beside_the_points, also="objects-off-map box-height"),
    case("box-height", faults.boxes_too_high, -1),
    case("ground-gap", faults.sensor_too_high, -1, also="box-height"),
    case("pose-convention", faults.yaw_negated, 2),
    case("pose-convention", faults.cloud_mirrored, 2, also="boxes-off-points"),
    case("poses-disagree", faults.pose_beside, 2),
    case("map-missing", faults.no_map),
    case("bad-map", faults.damaged_map),
    case("agent-off-map", faults.map_elsewhere, 1, also="objects-off-map"),
    case("objects-off-map", faults.map_beside),
    case("map-height", faults.map_too_high, 1),
    case("scene-twice", faults.scene_in_two_splits),
    case("split-overlap", faults.clip_of_a_scene_in_test, also="no-shared-frames"),
    case("repeated-content", faults.scene_under_another_name),
]
OTHER_FORMATS = [
    ("opv2v", case("off-grid-files", faults.tick_between_frames, 1)),
    *(
        (name, one)
        for name in ("opv2v", "v2v4real")
        for one in (
            case("label-without-cloud", faults.cloud_lost, 1, 10),
            case("bad-label", faults.label_cut, 1, 10),
            case("bad-cloud", faults.cloud_cut, 1, 15),
            case("duplicate-id", faults.one_object_two_ids),
            case("track-jump", faults.object_jumps, frame=20),
            case("heading-reversed", faults.heading_round_always),
            case("heading-off", faults.radians_for_degrees, also="duplicate-id"),
            case("box-height", faults.boxes_too_high, -1 if name == "opv2v" else 1),
            case("boxes-off-points", faults.boxes_beside_the_points, also="box-height"),
            case("pose-convention", faults.cloud_mirrored, 2, also="boxes-off-points"),
            case("repeated-content", faults.scene_under_another_name),
        )
    ),
    ("opv2v", case("label-frame", faults.boxes_in_the_lidar_frame, 1, also="label-conflict")),
    ("v2v4real", case("label-frame", faults.boxes_in_the_world, 1, also="label-conflict")),
    ("v2v4real", case("pose-convention", faults.yaw_negated, 2, also="label-conflict")),
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
    faults.yaw_negated(planted)
    blamed = [one for one in verify(planted).problems if one.kind == "pose-convention"]
    assert [one.agent for one in blamed] == [2]
    assert "the sign of yaw is turned round" in blamed[0].message


def test_a_sentence_for_every_finding(spoilt: Callable[[str], Planted]) -> None:
    planted = spoilt("v2xpnp_seq")
    for plant in (
        faults.frame_lost,
        faults.object_jumps,
        faults.boxes_too_high,
        faults.map_too_high,
        faults.extent_negative,
    ):
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
