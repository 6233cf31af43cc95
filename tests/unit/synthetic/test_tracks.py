"""Given trajectories are read strictly and replayed exactly."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.helpers.recordings import Recording
from turbotrain_plugin.errors import UserError
from turbotrain_plugin.synthetic import Preset, SensorModel, generate
from turbotrain_plugin.synthetic.tracks import COLUMNS, read_tracks

HEADER = ",".join(COLUMNS)
SENSOR = SensorModel(tuple(float(angle) for angle in range(-20, 6, 2)), 360, 80.0)
PRESET = Preset("unit", (1, 1, 1), 51, SENSOR, SENSOR, cloud_stride=5)


def row(
    scene: str = "a",
    time_s: object = 0,
    number: object = 1,
    kind: str = "Car",
    where: tuple[float, float, float] = (0, 0, 0.8),
    yaw_deg: object = 0,
    size: tuple[object, object, object] = (4.6, 1.9, 1.6),
) -> str:
    return ",".join(map(str, (scene, time_s, number, kind, *where, yaw_deg, *size)))


def write(path: Path, *rows: str, header: str = HEADER) -> Path:
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def test_interpolation_and_gaps(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.csv",
        row(time_s=10.0, where=(0, 0, 1), yaw_deg=170),
        row(time_s=11.0, where=(10, 5, 2), yaw_deg=-170),
        row(time_s=13.5, where=(20, 5, 2), yaw_deg=-170),
        row(time_s=14.0, where=(24, 5, 2), yaw_deg=-170),
        row(time_s=10.5, number=7, kind="Pedestrian", where=(3, 3, 3)),
        row(time_s=11.5, number=7, kind="Pedestrian", where=(3, 4, 3)),
    )
    (scene,) = read_tracks(path)
    objects = scene.objects
    assert scene.name == "a"
    assert objects.types == ("Car", "Pedestrian")
    assert objects.ids.tolist() == [1, 7]
    assert objects.present.shape == (41, 2)
    np.testing.assert_allclose(objects.half_sizes[0], [2.3, 0.95, 0.8])
    # Half way: position in the middle, heading the short way round over 180 degrees.
    np.testing.assert_allclose(objects.xy[5, 0], [5.0, 2.5])
    np.testing.assert_allclose(np.degrees(objects.yaw[5, 0]), 180.0)
    assert objects.bottom_z is not None
    np.testing.assert_allclose(objects.bottom_z[5, 0], 1.5 - 0.8)
    # The gap of 2.5 s is left open, its ends are not; nothing before the first row or after.
    np.testing.assert_array_equal(
        np.nonzero(objects.present[:, 0])[0], [*range(11), *range(35, 41)]
    )
    np.testing.assert_array_equal(np.nonzero(objects.present[:, 1])[0], range(5, 16))
    np.testing.assert_allclose(objects.speed[38, 0], 8.0)


def test_a_gap_of_two_seconds_is_bridged(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", row(time_s=0.0), row(time_s=2.0, where=(4, 0, 0.8)))
    (scene,) = read_tracks(path)
    assert scene.objects.present.all()


@pytest.mark.parametrize(
    ("step", "gap", "filled"),
    [
        (0.1, 0.5, True),
        (0.1, 0.6, False),  # five frames at most where frames come at 10 Hz
        (0.5, 0.7, True),  # a recording at 2 Hz: one and a half steps
        (0.5, 0.8, False),
        (1.5, 2.0, True),
        (1.5, 2.1, False),  # and never more than 2 s
    ],
)
def test_how_long_a_gap_is_filled(tmp_path: Path, step: float, gap: float, filled: bool) -> None:
    times = [round(step * n, 6) for n in range(8)]
    times += [round(times[-1] + gap + step * n, 6) for n in range(8)]
    path = write(tmp_path / "t.csv", *(row(time_s=t, where=(t, 0, 0.8)) for t in times))
    (scene,) = read_tracks(path)
    assert scene.objects.present.all() == filled
    np.testing.assert_allclose(scene.objects.speed[scene.objects.present], 1.0)


def test_a_hop_across_a_gap_is_no_speed(tmp_path: Path) -> None:
    early = [row(time_s=0.1 * n) for n in range(5)]
    late = [row(time_s=2.0 + 0.1 * n, where=(30, 0, 0.8)) for n in range(5)]
    (scene,) = read_tracks(write(tmp_path / "t.csv", *early, *late))
    np.testing.assert_array_equal(
        np.nonzero(scene.objects.present[:, 0])[0], [*range(5), *range(20, 25)]
    )
    assert (scene.objects.speed == 0.0).all()


def test_bare_two_wheelers_and_carts_are_known(tmp_path: Path) -> None:
    kinds = ("Bicycle", "Motorcycle", "Scooter", "ConstructionCart")
    rows = [row(number=n, kind=kind, where=(9.0 * n, 0, 1)) for n, kind in enumerate(kinds)]
    (scene,) = read_tracks(write(tmp_path / "t.csv", *rows))
    assert scene.objects.types == kinds


def test_extra_columns_spaces_and_order_do_not_matter(tmp_path: Path) -> None:
    names = [*reversed(COLUMNS), "comment"]
    values = dict(zip(COLUMNS, row().split(","), strict=True))
    text = ", ".join([*(values[name] for name in reversed(COLUMNS)), "hello"])
    path = write(tmp_path / "t.csv", text, header=", ".join(names))
    (scene,) = read_tracks(path)
    assert scene.objects.present.tolist() == [[True]]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((), "has no rows below its header"),
        ((row(), row(time_s="soon")), r"line 3: time_s 'soon' should be a number"),
        ((row(number="one"),), r"line 2: id 'one' should be a whole number"),
        ((row(number=-4),), r"line 2: id -4 should not be negative"),
        ((row(kind="Tank"),), r"line 2: type 'Tank' is unknown; use one of Car, "),
        ((row(yaw_deg="nan"),), r"line 2: yaw_deg should be finite, found nan"),
        ((row(size=(4.6, 0, 1.6)),), r"line 2: length, width and height should be positive"),
        ((row(scene=" "),), r"line 2: has no scene name"),
        (("a,1,2",), r"line 2: type '' is unknown"),
        ((row(), row(time_s=1, kind="Van")), r"line 3: object 1 is 'Van' here and 'Car' before"),
        (
            (row(time_s=1), row(number=2), row(time_s=1.0)),
            r"line 4: object 1 already has a row for time 1 s in line 2",
        ),
        ((row(), row(time_s=1e9)), "scene 'a' lasts 1000000000 s; time_s should be in seconds"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, rows: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_tracks(write(tmp_path / "t.csv", *rows))


def test_missing_columns_and_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"line 1: lacks the column\(s\) yaw_deg, height"):
        read_tracks(
            write(
                tmp_path / "t.csv",
                header="scene,time_s,id,type,x,y,z,length,width",
            )
        )
    with pytest.raises(UserError, match="cannot be read"):
        read_tracks(tmp_path / "none.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00scene")
    with pytest.raises(UserError, match="is no CSV text"):
        read_tracks(tmp_path / "binary.csv")
    with pytest.raises(UserError, match="cannot be read"):
        generate(PRESET, tmp_path / "out", seed=0, tracks=tmp_path / "none.csv")
    assert not (tmp_path / "out").exists()


def street(scene: str, offset: float) -> list[str]:
    """Six cars and one walker on a street that climbs 3 % along x, far from the origin."""
    rows = []
    for step in range(13):
        time_s = 100.0 + 0.25 * step
        for number in range(6):
            x = 1000.0 + 15.0 * number + (number % 3) * 4.0 * (time_s - 100.0)
            y = -500.0 + 3.5 * (number % 2) + offset
            rows.append(row(scene, time_s, number + 20, "Car", (x, y, 50.0 + 0.03 * x + 0.8), 0.0))
        rows.append(
            row(
                scene,
                time_s,
                90,
                "Pedestrian",
                (1030.0 + step * 0.3, -505.0, 81.8),
                0.0,
                (0.6, 0.6, 1.8),
            )
        )
    return rows


@pytest.fixture(scope="module")
def replayed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("replay")
    rows = [line for scene in range(3) for line in street(f"s{scene}", float(scene))]
    path = write(folder / "t.csv", *rows)
    return generate(PRESET, folder / "root", seed=0, workers=1, tracks=path), path


def test_replay_places_objects_where_the_file_says(replayed: tuple[Path, Path]) -> None:
    root, _ = replayed
    assert {path.name for path in root.iterdir() if path.is_dir()} == {"train", "val", "test"}
    (folder,) = (root / "train").iterdir()
    recording = Recording(folder)
    assert recording.meta["source_scene"] == "s0"
    assert recording.meta["frames"] == 31
    assert recording.agents == [-2, -1, 1, 2]
    seen = set()
    for view in recording.views(stride=5):
        for number, entry in view.label["vehicles"].items():
            seen.add(number)
            time_s = 0.1 * view.frame
            if number == 90:
                assert entry["obj_type"] == "Pedestrian"
                continue
            x = 1000.0 + 15.0 * (number - 20) + ((number - 20) % 3) * 4.0 * time_s
            expected = [x, -500.0 + 3.5 * (number % 2), 50.0 + 0.03 * x + 0.8]
            # The box stands on the given underside, square to the slope.
            np.testing.assert_allclose(entry["location"], expected, atol=0.03)
            np.testing.assert_allclose(entry["extent"], [2.3, 0.95, 0.8])
            assert entry["angle"][1] == pytest.approx(0.0, abs=1e-6)
            assert entry["angle"][2] == pytest.approx(np.degrees(np.arctan(0.03)), abs=0.2)
    assert len(seen) >= 5


def test_replay_agents(replayed: tuple[Path, Path]) -> None:
    root, _ = replayed
    (folder,) = (root / "train").iterdir()
    recording = Recording(folder)
    agents = recording.meta["agents"]
    assert agents["-1"] is None
    assert agents["1"] != agents["2"]
    for key in ("1", "2"):
        assert 20 <= agents[key] < 26
        assert agents[key] not in recording.label(int(key), 0)["vehicles"]
    for unit in (-1, -2):
        x, y, z, *_ = recording.label(unit, recording.frames(unit)[0])["lidar_pose"]
        assert min(abs(y + 500.0), abs(y + 496.5)) > 2.0
        assert 2.0 < z - (50.0 + 0.03 * x) < 6.0
    for view in recording.views(stride=10):
        ground = view.world_points()[np.abs(view.points[:, 3] - 0.15) < 0.01]
        error = ground[:, 2] - (50.0 + 0.03 * ground[:, 0])
        assert abs(np.median(error)) < 0.1


def test_replay_again_gives_the_same_marker_only_for_the_same_file(
    replayed: tuple[Path, Path], tmp_path: Path
) -> None:
    root, path = replayed
    other = write(tmp_path / "o.csv", *street("s0", 0.0))
    with pytest.raises(UserError, match="another tracks"):
        generate(PRESET, root, seed=0, tracks=other)
    assert generate(PRESET, root, seed=0, workers=1, tracks=path, resume=True) == root


def test_one_walker_alone_is_a_scene(tmp_path: Path) -> None:
    """Without vehicles there are roadside units only, and no crash."""
    rows = [
        row(time_s=t, kind="Pedestrian", where=(t, 0, 0.9), size=(0.6, 0.6, 1.8)) for t in (0, 1)
    ]
    root = generate(
        PRESET, tmp_path / "r", seed=0, workers=1, tracks=write(tmp_path / "t.csv", *rows)
    )
    (folder,) = (root / "train").iterdir()
    assert Recording(folder).agents == [-2, -1]
