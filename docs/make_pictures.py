"""Makes the images of the README, the pages and the demo.

.venv/bin/python docs/make_pictures.py prediction [SAMPLE]    docs/prediction.png: a sample beside its answer
.venv/bin/python docs/make_pictures.py demo                   docs/demo-phone.png, docs/demo-dark.png, with Chromium
.venv/bin/python docs/make_pictures.py terminal               docs/terminal.gif: two commands and what they print
.venv/bin/python docs/make_pictures.py preview                icon.png and preview.png of emo_r3/demo/
"""

from __future__ import annotations

import contextlib
import io
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from emo_r3 import EmoR3Pipeline, EmotionResult
from emo_r3.cli.main import main
from emo_r3.demo.head import DESCRIPTION, ICON, PREVIEW
from emo_r3.formats import STEP_TITLES

DOCS = Path(__file__).parent
SCALE = 2  # for sharp text on dense screens
IMAGE, TEXT, MARGIN, LINE = 384, 560, 24, 24
INK, GREY, BAR, PAPER = "#1f2933", "#7b8794", "#e8a33d", "#fffdf8"
UNPLEASANT, PLEASANT = "#b54708", "#1d5fd1"  # as in emo_r3/demo/demo.css


def prediction(sample: Path) -> None:
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


def demo() -> None:
    """The demo as it opens, on a phone and on a dark desktop."""
    from playwright.sync_api import sync_playwright

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "emo_r3", "demo", "--port", str(port)])
    looks = {
        "phone": {"viewport": {"width": 390, "height": 844}, "device_scale_factor": 1.5},
        "dark": {"viewport": {"width": 1200, "height": 900}, "color_scheme": "dark"},
    }
    try:
        names = ("chromium-headless-shell", "chromium", "google-chrome")
        chromium = next(filter(None, map(shutil.which, names)), None)
        with sync_playwright() as started:
            browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            for name, look in looks.items():
                page = browser.new_page(**look)
                for _ in range(120):
                    try:
                        page.goto(f"http://127.0.0.1:{port}/")
                        break
                    except Exception:  # not yet
                        time.sleep(0.5)
                page.wait_for_selector("#charts .plane", timeout=60_000)
                page.wait_for_timeout(500)
                target = DOCS / f"demo-{name}.png"
                page.screenshot(path=target, full_page=True)
                with Image.open(target) as shot:
                    shot.convert("RGB").quantize(256, kmeans=3).save(target, optimize=True)
            browser.close()
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def terminal() -> None:
    """A terminal in which commands are typed, with what they really print."""
    commands = (
        "emo-r3 predict docs/samples/03-mountains-fireworks.png",
        "emo-r3 predict docs/samples/00-snake-wolf.png --reflect",
    )
    frames: list[tuple[list[str], int]] = []  # lines and milliseconds
    for command in commands:
        with contextlib.chdir(DOCS.parent), contextlib.redirect_stdout(io.StringIO()) as printed:
            main(command.split()[1:])
        frames += [([f"$ {command[:end]}"], 60) for end in range(0, len(command), 3)]
        lines = [f"$ {command}"]
        frames.append((lines, 700))
        for line in printed.getvalue().splitlines():
            lines = [*lines, line]
            frames.append((lines, 70))
        frames.append((lines, 5000))
    height, width = max(len(lines) for lines, _ in frames), max(len(line) for lines, _ in frames for line in lines)
    font = ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSansMono.ttf", 15)
    step = font.getlength("m")
    size = (round(step * width) + 2 * MARGIN, 20 * height + 2 * MARGIN)
    shots = []
    for lines, _ in frames:
        shot = Image.new("RGB", size, INK)
        draw = ImageDraw.Draw(shot)
        for number, line in enumerate(lines):
            # Character by character, since the bars' glyphs are not as wide as the letters.
            for place, letter in enumerate(line):
                ink = BAR if letter >= "\u2580" or line[0] == "$" else PAPER
                draw.text((MARGIN + place * step, MARGIN + 20 * number), letter, ink, font)
        shots.append(shot.quantize(16, dither=Image.Dither.NONE))
    times = [milliseconds for _, milliseconds in frames]
    shots[0].save(DOCS / "terminal.gif", save_all=True, append_images=shots[1:], duration=times, loop=0, optimize=True)


def preview() -> None:
    """What a browser's tab and the preview of a link show."""
    face((64, 64)).save(ICON, optimize=True)
    card = Image.new("RGB", (1200, 630), PAPER)
    samples = sorted((DOCS / "samples").glob("*.png"))[:4]
    for number, sample in enumerate(samples):
        with Image.open(sample) as image:
            tile = image.convert("RGB").resize((256, 256), Image.Resampling.NEAREST)
        card.paste(tile, (60 + number * 275, 314))
    draw = ImageDraw.Draw(card)
    icon = face((110, 110))
    card.paste(icon, (60, 60), icon)
    draw.text((200, 52), "EMO-R3", INK, ImageFont.load_default(96))
    words = ImageFont.load_default(34)
    for number, line in enumerate(wrap(DESCRIPTION, words, 1080)):
        draw.text((60, 196 + number * 46), line, INK, words)
    card.quantize(128).save(PREVIEW, optimize=True)


def face(size: tuple[int, int]) -> Image.Image:
    """The icon: a face, half pleased, half not, in the demo's colours of valence."""
    side = 512
    drawn = Image.new("RGBA", (side, side))
    draw = ImageDraw.Draw(drawn)
    draw.pieslice((8, 8, side - 8, side - 8), 90, 270, UNPLEASANT)
    draw.pieslice((8, 8, side - 8, side - 8), 270, 90, PLEASANT)
    for x in (170, 342):
        draw.ellipse((x - 34, 150, x + 34, 218), "white")
    draw.arc((126, 322, 386, 560), 205, 272, "white", 34)
    draw.arc((126, 140, 386, 356), 25, 92, "white", 34)
    return drawn.resize(size, Image.Resampling.LANCZOS)


if __name__ == "__main__":
    what, *given = sys.argv[1:] or ["prediction"]
    if what == "prediction":
        prediction(Path(given[0]) if given else DOCS / "samples" / "03-mountains-fireworks.png")
    else:
        {"demo": demo, "preview": preview, "terminal": terminal}[what]()
