"""A run that starts from somebody else's weights: which file, what is in it, what fits."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from torch import Tensor, nn

from turbotrain_plugin.config import PretrainConfig
from turbotrain_plugin.engine import checkpoints, exchange
from turbotrain_plugin.engine.records import LOG
from turbotrain_plugin.engine.stages import PRETRAIN
from turbotrain_plugin.errors import UserError
from turbotrain_plugin.models import CooperativeNetwork
from turbotrain_plugin.pretraining import InitialWeights, load_initial

_INSIDE: Final = ("model", "state_dict", "model_state_dict", "model_state", "net")
"""Under which names others keep the weights of a checkpoint that holds more."""


def start_from(
    init: str,
    network: CooperativeNetwork,
    modules: Mapping[str, nn.Module],
    keys: PretrainConfig,
) -> InitialWeights:
    """Fill modules of a network from ``turbotrain.pretrain.init`` and log what arrived.

    Args:
        init: Run folder or file.
        network: Receives the weights in place.
        modules: Modules of it to fill, by their attribute's name.
        keys: ``min_coverage`` and ``init_rename``.

    Raises:
        UserError: When there is no such file, it is no plain checkpoint, or nothing fits.
    """
    file = exchange.shared(lambda: weights_file(Path(init).expanduser()))
    report = load_initial(
        exchange.shared(lambda: weights_of(checkpoints.load(file))),
        network,
        modules,
        min_coverage=keys.min_coverage,
        rename=keys.init_rename,
        source=str(file),
    )
    LOG.info("starting from %s\n%s", file, report.table())
    return report


def weights_file(init: Path) -> Path:
    """Return the file behind ``init``.

    Of a run folder it is what pretraining left; without that the best, last or newest weights, or
    OpenCOOD's ``latest.pth`` and ``net_epoch_bestval_at<N>.pth``.

    Raises:
        UserError: When there is none.
    """
    if not init.is_dir():
        return init
    pretrained = checkpoints.stage_weights(init, PRETRAIN)
    others = [*init.glob("net_epoch_bestval_at*.pth"), init / "latest.pth"]
    for path in (pretrained, *others):
        if path.is_file():
            return path
    try:
        return checkpoints.find_weights(init)
    except UserError as error:
        raise UserError(f"turbotrain.pretrain.init: {error}") from error


def weights_of(state: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the named tensors of a checkpoint, which may lie one level down."""
    for name in _INSIDE:
        inner = state.get(name)
        if isinstance(inner, Mapping):
            state = inner
            break
    return {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
