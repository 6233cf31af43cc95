"""Label text: plain values only, the same as PyYAML's safe loader but for floats, and bounded."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import yaml

from turbotrain_plugin.data.formats.yaml_text import parse_labels, read_labels
from turbotrain_plugin.structures import UserError

NUMBERS = ["1e-05", "-1.5E+3", "+2e4", "1.0e-6", ".5", "-.5e1", "12.", "3", "-7", "0", "1_000.5"]


@pytest.mark.parametrize("text", NUMBERS)
def test_numbers_are_numbers(text: str) -> None:
    value = parse_labels(f"a: {text}\n".encode(), "s")["a"]
    assert type(value) in (int, float)
    assert value == float(text)


def test_exponent_is_text_to_the_plain_safe_loader() -> None:
    """Why the resolver is there; and ours is private, PyYAML's own loaders stay as they are."""
    parse_labels(b"a: 1e-05\n", "s")
    assert yaml.safe_load("a: 1e-05") == {"a": "1e-05"}
    assert yaml.load("a: 1e-05", Loader=yaml.CSafeLoader) == {"a": "1e-05"}


@pytest.mark.parametrize("text", ["1e", "e5", "1.2.3", "0x", "1e-05m", "-", ".", "2023-03-17_1_0"])
def test_texts_stay_texts(text: str) -> None:
    assert isinstance(parse_labels(f"a: '{text}'\nb: {text}x\n".encode(), "s")["b"], str)
    assert parse_labels(f"a: '{text}'\n".encode(), "s")["a"] == text


def test_quoted_numbers_stay_texts() -> None:
    assert parse_labels(b"a: '1e-05'\n", "s") == {"a": "1e-05"}


def test_infinities_are_read_for_the_reader_to_refuse() -> None:
    values = parse_labels(b"a: [.inf, -.inf, .nan]\n", "s")["a"]
    assert values[:2] == [math.inf, -math.inf]
    assert math.isnan(values[2])


@pytest.mark.parametrize(
    "text",
    [
        "a: !!python/object/apply:os.system ['touch PROOF']",
        "a: !!python/object/new:os.system ['touch PROOF']",
        "!!python/object/apply:subprocess.Popen [['touch', 'PROOF']]",
        "? !!python/object/apply:os.system ['touch PROOF']\n: 1",
        "a: !!python/name:os.system",
        "a: !!python/module:os",
        "a: !!python/tuple [1, 2]",
        "a: !custom 1",
        "a: &x !!python/object/apply:os.system ['touch PROOF']\nb: *x",
    ],
)
def test_tags_are_refused_and_nothing_runs(tmp_path: Path, text: str) -> None:
    proof = tmp_path / "executed"
    path = tmp_path / "000003.yaml"
    path.write_text(text.replace("PROOF", str(proof)) + "\n")
    with pytest.raises(UserError, match=r"000003\.yaml: refused.*nothing is executed.*line 1"):
        read_labels(path)
    assert not proof.exists()


def billion_laughs(levels: int, width: int) -> bytes:
    lines = ["a0: &a0 [x, x]"]
    for level in range(1, levels):
        inner = ", ".join([f"*a{level - 1}"] * width)
        lines.append(f"a{level}: &a{level} [{inner}]")
    return "\n".join(lines).encode()


def merge_bomb(levels: int, width: int) -> bytes:
    lines = ["a0: &a0 {x: 1}"]
    for level in range(1, levels):
        inner = ", ".join([f"*a{level - 1}"] * width)
        lines.append(f"a{level}: &a{level} {{<<: [{inner}]}}")
    return "\n".join(lines).encode()


@pytest.mark.timeout(10)
def test_alias_bombs() -> None:
    with pytest.raises(UserError, match=r"refused, 180 .*aliases"):
        parse_labels(billion_laughs(levels=19, width=10), "s")
    # Few aliases are honest (V2V4Real repeats a pose by one); nodes are shared, not copied.
    assert len(parse_labels(billion_laughs(levels=10, width=10), "s")) == 10
    with pytest.raises(UserError, match="merge keys"):
        parse_labels(merge_bomb(levels=9, width=10), "s")


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "raw",
    [
        b"[" * 300_000,
        b"{a: " * 300_000,
        b"a:\n" + b"[\n" * 300_000,
        b"- " * 300_000,
        b"? " * 300_000,
        b"a: " + b"1" * 6000,
        b"a: 1\n" * 2_000_000,
    ],
    ids=["flow", "mapping", "flow on lines", "sequence", "keys", "digits", "size"],
)
def test_depth_and_size_bombs(raw: bytes) -> None:
    """Without the bounds libyaml's recursion overflows the C stack: the process would die."""
    with pytest.raises(UserError, match=r"refused, .* at most"):
        parse_labels(raw, "s")


def test_depth_just_below_the_bound_is_survived() -> None:
    parse_labels(b"a: " + b"[" * 4900 + b"]" * 50 + (b"\n" + b"]" * 50) * 97, "s")


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "Found an empty file"),
        (b"# nothing\n", "Found an empty file"),
        (b"- 1\n- 2\n", "Found list"),
        (b"text\n", "Found str"),
        (b"a: [1, 2\n", "not valid YAML: .*line"),
        (b"a: b: c\n", r"not valid YAML: .*\(line 1\)"),
        (b"\tx: 1\n", "not valid YAML"),
        (b"a: \xff\xfe\x00\n", "not valid YAML"),
        (b"a: 1\n---\nb: 2\n", "not valid YAML"),
        (b"a: *nowhere\n", "not valid YAML: .*undefined alias"),
        (b"? [1]\n: 2\n", "refused"),
    ],
)
def test_broken_text(raw: bytes, message: str) -> None:
    with pytest.raises(UserError, match=f"^label file: .*{message}"):
        parse_labels(raw, "label file")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml: cannot be read"):
        read_labels(tmp_path / "none.yaml")


def test_same_as_the_safe_loader_on_an_ordinary_file() -> None:
    text = "x: 1\ny: {a: [1.5, -2], b: null}\nz: 'q'\n1: true\nwhen: 2023-03-17\n"
    assert parse_labels(text.encode(), "s") == yaml.safe_load(text)
