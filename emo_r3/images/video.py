"""Frames of a video, drawn at a rate and within bounds, from a file that nobody vouches for; or a folder of frames."""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

from PIL import Image

from ..errors import EmoR3Error, ImageError
from .loading import find_images, source_name

if TYPE_CHECKING:
    import av
    from av.container import InputContainer

MAX_FRAMES = 3600
"""Frames that are drawn unless another number is given: an hour at one a second."""

MAX_SECONDS = 6 * 3600.0
MAX_FRAME_PIXELS = 8192 * 4608
_MAX_DAMAGED = 1000  # packets
_HOLE = 2.0  # seconds; more where frames are rare
# What FFmpeg may open and decode. Others of its formats name further files (playlists), and its decoders are many.
_FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,ogg,flv,asf"
_CODECS = (
    *("h264", "hevc", "vp8", "vp9", "av1", "libdav1d", "mpeg4", "msmpeg4", "mpeg2video", "mpeg1video", "h263"),
    *("mjpeg", "theora", "prores", "dvvideo", "wmv3", "vc1"),
)


@dataclass(frozen=True)
class Frame:
    """A moment of a video.

    Args:
        time (`float`): in seconds from the first frame.
        name (`str`): what to call it: `clip.mp4#t=12.000`, or its path.
        image (`Callable`): gives the picture, or the path of its file, as the pipeline takes it.
    """

    time: float
    name: str
    image: Callable[[], Any]


def draw_frames(
    source: str | os.PathLike[str], rate: float, notes: list[str], max_frames: int | None = None
) -> Iterator[Frame]:
    """
    Draws frames of a video at a rate, in order.

    A damaged place is left out, and a file that was cut short gives what is there; `notes` then says so.

    Args:
        source (`str` or `os.PathLike`): a video file, or a folder of frames, whose names are their order.
        rate (`float`): frames a second; of a folder, how many of its images make a second.
        notes (`list[str]`): gets a line on each thing that was not read.
        max_frames (`int`, *optional*): where to end; after 3,600 unless given, and a note says so.

    Raises:
        EmoR3Error: the rate is none, or the number of frames.
        ImageError: there is no video, it can't be read at all, or PyAV is not installed.
    """
    rate = _checked(rate)
    _check_most(max_frames)
    frames = _of_folder(source, rate) if os.path.isdir(source) else _of_file(os.fspath(source), rate, notes)
    with closing(frames):  # which then tells of the damage that it met
        for count, frame in enumerate(frames):
            if count == (MAX_FRAMES if max_frames is None else max_frames):
                if max_frames is None:
                    notes.append(f"only its first {count:,} frames, up to {frame.time:.0f} s: take a lower rate")
                return
            yield frame


def count_frames(source: str | os.PathLike[str], rate: float) -> int:
    """How many frames there may be, going by the header of a video: at least 1.

    Raises:
        EmoR3Error, ImageError: as [`draw_frames`].
    """
    rate = _checked(rate)
    if os.path.isdir(source):
        return len(find_images(source))
    name = source_name(source)
    with _opened(os.fspath(source), name) as container:
        return max(1, math.ceil(min(_seconds(container, _stream(container, name)) or 0.0, MAX_SECONDS) * rate))


def _check_most(max_frames: Any) -> None:
    if max_frames is not None and not (isinstance(max_frames, Integral) and int(max_frames) >= 1):
        raise EmoR3Error(f"max_frames={max_frames!r} must be a whole number of at least 1")


def _checked(rate: Any) -> float:
    """The rate as a `float`, be it Python's or numpy's."""
    if not isinstance(rate, Real) or not 0 < float(rate) <= 1000:
        raise EmoR3Error(f"rate={rate!r} must be above 0 and at most 1000 frames a second")
    return float(rate)


def _of_folder(folder: str | os.PathLike[str], rate: float) -> Generator[Frame, None, None]:
    def order(path: str) -> list[tuple[bool, int, str]]:  # frame-2 comes before frame-10
        return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.split(r"([0-9]+)", path)]

    for number, path in enumerate(sorted(find_images(folder), key=order)):
        yield Frame(number / rate, path, partial(str, path))


def _of_file(path: str, rate: float, notes: list[str]) -> Generator[Frame, None, None]:
    name = source_name(path)
    with _opened(path, name) as container:
        stream = _stream(container, name)
        damage: list[float] = []
        holes: list[tuple[float, float]] = []
        try:
            yield from _at_rate(container, stream, rate, name, notes, damage, holes)
        finally:
            if damage:
                first = f"{damage[0]:.1f} s"
                places = f"at {first}" if len(damage) == 1 else f"in {len(damage)} places, the first at {first}"
                notes.append(f"damaged {places}: left out")
            # Damage that a container leaps over is no error, and shows as a hole alone.
            if alone := [hole for hole in holes if hole[0] not in damage]:
                begin, end = alone[0]
                more = "" if len(alone) == 1 else f", and {len(alone) - 1} more such holes"
                notes.append(f"no frames from {begin:.1f} s to {end:.1f} s{more}: it stands still there or is damaged")


def _at_rate(
    container: InputContainer,
    stream: av.VideoStream,
    rate: float,
    name: str,
    notes: list[str],
    damage: list[float],
    holes: list[tuple[float, float]],
) -> Iterator[Frame]:
    next_time, last = 0.0, None
    wide = max(_HOLE, 20 / float(stream.average_rate or 1))
    for time, frame in _decoded(container, stream, damage):
        if last is not None and time - last > wide:
            holes.append((last, time))
        last = time
        if time > MAX_SECONDS:
            notes.append(f"only its first {MAX_SECONDS / 3600:.0f} hours")
            return
        if time >= next_time - 1e-6:
            yield Frame(time, f"{name}#t={time:.3f}", partial(_picture, frame))
            next_time = (math.floor(time * rate + 1e-6) + 1) / rate
    if last is None:
        raise ImageError(f"{name}: no frame of it can be decoded; copy or download it again")
    said = _seconds(container, stream)
    if said is not None and last < said - max(2.0, 0.05 * said):
        notes.append(f"ends at {last:.1f} s, though it says to have {said:.1f} s: damaged or cut short")


@contextmanager
def _opened(path: str, name: str) -> Iterator[InputContainer]:
    try:
        import av
    except ImportError as error:
        raise ImageError(f"{name}: a video is read with PyAV; install it: pip install 'emo-r3[photos]'") from error
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise ImageError(f"{name}: not a file; give a video file or a folder of frames")
        file = open(path, "rb")  # noqa: SIM115
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ImageError(f"{name}: can't be read ({reason}); check the path and its permissions") from error
    with file:
        options = {"format_whitelist": _FORMATS, "protocol_whitelist": "", "codec_whitelist": ",".join(_CODECS)}
        try:
            # A file, not a path: FFmpeg would take that for an address, too.
            container = av.open(file, "r", options=options, metadata_errors="replace")
        except (av.FFmpegError, OSError, ValueError) as error:  # of the second kind where FFmpeg seeks too far
            raise ImageError(
                f"{name}: not a video that is read, or damaged at its beginning; MP4, MOV, MKV, WebM and AVI are read"
            ) from error
        with container:
            yield container


def _stream(container: InputContainer, name: str) -> av.VideoStream:
    import av

    stream = container.streams.best("video")
    if not isinstance(stream, av.VideoStream) or not getattr(stream, "width", 0):  # none where no decoder is known
        raise ImageError(f"{name}: no video in it; give a video file or a folder of frames")
    if stream.codec_context.name not in _CODECS:
        raise ImageError(f"{name}: a video of a rare kind ({stream.codec_context.name}); save it as MP4 (H.264)")
    if stream.width * stream.height > MAX_FRAME_PIXELS:
        raise ImageError(f"{name}: frames of more than {MAX_FRAME_PIXELS:,} pixels, not decoded; reduce the video")
    stream.codec_context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}  # a frame may be larger than the header says
    stream.codec_context.thread_type = "AUTO"
    return stream


def _seconds(container: InputContainer, stream: av.VideoStream) -> float | None:
    """What the file says of its length."""
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return None if container.duration is None else container.duration / 1e6


def _decoded(
    container: InputContainer, stream: av.VideoStream, damage: list[float]
) -> Iterator[tuple[float, av.VideoFrame]]:
    """The frames that can be decoded and their times, which never go back; `damage` gets the times of the others."""
    import av

    begin: float | None = None
    last = 0.0
    packets = container.demux(stream)
    while len(damage) < _MAX_DAMAGED:
        try:
            packet = next(packets, None)  # after an error of the container itself there is none
            if packet is None:
                return
            frames = packet.decode()
        except (av.FFmpegError, OSError):
            damage.append(last)
            continue
        for frame in frames:
            if frame.is_corrupt:
                damage.append(last)
                continue
            if frame.pts is None or frame.time_base is None:  # it has no time
                continue
            begin = frame.time if begin is None else begin
            if (time := frame.time - begin) >= last:
                last = time
                yield time, frame


def _picture(frame: av.VideoFrame) -> Image.Image:
    """The frame as a person sees it: phones film as they are held, and write down how to turn it."""
    image = frame.to_image()
    quarter = round(frame.rotation / 90) % 4
    turns = (Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
    return image.transpose(turns[quarter - 1]) if quarter else image
