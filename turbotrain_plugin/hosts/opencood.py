"""OpenCOOD (DerrickXuNu/OpenCOOD): what `Host` describes, nothing more."""

from __future__ import annotations

from turbotrain_plugin.hosts.base import Host


class OpenCOOD(Host):
    """The original."""
