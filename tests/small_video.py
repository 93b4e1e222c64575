"""Small videos, made here: a scene of the miniature's world each second."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

from emo_r3.miniature import world
from emo_r3.miniature.drawing import render

COLOURS = ((250, 20, 20), (20, 250, 20), (20, 20, 250), (250, 250, 20))


def scenes(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [render(world.sample_scene("miniature-8", rng)).convert("RGB") for _ in range(count)]


def write_video(
    path: Path,
    images: list[Image.Image],
    *,
    codec: str = "libx264",
    rate: int = 10,
    rotation: float | None = None,
    begin: int = 0,
    pause: int = 0,
    **options: Any,
) -> Path:
    """A second of each image; before the second, no frame for `pause` seconds."""
    with av.open(str(path), "w", options={"movflags": "faststart"} if path.suffix == ".mp4" else {}) as container:
        stream = container.add_stream(codec, rate=rate, options={key: str(value) for key, value in options.items()})
        stream.width, stream.height = images[0].size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.time_base = Fraction(1, rate)
        if rotation is not None:
            stream.set_display_rotation(rotation)
        for number in range(len(images) * rate):
            frame = av.VideoFrame.from_image(images[number // rate])
            frame.pts, frame.time_base = begin + number + (pause * rate if number >= rate else 0), Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def plain(colours: tuple[tuple[int, int, int], ...] = COLOURS, size: tuple[int, int] = (64, 48)) -> list[Image.Image]:
    return [Image.new("RGB", size, colour) for colour in colours]
