"""Gradient balancing: an optimiser wrapper, the rules it follows, and what it reports.

This room knows tensors and names only; it can be lifted out of the package with ``UserError``.
"""

from typing import Final

from turbotrain_plugin.balancing.base import Balancer
from turbotrain_plugin.balancing.conflict_suppression import ConflictSuppression
from turbotrain_plugin.balancing.none import PlainSum
from turbotrain_plugin.balancing.optimizer import GradientBalancer
from turbotrain_plugin.balancing.records import BalanceRecord, BalanceWindow
from turbotrain_plugin.balancing.schedule import HybridSchedule, ScheduleWarning, schedule_warnings

BALANCERS: Final[dict[str, type[Balancer]]] = {
    "conflict_suppression": ConflictSuppression,
    "none": PlainSum,
}
"""Name in YAML (``turbotrain.balance.method``) -> method."""

__all__ = [
    "BALANCERS",
    "BalanceRecord",
    "BalanceWindow",
    "Balancer",
    "ConflictSuppression",
    "GradientBalancer",
    "HybridSchedule",
    "PlainSum",
    "ScheduleWarning",
    "schedule_warnings",
]
