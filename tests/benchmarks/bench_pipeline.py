"""Images per second of the pipeline, against transformers' own pipeline and against bare `generate`, in one run.

    python tests/benchmarks/bench_pipeline.py [--images 64] [--batch-size 1 8 32] [--rounds 3] [--threads 1]

All get the same model, images, prompt and budget of new tokens; smaller batches get fewer images. The contenders take
turns, and each counts with its fastest round, so that another program on the machine disturbs all alike. On the
miniature where its checkpoint is there, else on a random model of its architecture, which always writes up to the
budget.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import pipeline
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).parents[1]))

from emo_r3 import EmoR3Pipeline
from emo_r3.miniature.drawing import render
from emo_r3.miniature.world import sample_scene
from emo_r3.models.checkpoint import CHECKPOINT
from emo_r3.models.prefix_cache import render_prompt


def random_model(folder: Path) -> Path:
    """The miniature's architecture with random weights and the tests' tokenizer."""
    from tiny_models import save_random_miniature

    save_random_miniature(folder)
    return folder


def make_images(count: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [render(sample_scene("miniature-8", rng)) for _ in range(count)]


CANDIDATES = 8


def contenders(pipe: EmoR3Pipeline, images: list[Image.Image], size: int, tokens: int) -> dict[str, Callable[[], Any]]:
    """What is timed, by name: each reads all the images once."""
    model, processor = pipe.model, pipe.processor
    question = pipe.info.prompts.question(pipe.info.method, pipe.info.label_set)
    theirs = pipeline("image-text-to-text", model=model, processor=processor)
    turns = [
        [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]
        for image in images
    ]
    prompt = render_prompt(processor, question, with_image=True)
    ready = [
        processor(
            text=[prompt] * len(images[start : start + size]),
            images=[[image] for image in images[start : start + size]],
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        for start in range(0, len(images), size)
    ]
    greedy = {"max_new_tokens": tokens, "do_sample": False, "repetition_penalty": 1.0}

    def generate() -> None:
        for inputs in ready:
            model.generate(**inputs.to(model.device), **greedy)

    return {
        "emo_r3": lambda: pipe(images, max_new_tokens=tokens, batch_size=size),
        "bare generate on ready tensors": generate,
        "transformers' pipeline": lambda: theirs(text=turns, batch_size=size, generate_kwargs=dict(greedy)),
        "emo_r3, decoding=free": lambda: pipe(images, max_new_tokens=tokens, batch_size=size, decoding="free"),
        "emo_r3, reflect": lambda: pipe(images, max_new_tokens=tokens, batch_size=size, reflect=True),
    }


def calls(pipe: EmoR3Pipeline, images: list[Image.Image], tokens: int) -> dict[str, Callable[[], Any]]:
    """Calls with one image each."""
    return {
        "reflect": lambda: [pipe(image, max_new_tokens=tokens, reflect=True) for image in images],
        f"num_candidates={CANDIDATES}": lambda: [
            pipe(image, max_new_tokens=tokens, num_candidates=CANDIDATES) for image in images
        ],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        path = CHECKPOINT if CHECKPOINT.exists() else random_model(Path(folder) / "random")
        pipe = EmoR3Pipeline.from_pretrained(path)
    images = make_images(args.images)
    counts = {size: min(args.images, max(size, 8)) for size in args.batch_size}
    runs = {size: contenders(pipe, images[: counts[size]], size, args.tokens) for size in args.batch_size}
    runs[0], counts[0] = calls(pipe, images[:4], args.tokens), min(args.images, 4)
    best = {size: dict.fromkeys(some, float("inf")) for size, some in runs.items()}
    with torch.inference_mode():
        for _ in range(args.rounds):
            for size, some in runs.items():
                for name, run in some.items():
                    start = time.perf_counter()
                    run()
                    best[size][name] = min(best[size][name], time.perf_counter() - start)
    what = "the miniature" if path == CHECKPOINT else "a random model of the miniature's architecture"
    print(f"{what}, up to {args.tokens} new tokens, {pipe.model.device}, {torch.get_num_threads()} thread(s)")
    for size, found in best.items():
        title = f"batch size {size}" if size else "calls with one image"
        print(f"{title}, {counts[size]} images:")
        first = next(iter(found.values()))
        own = next(iter(found))
        for name, seconds in found.items():
            print(f"  {name:<34} {counts[size] / seconds:8.1f} images/s {seconds / first:6.2f} x the time of {own}")


if __name__ == "__main__":
    main()
