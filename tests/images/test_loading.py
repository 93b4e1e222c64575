"""What `load_image` and `find_images` accept, what they make of it, and how they refuse."""

from __future__ import annotations

import base64
import io
import os
import signal
import socket
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, features

from emo_r3.errors import ImageError
from emo_r3.images import kinds, loading
from emo_r3.images.kinds import FORMATS, SUFFIXES, readable_formats
from emo_r3.images.loading import LoadedImage, find_images, left_out, load_image, source_name

RED, WHITE = (255, 0, 0), (255, 255, 255)
READABLE = readable_formats()
HEIC = "not a readable image: HEIC of a rare kind" if "HEIF" in READABLE else "a HEIC photo, which needs"
needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def refusal(source: Any, **options: Any) -> str:
    with pytest.raises(ImageError) as caught:
        load_image(source, **options)
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and ";" in message, message  # one line: what is wrong; what to do
    return message


def close(image: Image.Image, colour: tuple[int, int, int], tolerance: int = 3, at: tuple[int, int] = (0, 0)) -> bool:
    return all(abs(a - b) <= tolerance for a, b in zip(image.getpixel(at), colour, strict=True))


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Turns a hang into a failure."""

    def give_up(*_: Any) -> None:
        raise AssertionError(f"still busy after {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --- sources


def test_every_kind_of_source_gives_the_same_image(tmp_path: Path) -> None:
    pixels = noise(5, 7, 3)
    image = Image.fromarray(pixels)
    data = encoded(image)
    path = tmp_path / "a b é.png"
    path.write_bytes(data)
    sources = {
        "path": (path, str(path)),
        "string": (str(path), str(path)),
        "pil": (image, "PIL image"),
        "pil from file": (Image.open(path), str(path)),
        "bytes": (data, "image bytes"),
        "bytearray": (bytearray(data), "image bytes"),
        "memoryview": (memoryview(data), "image bytes"),
        "array": (pixels, "array of shape (5, 7, 3) and type uint8"),
        "row with bytes": ({"bytes": data, "path": "inner.png"}, "inner.png"),
        "row with bytes only": ({"bytes": data, "path": None}, "image bytes"),
        "row with path": ({"bytes": None, "path": str(path)}, str(path)),
    }
    for kind, (source, name) in sources.items():
        loaded = load_image(source)
        assert isinstance(loaded, LoadedImage)
        assert type(loaded.image) is Image.Image and loaded.image.mode == "RGB", kind
        assert np.array_equal(np.asarray(loaded.image), pixels), kind
        assert (loaded.name, loaded.notes) == (name, ()), kind


def test_the_result_is_a_copy() -> None:
    image = Image.new("RGB", (2, 2), RED)
    load_image(image).image.putpixel((0, 0), (0, 0, 0))
    assert image.getpixel((0, 0)) == RED
    pixels = np.full((2, 2, 3), 9, dtype=np.uint8)
    load_image(pixels).image.putpixel((0, 0), (0, 0, 0))
    assert pixels.min() == 9


@pytest.mark.parametrize("source", [None, 5, 1.5, ["a.png"], {"bytes": None, "path": None}, {}, object()])
def test_other_types_are_refused(source: Any) -> None:
    assert "give" in refusal(source)


ARRAYS: dict[str, tuple[Any, Any]] = {
    "grey": (np.full((2, 3), 128, np.uint8), (128,) * 3),
    "grey with channel": (np.full((2, 3, 1), 128, np.uint8), (128,) * 3),
    "bool": (np.ones((2, 3), bool), WHITE),
    "uint16": (np.full((2, 3, 3), 32896, np.uint16), (128,) * 3),
    "uint16 big-endian": (np.full((2, 3), 32896, ">u2"), (128,) * 3),
    "uint16 full": (np.full((2, 3), 65535, np.uint16), WHITE),
    "float": (np.full((2, 3, 3), 0.5), (128,) * 3),
    "float16": (np.full((2, 3), 1, np.float16), WHITE),
    "float with overshoot": (np.full((2, 3), 1.0000002, np.float32), WHITE),
    "clear": (np.zeros((2, 3, 4), np.uint8), WHITE),
    "not contiguous": (np.full((6, 4, 3), 7, np.uint8)[::3, ::-1][:, :3], (7, 7, 7)),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_arrays(name: str) -> None:
    array, colour = ARRAYS[name]
    loaded = load_image(array)
    assert loaded.image.size == (3, 2) and loaded.image.getpixel((0, 0)) == colour
    assert ("16-bit scaled" in loaded.notes) == name.startswith("uint16")


BAD_ARRAYS: dict[str, tuple[Any, str]] = {
    "nan": (np.array([[0.5, np.nan]]), "nan"),
    "infinity": (np.array([[0.5, np.inf]]), "inf"),
    "0..255 floats": (np.array([[0.5, 200.0]]), "to 200"),
    "negative floats": (np.array([[-0.5, 0.5]]), "from -0.5"),
    "int64": (np.zeros((2, 2), np.int64), "int64"),
    "strings": (np.array([["a", "b"]]), "scale"),
    "objects": (np.array([[None, None]]), "scale"),
    "complex": (np.zeros((2, 2), complex), "scale"),
    "channels first": (np.zeros((3, 8, 8), np.uint8), "channels last"),
    "two channels": (np.zeros((8, 8, 2), np.uint8), "channels last"),
    "batch": (np.zeros((1, 8, 8, 3), np.uint8), "one image"),
    "one number": (np.zeros((), np.uint8), "one image"),
    "empty": (np.zeros((0, 5), np.uint8), "no pixels"),
    "empty floats": (np.zeros((5, 0, 3)), "no pixels"),
}


@pytest.mark.parametrize("name", BAD_ARRAYS)
def test_unusable_arrays(name: str) -> None:
    array, part = BAD_ARRAYS[name]
    message = refusal(array)
    assert part in message and message.startswith("array of shape")


# --- what files may hold


@pytest.mark.parametrize("kind", [f if f != "AVIF" else pytest.param(f, marks=needs_avif) for f in READABLE])
def test_formats(kind: str) -> None:
    loaded = load_image(encoded(Image.new("RGB", (16, 8), (200, 40, 90)), kind))
    assert loaded.image.size == (16, 8) and close(loaded.image, (200, 40, 90), 6) and loaded.notes == ()


MODES: dict[str, tuple[Image.Image, Any, tuple[str, ...]]] = {
    "grey": (Image.new("L", (3, 2), 77), (77,) * 3, ()),
    "1-bit": (Image.new("1", (3, 2), 1), WHITE, ()),
    "LA": (Image.new("LA", (3, 2), (0, 0)), WHITE, ("flattened on white",)),
    "LA, half": (Image.new("LA", (3, 2), (0, 128)), (127,) * 3, ("flattened on white",)),
    "RGBA, half": (Image.new("RGBA", (3, 2), (255, 0, 0, 128)), (255, 127, 127), ("flattened on white",)),
    "RGBA, opaque": (Image.new("RGBA", (3, 2), (255, 0, 0, 255)), RED, ()),
    "palette": (Image.new("RGB", (3, 2), RED).quantize(4), RED, ()),
}


@pytest.mark.parametrize("name", MODES)
def test_modes_from_a_file(name: str) -> None:
    image, colour, notes = MODES[name]
    loaded = load_image(encoded(image))
    assert loaded.image.mode == "RGB" and close(loaded.image, colour, 1) and loaded.notes == notes


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "RGBX", "RGBa", "LA", "PA", "CMYK", "YCbCr", "HSV"])
def test_modes_of_pil_images(mode: str) -> None:
    source = Image.new("L", (3, 2), 255).convert("RGBA" if mode == "RGBa" else mode)
    assert close(load_image(source.convert(mode)).image, WHITE, 2)


def test_unsupported_mode() -> None:
    assert "mode La are not supported; convert" in refusal(Image.new("LA", (3, 2)).convert("La"))


def test_lab_is_converted_through_its_profile() -> None:
    assert close(load_image(Image.new("LAB", (3, 2), (255, 128, 128))).image, WHITE, 4)


def test_palette_with_transparency() -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((3, 3), 1)
    for data in (
        encoded(image, transparency=0),
        encoded(image, transparency=b"\x00\xff"),
        encoded(image, "GIF", transparency=0),
    ):
        loaded = load_image(data)
        assert loaded.image.getpixel((0, 0)) == WHITE and loaded.image.getpixel((3, 3)) == (0, 0, 255)
        assert loaded.notes == ("flattened on white",)


@pytest.mark.parametrize(("mode", "clear"), [("RGB", (255, 0, 0)), ("L", 9), ("1", 0)])
def test_one_transparent_colour(mode: str, clear: Any) -> None:
    loaded = load_image(encoded(Image.new(mode, (2, 2), clear), transparency=clear))
    assert loaded.image.getpixel((0, 0)) == WHITE and loaded.notes == ("flattened on white",)


@pytest.mark.parametrize("kind", ["JPEG", "TIFF"])
def test_cmyk(kind: str) -> None:
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    data = encoded(image, kind)
    if kind == "JPEG":
        assert b"Adobe" in data  # the marker that says "stored inverted"
    assert close(load_image(data).image, RED, 6)


def test_16_bit_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    ramp = np.array([[0, 200, 32896, 65535]], np.uint16)
    for kind in ("PNG", "TIFF"):
        loaded = load_image(encoded(Image.fromarray(ramp), kind))
        assert [loaded.image.getpixel((x, 0))[0] for x in range(4)] == [0, 1, 128, 255]
        assert loaded.notes == ("16-bit scaled",)
    big_endian = Image.frombytes("I;16B", (4, 1), ramp.astype(">u2").tobytes())
    assert [load_image(big_endian).image.getpixel((x, 0))[0] for x in range(4)] == [0, 1, 128, 255]
    wide = Image.fromarray(ramp.astype(np.int32))
    assert wide.mode == "I"
    for source in (wide, encoded(wide, "TIFF")):
        loaded = load_image(source)
        assert [loaded.image.getpixel((x, 0))[0] for x in range(4)] == [0, 1, 128, 255]
        assert loaded.notes == ("16-bit scaled",)
    assert load_image(Image.new("L", (1, 1), 200).convert("I")).image.getpixel((0, 0)) == (200, 200, 200)
    assert load_image(Image.new("F", (1, 1), 0.5)).image.getpixel((0, 0)) == (128, 128, 128)


@pytest.mark.parametrize(("mode", "value"), [("I", -1), ("I", 70000), ("F", 200.0), ("F", float("nan"))])
def test_values_without_a_known_scale(mode: str, value: float) -> None:
    image = Image.new(mode, (2, 2), value)
    assert "PIL image: " in refusal(image)
    assert "image bytes: " in refusal(encoded(image, "TIFF"))


# where the red top left corner of the image has to be after turning it as the orientation says
ORIENTATIONS = {1: "tl", 2: "tr", 3: "br", 4: "bl", 5: "tl", 6: "tr", 7: "br", 8: "bl"}


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", pytest.param("AVIF", marks=needs_avif)])
def test_exif_rotation(kind: str, orientation: int) -> None:
    image = Image.new("RGB", (64, 32), "white")
    image.paste(RED, (0, 0, 16, 16))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    loaded = load_image(encoded(image, kind, exif=exif))
    width, height = loaded.image.size
    assert (width, height) == ((64, 32) if orientation < 5 else (32, 64))
    corners = {"tl": (4, 4), "tr": (width - 5, 4), "br": (width - 5, height - 5), "bl": (4, height - 5)}
    red = [name for name, at in corners.items() if close(loaded.image, RED, 12, at)]
    assert red == [ORIENTATIONS[orientation]]
    assert loaded.notes == (("rotated by EXIF",) if orientation > 1 else ())
    assert load_image(loaded.image).notes == ()  # turned once, not again by the next reader


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("exif", [b"Exif\0\0garbage!!", b"Exif\0\0II*\0\xff\xff\xff\xff broken"])
def test_broken_exif_does_not_cost_the_image(kind: str, exif: bytes) -> None:
    loaded = load_image(encoded(Image.new("RGB", (8, 8), RED), kind, exif=exif))
    assert close(loaded.image, RED) and loaded.notes == ()
    assert not loaded.image.info


def test_partly_broken_exif_still_turns_the_image() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Make], exif[ExifTags.Base.Orientation] = "maker", 6
    broken = exif.tobytes().replace(b"\x01\x0f\0\x02", b"\x01\0\0\x02")  # a width that is text
    assert broken != exif.tobytes()
    loaded = load_image(encoded(Image.new("RGB", (8, 4), RED), "PNG", exif=broken))
    assert loaded.image.size == (4, 8) and loaded.notes == ("rotated by EXIF",)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", pytest.param("AVIF", marks=needs_avif)])
def test_first_frame_of_several(kind: str) -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    loaded = load_image(encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options))
    assert close(loaded.image, RED, 6)
    assert loaded.notes == ("first of several pages" if kind == "TIFF" else "first frame of 3",)


def test_notes_come_together() -> None:
    frames = [Image.new("RGBA", (4, 4), (255, 0, 0, level)) for level in (0, 255)]
    loaded = load_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    assert loaded.notes == ("first frame of 2", "flattened on white")


def test_the_further_images_of_a_phone_photo_are_no_animation() -> None:
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "MPO", save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    loaded = load_image(data)
    assert close(loaded.image, RED) and loaded.notes == ()


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (20_000, 10), (10, 20_000)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_odd_sizes(size: tuple[int, int], kind: str) -> None:
    loaded = load_image(encoded(Image.new("RGB", size, RED), kind))
    assert loaded.image.size == size and loaded.notes == ()


# --- what is wrong with a file


def test_every_bad_file_gets_one_line_with_its_name(tmp_path: Path) -> None:
    image = encoded(Image.fromarray(noise(40, 40, 3)), "JPEG")
    bad = {
        "empty.jpg": (b"", "empty"),
        "page.jpg": (b"\xef\xbb\xbf \n<!DOCTYPE html><p>Not found", "web page"),
        "page2.png": (b"<?xml version='1.0'?><HTML>", "web page"),
        "drawing.png": (b"<?xml version='1.0'?>\n<svg xmlns=''/>", "SVG"),
        "document.jpg": (b"%PDF-1.7 ...", "PDF"),
        "photo.jpg": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        "text.jpg": (b"hello", "not a readable image"),
        "garbage.png": (noise(1000).tobytes(), "not a readable image"),
        "start.jpg": (image[:3], "not a readable image"),
        "half.jpg": (image[: len(image) // 2], "cut short"),
        "magic.gif": (b"GIF89a", "GIF"),
    }
    for name, (data, part) in bad.items():
        path = tmp_path / name
        path.write_bytes(data)
        message = refusal(path)
        assert message.startswith(f"{path}: ") and part in message, message


@pytest.mark.parametrize("kind", [f if f != "AVIF" else pytest.param(f, marks=needs_avif) for f in READABLE])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.95])
def test_truncated_files(kind: str, share: float) -> None:
    options = {"compression": "tiff_lzw"} if kind == "TIFF" else {}
    data = encoded(Image.fromarray(noise(64, 64, 3)), kind, **options)
    refusal(data[: int(len(data) * share)])


def test_flipped_bytes_never_crash_or_hang() -> None:
    rng = np.random.default_rng(1)
    outcomes = set()
    for kind in (f for f in READABLE if f != "AVIF" or features.check("avif")):
        good = np.frombuffer(encoded(Image.fromarray(noise(24, 24, 3)), kind), np.uint8)
        for _ in range(60):
            data = good.copy()
            data[rng.integers(0, min(len(data), 400), 6)] = rng.integers(0, 256, 6)
            try:
                with within(20):
                    outcomes.add(load_image(data.tobytes(), max_pixels=10**6).image.mode)
            except ImageError as error:
                assert len(str(error).splitlines()) == 1
                outcomes.add("refused")
    assert outcomes == {"RGB", "refused"}


def test_paths_that_are_no_readable_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "dangling.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "loop.jpg").symlink_to(tmp_path / "loop.jpg")
    listener = socket.socket(socket.AF_UNIX)
    here = os.getcwd()
    os.chdir(tmp_path)  # the path of a Unix socket has to be short
    try:
        listener.bind("socket.jpg")
    finally:
        os.chdir(here)
    with listener, within(10):
        for name, part in {
            "missing.jpg": "no such file",
            "dangling.jpg": "no such file",
            "loop.jpg": "can't be read",
            "pipe.jpg": "pipe",
            "socket.jpg": "socket",
            "": "folder",
            "x\0y.jpg": "can't be read",
            "x" * 5000: "can't be read",
        }.items():
            source = f"{tmp_path}/{name}"
            message = refusal(source)
            assert part in message and message.startswith(str(tmp_path)) and len(message) < 700, message
        assert "device" in refusal("/dev/zero")
        assert "no such file" in refusal("")


def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(encoded(Image.new("RGB", (2, 2))))
    path.chmod(0)
    root = os.geteuid() == 0
    try:
        if root:  # root may read everything, so be someone else for a moment
            os.seteuid(65534)
        message = refusal(path)
    finally:
        if root:
            os.seteuid(0)
    assert "Permission denied" in message and "secret.png" in message and "check" in message


def test_names_that_do_not_print(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/line\nbreak \xff\x1b[31m.png"
    message = refusal(os.fsdecode(path))
    assert "line\\nbreak" in message
    message.encode("utf-8")
    Path(os.fsdecode(path)).write_bytes(encoded(Image.new("RGB", (2, 2))))
    loaded = load_image(os.fsdecode(path))
    assert loaded.name.isprintable() and loaded.image.size == (2, 2)


def test_a_closed_pil_image() -> None:
    with Image.open(io.BytesIO(encoded(Image.new("RGB", (4, 4))))) as image:
        pass
    image.close()
    assert "PIL image: " in refusal(image)
    assert "no pixels" in refusal(Image.new("RGB", (0, 4)))


# --- bounds


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(999))) + chunk(b"IEND", b"")
    )


def tiff(tags: dict[int, int], body: bytes) -> bytes:
    data = b"II*\0" + struct.pack("<I", 8 + len(body)) + body + struct.pack("<H", len(tags))
    return data + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags.items())) + bytes(4)


def tiled(side: int) -> bytes:
    body = zlib.compress(bytes(side * side))
    tags = {256: 64, 257: 64, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side, 324: 8, 325: len(body)}
    return tiff(tags, body)


BOMBS: dict[str, Callable[[], bytes]] = {
    "a little too large": lambda: png_header(8193, 8192),
    "above Pillow's warning": lambda: png_header(10_000, 10_000),
    "above Pillow's error": lambda: png_header(50_000, 50_000),
    "largest": lambda: png_header(2**31 - 1, 2**31 - 1),
    "gif": lambda: b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b",\0\0\0\0\x01\0\x01\0\0\x02\0;",
    "bmp": lambda: b"BM" + struct.pack("<IIIIIIHHIIIIII", 99, 0, 54, 40, 90_000, 90_000, 1, 24, 0, 0, 0, 0, 0, 0),
    "tiff": lambda: tiff({256: 90_000, 257: 90_000, 258: 8, 259: 1, 262: 1, 273: 8, 278: 90_000, 279: 9}, bytes(9)),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_are_refused_from_the_header(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = BOMBS[name]()
    assert len(data) < 2000

    def decode(*_: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)
    limits = Image.MAX_IMAGE_PIXELS
    assert "pixels, not decoded" in refusal(data)
    assert limits == Image.MAX_IMAGE_PIXELS == 89_478_485


def test_a_small_tiff_cut_from_a_huge_tile() -> None:
    assert load_image(tiled(64), max_pixels=10_000).image.size == (64, 64)
    assert "pixels, not decoded" in refusal(tiled(1024), max_pixels=10_000)


@pytest.mark.parametrize("kind", ["ICO", "ICNS", "PDF", "EPS", "TGA", "PCX"])
def test_formats_outside_the_list(kind: str) -> None:
    data = encoded(Image.new("RGB", (64, 64)), kind)
    assert "save it as PNG or JPEG" in refusal(data)


def test_bounds_are_inclusive_and_can_be_set() -> None:
    image = Image.fromarray(noise(10, 10, 3))
    data = encoded(image)
    assert load_image(data, max_pixels=100, max_bytes=len(data)).image.size == (10, 10)
    for source in (data, image, noise(10, 10, 3)):
        assert "more than 99 pixels" in refusal(source, max_pixels=99)
    assert f"larger than {len(data) - 1}" in refusal(data, max_bytes=len(data) - 1)


def test_a_large_file_is_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "sparse.png"
    with path.open("wb") as file:
        file.truncate(2**40)
    with within(10):
        assert "larger than 1,000 bytes" in refusal(path, max_bytes=1000)


def progressive(scans: int) -> bytes:
    data = encoded(Image.fromarray(noise(16, 16)), "JPEG", progressive=True)
    start, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    return data[:end] + data[start:end] * scans + data[end:]


def test_jpeg_that_goes_over_its_pixels_too_often() -> None:
    assert load_image(progressive(0)).image.size == (16, 16)
    assert "JPEG scans" in refusal(progressive(200))
    # A motion photo ends with a video and a header may hold a thumbnail: markers in there are no scans.
    assert load_image(progressive(0) + b"\xff\xda\0\x02" * 500).image.size == (16, 16)
    plain = progressive(0)
    comment = b"\xff\xfe" + struct.pack(">H", 2 + 4 * 500) + b"\xff\xda\0\x02" * 500
    assert load_image(plain[:2] + comment + plain[2:]).image.size == (16, 16)


# --- warnings


def noisy_tiff() -> bytes:
    # Copyright that claims to be longer than the file: Pillow warns as it opens this (12.3 stops there)
    data = bytearray(encoded(Image.new("RGB", (8, 8), RED), "TIFF", copyright="hello, world"))
    at = data.index(struct.pack("<HH", 33432, 2))
    data[at + 4 : at + 8] = struct.pack("<I", 10**6)
    return bytes(data)


@pytest.mark.slow
def test_pillow_warnings_do_not_leak() -> None:
    huge = 89_478_485 // 4000 + 1
    large = encoded(Image.new("1", (4000, huge)))
    palette = Image.new("P", (2, 2))
    palette.putpalette([255, 0, 0])
    palette.info["transparency"] = b"\x80"
    for source in (noisy_tiff(), palette, large):
        with pytest.warns(Warning):  # the case is one that Pillow does warn about
            image = Image.open(io.BytesIO(source)) if isinstance(source, bytes) else source
            image.load()
            image.convert("RGB")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            load_image(source, max_pixels=10**8)
        assert not caught


def test_warning_filters_survive_threads() -> None:
    data = noisy_tiff()
    before = list(warnings.filters)
    with ThreadPoolExecutor(8) as pool:
        for loaded in pool.map(load_image, [data] * 64):
            assert loaded.image.size == (8, 8)
    assert warnings.filters == before


# --- folders


def test_find_images(tmp_path: Path) -> None:
    names = ["b/2.JPG", "b/10.jpeg", "a.png", "a/z.webp", "a/z.txt", ".hidden.png", ".git/x.png", "b/._2.JPG", "noext"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "b" / "up").symlink_to(tmp_path)
    (tmp_path / "b" / "link.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "self").symlink_to(tmp_path / "self")
    with within(10):
        found = find_images([tmp_path])
    assert found == [str(tmp_path / name) for name in ("a.png", "a/z.webp", "b/10.jpeg", "b/2.JPG", "b/link.png")]
    assert find_images(tmp_path) == find_images(str(tmp_path)) == found
    odd = str(tmp_path / "a" / "z.txt")
    given = ["https://example.org/a.png?x=1", "missing.png", odd, tmp_path / "a", tmp_path / "a", odd]
    assert find_images(given) == ["https://example.org/a.png?x=1", "missing.png", odd, str(tmp_path / "a/z.webp")]
    assert find_images(tmp_path / "b" / "up") == [
        str(tmp_path / "b" / "up" / os.path.relpath(path, tmp_path)) for path in found
    ]


def test_folders_without_images(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ImageError, match=r"no image in this folder; .*\.png") as caught:
        find_images([tmp_path])
    assert str(tmp_path) in str(caught.value)


def test_a_folder_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").touch()

    def scandir(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(ImageError, match=r"the folder can't be read .Permission denied.; check") as caught:
        find_images(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_known_suffixes_are_readable_formats() -> None:
    Image.init()
    kinds = {Image.registered_extensions().get(suffix) for suffix in SUFFIXES}
    assert kinds <= {*READABLE, "MPO", None} and len(kinds) >= 9  # Pillow reads MPO as JPEG


def test_what_a_folder_holds_beside_images(tmp_path: Path) -> None:
    files = {
        "a.png": encoded(Image.new("RGB", (8, 8))),
        "film.mp4": _boxes(b"isom", b"mp41"),
        "notes.txt": b"a walk on the beach",
        "IMG_1.AAE": b"<?xml version='1.0'?><plist/>",
        "empty.xyz": b"",
        ".hidden": b"x",
    }
    (tmp_path / "below").mkdir()
    for name, data in files.items():
        (tmp_path / "below" / name).write_bytes(data)
    os.mkfifo(tmp_path / "below" / "pipe")
    (tmp_path / "scan").write_bytes(files["a.png"])
    (tmp_path / "more").symlink_to(tmp_path / "below")
    assert find_images([tmp_path]) == [str(tmp_path / "below" / "a.png")]
    found = {Path(name).name: what for name, what in left_out([tmp_path, "http://example.org/a.png"])}
    assert set(found) == {"film.mp4", "notes.txt", "IMG_1.AAE", "empty.xyz", "pipe", "scan", "more"}
    assert found["scan"].startswith("a PNG image without an image's suffix")
    assert found["more"] == "a link to a folder, which is not followed: name it too"
    assert found["film.mp4"].startswith("a video") and "text" in found["notes.txt"]
    assert found["empty.xyz"] == found["pipe"] == "empty"


def test_what_can_not_be_read_is_called_as_if_it_could(tmp_path: Path) -> None:
    broken = Image.open(io.BytesIO(encoded(Image.new("RGB", (8, 8)))))
    for source, name in (
        ({"bytes": b"junk", "path": "my/photo.jpg"}, "my/photo.jpg"),
        ({"image": {"bytes": b"junk", "path": None}}, "image bytes"),
        (b"junk", "image bytes"),
        (broken, "PIL image"),
        ({"path": "there/is/none.png"}, "there/is/none.png"),
    ):
        assert source_name(source) == name


# --- photographs as phones and cameras write them


def test_a_phone_s_heic_needs_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pillow_heif")
    data = encoded(Image.new("RGB", (64, 48), RED), "HEIF")
    assert close(load_image(data).image, RED, 6)
    monkeypatch.setattr(kinds, "readable_formats", lambda: FORMATS)
    monkeypatch.setattr(loading, "readable_formats", lambda: FORMATS)
    assert "a HEIC photo, which needs pillow-heif; pip install 'emo-r3[photos]'" in refusal(data)


def test_a_heic_is_bounded_before_it_is_decoded() -> None:
    pytest.importorskip("pillow_heif")
    data = encoded(Image.new("RGB", (640, 480), RED), "HEIF")
    assert "pixels, not decoded" in refusal(data, max_pixels=10_000)


def test_a_phone_s_second_image_is_no_frame() -> None:
    """A depth map or a preview lies behind the photograph."""
    stream = io.BytesIO()
    photo, preview = Image.new("RGB", (64, 48), RED), Image.new("RGB", (16, 12))
    photo.save(stream, "MPO", save_all=True, append_images=[preview])
    loaded = load_image(stream.getvalue())
    assert loaded.image.size == (64, 48) and loaded.notes == ()


def wide_gamut() -> bytes:
    """A profile as cameras use them: red, green and blue further out than a screen's."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    # The red and the green primary change places: nothing else makes so clear whether a profile is followed.
    count = int.from_bytes(profile[128:132], "big")
    tags = {bytes(profile[at : at + 4]): at + 4 for at in range(132, 132 + 12 * count, 12)}
    red, green = (slice(tags[name], tags[name] + 8) for name in (b"rXYZ", b"gXYZ"))
    profile[red], profile[green] = profile[green], profile[red]
    return bytes(profile).replace("sRGB".encode("utf-16-be"), "Wide".encode("utf-16-be")).replace(b"sRGB", b"Wide")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_colours_are_those_of_the_profile(kind: str) -> None:
    data = encoded(Image.new("RGB", (32, 24), (250, 20, 20)), kind, icc_profile=wide_gamut())
    loaded = load_image(data)
    assert loaded.notes == ("colours converted to sRGB",)
    assert close(loaded.image, (20, 250, 20), 12)


def test_a_profile_keeps_transparency_and_palettes() -> None:
    see_through = Image.new("RGBA", (8, 8), (250, 20, 20, 0))
    loaded = load_image(encoded(see_through, icc_profile=wide_gamut()))
    assert close(loaded.image, WHITE, 0) and loaded.notes == ("colours converted to sRGB", "flattened on white")
    palette = Image.new("RGB", (8, 8), (250, 20, 20)).quantize(4)
    assert close(load_image(encoded(palette, icc_profile=wide_gamut())).image, (20, 250, 20), 12)


@pytest.mark.parametrize(
    "profile",
    [b"not a profile", bytes(5 * 2**20), ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()],
    ids=["broken", "huge", "sRGB"],
)
def test_other_profiles_leave_the_pixels_as_they_are(profile: bytes) -> None:
    loaded = load_image(encoded(Image.new("RGB", (8, 8), RED), "TIFF", icc_profile=profile))
    assert close(loaded.image, RED, 0) and loaded.notes == ()


# --- URLs (the rest is in test_download.py)


@pytest.mark.parametrize("url", ["ftp://example.org/a.png", "file:///etc/passwd", "s3://bucket/a.png"])
def test_other_schemes(url: str) -> None:
    message = refusal(url)
    assert "only http and https" in message


# --- files, data URLs and rows


class _Slow(io.RawIOBase):
    """A file that can't go back and gives a little at a time, as a socket does."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, size: int = -1) -> bytes:
        part, self.data = self.data[:7], self.data[7:]
        return part


def test_open_files_are_read_whole_and_bounded(tmp_path: Path) -> None:
    data = encoded(Image.fromarray(noise(6, 5, 3)))
    path = tmp_path / "image.png"
    path.write_bytes(data)
    written = io.BytesIO()
    written.write(data)
    with open(path, "rb") as file, open(path, "rb", buffering=0) as raw:
        for source, name in ((file, str(path)), (raw, str(path)), (written, "BytesIO"), (_Slow(data), "_Slow")):
            loaded = load_image(source)
            assert np.array_equal(np.asarray(loaded.image), noise(6, 5, 3)) and loaded.name == name
        assert "BytesIO: larger than 10 bytes" in refusal(written, max_bytes=10)
        assert not file.closed and not written.closed
    assert f"{path}: can't be read" in refusal(file)  # closed by now
    assert "StringIO: opened as text" in refusal(io.StringIO("a line"))
    assert "BytesIO: empty" in refusal(io.BytesIO())


def test_data_urls() -> None:
    data = encoded(Image.new("RGB", (3, 2), RED))
    text = base64.b64encode(data).decode()
    for url in (
        f"data:image/png;base64,{text}",
        f"DATA:image/png;charset=utf-8;BASE64,{text}",
        f"data:;base64,{text.rstrip('=')}",
        f"data:image/png;base64,{text[:20]}\n {text[20:]}",
        f"data:image/png;base64,{text.translate(str.maketrans('+/', '-_'))}",
        f"data:image/png;base64,{quote(text, safe='')}",
        f"data:image/png,{quote(data)}",
    ):
        loaded = load_image(url)
        assert loaded.image.size == (3, 2) and loaded.name == "data URL", url
    assert "cut short" in refusal("data:image/png;base64")
    assert "not base64" in refusal("data:image/png;base64,!!!")
    assert "not base64" in refusal("data:image/png;base64,AAAAA")
    assert "empty" in refusal("data:image/png;base64,")
    assert "larger than 50 bytes" in refusal(f"data:image/png;base64,{text}", max_bytes=50)
    assert "larger than 50 bytes" in refusal("data:image/png," + "A" * 1000, max_bytes=50)
    assert refusal("data:text/html,<html>") == "data URL: a web page, not an image; download the image itself"


def test_a_whole_row_of_a_data_set() -> None:
    image = Image.new("RGB", (3, 2), RED)
    for held in (image, {"bytes": encoded(image), "path": None}, encoded(image)):
        assert load_image({"image": held, "label": 3, "path": "elsewhere.jpg"}).image.size == (3, 2)
    assert "row with the columns photo, label: no 'image', 'bytes' or 'path' in it" in refusal(
        {"photo": image, "label": 3}
    )
    assert "NoneType: not an image" in refusal({"image": None, "label": 3})


def _boxes(*brands: bytes) -> bytes:
    body = brands[0] + bytes(4) + b"".join(brands)
    return struct.pack(">I", 8 + len(body)) + b"ftyp" + body + bytes(40)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (_boxes(b"heic", b"mif1"), HEIC),
        (_boxes(b"mif1", b"heic"), HEIC),
        (_boxes(b"msf1", b"hevc"), HEIC),
        (_boxes(b"avif", b"mif1"), "not a readable image: AVIF of a rare kind, or damaged"),
        (_boxes(b"isom", b"mp41"), "a video"),
        (_boxes(b"qt  "), "a video"),
        (b"\x1a\x45\xdf\xa3" + bytes(20), "a video"),
        (b"RIFF\x10\0\0\0AVI LIST" + bytes(20), "a video"),
        (b"<?xml version='1.0'?><!--" + b"x" * 3000 + b"--><svg/>", "an SVG drawing"),
        (b"%PDF-1.7\n%\xe2\xe3", "a PDF document"),
        (b"<script>1</script>", "a web page"),
        (b"<?xml version='1.0'?><Error>AccessDenied</Error>", "not a readable image but text"),
        ("404: nicht gefunden, schöne Grüße".encode() * 40, "not a readable image but text"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
        (b"\xff\x0a" + bytes(20), "a JPEG XL image"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(20), "not a readable image: JPEG 2000 of a rare kind, or damaged"),
        (b"8BPS\0\1" + bytes(20), "a Photoshop document"),
        (b"PK\3\4" + bytes(20), "an archive"),
        (b"\xff\xd8\xff\xf7" + bytes(60), "not a readable image: JPEG of a rare kind, or damaged"),
        (b"\xfe\xed" + bytes(40), "not a readable image"),
    ],
)
def test_a_known_name_with_other_content_says_what_it_is(data: bytes, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "image.jpg"
    path.write_bytes(data)
    message = refusal(path)
    assert message.startswith(f"{path}: {kind}") and "damaged or cut short" not in message


def test_a_kind_that_pillow_lacks_is_not_called_damaged_alone() -> None:
    bitmap = bytearray(encoded(Image.new("RGB", (4, 4)), "BMP"))
    bitmap[30] = 4  # a JPEG inside, as printers take it
    assert "or of a kind that is not read (Unsupported BMP compression (4))" in refusal(bytes(bitmap))


def test_max_pixels_above_pillows_own_limit() -> None:
    header = struct.pack(">IIBBBBB", 20_000, 10_000, 1, 0, 0, 0, 0)
    chunk = b"IHDR" + header
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    data += struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    assert "more than 67,108,864 pixels, not decoded; use a smaller image, or raise max_pixels" in refusal(data)
    message = refusal(data, max_pixels=10**9)
    assert "more than 178,956,970 pixels, Pillow's own limit" in message and "MAX_IMAGE_PIXELS too" in message
