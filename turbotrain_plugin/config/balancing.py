"""Keys of the balance methods' own arguments; defaults are those of ``balancing/``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Final

from turbotrain_plugin.config.keys import group, key

TORCHJD: Final = "torchjd"
"""Method names with this before a colon are weightings of TorchJD."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AlignedMTLArgs:
    """``turbotrain.balance.args.aligned_mtl``."""

    scale_mode: str = key(
        "min",
        "Length all task gradients get: the least, median or mean (rmse) principal one.",
        choices=("min", "median", "rmse"),
    )
    scale: str = key(
        "sum", "Sum or mean of the aligned gradients. Our choice.", choices=("sum", "mean")
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class CAGradArgs:
    """``turbotrain.balance.args.cagrad``."""

    c: float = key(0.5, "Radius of the ball around the mean gradient, relative to its length.")
    scale: str = key(
        "sum", "sum: K times the paper's update; mean: the paper's.", choices=("sum", "mean")
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class DWAArgs:
    """``turbotrain.balance.args.dwa``."""

    temperature: float = key(2.0, "T; larger makes the weights more alike.")
    window: int = key(100, "Balanced steps in place of the paper's epoch. Our choice.")


@dataclass(frozen=True, slots=True, kw_only=True)
class GradNormArgs:
    """``turbotrain.balance.args.gradnorm``."""

    alpha: float = key(1.5, "Pull towards a common training rate (0: equal weighted norms).")
    lr: float = key(0.025, "Learning rate of the weights.")
    initial_steps: int = key(100, "Balanced steps over whose mean the initial losses are taken.")


@dataclass(frozen=True, slots=True, kw_only=True)
class MoCoArgs:
    """``turbotrain.balance.args.moco``."""

    beta: float = key(0.5, "Share of the new gradient in the running estimate, at first.")
    gamma: float = key(0.1, "Learning rate of lambda, the weights, at first.")
    rho: float = key(0.0, "L2 term on lambda.")
    decay: float = key(0.5, "beta and gamma fall by this power of the step.")


@dataclass(frozen=True, slots=True, kw_only=True)
class PCGradArgs:
    """``turbotrain.balance.args.pcgrad``."""

    seed: int = key(0, "Seed of the random orders (of no effect for two tasks).")


@dataclass(frozen=True, slots=True, kw_only=True)
class UncertaintyArgs:
    """``turbotrain.balance.args.uncertainty``."""

    lr: float = key(2e-3, "Learning rate of the log variances. Our choice.")


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchJDArgs:
    """``turbotrain.balance.args.torchjd``; keys left empty have TorchJD's default."""

    seed: int = key(0, "Seed of the random numbers some weightings draw.")
    alpha: float | None = key(None, "FairGrad: fairness; CRMOGM: share of the old weights.")
    beta: float | None = key(None, "GradVac, PCD: running average.")
    c: float | None = key(None, "CAGrad: radius relative to the mean gradient.")
    eps: float | None = key(None, "GradVac, PCD: guard against division by zero.")
    epsilon: float | None = key(None, "MGDA: step below which its solver stops.")
    gamma: float | None = key(None, "MoDo: learning rate of the weights.")
    initial_weights: tuple[float, ...] | None = key(None, "CRMOGM: one weight a task.")
    lambda_: float | None = key(None, "SDMGrad: pull towards the preference.")
    lr: float | None = key(None, "SDMGrad: learning rate of its solver.")
    max_iters: int | None = key(None, "FairGrad, MGDA: iterations of the solver.")
    momentum: float | None = key(None, "SDMGrad: momentum of its solver.")
    n_byzantine: int | None = key(None, "Krum: tasks that may be wrong.")
    n_iter: int | None = key(None, "SDMGrad: iterations of its solver.")
    n_selected: int | None = key(None, "Krum: tasks that are kept.")
    n_warmup_steps: int | None = key(None, "ExcessMTL: balanced steps with equal weights first.")
    norm_eps: float | None = key(None, "CAGrad: what counts as a zero gradient.")
    pref_vector: tuple[float, ...] | None = key(
        None, "AlignedMTL, DualProj, SDMGrad, UPGrad: one preference a task."
    )
    rho: float | None = key(None, "MoDo: L2 term on the weights.")
    robust_step_size: float | None = key(None, "ExcessMTL: step of the weights.")
    scale_mode: str | None = key(None, "AlignedMTL: min, median or rmse.")
    tau: tuple[float, ...] | None = key(None, "PCD: one value, or one for each task but the first.")
    weighting: str | None = key(None, "CRMOGM: the weighting it smooths.")
    weights: tuple[float, ...] | None = key(None, "Constant: one weight a task.")


@dataclass(frozen=True, slots=True, kw_only=True)
class BalanceArgs:
    """``turbotrain.balance.args``: one block a method; only the chosen method's is read."""

    aligned_mtl: AlignedMTLArgs = group(AlignedMTLArgs, "Aligned-MTL.")
    cagrad: CAGradArgs = group(CAGradArgs, "CAGrad.")
    dwa: DWAArgs = group(DWAArgs, "Dynamic Weight Average.")
    gradnorm: GradNormArgs = group(GradNormArgs, "GradNorm.")
    moco: MoCoArgs = group(MoCoArgs, "MoCo.")
    pcgrad: PCGradArgs = group(PCGradArgs, "PCGrad.")
    uncertainty: UncertaintyArgs = group(UncertaintyArgs, "Uncertainty weighting.")
    torchjd: TorchJDArgs = group(TorchJDArgs, "Any weighting of TorchJD.")

    def of(self, method: str) -> dict[str, Any]:
        """Return argument -> value of ``method``, those left empty missing."""
        block = getattr(self, method.partition(":")[0], None)
        if block is None:
            return {}
        found = {field.name: getattr(block, field.name) for field in dataclasses.fields(block)}
        return {name: value for name, value in found.items() if value is not None}
