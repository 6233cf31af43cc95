"""Label files as plain values: the safe loader, floats like ``1e-05``, and nothing executed.

Hosts read these files with PyYAML's unsafe loader, which runs what a tag names. Ours constructs
plain values only and bounds what a hostile file can cost: size, nesting and aliases.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any, ClassVar, Final

import yaml

from turbotrain_plugin.data.files import read_bytes
from turbotrain_plugin.structures import UserError

__all__ = ["LabelLoader", "parse_labels", "read_labels"]

_LOG = logging.getLogger(__name__)

_MAX_BYTES: Final = 8 * 2**20
"""Real files have 10 to 100 KB."""
_MAX_DEPTH: Final = 5000
"""Upper bound on nesting. libyaml recurses on the C stack and crashes the process far beyond."""

_FLOAT: Final = re.compile(
    r"""[-+]?(\d[\d_]*\.[\d_]*([eE][-+]?\d+)?
             |\.\d[\d_]*([eE][-+]?\d+)?
             |\d[\d_]*[eE][-+]?\d+)$""",
    re.VERBOSE | re.ASCII,
)

if yaml.__with_libyaml__:
    from yaml import CSafeLoader as _BaseLoader
else:  # pragma: no cover - wheels of PyYAML bring libyaml
    from yaml import SafeLoader as _BaseLoader  # type: ignore[assignment]

    _LOG.warning(
        "PyYAML was built without libyaml: label files are read about ten times more slowly the "
        "first time. Install a PyYAML wheel from the package index."
    )


class LabelLoader(_BaseLoader):
    """Safe loader that reads ``1e-05`` as a number and refuses merge keys."""

    max_aliases: ClassVar[int] = 100
    """Aliases of an honest file. They share nodes, so it is who walks along them that pays."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Refuse ``<<``: merging merged merges multiplies, and no label file needs it."""
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(
                    None, None, "merge keys (<<) are not read here", key_node.start_mark
                )


# add_implicit_resolver copies the table into the subclass: PyYAML's own loaders stay as they are.
LabelLoader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+0123456789."))


def read_labels(path: Path, loader: type[LabelLoader] = LabelLoader) -> dict[Any, Any]:
    """Return the top-level mapping of a label file.

    Args:
        path: The file.
        loader: Which tags are known; see ``numpy_yaml``.

    Raises:
        UserError: When the file is missing, no YAML mapping, unsafe or absurdly large.
    """
    return parse_labels(read_bytes(path), str(path), loader)


def parse_labels(
    raw: bytes, source: str, loader: type[LabelLoader] = LabelLoader
) -> dict[Any, Any]:
    """Return the top-level mapping of YAML text.

    Args:
        raw: The file's bytes.
        source: What messages call it.
        loader: Which tags are known.

    Raises:
        UserError: As ``read_labels``.
    """
    _check_bounds(raw, source, loader.max_aliases)
    try:
        content = yaml.load(raw, Loader=loader)  # a safe loader
    except yaml.constructor.ConstructorError as error:
        raise UserError(
            f"{source}: refused, only plain values are read and nothing is executed: "
            f"{error.problem}{_line(error)}."
        ) from error
    except yaml.MarkedYAMLError as error:
        raise UserError(f"{source}: not valid YAML: {error.problem}{_line(error)}.") from error
    except Exception as error:  # PyYAML lets KeyError, AttributeError and more through
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"{source}: not valid YAML: {reason or type(error).__name__}.") from error
    if not isinstance(content, dict):
        raise UserError(
            f"{source}: expected a mapping with lidar_pose and vehicles. "
            f"Found {'an empty file' if content is None else type(content).__name__}."
        )
    return content


def _check_bounds(raw: bytes, source: str, max_aliases: int) -> None:
    # Cheap upper bounds, taken before the parser sees the text. Blocks nest by indentation or
    # along one line ("- - -"), flows by brackets, so the last two bound the nesting depth.
    found = {
        "bytes": (len(raw), _MAX_BYTES),
        "'*' signs (aliases)": (raw.count(b"*"), max_aliases),
        "opening brackets": (raw.count(b"[") + raw.count(b"{"), _MAX_DEPTH),
        "characters in one line": (max(map(len, raw.split(b"\n"))), _MAX_DEPTH),
    }
    for what, (count, limit) in found.items():
        if count > limit:
            raise UserError(
                f"{source}: refused, {count} {what} where a label file has at most {limit}. "
                "Check where the file comes from."
            )


def _line(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    return f" (line {mark.line + 1})" if mark is not None else ""
