"""Gradient balancing: an optimiser wrapper, the rules it follows, and what it reports.

This room knows tensors and names only; it can be lifted out of the package with ``UserError``.
"""

from typing import Final

from turbotrain_plugin.balancing.aligned_mtl import AlignedMTL
from turbotrain_plugin.balancing.base import Balancer, StepBalancer, TaskStep
from turbotrain_plugin.balancing.cagrad import CAGrad
from turbotrain_plugin.balancing.conflict_suppression import ConflictSuppression
from turbotrain_plugin.balancing.dwa import DynamicWeightAverage
from turbotrain_plugin.balancing.gradnorm import GradNorm
from turbotrain_plugin.balancing.methods import method_named
from turbotrain_plugin.balancing.moco import MoCo
from turbotrain_plugin.balancing.none import PlainSum
from turbotrain_plugin.balancing.optimizer import GradientBalancer
from turbotrain_plugin.balancing.pcgrad import PCGrad
from turbotrain_plugin.balancing.records import BalanceRecord, BalanceWindow, ModuleRecord
from turbotrain_plugin.balancing.schedule import (
    HybridSchedule,
    Schedule,
    ScheduleWarning,
    WarmupSchedule,
    schedule_named,
    schedule_warnings,
)
from turbotrain_plugin.balancing.torchjd_weighting import TorchJDWeighting
from turbotrain_plugin.balancing.uncertainty import UncertaintyWeighting

BALANCERS: Final[dict[str, type[StepBalancer]]] = {
    "aligned_mtl": AlignedMTL,
    "cagrad": CAGrad,
    "conflict_suppression": ConflictSuppression,
    "dwa": DynamicWeightAverage,
    "gradnorm": GradNorm,
    "moco": MoCo,
    "none": PlainSum,
    "pcgrad": PCGrad,
    "uncertainty": UncertaintyWeighting,
}
"""Name in YAML (``turbotrain.balance.method``) -> method; ``torchjd:<Name>`` stands beside it."""

__all__ = [
    "BALANCERS",
    "AlignedMTL",
    "BalanceRecord",
    "BalanceWindow",
    "Balancer",
    "CAGrad",
    "ConflictSuppression",
    "DynamicWeightAverage",
    "GradNorm",
    "GradientBalancer",
    "HybridSchedule",
    "MoCo",
    "ModuleRecord",
    "PCGrad",
    "PlainSum",
    "Schedule",
    "ScheduleWarning",
    "StepBalancer",
    "TaskStep",
    "TorchJDWeighting",
    "UncertaintyWeighting",
    "WarmupSchedule",
    "method_named",
    "schedule_named",
    "schedule_warnings",
]
