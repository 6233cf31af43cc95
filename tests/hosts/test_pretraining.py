"""Masked pretraining around a host's model, and the transfer into the same model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers.made_host import FAKE_HOST, host_hypes, step_lines, write_hypes
from turbotrain_plugin.cli import main
from turbotrain_plugin.config import HostModules
from turbotrain_plugin.hosts import host_named
from turbotrain_plugin.hosts.pretraining import HostNetwork, module_paths
from turbotrain_plugin.hosts.session import Session, enter
from turbotrain_plugin.structures import UserError

BLOCK: dict[str, Any] = {
    "strategy": "turbotrain",
    "host": {"workers": 0, "evaluate": False},
    "pretrain": {"epoches": 1, "modules": {"encoder": ["encoder"], "fusion": ["fusion_net"]}},
    "balance": {"free_steps": 1, "balance_steps": 1},
    "logging": {"tensorboard": False, "save_steps": 1},
}


def parsed_model(session: Session, frames: Path) -> tuple[Any, torch.nn.Module, dict[str, Any]]:
    hypes = session.modules.yaml_utils.load_grid_params(host_hypes(frames))
    dataset = session.modules.datasets.build_dataset(hypes, visualize=False, train=True)
    model = session.modules.train_utils.create_model(hypes)
    return dataset, model, hypes


def test_both_stages_run_and_weights_are_handed_on(
    fake_host: Path, frames: Path, tmp_path: Path
) -> None:
    del fake_host
    folder = tmp_path / "run"
    folder.mkdir()
    write_hypes(folder / "config.yaml", host_hypes(frames, turbotrain=BLOCK))
    assert main(["train", "--model_dir", str(folder), "--device", "cpu"]) == 0
    steps = [line for line in step_lines(folder) if "losses" in line]
    assert [line["stage"] for line in steps] == ["pretrain"] * 4 + ["balance"] * 8
    assert [line["step"] for line in steps] == list(range(1, 13))
    assert set(steps[0]["losses"]) == {"points", "occupancy"}
    left = torch.load(folder / "stage_pretrain.ckpt", weights_only=True)["model"]
    assert "cls_head.weight" in left


def test_the_task_stage_starts_from_the_pretrained_encoder_alone(
    fake_host: Path, frames: Path, tmp_path: Path
) -> None:
    """With a learning rate of zero in fine-tuning what was handed on is what is found."""
    del fake_host
    folder = tmp_path / "run"
    folder.mkdir()
    still = {"optimizer": {"core_method": "SGD", "lr": 0.0}}
    hypes = host_hypes(frames, turbotrain=BLOCK, **still)
    hypes["train_params"]["epoches"] = 1
    write_hypes(folder / "config.yaml", hypes)
    assert main(["train", "--model_dir", str(folder), "--device", "cpu"]) == 0
    left = torch.load(folder / "stage_pretrain.ckpt", weights_only=True)["model"]
    found = torch.load(folder / "net_epoch1.pth", weights_only=True)
    torch.testing.assert_close(found["encoder.conv.weight"], left["encoder.conv.weight"])
    with enter(host_named("auto", FAKE_HOST), FAKE_HOST) as session:
        from turbotrain_plugin.engine.assembly import derive_seed

        torch.manual_seed(derive_seed(0, "weights"))
        fresh = parsed_model(session, frames)[1].state_dict()
    assert not torch.equal(left["encoder.conv.weight"], fresh["encoder.conv.weight"])
    torch.testing.assert_close(found["cls_head.weight"], fresh["cls_head.weight"])


def test_hidden_voxels_never_reach_the_model_and_no_agent_is_lost(
    fake_host: Path, frames: Path
) -> None:
    with enter(host_named("auto", fake_host), fake_host) as session:
        dataset, model, hypes = parsed_model(session, frames)
        ego = dataset.collate_batch_train([dataset[0], dataset[1]])["ego"]
        network = HostNetwork(model, "fusion_net", ego, hypes)
        assert network.head_channels == 8
        assert (network.grid.stride, network.grid.height, network.grid.width) == (1, 16, 16)
        batch = network.take(ego)
        seen = batch.voxels.coordinates[:, 0] == 0  # nothing is left of agents 1 to 3
        voxels = batch.voxels
        voxels.points, voxels.coordinates = voxels.points[seen], voxels.coordinates[seen]
        voxels.point_counts = voxels.point_counts[seen]
        inputs: list[Any] = []
        encoder = model.get_submodule("encoder")
        hook = encoder.register_forward_pre_hook(lambda _m, args: inputs.append(args))
        found = network(batch)
        hook.remove()
    assert found.shape == (2, 8, 16, 16)
    lidar, agents = inputs[0]
    assert agents == 4
    assert len(lidar["voxel_features"]) == int(seen.sum()) + 3
    assert sorted(lidar["voxel_coords"][-3:, 0].tolist()) == [1, 2, 3]
    assert not lidar["voxel_features"][-3:].any()


def test_looking_at_the_shape_changes_neither_statistics_nor_modes(
    fake_host: Path, frames: Path
) -> None:
    with enter(host_named("auto", fake_host), fake_host) as session:
        dataset, model, hypes = parsed_model(session, frames)
        model.train()
        model.get_submodule("neck").eval()
        before = {name: value.clone() for name, value in model.state_dict().items()}
        ego = dataset.collate_batch_train([dataset[0]])["ego"]
        HostNetwork(model, "fusion_net", ego, hypes)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert model.training
    assert not model.get_submodule("neck").training


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (HostModules(), "Which parts of tiny_fcooper"),
        (HostModules(encoder=("encoder",), fusion=("fusion",)), "encoder, fusion_net, dropout"),
    ],
)
def test_unknown_modules_are_asked_for(
    fake_host: Path, frames: Path, given: HostModules, message: str
) -> None:
    with enter(host_named("auto", fake_host), fake_host) as session:
        model = parsed_model(session, frames)[1]
    with pytest.raises(UserError, match=message):
        module_paths("tiny_fcooper", model, given)
