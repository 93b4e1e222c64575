import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from emo_r3.errors import EmoR3Error
from emo_r3.files import check_drawn
from emo_r3.plotting import (
    COLOURS,
    DPI,
    HEIGHT,
    WIDTH,
    Block,
    Panel,
    Series,
    draw_curves,
    draw_intervals,
    draw_reliability,
)

PANELS = [
    Panel("Rising", [Series("one", [(0, 0.0), (5, float("nan")), (10, 1.0)])]),
    Panel("Two", [Series("a $x$", [(1, 3), (2, 2)]), Series("b", [(1, 1e-5), (2, 4)])]),
    Panel("Nothing", [Series("none", [(1, float("nan"))])]),
]


def places(path: Path, colour: str) -> tuple[np.ndarray, np.ndarray]:
    """Where a PNG file has about a colour: x, and y from the top."""
    rgb = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
    y, x = np.nonzero((np.abs(np.asarray(Image.open(path).convert("RGB")).astype(int) - rgb) < 8).all(-1))
    return x, y


def test_a_line_goes_where_its_points_are(tmp_path: Path) -> None:
    draw_curves(PANELS[:1], tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").size == (WIDTH * DPI, HEIGHT * DPI)
    x, y = places(tmp_path / "curves.png", COLOURS[0])
    assert np.ptp(x) > WIDTH * DPI * 0.8 and np.ptp(y) > HEIGHT * DPI * 0.5
    assert y[x.argmin()] > y[x.argmax()], "it rises"


def test_a_name_has_one_colour_in_all_panels(tmp_path: Path) -> None:
    first = Panel("First", [Series(name, [(0, 0.0), (1, 1.0)]) for name in ("a", "b", "c")])
    second = Panel("Second", [Series(name, [(0, 0.0), (1, 1.0)]) for name in ("c", "new")])
    draw_curves([first, second], tmp_path / "curves.png")
    sides = []
    for colour in COLOURS[:3]:
        x, _ = places(tmp_path / "curves.png", colour)
        sides.append((bool((x < WIDTH * DPI).any()), bool((x > WIDTH * DPI).any())))
    assert sides == [(True, True), (True, False), (True, True)], "c stays the third, and new is the first that is free"


def test_intervals_go_where_their_ends_are(tmp_path: Path) -> None:
    low, high = (10.0, 20.0, 40.0), (40.0, 80.0, 90.0)
    draw_intervals(["low", "high"], [Block("here", [low, high], begins=True)], "accuracy, %", tmp_path / "plot.png")
    ends = []
    for colour in COLOURS[:2]:
        x, y = places(tmp_path / "plot.png", colour)
        x = x[y > DPI * 0.7]  # below the legend
        ends.append((x.min(), x.max()))
    (left, middle), (middle_again, right) = ends
    assert middle == pytest.approx(middle_again, abs=4)
    assert (middle - left) / (right - left) == pytest.approx(3 / 8, abs=0.01)


def test_a_reliability_diagram_goes_where_its_bins_are(tmp_path: Path) -> None:
    bins = [{"count": 3, "confidence": 0.5, "accuracy": 0.25}, {"count": 0, "confidence": None, "accuracy": None}]
    sure = [{"count": 9, "confidence": 0.9, "accuracy": 0.75}]
    draw_reliability({"here": {"before": [*bins, *sure], "after": bins}}, tmp_path / "plot.png")
    x, y = places(tmp_path / "plot.png", COLOURS[0])
    below = y > Image.open(tmp_path / "plot.png").height * 0.2  # the legend is above
    across, down = np.ptp(x[below]), np.ptp(y[below])
    assert down / across == pytest.approx(0.5 / 0.4, rel=0.1)
    with pytest.raises(EmoR3Error, match=r"a figure is a \.png, \.svg or \.pdf file"):
        draw_reliability({}, tmp_path / "plot.gif")


@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_a_diagram_is_written_over_a_link_s_target_and_known_as_ours(kind: str, tmp_path: Path) -> None:
    """A link was replaced, and so was a file that happened to have the temporary name."""
    (tmp_path / "deep").mkdir()
    path = tmp_path / f"plot.{kind}"
    path.symlink_to(f"deep/real.{kind}")
    (tmp_path / f".plot.{kind}").write_text("somebody's")
    panels = {"here": {"all": [{"count": 4, "confidence": 0.7, "accuracy": 0.5}]}}
    for _ in range(2):
        check_drawn(path, "--plot")
        draw_reliability(panels, path)
    assert path.is_symlink() and (tmp_path / f"deep/real.{kind}").stat().st_size > 1000
    assert (tmp_path / f".plot.{kind}").read_text() == "somebody's"


@pytest.mark.slow
def test_the_same_figure_is_the_same_file(tmp_path: Path) -> None:
    """Also in another process, at another time."""
    here, there = ([tmp_path / f"{place}.{kind}" for kind in ("png", "svg", "pdf")] for place in ("here", "there"))
    for path in here:
        draw_curves(PANELS, path)
    program = "from test_plotting import *\nfor path in sys.argv[1:]: draw_curves(PANELS, Path(path))"
    subprocess.run([sys.executable, "-c", program, *there], check=True, cwd=Path(__file__).parent)
    for one, other in zip(here, there, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.suffix
    assert sorted(tmp_path.iterdir()) == sorted([*here, *there])


def test_matplotlib_is_loaded_for_a_figure_only_and_without_pyplot() -> None:
    program = """
import sys, emo_r3, emo_r3.cli.main, emo_r3.cli.compare
assert "matplotlib" not in sys.modules
import emo_r3.plotting
assert "matplotlib" in sys.modules and "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_without_matplotlib_it_says_what_to_install() -> None:
    program = "import sys; sys.modules['matplotlib'] = None; import emo_r3.plotting"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode and "EmoR3Error: figures need matplotlib; install it: pip install matplotlib" in done.stderr
