"""What the miniature is taught with: drawn scenes, and questions about them with their answers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD

from ..forms import FORMS
from ..prompts import CLUES, FOCUS, POLARITY, Prompts
from . import world
from .drawing import SIZE, Box, coarse, render_with_boxes
from .model import GRID, IMAGE, MERGE, PATCH, TURN, TURN_END, VISION_END, VISION_START

TOKENS = GRID * GRID
# What the tagging loss and the word read-out know: everything that a text can name, with the words that tell it.
CONCEPTS: dict[str, tuple[str, ...]] = (
    {name: trigger.words for name, trigger in world.TRIGGERS.items()}
    | {name: (name,) for name in world.DISTRACTORS}
    | {name: (word,) for name, word in world.PLACE_WORDS.items()}
    | {tone: (tone,) for tone in world.TONES}
)
CONCEPT_NAMES = tuple(CONCEPTS)


class ImagePool:
    """A pool of scenes that is slowly replaced. Each is drawn when it is first asked for, and used a few times.

    Args:
        size: number of scenes kept.
        rng: source of the scenes.
    """

    def __init__(self, size: int, rng: np.random.Generator) -> None:
        self.rng, self.next, self.drawn = rng, 0, 0
        self.scenes = [world.sample_scene("pretraining", rng) for _ in range(size)]
        self._pixels = torch.zeros(size, SIZE, SIZE, 3, dtype=torch.uint8)
        self._tags = torch.zeros(size, TOKENS, len(CONCEPTS), dtype=torch.bool)
        self._boxes: list[dict[str, Box] | None] = [None] * size

    def refresh(self, count: int) -> None:
        """Replaces the oldest scenes."""
        for _ in range(count):
            self.scenes[self.next] = world.sample_scene("pretraining", self.rng)
            self._boxes[self.next] = None
            self.next = (self.next + 1) % len(self.scenes)

    def sample(self, count: int) -> list[int]:
        """Places of scenes, each at most once."""
        return self.rng.choice(len(self.scenes), count, replace=False).tolist()

    def pixels(self, places: Sequence[int]) -> Tensor:
        """Images: uint8, shape (places, SIZE, SIZE, 3)."""
        for place in places:
            self.boxes(place)
        return self._pixels[places]

    def tags(self, places: Sequence[int]) -> Tensor:
        """Which concepts lie under which image token: bool, shape (places, TOKENS, len(CONCEPTS))."""
        for place in places:
            self.boxes(place)
        return self._tags[places]

    def boxes(self, place: int) -> dict[str, Box]:
        """Where each trigger is in an image."""
        found = self._boxes[place]
        if found is None:
            scene = self.scenes[place]
            image, found = render_with_boxes(scene)
            self._pixels[place] = torch.from_numpy(np.array(image))
            self._tags[place] = torch.from_numpy(tag_cells(scene, found))
            self._boxes[place] = found
            self.drawn += 1
        return found


def tag_cells(scene: world.Scene, boxes: dict[str, Box]) -> np.ndarray:
    """Which concepts lie under which image token: bool, shape (16, len(CONCEPTS))."""
    cells = np.zeros((GRID, GRID, len(CONCEPTS)), bool)
    cell = SIZE / GRID
    edges = np.arange(GRID) * cell
    for name, (left, top, right, bottom) in boxes.items():
        wide = np.clip(np.minimum(right, edges + cell) - np.maximum(left, edges), 0, None)
        high = np.clip(np.minimum(bottom, edges + cell) - np.maximum(top, edges), 0, None)
        enough = min(0.25 * cell * cell, 0.2 * (right - left) * (bottom - top))
        cells[:, :, CONCEPT_NAMES.index(name)] = high[:, None] * wide[None, :] > enough
    for everywhere in (scene.place, scene.tone):
        if everywhere is not None:
            cells[:, :, CONCEPT_NAMES.index(everywhere)] = True
    return cells.reshape(TOKENS, -1)


def to_patches(pixels: Tensor) -> Tensor:
    """What the image processor makes of (n, 96, 96, 3) bytes, for a whole batch at once: (n * 64, 864)."""
    values = ((pixels.float() / 255 - torch.tensor(OPENAI_CLIP_MEAN)) / torch.tensor(OPENAI_CLIP_STD)).permute(
        0, 3, 1, 2
    )
    n, side = len(values), SIZE // PATCH
    values = values.reshape(n, 3, GRID, MERGE, PATCH, GRID, MERGE, PATCH).permute(0, 2, 5, 3, 6, 1, 4, 7)
    return values.unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, 2, -1, -1).reshape(n * side * side, -1)


def word_id(tokenizer: PreTrainedTokenizerFast, word: str) -> int:
    """The one token of a word inside a sentence."""
    ids = tokenizer.encode(" " + word, add_special_tokens=False)
    if len(ids) != 1:
        raise ValueError(f"'{word}' is {len(ids)} tokens: the tokenizer's corpus has it too seldom")
    return int(ids[0])


class Questions:
    """Turns scenes into batches of questions and answers, in the very words that the pipeline asks.

    Args:
        tokenizer: the miniature's.
        prompts: the questions.
        images: the pool of scenes.
        rng: source of every choice.
        in_order: whether feelings are listed in one order, or as they are drawn.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        prompts: Prompts,
        images: ImagePool,
        rng: np.random.Generator,
        in_order: bool = False,
    ) -> None:
        self.in_order = in_order
        self.tokenizer, self.prompts, self.images, self.rng = tokenizer, prompts, images, rng
        self.encode = lru_cache(50_000)(lambda text: tuple(tokenizer.encode(text, add_special_tokens=False)))
        self.concept = torch.full((len(tokenizer),), -1)
        for index, name in enumerate(CONCEPT_NAMES):
            for word in CONCEPTS[name]:
                self.concept[word_id(tokenizer, word)] = index

    def batch(self, task: str, count: int) -> dict[str, Any]:
        """A batch of one task: `see`, `set`, `think`, `direct`, `grounded`, `polarity`, `consistency` or
        `coherence`."""
        chosen = self.images.sample(count)
        batch: dict[str, Any] = {"task": task}
        if task != "coherence":
            batch |= {"pixel_values": to_patches(self.images.pixels(chosen)), "tags": self.images.tags(chosen)}
        if task == "see":
            return batch
        pairs: list[Any]
        if task == "grounded":
            pairs = [self.grounded(self.images.scenes[index], self.images.boxes(index)) for index in chosen]
        else:
            pairs = [getattr(self, task)(self.images.scenes[index]) for index in chosen]
        image = "" if task == "coherence" else VISION_START + IMAGE * TOKENS + VISION_END
        rows = []
        for question, reply in pairs:
            asked = self.encode(f"{TURN}user\n{image}{question}{TURN_END}\n{TURN}assistant\n")
            rows.append((asked, self.encode(reply + TURN_END)))
        length = max(len(asked) + len(reply) for asked, reply in rows)
        ids = torch.full((count, length), self.tokenizer.pad_token_id)
        targets = torch.full((count, length), -100)
        for row, (asked, reply) in enumerate(rows):
            ids[row, : len(asked) + len(reply)] = torch.tensor(asked + reply)
            targets[row, len(asked) : len(asked) + len(reply)] = torch.tensor(reply)
        batch |= {"input_ids": ids, "targets": targets, "position_ids": positions(ids, bool(image), self.tokenizer)}
        if task == "consistency":
            concept = self.concept[ids]
            present = batch["tags"].any(1).gather(1, concept.clamp(min=0))
            batch["truth"] = torch.where(concept >= 0, present.long(), -1)
        return batch

    def _labelled(self, scene: world.Scene) -> tuple[tuple[str, ...], str]:
        labels = world.sample_label_list(self.rng)
        return labels, world.sample_label(scene, "pretraining", labels, self.rng)

    def set(self, scene: world.Scene) -> tuple[str, str]:
        labels, label = self._labelled(scene)
        return self.prompts.question("set", labels), world.answer(scene, label, self.rng)

    def grounded(self, scene: world.Scene, boxes: dict[str, Box]) -> tuple[str, str]:
        labels, label = self._labelled(scene)
        region = coarse(boxes[world.main_trigger(scene, label)])
        text = world.grounded_answer(scene, label, self.rng, region, self._feelings(scene))
        return self.prompts.question("grounded", labels), text

    def _feelings(self, scene: world.Scene) -> list[str]:
        words = world.feelings(scene, self.rng, FORMS["grounded"].emotions)
        return world.in_order(words) if self.in_order else words

    def polarity(self, scene: world.Scene) -> tuple[str, str]:
        """Positive or negative by two options, as the baselines without training ask."""
        preface = ("", f"{FOCUS}. ", f"{CLUES}\n")[self.rng.integers(3)]
        sign = world.sample_label(scene, "pretraining", ("positive", "negative"), self.rng)
        return preface + POLARITY, "A" if sign == "positive" else "B"

    def think(self, scene: world.Scene) -> tuple[str, str]:
        labels, label = self._labelled(scene)
        thought = f"{world.describe(scene, self.rng)} {world.react(scene, label, self.rng)}"
        return self.prompts.question("think", labels), f"<think>{thought}</think>\n\\boxed{{{label}}}"

    def direct(self, scene: world.Scene) -> tuple[str, str]:
        labels, label = self._labelled(scene)
        return self.prompts.question("direct", labels), f"\\boxed{{{label}}}"

    def consistency(self, scene: world.Scene) -> tuple[str, str]:
        """Half the texts are true, some of them incomplete. The others swap a trigger, tell of another scene, or list
        things of which about half are there, which gives the word-wise loss its examples."""
        contents = list(scene.contents)
        if self.rng.random() < 0.5:
            if len(contents) > 1 and self.rng.random() < 0.25:
                contents.pop(self.rng.integers(len(contents)))
            return self.prompts.consistency_question(world.describe(scene, self.rng, contents)), "Yes"
        kind = self.rng.random()
        other = self.images.scenes[self.rng.integers(len(self.images.scenes))]
        if kind < 0.25 and not set(other.triggers) <= set(scene.triggers):
            text = world.describe(other, self.rng)
        elif kind < 0.5:
            text = world.describe(scene, self.rng, world.mix_up(scene, self.rng))
        else:
            text = world.describe(scene, self.rng, world.swap_one(scene, self.rng))
        return self.prompts.consistency_question(text), "No"

    def coherence(self, scene: world.Scene) -> tuple[str, str]:
        labels, label = self._labelled(scene)
        text = f"{world.describe(scene, self.rng)} {world.react(scene, label, self.rng)}"
        return self.prompts.coherence_question(text, labels), label


def positions(ids: Tensor, image: bool, tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """M-RoPE positions of right-padded rows that all hold their image at the same place: (3, rows, length)."""
    rows, length = ids.shape
    if not image:
        return torch.arange(length).expand(3, rows, length)
    start = ids[0].tolist().index(tokenizer.convert_tokens_to_ids(IMAGE))
    down, across = torch.arange(GRID).repeat_interleave(GRID), torch.arange(GRID).repeat(GRID)
    grid = torch.stack([torch.zeros(TOKENS, dtype=torch.long), down, across]) + start
    after = torch.arange(length - start - TOKENS) + start + GRID
    parts = [torch.arange(start).expand(3, -1), grid, after.expand(3, -1)]
    return torch.cat(parts, 1)[:, None].expand(3, rows, length)
