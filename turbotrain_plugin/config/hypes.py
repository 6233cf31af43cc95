"""Finding, reading, including, overriding, printing and comparing hypes files."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from turbotrain_plugin.config.build import build
from turbotrain_plugin.config.check import check
from turbotrain_plugin.config.keys import HELP, default_of, name_of
from turbotrain_plugin.config.run import RunConfig
from turbotrain_plugin.config.yaml_tree import Located, merge, parse_text, read_tree
from turbotrain_plugin.errors import UserError

INCLUDE: Final = "_base_"
"""Key that names fragments (relative to the file) which the file is laid over."""

_PACKAGE: Final = Path(__file__).resolve().parents[1]


def shipped_hypes_dir() -> Path:
    """Return the folder of the shipped hypes files (beside the package, or inside a wheel)."""
    beside = _PACKAGE.parent / "hypes_yaml"
    return beside if beside.is_dir() else _PACKAGE / "hypes_yaml"


def shipped_hypes() -> dict[str, Path]:
    """Return bare name -> path of the shipped hypes files, without the fragments.

    Names are unique over the folder and those inside it, such as ``ablations``.
    """
    folder = shipped_hypes_dir()
    paths = [*sorted(folder.glob("*.yaml")), *sorted(folder.glob("[!_]*/*.yaml"))]
    return {path.name: path for path in paths}


def find_hypes(name: str | Path) -> Path:
    """Return the path of a hypes file given as a path or as the name of a shipped file.

    The name is bare, or leads with the file's folder (``ablations/balance_1000_500.yaml``).

    Raises:
        UserError: When it is neither, with the nearest shipped name.
    """
    given = Path(name)
    if given.is_file():
        return given
    shipped = shipped_hypes()
    found = shipped.get(given.name)
    if found and given in (Path(found.name), found.relative_to(shipped_hypes_dir())):
        return found
    nearest = difflib.get_close_matches(given.name, list(shipped), n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else f" Shipped files: {', '.join(shipped)}."
    raise UserError(f"There is no hypes file {str(name)!r}.{hint}")


def load_hypes(name: str | Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Load a hypes file with its fragments and overrides.

    Args:
        name: Path, or bare name of a shipped file.
        overrides: ``key.sub=value`` entries; the value is YAML.

    Raises:
        UserError: With file, line, key and remedy on any mistake.
    """
    config = build(RunConfig, load_tree(name, overrides))
    check(config)
    return config


def load_tree(name: str | Path, overrides: Sequence[str] = ()) -> Located:
    """Return a hypes file with its fragments and overrides, as it is written.

    Raises:
        UserError: When there is no such file, or it is no plain YAML.
    """
    tree = _with_fragments(find_hypes(name).resolve(), ())
    for override in overrides:
        tree = merge(tree, _override_tree(override))
    return tree


def _with_fragments(path: Path, chain: tuple[Path, ...]) -> Located:
    if path in chain:
        raise UserError(f"{path}: {INCLUDE} includes the file itself, through {chain[-1]}.")
    tree = read_tree(path)
    if not isinstance(tree.value, dict):
        raise UserError(f"{path}: a hypes file must be a mapping. Found {tree.plain()!r}.")
    own = dict(tree.value)
    listed = own.pop(INCLUDE, None)
    merged = Located({}, str(path), 1)
    for entry in _fragment_names(listed):
        fragment = (path.parent / entry).resolve()
        if not fragment.is_file():
            place = listed.place if listed else path
            raise UserError(f"{place}: {INCLUDE} names {entry!r}, which does not exist.")
        merged = merge(merged, _with_fragments(fragment, (*chain, path)))
    return merge(merged, Located(own, tree.source, tree.line))


def _fragment_names(listed: Located | None) -> list[str]:
    if listed is None:
        return []
    names = listed.plain() if isinstance(listed.value, list) else [listed.value]
    return [str(name) for name in names]


def _override_tree(override: str) -> Located:
    dotted, equals, text = override.partition("=")
    source = f"-o {override}"
    if not equals or not dotted.strip():
        raise UserError(f"-o must read key.sub=value. Found {override!r}.")
    parsed = parse_text(text, source)
    value = Located(None if text.strip() == "" else parsed.value, source, 0)
    for name in reversed(dotted.strip().split(".")):
        value = Located({name: value}, source, 0)
    return value


def to_plain(config: object) -> Any:  # noqa: ANN401 - JSON-like
    """Return a configuration as plain mappings, lists and scalars."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {name_of(f): to_plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, tuple):
        return [to_plain(item) for item in config]
    return config


def to_yaml(config: object) -> str:
    """Return a configuration as YAML text that ``load_hypes`` reads back to an equal object."""
    text: str = yaml.safe_dump(
        to_plain(config), sort_keys=False, default_flow_style=None, width=100
    )
    return text


def difference(first: object, second: object) -> list[tuple[str, Any, Any]]:
    """Return (dotted key, first value, second value) wherever two configurations differ."""
    left, right = dict(_leaves(to_plain(first), "")), dict(_leaves(to_plain(second), ""))
    names = [*left, *(name for name in right if name not in left)]
    return [(n, left.get(n), right.get(n)) for n in names if left.get(n) != right.get(n)]


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:  # noqa: ANN401 - JSON-like
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _leaves(item, f"{path}.{name}" if path else name)
    else:
        yield path, value


def explain(cls: type = RunConfig, path: str = "") -> Iterator[tuple[str, Any, str]]:
    """Yield (dotted key, default, explanation) of every key."""
    for declared in dataclasses.fields(cls):
        name = name_of(declared)
        where = f"{path}.{name}" if path else name
        default = default_of(declared)
        if dataclasses.is_dataclass(default) and not isinstance(default, type):
            yield from explain(type(default), where)
        else:
            yield where, to_plain(default), str(declared.metadata.get(HELP, ""))
