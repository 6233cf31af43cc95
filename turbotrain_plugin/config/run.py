"""The whole hypes file as one frozen object."""

from __future__ import annotations

from dataclasses import dataclass

from turbotrain_plugin.config.data import (
    AugmentStep,
    DataConfig,
    FusionParams,
    Postprocess,
    Preprocess,
    TrainParams,
    WildSetting,
)
from turbotrain_plugin.config.keys import group, key
from turbotrain_plugin.config.model import ModelConfig
from turbotrain_plugin.config.training import (
    LossConfig,
    OptimizerConfig,
    SchedulerConfig,
    TurboTrainConfig,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TurboTrainBlock(TurboTrainConfig):
    """``turbotrain`` with its data keys."""

    data: DataConfig = group(DataConfig, "Windows, labels and loading.")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConfig:
    """A resolved hypes file, OpenCOOD's top level and our ``turbotrain`` block."""

    name: str = key("turbotrain", "Run name; the run folder is <name>_<time>.")
    root_dir: tuple[str, ...] = key((), "Training split: folder(s), or synthetic:<preset>.")
    validate_dir: tuple[str, ...] = key((), "Validation split: folder(s), or synthetic:<preset>.")
    test_dir: tuple[str, ...] = key((), "Test split ([]: the validation split).")
    yaml_parser: str = key(
        "",
        "Accepted for OpenCOOD files; nothing is evaluated.",
        choices=(
            "",
            "load_point_pillar_params",
            "load_second_params",
            "load_voxel_params",
            "load_bev_params",
            "load_general_params",
        ),
    )
    seed: int = key(0, "Seed of everything.")
    dataset_mode: str = key("vc", "Agents and ego.", choices=("vc", "ic", "v2v", "i2i"))
    comm_range: float = key(50.0, "Agents farther than this from the ego are dropped, metres.")
    train_params: TrainParams = group(TrainParams, "Batch, epochs, agents.")
    fusion: FusionParams = group(FusionParams, "Sample builder.")
    preprocess: Preprocess = group(Preprocess, "Voxels.")
    wild_setting: WildSetting = group(WildSetting, "Latency and pose noise of neighbours.")
    data_augment: tuple[AugmentStep, ...] = key((), "Augmentation, in order.")
    postprocess: Postprocess = group(Postprocess, "Anchors, targets, suppression.")
    model: ModelConfig = group(ModelConfig, "Network.")
    loss: LossConfig = group(LossConfig, "Losses.")
    optimizer: OptimizerConfig = group(OptimizerConfig, "Fine-tuning optimiser.")
    lr_scheduler: SchedulerConfig = group(SchedulerConfig, "Fine-tuning schedule.")
    turbotrain: TurboTrainBlock = group(TurboTrainBlock, "Our block.")
