"""Two terms, kept as tensors as OpenCOOD keeps them."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


class TinyLoss(nn.Module):
    def __init__(self, args: dict[str, Any]) -> None:
        super().__init__()
        self.reg = args["reg"]
        self.loss_dict: dict[str, Any] = {}

    def terms(self, output: dict[str, Tensor], labels: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        positive = labels["pos_equal_one"].permute(0, 3, 1, 2)
        conf = F.binary_cross_entropy_with_logits(output["psm"].double(), positive)
        code = output["rm"].permute(0, 2, 3, 1)
        weight = labels["pos_equal_one"].repeat_interleave(7, dim=-1)
        reg = (F.smooth_l1_loss(code.double(), labels["targets"], reduction="none") * weight).sum()
        return conf, self.reg * reg / weight.sum().clamp(min=1.0)

    def forward(self, output: dict[str, Tensor], labels: dict[str, Tensor]) -> Tensor:
        conf, reg = self.terms(output, labels)
        total = conf + reg
        self.loss_dict.update({"total_loss": total, "reg_loss": reg, "conf_loss": conf})
        return total

    def logging(
        self, epoch: int, batch_id: int, batch_len: int, writer: Any, pbar: Any = None
    ) -> None:
        del pbar
        step = epoch * batch_len + batch_id
        writer.add_scalar("Regression_loss", self.loss_dict["reg_loss"].item(), step)
        writer.add_scalar("Confidence_loss", self.loss_dict["conf_loss"].item(), step)
