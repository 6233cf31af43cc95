"""Keys of the ``turbotrain`` block in a hypes file of OpenCOOD or one of its forks."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any, Final

from turbotrain_plugin.config.build import build
from turbotrain_plugin.config.data import RepairConfig
from turbotrain_plugin.config.keys import group, key
from turbotrain_plugin.config.model import ModelConfig
from turbotrain_plugin.config.training import (
    BalanceConfig,
    EvaluationConfig,
    LoggingConfig,
    MaskConfig,
    PretrainConfig,
)
from turbotrain_plugin.config.yaml_tree import Located
from turbotrain_plugin.errors import UserError

BLOCK: Final = "turbotrain"
HOST_READS: Final = "host"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostDataKeys:
    """``turbotrain.host.data``: our reader in place of the scan and the file reading of a host."""

    format: str = key(
        HOST_READS,
        "host: the host reads its data set itself; else our reader does, auto: by the files.",
        choices=(HOST_READS, "auto", "v2xpnp_seq", "v2xreal", "opv2v", "v2xset", "v2v4real"),
    )
    classes: tuple[str, ...] = key(
        ("Car", "Van", "PoliceCar", "LongVehicle", "Bus", "Truck", "ConcreteTruck"),
        "Raw obj_type values that hosts of one class learn ([]: all); V2X-Real and CooPre group "
        "all types themselves.",
    )
    repair: RepairConfig = group(RepairConfig, "Flaws of labels to mend.")
    cache_dir: str = key("", "Where parsed labels are kept ('': inside the root).")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostKeys:
    """``turbotrain.host``."""

    name: str = key(
        "auto",
        "Whose model the file describes; auto: what the checkout is.",
        choices=("auto", "opencood", "v2xreal", "coopre", "heal"),
    )
    root: str = key("", "The checkout ('': OPENCOOD_ROOT, else where `import opencood` finds it).")
    seed: int = key(0, "Seed of everything; the hosts have none.")
    tasks: tuple[str, ...] = key(
        (), "Entries of the criterion's loss_dict that are tasks ([]: all but the total)."
    )
    workers: int = key(-1, "Loader processes (-1: as many as the host's train.py).")
    random: str = key(
        "step",
        "step: every draw follows from seed and step, exact to resume anywhere; host: the streams "
        "of the host's train.py, exact to resume from the ends of epochs.",
        choices=("step", "host"),
    )
    evaluate: bool = key(True, "Evaluate by the host's rules and by ours after training.")
    data: HostDataKeys = group(HostDataKeys, "Our reader in place of the host's.")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostModules:
    """``turbotrain.pretrain.modules``: attributes of the host's model."""

    encoder: tuple[str, ...] = key((), "What turns voxels into a map per agent ([]: as known).")
    fusion: tuple[str, ...] = key((), "What fuses the agents' maps ([]: as known).")


def _dropped() -> MaskConfig:
    return MaskConfig(mode="drop")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPretrain(PretrainConfig):
    """``turbotrain.pretrain`` of a host's model; batches are those of ``train_params``."""

    mask: MaskConfig = group(_dropped, "What is hidden; hidden columns are dropped.")
    modules: HostModules = group(HostModules, "What of the host's model is pretrained.")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostBlock:
    """``turbotrain`` in a host's hypes file."""

    strategy: str = key(
        "balance",
        "Which stages run: balance alone, turbotrain (pretrain, balance), turbotrain_no_balance "
        "(pretrain, plain sum), one_time (plain sum).",
        choices=("balance", "turbotrain", "turbotrain_no_balance", "one_time"),
    )
    host: HostKeys = group(HostKeys, "The host and its checkout.")
    pretrain: HostPretrain = group(HostPretrain, "Masked reconstruction around the host's model.")
    balance: BalanceConfig = group(BalanceConfig, "Gradient balancing.")
    evaluation: EvaluationConfig = group(EvaluationConfig, "Our metrics of the host's detections.")
    logging: LoggingConfig = group(LoggingConfig, "Run folder.")
    max_bad_steps: int = key(20, "Non-finite steps in a row before the run stops.")
    clip_norm: float = key(0.0, "Gradient norm limit after combining (0: none).")
    amp: str = key("off", "Mixed precision.", choices=("off", "bf16", "fp16"))
    threads: int = key(0, "Torch threads of the main process (0: torch's own choice).")


def describes_host(tree: Located) -> bool:
    """Return whether a hypes file is a host's: it names a model that is not ours, nor misspelt."""
    model = tree.value.get("model") if isinstance(tree.value, dict) else None
    method = model.value.get("core_method") if model and isinstance(model.value, dict) else None
    if method is None:
        return False
    return not difflib.get_close_matches(
        str(method.value), [ModelConfig().core_method], cutoff=0.75
    )


def host_block(tree: Located) -> HostBlock:
    """Return our block of a host's hypes file; without one, the host's own training is repeated.

    Raises:
        UserError: On unknown keys and wrong values, and when labels shall be mended that the host
            reads.
    """
    own = tree.value.get(BLOCK) if isinstance(tree.value, dict) else None
    if own is None:
        return HostBlock(strategy="one_time", host=HostKeys(random="host"))
    block = build(HostBlock, own, BLOCK)
    data = block.host.data
    if data.format == HOST_READS and data.repair != RepairConfig():
        raise UserError(
            f"{own.place}: turbotrain.host.data.repair mends what our reader reads: set "
            "turbotrain.host.data.format to auto or a format. Found 'host'."
        )
    return block


def host_data(plain: dict[str, Any]) -> HostDataKeys:
    """Return ``turbotrain.host.data`` of hypes that a host's script has in hand.

    Raises:
        UserError: As ``host_block``.
    """
    block = plain.get(BLOCK)
    return host_block(_located({BLOCK: block})).host.data if block else HostDataKeys()


def _located(value: Any) -> Located:  # noqa: ANN401 - JSON-like
    if isinstance(value, dict):
        value = {str(name): _located(item) for name, item in value.items()}
    elif isinstance(value, list | tuple):
        value = [_located(item) for item in value]
    return Located(value, "the hypes file", 0)
