"""Inside a host: its checkout importable, the shims in force, nothing written into it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from turbotrain_plugin.hosts.base import Host, HostModules
from turbotrain_plugin.hosts.checkout import PACKAGE
from turbotrain_plugin.hosts.compat import SHIMS, applied
from turbotrain_plugin.hosts.compat.loading import safe_load_yaml
from turbotrain_plugin.hosts.reader import reading
from turbotrain_plugin.structures import UserError


@dataclass(frozen=True, slots=True)
class Session:
    """A host that is entered.

    Attributes:
        host: What it is.
        root: Its checkout.
        modules: Its modules.
        shims: Names of the shims in force.
    """

    host: Host
    root: Path
    modules: HostModules
    shims: tuple[str, ...]


@contextmanager
def enter(host: Host, root: Path) -> Iterator[Session]:
    """Make a host importable for the time of the context.

    Python writes no bytecode meanwhile, so the checkout stays as it is; worker processes inherit
    that. Its YAML is read by the safe loader. The host's modules stay loaded afterwards.

    Raises:
        UserError: When another ``opencood`` is loaded, or the host lacks a package.
    """
    _refuse_other(root)
    writes_bytecode, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    sys.path.insert(0, str(root))
    try:
        with applied(SHIMS.values()) as names, said_plainly(host):
            modules = _load()
            with reading(host, modules):
                yield Session(host, root, modules, names)
    finally:
        sys.path.remove(str(root))
        sys.dont_write_bytecode = writes_bytecode


@contextmanager
def said_plainly(host: Host) -> Iterator[None]:
    """Turn a missing package and the host's ``exit(0)`` into a sentence.

    Raises:
        UserError: In their place.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        name = error.name or str(error)
        if name.partition(".")[0] == PACKAGE:
            raise UserError(
                f"{host.title}: there is no module {name} in this checkout; look at the "
                "core_method keys of the hypes file."
            ) from error
        raise UserError(
            f"{host.title} needs the package {name.partition('.')[0]}, which is not installed: "
            f"pip install {name.partition('.')[0]}."
        ) from error
    except SystemExit as error:
        raise UserError(
            f"{host.title} gave up ({error.code!r}; its own message is above): look at the "
            "core_method keys of the hypes file."
        ) from error


def _refuse_other(root: Path) -> None:
    loaded = sys.modules.get(PACKAGE)
    places = [Path(place).resolve() for place in getattr(loaded, "__path__", ())]
    if places and root / PACKAGE not in places:
        raise UserError(f"opencood is already loaded from {places[0]}; one process, one checkout.")


def _load() -> HostModules:
    yaml_utils = importlib.import_module(f"{PACKAGE}.hypes_yaml.yaml_utils")
    # Before the data sets are imported: they bind the function by name.
    yaml_utils.load_yaml = safe_load_yaml(yaml_utils)  # type: ignore[attr-defined]
    return HostModules(
        yaml_utils=yaml_utils,
        datasets=importlib.import_module(f"{PACKAGE}.data_utils.datasets"),
        train_utils=importlib.import_module(f"{PACKAGE}.tools.train_utils"),
        inference_utils=importlib.import_module(f"{PACKAGE}.tools.inference_utils"),
        eval_utils=importlib.import_module(f"{PACKAGE}.utils.eval_utils"),
    )
