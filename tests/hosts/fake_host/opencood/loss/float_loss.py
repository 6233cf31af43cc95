"""The same two terms, kept as floats as HEAL keeps them."""

from __future__ import annotations

from torch import Tensor

from opencood.loss.tiny_loss import TinyLoss


class FloatLoss(TinyLoss):
    def forward(self, output: dict[str, Tensor], labels: dict[str, Tensor]) -> Tensor:
        conf, reg = self.terms(output, labels)
        total = reg + conf
        self.loss_dict.update({"total_loss": total.item()})
        self.loss_dict.update({"reg_loss": reg.item(), "conf_loss": conf.item()})
        return total
