"""Frozen modules stay as they are to the last bit, whatever is trained around them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.tiny_run import tiny_config
from turbotrain_plugin.config import RunConfig
from turbotrain_plugin.data import BatchLoader, CooperativeDataset, SampleKey
from turbotrain_plugin.engine.assembly import build_dataset, build_network
from turbotrain_plugin.engine.freezing import freeze
from turbotrain_plugin.engine.optim import build_balancer
from turbotrain_plugin.engine.steps import FinetuneLearner, optimiser_step
from turbotrain_plugin.engine.validation import evaluate_network
from turbotrain_plugin.models import CooperativeNetwork
from turbotrain_plugin.structures import Batch

FROZEN = ("encoder", "projection", "neck", "detection")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, CooperativeDataset]:
    config = tiny_config(tmp_path_factory.mktemp("data"), ["optimizer.args.weight_decay=0.1"])
    return config, build_dataset(config, "train", "train")


def train(config: RunConfig, network: CooperativeNetwork, batches: list[Batch]) -> None:
    learner = FinetuneLearner(network, config.loss.args)
    balancer = build_balancer(config.optimizer, config.turbotrain.balance, network)
    for batch in batches:
        optimiser_step(
            learner, [batch], balancer, None, amp="off", clip_norm=10, generator=torch.Generator()
        )


def batches_of(dataset: CooperativeDataset, count: int) -> list[Batch]:
    return list(BatchLoader(dataset, [[SampleKey(0, index)] for index in range(count)]))


def state_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in network.state_dict().items()}


def moved(before: dict[str, Tensor], network: nn.Module) -> set[str]:
    """Return the top-level modules of which anything differs."""
    after = network.state_dict()
    return {name.split(".")[0] for name in after if not torch.equal(before[name], after[name])}


def test_frozen_modules_do_not_move_and_the_others_do(made: Any) -> None:  # noqa: ANN401
    """Free and balanced steps, with weight decay; an evaluation in between changes nothing."""
    config, dataset = made
    network = build_network(config, dataset)
    network.train()
    freeze(network, FROZEN)
    before = state_of(network)
    batches = batches_of(dataset, 4)
    train(config, network, batches)
    evaluate_network(network, build_dataset(config, "validate", "evaluate"), config, limit=1)
    train(config, network, batches)
    assert moved(before, network) == {"temporal", "fusion", "map_fusion", "prediction"}


def test_without_freezing_everything_moves(made: Any) -> None:  # noqa: ANN401
    config, dataset = made
    network = build_network(config, dataset).train()
    before = state_of(network)
    train(config, network, batches_of(dataset, 2))
    assert moved(before, network) == {name for name, _ in network.named_children()}


def test_an_evaluation_leaves_every_module_in_its_mode(made: Any) -> None:  # noqa: ANN401
    config, dataset = made
    network = build_network(config, dataset).train()
    freeze(network, FROZEN)
    modes = [module.training for module in network.modules()]
    assert True in modes
    assert False in modes
    evaluate_network(network, build_dataset(config, "validate", "evaluate"), config, limit=1)
    assert [module.training for module in network.modules()] == modes


def test_absent_modules_are_passed_over_and_unknown_ones_are_not(
    made: Any,  # noqa: ANN401
    tmp_path: Path,
) -> None:
    config = tiny_config(tmp_path, ["model.args.map.enabled=false"])
    network = build_network(config, made[1])
    freeze(network, ("map_fusion", "temporal"))
    assert not any(p.requires_grad for p in network.temporal.parameters())
    with pytest.raises(AttributeError, match="enc"):
        freeze(network, ("enc",))
