"""Inference of one batch."""

from __future__ import annotations

from typing import Any


def inference_early_fusion(batch_data: Any, model: Any, dataset: Any) -> Any:
    return dataset.post_process(batch_data, {"ego": model(batch_data["ego"])})


inference_intermediate_fusion = inference_early_fusion
