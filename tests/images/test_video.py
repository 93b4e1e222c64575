"""Frames of videos: when they are, that they are upright, and what becomes of files that are damaged or mean harm."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_video import COLOURS, plain, write_video

from emo_r3.errors import EmoR3Error, ImageError
from emo_r3.images import video
from emo_r3.images.video import count_frames, draw_frames


def drawn(path: Path, rate: float = 1.0, max_frames: int | None = None) -> tuple[list[float], list[str], list[str]]:
    """The times of the frames, which of `COLOURS` each has in its middle, and the notes."""
    notes: list[str] = []
    times, colours = [], []
    for frame in draw_frames(path, rate, notes, max_frames):
        image = frame.image()
        image = image if isinstance(image, Image.Image) else Image.open(image).convert("RGB")
        pixel = image.getpixel((image.width // 2, image.height // 2))
        colours.append(min(range(4), key=lambda at: sum(abs(a - b) for a, b in zip(COLOURS[at], pixel, strict=True))))
        times.append(round(frame.time, 3))
    return times, [str(colour) for colour in colours], notes


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.mkv", "mpeg4"), ("a.webm", "libvpx-vp9"), ("a.avi", "mjpeg"), ("a.mov", "libx265")],
)
def test_frames_come_at_their_times(name: str, codec: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / name, plain(), codec=codec)
    assert drawn(path) == ([0, 1, 2, 3], ["0", "1", "2", "3"], [])
    assert count_frames(path, 1) == 4


def test_rates_above_and_below_one(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", plain(), begin=70)  # its clock begins anywhere
    assert drawn(path, 0.5)[:2] == ([0, 2], ["0", "2"])
    assert drawn(path, 4)[0][:6] == [0, 0.3, 0.5, 0.8, 1, 1.3]
    assert len(drawn(path, 100)[0]) == 40, "no frame twice"
    names = [frame.name for frame in draw_frames(path, 1, [])]
    assert names[1] == f"{path}#t=1.000"
    for rate in (0, -1, float("nan"), float("inf"), "hot", None):
        with pytest.raises(EmoR3Error, match="must be above 0"):
            list(draw_frames(path, rate, []))  # type: ignore[arg-type]
    for most in (0, -1, 1.5, "all"):  # less than 1 was no bound at all
        with pytest.raises(EmoR3Error, match=r"max_frames=.* must be a whole number of at least 1"):
            list(draw_frames(path, 1, [], most))  # type: ignore[arg-type]
    assert [frame.time for frame in draw_frames(path, np.float32(0.5), [], np.int64(1))] == [0]


@pytest.mark.parametrize("angle", [0, 90, 180, -90])
def test_what_a_phone_filmed_upright_is_upright(angle: int, tmp_path: Path) -> None:
    half = Image.new("RGB", (64, 48), COLOURS[2])
    half.paste(COLOURS[0], (0, 0, 64, 24))
    path = write_video(tmp_path / "a.mp4", [half], rotation=angle)
    image = next(draw_frames(path, 1, [])).image()
    expected = half.rotate(angle, expand=True)
    assert image.size == expected.size
    place = {0: (32, 5), 90: (5, 32), 180: (32, 43), -90: (43, 32)}[angle]
    assert expected.getpixel(place) == COLOURS[0] and image.getpixel(place)[0] > 150


def test_a_folder_of_frames_is_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    for number, image in enumerate(plain()):
        image.save(tmp_path / f"frame-{number * 4}.png")  # 12 is before 4, as text
    assert drawn(tmp_path, 2) == ([0, 0.5, 1, 1.5], ["0", "1", "2", "3"], [])
    assert count_frames(tmp_path, 2) == 4


def test_an_end_by_number_and_by_length(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", plain())
    assert drawn(path, 1, max_frames=2) == ([0, 1], ["0", "1"], [])
    monkeypatch.setattr(video, "MAX_FRAMES", 2)
    assert drawn(path)[2] == ["only its first 2 frames, up to 2 s: take a lower rate"]
    monkeypatch.setattr(video, "MAX_FRAMES", 100)
    monkeypatch.setattr(video, "MAX_SECONDS", 1.5)
    assert drawn(path) == ([0, 1], ["0", "1"], ["only its first 0 hours"])


def test_frames_that_are_too_large_are_not_decoded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", plain())
    monkeypatch.setattr(video, "MAX_FRAME_PIXELS", 64 * 48 - 1)
    with pytest.raises(ImageError, match=r"a\.mp4: frames of more than 3,071 pixels, not decoded"):
        drawn(path)
    with pytest.raises(ImageError, match="not decoded"):
        count_frames(path, 1)


@pytest.mark.parametrize("codec", ["mpeg4", "libx264"])
def test_damage_in_the_middle_leaves_out_what_it_hit_and_is_told(codec: str, tmp_path: Path) -> None:
    whole = write_video(tmp_path / "a.mkv", plain() * 2, codec=codec, g=5)
    data = bytearray(whole.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 300] = b"\x5a" * 300
    (tmp_path / "b.mkv").write_bytes(data)
    times, _, notes = drawn(tmp_path / "b.mkv")
    assert times[:2] == [0, 1] and times[-1] == 7 and times == sorted(times)
    # Where the container leaps over it, nothing tells that it was there but the hole.
    assert len(notes) == 1 and re.fullmatch(r"damaged .*: left out|no frames from .* or is damaged", notes[0])


@pytest.mark.parametrize(("pause", "told"), [(1, False), (4, True)])
def test_a_hole_is_told(pause: int, told: bool, tmp_path: Path) -> None:
    times, _, notes = drawn(write_video(tmp_path / "a.mkv", plain(), pause=pause))
    assert times[:2] == [0, pause + 1]
    assert notes == ["no frames from 0.9 s to 5.0 s: it stands still there or is damaged"] * told


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_file_that_was_cut_short_gives_what_is_there(name: str, tmp_path: Path) -> None:
    whole = write_video(tmp_path / name, plain() * 3, codec="mpeg4")
    data = whole.read_bytes()
    whole.write_bytes(data[: len(data) // 2])
    times, _, notes = drawn(whole)
    assert 3 <= len(times) < 9 and times == list(range(len(times)))
    assert any("ends at" in note and "though it says to have 12.0 s: damaged or cut short" in note for note in notes)


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "libx264"), ("a.mkv", "mpeg4")])
def test_whatever_is_in_a_file_it_is_read_or_refused(name: str, codec: str, tmp_path: Path) -> None:
    whole = write_video(tmp_path / name, plain(), codec=codec).read_bytes()
    rng = random.Random(0)
    refused = 0
    for changes in [1, 5, 40] * 10:
        data = bytearray(whole)
        for _ in range(changes):
            data[rng.randrange(len(data))] = rng.randrange(256)
        (tmp_path / name).write_bytes(data)
        try:
            count_frames(tmp_path / name, 2)
            assert len(drawn(tmp_path / name, 2)[0]) <= 8
        except ImageError as error:
            assert "\n" not in str(error)
            refused += 1
    assert 0 < refused < 30


PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{}\n#EXT-X-ENDLIST\n"
CONCAT = "ffconcat version 1.0\nfile '{}'\n"


@pytest.mark.parametrize("text", [PLAYLIST, CONCAT])
def test_a_file_that_names_others_is_not_followed(text: str, tmp_path: Path) -> None:
    """A playlist in a file called .mp4 would have FFmpeg open any file or address that it names."""
    other = write_video(tmp_path / "secret.mp4", plain())
    (tmp_path / "clip.mp4").write_text(text.format(other))
    with pytest.raises(ImageError, match="not a video that is read"):
        drawn(tmp_path / "clip.mp4")


def test_what_is_no_video_is_one_line(tmp_path: Path) -> None:
    import av

    with av.open(str(tmp_path / "sound.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame(format="s16", layout="mono", samples=800)
        frame.rate = 8000
        container.mux(stream.encode(frame))
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "empty.mp4").touch()
    Image.new("RGB", (32, 32)).save(tmp_path / "photo.jpg")
    for name in ("text.mp4", "empty.mp4", "photo.jpg", "sound.mkv", "missing.mp4", "http://127.0.0.1:1/a.mp4"):
        path = name if "://" in name else str(tmp_path / name)
        with pytest.raises(ImageError) as caught:
            list(draw_frames(path, 1, []))
        assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)
    (tmp_path / "none").mkdir()
    with pytest.raises(ImageError, match="no image in this folder"):
        list(draw_frames(tmp_path / "none", 1, []))


def test_without_pyav_it_says_what_to_install(tmp_path: Path) -> None:
    code = "import sys; sys.modules['av'] = None; from emo_r3.cli.main import main; raise SystemExit(main())"
    command = [sys.executable, "-c", code, "timeline", "clip.mp4", "--output", "out"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    says = "emo-r3: clip.mp4: a video is read with PyAV; install it: pip install 'emo-r3[photos]'\n"
    assert (done.returncode, done.stderr) == (2, says)
    assert not (tmp_path / "out").exists()
