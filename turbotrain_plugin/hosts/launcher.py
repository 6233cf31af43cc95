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

from turbotrain_plugin.engine.checkpoints import STEP_COUNTER
from turbotrain_plugin.engine.records import LOG, write_text
from turbotrain_plugin.hosts.balanced_loss import TurbotrainBalanced
from turbotrain_plugin.hosts.checkout import PACKAGE
from turbotrain_plugin.hosts.compat.base import attributes
from turbotrain_plugin.hosts.compat.packages import StandIn, modules
from turbotrain_plugin.hosts.networks import TurbotrainDetector
from turbotrain_plugin.hosts.sequences import (
    OwnDataset,
    OwnHypes,
    OwnLoss,
    own_hypes,
    own_network,
)
from turbotrain_plugin.hosts.session import Session
from turbotrain_plugin.structures import UserError

SCRIPTS: Final = ("train", "inference")
MODEL: Final = "turbotrain_detector"
LOSS: Final = "turbotrain_balanced"


@contextmanager
def registered(
    session: Session, log_dir: Path | None, overrides: Sequence[str] = ()
) -> Iterator[None]:
    """Make our models and losses known to the host, and keep its runs out of the checkout.

    The host looks names up in modules below ``opencood.models`` and ``opencood.loss``, and reaches
    the functions of ``train_utils`` as attributes, so nothing of it is edited. Its scripts read our
    own hypes files as well (``hosts/sequences.py``).

    Args:
        session: The host.
        log_dir: Where run folders are made; None: where the host makes them.
        overrides: ``key=value`` entries for a hypes file of ours.
    """
    utils: Any = session.modules.train_utils
    make_loss, make_model = utils.create_loss, utils.create_model
    newest: list[nn.Module] = []

    @functools.wraps(make_model)
    def create_model(hypes: dict[str, Any]) -> nn.Module:
        model: nn.Module = own_network(hypes) if isinstance(hypes, OwnHypes) else make_model(hypes)
        if _balances(hypes):
            model.register_buffer(STEP_COUNTER, torch.zeros((), dtype=torch.int64))
        newest[:] = [model]
        return model

    @functools.wraps(make_loss)
    def create_loss(hypes: dict[str, Any]) -> nn.Module:
        if not _balances(hypes):
            return OwnLoss(hypes) if isinstance(hypes, OwnHypes) else make_loss(hypes)
        balanced = _balanced(hypes, make_loss)
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
    with (
        modules(dict(ours)),
        attributes(utils, replaced),
        attributes(session.modules.yaml_utils, {"load_yaml": _reading(session, overrides)}),
        attributes(session.modules.datasets, {"build_dataset": _building(session)}),
        attributes(session.modules.inference_utils, _answering(session)),
        attributes(os, shell),
    ):
        yield


def _balances(hypes: dict[str, Any]) -> bool:
    """Return whether the steps of a run may be balanced."""
    if isinstance(hypes, OwnHypes):
        return hypes.stage.balance is not None
    return bool(hypes["loss"]["core_method"] == LOSS)


def _balanced(
    hypes: dict[str, Any], make_loss: Callable[[dict[str, Any]], nn.Module]
) -> TurbotrainBalanced:
    if isinstance(hypes, OwnHypes) and hypes.stage.balance is not None:
        return TurbotrainBalanced(OwnLoss(hypes), hypes.stage.balance)
    return TurbotrainBalanced.around(hypes["loss"]["args"], make_loss)


def _reading(session: Session, overrides: Sequence[str]) -> Callable[..., Any]:
    """Return the host's ``load_yaml``, which reads our hypes files too."""
    load = session.modules.yaml_utils.load_yaml

    @functools.wraps(load)
    def load_yaml(file: str | None, opt: Any = None) -> Any:  # noqa: ANN401 - the host's
        folder = getattr(opt, "model_dir", None)
        source = str(Path(folder) / "config.yaml") if folder else file
        if opt is None or source is None:
            return load(file, opt)
        own = own_hypes(source, overrides, cosine=session.host.has_cosine)
        return load(file, opt) if own is None else own

    return load_yaml


def _building(session: Session) -> Callable[..., Any]:
    """Return the host's ``build_dataset``, which knows our data set."""
    build = session.modules.datasets.build_dataset

    @functools.wraps(build)
    def build_dataset(hypes: Any, visualize: bool = False, train: bool = True) -> Any:  # noqa: ANN401
        if isinstance(hypes, OwnHypes):
            return OwnDataset(hypes, session.host, visualize=visualize, train=train)
        return build(hypes, visualize=visualize, train=train)

    return build_dataset


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
    if isinstance(hypes, OwnHypes):
        text = hypes.text()
    else:
        text = yaml.safe_dump(plain(hypes), sort_keys=False)
    write_text(folder / "config.yaml", text)
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


def run_script(
    session: Session,
    script: str,
    arguments: Sequence[str],
    log_dir: Path,
    overrides: Sequence[str] = (),
) -> int:
    """Run ``tools/<script>.py`` of the host as ``__main__``; return its exit code.

    Args:
        session: The host.
        script: ``train`` or ``inference``.
        arguments: Of the script.
        log_dir: Where run folders are made.
        overrides: ``key=value`` entries for a hypes file of ours.

    Raises:
        UserError: When the host has no such script, or gives up with ``exit(0)``.
    """
    file = session.root / PACKAGE / "tools" / f"{script}.py"
    if script not in SCRIPTS or not file.is_file():
        raise UserError(f"The host's scripts are {', '.join(SCRIPTS)}. Found {script!r}.")
    argv, sys.argv = sys.argv, [str(file), *arguments]
    try:
        with registered(session, log_dir, overrides):
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
