"""Latency, pose noise and losses: who is touched, by how much, and that labels never are."""

from __future__ import annotations

import logging
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers.made_scenes import (
    MadeAgent,
    MadeObject,
    MadeScene,
    junction_scene,
    lidar_points,
    world_SE3_lidar,
    write_root,
)
from turbotrain_plugin.config import (
    AugmentStep,
    DataConfig,
    Preprocess,
    RunConfig,
    TurboTrainBlock,
    WildSetting,
    load_hypes,
    to_yaml,
)
from turbotrain_plugin.config.data import PreprocessArgs
from turbotrain_plugin.data import CooperativeDataset, PreparedSample, SampleKey, make_loader
from turbotrain_plugin.data.disturb import Disturbances, Effect
from turbotrain_plugin.geometry.poses import matrix_to_pose, pose_to_matrix
from turbotrain_plugin.structures import Sample, UserError

FRAMES = 14
HISTORY = 2

LATE = WildSetting(async_=True, async_overhead=200.0)
ASTRAY = WildSetting(loc_err=True, xyz_std=0.5, ryp_std=2.0)
BOTH = WildSetting(async_=True, async_overhead=100.0, loc_err=True, xyz_std=0.3, ryp_std=1.0)


def config_of(
    wild: WildSetting | None = None,
    drop_out: float = 0.0,
    **data: Any,  # noqa: ANN401
) -> RunConfig:
    keys: dict[str, Any] = {"hist_frames": HISTORY, "future_steps": 2, "num_workers": 0, **data}
    return RunConfig(
        wild_setting=wild or WildSetting(),
        data_augment=(
            AugmentStep(NAME="random_world_flip"),
            AugmentStep(NAME="random_world_rotation"),
            AugmentStep(NAME="random_world_scaling"),
        ),
        preprocess=Preprocess(
            cav_lidar_range=(-51.2, -38.4, -8.0, 51.2, 38.4, 0.0),
            args=PreprocessArgs(voxel_size=(0.4, 0.4, 0.2), max_voxel_train=60),
        ),
        turbotrain=TurboTrainBlock(data=DataConfig(drop_out=drop_out, **keys)),
    )


MADE = junction_scene("2023-01-01-00-00-00_1_0", frames=FRAMES)
MADE = replace(
    MADE,
    agents=(
        MADE.agents[0],
        replace(MADE.agents[1], velocity_mps=(-6.0, 2.0)),
        *MADE.agents[2:],
    ),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_root(tmp_path_factory.mktemp("disturb"), {"train": [MADE]})


def dataset(
    root: Path,
    wild: WildSetting | None = None,
    drop_out: float = 0.0,
    purpose: str = "train",
    **data: Any,  # noqa: ANN401
) -> CooperativeDataset:
    config = config_of(wild, drop_out, **data)
    return CooperativeDataset(config, [root], split="train", purpose=purpose)


def same(one: PreparedSample, two: PreparedSample) -> bool:
    pairs = zip(one.arrays(), two.arrays(), strict=True)
    return all(a.dtype == b.dtype and a.tobytes() == b.tobytes() for a, b in pairs)


def draws(
    wild: WildSetting, drop_out: float = 0.0, agent: int = 2, count: int = 4000
) -> list[Effect]:
    disturbances = Disturbances(wild, drop_out)
    return [disturbances.draw(i // 50, i % 50, agent) for i in range(count)]


# --------------------------------------------------------------------------------------- the block


def test_the_block_of_opencood_is_read_and_written(tmp_path: Path) -> None:
    """As in a shipped V2X-ViT file; `async` is a word of Python, and yet the key's name."""
    file = tmp_path / "wild.yaml"
    file.write_text(
        "wild_setting: &wild\n  async: true\n  async_mode: 'sim'\n  async_overhead: 100\n"
        "  seed: 25\n  loc_err: true\n  xyz_std: 0.2\n  ryp_std: 0.2\n"
        "  data_size: 1.06 # Mb!!\n  transmission_speed: 27\n  backbone_delay: 10 # ms\n"
    )
    config = load_hypes(file)
    assert config.wild_setting == WildSetting(
        async_=True, async_mode="sim", async_overhead=100.0, seed=25, loc_err=True, xyz_std=0.2,
        ryp_std=0.2, data_size=1.06, transmission_speed=27.0, backbone_delay=10.0,
    )  # fmt: skip
    text = to_yaml(config)
    assert "async: true" in text
    again = tmp_path / "again.yaml"
    again.write_text(text)
    assert load_hypes(again, ["wild_setting.async=false"]).wild_setting == replace(
        config.wild_setting, async_=False
    )


def test_keys_are_also_read_under_the_name_of_their_field(tmp_path: Path) -> None:
    """Run folders written before the underscore went away."""
    file = tmp_path / "old.yaml"
    file.write_text("turbotrain: {balance: {args: {torchjd: {lambda_: 0.5}}}}")
    assert load_hypes(file).turbotrain.balance.args.torchjd.lambda_ == 0.5
    file.write_text("turbotrain: {balance: {args: {torchjd: {lambda: 0.5, lambda_: 0.5}}}}")
    with pytest.raises(UserError, match="both given"):
        load_hypes(file)


@pytest.mark.parametrize(
    "wild",
    [
        WildSetting(),
        WildSetting(async_overhead=300.0, xyz_std=1.0, ryp_std=1.0),  # both switches are off
        WildSetting(async_=True, loc_err=True),  # on, and nothing to do
    ],
)
def test_nothing_is_disturbed_unless_asked_for(root: Path, wild: WildSetting) -> None:
    data, plain = dataset(root, wild), dataset(root)
    assert data.disturbances is None
    assert same(data[SampleKey(3, 12)], plain[SampleKey(3, 12)])


def test_latency_below_a_frame_is_none_and_said_so(caplog: pytest.LogCaptureFixture) -> None:
    """CooPre's files say 60 ms."""
    caplog.set_level(logging.WARNING, "turbotrain_plugin")
    logging.getLogger("turbotrain_plugin").propagate = True
    wild = WildSetting(async_=True, async_overhead=60.0)
    disturbances = Disturbances.from_config(config_of(wild))
    assert disturbances is not None
    assert disturbances.draw(0, 0, 2) == Effect()
    assert "less than a frame of 100 ms" in caplog.text


# ------------------------------------------------------------------------ labels and ego stay as is

CASES = [
    pytest.param(LATE, 0.0, id="late"),
    pytest.param(ASTRAY, 0.0, id="astray"),
    pytest.param(WildSetting(), 0.6, id="lost"),
    pytest.param(replace(BOTH, seed=7), 0.3, id="all"),
]


@pytest.mark.parametrize("purpose", ["train", "evaluate"])
@pytest.mark.parametrize(("wild", "drop_out"), CASES)
def test_labels_and_targets_are_unchanged_bit_for_bit(
    root: Path, wild: WildSetting, drop_out: float, purpose: str
) -> None:
    plain, disturbed = dataset(root, None, 0.0, purpose), dataset(root, wild, drop_out, purpose)
    touched = 0
    for epoch in (0, 5):
        for index in range(2, FRAMES, 3):
            one, two = plain[SampleKey(epoch, index)], disturbed[SampleKey(epoch, index)]
            assert one.key == two.key
            assert one.truth is not None
            assert two.truth is not None
            for item in fields(one.truth):
                a, b = getattr(one.truth, item.name), getattr(two.truth, item.name)
                assert a.dtype == b.dtype
                assert a.tobytes() == b.tobytes(), item.name
            assert one.targets is not None
            assert two.targets is not None
            for item in fields(one.targets):
                a, b = getattr(one.targets, item.name), getattr(two.targets, item.name)
                assert a.tobytes() == b.tobytes(), item.name
            touched += not same(one, two)
    assert touched >= 4


@pytest.mark.parametrize(("wild", "drop_out"), CASES)
def test_the_ego_is_untouched_bit_for_bit(root: Path, wild: WildSetting, drop_out: float) -> None:
    plain, disturbed = dataset(root), dataset(root, wild, drop_out)
    for epoch in range(4):  # other egos
        one, two = plain[SampleKey(epoch, 11)], disturbed[SampleKey(epoch, 11)]
        assert two.time_offset_s[0] == 0
        np.testing.assert_array_equal(one.ego_SE3_agent[0], two.ego_SE3_agent[0])
        np.testing.assert_array_equal(one.frame_valid[0], two.frame_valid[0])
        own = [s.voxels.coordinates[:, 0] < HISTORY for s in (one, two)]
        for name in ("points", "coordinates", "counts"):
            a, b = (getattr(s.voxels, name)[rows] for s, rows in zip((one, two), own, strict=True))
            assert a.tobytes() == b.tobytes(), name


def test_pretraining_is_undisturbed(root: Path) -> None:
    """What it rebuilds are the clouds: wrong ones would be wrong labels."""
    plain, disturbed = (dataset(root, w, d, "pretrain") for w, d in ((None, 0.0), (BOTH, 0.5)))
    assert same(plain[SampleKey(1, 9)], disturbed[SampleKey(1, 9)])


# ----------------------------------------------------------------------------------------- latency


def expected_cloud(agent: MadeAgent, frame: int, now: int) -> np.ndarray[Any, Any]:
    """The agent's cloud of ``frame`` in the frame of agent 1 at ``now``, without self hits."""
    own = lidar_points(MADE, agent, frame).astype(np.float64)
    if agent.agent_id > 0:
        hit = (own[:, 0] >= -1.95) & (own[:, 0] <= 2.95) & (np.abs(own[:, 1]) <= 1.1)
        own = own[~hit]
    to_ego = np.linalg.inv(world_SE3_lidar(MADE.agents[0], now)) @ world_SE3_lidar(agent, frame)
    moved: np.ndarray[Any, Any] = own[:, :3] @ to_ego[:3, :3].T + to_ego[:3, 3]
    return moved


@pytest.mark.parametrize(
    ("overhead_ms", "frames"), [(100.0, 1), (199.0, 1), (200.0, 2), (400.0, 4), (430.0, 4)]
)
def test_late_neighbours_send_clouds_and_poses_of_earlier(
    root: Path, overhead_ms: float, frames: int
) -> None:
    wild = WildSetting(async_=True, async_overhead=overhead_ms)
    sample = dataset(root, wild, 0.0, "evaluate").sample(SampleKey(0, 12))
    assert len(sample.agent_ids) == 4
    late = [0.0] + [frames * 0.1] * 3
    np.testing.assert_allclose(sample.time_offset_s, late, atol=1e-6)  # positive: an age
    by_id = {agent.agent_id: agent for agent in MADE.agents}
    for a, agent_id in enumerate(sample.agent_ids):
        delay = frames if a else 0
        for t, offset in enumerate((-5, 0)):
            expected = expected_cloud(by_id[agent_id], 12 - delay + offset, 12)
            np.testing.assert_allclose(sample.points[a][t][:, :3], expected, atol=3e-5)
            pose = world_SE3_lidar(by_id[agent_id], 12 - delay + offset)
            to_ego = np.linalg.inv(world_SE3_lidar(MADE.agents[0], 12)) @ pose
            np.testing.assert_allclose(sample.ego_SE3_agent[a, t], to_ego, atol=1e-5)


def test_latency_reaches_the_batch(root: Path) -> None:
    data = dataset(root, LATE, 0.0, "evaluate", sample_stride=6)
    batches = list(make_loader(data, batch_size=3, epoch=0, shuffle=False))
    (batch,) = batches
    is_ego = torch.zeros(int(batch.record_len.sum()), dtype=torch.bool)
    is_ego[torch.cumsum(batch.record_len, 0) - batch.record_len] = True
    assert batch.time_offset_s[is_ego].tolist() == [0.0] * 3
    torch.testing.assert_close(
        batch.time_offset_s[~is_ego], torch.full((int((~is_ego).sum()),), 0.2)
    )
    assert (~is_ego).sum() == 6  # at frame 0 nothing has arrived yet


def test_whose_first_message_is_on_its_way_is_not_heard(root: Path) -> None:
    data = dataset(root, LATE, 0.0, "evaluate")
    heard = [len(data.sample(SampleKey(0, index)).agent_ids) for index in range(4)]
    assert heard == [1, 1, 4, 4]


def test_where_a_cloud_is_missing_the_newest_before_it_has_arrived(tmp_path: Path) -> None:
    agents = (MADE.agents[0], replace(MADE.agents[1], without_cloud=frozenset({9, 10})))
    root = write_root(tmp_path, {"train": [replace(MADE, agents=agents)]}, with_map=False)
    data = dataset(root, LATE, 0.0, "evaluate")
    ages = [data.sample(SampleKey(0, i)).time_offset_s.tolist() for i in (8, 11, 12, 13)]
    np.testing.assert_allclose([age[1] for age in ages], [0.2, 0.3, 0.4, 0.2], atol=1e-6)
    expected = expected_cloud(agents[1], 8, 12)
    sample = data.sample(SampleKey(0, 12))
    np.testing.assert_allclose(sample.points[1][-1][:, :3], expected, atol=3e-5)
    # At frame 10 the neighbour has no cloud of now and is no member of the team, late or not.
    assert len(data.sample(SampleKey(0, 10)).agent_ids) == 1


def test_who_has_been_silent_for_a_step_longer_is_not_heard(tmp_path: Path) -> None:
    silent = frozenset(range(5, 12))
    agents = (MADE.agents[0], replace(MADE.agents[1], without_cloud=silent))
    root = write_root(tmp_path, {"train": [replace(MADE, agents=agents)]}, with_map=False)
    # Frame 12 has a cloud; 200 ms before it there are none since frame 4, eight frames old.
    for step, heard in ((6, 1), (7, 2)):
        data = dataset(root, LATE, 0.0, "evaluate", step_frames=step)
        assert len(data.sample(SampleKey(0, 12)).agent_ids) == heard


def test_thinned_recordings_round_latency_up_and_say_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "turbotrain_plugin")
    logging.getLogger("turbotrain_plugin").propagate = True
    between = frozenset(frame for frame in range(FRAMES) if frame % 5)
    agents = tuple(replace(agent, without_cloud=between) for agent in MADE.agents)
    root = write_root(tmp_path, {"train": [replace(MADE, agents=agents)]}, with_map=False)
    dataset(root, None, 0.5)
    assert "apart" not in caplog.text
    data = dataset(root, LATE, 0.0, "evaluate")
    assert "Clouds are 500 ms apart" in caplog.text
    np.testing.assert_allclose(data.sample(SampleKey(0, 2)).time_offset_s, [0, 0.5, 0.5, 0.5])


def test_who_is_kept_is_decided_by_where_they_are_now(tmp_path: Path) -> None:
    """49 m away now, 53 m when the message was sent; and the other way round."""
    agents = (
        MadeAgent(1, (0.0, 0.0, 1.9)),
        MadeAgent(2, (59.0, 0.0, 1.9), velocity_mps=(-10.0, 0.0)),
        MadeAgent(3, (0.0, 46.0, 1.9), velocity_mps=(0.0, 5.0)),
    )
    made = MadeScene("s_1_0", agents, (MadeObject(5, (20.0, 5.0, 0.8)),), frames=13)
    write_root(tmp_path, {"train": [made]})
    data = dataset(tmp_path, replace(LATE, async_overhead=400.0), 0.0, "evaluate")
    assert data.sample(SampleKey(0, 10)).agent_ids == (1, 2)


def test_real_latency_is_overhead_transmission_and_backbone() -> None:
    """1.06 Mb at 27 Mb/s: 39.3 ms; with the backbone's 60 ms: 99.3 ms before any waiting."""
    wild = WildSetting(
        async_=True, async_mode="real", async_overhead=200.0, data_size=1.06, backbone_delay=60.0
    )
    frames = [effect.delay_frames for effect in draws(wild)]
    shares = np.bincount(frames, minlength=4) / len(frames)
    # Waiting is uniform over 200 ms: [0, 0.74) stays below 100 ms, [0.74, 100.74) below 200 ms.
    np.testing.assert_allclose(shares, [0.0037, 0.5, 0.4963, 0.0], atol=0.02)
    exact = WildSetting(async_=True, async_mode="real", data_size=2.7)
    assert Disturbances(exact, 0.0).draw(0, 0, 1).delay_frames == 1


# -------------------------------------------------------------------------------------- pose noise


def test_a_wrong_pose_is_the_file_s_pose_with_errors_added() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        pose = np.concatenate([rng.normal(0, 300, 3), rng.uniform([-20, -180, -20], [20, 180, 20])])
        shift, turn_deg = rng.normal(0, 1, 3), float(rng.normal(0, 5))
        effect = Effect(shift_m=tuple(shift.tolist()), turn_rad=math.radians(turn_deg))
        expected = pose_to_matrix(pose + np.array([*shift, 0.0, turn_deg, 0.0]))
        np.testing.assert_allclose(effect.pose(pose_to_matrix(pose)), expected, atol=1e-9)


def test_pose_noise_has_the_asked_spread() -> None:
    effects = draws(replace(ASTRAY, xyz_std=0.4, ryp_std=3.0))
    values = np.array([[*e.shift_m, math.degrees(e.turn_rad)] for e in effects])
    std = np.array([0.4, 0.4, 0.4, 3.0])
    count = len(values)
    assert np.abs(values.mean(0) / std).max() < 4 / math.sqrt(count)
    np.testing.assert_allclose(values.std(0) / std, 1.0, atol=4 / math.sqrt(2 * count))
    correlation = np.corrcoef(values.T) - np.eye(4)
    assert np.abs(correlation).max() < 4.5 / math.sqrt(count)
    # A normal: 68.3 % within one deviation, 95.4 % within two.
    inside = [(np.abs(values / std) < k).mean() for k in (1, 2)]
    np.testing.assert_allclose(inside, [0.683, 0.954], atol=0.02)


@pytest.mark.parametrize("change", [{"seed": 1}, {"epoch": 1}, {"index": 1}, {"agent": -2}])
def test_draws_depend_on_seed_epoch_sample_and_agent(change: dict[str, int]) -> None:
    base = {"seed": 0, "epoch": 0, "index": 0, "agent": 2}

    def shifts(keys: dict[str, int]) -> np.ndarray[Any, Any]:
        drawn = [
            Disturbances(replace(ASTRAY, seed=keys["seed"] + 100 * i), 0.0)
            .draw(keys["epoch"], keys["index"], keys["agent"])
            .shift_m
            for i in range(300)
        ]
        return np.array(drawn).ravel()

    one, two = shifts(base), shifts({**base, **change})
    np.testing.assert_array_equal(one, shifts(base))
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.15


def test_values_of_a_sweep_share_their_draws() -> None:
    """Twice the deviation, twice the error; more losses, the same ones and others."""
    small, large = (draws(replace(ASTRAY, xyz_std=std), 0.0, count=50) for std in (0.2, 0.4))
    for one, two in zip(small, large, strict=True):
        np.testing.assert_allclose(2 * np.array(one.shift_m), two.shift_m)
        assert one.turn_rad == two.turn_rad
    few, many = (draws(WildSetting(), share, count=500) for share in (0.2, 0.5))
    assert all(two.lost for one, two in zip(few, many, strict=True) if one.lost)
    real = replace(ASTRAY, async_=True, async_mode="real", async_overhead=300.0)
    shifts = [[e.shift_m for e in draws(wild, 0.2, count=50)] for wild in (real, ASTRAY)]
    assert shifts[0] == shifts[1]


def test_a_wrong_pose_moves_all_frames_of_an_agent_alike(root: Path) -> None:
    plain = dataset(root, None, 0.0, "evaluate").sample(SampleKey(0, 12))
    wrong = dataset(root, ASTRAY, 0.0, "evaluate").sample(SampleKey(0, 12))
    assert wrong.agent_ids == plain.agent_ids
    drawn = Disturbances(ASTRAY, 0.0)
    for a, agent_id in enumerate(wrong.agent_ids[1:], start=1):
        effect = drawn.draw(0, 12, agent_id)
        for t in range(HISTORY):
            true, believed = (
                s.world_SE3_ego @ s.ego_SE3_agent[a, t].astype(np.float64) for s in (plain, wrong)
            )
            np.testing.assert_allclose(believed[:3, 3] - true[:3, 3], effect.shift_m, atol=1e-4)
            yaws = [matrix_to_pose(m)[4] for m in (true, believed)]
            turned = (yaws[1] - yaws[0] + 180) % 360 - 180
            assert turned == pytest.approx(math.degrees(effect.turn_rad), abs=1e-3)
            assert points_follow(plain, wrong, a, t)


def points_follow(plain: Sample, wrong: Sample, agent: int, frame: int) -> bool:
    """Whether points and matrix tell the same story: own points are the same in both samples."""
    own = []
    for sample in (plain, wrong):
        back = np.linalg.inv(sample.ego_SE3_agent[agent, frame].astype(np.float64))
        own.append(sample.points[agent][frame][:, :3] @ back[:3, :3].T + back[:3, 3])
    return bool(np.allclose(own[0], own[1], atol=1e-3))


# ---------------------------------------------------------------------------------------- drop-out


def test_the_asked_share_of_messages_is_lost() -> None:
    lost = [effect.lost for effect in draws(WildSetting(), 0.3)]
    assert np.mean(lost) == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / len(lost)))
    assert all(effect.lost for effect in draws(WildSetting(), 1.0, count=200))


def test_lost_neighbours_are_gone_and_the_others_as_before(root: Path) -> None:
    plain, lossy = dataset(root), dataset(root, None, 0.5)
    seen = set()
    for index in range(FRAMES):
        one, two = plain.sample(SampleKey(0, index)), lossy.sample(SampleKey(0, index))
        kept = [a for a, agent in enumerate(one.agent_ids) if agent in two.agent_ids]
        assert two.agent_ids == tuple(one.agent_ids[a] for a in kept)
        assert two.agent_ids[0] == one.agent_ids[0]
        np.testing.assert_array_equal(two.ego_SE3_agent, one.ego_SE3_agent[kept])
        for a, b in enumerate(kept):
            for own, same_agents in zip(two.points[a], one.points[b], strict=True):
                np.testing.assert_array_equal(own, same_agents)
        seen.add(len(two.agent_ids))
    assert len(seen) > 1


def test_alone_when_everything_is_lost(root: Path) -> None:
    sample = dataset(root, None, 1.0)[SampleKey(2, 7)]
    assert len(sample.agent_types) == 1


# ------------------------------------------------------------------------------------------ resume


def test_an_epoch_goes_on_bit_for_bit_in_other_processes(root: Path) -> None:
    how: dict[str, Any] = {"batch_size": 2, "epoch": 3, "shuffle": True, "seed": 5}
    alone = dataset(root, BOTH, 0.3, sample_stride=2)
    whole = list(make_loader(alone, **how))
    helped = dataset(root, BOTH, 0.3, sample_stride=2, num_workers=2)
    rest = list(make_loader(helped, **how, start_batch=1))
    assert len(rest) == len(whole) - 1
    for one, two in zip(whole[1:], rest, strict=True):
        for name in ("record_len", "time_offset_s", "ego_SE3_agent", "frame_valid"):
            assert torch.equal(getattr(one, name), getattr(two, name)), name
        assert torch.equal(one.voxels.points, two.voxels.points)
        assert torch.equal(one.voxels.coordinates, two.voxels.coordinates)


def test_epochs_of_training_differ_and_those_of_an_evaluation_do_not(root: Path) -> None:
    trained = dataset(root, ASTRAY, 0.0, train_ego="fixed")
    matrices = [trained.sample(SampleKey(epoch, 12)).ego_SE3_agent for epoch in (0, 1)]
    assert not np.allclose(matrices[0], matrices[1])
    evaluated = dataset(root, ASTRAY, 0.0, "evaluate")
    assert same(evaluated[SampleKey(0, 12)], evaluated[SampleKey(4, 12)])
