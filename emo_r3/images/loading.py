"""Any image that a caller may hold, as an RGB PIL image; or one clear line on why that can't be."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import os
import re
import stat
import threading
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast
from urllib.parse import unquote_to_bytes

import numpy as np
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from ..errors import ImageError
from .download import fetch, public_name
from .kinds import SIDECAR_SUFFIX, SUFFIXES, left_out_as, readable_formats, what_else

MAX_BYTES = 64 * 2**20
MAX_PIXELS = 64 * 2**20
TIMEOUT = 20.0

# A progressive JPEG may go over all of its pixels again for every 100 bytes; real ones do so about ten times.
_MAX_SCANS = 100
_JPEG_MARKER = re.compile(rb"\xff([\x02-\xcf\xd9-\xfe])")
# What undoes each EXIF orientation. Pillow's `exif_transpose` also rewrites the EXIF, and fails where that is broken.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TILE_WIDTH, _TILE_LENGTH = 322, 323
# Real colour profiles have some kilobytes; of printers, one or two million.
_MAX_PROFILE = 4 * 2**20
_DATA_URL = re.compile(r"\s*data:", re.IGNORECASE)
_URL = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_warnings_lock = threading.Lock()


@dataclass(frozen=True)
class LoadedImage:
    """
    An image that is ready for a processor.

    Args:
        image (`PIL.Image.Image`): the decoded image, mode RGB, upright.
        name (`str`): what to call it in messages and rows: its path, its URL without the query, or its type.
        notes (`tuple[str, ...]`): what was done to it: "first frame of 12", "first of several pages",
            "rotated by EXIF", "colours converted to sRGB", "flattened on white", "16-bit scaled".
        size (`tuple[int, int]`, *optional*): its width and height before it was brought into a processor's shape;
            unless given, it wasn't.
    """

    image: Image.Image
    name: str
    notes: tuple[str, ...] = ()
    size: tuple[int, int] | None = None


def load_image(
    source: Any,
    *,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
    timeout: float = TIMEOUT,
    allow_private_hosts: bool = False,
) -> LoadedImage:
    """
    Reads one image from wherever it is and makes it RGB.

    Args:
        source (`str`, `os.PathLike`, `PIL.Image.Image`, `bytes`, `np.ndarray`, file or `dict`): a path, an http(s) or
            `data:` URL, an image (taken at its current frame), the bytes of an image file, a file opened in binary
            mode (`BytesIO` too; read from its start), an array of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4)
            holding `uint8`, `uint16`, `bool` or floats in [0, 1], an undecoded row of a `datasets` image column,
            `{"bytes": ..., "path": ...}`, or a row of a data set with such an image in its column `image`.
        max_bytes (`int`, *optional*, defaults to `67108864`): the largest file or download to read.
        max_pixels (`int`, *optional*, defaults to `67108864`): the most pixels to decode; the header is asked first.
            Above twice `PIL.Image.MAX_IMAGE_PIXELS` (178,956,970), Pillow's own limit has to be raised too.
        timeout (`float`, *optional*, defaults to `20.0`): seconds for a whole download.
        allow_private_hosts (`bool`, *optional*, defaults to `False`): fetch URLs of private networks too.

    Returns:
        [`LoadedImage`]: the image, its name and what was done to it.

    Raises:
        [`ImageError`]: one line with the name of the source, what is wrong and what to do.

    Example:

    ```python
    >>> load_image(np.zeros((2, 3), dtype="uint8")).image.size
    (3, 2)
    ```
    """
    name = None
    if isinstance(source, Mapping) and "image" in source:
        source = source["image"]
    if isinstance(source, Mapping):
        name, data = source.get("path"), source.get("bytes")
        if name is None and data is None:
            columns = _one_line(", ".join(map(str, source)) or "none")
            raise ImageError(f"row with the columns {columns}: no 'image', 'bytes' or 'path' in it; give the image")
        source = name if data is None else data
    if isinstance(source, Image.Image):
        return _finish(source, _one_line(getattr(source, "filename", "") or "PIL image"), max_pixels)
    if isinstance(source, np.ndarray):
        return _from_array(source, max_pixels)
    if isinstance(source, bytes | bytearray | memoryview):
        name = _one_line(name) if isinstance(name, str | os.PathLike) else "image bytes"
        return _decode(bytes(source), name, max_bytes, max_pixels)
    if is_file(source):
        return _decode(_read_open_file(source, max_bytes), source_name(source), max_bytes, max_pixels)
    if isinstance(source, str) and _DATA_URL.match(source):
        return _decode(_read_data_url(source, max_bytes), "data URL", max_bytes, max_pixels)
    if isinstance(source, str) and _URL.match(source):
        content = fetch(source, max_bytes=max_bytes, timeout=timeout, allow_private_hosts=allow_private_hosts)
        return _decode(content, public_name(source), max_bytes, max_pixels)
    if isinstance(source, str | os.PathLike):
        return _decode(_read_file(source, max_bytes), _one_line(source), max_bytes, max_pixels)
    kind = type(source).__name__
    raise ImageError(f"{kind}: not an image; give a path, a URL, a PIL image, bytes or a numpy array")


def load_thumbnail(path: str | os.PathLike[str], side: int) -> Image.Image:
    """
    Reads an image file as [`load_image`] does, reduced to fit a square; of large JPEGs, only that is decoded.

    Args:
        path (`str` or `os.PathLike`): the file.
        side (`int`): the most pixels of a side.

    Raises:
        [`ImageError`]: as [`load_image`].
    """
    image = _decode(_read_file(path, MAX_BYTES), _one_line(path), MAX_BYTES, MAX_PIXELS, near=side).image
    image.thumbnail((side, side))
    return image


def is_file(source: Any) -> bool:
    """Whether this is an open file or something like it, and not a collection of images or of lines."""
    return callable(getattr(source, "read", None))


def source_name(source: Any) -> str:
    """What [`load_image`] calls a source, without reading it: its path, its URL without the query, or its type."""
    if isinstance(source, Mapping) and "image" in source:
        source = source["image"]
    if isinstance(source, Mapping):
        source = source.get("path") or source.get("bytes")
    if isinstance(source, Image.Image):
        return _one_line(getattr(source, "filename", "") or "PIL image")
    if isinstance(source, bytes | bytearray | memoryview):
        return "image bytes"
    if is_file(source):
        name = getattr(source, "name", None)
        return _one_line(name) if isinstance(name, str) and name else type(source).__name__
    if isinstance(source, str) and _DATA_URL.match(source):
        return "data URL"
    if isinstance(source, str) and _URL.match(source):
        return public_name(source)
    return _one_line(source) if isinstance(source, str | os.PathLike) else type(source).__name__


def find_images(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[str]:
    """
    Lists the images of files, URLs and folders, in a fixed order and each once.

    Args:
        paths (`str`, `os.PathLike` or an iterable of them): a folder stands for all files in and under it that have
            a known suffix, sorted, without hidden ones and without following links to folders; all else is
            returned as given, so that [`load_image`] can say what is wrong with it.

    Returns:
        `list[str]`: the paths.

    Raises:
        [`ImageError`]: if a folder can't be read or holds no image.
    """
    if isinstance(paths, str | os.PathLike):
        paths = [paths]
    found: dict[str, None] = {}
    for path in [os.fspath(path) for path in paths]:
        if not os.path.isdir(path):
            found[path] = None
            continue
        inside = sorted(_walk(path))
        if not inside:
            raise ImageError(
                f"{_one_line(path)}: no image in this folder; known suffixes: {' '.join(sorted(SUFFIXES))}"
            )
        found.update(dict.fromkeys(inside))
    return list(found)


def left_out(paths: Iterable[str | os.PathLike[str]]) -> list[tuple[str, str]]:
    """
    What [`find_images`] leaves out of folders: files without a known suffix and links to folders, hidden ones and our
    own sidecars apart.

    Args:
        paths (iterable of `str` or `os.PathLike`): as given there.

    Returns:
        `list[tuple[str, str]]`: the path of each and what it is, going by its first bytes.
    """
    found: dict[str, str] = {}
    for path in [os.fspath(path) for path in paths]:
        if os.path.isdir(path):
            for name in sorted(_walk(path, images=False)):
                if name.endswith(SIDECAR_SUFFIX):
                    continue
                if os.path.isdir(name):
                    found[name] = "a link to a folder, which is not followed: name it too"
                    continue
                try:
                    head = _read_head(name)
                except OSError as error:
                    found[name] = f"can't be read ({error.strerror})"
                    continue
                found[name] = left_out_as(head) if head else "empty"
    return list(found.items())


def _read_head(path: str, size: int = 65536) -> bytes:
    """The first bytes of a file; none of what is no regular file, which could be endless."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        return b""
    with open(path, "rb") as file:
        return file.read(size)


def _walk(folder: str, images: bool = True) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        where = _one_line(error.filename or folder)
        raise ImageError(f"{where}: the folder can't be read ({error.strerror}); check its permissions") from error

    for parent, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        if not images:
            yield from (path for name in folders if os.path.islink(path := os.path.join(parent, name)))
        for name in files:
            if not name.startswith(".") and (os.path.splitext(name)[1].lower() in SUFFIXES) == images:
                yield os.path.join(parent, name)


def _one_line(name: str | os.PathLike[str]) -> str:
    """A name that prints anywhere as one line of a sane length, also when a file is called otherwise."""
    text = os.fsdecode(name)
    text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return text if len(text) <= 400 else f"{text[:200]}...{text[-100:]}"


def _read_file(path: str | os.PathLike[str], max_bytes: int) -> bytes:
    name = _one_line(path)
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise ImageError(f"{name}: this is a folder; give a file in it")
        if not stat.S_ISREG(mode):  # opening a pipe or a device may wait for ever
            raise ImageError(f"{name}: this is a pipe, socket or device; save the image to a file first")
        with open(path, "rb") as file:
            return file.read(max_bytes + 1)
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file; check the path") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{name}: can't be read ({reason}); check the path and its permissions") from error


def _read_open_file(file: Any, max_bytes: int) -> bytes:
    name = source_name(file)
    try:
        if isinstance(file, io.TextIOBase):
            raise ImageError(f"{name}: opened as text; open it with mode 'rb'")
        if callable(getattr(file, "seekable", None)) and file.seekable():
            file.seek(0)  # whoever has just saved an image into it stands at its end
        data = b""
        while len(data) <= max_bytes and (more := file.read(max_bytes + 1 - len(data))):
            data += more
    except (OSError, ValueError, TypeError) as error:
        raise ImageError(f"{name}: can't be read ({_one_line(str(error))}); give a file open in mode 'rb'") from error
    return data


def _read_data_url(url: str, max_bytes: int) -> bytes:
    kind, comma, content = url.partition(",")
    if not comma:
        raise ImageError("data URL: cut short, no comma before its data; write data:image/png;base64,...")
    if len(content) > 3 * max_bytes:  # what is percent-encoded takes three characters for a byte
        raise ImageError(f"data URL: larger than {max_bytes:,} bytes; use a smaller image, or raise max_bytes")
    data = unquote_to_bytes(content)
    if not kind.rstrip().lower().endswith(";base64"):
        return data
    try:
        joined = b"".join(data.split()).rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
        return base64.b64decode(joined + b"=" * (-len(joined) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise ImageError("data URL: not base64, or cut short; encode the image again") from error


def _decode(data: bytes, name: str, max_bytes: int, max_pixels: int, near: int | None = None) -> LoadedImage:
    if not data:
        raise ImageError(f"{name}: empty; copy or download it again")
    if len(data) > max_bytes:
        raise ImageError(f"{name}: larger than {max_bytes:,} bytes; use a smaller image, or raise max_bytes")
    if data.startswith(b"\xff\xd8") and _scans(data) > _MAX_SCANS:
        raise ImageError(f"{name}: more than {_MAX_SCANS} JPEG scans, which no camera writes; save it again")
    try:
        with _pillow_warnings_off():
            image = Image.open(io.BytesIO(data), formats=readable_formats())
            note = _frame_note(image)
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: {what_else(data)}") from error
    except Image.DecompressionBombError as error:
        own = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        if own < max_pixels:
            raise ImageError(
                f"{name}: more than {own:,} pixels, Pillow's own limit; use a smaller image, or raise "
                "PIL.Image.MAX_IMAGE_PIXELS too"
            ) from error
        raise ImageError(f"{name}: {_too_many_pixels(max_pixels)}") from error
    except Exception as error:  # on hostile bytes Pillow's readers raise nearly every type there is
        raise _damaged(name, error) from error
    with image:
        return _finish(image, name, max_pixels, note, near=near)


def _scans(data: bytes) -> int:
    """How often a JPEG goes over its pixels. Walks the segments, as thumbnails and videos inside hold markers too."""
    position, scans = 2, 0
    while scans <= _MAX_SCANS and (marker := _JPEG_MARKER.search(data, position)) and marker[1] != b"\xd9":
        scans += marker[1] == b"\xda"
        position = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return scans


def _frame_note(image: Image.Image) -> str | None:
    if image.format == "MPO" or not getattr(image, "is_animated", False):
        return None  # the further images of an MPO, as phones write it, are previews and depth maps
    if image.format == "TIFF":  # counting pages takes quadratic time, which a hostile file can use
        return "first of several pages"
    return f"first frame of {getattr(image, 'n_frames', 1)}"


def _finish(
    image: Image.Image, name: str, max_pixels: int, *notes: str | None, near: int | None = None
) -> LoadedImage:
    width, height = image.size
    if not width * height:
        raise ImageError(f"{name}: no pixels ({width} x {height}); give an image of at least 1 x 1")
    try:
        tags = getattr(image, "tag_v2", {})
        tile = tags.get(_TILE_WIDTH, 0) * tags.get(_TILE_LENGTH, 0)
        # A small TIFF may be cut from one huge tile, which has to be decoded as a whole.
        if max(width * height, tile) > max_pixels:
            raise ImageError(f"{name}: {_too_many_pixels(max_pixels)}")
        with _pillow_warnings_off():
            rotated = tags.get(ExifTags.Base.Orientation, 1) in _TURNS  # loading a TIFF turns it already
            if near is not None:
                image.draft(None, (near, near))
            image.load()
            upright = _upright(image)
            coloured, profile_note = _to_srgb(upright, image.info.get("icc_profile"))
            rgb, colour_note = _to_rgb(coloured, name)
    except ImageError:
        raise
    except MemoryError as error:
        raise ImageError(f"{name}: {width} x {height} pixels don't fit into memory; use a smaller image") from error
    except Exception as error:
        raise _damaged(name, error) from error
    rgb.info = {}  # so that nobody downstream turns it again or trips over broken metadata
    turned = "rotated by EXIF" if rotated or upright is not image else None
    return LoadedImage(rgb, name, tuple(note for note in (*notes, turned, profile_note, colour_note) if note))


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken EXIF says nothing about the pixels, which are fine
        return image
    return image if turn is None else image.transpose(turn)


def _to_srgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, str | None]:
    """The colours as a screen would show them: cameras and phones store them in wider spaces, with a profile."""
    if not profile or len(profile) > _MAX_PROFILE:
        return image, None
    if image.mode == "P":
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    try:
        transform = _srgb_transform(profile, image.mode)
        if transform is None:
            return image, None
        return cast(Image.Image, ImageCms.applyTransform(image, transform)), "colours converted to sRGB"
    except Exception:  # a broken profile says nothing about the pixels, which are fine
        return image, None


@lru_cache(maxsize=8)
def _srgb_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """From a profile's colours to sRGB; `None` where that changes nothing, or can't be done."""
    out = {"RGB": "RGB", "RGBA": "RGBA", "L": "RGB", "CMYK": "RGB"}.get(mode)
    source = ImageCms.getOpenProfile(io.BytesIO(profile))
    if out is None or "srgb" in ImageCms.getProfileDescription(source).lower():
        return None
    return ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, out)


def _to_rgb(image: Image.Image, name: str) -> tuple[Image.Image, str | None]:
    if image.mode == "F" or image.mode.startswith("I"):  # Pillow would clip these at 255
        array = np.asarray(image)
        if image.mode == "I":
            low, high = int(array.min()), int(array.max())
            if low < 0 or high > 65535:
                raise ImageError(f"{name}: 32-bit values from {low} to {high} have no known scale; save it as 8-bit")
            array = array.astype("uint8" if high <= 255 else "uint16")
        levels, note = _to_levels(array, name)
        return Image.fromarray(levels).convert("RGB"), note
    try:
        if image.has_transparency_data:
            rgba = image.convert("RGBA")
            if rgba.getchannel("A").getextrema() != (255, 255):
                white = Image.new("RGBA", image.size, "white")
                return Image.alpha_composite(white, rgba).convert("RGB"), "flattened on white"
            image = rgba
        return image.convert("RGB"), None
    except ValueError as error:
        raise ImageError(f"{name}: pixels of mode {image.mode} are not supported; convert it to RGB") from error


def _from_array(array: np.ndarray, max_pixels: int) -> LoadedImage:
    name = _one_line(f"array of shape {array.shape} and type {array.dtype}")
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ImageError(f"{name}: not (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); give one image, channels last")
    height, width = array.shape[:2]
    if not width * height:
        raise ImageError(f"{name}: no pixels; give an image of at least 1 x 1")
    if width * height > max_pixels:
        raise ImageError(f"{name}: {_too_many_pixels(max_pixels)}")
    levels, note = _to_levels(array[..., 0] if array.shape[2:] == (1,) else array, name)
    return _finish(Image.fromarray(levels), name, max_pixels, note)


def _to_levels(array: np.ndarray, name: str) -> tuple[np.ndarray, str | None]:
    """Pixel values as `uint8`."""
    if array.dtype == np.uint8:
        return array, None
    if array.dtype == np.bool_:
        return array * np.uint8(255), None
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return ((array.astype(np.uint32) + 128) // 257).astype(np.uint8), "16-bit scaled"
    if array.dtype.kind != "f":
        raise ImageError(f"{name}: unknown scale; give uint8, uint16, bool, or floats in [0, 1]")
    low, high = float(array.min()), float(array.max())
    if not (low >= -1e-3 and high <= 1 + 1e-3):  # also false for NaN; resizing overshoots by a little
        raise ImageError(f"{name}: values from {low:g} to {high:g}; give finite floats in [0, 1], or uint8")
    return (array.clip(0, 1) * 255).round().astype(np.uint8), None


def _too_many_pixels(max_pixels: int) -> str:
    return f"more than {max_pixels:,} pixels, not decoded; use a smaller image, or raise max_pixels"


def _damaged(name: str, error: Exception) -> ImageError:
    # Pillow's readers don't tell a broken file from one of a rare kind, such as a lossless JPEG.
    return ImageError(
        f"{name}: damaged or cut short, or of a kind that is not read ({_one_line(str(error))}); "
        "copy or download it again, or save it as PNG or JPEG"
    )


@contextmanager
def _pillow_warnings_off() -> Iterator[None]:
    """What Pillow would warn about is either refused here or harmless. Filters are global, hence the lock."""
    with _warnings_lock, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def image_digest(image: Image.Image) -> str:
    """The same for the same pixels, wherever they come from."""
    return hashlib.blake2b(repr((image.mode, image.size)).encode() + image.tobytes(), digest_size=16).hexdigest()
