"""Who leads by each host's rule, whole runs on our reader, and what is refused."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.made_formats import OPV2V_SCENE, write_opv2v
from tests.helpers.made_host import host_hypes, step_lines, write_hypes
from tests.helpers.made_readings import agents_of, broken_scene, data_set, ours
from tests.helpers.made_scenes import junction_scene, write_scene
from turbotrain_plugin.cli import main
from turbotrain_plugin.hosts import HOSTS
from turbotrain_plugin.hosts.__main__ import main as launch
from turbotrain_plugin.hosts.heal import HEAL
from turbotrain_plugin.hosts.reader import with_split_folders
from turbotrain_plugin.structures import UserError
from turbotrain_plugin.synthetic import PRESETS

# ------------------------------------------------------------------------------- orders of agents


AGENTS = (1, 2, 10, -1, -2)


@pytest.mark.parametrize(
    ("mode", "expected", "leaders"),
    [
        ("vc", (1, 10, 2, -1, -2), {1, 2, 10}),
        ("ic", (-1, -2, 1, 10, 2), {-1, -2}),
        ("v2v", (1, 10, 2), {1, 2, 10}),
        ("i2i", (-1, -2), {-1, -2}),
    ],
)
def test_modes_of_v2x_real_and_coopre(
    mode: str, expected: tuple[int, ...], leaders: set[int]
) -> None:
    hypes = {"dataset_mode": mode}
    for name, train in (("v2xreal", False), ("coopre", False), ("coopre", True)):
        order = HOSTS[name]().agent_order(AGENTS, hypes, train=train)
        assert (order.agents, set(order.leaders)) == (expected, leaders)
    v2xreal = HOSTS["v2xreal"]()
    assert v2xreal.takes_part("2023-04-07-14-47-37_17_1", hypes, train=True)
    assert v2xreal.takes_part("2023-03-17-15-53-02_1_0", hypes, train=False)
    other_day = v2xreal.takes_part("2023-04-07-14-47-37_17_1", hypes, train=False)
    assert other_day == (mode == "v2v")


def test_a_mode_without_agents_has_none() -> None:
    order = HOSTS["v2xreal"]().agent_order((1, 2), {"dataset_mode": "i2i"}, train=False)
    assert (order.agents, order.leaders) == ((), frozenset())


def test_v2x_real_draws_an_ego_as_its_train_script() -> None:
    random.seed(4)
    expected = ["-1", "-2", "1", "10", "2"]
    random.shuffle(expected)
    random.seed(4)
    order = HOSTS["v2xreal"]().agent_order(AGENTS, {"dataset_mode": "vc"}, train=True)
    assert list(map(str, order.agents)) == expected
    assert set(order.leaders) == set(AGENTS)


def test_heal_draws_a_vehicle_and_opencood_takes_the_first() -> None:
    drawn = set()
    for seed in range(40):
        random.seed(seed)
        order = HEAL().agent_order(AGENTS, {}, train=True)
        assert set(order.leaders) == {1, 2, 10}
        assert order.agents[0] in order.leaders
        assert sorted(order.agents) == sorted(AGENTS)
        drawn.add(order.agents[0])
    assert drawn == {1, 2, 10}
    for host in (HEAL(), HOSTS["opencood"]()):
        order = host.agent_order(AGENTS, {}, train=False)
        assert order.agents == (1, 10, 2, -1, -2)


def test_frames_stay_the_same_whoever_is_drawn(
    fake_host: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Epochs of one length: a loader and a learning-rate schedule count on it."""
    write_scene(tmp_path / "train", broken_scene())
    monkeypatch.setattr(HOSTS["opencood"], "agent_order", HEAL.agent_order)
    with data_set(fake_host, tmp_path, tmp_path, train=True, turbotrain=ours()) as made:
        egos = set()
        for seed in range(8):
            random.seed(seed)
            made.reinitialize()
            assert len(made) == made.len_record[-1] == 6
            frames = [agents_of(made.retrieve_base_data(index)) for index in range(6)]
            assert [egos_of for _, egos_of in frames][1:4] == [["10"], ["2"], ["2"]]
            egos.add(frames[0][1][0])
    assert egos == {"2", "10"}


# ------------------------------------------------------------------------------------------- runs


def unequal_root(tmp_path: Path) -> Path:
    for split, count in (("train", 2), ("validate", 1)):
        for number in range(count):
            scene = replace(broken_scene(8), name=f"2023-03-17-15-53-0{number}_1_0")
            write_scene(tmp_path / "data" / split, scene)
    return tmp_path / "data"


def test_a_host_s_model_trains_on_files_it_cannot_read(fake_host: Path, tmp_path: Path) -> None:
    """Through ``opencood train``, with loader processes; a root in place of a split folder."""
    del fake_host
    root, folder = unequal_root(tmp_path), tmp_path / "run"
    block = ours()
    block["host"]["workers"] = 1
    hypes = host_hypes(
        root, fusion={"core_method": "CloudFusionDataset"}, turbotrain=block, root_dir=str(root)
    )
    folder.mkdir()
    write_hypes(folder / "config.yaml", hypes)
    assert main(["train", "--model_dir", str(folder), "--device", "cpu"]) == 0
    steps = [line for line in step_lines(folder) if "losses" in line]
    assert len(steps) == 16  # 16 frames in batches of 2, twice
    assert steps[-1]["loss"] < steps[0]["loss"]
    results = json.loads((folder / "results.json").read_text())
    assert results["protocol"]["frames"] == 8
    assert results["detection"]["n_gt"] > 0
    assert main(["evaluate", "--model_dir", str(folder), "--device", "cpu"]) == 0
    assert json.loads((folder / "results.json").read_text()) == results


def test_the_host_s_own_scripts_train_and_infer_on_them(fake_host: Path, tmp_path: Path) -> None:
    del fake_host
    root = unequal_root(tmp_path)
    fusion = {"core_method": "CloudFusionDataset"}
    file = write_hypes(
        tmp_path / "hypes.yaml",
        host_hypes(root, fusion=fusion, turbotrain=ours(), validate_dir=str(root)),
    )
    log_dir = ["--log_dir", str(tmp_path / "logs"), "--run_seed", "1"]
    assert launch(["train", *log_dir, "--hypes_yaml", str(file)]) == 0
    (folder,) = (tmp_path / "logs").iterdir()
    assert (folder / "net_epoch2.pth").is_file()
    inference = ["inference", "--model_dir", str(folder), "--fusion_method", "intermediate"]
    assert launch(inference) == 0


def test_synthetic_scenes_are_made_and_each_key_means_its_split(
    fake_host: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preset = replace(PRESETS["tiny"], name="host_reader", scenes=(1, 1, 1), frames=16)
    monkeypatch.setitem(PRESETS, "host_reader", preset)
    monkeypatch.setenv("TURBOTRAIN_CACHE", str(tmp_path / "cache"))
    name = "synthetic:host_reader"
    changes = {"root_dir": name, "validate_dir": name, "test_dir": name}
    hypes = host_hypes(tmp_path, **changes, turbotrain=ours())
    with_split_folders(hypes)
    found = [Path(hypes[key]).name for key in changes]
    assert found == ["train", "val", "test"]
    with data_set(fake_host, tmp_path, tmp_path, train=True, turbotrain=ours(), **changes) as made:
        assert len(made) == 4  # every fifth of 16 frames
        assert len(made.retrieve_base_data(3)) > 1


def test_folders_that_do_not_exist_stay_until_they_are_read(
    fake_host: Path, tmp_path: Path
) -> None:
    write_scene(tmp_path / "validate", junction_scene("a", frames=2))
    changes: dict[str, Any] = {"test_dir": "dataset/OPV2V/test", "turbotrain": ours()}
    with data_set(fake_host, tmp_path, tmp_path, **changes) as made:
        assert len(made) == 2
    with pytest.raises(UserError, match="no such data folder"):  # noqa: SIM117
        with data_set(fake_host, tmp_path, tmp_path, train=True, **changes):
            pass


# ------------------------------------------------------------------------------------------ errors


def test_without_the_key_the_host_reads(fake_host: Path, tmp_path: Path) -> None:
    write_opv2v(tmp_path / "validate", junction_scene(OPV2V_SCENE, frames=2))
    with data_set(fake_host, tmp_path, tmp_path, turbotrain={"host": {"workers": 0}}) as made:
        assert type(made).__mro__[0].__module__.startswith("opencood.")
        assert "turbotrain" not in made.params


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fusion": {"core_method": "OnlineFusionDataset"}}, "fusion.core_method.*CloudFusion"),
        ({"fusion": {"core_method": "CloudFusion"}}, "fusion.core_method.*Found 'CloudFusion'"),
        ({"turbotrain": {"host": {"data": {"format": "opv2"}}}}, "Did you mean 'opv2v'"),
        ({"turbotrain": {"host": {"data": {"form": "auto"}}}}, "Did you mean 'format'"),
        ({"validate_dir": ""}, "validate_dir is empty"),
    ],
)
def test_mistakes_are_said(
    fake_host: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    write_scene(tmp_path / "validate", junction_scene("a", frames=2))
    with pytest.raises(UserError, match=message):  # noqa: SIM117
        with data_set(fake_host, tmp_path, tmp_path, **{"turbotrain": ours(), **changes}):
            pass


def test_repairs_need_our_reader(fake_host: Path, tmp_path: Path) -> None:
    write_opv2v(tmp_path / "validate", junction_scene(OPV2V_SCENE, frames=2))
    block = ours(format="host", repair={"heading_flips": True})
    with pytest.raises(UserError, match="repair"):  # noqa: SIM117
        with data_set(fake_host, tmp_path, tmp_path, turbotrain=block):
            pass


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fusion": {"core_method": "intermediateheter", "dataset": "opv2v"}}, "core_method"),
        ({"fusion": {"core_method": "late", "dataset": "dairv2x"}}, "fusion.dataset.*dairv2x"),
        ({"label_type": "camera"}, "label_type.*camera"),
        ({"input_source": ["lidar", "camera"]}, "input_source"),
        ({"add_data_extension": ["bev_visibility.png"]}, "bev_visibility"),
    ],
)
def test_data_sets_of_heal_that_need_more_than_clouds(
    changes: dict[str, Any], message: str
) -> None:
    hypes: dict[str, Any] = {
        "fusion": {"core_method": "late", "dataset": "opv2v"},
        "label_type": "lidar",
        "input_source": ["lidar"],
        **changes,
    }
    nothing: Any = None
    with pytest.raises(UserError, match=message):
        HEAL().dataset_class(nothing, hypes)


@pytest.mark.parametrize("name", ["v2xreal", "coopre"])
def test_a_missing_mode_is_said(name: str) -> None:
    with pytest.raises(UserError, match="dataset_mode must be one of vc, ic, v2v, i2i"):
        HOSTS[name]().agent_order(AGENTS, {}, train=False)


def test_a_split_without_anyone_to_lead(fake_host: Path, tmp_path: Path) -> None:
    write_scene(tmp_path / "validate", junction_scene("a", frames=2, infrastructure=False))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HOSTS["opencood"], "agent_order", HOSTS["coopre"].agent_order)
        with pytest.raises(UserError, match=r"validate: no agent that may lead"):  # noqa: SIM117
            with data_set(fake_host, tmp_path, tmp_path, turbotrain=ours(), dataset_mode="i2i"):
                pass
