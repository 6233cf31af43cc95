"""Keys that say which data are read, how they are voxelised and which targets are made of them."""

from __future__ import annotations

from dataclasses import dataclass

from turbotrain_plugin.config.keys import group, key

Range = tuple[float, float, float, float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainParams:
    """``train_params``: OpenCOOD's block, its spelling included."""

    batch_size: int = key(4, "Samples per process and step.")
    epoches: int = key(20, "Fine-tuning epochs.", aliases=("epochs",))
    eval_freq: int = key(1, "Validate every this many epochs (0: never).")
    save_freq: int = key(1, "Keep net_epoch{N}.pth every this many epochs.")
    max_cav: int = key(4, "Agents kept per sample, ego first, then the nearest.")


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionArgs:
    """``fusion.args``."""

    proj_first: bool = key(True, "Project points to the ego frame before voxelising.")
    cur_ego_pose_flag: bool = key(True, "Accepted for OpenCOOD files; without effect here.")


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionParams:
    """``fusion``: which sample builder; the fusion network itself is ``model.args.fusion``."""

    core_method: str = key("IntermediateFusionDataset", "Accepted for OpenCOOD files.")
    args: FusionArgs = group(FusionArgs, "Arguments of the sample builder.")


@dataclass(frozen=True, slots=True, kw_only=True)
class PreprocessArgs:
    """``preprocess.args``."""

    voxel_size: tuple[float, float, float] = key((0.1, 0.1, 0.2), "Voxel size x, y, z in metres.")
    max_points_per_voxel: int = key(5, "Points kept per voxel.")
    max_voxel_train: int = key(32000, "Voxels kept per agent and frame in training.")
    max_voxel_test: int = key(70000, "Voxels kept per agent and frame in evaluation.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocess:
    """``preprocess``."""

    core_method: str = key("SpVoxelPreprocessor", "Accepted for OpenCOOD files.")
    args: PreprocessArgs = group(PreprocessArgs, "Voxel sizes and limits.")
    cav_lidar_range: Range = key(
        (-102.4, -40.0, -5.0, 102.4, 40.0, 3.0), "Point range x, y, z min, then max, in metres."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class AugmentStep:
    """One entry of ``data_augment``; drawn once per sample and applied to everything in it."""

    NAME: str = key(
        "random_world_flip",
        "Which transform.",
        choices=(
            "random_world_flip",
            "random_world_rotation",
            "random_world_quarter_turn",
            "random_world_scaling",
        ),
    )
    ALONG_AXIS_LIST: tuple[str, ...] = key(("x",), "Flip: axes that keep their sign.")
    WORLD_ROT_ANGLE: tuple[float, ...] = key(
        (-0.78539816, 0.78539816), "Rotation: angle range, rad."
    )
    WORLD_SCALE_RANGE: tuple[float, float] = key((0.95, 1.05), "Scaling: factor range.")


@dataclass(frozen=True, slots=True, kw_only=True)
class AnchorArgs:
    """``postprocess.anchor_args``."""

    cav_lidar_range: Range | None = key(None, "Accepted for OpenCOOD files; must equal the range.")
    l: float = key(3.9, "Anchor length in metres.")  # noqa: E741 - OpenCOOD's key
    w: float = key(1.6, "Anchor width in metres.")
    h: float = key(1.56, "Anchor height in metres.")
    r: tuple[float, ...] = key((0.0, 90.0), "Anchor yaws in degrees.")
    num: int = key(2, "Anchors per cell; must equal the number of yaws.")
    feature_stride: int = key(8, "Voxels per BEV cell.")
    z: float = key(-1.0, "Height of the anchor centre in the ego LiDAR frame, metres.")
    vw: float | None = key(None, "Accepted for OpenCOOD files; taken from voxel_size.")
    vh: float | None = key(None, "Accepted for OpenCOOD files; taken from voxel_size.")


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetArgs:
    """``postprocess.target_args``."""

    pos_threshold: float = key(0.6, "Hull IoU above which an anchor is positive.")
    neg_threshold: float = key(0.45, "Hull IoU with every box below which an anchor is negative.")
    score_threshold: float = key(0.2, "Score below which a detection is dropped.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Postprocess:
    """``postprocess``."""

    core_method: str = key("VoxelPostprocessor", "Accepted for OpenCOOD files.")
    anchor_args: AnchorArgs = group(AnchorArgs, "Anchors.")
    target_args: TargetArgs = group(TargetArgs, "Assignment and score thresholds.")
    order: str = key("hwl", "Order of the size residuals.", choices=("hwl",))
    max_num: int = key(100, "Accepted for OpenCOOD files; ours has no limit on labels.")
    nms_thresh: float = key(0.15, "Rotated BEV IoU above which the lower score is suppressed.")
    nms_candidates: int = key(1000, "Highest scores that enter suppression.")
    max_box_extent: float = key(
        6.0, "Detections longer than this along x or y are dropped (0: keep all), metres."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class WildSetting:
    """``wild_setting``: OpenCOOD's block; late messages and wrong poses of neighbours.

    Training and evaluation read it alike, as upstream; pretraining, labels and the training of
    late fusion never do.
    """

    async_: bool = key(False, "Neighbours' messages are late.")
    async_mode: str = key(
        "sim",
        "sim: async_overhead for all; real: up to that, plus transmission and backbone.",
        choices=("sim", "real"),
    )
    async_overhead: float = key(0.0, "Latency in ms; whole frames of 100 ms count, rounded down.")
    loc_err: bool = key(False, "Neighbours' poses are wrong.")
    xyz_std: float = key(0.0, "Standard deviation of the position along x, y and z, metres.")
    ryp_std: float = key(0.0, "Standard deviation of the yaw, degrees (roll and pitch stay).")
    seed: int = key(0, "Seed of every disturbance, drop-out included.")
    data_size: float = key(0.0, "Mode real: size of a message, megabits.")
    transmission_speed: float = key(27.0, "Mode real: megabits per second.")
    backbone_delay: float = key(0.0, "Mode real: computing time of the sender, ms.")


@dataclass(frozen=True, slots=True, kw_only=True)
class RepairConfig:
    """``turbotrain.data.repair``: known flaws of labels, mended on reading; off by default."""

    heading_flips: bool = key(
        False, "Turn vehicle tracks round that drive backwards in 90 % of their moving steps."
    )
    duplicate_ids: bool = key(False, "Merge ids that different agents gave to one object.")
    fill_gaps_s: float = key(0.0, "Longest gap of a track that boxes are put into, s (0: none).")


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """``turbotrain.data``: ours."""

    format: str = key(
        "auto",
        "On-disk layout; auto looks at the files and says what it found.",
        choices=("auto", "v2xpnp_seq", "v2xreal", "opv2v", "v2xset", "v2v4real"),
    )
    hist_frames: int = key(5, "Past frames T including the current one.")
    future_steps: int = key(6, "Future steps F.")
    step_frames: int = key(5, "10 Hz frames between two steps (5: 2 Hz).")
    sample_stride: int = key(1, "10 Hz frames between the current times of two samples.")
    require_future: bool = key(False, "Keep only samples with F steps of recording ahead.")
    require_history: bool = key(False, "Keep only samples with T - 1 steps of recording behind.")
    pad: str = key("empty", "Missing history: empty frame or repeat.", choices=("empty", "repeat"))
    future_fill: str = key(
        "interpolate",
        "Missing futures: fill gaps between known steps, or also hold the ends.",
        choices=("none", "interpolate", "interpolate_and_hold"),
    )
    classes: tuple[str, ...] = key(
        ("Car", "PoliceCar", "LongVehicle"), "Raw obj_type values that are objects (one class)."
    )
    min_points: int = key(1, "Current points of the kept agents a label needs to be an object.")
    train_ego: str = key(
        "random", "Ego in training: drawn per epoch and scene.", choices=("random", "fixed")
    )
    zero_intensity: bool = key(True, "Set the intensity column to zero.")
    use_map: bool = key(True, "Read the vector map when the root has one.")
    drop_out: float = key(0.0, "Share of neighbours' messages that are lost (wild_setting.seed).")
    repair: RepairConfig = group(RepairConfig, "Flaws of labels to mend.")
    num_workers: int = key(2, "Loader processes (0: in the main process).")
    prefetch_factor: int = key(2, "Batches prepared ahead per loader process.")
    pin_memory: bool = key(False, "Page-locked batches, for a GPU.")
    persistent_workers: bool = key(True, "Keep loader processes from one epoch to the next.")
    cache_dir: str = key("", "Where parsed labels are kept ('': inside the root).")
