from dataclasses import replace

import numpy as np
import pytest

from emo_r3.miniature import world
from emo_r3.miniature.drawing import SIZE, WHOLE, render, render_with_boxes
from emo_r3.miniature.sprites import SPRITES


def scene(**facts: object) -> world.Scene:
    plain = world.Scene(("cat",), (), "plain", "bright", "neutral", "flat", 5)
    return replace(plain, **facts)  # type: ignore[arg-type]


def pixels(drawn: world.Scene) -> np.ndarray:
    return np.asarray(render(drawn), float)


@pytest.mark.parametrize("style", world.STYLES)
@pytest.mark.parametrize("name", [*world.TRIGGERS, *world.DISTRACTORS])
def test_each_thing_shows(name: str, style: str) -> None:
    place = None if name in world.TRIGGERS and world.TRIGGERS[name].kind == "scene" else "plain"
    drawn = scene(triggers=(name,), style=style, place=place)
    image, boxes = render_with_boxes(drawn)
    without = np.asarray(render_with_boxes(drawn, masked=frozenset([name]))[0], float)
    changed = (np.abs(np.asarray(image, float) - without).max(2) > 12).mean()
    assert image.mode == "RGB" and image.size == (SIZE, SIZE)
    assert changed > 0.01
    assert (boxes[name] == WHOLE) == (name not in SPRITES)


def test_the_same_scene_gives_the_same_pixels() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        drawn = world.sample_scene("pretraining", rng)
        assert (pixels(drawn) == pixels(drawn)).all()
        assert (pixels(drawn) != pixels(replace(drawn, seed=drawn.seed + 1))).any()


def test_masking_a_thing_changes_nothing_outside_its_box() -> None:
    drawn = scene(triggers=("cat", "grave"), distractors=("tree",))
    image, boxes = render_with_boxes(drawn)
    masked = render_with_boxes(drawn, masked=frozenset(["grave"]))[0]
    changed = np.abs(np.asarray(image, int) - np.asarray(masked, int)).max(2) > 0
    rows, columns = changed.nonzero()
    left, top, right, bottom = boxes["grave"]
    assert changed.any()
    assert columns.min() >= left - 4 and columns.max() <= right + 4
    assert rows.min() >= top - 4 and rows.max() <= bottom + 4


@pytest.mark.parametrize("name", sorted(SPRITES))
def test_sprites_stay_near_their_box(name: str) -> None:
    drawn = scene(triggers=(name,), place="plain")
    image, boxes = render_with_boxes(drawn)
    masked = render_with_boxes(drawn, masked=frozenset([name]))[0]
    rows, columns = (np.abs(np.asarray(image, int) - np.asarray(masked, int)).max(2) > 12).nonzero()
    left, top, right, bottom = boxes[name]
    slack = 0.3 * (right - left)
    assert columns.min() >= left - slack and columns.max() <= right + slack
    assert rows.min() >= top - slack and rows.max() <= bottom + slack


def test_style_tone_and_palette_show() -> None:
    sketch = pixels(scene(style="sketch"))
    assert np.ptp(sketch, axis=2).mean() < np.ptp(pixels(scene()), axis=2).mean()
    assert pixels(scene(tone="dark")).mean() < pixels(scene(tone="bright")).mean()
    warm, cool = pixels(scene(palette="warm")), pixels(scene(palette="cool"))
    assert (warm[..., 0] - warm[..., 2]).mean() > 20 + (cool[..., 0] - cool[..., 2]).mean()
