"""Makes what tells the miniature's drawings from other images, and measures how well it does.

.venv/bin/python docs/measure_familiarity.py [PHOTOGRAPH ...]

Writes `emo_r3/miniature/familiarity.safetensors` and `docs/results/familiarity.json`. Photographs are those that
installed packages bring (matplotlib, scikit-learn, gradio) and the files given here, such as scikit-image's.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from emo_r3.miniature import familiarity

RESULTS = Path(__file__).parent / "results/familiarity.json"
FIT, HELD_OUT, TEST = (1200, 101), (400, 102), (200, 103)  # drawings of each domain, and their seed
CROPS, SIDES = 11, (1.0, 0.6, 0.35)
PHOTOGRAPHS = {
    "matplotlib": ["mpl-data/sample_data/grace_hopper.jpg"],
    "sklearn": ["datasets/images/china.jpg", "datasets/images/flower.jpg"],
    "gradio": [f"media_assets/images/{name}" for name in ("cheetah1.jpg", "groot.jpeg", "lion.jpg", "tower.jpg")],
}


def main(more: list[str]) -> None:
    """Fit, save, measure, write."""
    drawn, held_out = (familiarity.features(familiarity.drawings(*some)) for some in (FIT, HELD_OUT))
    save_file(familiarity.fit(drawn, held_out), familiarity.NUMBERS)
    test = share_flagged(familiarity.drawings(*TEST))
    paths = [folder(package) / name for package, names in PHOTOGRAPHS.items() for name in names] + list(
        map(Path, more)
    )
    whole, parts = [], []
    for seed, path in enumerate(paths):
        with Image.open(path) as file:
            image = file.convert("RGB")
        whole.append(image)
        parts += crops(image, np.random.default_rng(seed))
    numbers = {
        "drawings": test,
        "photographs": share_flagged(whole),
        "crops": share_flagged(parts),
        "files": [path.name for path in paths],
        "seed": TEST[1],
    }
    RESULTS.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    print(numbers)


def share_flagged(images: list[Image.Image]) -> dict[str, float]:
    """How many images there are, and the share of them that is taken for none of the miniature's."""
    threshold = familiarity._numbers()["threshold"]
    found = familiarity.distances(familiarity.features(images)) > threshold
    return {"count": len(images), "flagged": round(float(found.mean()), 3)}


def crops(image: Image.Image, rng: np.random.Generator) -> list[Image.Image]:
    """Squares of an image at places and of sides drawn at random."""
    cut = []
    for _ in range(CROPS):
        side = int(min(image.size) * rng.choice(SIDES))
        x, y = rng.integers(image.width - side + 1), rng.integers(image.height - side + 1)
        cut.append(image.crop((x, y, x + side, y + side)))
    return cut


def folder(package: str) -> Path:
    """Where a package is installed."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None, f"{package} is not installed"
    return Path(spec.origin).parent


if __name__ == "__main__":
    main(sys.argv[1:])
