"""Keys of losses, optimisers, pretraining, balancing, strategies and evaluation."""

from __future__ import annotations

from dataclasses import dataclass

from turbotrain_plugin.config.balancing import TORCHJD, BalanceArgs
from turbotrain_plugin.config.data import Range
from turbotrain_plugin.config.keys import group, key


@dataclass(frozen=True, slots=True, kw_only=True)
class LossArgs:
    """``loss.args``."""

    cls_weight: float = key(1.0, "Weight of the classification focal loss.")
    reg_weight: float = key(2.0, "Weight of the box regression loss.", aliases=("reg",))
    prediction_weight: float = key(1.0, "Weight of the trajectory loss.")
    focal_alpha: float = key(0.25, "Focal alpha of classification.")
    focal_gamma: float = key(2.0, "Focal gamma of classification.")
    ignore_band: bool = key(False, "Leave out anchors between the thresholds (else negatives).")
    smooth_l1_beta: float = key(1.0 / 9.0, "Transition point of the smooth L1 loss.")
    traj_loss: str = key("l2", "Trajectory loss.", choices=("l2", "mse", "smooth_l1"))
    traj_beta_m: float = key(1.0, "Transition point of the smooth_l1 trajectory loss, metres.")
    traj_decay: float = key(1.0, "Weight of step k is this to the power k.")
    moving_weight: float = key(
        1.0, "Weight in the trajectory loss of objects that get farther than 2 m (others: 1)."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """``loss``."""

    core_method: str = key("detection_and_prediction", "Accepted for OpenCOOD files.")
    args: LossArgs = group(LossArgs, "Weights and shapes of the losses.")


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerArgs:
    """``optimizer.args``."""

    eps: float = key(1e-10, "Adam's epsilon.")
    weight_decay: float = key(1e-4, "Weight decay.")
    betas: tuple[float, float] = key((0.9, 0.999), "Adam's running averages.")


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerConfig:
    """``optimizer``."""

    core_method: str = key("Adam", "Optimiser.", choices=("Adam", "AdamW", "SGD"))
    lr: float = key(2e-3, "Learning rate.")
    args: OptimizerArgs = group(OptimizerArgs, "Its arguments.")
    clip_norm: float = key(0.0, "Gradient norm limit after combining (0: none).")


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """``lr_scheduler``; stepped after every optimiser step, in units of epochs."""

    core_method: str = key(
        "multistep",
        "Learning-rate schedule.",
        choices=("none", "step", "multistep", "exponential", "cosine", "cosineannealwarm"),
    )
    gamma: float = key(0.1, "Factor per step (step, multistep) or epoch (exponential).")
    step_size: tuple[int, ...] = key((10, 15), "Epochs at which the rate falls; one value: period.")
    lr_min: float = key(0.0, "Final rate of the cosine.")
    warmup_lr: float = key(0.0, "Rate at the very start of the warm-up.")
    warmup_epoches: float = key(0.0, "Warm-up length in epochs.", aliases=("warmup_epochs",))
    epoches: int = key(0, "Accepted for OpenCOOD files; the stage's epochs rule.")


@dataclass(frozen=True, slots=True, kw_only=True)
class MaskConfig:
    """``turbotrain.pretrain.mask``."""

    ratio: float = key(0.7, "Share of the non-empty BEV columns that is hidden (paper).")
    scope: str = key(
        "independent",
        "independent: a draw per agent and frame, so another may show what one hides; tube: one "
        "for an agent's frames; shared: one for all agents and frames. Our choice.",
        choices=("independent", "tube", "shared"),
    )
    mode: str = key(
        "token_sites",
        "Masked voxels carry a learned token at their place (which shows where points were), or "
        "are dropped.",
        choices=("token_sites", "drop"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PointHeadConfig:
    """``turbotrain.pretrain.points``."""

    weight: float = key(1.0, "Weight of the point reconstruction loss (0: off).")
    count: int = key(20, "Points predicted per cell (paper).")
    max_targets: int = key(64, "True points per cell, at most; a random choice beyond.")
    chamfer: str = key("l1", "Point distance.", choices=("l1", "l2"))
    pool: str = key("cell", "Average true points per cell first, or all.", choices=("cell", "all"))
    z_scale: float = key(1.0, "Factor on the normalised z.")


@dataclass(frozen=True, slots=True, kw_only=True)
class OccupancyHeadConfig:
    """``turbotrain.pretrain.occ``."""

    weight: float = key(1.0, "Weight of the occupancy loss (0: off).")
    bins: int = key(20, "Height bins per cell. Our choice.")
    focal: str = key(
        "printed",
        "printed: alpha 2, gamma 0.25 as in the supplement; standard: 0.25, 2.",
        choices=("printed", "standard", "custom"),
    )
    alpha: float = key(2.0, "Focal alpha when focal: custom.")
    gamma: float = key(0.25, "Focal gamma when focal: custom.")
    alpha_balanced: bool = key(False, "alpha on occupied, 1 - alpha on empty bins.")
    empty_ratio: float = key(1.0, "Random empty cells supervised per masked cell.")


def _paper_pretrain_optimizer() -> OptimizerConfig:
    return OptimizerConfig(core_method="AdamW", lr=2e-3, args=OptimizerArgs(weight_decay=1e-2))


def _paper_pretrain_scheduler() -> SchedulerConfig:
    return SchedulerConfig(core_method="cosine")


@dataclass(frozen=True, slots=True, kw_only=True)
class PretrainConfig:
    """``turbotrain.pretrain``."""

    epoches: int = key(
        15, "Epochs (paper); 0, with init: go to fine-tuning at once.", aliases=("epochs",)
    )
    batch_size: int = key(4, "Samples per process and step (paper).")
    root_dir: tuple[str, ...] = key(
        (), "Logs to pretrain on, labels not needed ([]: root_dir). Our choice."
    )
    init: str = key(
        "",
        "Weights to start from: a run folder, or a .ckpt or .pth file of ours or in OpenCOOD's "
        "names; modules they lack start afresh. Our choice.",
    )
    init_rename: tuple[str, ...] = key(
        (), "Prefixes old=new of the names in init, replaced before they are matched. Our choice."
    )
    optimizer: OptimizerConfig = group(
        _paper_pretrain_optimizer, "Optimiser; the paper: AdamW, 2e-3, weight decay 1e-2."
    )
    lr_scheduler: SchedulerConfig = group(_paper_pretrain_scheduler, "Schedule; the paper: cosine.")
    mask: MaskConfig = group(MaskConfig, "What is hidden.")
    points: PointHeadConfig = group(PointHeadConfig, "Point reconstruction.")
    occ: OccupancyHeadConfig = group(OccupancyHeadConfig, "Occupancy reconstruction.")
    loss_region: str = key(
        "any", "Cells masked in any, or in all agents that see them.", choices=("any", "all")
    )
    target_frames: str = key(
        "current",
        "Rebuild the current frame, or all of them, each with outputs of its own. Our choice.",
        choices=("current", "all"),
    )
    hist_frames: int = key(
        0,
        "Past frames including the current one (0: turbotrain.data.hist_frames). With fewer, what "
        "temporal fusion learns per frame starts afresh in fine-tuning.",
    )
    agent_fusion: bool = key(True, "Reconstruct from the fused feature (else from the ego's).")
    compression: bool = key(
        False, "Send maps through the compressor, which is then handed on, too. Our choice."
    )
    min_coverage: float = key(1.0, "Share of each transferred module that must load.")
    transfer_neck: bool = key(
        False,
        "Hand on a neck that comes behind fusion, too; it has then learnt to reconstruct, like the "
        "decoders. A neck before fusion is always handed on. Our choice.",
    )
    data_augment: bool = key(True, "Augment in pretraining as in fine-tuning.")


@dataclass(frozen=True, slots=True, kw_only=True)
class BalanceConfig:
    """``turbotrain.balance``."""

    method: str = key(
        "conflict_suppression",
        "What a balanced step does with the task gradients (torchjd:<Name>: TorchJD's weighting).",
        choices=(
            "conflict_suppression",
            "none",
            "aligned_mtl",
            "cagrad",
            "dwa",
            "gradnorm",
            "moco",
            "pcgrad",
            "uncertainty",
            f"{TORCHJD}:*",
        ),
    )
    args: BalanceArgs = group(BalanceArgs, "Arguments of the methods.")
    free_steps: int = key(2000, "Free steps n of a cycle (paper).", aliases=("n",))
    balance_steps: int = key(1000, "Balanced steps m of a cycle (paper).", aliases=("m",))
    schedule: str = key(
        "hybrid",
        "hybrid: n free, m balanced steps, again (paper); every_step: AP 0.0 in its ablation.",
        choices=("hybrid", "every_step", "never", "after_warmup"),
    )
    warmup_steps: int = key(2000, "Free steps before after_warmup balances. Our choice.")
    unit: str = key(
        "steps",
        "Count n, m and the warm-up in steps, or as shares of the stage.",
        choices=("steps", "share"),
    )
    free_share: float = key(0.2, "n as a share, with unit share. Our choice.")
    balance_share: float = key(0.1, "m as a share, with unit share. Our choice.")
    warmup_share: float = key(0.2, "The warm-up as a share, with unit share. Our choice.")
    shared: tuple[str, ...] = key((), "Name patterns of shared parameters ([]: from the graph).")
    source: str = key(
        "exact_low_memory",
        "Task gradients of all shared parameters (exact*), of those above a cut, at the feature.",
        choices=("exact", "exact_low_memory", "cut", "feature"),
    )
    cut: tuple[str, ...] = key(
        ("encoder",), "Name patterns of the modules below the cut (source cut). Our choice."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class ManualConfig:
    """``turbotrain.manual``: the four stages of strategy ``manual``."""

    epoches: tuple[int, ...] = key(
        (),
        "Epochs of the four stages ([]: train_params.epoches in each). Our choice.",
        aliases=("epochs",),
    )
    freeze_head: bool = key(
        True, "The second stage freezes the detection head beside the backbone. Our choice."
    )
    weighting: str = key(
        "dwa",
        "Dynamic loss weighting of the fourth stage, in every step (arguments: balance.args); the "
        "paper names no method.",
        choices=("dwa", "uncertainty", "none"),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationConfig:
    """``turbotrain.evaluation``; every value is written into the protocol beside the numbers."""

    range: Range | None = key(None, "Evaluation range x, y, z ([]: the point range).")
    iou: tuple[float, ...] = key((0.3, 0.5, 0.7), "BEV IoU thresholds of AP.")
    match: str = key(
        "center_2m",
        "How detections meet objects for ADE, FDE, MR, EPA.",
        choices=("center_2m", "center_1m", "iou_0.5"),
    )
    miss_m: float = key(2.0, "FDE above which a prediction misses, metres.")
    epa_alpha: float = key(0.5, "Weight of a false positive in EPA.")
    epa_gt: str = key("valid_final", "Objects EPA counts.", choices=("valid_final", "all"))
    count_empty_frames: bool = key(True, "False positives of frames without objects count.")
    max_samples: int = key(0, "Samples of a validation during training (0: all).")
    moving_m: float = key(2.0, "Net displacement that makes an object moving, metres.")
    pictures: int = key(4, "Scenes drawn after an evaluation.")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoggingConfig:
    """``turbotrain.logging``."""

    log_dir: str = key("logs", "Where run folders are made.")
    tensorboard: bool = key(True, "Write TensorBoard events.")
    save_steps: int = key(200, "Steps between two last.ckpt (0: only at epoch ends).")
    keep: int = key(3, "net_epoch files kept (0: all).")


@dataclass(frozen=True, slots=True, kw_only=True)
class TurboTrainConfig:
    """``turbotrain``: our block."""

    strategy: str = key(
        "turbotrain",
        "Which stages run.",
        choices=(
            "turbotrain",
            "turbotrain_no_balance",
            "pretrain_only",
            "one_time",
            "one_time_single_agent",
            "manual",
        ),
    )
    pretrain: PretrainConfig = group(PretrainConfig, "Stage 1, masked reconstruction.")
    balance: BalanceConfig = group(BalanceConfig, "Stage 2, gradient balancing.")
    manual: ManualConfig = group(ManualConfig, "The stages of strategy manual.")
    evaluation: EvaluationConfig = group(EvaluationConfig, "Metrics and their protocol.")
    logging: LoggingConfig = group(LoggingConfig, "Run folder.")
    accumulate: int = key(1, "Batches per optimiser step.")
    patience: int = key(0, "Validations without a better one before stopping early (0: never).")
    monitor: str = key(
        "ap_0.50", "What best.ckpt maximises.", choices=("ap_0.30", "ap_0.50", "ap_0.70", "epa")
    )
    max_bad_steps: int = key(20, "Non-finite steps in a row before the run stops.")
    amp: str = key("off", "Mixed precision.", choices=("off", "bf16", "fp16"))
    sync_batchnorm: bool = key(
        False,
        "Normalise by the batches of all processes together (GPUs only), else each by its own, "
        "with running statistics averaged over them. Our choice.",
    )
    deterministic: bool = key(True, "Ask torch for deterministic algorithms.")
    threads: int = key(0, "Torch threads of the main process (0: torch's own choice).")
