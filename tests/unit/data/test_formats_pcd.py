"""Point cloud files: three encodings, colours as intensity, and headers that lie."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from turbotrain_plugin.data.formats.lzf import compress, decompress
from turbotrain_plugin.data.formats.pcd import ENCODINGS, pcd_bytes, read_pcd
from turbotrain_plugin.structures import UserError


def header(
    fields: str = "x y z intensity",
    size: str = "4 4 4 4",
    kind: str = "F F F F",
    points: int = 2,
    data: str = "binary",
    extra: str = "",
) -> bytes:
    return (
        f"# .PCD v.7 - Point Cloud Data file format\nVERSION .7\nFIELDS {fields}\nSIZE {size}\n"
        f"TYPE {kind}\n{extra}WIDTH {points}\nHEIGHT 1\nPOINTS {points}\nDATA {data}\n"
    ).encode()


def read(tmp_path: Path, raw: bytes) -> NDArray[np.float32]:
    path = tmp_path / "000069.pcd"
    path.write_bytes(raw)
    return read_pcd(path)


def cloud(count: int = 300, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    points = rng.normal(0.0, 40.0, (count, 4)).astype(np.float32)
    points[:, 3] = rng.integers(0, 256, count) / 255
    return points


# ---------------------------------------------------------------------------------------- reading


def test_binary_by_hand(tmp_path: Path) -> None:
    raw = header() + struct.pack("<8f", 1, 2, 3, 0.5, 4, 5, 6, 0.25)
    points = read(tmp_path, raw)
    np.testing.assert_array_equal(points, [[1, 2, 3, 0.5], [4, 5, 6, 0.25]])
    assert points.dtype == np.float32
    assert points.flags.writeable


def test_ascii_by_hand(tmp_path: Path) -> None:
    raw = header(data="ascii") + b"1 2.5 -3e1 0.5\n4 5 6 .25\n"
    np.testing.assert_array_equal(read(tmp_path, raw), [[1, 2.5, -30, 0.5], [4, 5, 6, 0.25]])


def test_compressed_by_hand(tmp_path: Path) -> None:
    """Columns one after the other, as one run of 32 literal bytes."""
    columns = struct.pack("<8f", 1, 4, 2, 5, 3, 6, 0.5, 0.25)
    body = struct.pack("<II", 33, 32) + b"\x1f" + columns
    points = read(tmp_path, header(data="binary_compressed") + body)
    np.testing.assert_array_equal(points, [[1, 2, 3, 0.5], [4, 5, 6, 0.25]])


@pytest.mark.parametrize(("name", "code"), [("rgb", "F"), ("rgb", "U"), ("rgba", "U")])
def test_red_is_the_intensity(tmp_path: Path, name: str, code: str) -> None:
    """0xAARRGGBB in the bits of a float or an unsigned number."""
    raw = header(f"x y z {name}", kind=f"F F F {code}")
    raw += struct.pack("<3fI3fI", 1, 2, 3, 0x00330201, 4, 5, 6, 0x00FF0000)
    points = read(tmp_path, raw)
    np.testing.assert_allclose(points[:, 3], [0x33 / 255, 1.0])


def test_red_of_ascii_colours(tmp_path: Path) -> None:
    as_float = struct.unpack("<f", struct.pack("<I", 0x00330201))[0]
    raw = header("x y z rgb", data="ascii", points=1) + f"1 2 3 {as_float:.9g}\n".encode()
    assert read(tmp_path, raw)[0, 3] == pytest.approx(0x33 / 255)
    raw = header("x y z rgb", kind="F F F U", data="ascii", points=1) + b"1 2 3 3342849\n"
    assert read(tmp_path, raw)[0, 3] == pytest.approx(0x33 / 255)


def test_intensity_is_preferred_to_colour(tmp_path: Path) -> None:
    raw = header("x y z rgb intensity", "4 4 4 4 4", "F F F U F", points=1)
    points = read(tmp_path, raw + struct.pack("<3fIf", 1, 2, 3, 0x00FF0000, 0.25))
    assert points[0, 3] == 0.25


def test_no_intensity_at_all(tmp_path: Path) -> None:
    points = read(tmp_path, header("x y z", "4 4 4", "F F F", 1) + struct.pack("<3f", 1, 2, 3))
    np.testing.assert_array_equal(points, [[1, 2, 3, 0]])


def test_other_fields_orders_and_types(tmp_path: Path) -> None:
    """Padding, doubles, a field of several numbers, and z before x."""
    raw = header("_ z y x normal _", "1 8 8 8 4 2", "U F F F F U", 1, extra="COUNT 3 1 1 1 3 1\n")
    body = struct.pack("<3B3d3fH", 9, 9, 9, 3.0, 2.0, 1.0, 7.0, 7.0, 7.0, 9)
    np.testing.assert_array_equal(read(tmp_path, raw + body), [[1, 2, 3, 0]])
    numbers = b"9 9 9 3 2 1 7 7 7 9\n"
    ascii_raw = raw.replace(b"DATA binary", b"DATA ascii") + numbers
    np.testing.assert_array_equal(read(tmp_path, ascii_raw), [[1, 2, 3, 0]])


def test_rows_without_a_position_are_dropped(tmp_path: Path) -> None:
    points = cloud(6)
    points[1, 0] = np.nan
    points[2, 2] = -np.inf
    points[3, 1] = 1e30
    for encoding in ENCODINGS:
        kept = read(tmp_path, pcd_bytes(points, encoding=encoding))
        np.testing.assert_array_equal(kept[:, :3], points[[0, 4, 5], :3])


def test_doubles_beyond_float32_are_dropped_silently(tmp_path: Path) -> None:
    raw = header("x y z", "8 8 8", "F F F") + struct.pack("<6d", 1e300, 0, 0, 1, 2, 3)
    np.testing.assert_array_equal(read(tmp_path, raw), [[1, 2, 3, 0]])


def test_empty_cloud(tmp_path: Path) -> None:
    for encoding in ENCODINGS:
        assert read(tmp_path, pcd_bytes(cloud(0), encoding=encoding)).shape == (0, 4)


def test_organised_cloud(tmp_path: Path) -> None:
    raw = header(points=4).replace(b"WIDTH 4\nHEIGHT 1", b"WIDTH 2\nHEIGHT 2") + bytes(64)
    assert read(tmp_path, raw).shape == (4, 4)


# ------------------------------------------------------------------------------------- round trips


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("colour", [True, False])
def test_written_clouds_read_the_same(tmp_path: Path, encoding: str, colour: bool) -> None:
    points = cloud()
    found = read(tmp_path, pcd_bytes(points, encoding=encoding, colour=colour))
    np.testing.assert_array_equal(found[:, :3], points[:, :3])
    np.testing.assert_allclose(found[:, 3], points[:, 3], atol=1e-7)


def test_intensity_is_kept_to_eight_bits(tmp_path: Path) -> None:
    points = cloud(101)
    points[:, 3] = np.linspace(0, 1, 101)
    found = read(tmp_path, pcd_bytes(points))
    assert 0 < np.abs(found[:, 3] - points[:, 3]).max() <= 0.5 / 255 + 1e-7


def test_unknown_encoding() -> None:
    with pytest.raises(ValueError, match="`encoding` must be one of"):
        pcd_bytes(cloud(), encoding="zip")


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("cut", [1, 16, 1000])
def test_truncated(tmp_path: Path, encoding: str, cut: int) -> None:
    # The last number of an ascii cloud may lose a digit unseen; never a whole one.
    raw = pcd_bytes(cloud(), encoding=encoding)[: -cut - (encoding == "ascii") * 40]
    with pytest.raises(UserError, match=r"000069\.pcd: not a readable .* promises .* truncated"):
        read(tmp_path, raw)


@pytest.mark.parametrize("data", ENCODINGS)
@pytest.mark.parametrize("points", [3, 10**6, 999_999_999_999])
def test_a_header_that_promises_too_much(tmp_path: Path, data: str, points: int) -> None:
    """Nothing of the promised size may be allocated: the last one would be 16 TB."""
    body = struct.pack("<8f", *range(8)) if data == "binary" else b"1 2 3 4 5 6 7 8\n"
    if data == "binary_compressed":
        size = points * 16 % 2**32
        body = struct.pack("<II", 33, size) + b"\x1f" + bytes(32)
    with pytest.raises(UserError, match=r"000069\.pcd: not a readable point cloud"):
        read(tmp_path, header(points=points, data=data) + body)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"POINTS 2", b"POINTS 3", "promises 3 POINTS in 2 x 1"),
        (b"POINTS 2", b"POINTS -2", "POINTS of its header is not one whole number"),
        (b"POINTS 2", b"POINTS 2 2", "POINTS of its header"),
        (b"POINTS 2", b"POINTS 1e3", "POINTS of its header"),
        (b"WIDTH 2\n", b"WIDTH 99999999999999999\n", "WIDTH of its header"),
        (b"WIDTH 2\n", b"", "has no WIDTH"),
        (b"FIELDS x y z intensity\n", b"", "has no FIELDS"),
        (b"DATA binary\n", b"DATA zip\n", "DATA is none of ascii"),
        (b"DATA binary\n", b"DATA\n", "DATA is none of ascii"),
        (b"DATA binary\n", b"", "hold no PCD header|unexpected line|no plain text"),
        (b"x y z intensity", b"x y w intensity", "no field z"),
        (b"x y z intensity", b"x y z x", "names a field twice"),
        (b"x y z intensity", b"x y z", "different lengths"),
        (b"SIZE 4 4 4 4", b"SIZE 4 4 4 3", "unknown type F 3"),
        (b"SIZE 4 4 4 4", b"SIZE 2 4 4 4", "unknown type F 2"),
        (b"TYPE F F F F", b"TYPE F F F O", "unknown type O 4"),
        (b"TYPE F F F F\n", b"TYPE F F F F\nCOUNT 2 1 1 1\n", "no field x of one number"),
        (b"TYPE F F F F\n", b"TYPE F F F F\nCOUNT 1 1 1 0\n", "has 0 numbers per point"),
        (b"TYPE F F F F\n", b"TYPE F F F F\nCOUNT 1 1 1 9999\n", "has 9999 numbers per point"),
        (b"VERSION .7", b"VERSION .7\nVERSION .7", "unexpected line 'VERSION'"),
        (b"VERSION .7", b"SURPRISE 1", "unexpected line 'SURPRISE'"),
        (b"VERSION .7", b"VERSION \xff", "no plain text"),
    ],
)
def test_broken_headers(tmp_path: Path, old: bytes, new: bytes, message: str) -> None:
    raw = (header() + struct.pack("<8f", *range(8))).replace(old, new)
    with pytest.raises(UserError, match=rf"000069\.pcd: not a readable .*({message})"):
        read(tmp_path, raw)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"1 2 3 x 5 6 7 8\n", "could not convert"),
        (b"1 2 3 4\n5 6 7\n", "2 points of 4 numbers, and it holds 7"),
        (b"1 2 3 4 5 6 7 " + b"8" * 100, "more than 64 characters"),
    ],
)
def test_broken_text(tmp_path: Path, body: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, header(data="ascii") + body)


@pytest.mark.parametrize("number", ["-1", "1.5", "nan", "inf", "5000000000"])
def test_text_that_is_no_colour(tmp_path: Path, number: str) -> None:
    raw = header("x y z rgb", kind="F F F U", points=1, data="ascii")
    with pytest.raises(UserError, match="'rgb' holds a number that is none of its type"):
        read(tmp_path, raw + f"1 2 3 {number}\n".encode())


def test_colour_of_another_size(tmp_path: Path) -> None:
    raw = header("x y z rgb", "4 4 4 8", "F F F F", 1) + struct.pack("<3fd", 1, 2, 3, 4)
    with pytest.raises(UserError, match="field rgb is not one number of 4 bytes"):
        read(tmp_path, raw)


@pytest.mark.parametrize(
    "raw", [b"", b"\n", b"DATA ascii\n", b"\0" * 20_000, b"#\n" * 10_000, b"x" * 20_000]
)
def test_no_header(tmp_path: Path, raw: bytes) -> None:
    with pytest.raises(UserError, match=r"000069\.pcd: not a readable point cloud"):
        read(tmp_path, raw)


def test_missing_and_oversized(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.pcd: cannot be read"):
        read_pcd(tmp_path / "none.pcd")
    large = tmp_path / "large.pcd"
    with large.open("wb") as stream:
        stream.truncate(2**33)  # sparse: takes no place on the disk
    with pytest.raises(UserError, match=r"large\.pcd: refused, 8589934592 bytes"):
        read_pcd(large)


# --------------------------------------------------------------------------------------------- LZF


@pytest.mark.parametrize(
    ("packed", "plain"),
    [
        (b"", b""),
        (b"\x00A", b"A"),
        (b"\x04hello", b"hello"),
        (b"\x02abc\x20\x02", b"abcabc"),  # a copy of 3 from 3 back
        (b"\x00a\xa0\x00", b"a" * 8),  # a copy that overlaps itself
        (b"\x00a\xe0\x00\x00", b"a" * 10),  # the long form, 9 bytes
        (b"\x01ab\xe0\xff\x01", b"ab" * 133),  # the longest copy, 264 bytes
    ],
)
def test_streams_by_hand(packed: bytes, plain: bytes) -> None:
    assert decompress(packed, len(plain)) == plain


@pytest.mark.parametrize(
    ("packed", "size", "message"),
    [
        (b"\x04hel", 5, "inside a run"),
        (b"\x00a\x20", 4, "inside a copy"),
        (b"\x00a\xe0", 4, "inside a copy"),
        (b"\x20\x00", 3, "before the first byte"),
        (b"\x00a\x20\x01", 4, "before the first byte"),
        (b"\x00a", 2, "another number of bytes"),
        (b"\x04hello", 4, "another number of bytes"),
    ],
)
def test_damaged_streams(packed: bytes, size: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        decompress(packed, size)


def test_a_stream_stops_where_it_says_too_much() -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="another number"):
            decompress(b"\x00a" + b"\xe0\xff\x00" * 10_000, 10)  # 2.6 MB
        assert tracemalloc.get_traced_memory()[1] < 10**5
    finally:
        tracemalloc.stop()


def test_compression_round_trips() -> None:
    rng = np.random.default_rng(3)
    texts = [
        b"",
        b"ab",
        b"a" * 10_000,
        rng.bytes(5000),
        rng.integers(0, 3, 20_000, dtype=np.uint8).tobytes(),
        b"x" * 8191 + b"abcabc" + rng.bytes(9000) + b"abcabc",
    ]
    for text in texts:
        assert decompress(compress(text), len(text)) == text
    assert len(compress(b"a" * 10_000)) < 200
