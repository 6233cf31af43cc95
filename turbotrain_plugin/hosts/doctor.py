"""What `opencood doctor` says of hosts: the checkout, and the shims that would be in force."""

from __future__ import annotations

from collections.abc import Iterator

from turbotrain_plugin.engine.doctor import Finding
from turbotrain_plugin.hosts import host_named
from turbotrain_plugin.hosts.checkout import locate
from turbotrain_plugin.hosts.compat import SHIMS
from turbotrain_plugin.structures import UserError


def host_findings() -> Iterator[Finding]:
    """Yield the checkout, when there is one, and every shim."""
    try:
        root = locate()
        yield Finding("ok", "host", f"{host_named('auto', root).title} in {root}")
    except UserError:
        pass  # the line about OpenCOOD says so already
    for shim in SHIMS.values():
        state = "applied around a host" if shim.needed() else "not needed here"
        yield Finding("ok", f"shim {shim.name}", f"{state}. {shim.reason}")
