"""A balancer inside an unmodified training loop: a criterion around the host's own.

In a host's hypes file::

    loss:
      core_method: turbotrain_balanced
      args:
        core_method: point_pillar_loss     # the host's criterion
        args: {cls_weight: 1.0, reg: 2.0}
        balance: {free_steps: 2000, balance_steps: 1000}   # keys of turbotrain.balance

The loop calls ``loss.backward()``; the value is the host's sum of terms. On a balanced step the
gradients g_i of the shared parameters are taken beforehand, a method of ours turns their Gramian
into weights w_i, and hooks add ``sum (w_i - 1) g_i`` to the shared parameters, times whatever the
loop has scaled the loss by. So shared gradients are ``sum w_i g_i``, those of the heads are the
ordinary ones, and loss scaling, added losses and one reduction over processes work as before. In a
run of several processes every process decides over its own gradients: for a common decision use
``opencood train``.

The place in the schedule is a buffer of the model, because the hosts save nothing else.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import yaml
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from turbotrain_plugin.balancing import method_named, schedule_named
from turbotrain_plugin.balancing.base import TaskStep, advance, decide
from turbotrain_plugin.balancing.gradients import inner_products, present, sum_losses
from turbotrain_plugin.balancing.graph import leaves_of_tasks, reached_by_several
from turbotrain_plugin.config import BalanceConfig
from turbotrain_plugin.config.build import build
from turbotrain_plugin.config.yaml_tree import parse_text
from turbotrain_plugin.engine.checkpoints import STEP_COUNTER
from turbotrain_plugin.hosts.tasks import chosen_tasks, loss_terms, remembered_items
from turbotrain_plugin.structures import UserError


class _Scaled(torch.autograd.Function):
    """The identity; its backward pass notes the factor that the loop has put on the loss."""

    @staticmethod
    def forward(ctx: Any, total: Tensor, note: list[Tensor]) -> Tensor:  # noqa: ANN401
        """Return ``total``."""
        ctx.note = note
        return total.view_as(total)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:  # noqa: ANN401
        """Note the factor and pass it on."""
        ctx.note[:] = [gradients[0].detach()]
        return gradients[0], None


class TurbotrainBalanced(nn.Module):
    """A criterion with balanced steps.

    Args:
        criterion: The host's, or one that keeps its terms in ``loss_dict`` likewise.
        keys: Keys of ``turbotrain.balance``.
        tasks: Names of the terms that are tasks; empty: all.

    Raises:
        UserError: When a method or schedule does not fit.
    """

    def __init__(
        self, criterion: nn.Module, keys: BalanceConfig, tasks: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.criterion = criterion
        if keys.unit != "steps":
            raise UserError("balance.unit must be steps: a criterion does not know their total.")
        self._names = tuple(tasks)
        self._method = method_named(keys.method, keys.args.of(keys.method))
        if self._method.needs_rows:
            raise UserError(f"{keys.method} needs whole gradients; use it with `opencood train`.")
        self._schedule = schedule_named(
            keys.schedule,
            free_steps=keys.free_steps,
            balance_steps=keys.balance_steps,
            warmup_steps=keys.warmup_steps,
        )
        self._model: weakref.ref[nn.Module] | None = None
        self._hooks: list[RemovableHandle] = []
        self.weights: dict[str, float] = {}
        self.loss_dict: dict[str, Any] = {}

    @classmethod
    def around(
        cls, args: Mapping[str, Any], make_loss: Callable[[dict[str, Any]], nn.Module]
    ) -> TurbotrainBalanced:
        """Return the criterion that ``loss.args`` describe, see above.

        Args:
            args: ``loss.args``.
            make_loss: Makes the host's criterion from ``{"loss": {core_method, args}}``.

        Raises:
            UserError: When a key is missing or unknown.
        """
        if "core_method" not in args:
            raise UserError("turbotrain_balanced needs loss.args.core_method, the host's loss.")
        own = {"core_method": args["core_method"], "args": args.get("args") or {}}
        text = yaml.safe_dump(args.get("balance") or {})
        keys = build(BalanceConfig, parse_text(text, "loss.args.balance"), "loss.args.balance")
        return cls(make_loss({"loss": own}), keys, args.get("tasks") or ())

    def follow(self, model: nn.Module) -> None:
        """Count steps in a buffer of ``model``, so that its checkpoints hold the count."""
        self._model = weakref.ref(model)

    def forward(self, output: dict[str, Any], labels: dict[str, Any], **more: Any) -> Tensor:  # noqa: ANN401
        """Return the host's total loss, with hooks on the shared parameters when balanced."""
        self._forget()
        with remembered_items():
            total: Tensor = self.criterion(output, labels, **more)
        self.loss_dict = dict(getattr(self.criterion, "loss_dict", {}))
        if not torch.is_grad_enabled() or not total.requires_grad:
            return total
        step = self._take_step()
        if step is None or not self._schedule.is_balanced(step):
            return total
        return self._balanced(chosen_tasks(loss_terms(self.loss_dict, total), total, self._names))

    def logging(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as the host calls it
        """Log as the host's criterion does."""
        self.criterion.logging(*args, **kwargs)  # type: ignore[operator]

    def _take_step(self) -> int | None:
        model = self._model() if self._model is not None else None
        if model is None:
            raise UserError(
                "turbotrain_balanced has no model to count steps in: start the host with "
                "`python -m turbotrain_plugin.hosts train`."
            )
        counter = getattr(model, STEP_COUNTER)
        step = int(counter)
        counter += 1
        return step

    def _balanced(self, tasks: dict[str, Tensor]) -> Tensor:
        leaves = leaves_of_tasks(tasks)
        shared = reached_by_several(leaves)
        wanted = {t: tuple(leaf for leaf in found if leaf in shared) for t, found in leaves.items()}
        total = sum_losses(tasks)
        gradients = {task: _gradient(loss, wanted[task]) for task, loss in tasks.items()}
        ordered = list(dict.fromkeys(leaf for found in wanted.values() for leaf in found))
        evidence = TaskStep(
            tasks=tuple(tasks),
            gramian=inner_products(list(gradients.values()), ordered),
            losses=torch.stack([loss.detach().double().cpu() for loss in tasks.values()]),
        )
        self.weights, _ = decide(self._method, evidence)
        advance(self._method, evidence)
        note: list[Tensor] = []
        for leaf in ordered:
            rows = [
                (self.weights[task] - 1.0, found[leaf])
                for task, found in gradients.items()
                if leaf in found and self.weights[task] != 1.0
            ]
            if rows:
                own: list[RemovableHandle] = []
                own.append(leaf.register_hook(_corrector(rows, note, own)))
                self._hooks += own
        noted: Tensor = _Scaled.apply(total, note)  # type: ignore[no-untyped-call]
        return noted

    def _forget(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


def _gradient(loss: Tensor, leaves: tuple[Tensor, ...]) -> dict[Tensor, Tensor]:
    """Return leaf -> gradient; the graph stays for the loop's own backward pass."""
    if not leaves:
        return {}
    return present(leaves, torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True))


def _corrector(
    rows: list[tuple[float, Tensor]], note: list[Tensor], own: list[RemovableHandle]
) -> Callable[[Tensor], Tensor]:
    """Return a hook that adds ``sum (w_i - 1) g_i``, times the noted factor, once."""

    def corrected(gradient: Tensor) -> Tensor:
        own[0].remove()  # a later backward pass is none of ours
        correction = sum_of(rows).to(gradient.dtype)
        return gradient + note[0].to(gradient.dtype) * correction

    return corrected


def sum_of(rows: list[tuple[float, Tensor]]) -> Tensor:
    """Return the weighted sum of gradients."""
    total = rows[0][0] * rows[0][1]
    for weight, gradient in rows[1:]:
        total = total + weight * gradient
    return total
