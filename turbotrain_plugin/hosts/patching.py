"""One added line per script of a checkout, and the exact bytes back.

A patch holds added lines without context, and the SHA-256 of every file it fits. A file is the
original, the patched one, or unknown; with one unknown file nothing is written at all.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from turbotrain_plugin.structures import UserError

ORIGINAL: Final = "original"
PATCHED: Final = "patched"
UNKNOWN: Final = "unknown"

_PACKAGE: Final = Path(__file__).resolve().parents[1]
_UPSTREAM: Final = re.compile(r"# (\S+/\S+) ([0-9a-f]{40})")
_FINGERPRINT: Final = re.compile(r"# sha256 ([0-9a-f]{64}) (\S+)")
_HUNK: Final = re.compile(r"@@ -(\d+),0 \+\d+(?:,\d+)? @@")


@dataclass(frozen=True, slots=True)
class FilePatch:
    """Lines to add to one file.

    Attributes:
        path: Below the checkout.
        fingerprint: SHA-256 of the file it fits, with plain line ends.
        insertions: Line number after which -> text to add.
    """

    path: str
    fingerprint: str
    insertions: tuple[tuple[int, str], ...]

    def apply(self, original: bytes) -> bytes:
        """Return the file with the lines added, in its own kind of line ends."""
        end = b"\r\n" if b"\r\n" in original else b"\n"
        lines = original.splitlines(keepends=True)
        for after, text in reversed(self.insertions):
            lines.insert(after, text.encode() + end)
        return b"".join(lines)

    def original_of(self, content: bytes) -> bytes | None:
        """Return the bytes before patching, None when ``content`` is not the patched file."""
        lines = content.splitlines(keepends=True)
        for shift, (after, text) in enumerate(self.insertions):
            at = after + shift
            if at >= len(lines) or lines[at].rstrip(b"\r\n") != text.encode():
                return None
        kept = {after + shift for shift, (after, _) in enumerate(self.insertions)}
        original = b"".join(line for index, line in enumerate(lines) if index not in kept)
        fits = self.fits(original) and self.apply(original) == content
        return original if fits else None

    def fits(self, content: bytes) -> bool:
        """Return whether ``content`` is the file the patch was made for."""
        plain = content.replace(b"\r\n", b"\n")
        return hashlib.sha256(plain).hexdigest() == self.fingerprint


@dataclass(frozen=True, slots=True)
class HostPatch:
    """The patch of one host.

    Attributes:
        repository: Where the host comes from.
        commit: Upstream commit it fits.
        files: What it adds.
    """

    repository: str
    commit: str
    files: tuple[FilePatch, ...]

    def states(self, root: Path) -> dict[str, str]:
        """Return path -> ``original``, ``patched`` or ``unknown``."""
        return {patch.path: _state(patch, root) for patch in self.files}

    def apply(self, root: Path) -> int:
        """Add the lines; return the number of files changed.

        Raises:
            UserError: When a file is unknown; nothing is written then.
        """
        self._refuse_unknown(root)
        changed = 0
        for patch in self.files:
            if _state(patch, root) == ORIGINAL:
                _replace(root / patch.path, patch.apply((root / patch.path).read_bytes()))
                changed += 1
        return changed

    def revert(self, root: Path) -> int:
        """Take the lines out; return the number of files changed.

        Raises:
            UserError: When a file is unknown; nothing is written then.
        """
        self._refuse_unknown(root)
        changed = 0
        for patch in self.files:
            original = patch.original_of((root / patch.path).read_bytes())
            if original is not None:
                _replace(root / patch.path, original)
                changed += 1
        return changed

    def _refuse_unknown(self, root: Path) -> None:
        unknown = [path for path, state in self.states(root).items() if state == UNKNOWN]
        if unknown:
            raise UserError(
                f"{root}: {', '.join(unknown)} is not the file of {self.repository} at "
                f"{self.commit[:7]}, so nothing was changed. `python -m turbotrain_plugin.hosts` "
                "needs no patch."
            )


def patches_dir() -> Path:
    """Return the folder of the shipped patches (beside the package, or inside a wheel)."""
    beside = _PACKAGE.parent / "patches"
    return beside if beside.is_dir() else _PACKAGE / "patches"


def shipped_patch(host: str) -> HostPatch:
    """Return the patch of a host.

    Raises:
        UserError: When there is none.
    """
    file = patches_dir() / f"{host}.patch"
    if not file.is_file():
        raise UserError(f"There is no patch for the host {host!r}.")
    return parse(file.read_text(encoding="utf-8"))


def parse(text: str) -> HostPatch:
    """Read a patch of added lines without context.

    Raises:
        ValueError: When it holds anything else.
    """
    repository = commit = path = ""
    fingerprints: dict[str, str] = {}
    insertions: dict[str, list[tuple[int, str]]] = {}
    after = 0
    for line in text.splitlines():
        if match := _FINGERPRINT.fullmatch(line):
            fingerprints[match.group(2)] = match.group(1)
        elif match := _UPSTREAM.fullmatch(line):
            repository, commit = match.groups()
        elif line.startswith("+++ b/"):
            path = line.removeprefix("+++ b/")
        elif match := _HUNK.fullmatch(line):
            after = int(match.group(1))
        elif line.startswith("+"):
            insertions.setdefault(path, []).append((after, line[1:]))
        elif not line.startswith("--- a/"):
            raise ValueError(f"A patch should hold added lines only. Found {line!r}.")
    files = tuple(
        FilePatch(name, fingerprints[name], tuple(lines)) for name, lines in insertions.items()
    )
    return HostPatch(repository, commit, files)


def _state(patch: FilePatch, root: Path) -> str:
    file = root / patch.path
    if not file.is_file():
        return UNKNOWN
    content = file.read_bytes()
    if patch.fits(content):
        return ORIGINAL
    return UNKNOWN if patch.original_of(content) is None else PATCHED


def _replace(path: Path, content: bytes) -> None:
    """Write under another name and rename, permissions kept: never half a file."""
    temporary = path.with_name(f".{path.name}.turbotrain")
    try:
        temporary.write_bytes(content)
        temporary.chmod(path.stat().st_mode)
        os.replace(temporary, path)  # noqa: PTH105 - one call that replaces on every system
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(f"{path}: cannot be written ({error.strerror}).") from error
