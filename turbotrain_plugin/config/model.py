"""Keys of the network, ``model.args``. Every choice the paper does not print is a key here."""

from __future__ import annotations

from dataclasses import dataclass

from turbotrain_plugin.config.keys import group, key


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """``model.args.encoder``."""

    core_method: str = key("second", "Point encoder.", choices=("second", "pillars"))
    residual: bool = key(True, "SECOND: residual blocks (2.7 M) or the plain variant (0.7 M).")
    widths: tuple[int, ...] = key((16, 32, 64, 128), "SECOND: channels at strides 1, 2, 4, 8.")
    pillar_channels: int = key(64, "Pillars: channels of the point network.")
    pillar_blocks: tuple[int, ...] = key(
        (1, 1, 1), "Pillars: 3x3 convolutions per stage; every stage but the first halves the map."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class NeckConfig:
    """``model.args.neck``: the 2-D BEV network."""

    position: str = key(
        "pre_temporal",
        "Before temporal fusion (per agent and frame) or once after agent fusion. Our choice.",
        choices=("pre_temporal", "post_fusion"),
    )
    layers: tuple[int, ...] = key((6, 6), "3x3 convolutions per level.")
    filters: tuple[int, ...] = key(
        (128, 256), "Channels per level; each later level halves the map."
    )
    upsample_filters: tuple[int, ...] = key((256, 256), "Channels of each level brought back up.")
    out_channels: int = key(
        0,
        "Channels of its maps (0: model.args.channels); others only with position post_fusion, "
        "where the heads alone read them. Our choice.",
    )
    checkpoint: bool = key(False, "Recompute the neck in the backward pass to save memory.")


@dataclass(frozen=True, slots=True, kw_only=True)
class TemporalConfig:
    """``model.args.temporal``: attention over the frames of a cell."""

    heads: int = key(8, "Attention heads.")
    ffn: int = key(512, "Width of the feed-forward part.")
    dropout: float = key(0.1, "Dropout in attention and feed-forward.")
    depth: int = key(1, "Layers. Our choice.")
    reduce: str = key("current", "What is kept of the frames.", choices=("current", "mean"))


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillConfig:
    """``model.args.fusion.distill``: DiscoNet's teacher."""

    teacher: str = key(
        "", "DiscoNet: run folder of the early-fusion teacher (empty: no distillation)."
    )
    weight: float = key(
        1e4,
        "DiscoNet: weight of the distillation loss, a mean over all values of the map (HEAL's; the "
        "authors' code: 1e5 on each of four maps).",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class FusionConfig:
    """``model.args.fusion``: agent fusion."""

    core_method: str = key(
        "v2xpnp",
        "Fusion.",
        choices=(
            "v2xpnp",
            "fcooper",
            "attfuse",
            "disconet",
            "v2vnet",
            "v2xvit",
            "ffnet",
            "cobevflow",
            "no_fusion",
            "early",
            "late",
        ),
    )
    windows: tuple[int, ...] = key((4, 8, 16), "V2XPnP, V2X-ViT: window sizes in cells.")
    window_heads: tuple[int, ...] = key((16, 8, 4), "V2XPnP, V2X-ViT: heads per window size.")
    heads: int = key(8, "V2XPnP, V2X-ViT: heads of agent attention.")
    ffn: int = key(512, "V2XPnP, V2X-ViT (whose own is 256): width of the feed-forward parts.")
    depth: int = key(1, "V2XPnP, V2X-ViT: agent-attention layers. Our choice.")
    dropout: float = key(0.1, "V2XPnP, V2X-ViT (whose own is 0.3): dropout.")
    delay_encoding: bool = key(True, "V2X-ViT: tell the layers how old each agent's map is.")
    last_relu: bool = key(
        True, "DiscoNet: ReLU behind the agent weights' network, as its code has it."
    )
    distill: DistillConfig = group(DistillConfig, "DiscoNet: learning from a teacher.")
    rounds: int = key(2, "V2VNet: rounds of messages.")
    gru_state: str = key(
        "map",
        "V2VNet: what the GRU remembers: the agent's map (the paper) or zero (OpenCOOD's code).",
        choices=("map", "zero"),
    )
    codec: bool = key(
        True, "FFNet: send feature and flow through its codec (1/8 a side, 1/32 of the channels)."
    )
    flow_weight: float = key(
        0.1,
        "FFNet: weight of the flow loss (0: off; the flow network then learns from delays only). "
        "Our choice.",
    )
    confidence: float = key(
        0.01, "CoBEVFlow: confidence from which a cell is sent (0: send every cell). Our choice."
    )
    confidence_weight: float = key(
        0.1, "CoBEVFlow: weight of the confidence head's loss. Our choice."
    )
    background: str = key(
        "keep",
        "CoBEVFlow: what becomes of cells outside moved objects when a message is late.",
        choices=("keep", "drop"),
    )
    roi_score: float = key(
        0.2, "CoBEVFlow: confidence from which a peak is an object to follow. Our choice."
    )
    roi_half_m: float = key(
        2.75,
        "CoBEVFlow: half the side of the square of cells that moves with an object, in metres "
        "(2.75: half a car and one cell). Our choice.",
    )
    match_m: float = key(
        5.0, "CoBEVFlow: farthest an object is taken to move between two frames, in metres."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageConfig:
    """``model.args.compression``: what an agent sends."""

    ratio: int = key(0, "Channel compression factor (0: send the full map).")


@dataclass(frozen=True, slots=True, kw_only=True)
class MapConfig:
    """``model.args.map``: vector-map encoder."""

    enabled: bool = key(True, "Use the vector map.")
    feed: str = key("prediction", "Which heads see the map.", choices=("prediction", "both"))
    stride: int = key(2, "BEV cells per map token cell. Our choice.")
    segments: int = key(5, "Nearest segments per cell.")
    heads: int = key(8, "Attention heads.")
    ffn: int = key(512, "Width of the feed-forward part.")
    dropout: float = key(0.1, "Dropout.")


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictionHeadConfig:
    """``model.args.prediction_head``; all our choice."""

    hidden: int = key(0, "Channels of its 3x3 convolutions (0: as many as it reads).")
    layers: int = key(1, "3x3 convolutions before the last, 1x1, one.")
    metres_per_step: float = key(5.0, "Metres per step of a raw output of 1 (5: 10 m/s).")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelArgs:
    """``model.args``."""

    channels: int = key(256, "Channels C of the BEV features that are fused.")
    encoder: EncoderConfig = group(EncoderConfig, "Points to BEV features.")
    neck: NeckConfig = group(NeckConfig, "2-D BEV network.")
    temporal: TemporalConfig = group(TemporalConfig, "History to one map per agent.")
    fusion: FusionConfig = group(FusionConfig, "Agents to one map.")
    compression: MessageConfig = group(MessageConfig, "Message compression.")
    map: MapConfig = group(MapConfig, "Vector map.")
    prediction: bool = key(True, "Build the trajectory head.")
    prediction_head: PredictionHeadConfig = group(PredictionHeadConfig, "The trajectory head.")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """``model``."""

    core_method: str = key("cooperative", "Which network.", choices=("cooperative",))
    args: ModelArgs = group(ModelArgs, "Its parts.")
