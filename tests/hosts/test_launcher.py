"""The host's unmodified train.py: our run equals it to the bit, and it trains what is ours."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.helpers.made_host import host_hypes, step_lines, write_hypes
from turbotrain_plugin.balancing import ConflictSuppression
from turbotrain_plugin.balancing.base import TaskStep, decide
from turbotrain_plugin.cli import main
from turbotrain_plugin.engine.checkpoints import STEP_COUNTER
from turbotrain_plugin.hosts import host_named
from turbotrain_plugin.hosts.__main__ import main as launch
from turbotrain_plugin.hosts.balanced_loss import TurbotrainBalanced
from turbotrain_plugin.hosts.checkout import tree_hash
from turbotrain_plugin.hosts.launcher import registered, run_script
from turbotrain_plugin.hosts.randomness import seed_all
from turbotrain_plugin.hosts.session import enter
from turbotrain_plugin.structures import UserError


class Recorder:
    """In place of tensorboardX's writer."""

    values: list[tuple[str, float, int]]

    def __init__(self, _folder: str) -> None:
        Recorder.values = []

    def add_scalar(self, name: str, value: float, step: int) -> None:
        Recorder.values.append((name, value, step))


def recorded_losses(root: Path, hypes: Path, log_dir: Path, seed: int) -> list[tuple[str, float]]:
    """Return what the host's own train.py logs, in order."""
    with enter(host_named("auto", root), root) as session:
        sys.modules["tensorboardX"].SummaryWriter = Recorder  # type: ignore[attr-defined]
        seed_all(seed)
        assert run_script(session, "train", ["--hypes_yaml", str(hypes)], log_dir) == 0
    return [(name, value) for name, value, _ in Recorder.values]


def test_without_our_block_losses_are_the_host_s_to_the_bit_and_its_checkout_stays(
    fake_host: Path, frames: Path, tmp_path: Path
) -> None:
    before = tree_hash(fake_host)
    hypes = write_hypes(tmp_path / "hypes.yaml", host_hypes(frames))
    theirs = recorded_losses(fake_host, hypes, tmp_path / "theirs", seed=7)
    folder = tmp_path / "ours"
    folder.mkdir()
    arguments = ["--hypes", str(hypes), "--model_dir", str(folder), "--device", "cpu"]
    assert main(["train", *arguments, "--seed", "7"]) == 0
    ours = [line["losses"] for line in step_lines(folder) if "losses" in line]
    assert len(ours) == 8
    names = {"Regression_loss": "reg_loss", "Confidence_loss": "conf_loss"}
    terms = [(names[name], value) for name, value in theirs if name in names]
    assert terms == [(name, line[name]) for line in ours for name in names.values()]
    validated = [line["loss"] for line in step_lines(folder) if "event" in line]
    assert validated == [value for name, value in theirs if name == "Validate_Loss"]
    assert tree_hash(fake_host) == before


def balanced_hypes(frames: Path, **changes: object) -> dict[str, Any]:
    loss = {
        "core_method": "turbotrain_balanced",
        "args": {
            "core_method": "tiny_loss",
            "args": {"reg": 2.0},
            "balance": {"free_steps": 1, "balance_steps": 1},
        },
    }
    return host_hypes(frames, loss=loss, **changes)


def test_our_network_and_loss_run_in_the_host_s_loop(
    fake_host: Path, frames: Path, tmp_path: Path
) -> None:
    del fake_host
    model = {
        "core_method": "turbotrain_detector",
        "args": {
            "voxel_size": [2.0, 2.0, 4.0],
            "lidar_range": [-16.0, -16.0, -3.0, 16.0, 16.0, 1.0],
            "anchor_number": 2,
            "feature_stride": 1,
            "network": {
                "channels": 8,
                "encoder": {"core_method": "pillars", "pillar_channels": 8, "pillar_blocks": [1]},
                "neck": {"layers": [1], "filters": [8], "upsample_filters": [8]},
                "temporal": {"heads": 1, "ffn": 8},
                "fusion": {"core_method": "fcooper"},
            },
        },
    }
    hypes = write_hypes(tmp_path / "hypes.yaml", balanced_hypes(frames, model=model))
    log_dir = ["--log_dir", str(tmp_path / "logs"), "--run_seed", "1"]
    assert launch(["train", *log_dir, "--hypes_yaml", str(hypes)]) == 0
    (folder,) = (tmp_path / "logs").iterdir()
    weights = torch.load(folder / "net_epoch2.pth", weights_only=True)
    assert int(weights[STEP_COUNTER]) == 8
    inference = ["inference", "--model_dir", str(folder), "--fusion_method", "intermediate"]
    assert launch(inference) == 0


class TwoHeads(nn.Module):
    """A shared layer and two heads whose tasks oppose each other."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(3, 4)
        self.first, self.second = nn.Linear(4, 1), nn.Linear(4, 1)
        self.register_buffer(STEP_COUNTER, torch.zeros((), dtype=torch.int64))

    def forward(self, data: torch.Tensor) -> dict[str, torch.Tensor]:
        hidden = self.trunk(data).tanh()
        return {"a": self.first(hidden), "b": self.second(hidden)}


class Opposed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.loss_dict: dict[str, torch.Tensor] = {}

    def forward(self, output: dict[str, torch.Tensor], labels: object) -> torch.Tensor:
        del labels
        first, second = (output["a"] - 1).square().mean(), 3 * (output["b"] + 1).square().mean()
        total = first + second
        self.loss_dict = {"total_loss": total, "a_loss": first, "b_loss": second}
        return total


@pytest.mark.parametrize("scale", [1.0, 1024.0])
def test_shared_gradients_are_the_explicit_combination_and_heads_untouched(scale: float) -> None:
    torch.manual_seed(3)
    model, data = TwoHeads().double(), torch.randn(5, 3, dtype=torch.float64)
    with torch.no_grad():  # heads alike: what is right for one is wrong for the other
        model.second.weight.copy_(model.first.weight)
    criterion = TurbotrainBalanced.around(
        {"core_method": "opposed", "balance": {"schedule": "every_step"}}, lambda _: Opposed()
    )
    criterion.follow(model)
    (criterion(model(data), {}) * scale).backward()
    found = {name: p.grad / scale for name, p in model.named_parameters() if p.grad is not None}

    terms = Opposed()
    terms(model(data), {})
    losses = [terms.loss_dict["a_loss"], terms.loss_dict["b_loss"]]
    trunk = list(model.trunk.parameters())
    rows = [torch.autograd.grad(loss, trunk, retain_graph=True) for loss in losses]
    flat = torch.stack([torch.cat([g.flatten() for g in row]) for row in rows])
    gramian = flat @ flat.T
    assert gramian[0, 1] < 0
    step = TaskStep(("a_loss", "b_loss"), gramian, torch.stack([loss.detach() for loss in losses]))
    weights, _ = decide(ConflictSuppression(), step)
    assert criterion.weights == pytest.approx(weights)
    expected = weights["a_loss"] * flat[0] + weights["b_loss"] * flat[1]
    shared = torch.cat([found["trunk.weight"].flatten(), found["trunk.bias"].flatten()])
    torch.testing.assert_close(shared, expected, rtol=1e-6, atol=1e-9)
    for name, loss in (("first", losses[0]), ("second", losses[1])):
        (head,) = torch.autograd.grad(loss, [getattr(model, name).weight], retain_graph=True)
        torch.testing.assert_close(found[f"{name}.weight"], head, rtol=1e-12, atol=0.0)


def test_free_steps_and_validation_leave_gradients_alone() -> None:
    model, data = TwoHeads(), torch.randn(5, 3)
    criterion = TurbotrainBalanced.around(
        {"core_method": "opposed", "balance": {"free_steps": 1, "balance_steps": 1}},
        lambda _: Opposed(),
    )
    criterion.follow(model)
    with torch.no_grad():
        criterion(model(data), {})
    assert int(getattr(model, STEP_COUNTER)) == 0
    criterion(model(data), {}).backward()
    expected = torch.autograd.grad(Opposed()(model(data), {}), list(model.parameters()))
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_a_balanced_loss_without_a_model_says_how_to_start() -> None:
    criterion = TurbotrainBalanced.around({"core_method": "opposed"}, lambda _: Opposed())
    with pytest.raises(UserError, match="hosts train"):
        criterion(TwoHeads()(torch.randn(2, 3)), {})


def test_inference_functions_answer_what_the_script_can_go_on_with(
    fake_host: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = host_named("auto", fake_host)
    with enter(host, fake_host) as session:
        functions = session.modules.inference_utils
        before = functions.inference_intermediate_fusion
        monkeypatch.setattr(type(host), "safe_answer", lambda _host, answer: ("safe", answer))
        monkeypatch.setattr(functions, "inference_early_fusion", lambda *_: None, raising=False)
        with registered(session, tmp_path):
            assert functions.inference_early_fusion(1, 2, 3) == ("safe", None)
            assert functions.inference_intermediate_fusion is not before
        assert functions.inference_intermediate_fusion is before
