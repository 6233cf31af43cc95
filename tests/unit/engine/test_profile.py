"""`opencood profile`: counts by hand, sparse convolutions by their rule, what is printed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.made_batches import MadeShape, make_batch
from tests.helpers.made_models import second_grid, tiny_args
from tests.helpers.tiny_run import tiny_config, write_hypes
from turbotrain_plugin.cli import main
from turbotrain_plugin.config import load_hypes, to_yaml
from turbotrain_plugin.engine.flops import count_flops, kernel_pairs
from turbotrain_plugin.engine.profile import Profile, profile, profile_run
from turbotrain_plugin.engine.tensor_memory import peak_tensor_bytes
from turbotrain_plugin.errors import UserError
from turbotrain_plugin.models import build_model

CPU = torch.device("cpu")


# ------------------------------------------------------------------------------------- operations


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 5, bias=False)
        self.second = nn.Conv2d(2, 4, 3, padding=1, bias=False)

    def forward(self, x: Tensor, image: Tensor) -> Tensor:
        outside: Tensor = self.first(x) @ torch.ones(5, 7)
        total: Tensor = outside.sum() + self.second(image).sum()
        return total


def test_a_multiply_add_counts_as_two() -> None:
    network = Small()
    counts = count_flops(network, lambda: network(torch.ones(11, 3), torch.ones(1, 2, 6, 8)))
    first, second, outside = 2 * 11 * 3 * 5, 2 * 6 * 8 * 2 * 4 * 9, 2 * 11 * 5 * 7
    assert counts == {
        "first": first,
        "second": second,
        "other": outside,
        "total": first + second + outside,
    }


def naive_pairs(
    inputs: Tensor,
    outputs: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    padding: tuple[int, ...],
) -> int:
    """Look at every pair of sites."""
    pairs = 0
    for source in inputs.tolist():
        for target in outputs.tolist():
            steps = [
                source[axis + 1] - target[axis + 1] * stride[axis] + padding[axis]
                for axis in range(3)
            ]
            inside = all(0 <= step < size for step, size in zip(steps, kernel, strict=True))
            pairs += inside and source[0] == target[0]
    return pairs


@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [
        ((3, 3, 3), (1, 1, 1), (1, 1, 1)),
        ((3, 3, 3), (2, 2, 2), (1, 1, 1)),
        ((3, 3, 3), (2, 2, 2), (0, 1, 1)),
        ((3, 1, 1), (2, 1, 1), (0, 0, 0)),
    ],
)
def test_pairs_of_sites(
    kernel: tuple[int, ...], stride: tuple[int, ...], padding: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = (torch.rand(2, 5, 6, 7, generator=generator) < 0.3).nonzero().int()
    outputs = (torch.rand(2, 4, 4, 4, generator=generator) < 0.4).nonzero().int()
    keys: dict[str, Any] = {"kernel": kernel, "stride": stride, "padding": padding}
    assert kernel_pairs(inputs, outputs, **keys) == naive_pairs(inputs, outputs, **keys)
    assert kernel_pairs(inputs[:0], outputs[:0], **keys) == 0


@pytest.mark.parametrize("residual", [True, False])
def test_sparse_convolutions_cost_what_spconv_multiplies(residual: bool) -> None:
    """On a CPU spconv calls torch's matrix product, one per offset, on the pairs alone."""
    pytest.importorskip("spconv.pytorch")
    from torch.utils.flop_counter import FlopCounterMode

    args, grid = tiny_args(encoder="second", neck="pre_temporal"), second_grid()
    if not residual:
        object.__setattr__(args.encoder, "residual", False)
    network = build_model(args, grid, hist_frames=3, future_steps=6, anchors_per_cell=2).eval()
    shape = MadeShape(voxels_per_map=80)
    batch = make_batch(grid=grid, record_len=[2], hist_frames=3, seed=0, shape=shape)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(batch)
    seen = counter.get_flop_counts()["CooperativeNetwork.encoder"]
    counts = count_flops(network, lambda: network(batch))
    assert counts["encoder"] == sum(seen.values()) > 1e5
    assert counts["total"] == counter.get_total_flops()


def test_hooks_are_taken_off_again() -> None:
    pytest.importorskip("spconv.pytorch")
    network = build_model(
        tiny_args(encoder="second"),
        second_grid(),
        hist_frames=1,
        future_steps=6,
        anchors_per_cell=2,
    )
    with pytest.raises(ZeroDivisionError):
        count_flops(network, lambda: 1 // 0)
    assert not any(module._forward_hooks for module in network.modules())


# ----------------------------------------------------------------------------------------- memory


def test_the_peak_is_what_lives_at_one_time() -> None:
    def one_after_the_other() -> None:
        for _ in range(3):
            torch.ones(1 << 18)

    def together() -> None:
        kept = [torch.ones(1 << 18) for _ in range(3)]
        kept.clear()

    assert peak_tensor_bytes(one_after_the_other, CPU) == pytest.approx(1 << 20, rel=0.05)
    assert peak_tensor_bytes(together, CPU) == pytest.approx(3 << 20, rel=0.05)


# -------------------------------------------------------------------------------------- the whole


@pytest.fixture(scope="module")
def hypes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hypes(tmp_path_factory.mktemp("profile"))


def measured(hypes: Path, *keys: str) -> Profile:
    return profile(load_hypes(hypes, keys), CPU, repeats=1)


def test_bytes_and_megabits(hypes: Path) -> None:
    """A map of 16 channels on 16 x 16 cells; a byte has 8 bits."""
    found = measured(hypes)
    assert found.agents == 3
    assert found.frames == 3
    assert found.message_bytes == 16 * 16 * 16 * 4
    assert found.mbit_per_s() == {
        "2": pytest.approx(0.262144),
        "10": pytest.approx(1.31072),
    }
    assert measured(hypes, "model.args.compression.ratio=8").message_bytes == 16 * 16 * 16 // 2


def test_modules_sum_to_the_whole(hypes: Path) -> None:
    found = measured(hypes)
    for counts in (found.parameters, found.flops):
        total = counts["total"]
        assert sum(counts.values()) - total == total
    assert {"encoder", "neck", "temporal", "fusion", "detection"} <= set(found.parameters)
    assert all(found.flops[name] > 0 for name in ("neck", "temporal", "fusion", "detection"))
    assert found.latency_ms > 0
    assert found.peak_mib > 3 * 3 * 16 * 16 * 16 * 4 / 2**20


def test_fusions_differ_in_fusion_and_message(hypes: Path) -> None:
    found = {
        name: measured(hypes, f"model.args.fusion.core_method={name}")
        for name in ("no_fusion", "early", "late", "v2xpnp")
    }
    assert found["no_fusion"].message_bytes == 0
    assert found["early"].agents == 1
    assert found["early"].message_bytes % 16 == 0
    assert found["early"].message_bytes > 100 * 16
    for name in ("no_fusion", "early", "late"):
        assert found[name].parameters["fusion"] == 0
    assert found["v2xpnp"].flops["fusion"] > 0
    assert found["early"].flops["neck"] == found["no_fusion"].flops["neck"]
    assert found["late"].flops["detection"] == 3 * found["no_fusion"].flops["detection"]


def test_late_fusion_sends_what_its_weights_find(hypes: Path) -> None:
    keys = ["model.args.fusion.core_method=late", "postprocess.target_args.score_threshold=0.005"]
    found = measured(hypes, *keys, "postprocess.nms_thresh=0.9")
    assert found.message_bytes > 0
    assert found.message_bytes % ((8 + 2 * 2) * 4) == 0


def test_a_run_folder_is_measured_with_its_weights(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, ["turbotrain.strategy=one_time"])
    (tmp_path / "config.yaml").write_text(to_yaml(config), encoding="utf-8")
    with pytest.raises(UserError, match="no checkpoint"):
        profile_run(tmp_path, [], CPU)
    torch.save({"x": torch.zeros(1)}, tmp_path / "net_epoch1.pth")
    with pytest.raises(UserError, match="belongs to another model"):
        profile_run(tmp_path, [], CPU)
    with pytest.raises(UserError, match="not a run folder"):
        profile_run(tmp_path / "none", [], CPU)


def test_the_command(hypes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "--hypes", str(hypes), "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["message_bytes"] == 16384
    assert found["mbit_per_s"]["2"] == pytest.approx(0.262144)
    assert found["gflops"]["total"] == pytest.approx(
        sum(v for k, v in found["gflops"].items() if k != "total")
    )
    assert main(["profile", "-y", str(hypes), "--device", "cpu"]) == 0
    text = capsys.readouterr().out
    assert "0.262 Mbit/s at 2 Hz, 1.311 Mbit/s at 10 Hz" in text
    assert "16,384 bytes" in text
    assert main(["profile", "--device", "cpu"]) == 2
    assert "needs --hypes FILE or --model_dir DIR" in capsys.readouterr().err
