"""HEAL (yifanlu0227/HEAL, with CoAlign): losses kept as floats, single-agent supervision."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

from turbotrain_plugin.errors import UserError
from turbotrain_plugin.hosts.base import (
    IOU_THRESHOLDS,
    AgentOrder,
    FrameResult,
    Host,
    HostModules,
    LoaderKeys,
    counted,
    single_class_result,
    vehicle_first,
)
from turbotrain_plugin.hosts.checkout import PACKAGE
from turbotrain_plugin.hosts.tasks import loss_terms

_SINGLE = "_single"
_FUSIONS: Final = ("early", "late", "intermediate", "intermediate2stage")
_SETS: Final = ("opv2v", "v2xset")


class HEAL(Host):
    """Differences of HEAL."""

    name: ClassVar[str] = "heal"
    title: ClassVar[str] = "HEAL"
    commit: ClassVar[str] = "96812ed5a41619bebb2af4f84b803b7b7468d1d3"
    loader: ClassVar[LoaderKeys] = LoaderKeys(
        workers=4, validation_workers=4, shuffle_validation=True, pin_memory=True
    )
    has_cosine: ClassVar[bool] = False
    one_scheduler_argument: ClassVar[bool] = True

    def recognises(self, root: Path) -> bool:
        """Return whether it has the heterogeneous models."""
        return (root / PACKAGE / "tools" / "train_w_kd.py").is_file()

    def dataset_class(self, modules: HostModules, hypes: dict[str, Any]) -> type:
        """Return the class that the factory of ``fusion.core_method`` makes of a base."""
        fusion, base = str(hypes["fusion"]["core_method"]), str(hypes["fusion"].get("dataset"))
        source = [str(one) for one in hypes.get("input_source", ())]
        for name, found, known in (
            ("fusion.core_method", fusion, _FUSIONS),
            ("fusion.dataset", base, _SETS),
            ("label_type", str(hypes.get("label_type")), ("lidar",)),
        ):
            if found not in known:
                raise UserError(
                    f"{name}: with turbotrain.host.data.format it must be one of "
                    f"{', '.join(known)}. Found {found!r}."
                )
        if source != ["lidar"] or hypes.get("add_data_extension"):
            raise UserError(
                "turbotrain.host.data.format: our reader has clouds alone; input_source must be "
                f"[lidar] and add_data_extension empty. Found {source} and "
                f"{hypes.get('add_data_extension') or []}."
            )
        members = vars(modules.datasets)
        made: type = members[f"get{fusion.capitalize()}FusionDataset"](
            members[f"{base.upper()}BaseDataset"]
        )
        return made

    def agent_order(
        self, agents: Sequence[int], hypes: dict[str, Any], *, train: bool
    ) -> AgentOrder:
        """Return the agents in a drawn order for training, by text otherwise; a vehicle first."""
        del hypes
        order = sorted(agents, key=str)
        if train:
            random.shuffle(order)
        return vehicle_first(order)

    def epoch_begins(self, scheduler: Any, hypes: dict[str, Any], epoch: int, steps: int) -> None:  # noqa: ANN401
        """Leave the rate alone: the host moves it at the end of an epoch."""

    def step_done(
        self,
        scheduler: Any,  # noqa: ANN401
        hypes: dict[str, Any],
        epoch: int,
        step: int,
        steps: int,
    ) -> None:
        """Leave the rate alone within an epoch."""

    def epoch_ends(self, scheduler: Any, epoch: int) -> None:  # noqa: ANN401
        """Move the rate."""
        scheduler.step(epoch)

    def between_epochs(self, dataset: Any) -> None:  # noqa: ANN401
        """Scan the folders again, which also draws new egos."""
        dataset.reinitialize()

    def skips(self, batch: Any) -> bool:  # noqa: ANN401
        """Pass over batches without objects."""
        return batch is None or not bool(batch["ego"]["object_bbx_mask"].sum())

    def tell_epoch(self, batch: dict[str, Any], epoch: int) -> None:
        """Put the epoch into the batch."""
        batch["ego"]["epoch"] = epoch

    def set_train_mode(self, model: nn.Module) -> None:
        """Put the model into training mode; models of two stages freeze their first part."""
        model.train()
        prepare = getattr(model, "model_train_init", None)
        if callable(prepare):
            prepare()

    def losses(
        self,
        criterion: nn.Module,
        output: dict[str, Any],
        ego: dict[str, Any],
        dataset: Any,  # noqa: ANN401
        hypes: dict[str, Any],
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of the fused output, with that of single agents where it is taught."""
        total: Tensor = criterion(output, ego["label_dict"])
        terms = loss_terms(criterion.loss_dict, total)  # type: ignore[arg-type]
        if torch.is_grad_enabled() and getattr(dataset, "supervise_single", False):
            weight = hypes["train_params"].get("single_weight", 1)
            single = criterion(output, ego["label_dict_single"], suffix=_SINGLE)
            found = loss_terms(criterion.loss_dict, single)  # type: ignore[arg-type]
            terms |= {f"{name}{_SINGLE}": weight * term for name, term in found.items()}
            total = total + single * weight
        return total, terms

    def frame_result(self, answer: Any) -> FrameResult:  # noqa: ANN401
        """Return a frame from the dictionary the host answers with."""
        return single_class_result(
            answer["pred_box_tensor"], answer["pred_score"], answer["gt_box_tensor"]
        )

    def scores(self, modules: HostModules, frames: Sequence[FrameResult]) -> dict[str, float]:
        """Return AP by the host's code, which always sorts over all frames."""
        stat = counted(modules, frames)
        if not stat[IOU_THRESHOLDS[0]]["gt"]:
            return {}
        return {
            f"ap_{iou:.2f}_global_sort": float(modules.eval_utils.calculate_ap(stat, iou)[0])
            for iou in IOU_THRESHOLDS
        }
