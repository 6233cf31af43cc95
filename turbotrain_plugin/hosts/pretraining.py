"""Masked pretraining around a host's model: its encoder and fusion, our masks, heads and losses.

70 % of every agent's voxel columns are taken out of the batch; the model runs as it is up to its
fusion, whose output a hook catches, and our heads rebuild points and occupancy from it. What the
model does behind the fusion is not run. Hidden columns are dropped, not replaced by a token: the
hosts' encoders have no place for one (``turbotrain.pretrain.mask.mode: drop``).
"""

from __future__ import annotations

from typing import Any, Final, cast

import torch
from torch import Tensor, nn

from turbotrain_plugin.config import HostModules as ModulePaths
from turbotrain_plugin.config import HostPretrain
from turbotrain_plugin.geometry.grid import BevGrid
from turbotrain_plugin.hosts.batches import to_batch, with_points
from turbotrain_plugin.hosts.learner import HostLosses
from turbotrain_plugin.pretraining import MaskedPretrainer
from turbotrain_plugin.structures import Batch, UserError

KNOWN: Final[dict[str, tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "point_pillar_fcooper": (("pillar_vfe", "backbone", "shrink_conv"), ("fusion_net",)),
    "point_pillar_intermediate": (("pillar_vfe",), ("backbone",)),
    "point_pillar_transformer": (("pillar_vfe", "backbone", "shrink_conv"), ("fusion_net",)),
    "point_pillar_v2vnet": (("pillar_vfe", "backbone", "shrink_conv"), ("fusion_net",)),
    "point_pillar_baseline": (("pillar_vfe", "backbone", "shrink_conv"), ("fusion_net",)),
    "point_pillar_disconet": (("pillar_vfe", "backbone", "shrink_conv"), ("fusion_net",)),
    "second_intermediate": (("backbone_3d",), ("backbone_2d",)),
}
"""``model.core_method`` -> attributes of encoder and of fusion; those a model lacks are left out.

The last of the fusion's is the one whose output is rebuilt from. Attentive fusion sits inside the
hosts' 2-D backbone.
"""
_MAP_KEY: Final = "spatial_features_2d"


class _Reached(Exception):  # noqa: N818 - not an error
    """The fusion has answered."""


def module_paths(core_method: str, model: nn.Module, given: ModulePaths) -> ModulePaths:
    """Return the attributes of encoder and fusion that are pretrained and handed on.

    Args:
        core_method: ``model.core_method``.
        model: The host's model.
        given: ``turbotrain.pretrain.modules``.

    Raises:
        UserError: When the model is not known and they are not given, or one does not exist.
    """
    if not given.fusion and core_method not in KNOWN:
        raise UserError(
            f"Which parts of {core_method} are pretrained? Set turbotrain.pretrain.modules: "
            "{encoder: [...], fusion: [...]} to attributes of the model ("
            f"{', '.join(name for name, _ in model.named_children())}). Known without: "
            f"{', '.join(KNOWN)}."
        )
    modules = dict(model.named_modules())
    missing = [path for path in (*given.encoder, *given.fusion) if path not in modules]
    if missing:
        raise UserError(
            f"turbotrain.pretrain.modules names {', '.join(missing)}, but {core_method} has "
            f"{', '.join(name for name, _ in model.named_children())}."
        )
    encoder, fusion = KNOWN.get(core_method, ((), ()))
    found = ModulePaths(
        encoder=given.encoder or tuple(path for path in encoder if path in modules),
        fusion=given.fusion or tuple(path for path in fusion if path in modules),
    )
    if not found.fusion:
        raise UserError(
            f"This {core_method} has no {', '.join(fusion)}: set turbotrain.pretrain.modules: "
            "{encoder: [...], fusion: [...]} to attributes of the model ("
            f"{', '.join(name for name, _ in model.named_children())})."
        )
    return found


class HostNetwork(nn.Module):
    """A host's model up to its fusion, as ``MaskedPretrainer`` wants a module of one's own.

    Args:
        model: The host's.
        fusion: Attribute whose output is rebuilt from.
        ego: A batch to learn the shape of that output from.
        hypes: Parsed; point range and voxel size are read.

    Attributes:
        grid: Voxels, and the cells of the fusion's output.
        head_channels: Its channels.
    """

    def __init__(
        self, model: nn.Module, fusion: str, ego: dict[str, Any], hypes: dict[str, Any]
    ) -> None:
        super().__init__()
        self.model = model
        self._fusion = fusion
        self._range = tuple(float(value) for value in hypes["preprocess"]["cav_lidar_range"])
        self._voxel = tuple(float(value) for value in hypes["preprocess"]["args"]["voxel_size"])
        self._cells = tuple(
            round((self._range[axis + 3] - self._range[axis]) / self._voxel[axis])
            for axis in (0, 1)
        )
        self._ego = ego
        modes = [(module, module.training) for module in model.modules()]
        model.eval()
        with torch.no_grad():
            maps = self._until_fusion(ego)
        for module, training in modes:
            module.training = training
        self.head_channels = maps.shape[1]
        self.grid = BevGrid(
            range_m=cast("tuple[float, float, float, float, float, float]", self._range),
            voxel_m=cast("tuple[float, float, float]", self._voxel),
            stride=round(self._cells[0] / maps.shape[3]),
        )

    def take(self, ego: dict[str, Any]) -> Batch:
        """Remember a host's batch for the coming pass, and return it as ours."""
        self._ego = ego
        return with_points(to_batch(ego))

    def forward(self, batch: Batch) -> Tensor:
        """Return (B, C, H, W): the host's model on what is visible, up to its fusion.

        An agent of which nothing is left keeps one empty voxel: the hosts count agents by theirs.
        """
        voxels = batch.voxels
        present = torch.zeros(voxels.map_count, dtype=torch.bool, device=voxels.points.device)
        present[voxels.coordinates[:, 0].long()] = True
        blank = (~present).nonzero()
        corner = nn.functional.pad(blank, (0, 3)).to(voxels.coordinates)
        empty = voxels.points.new_zeros(len(blank), *voxels.points.shape[1:])
        lidar = {
            **self._ego["processed_lidar"],
            "voxel_features": torch.cat([voxels.points, empty]),
            "voxel_coords": torch.cat([voxels.coordinates, corner]),
            "voxel_num_points": torch.cat(
                [voxels.point_counts, voxels.point_counts.new_ones(len(blank))]
            ),
        }
        return self._until_fusion({**self._ego, "processed_lidar": lidar})

    def _until_fusion(self, ego: dict[str, Any]) -> Tensor:
        caught: list[Any] = []

        def catch(_module: nn.Module, _inputs: Any, output: Any) -> None:  # noqa: ANN401
            caught.append(output)
            raise _Reached

        hook = self.model.get_submodule(self._fusion).register_forward_hook(catch)
        try:
            self.model(ego)
        except _Reached:
            return self._as_map(caught[0])
        finally:
            hook.remove()
        raise UserError(
            f"The model never called {self._fusion}; set turbotrain.pretrain.modules.fusion."
        )

    def _as_map(self, output: Any) -> Tensor:  # noqa: ANN401 - tensor, tuple or dictionary
        if isinstance(output, dict):
            output = output.get(_MAP_KEY)
        if isinstance(output, list | tuple):
            output = output[0]
        if not isinstance(output, Tensor) or output.dim() != 4:
            raise UserError(
                f"The output of {self._fusion} is no map (B, C, H, W); set "
                "turbotrain.pretrain.modules.fusion to a module whose output is."
            )
        width, height = self._cells
        first = width * output.shape[2] == height * output.shape[3]
        return output if first else output.permute(0, 3, 1, 2)


class MaskedLearner:
    """A host's model taught by reconstruction.

    Args:
        network: Around the host's model.
        keys: ``turbotrain.pretrain``.

    Raises:
        UserError: When the keys ask for what hosts cannot do.
    """

    def __init__(self, network: HostNetwork, keys: HostPretrain) -> None:
        whole = keys.agent_fusion and keys.target_frames == "current" and not keys.compression
        if keys.mask.mode != "drop" or not whole or keys.init or keys.root_dir:
            raise UserError(
                "Around a host's model turbotrain.pretrain.mask.mode must be drop, agent_fusion "
                "true, target_frames current, and compression, init and root_dir as they are."
            )
        self.network = network
        self.module: nn.Module = MaskedPretrainer(network, network.grid, keys)

    def train_mode(self) -> None:
        """Put everything into training mode."""
        self.module.train()

    def losses(self, ego: dict[str, Any], generator: torch.Generator) -> HostLosses:
        """Return the reconstruction losses; ``generator`` draws the mask."""
        losses, _ = self.module(self.network.take(ego), generator)
        return HostLosses(losses.total(), losses.tasks)
