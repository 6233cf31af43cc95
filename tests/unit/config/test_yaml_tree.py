"""YAML text becomes plain located values, and nothing in it is executed."""

from __future__ import annotations

from pathlib import Path

import pytest

from turbotrain_plugin.config.yaml_tree import merge, parse_text, read_tree
from turbotrain_plugin.errors import UserError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("-2e+3", -2000.0),
        ("1.5e3", 1500.0),
        ("3.", 3.0),
        (".5", 0.5),
        ("7", 7),
        ("0x1F", 31),
        ("true", True),
        ("null", None),
        ("'1e-4'", "1e-4"),
        ("e5", "e5"),
        ("1e", "1e"),
        ("2023-04-07", "2023-04-07"),
        ("a1", "a1"),
    ],
)
def test_scalars(text: str, value: object) -> None:
    if text == "2023-04-07":
        with pytest.raises(UserError, match="timestamp"):
            parse_text(f"x: {text}", "f")
        return
    read = parse_text(f"x: {text}", "f").plain()["x"]
    assert read == value
    assert type(read) is type(value)


def test_positions_name_file_and_line() -> None:
    tree = parse_text("a: 1\nb:\n  c: 2\n", "some.yaml")
    assert isinstance(tree.value, dict)
    inner = tree.value["b"].value
    assert isinstance(inner, dict)
    assert inner["c"].place == "some.yaml:3"


def test_anchors_and_merge_keys() -> None:
    text = "base: &b {x: 1, y: 2}\nover:\n  <<: *b\n  y: 3\nlist: [*b, *b]\n"
    plain = parse_text(text, "f").plain()
    assert plain["over"] == {"x": 1, "y": 3}
    assert plain["list"] == [{"x": 1, "y": 2}] * 2


def test_earlier_merge_wins_among_several() -> None:
    text = "a: &a {x: 1}\nb: &b {x: 2, y: 2}\nc:\n  <<: [*a, *b]\n"
    assert parse_text(text, "f").plain()["c"] == {"x": 1, "y": 2}


@pytest.mark.parametrize(
    "tag",
    [
        "!!python/object/apply:os.system ['touch {marker}']",
        "!!python/name:os.system",
        "!custom 3",
        "!!binary aGk=",
    ],
)
def test_tags_are_refused_and_not_executed(tag: str, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    file = tmp_path / "bad.yaml"
    file.write_text(f"name: x\nlr: {tag.format(marker=marker)}\n")
    with pytest.raises(UserError, match=r"bad\.yaml:2: the tag .* is not allowed"):
        read_tree(file)
    assert not marker.exists()


def test_yaml_bomb_is_refused_quickly() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    with pytest.raises(UserError, match="more than 100000 values"):
        parse_text("\n".join(lines), "bomb.yaml")


def test_recursive_alias_is_refused() -> None:
    with pytest.raises(UserError, match=r"not valid YAML|more than"):
        parse_text("a: &a [*a]", "loop.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1, 2", "not valid YAML"),
        ("a: 1\na: 2", "written twice"),
        ("a: b: c", "not valid YAML"),
        ("x: *missing", "not valid YAML"),
        ("a: 1\n--- \nb: 2", "not valid YAML"),
    ],
)
def test_broken_text(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_text(text, "f")


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_tree(tmp_path / "none.yaml")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(UserError, match=r"cannot be read|not valid YAML"):
        read_tree(tmp_path / "b.yaml")


def test_empty_file_is_an_empty_mapping(tmp_path: Path) -> None:
    (tmp_path / "e.yaml").write_text("# nothing\n")
    assert read_tree(tmp_path / "e.yaml").plain() == {}


def test_merge_replaces_lists_and_joins_mappings() -> None:
    base = parse_text("a: {x: 1, y: [1, 2]}\nb: 1", "base")
    over = parse_text("a: {y: [3]}\nc: 2", "over")
    assert merge(base, over).plain() == {"a": {"x": 1, "y": [3]}, "b": 1, "c": 2}
