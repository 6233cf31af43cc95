"""Hypes files: aliases, errors with the nearest name, includes, overrides, round trips."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from turbotrain_plugin.config import (
    RunConfig,
    difference,
    explain,
    find_hypes,
    load_hypes,
    shipped_hypes,
    shipped_hypes_dir,
    to_yaml,
)
from turbotrain_plugin.errors import UserError

SHIPPED = sorted(shipped_hypes())


def write(folder: Path, text: str, name: str = "run.yaml") -> Path:
    file = folder / name
    file.write_text(text)
    return file


@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_file_is_valid_and_survives_a_round_trip(name: str, tmp_path: Path) -> None:
    config = load_hypes(name)
    assert load_hypes(write(tmp_path, to_yaml(config))) == config


@pytest.mark.parametrize(
    "method", ["attfuse", "cobevflow", "disconet", "fcooper", "ffnet", "v2vnet", "v2xvit"]
)
def test_hypes_of_other_fusions_differ_in_nothing_but_fusion(method: str) -> None:
    other, base = load_hypes(f"turbotrain_{method}.yaml"), load_hypes("turbotrain_v2xpnp.yaml")
    changed = {name: value for name, value, _ in difference(other, base)}
    own = {"ffn": 256, "dropout": 0.3} if method == "v2xvit" else {}
    expected: dict[str, object] = {f"model.args.fusion.{key}": own[key] for key in own}
    expected["model.args.fusion.core_method"] = method
    assert changed == {"name": f"turbotrain_{method}", **expected}


NO_BALANCE: dict[str, object] = {"turbotrain.strategy": "turbotrain_no_balance"}
DIFFERENCES: dict[str, dict[str, object]] = {
    "one_time_v2xpnp": {"turbotrain.strategy": "one_time"},
    "one_time_v2xpnp_single_frame": {
        "turbotrain.strategy": "one_time",
        "model.args.prediction": False,
        "model.args.map.enabled": False,
        "turbotrain.data.hist_frames": 1,
    },
    "one_time_v2xpnp_single_agent": {"turbotrain.strategy": "one_time_single_agent"},
    "manual_v2xpnp": {"turbotrain.strategy": "manual"},
    "turbotrain_v2xpnp_no_balance": NO_BALANCE,
    "pretrain_without_agent_fusion": NO_BALANCE | {"turbotrain.pretrain.agent_fusion": False},
    "pretrain_points_only": NO_BALANCE | {"turbotrain.pretrain.occ.weight": 0.0},
    "pretrain_occupancy_only": NO_BALANCE | {"turbotrain.pretrain.points.weight": 0.0},
    "pretrain_half_history": NO_BALANCE
    | {"turbotrain.pretrain.hist_frames": 3, "turbotrain.pretrain.min_coverage": 0.95},
    "pretrain_mask_70": NO_BALANCE,
    "pretrain_mask_80": NO_BALANCE | {"turbotrain.pretrain.mask.ratio": 0.8},
    "pretrain_mask_90": NO_BALANCE | {"turbotrain.pretrain.mask.ratio": 0.9},
    "pretrain_scope_tube": NO_BALANCE | {"turbotrain.pretrain.mask.scope": "tube"},
    "pretrain_scope_shared": NO_BALANCE | {"turbotrain.pretrain.mask.scope": "shared"},
    "pretrain_drop_sites": NO_BALANCE | {"turbotrain.pretrain.mask.mode": "drop"},
    "pretrain_all_frames": NO_BALANCE | {"turbotrain.pretrain.target_frames": "all"},
    "balance_1000_500": {
        "turbotrain.balance.free_steps": 1000,
        "turbotrain.balance.balance_steps": 500,
    },
    "balance_2000_1000": {},
    "balance_3000_1500": {
        "turbotrain.balance.free_steps": 3000,
        "turbotrain.balance.balance_steps": 1500,
    },
    "balance_every_step": {
        "turbotrain.balance.free_steps": 0,
        "turbotrain.balance.balance_steps": 1,
    },
}


@pytest.mark.parametrize("name", DIFFERENCES)
def test_strategies_and_ablations_differ_in_nothing_but_what_they_are_about(name: str) -> None:
    other, base = load_hypes(f"{name}.yaml"), load_hypes("turbotrain_v2xpnp.yaml")
    changed = {key: value for key, value, _ in difference(other, base)}
    assert changed == {"name": name, **DIFFERENCES[name]}


def test_every_ablation_is_held_to_what_it_is_about() -> None:
    ablations = {path.stem for path in (shipped_hypes_dir() / "ablations").glob("*.yaml")}
    assert ablations
    assert ablations <= set(DIFFERENCES)


def test_paper_values() -> None:
    config = load_hypes("turbotrain_v2xpnp.yaml")
    assert config.preprocess.args.voxel_size == (0.1, 0.1, 0.2)
    assert config.preprocess.args.max_points_per_voxel == 5
    assert config.preprocess.args.max_voxel_train == 32000
    assert config.preprocess.cav_lidar_range[:2] == (-102.4, -40.0)
    pretrain = config.turbotrain.pretrain
    assert (pretrain.epoches, pretrain.batch_size, pretrain.mask.ratio) == (15, 4, 0.7)
    assert pretrain.optimizer.core_method == "AdamW"
    assert pretrain.optimizer.args.weight_decay == 1e-2
    assert pretrain.lr_scheduler.core_method == "cosine"
    assert config.turbotrain.balance.free_steps == 2000
    assert config.turbotrain.balance.balance_steps == 1000
    assert config.comm_range == 50


def test_opencood_habits_are_accepted(tmp_path: Path) -> None:
    text = """
name: x
root_dir: /data/train
yaml_parser: "load_point_pillar_params"
train_params: &tp {batch_size: 2, epoches: 7}
fusion: {core_method: IntermediateFusionDataset, args: []}
preprocess:
  cav_lidar_range: &range [-51.2, -25.6, -5, 51.2, 25.6, 3]
postprocess:
  anchor_args: {cav_lidar_range: *range, r: [0, 90], vw: 0.1}
optimizer: {core_method: Adam, lr: 1e-4, args: {eps: 1e-10}}
lr_scheduler: {core_method: step, step_size: 10, warmup_epoches: 1}
"""
    config = load_hypes(write(tmp_path, text))
    assert config.root_dir == ("/data/train",)
    assert config.train_params.epoches == 7
    assert config.optimizer.lr == 1e-4
    assert config.lr_scheduler.step_size == (10,)
    assert config.fusion.args.proj_first is True


def test_aliases(tmp_path: Path) -> None:
    config = load_hypes(write(tmp_path, "train_params: {epochs: 3}\nturbotrain: {balance: {n: 5}}"))
    assert config.train_params.epoches == 3
    assert config.turbotrain.balance.free_steps == 5
    with pytest.raises(UserError, match=r"alias are both given"):
        load_hypes(write(tmp_path, "train_params: {epochs: 3, epoches: 4}"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trian_params: {}", r"run\.yaml:1: unknown key 'trian_params'.*'train_params'"),
        ("a: 1\n", r"run\.yaml:1: unknown key 'a'"),
        ("optimizer:\n  lrr: 1\n", r"run\.yaml:2: unknown key 'optimizer\.lrr'.*'lr'"),
        ("optimizer: {lr: fast}", r"optimizer\.lr must be a number. Found 'fast'"),
        ("optimizer: {lr: true}", r"optimizer\.lr must be a number. Found True"),
        ("seed: 1.5", r"seed must be a whole number. Found 1.5"),
        ("name: [a]", r"name must be a text"),
        ("dataset_mode: vcc", r"must be one of 'vc'.*Did you mean 'vc'"),
        ("preprocess: {cav_lidar_range: [1, 2]}", "must hold 6 values. Found 2"),
        ("optimizer: 3", r"run\.yaml:1: optimizer must be a mapping"),
        ("- a", "must be a mapping"),
        ("yaml_parser: \"__import__('os').system('x')\"", "yaml_parser must be one of"),
        ("data_augment: [{NAME: shear}]", r"data_augment\[0\]\.NAME must be one of"),
    ],
)
def test_mistakes_name_file_line_key_and_remedy(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        load_hypes(write(tmp_path, text))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.args.channels=30", "must divide model.args.channels 30"),
        ("turbotrain.pretrain.mask.ratio=1.0", r"must lie in \[0, 1\)"),
        ("turbotrain.pretrain.epoches=0", "epoches 0 skips pretraining, which needs weights"),
        ("turbotrain.pretrain.epoches=-1", "epoches must not be negative"),
        ("turbotrain.pretrain.init_rename=[a=b]", "nothing to rename: init is empty"),
        ("turbotrain={strategy: one_time, pretrain: {init: x}}", "for strategies that pretrain"),
        (
            "turbotrain={strategy: pretrain_only, pretrain: {init: x, epoches: 0}}",
            "a strategy that goes on",
        ),
        ("postprocess.anchor_args.num=3", "must equal the number of yaws"),
        ("train_params.batch_size=0", "must be at least 1"),
        ("turbotrain.balance.free_steps=-1", "must not be negative"),
        ("turbotrain.balance={free_steps: 0, balance_steps: 0}", "cannot both be 0"),
        ("turbotrain.pretrain={points: {weight: 0}, occ: {weight: 0}}", "both are off"),
        ("postprocess.target_args.neg_threshold=0.9", "neg_threshold <= pos_threshold"),
        ("optimizer.lr=0", "lr must be positive"),
        ("comm_range=-1", "comm_range must be positive"),
        ("model.args.compression.ratio=7", "must be 0 or divide"),
        ("model.args.fusion.windows=[4]", "same length"),
        ("model.args.fusion={core_method: v2xvit, windows: [4]}", "same length"),
        ("model.args.fusion={core_method: v2xvit, heads: 7}", "must divide model.args.channels"),
        (
            "model.args.fusion={core_method: v2vnet, gru_state: none}",
            "must be one of 'map', 'zero'",
        ),
        ("model.args.fusion={core_method: v2vnet, rounds: 0}", "rounds must be at least 1"),
        ("turbotrain.manual.epoches=[1, 2, 3]", r"each of the four stages.*Found \[1, 2, 3\]"),
        ("turbotrain.manual.epoches=[1, 2, 3, 0]", r"at least 1 for each of the four"),
        ("turbotrain.manual.weighting=pcgrad", "must be one of 'dwa', 'uncertainty', 'none'"),
        ("turbotrain.pretrain.hist_frames=6", r"hist_frames must lie in \[0, 5\]"),
        ("turbotrain.pretrain.hist_frames=-1", r"hist_frames must lie in \[0, 5\]"),
        ("turbotrain.pretrain.hist_frames=3", "min_coverage must be below 1"),
        ("seed=-1", "seed must not be negative"),
        ("data_augment=[{NAME: random_world_flip, ALONG_AXIS_LIST: [z]}]", r"x and y only.*'z'"),
        ("data_augment=[{WORLD_ROT_ANGLE: [1, 0]}]", r"data_augment\[0\]\.WORLD_ROT_ANGLE must be"),
        ("data_augment=[{WORLD_ROT_ANGLE: [0, 1, 2]}]", r"smallest and largest, rad"),
        ("data_augment=[{WORLD_ROT_ANGLE: []}]", r"WORLD_ROT_ANGLE.*Found \[\]"),
        ("data_augment=[{WORLD_SCALE_RANGE: [0, 1]}]", r"WORLD_SCALE_RANGE must be positive"),
        ("turbotrain.data.num_workers=-1", "num_workers must not be negative"),
        ("turbotrain.logging.keep=-1", "keep must not be negative"),
        ("turbotrain.max_bad_steps=0", "max_bad_steps must be at least 1"),
        ("postprocess.anchor_args.feature_stride=0", "feature_stride must be at least 1"),
        ("postprocess.anchor_args.feature_stride=7", "along x .*divisible by feature_stride 7"),
        ("preprocess.cav_lidar_range=[9, -40, -5, 1, 40, 3]", "along x must be a positive whole"),
        ("preprocess.cav_lidar_range=[0, -40, -5, 80, 40, 3.1]", "along z must be a positive"),
        ("turbotrain.evaluation.range=[9, 0, 0, 1, 1, 1]", "must give x, y, z min, then max"),
        ("optimizer.args.betas=[1.5, 0.9]", r"optimizer\.args\.betas must lie in \[0, 1\)"),
        ("turbotrain.pretrain.optimizer.args.weight_decay=-1", "must not be negative"),
        ("lr_scheduler={core_method: step, step_size: []}", "step_size must be at least 1"),
        ("lr_scheduler={core_method: step, step_size: 0}", "step_size must be at least 1"),
        ("lr_scheduler.warmup_epoches=-1", "warmup_epoches must not be negative"),
        ("turbotrain.evaluation.iou=[50]", r"iou must hold thresholds in \(0, 1\]"),
        ("model.args.map.dropout=1", r"map\.dropout must lie in \[0, 1\)"),
        ("model.args.fusion.windows=[0, 4, 8]", "windows must be at least 1"),
        ("turbotrain.evaluation.iou=[]", "iou must hold thresholds"),
        ("turbotrain={monitor: ap_0.70, evaluation: {iou: [0.5]}}", "ap_0.70 is not measured"),
        ("turbotrain.pretrain.points.z_scale=0", "z_scale must be positive"),
        ("turbotrain.balance.args.dwa.temperature=0", "args.dwa.temperature must be positive"),
        ("turbotrain.balance.args.dwa.window=0", "args.dwa.window must be positive"),
        ("turbotrain.balance.args.gradnorm.lr=0", "args.gradnorm.lr must be positive"),
        ("turbotrain.balance.args.cagrad.c=-1", "args.cagrad.c must not be negative"),
        ("turbotrain.balance.args.moco.beta=2", "args.moco.beta must be at most 1"),
        ("turbotrain.balance.args.moco.beta=0", "args.moco.beta must be positive"),
        ("turbotrain.balance.args.pcgrad.seed=-1", "args.pcgrad.seed must not be negative"),
    ],
)
def test_impossible_settings_are_refused(override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_hypes("turbotrain_v2xpnp.yaml", [override])


def test_overrides_win_and_are_named_in_errors() -> None:
    config = load_hypes("turbotrain_v2xpnp.yaml", ["optimizer.lr=1e-5", "root_dir=[a, b]"])
    assert config.optimizer.lr == 1e-5
    assert config.root_dir == ("a", "b")
    with pytest.raises(UserError, match=r"^-o optimizer\.lrr=1: unknown key"):
        load_hypes("turbotrain_v2xpnp.yaml", ["optimizer.lrr=1"])
    with pytest.raises(UserError, match=r"must read key\.sub=value"):
        load_hypes("turbotrain_v2xpnp.yaml", ["optimizer"])


def test_includes_lay_files_over_fragments(tmp_path: Path) -> None:
    write(tmp_path, "optimizer: {lr: 1, args: {eps: 1e-3}}\nseed: 4", "a.yaml")
    write(tmp_path, "_base_: a.yaml\noptimizer: {lr: 2}", "b.yaml")
    config = load_hypes(write(tmp_path, "_base_: [b.yaml]\nseed: 5"))
    assert (config.optimizer.lr, config.optimizer.args.eps, config.seed) == (2.0, 1e-3, 5)


def test_include_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run\.yaml:1: _base_ names 'gone.yaml'"):
        load_hypes(write(tmp_path, "_base_: gone.yaml"))
    with pytest.raises(UserError, match="includes the file itself"):
        load_hypes(write(tmp_path, "_base_: run.yaml"))


def test_error_inside_a_fragment_names_the_fragment(tmp_path: Path) -> None:
    write(tmp_path, "seed: 1\noptimizer: {lrr: 1}", "frag.yaml")
    with pytest.raises(UserError, match=r"frag\.yaml:2: unknown key 'optimizer\.lrr'"):
        load_hypes(write(tmp_path, "_base_: frag.yaml"))


def test_finding_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_hypes("turbotrain_v2xpnp.yaml").parent == shipped_hypes_dir()
    ablation = shipped_hypes_dir() / "ablations" / "balance_1000_500.yaml"
    assert find_hypes("balance_1000_500.yaml") == ablation
    assert find_hypes("ablations/balance_1000_500.yaml") == ablation
    with pytest.raises(UserError, match=r"no hypes file 'ablations/turbotrain_v2xpnp\.yaml'"):
        find_hypes("ablations/turbotrain_v2xpnp.yaml")
    with pytest.raises(UserError, match=r"Did you mean 'balance_1000_500\.yaml'"):
        find_hypes("balance_1000_50.yaml")
    with pytest.raises(UserError, match="no hypes file"):
        find_hypes("turbotrain_paper.yaml")  # a fragment is no file to train
    own = write(tmp_path, "seed: 9", "turbotrain_v2xpnp.yaml")
    assert find_hypes("turbotrain_v2xpnp.yaml").resolve() == own
    with pytest.raises(UserError, match=r"Did you mean 'turbotrain_v2xpnp\.yaml'"):
        find_hypes("turbotrain_v2xpn.yaml")
    with pytest.raises(UserError, match="no hypes file"):
        find_hypes(tmp_path / "sub" / "turbotrain_v2xpnp.yaml")


def test_difference_lists_only_what_differs() -> None:
    first = load_hypes("turbotrain_v2xpnp.yaml")
    second = load_hypes("turbotrain_v2xpnp.yaml", ["seed=3"])
    assert difference(first, second) == [("seed", 0, 3)]
    assert difference(first, first) == []


def test_every_key_is_explained() -> None:
    entries = list(explain())
    assert len(entries) > 100
    assert all(text.endswith((".", ")")) and len(text) > 4 for _, _, text in entries)


def test_configuration_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().seed = 3  # type: ignore[misc]


def test_normalising_together_where_some_processes_skip_a_network_is_refused() -> None:
    keys = [
        "turbotrain.sync_batchnorm=true",
        "model.args.fusion.core_method=ffnet",
        "wild_setting={async: true, async_overhead: 200}",
    ]
    with pytest.raises(UserError, match="would wait for ever"):
        load_hypes("turbotrain_v2xpnp.yaml", keys)
    for key in keys:
        load_hypes("turbotrain_v2xpnp.yaml", [other for other in keys if other != key])


def test_patience_without_validation_is_refused() -> None:
    keys = ["train_params.eval_freq=0", "turbotrain.patience=3"]
    with pytest.raises(UserError, match="patience needs validations"):
        load_hypes("turbotrain_v2xpnp.yaml", keys)


def test_of_a_key_and_its_alias_the_later_file_rules(tmp_path: Path) -> None:
    """Fragment, file and override spell one key in two ways; the override comes last."""
    write(tmp_path, "train_params: {epoches: 15}", "base.yaml")
    file = write(tmp_path, "_base_: base.yaml\ntrain_params: {epochs: 10}")
    assert load_hypes(file).train_params.epoches == 10
    assert load_hypes(file, ["train_params.epoches=1"]).train_params.epoches == 1


@pytest.mark.parametrize("text", ["a: \x00", "seed: !!bool maybe", "seed: !!int x"])
def test_what_yaml_itself_chokes_on(text: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run\.yaml: not valid YAML"):
        load_hypes(write(tmp_path, text))


def test_every_folder_of_hypes_is_shipped_and_no_name_comes_twice() -> None:
    folder = shipped_hypes_dir()
    setup = (folder.parent / "setup.py").read_text(encoding="utf-8")
    files = list(folder.rglob("*.yaml"))
    for parent in {file.parent for file in files}:
        assert f'"{parent.relative_to(folder.parent).as_posix()}"' in setup, parent
    named = [file for file in files if not file.parent.name.startswith("_")]
    assert set(shipped_hypes().values()) == set(named)
