"""Makes `docs/prediction.png`: a sample image beside what the default model says about it.

.venv/bin/python docs/make_pictures.py [SAMPLE]
"""

from __future__ import annotations

import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from emo_r3 import EmoR3Pipeline, EmotionResult
from emo_r3.formats import STEP_TITLES

DOCS = Path(__file__).parent
SCALE = 2  # for sharp text on dense screens
IMAGE, TEXT, MARGIN, LINE = 384, 560, 24, 24
INK, GREY, BAR, PAPER = "#1f2933", "#7b8794", "#e8a33d", "#fffdf8"


def main(sample: Path) -> None:
    """Predict, draw, save."""
    result = EmoR3Pipeline.from_pretrained()(sample, reflect=True)
    with Image.open(sample) as image:
        drawing = image.convert("RGB")
    draw_result(drawing, result).save(DOCS / "prediction.png", optimize=True)


def draw_result(image: Image.Image, result: EmotionResult) -> Image.Image:
    """The image on the left; steps, label, bars and affect on the right."""
    size = (IMAGE + TEXT + 3 * MARGIN, IMAGE + 2 * MARGIN)
    page = Image.new("RGB", (size[0] * SCALE, size[1] * SCALE), PAPER)
    # No smoothing: a drawing of 96 pixels should look like one.
    side = IMAGE * SCALE
    page.paste(image.resize((side, side), Image.Resampling.NEAREST), (MARGIN * SCALE, MARGIN * SCALE))
    draw = ImageDraw.Draw(page)
    body, large = (ImageFont.load_default(points * SCALE) for points in (15, 22))
    x, y = (IMAGE + 2 * MARGIN) * SCALE, MARGIN * SCALE

    for name, text in result.steps.items():
        draw.text((x, y), STEP_TITLES[name], GREY, body)
        for line in wrap(text, body, (TEXT - 100) * SCALE):
            draw.text((x + 100 * SCALE, y), line, INK, body)
            y += LINE * SCALE
    y += LINE // 2 * SCALE
    draw.text((x, y), str(result.label), INK, large)
    y += 2 * LINE * SCALE
    for label, share in sorted(result.probabilities.items(), key=lambda item: -item[1])[:6]:
        draw.text((x, y), label, INK, body)
        bar = (x + 120 * SCALE, y + 3 * SCALE, x + (121 + share * (TEXT - 180)) * SCALE, y + 17 * SCALE)
        draw.rectangle(bar, BAR)
        draw.text((bar[2] + 8 * SCALE, y), f"{share:.2f}", GREY, body)
        y += LINE * SCALE
    draw.text((x, size[1] * SCALE - (MARGIN + 16) * SCALE), summary(result), GREY, body)
    return page


def wrap(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: float) -> list[str]:
    """The text in lines of at most `width` pixels."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        lines = [*lines[:-1], longer] if font.getlength(longer) <= width else [*lines, word]
    return lines


def summary(result: EmotionResult) -> str:
    """The numbers in a line."""
    parts = [f"valence {result.valence:.1f}", f"arousal {result.arousal:.1f}"] if result.valence is not None else []
    if result.consistency is not None:
        parts.append(f"consistency {result.consistency:.2f}")
    if result.coherence is not None:
        parts.append(f"coherence {result.coherence.label} {result.coherence.probability:.2f}")
    return "   ".join(parts)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else DOCS / "samples" / "03-mountains-fireworks.png")
