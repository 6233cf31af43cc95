"""What a balanced step costs by gradient source, beside TorchJD and LibMTL; how far cuts stray.

    python -m benchmarks.balancing_sources --out benchmarks/results --libmtl PATH

Two networks of this package on the small synthetic scenes: SECOND (sparse 3D encoder, BEV network
before temporal fusion) and the demo's pillars. A step is forward, backward, clipping and Adam on
one batch; all kinds of steps run once a repeat, in random order, each compared with the plain step
of the same repeat. Then each network trains for some steps in which the sources ``cut`` and
``feature`` are compared with the exact gradients of the same weights and batch.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from benchmarks.balancing_directions import Directions, task_gradients
from benchmarks.balancing_peers import Backward, libmtl_backward, load_libmtl, torchjd_backward
from benchmarks.measure import measure, peak_memory, write_result
from turbotrain_plugin.balancing import GradientBalancer
from turbotrain_plugin.config import RunConfig, load_hypes, to_plain
from turbotrain_plugin.data import BatchLoader, CooperativeDataset, SampleKey
from turbotrain_plugin.engine.assembly import build_dataset, build_network
from turbotrain_plugin.engine.steps import FinetuneLearner
from turbotrain_plugin.structures import Batch

SOURCES: Final = ("exact", "exact_low_memory", "cut", "feature")
APPROXIMATE: Final = ("cut", "feature")
CLIP: Final = 10.0
STRIDE: Final = 7
"""Samples from one training step to the next; neighbours in a scene are much alike."""
LEARNING_RATE: Final = 1e-3

COMMON: Final = (
    "turbotrain.data.num_workers=0",
    "turbotrain.data.require_history=true",
    "turbotrain.data.hist_frames=3",
    "train_params.max_cav=3",
)
SECOND: Final = (
    "turbotrain.data.hist_frames=2",
    "preprocess.args.voxel_size=[0.2,0.2,0.2]",
    "preprocess.args.max_points_per_voxel=5",
    "preprocess.args.max_voxel_train=16000",
    "postprocess.anchor_args.feature_stride=8",
    "model.args.channels=64",
    "model.args.encoder.core_method=second",
    "model.args.neck.position=pre_temporal",
    "model.args.neck.layers=[2,2]",
    "model.args.neck.filters=[64,128]",
    "model.args.neck.upsample_filters=[64,64]",
    "model.args.neck.out_channels=0",
)
RANGE: Final = "preprocess.cav_lidar_range=[-{0},-{0},-5,{0},{0},3]"
TRUNKS: Final[dict[str, tuple[str, ...]]] = {
    "SECOND": (*SECOND, RANGE.format(16)),
    "pillars": (),
}
"""Networks whose cost is measured -> overrides of the demo's hypes file."""
TRAINED: Final[dict[str, tuple[str, ...]]] = {
    "SECOND": (*SECOND, RANGE.format(12.8)),
    "pillars": (),
}
"""Networks that are trained for the comparison of directions."""
MEASURED_ON_CUTS: Final = "encoder"
"""What lies below the cut."""


@dataclass(frozen=True)
class Setup:
    """One network and its data."""

    config: RunConfig
    dataset: CooperativeDataset

    def batch(self, index: int) -> Batch:
        key = SampleKey(0, index % len(self.dataset))
        return next(iter(BatchLoader(self.dataset, [[key]])))

    def trainer(self, seed: int = 0) -> Trainer:
        torch.manual_seed(seed)
        return Trainer(
            FinetuneLearner(build_network(self.config, self.dataset), self.config.loss.args)
        )


class Trainer:
    """A network whose losses and fused feature are at hand."""

    def __init__(self, learner: FinetuneLearner) -> None:
        self.learner = learner
        learner.module.train()
        self.parameters = [p for p in learner.module.parameters() if p.requires_grad]
        self.optimizer = torch.optim.Adam(self.parameters, lr=LEARNING_RATE)
        self.feature = torch.empty(0)
        heads = learner.network.heads

        def noted(features: Tensor, *others: Any) -> Any:  # noqa: ANN401
            self.feature = features
            return heads(features, *others)

        learner.network.heads = noted  # type: ignore[method-assign, assignment]
        self._generator = torch.Generator()

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        return dict(self.learner.losses(batch, self._generator).tasks)

    def shared(self, batch: Batch) -> list[nn.Parameter]:
        """Return the parameters that both losses reach."""
        losses = self.losses(batch)
        both = [
            [
                g is not None
                for g in torch.autograd.grad(
                    loss, self.parameters, retain_graph=True, allow_unused=True
                )
            ]
            for loss in losses.values()
        ]
        return [p for p, *reached in zip(self.parameters, *both, strict=True) if all(reached)]

    def finish(self, optimizer: torch.optim.Optimizer) -> None:
        nn.utils.clip_grad_norm_(self.parameters, CLIP)
        optimizer.step()


def setup_of(overrides: Sequence[str]) -> Setup:
    config = load_hypes("turbotrain_v2xpnp_tiny.yaml", [*COMMON, *overrides])
    return Setup(config, build_dataset(config, "train", "train"))


# --------------------------------------------------------------------------------------------- cost


def step_functions(setup: Setup, batch: Batch, libmtl: Any) -> dict[str, Callable[[], None]]:  # noqa: ANN401
    """Return all kinds of steps, the plain one first."""
    steps = {"plain": plain_step(setup, batch), "plain again": plain_step(setup, batch)}
    steps["free"] = balancer_step(setup, batch, "exact_low_memory", balanced=False)
    for source in SOURCES:
        steps[source] = balancer_step(setup, batch, source, balanced=True)
    trainer = setup.trainer()
    steps["TorchJD PCGrad"] = peer_step(trainer, batch, torchjd_backward(trainer.shared(batch)))
    if libmtl is not None:
        trainer = setup.trainer()
        backward = libmtl_backward(trainer.shared(batch), 2, libmtl)
        steps["LibMTL PCGrad"] = peer_step(trainer, batch, backward)
    return steps


def plain_step(setup: Setup, batch: Batch) -> Callable[[], None]:
    trainer = setup.trainer()

    def step() -> None:
        trainer.optimizer.zero_grad()
        sum(trainer.losses(batch).values(), torch.zeros(())).backward()
        trainer.finish(trainer.optimizer)

    return step


def peer_step(trainer: Trainer, batch: Batch, backward: Backward) -> Callable[[], None]:
    def step() -> None:
        trainer.optimizer.zero_grad()
        losses = trainer.losses(batch)
        feature, trainer.feature = trainer.feature, torch.empty(0)
        backward(losses, feature)
        trainer.finish(trainer.optimizer)

    return step


def balancer_step(setup: Setup, batch: Batch, source: str, *, balanced: bool) -> Callable[[], None]:
    trainer = setup.trainer()
    balancer = balancer_of(trainer, trainer.optimizer, source, balanced=balanced)

    def step() -> None:
        balancer.zero_grad()
        losses = trainer.losses(batch)
        trainer.feature = torch.empty(0)
        balancer.backward(losses)
        trainer.finish(balancer)

    return step


def balancer_of(
    trainer: Trainer, optimizer: torch.optim.Optimizer, source: str, *, balanced: bool = True
) -> GradientBalancer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return GradientBalancer(
            optimizer,
            free_steps=0 if balanced else 10**9,
            balance_steps=1,
            named_parameters=list(trainer.learner.module.named_parameters()),
            source=source,
        )


def cost(setup: Setup, repeats: int, libmtl: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return time and memory of all kinds of steps, and the average over a schedule."""
    steps = step_functions(setup, setup.batch(0), libmtl)
    for step in steps.values():
        step()  # the first balanced step also checks itself
    memory = {name: peak_memory(step) for name, step in steps.items()}
    time = measure(steps, repeats)
    free = time["free"]["ratio"]
    return {
        "time": time,
        "peak_bytes": memory,
        "peak_ratio": {name: value / memory["plain"] for name, value in memory.items()},
        "schedule_2000_1000": {s: (2 * free + time[s]["ratio"]) / 3 for s in SOURCES},
    }


# --------------------------------------------------------------------------------------- directions


def directions(setup: Setup, steps: int) -> dict[str, Any]:
    """Train two plain steps, then one balanced by the exact gradients, again; compare in all."""
    trainer = setup.trainer()
    named = {n: p for n, p in trainer.learner.module.named_parameters() if p.requires_grad}
    compared = Directions(APPROXIMATE, MEASURED_ON_CUTS)
    check_weights(setup, compared)
    for index in range(steps):
        losses = trainer.losses(setup.batch(index * STRIDE))
        found = task_gradients(losses, trainer.feature, named)
        weights = compared.add(found)
        if weights is None or index % 3 < 2:
            weights = torch.ones(2)
        for name, pair in found.shared.items():
            named[name].grad = weights[0].float() * pair[0] + weights[1].float() * pair[1]
        for parameter, gradient in found.own.items():
            parameter.grad = gradient
        trainer.finish(trainer.optimizer)
        trainer.optimizer.zero_grad()
    return compared.summary()


def check_weights(setup: Setup, compared: Directions) -> None:
    """Fail unless the balancer weighs the tasks as :class:`Directions` says it does."""
    batch = setup.batch(0)
    for source in ("exact", *APPROXIMATE):
        trainer = setup.trainer()
        named = {n: p for n, p in trainer.learner.module.named_parameters() if p.requires_grad}
        losses = trainer.losses(batch)
        expected = compared.weights(task_gradients(losses, trainer.feature, named), source)
        balancer = balancer_of(trainer, torch.optim.SGD(trainer.parameters, lr=0.0), source)
        balancer.backward(trainer.losses(batch))
        balancer.step()
        assert balancer.last_record is not None
        weights = list(balancer.last_record.weights.values())
        for one, other in zip(weights, expected, strict=True):
            if abs(one - other) > 1e-3 * abs(other):
                raise RuntimeError(f"{source}: the balancer weighs {weights}, not {expected}")


# --------------------------------------------------------------------------------------------- main


def table(results: dict[str, Any]) -> str:
    """Return a Markdown table of the costs, and one of the directions."""
    lines = ["| step | " + " | ".join(f"{t}: time | memory | 2000/1000" for t in results["cost"])]
    lines[0] += " |"
    lines.append("|---|" + "---:|" * (3 * len(results["cost"])))
    names = next(iter(results["cost"].values()))["peak_ratio"]
    for name in names:
        cells = []
        for found in results["cost"].values():
            time = found["time"][name]
            low, high = time["ratio_quartiles"]
            cells.append(f"{time['ratio']:.3f} ({low:.2f}-{high:.2f})")
            cells.append(f"{found['peak_ratio'][name]:.3f}")
            average = found["schedule_2000_1000"].get(name)
            cells.append("" if average is None else f"{average:.3f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "| source | "
        + " | ".join(
            f"{t}: same decision | direction cosine: median, 10 %, least | error on conflicts"
            for t in results["directions"]
        )
        + " |",
    ]
    lines.append("|---|" + "---:|" * (3 * len(results["directions"])))
    for source in (*APPROXIMATE, "plain sum"):
        cells = []
        for found in results["directions"].values():
            one = found[source]
            cosine = one["direction_cosine"]
            cells.append(f"{one['same_decision']:.2f}")
            cells.append(f"{cosine['median']:.4f}, {cosine['p10']:.4f}, {cosine['least']:.4f}")
            cells.append(f"{one['on_conflicts']['relative_error'].get('median', 0.0):.3f}")
        lines.append(f"| {source} | " + " | ".join(cells) + " |")
    rates = ", ".join(f"{t} {f['conflict_rate']:.2f}" for t, f in results["directions"].items())
    return "\n".join([*lines, "", f"Share of steps with a conflict: {rates}."])


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder of the result file")
    parser.add_argument(
        "--repeats", type=int, default=7, help="repeats on SECOND; thrice on pillars"
    )
    parser.add_argument("--steps", type=int, default=150, help="training steps of the comparison")
    parser.add_argument("--libmtl", type=Path, help="checkout of LibMTL; without it, no such row")
    parser.add_argument("--trunks", nargs="+", choices=tuple(TRUNKS), default=tuple(TRUNKS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    libmtl = load_libmtl(arguments.libmtl) if arguments.libmtl else None
    results: dict[str, Any] = {"cost": {}, "directions": {}}
    setup: dict[str, Any] = {"cost": {}, "directions": {}}
    for trunk in arguments.trunks:
        repeats = arguments.repeats * (1 if trunk == "SECOND" else 3)
        measured, trained = setup_of(TRUNKS[trunk]), setup_of(TRAINED[trunk])
        results["cost"][trunk] = cost(measured, repeats, libmtl)
        results["directions"][trunk] = directions(trained, arguments.steps)
        setup["cost"][trunk] = to_plain(measured.config)
        setup["directions"][trunk] = to_plain(trained.config)
    setup |= {
        "repeats": arguments.repeats,
        "steps": arguments.steps,
        "libmtl": libmtl is not None,
    }
    write_result(arguments.out, "balancing_sources", setup, results)
    sys.stdout.write(table(results) + "\n")


if __name__ == "__main__":
    main()
