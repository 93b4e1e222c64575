"""The kinds of file that are read as images, and what another one is."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec

# Short on purpose: Pillow's other decoders are rarely used, hold whole images in containers or start other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
# Of the files in a folder, these are taken for images.
SUFFIXES = frozenset(
    (
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
        *(".avif", ".heic", ".heif", ".hif", ".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm"),
    )
)
SIDECAR_SUFFIX = ".emo-r3.json"
"""What is added to an image's whole name for the file beside it that says what was found: `photo.jpg.emo-r3.json`."""

_SAVE = ", which is not read; save it as PNG or JPEG"
_FRAME = "a video, not an image; emo-r3 timeline reads it, or save a frame of it as PNG or JPEG"
_RARE = "not a readable image: {} of a rare kind, or damaged; save it as PNG or JPEG"
# What else is often called .jpg or .png, by what stands at an offset.
_SIGNATURES = (
    (0, b"%PDF-", "a PDF document" + _SAVE),
    (0, b"%!PS", "a PostScript document" + _SAVE),
    (0, b"8BPS", "a Photoshop document" + _SAVE),
    (0, b"\xff\x0a", "a JPEG XL image" + _SAVE),
    (4, b"JXL ", "a JPEG XL image" + _SAVE),
    (0, b"\0\0\1\0", "an icon" + _SAVE),
    (128, b"DICM", "a DICOM image" + _SAVE),
    (0, b"\x1a\x45\xdf\xa3", _FRAME),
    (8, b"AVI ", _FRAME),
    (0, b"PK\3\4", "an archive or an office document, not an image; take the image out of it"),
    (0, b"\x1f\x8b", "an archive, not an image; unpack it"),
)
# Kinds that Pillow reads, but not in every variety.
_READ = (
    (0, b"\xff\xd8\xff", "JPEG"),
    (0, b"\x89PNG", "PNG"),
    (0, b"GIF8", "GIF"),
    (0, b"II*\0", "TIFF"),
    (0, b"MM\0*", "TIFF"),
    (4, b"jP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
)


@cache
def readable_formats() -> tuple[str, ...]:
    """Pillow's names of the formats that are read here: HEIF, as phones write it, where pillow-heif is installed."""
    if find_spec("pillow_heif") is None:
        return FORMATS
    import pillow_heif

    pillow_heif.register_heif_opener()
    return (*FORMATS, "HEIF")


def what_else(data: bytes) -> str:
    """What a file is that Pillow doesn't know, whatever it is called."""
    text = data[:65536].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<script", b"<head", b"<body")) or b"<html" in text[:1024]:
        return "a web page, not an image; download the image itself"
    if text.startswith(b"<") and b"<svg" in text:
        return "an SVG drawing" + _SAVE
    if text.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the image; run git lfs pull"
    if data[4:8] == b"ftyp":
        brands = data[8 : min(int.from_bytes(data[:4], "big"), 256)]
        if b"avi" in brands:  # Pillow reads AVIF, if it was built so
            return _RARE.format("AVIF")
        if any(brand in brands for brand in (b"hei", b"hev", b"mif1", b"msf1")):
            if "HEIF" in readable_formats():
                return _RARE.format("HEIC")
            return "a HEIC photo, which needs pillow-heif; pip install 'emo-r3[photos]', or save it as PNG or JPEG"
        return _FRAME
    for offset, signature, kind in _SIGNATURES:
        if data[offset:].startswith(signature):
            return kind
    if readable := _read_kind(data):
        return _RARE.format(readable)
    if text and all(byte >= 32 or byte in b"\t\r\n" for byte in text[:512]) and _is_utf8(text[:512]):
        return "not a readable image but text; download the image itself"
    return f"not a readable image ({', '.join(FORMATS)}); check that a viewer opens it and save it as PNG or JPEG"


def left_out_as(data: bytes) -> str:
    """What a file is that nobody tried to read, since its name has no image's suffix."""
    kind = _read_kind(data)
    return f"a {kind} image without an image's suffix: name it itself, or rename it" if kind else what_else(data)


def _read_kind(data: bytes) -> str | None:
    return next((kind for offset, signature, kind in _READ if data[offset:].startswith(signature)), None)


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        return error.start >= len(data) - 3  # a character that was cut
    return True
