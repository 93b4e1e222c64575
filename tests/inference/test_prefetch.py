"""Images in any shape made fit, and work done ahead without changing its order."""

from __future__ import annotations

import threading
import time

import pytest
from PIL import Image

from emo_r3.images.fitting import GREY, fit_image
from emo_r3.images.loading import LoadedImage
from emo_r3.inference.prefetch import prefetch
from emo_r3.utils import chunks


@pytest.mark.parametrize(
    ("size", "square", "expected", "notes"),
    [
        ((60, 40), False, (60, 40), ()),
        ((60, 40), True, (60, 60), ("padded from 60x40 to 60x60",)),
        ((20_000, 10), False, (20_000, 400), ("padded from 20000x10 to 20000x400",)),
        ((3, 700), False, (28, 1400), ("padded from 3x700 to 14x700", "enlarged from 14x700 to 28x1400")),
        ((1, 1), False, (28, 28), ("enlarged from 1x1 to 28x28",)),
        ((20_000, 40), True, (2048, 2048), ("reduced from 20000x40 to 2048x4", "padded from 2048x4 to 2048x2048")),
        (
            (4000, 2000),
            True,
            (2048, 2048),
            ("reduced from 4000x2000 to 2048x1024", "padded from 2048x1024 to 2048x2048"),
        ),
        ((1, 3), True, (30, 30), ("padded from 1x3 to 3x3", "enlarged from 3x3 to 30x30")),
    ],
)
def test_fit_image(size: tuple[int, int], square: bool, expected: tuple[int, int], notes: tuple[str, ...]) -> None:
    fitted = fit_image(LoadedImage(Image.new("RGB", size, "red"), "x", ("first",)), square)
    assert (fitted.image.size, fitted.name, fitted.notes) == (expected, "x", ("first", *notes))
    middle = fitted.image.getpixel((expected[0] // 2, expected[1] // 2))
    assert middle == (255, 0, 0)
    assert (fitted.image.getpixel((0, 0)) == GREY) == any(note.startswith("padded") for note in notes)


def test_an_image_of_many_pixels_is_reduced() -> None:
    """A photograph of 48 megapixels, to about one; what has fewer stays as it is."""
    photograph = LoadedImage(Image.new("RGB", (8000, 6000)), "x", ())
    fitted = fit_image(photograph, max_pixels=2**20)
    assert fitted.image.size == (1182, 886) and fitted.notes == ("reduced from 8000x6000 to 1182x886",)
    assert fit_image(photograph, True, 2**20).image.size == (1182, 1182)
    small = LoadedImage(Image.new("RGB", (1024, 1024)), "x", ())
    assert fit_image(small, max_pixels=2**20) == small


def test_chunks() -> None:
    assert list(chunks(range(5), 2)) == [[0, 1], [2, 3], [4]]
    assert list(chunks([], 2)) == []


def test_prefetch_keeps_the_order_and_works_in_one_other_thread() -> None:
    threads = set()

    def slow(number: int) -> int:
        threads.add(threading.get_ident())
        time.sleep(0.01 * (3 - number))
        return number * 10

    assert list(prefetch(slow, range(4))) == [0, 10, 20, 30]
    assert len(threads) == 1 and threading.get_ident() not in threads


def test_prefetch_passes_an_error_on_in_its_place() -> None:
    def fail_at_two(number: int) -> int:
        if number == 2:
            raise ValueError("two")
        return number

    made = prefetch(fail_at_two, range(5))
    assert [next(made), next(made)] == [0, 1]
    with pytest.raises(ValueError, match="two"):
        next(made)
