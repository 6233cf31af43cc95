"""Their models with our training, our models with their training; the only room that knows hosts.

A host is OpenCOOD or one of its forks in the user's own checkout; none is shipped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from turbotrain_plugin.hosts.base import Host
from turbotrain_plugin.hosts.coopre import CooPre
from turbotrain_plugin.hosts.heal import HEAL
from turbotrain_plugin.hosts.opencood import OpenCOOD
from turbotrain_plugin.hosts.v2xreal import V2XReal
from turbotrain_plugin.structures import UserError

HOSTS: Final[dict[str, type[Host]]] = {
    "opencood": OpenCOOD,
    "v2xreal": V2XReal,
    "coopre": CooPre,
    "heal": HEAL,
}
"""Name in YAML (``turbotrain.host.name``) -> host."""

__all__ = ["HOSTS", "Host", "host_named"]


def host_named(name: str, root: Path) -> Host:
    """Return the host called ``name``, or with ``auto`` the one whose checkout ``root`` is.

    Raises:
        UserError: When the checkout is another host's.
    """
    # Forks have what the original has, so it comes last.
    known = [make() for key, make in HOSTS.items() if key != OpenCOOD.name] + [OpenCOOD()]
    found = next((host for host in known if host.recognises(root)), None)
    if found is None:
        raise UserError(f"{root}: neither OpenCOOD nor a fork that is known.")
    if name not in ("auto", found.name):
        raise UserError(f"{root}: turbotrain.host.name is {name!r}, but this is {found.title}.")
    return found
