"""What a host reads is read safely: hypes and frame YAML as plain values, checkpoints as tensors.

The hosts use PyYAML's unsafe loader for both kinds of YAML file, evaluate the value of
``yaml_parser``, and load checkpoints as pickles. Around a host ``yaml_utils.load_yaml`` is ours.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import torch
import yaml

from turbotrain_plugin.data.formats.yaml_text import LabelLoader, read_labels
from turbotrain_plugin.hosts.compat.base import Shim, attributes
from turbotrain_plugin.hosts.frames import FrameFile
from turbotrain_plugin.structures import UserError

PARSER_KEY: Final = "yaml_parser"
_PARSER_NAME: Final = re.compile(r"load_\w+_params")
_PYTHON_TAGS: Final = "tag:yaml.org,2002:python/"


class _HypesLoader(yaml.SafeLoader):
    """Plain values with floats such as ``1e-4``; python objects, as hosts dump them, are left out.

    Those are numpy arrays of grid sizes, which the host's own parser computes again.
    """


# A copy: the table of PyYAML's own loader stays as it is.
_HypesLoader.yaml_implicit_resolvers = {
    letter: list(resolvers) for letter, resolvers in LabelLoader.yaml_implicit_resolvers.items()
}


def _left_out(_loader: yaml.SafeLoader, _suffix: str, _node: yaml.Node) -> None:
    return None


_HypesLoader.add_multi_constructor(_PYTHON_TAGS, _left_out)


def read_hypes(path: Path) -> dict[str, Any]:
    """Return a host's hypes as plain values, unparsed.

    Raises:
        UserError: When the file is missing, or no plain YAML.
    """
    try:
        found = yaml.load(path.read_text(encoding="utf-8"), Loader=_HypesLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read as hypes ({reason}).") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: a hypes file must be a mapping. Found {type(found).__name__}.")
    return found


def parsed(hypes: dict[str, Any], yaml_utils: Any, source: str) -> dict[str, Any]:  # noqa: ANN401
    """Run the host's parser that ``yaml_parser`` names; nothing else is looked up or evaluated.

    Raises:
        UserError: When it is not one of the host's ``load_<what>_params``.
    """
    name = hypes.get(PARSER_KEY)
    if name is None:
        return hypes
    known_name = _PARSER_NAME.fullmatch(str(name)) is not None
    parser = vars(yaml_utils).get(str(name)) if known_name else None
    if parser is None:
        known = ", ".join(n for n in sorted(vars(yaml_utils)) if _PARSER_NAME.fullmatch(n))
        raise UserError(
            f"{source}: {PARSER_KEY} must name a parser of the host ({known}). Found {name!r}."
        )
    result: dict[str, Any] = parser(hypes)
    return result


def safe_load_yaml(yaml_utils: Any) -> Callable[..., dict[str, Any]]:  # noqa: ANN401 - a module
    """Return what takes the place of the host's ``load_yaml``."""

    def load_yaml(file: str | None, opt: Any = None) -> dict[str, Any]:  # noqa: ANN401 - a namespace
        if opt is not None and vars(opt).get("model_dir"):
            file = str(Path(opt.model_dir) / "config.yaml")
        if file is None:
            raise UserError("The host asks for a YAML file without naming one.")
        if isinstance(file, FrameFile):
            return file.params()
        if opt is None:  # a frame of the data set
            return read_labels(Path(file))
        return parsed(read_hypes(Path(file)), yaml_utils, file)

    return load_yaml


@contextmanager
def _weights_only() -> Iterator[None]:
    load = torch.load

    @functools.wraps(load)
    def safe(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 - passed on
        kwargs["weights_only"] = True
        return load(*args, **kwargs)

    with attributes(torch, {"load": safe}):
        yield


CHECKPOINTS: Final = Shim(
    "safety.checkpoints",
    "torch.load takes tensors and plain values only, whatever the host asks for.",
    lambda: True,
    _weights_only,
)
