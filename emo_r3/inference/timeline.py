"""The emotion of a video over time: frames drawn at a rate, a result for each."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..images.video import Frame, draw_frames
from ..results import EmotionResult

if TYPE_CHECKING:
    from .pipeline import EmoR3Pipeline


@dataclass(frozen=True)
class Moment:
    """A frame of a video and what was found in it.

    Args:
        time (`float`): in seconds from the first frame.
        result (`EmotionResult`): of the frame; its `image` names video and time.
    """

    time: float
    result: EmotionResult

    def to_dict(self) -> dict[str, Any]:
        """The result as plain values, and `time`."""
        return {**self.result.to_dict(), "time": round(self.time, 3)}


@dataclass(frozen=True)
class Timeline:
    """What was found in a video.

    Args:
        moments (`tuple[Moment, ...]`): in order.
        notes (`tuple[str, ...]`): what of the video was not read, in words.
    """

    moments: tuple[Moment, ...]
    notes: tuple[str, ...] = ()

    def plot(self, path: str | os.PathLike[str]) -> None:
        """Draws valence and arousal over time into a PNG, SVG or PDF file; needs matplotlib."""
        plot_timeline([moment.to_dict() for moment in self.moments], Path(path))


def read_timeline(
    pipe: EmoR3Pipeline,
    source: str | os.PathLike[str],
    *,
    rate: float = 1.0,
    max_frames: int | None = None,
    **options: Any,
) -> Timeline:
    """
    Reads the emotion of a video, frame by frame. Each frame is asked about on its own, and nobody in it is identified.

    Args:
        pipe (`EmoR3Pipeline`): the pipeline.
        source (`str` or `os.PathLike`): a video file (needs PyAV), or a folder of frames, whose names are their order.
        rate (`float`, *optional*, defaults to 1.0): frames a second.
        max_frames (`int`, *optional*): where to end; after 3,600 unless given, and then `notes` says so.
        options: of the pipeline's call, such as `labels` or `batch_size`.

    Returns:
        [`Timeline`]: a moment for each frame.

    Raises:
        EmoR3Error: an option can't be used.
        ImageError: the video can't be read.

    Example:

    ```python
    >>> timeline = read_timeline(pipe, "clip.mp4", rate=2)
    >>> [(moment.time, moment.result.label) for moment in timeline.moments]
    ```
    """
    notes: list[str] = []
    frames = draw_frames(source, rate, notes, max_frames)
    moments = tuple(read_moments(frames, lambda images: pipe(images, **options)))
    return Timeline(moments, tuple(notes))


def read_moments(
    frames: Iterable[Frame], read: Callable[[Iterable[Any]], Iterator[EmotionResult]]
) -> Iterator[Moment]:
    """What `read` finds in frames, each with its time; a few frames are read ahead, never all."""
    taken: deque[tuple[float, str]] = deque()

    def images() -> Iterator[Any]:
        for frame in frames:
            taken.append((frame.time, frame.name))
            yield frame.image()

    for result in read(images()):
        time, name = taken.popleft()
        yield Moment(time, replace(result, image=name))


def plot_timeline(rows: Iterable[dict[str, Any]], path: Path) -> None:
    """Draws valence and arousal of a timeline's rows over time; a frame without them is a gap."""
    from ..plotting import draw_timeline

    rows = list(rows)
    valence, arousal = ([row.get(name) for row in rows] for name in ("valence", "arousal"))
    draw_timeline([row["time"] for row in rows], valence, arousal, path)
