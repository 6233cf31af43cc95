"""The host's own train.py and inference.py, unmodified, with our networks and losses known to it.

``python -m turbotrain_plugin.hosts train --hypes_yaml FILE`` enters the checkout, registers what is
ours under the names the host looks up, and runs the host's script as ``__main__``. Runs go to
``logs/`` of the working directory: the host would write them into its checkout.
"""

from __future__ import annotations

import functools
import os
import runpy
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import yaml
from torch import nn

from turbotrain_plugin.engine.records import LOG, write_text
from turbotrain_plugin.hosts.balanced_loss import COUNTER, TurbotrainBalanced
from turbotrain_plugin.hosts.checkout import PACKAGE
from turbotrain_plugin.hosts.compat.base import attributes
from turbotrain_plugin.hosts.compat.packages import StandIn, modules
from turbotrain_plugin.hosts.networks import TurbotrainDetector
from turbotrain_plugin.hosts.session import Session
from turbotrain_plugin.structures import UserError

SCRIPTS: Final = ("train", "inference")
MODEL: Final = "turbotrain_detector"
LOSS: Final = "turbotrain_balanced"


@contextmanager
def registered(session: Session, log_dir: Path | None) -> Iterator[None]:
    """Make our model and loss known to the host, and keep its runs out of the checkout.

    The host looks names up in modules below ``opencood.models`` and ``opencood.loss``, and reaches
    the functions of ``train_utils`` as attributes, so nothing of it is edited.

    Args:
        session: The host.
        log_dir: Where run folders are made; None: where the host makes them.
    """
    utils = session.modules.train_utils
    make_loss, make_model = utils.create_loss, utils.create_model
    newest: list[nn.Module] = []

    @functools.wraps(make_model)
    def create_model(hypes: dict[str, Any]) -> nn.Module:
        model: nn.Module = make_model(hypes)
        if hypes["loss"]["core_method"] == LOSS:
            model.register_buffer(COUNTER, torch.zeros((), dtype=torch.int64))
        newest[:] = [model]
        return model

    @functools.wraps(make_loss)
    def create_loss(hypes: dict[str, Any]) -> nn.Module:
        if hypes["loss"]["core_method"] != LOSS:
            criterion: nn.Module = make_loss(hypes)
            return criterion
        balanced = TurbotrainBalanced(hypes["loss"]["args"], make_loss)
        if newest:
            balanced.follow(newest[0])
        return balanced

    ours = {
        f"{PACKAGE}.models.{MODEL}": StandIn(MODEL, {"TurbotrainDetector": TurbotrainDetector}),
        f"{PACKAGE}.loss.{LOSS}": StandIn(LOSS, {"TurbotrainBalanced": TurbotrainBalanced}),
    }
    replaced: dict[str, object] = {"create_model": create_model, "create_loss": create_loss}
    shell: dict[str, object] = {}
    if log_dir is not None:
        replaced["setup_train"] = functools.partial(setup_train, log_dir=log_dir)
        shell["system"] = _no_shell
    inference = session.modules.inference_utils
    with (
        modules(dict(ours)),
        attributes(utils, replaced),
        attributes(inference, _answering(session)),
        attributes(os, shell),
    ):
        yield


def _answering(session: Session) -> dict[str, object]:
    """Return the host's inference functions, which a frame without detections does not stop."""
    module = session.modules.inference_utils

    def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def answer(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - the host's
            return session.host.safe_answer(function(*args, **kwargs))

        return answer

    return {
        name: wrapped(value)
        for name, value in vars(module).items()
        if name.startswith("inference_") and callable(value)
    }


def setup_train(hypes: dict[str, Any], *, log_dir: Path) -> str:
    """Make ``<log_dir>/<name>_<time>`` with the hypes as plain values; return it."""
    folder = log_dir / f"{hypes['name']}_{datetime.now():%Y_%m_%d_%H_%M_%S}"
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", yaml.safe_dump(plain(hypes), sort_keys=False))
    return str(folder)


def plain(value: Any) -> Any:  # noqa: ANN401 - YAML
    """Return hypes without numpy: what the host's parser added is computed again on reading."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return value


def _no_shell(command: str) -> int:
    LOG.warning("not run: %s\nrun it as:  python -m turbotrain_plugin.hosts inference ...", command)
    return 0


def run_script(session: Session, script: str, arguments: Sequence[str], log_dir: Path) -> int:
    """Run ``tools/<script>.py`` of the host as ``__main__``; return its exit code.

    Args:
        session: The host.
        script: ``train`` or ``inference``.
        arguments: Of the script.
        log_dir: Where run folders are made.

    Raises:
        UserError: When the host has no such script, or gives up with ``exit(0)``.
    """
    file = session.root / PACKAGE / "tools" / f"{script}.py"
    if script not in SCRIPTS or not file.is_file():
        raise UserError(f"The host's scripts are {', '.join(SCRIPTS)}. Found {script!r}.")
    argv, sys.argv = sys.argv, [str(file), *arguments]
    try:
        with registered(session, log_dir):
            runpy.run_path(str(file), run_name="__main__")
    except SystemExit as stop:
        if {"-h", "--help"} & set(arguments) or stop.code not in (0, None):
            return int(stop.code or 0) if isinstance(stop.code, int | None) else 1
        raise UserError(
            f"{session.host.title}'s {script}.py gave up (its own message is above): look at the "
            "core_method keys of the hypes file."
        ) from stop
    finally:
        sys.argv = argv
    return 0
