"""Agent fusion, one paper per file. To add one: a file, and a line in ``FUSIONS``."""

from typing import Final

from turbotrain_plugin.models.fusion.attfuse import AttFuse
from turbotrain_plugin.models.fusion.base import AgentFusion, AgentLayout
from turbotrain_plugin.models.fusion.cobevflow import CoBEVFlow
from turbotrain_plugin.models.fusion.disconet import DiscoNet
from turbotrain_plugin.models.fusion.early import EarlyFusion
from turbotrain_plugin.models.fusion.fcooper import FCooper
from turbotrain_plugin.models.fusion.ffnet import FFNet
from turbotrain_plugin.models.fusion.late import LateFusion
from turbotrain_plugin.models.fusion.no_fusion import NoFusion
from turbotrain_plugin.models.fusion.v2vnet import V2VNet
from turbotrain_plugin.models.fusion.v2xpnp import V2XPnP
from turbotrain_plugin.models.fusion.v2xvit import V2XViT

FUSIONS: Final = {
    "v2xpnp": V2XPnP,
    "fcooper": FCooper,
    "attfuse": AttFuse,
    "disconet": DiscoNet,
    "v2vnet": V2VNet,
    "v2xvit": V2XViT,
    "ffnet": FFNet,
    "cobevflow": CoBEVFlow,
    "no_fusion": NoFusion,
    "early": EarlyFusion,
    "late": LateFusion,
}
"""``model.args.fusion.core_method`` -> class, called with the keys and the channels."""

__all__ = [
    "FUSIONS",
    "AgentFusion",
    "AgentLayout",
    "AttFuse",
    "CoBEVFlow",
    "DiscoNet",
    "EarlyFusion",
    "FCooper",
    "FFNet",
    "LateFusion",
    "NoFusion",
    "V2VNet",
    "V2XPnP",
    "V2XViT",
]
