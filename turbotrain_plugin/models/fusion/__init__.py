"""Agent fusion, one paper per file. To add one: a file, and a line in ``FUSIONS``."""

from typing import Final

from turbotrain_plugin.models.fusion.base import AgentFusion, AgentLayout
from turbotrain_plugin.models.fusion.cobevflow import CoBEVFlow
from turbotrain_plugin.models.fusion.fcooper import FCooper
from turbotrain_plugin.models.fusion.ffnet import FFNet
from turbotrain_plugin.models.fusion.no_fusion import NoFusion
from turbotrain_plugin.models.fusion.v2xpnp import V2XPnP

FUSIONS: Final = {
    "v2xpnp": V2XPnP,
    "fcooper": FCooper,
    "ffnet": FFNet,
    "cobevflow": CoBEVFlow,
    "no_fusion": NoFusion,
}
"""``model.args.fusion.core_method`` -> class, called with the keys and the channels."""

__all__ = [
    "FUSIONS",
    "AgentFusion",
    "AgentLayout",
    "CoBEVFlow",
    "FCooper",
    "FFNet",
    "NoFusion",
    "V2XPnP",
]
