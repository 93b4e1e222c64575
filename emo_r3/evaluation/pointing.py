"""
Does an evidence map point at what moves a viewer? On the miniature, which knows where its triggers lie.

The pointing game (Zhang et al. 2018): a map hits if the middle of its strongest cell lies in the box of a trigger.
What a map has to beat:

- `random_cell`: a cell drawn at random; its expected value, of the same boxes.
- `random_thing`: the middle of a thing of the image drawn at random, which may be a distractor; its expected value.
- `best_cell`: the one cell that is right most often, chosen on these very scenes: objects stand on the ground.
- `attention`: of the token before the label to the image's, mean over the heads of the last three layers.

Scenes have objects for triggers: surroundings and what covers the image lie everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..inference.pipeline import EmoR3Pipeline
from ..miniature import world
from ..miniature.datasets import voted_scenes
from ..miniature.drawing import SIZE, Box, render_with_boxes
from ..miniature.model import GRID
from ..models.decoding import BOX, box_sequences, encode_after
from ..models.image_tokens import token_boxes
from ..models.occlusion import CellProbabilities, Fill, cell_probabilities, with_texts
from ..models.prefix_cache import LabelTrie, Tokens, render_prompt
from ..results import EmotionResult
from ..utils import chunks
from .miniature import rate

DATASET, SPLIT = "miniature-8", "test"
MAPS = {
    "occlusion": "occlusion (`explain=True`)",
    "without": "its first half: the cell hidden",
    "alone": "its second half: all but the cell hidden",
    "zero": "zeros for hidden features",
    "chain": "at the end of the chain of thought",
    "attention": "attention",
    "attention_chain": "attention at the end of the chain of thought",
    "best_cell": "the best cell, the same in all images",
    "random_thing": "a thing of the image, drawn at random",
    "random_cell": "a cell, drawn at random",
}
"""What is measured, and what to call it."""
_LAYERS = 3


def pointing_scenes(count: int) -> list[world.Scene]:
    """The first scenes of the test split whose triggers are all objects; beyond its 2,000, more are drawn."""
    scenes = (scene for scene, _ in voted_scenes(DATASET, SPLIT))
    kinds = (scene for scene in scenes if all(world.TRIGGERS[name].kind == "object" for name in scene.triggers))
    return list(islice(kinds, count))


def measure_pointing(
    pipe: EmoR3Pipeline, count: int, report: Callable[[str], None], others: int = 0
) -> dict[str, Any]:
    """How often each of `MAPS` hits.

    Args:
        pipe ([`EmoR3Pipeline`]): the miniature.
        count (`int`): scenes; see [`pointing_scenes`].
        report (`Callable[[str], None]`): is told what is done.
        others (`int`, *optional*, defaults to 0): of these scenes, on how many to try also what takes longer: zeros,
            and the end of a chain of thought.

    Returns:
        `dict`: for each of `MAPS` its `hit`, a share with its 95 % interval; for maps also `within`, how much of what
        is above 0 lies in boxes of triggers, and `trigger` and `distractor`, how often each was hit on the scenes that
        hold a distractor.
    """
    scenes = pointing_scenes(count)
    drawn = [render_with_boxes(scene) for scene in scenes]
    maps: dict[str, list[np.ndarray]] = {}
    asker = _Asker(pipe)

    def note(name: str, values: Tensor) -> None:
        maps.setdefault(name, []).append(values.numpy())

    for some in chunks([image for image, _ in drawn], 32):
        tried = some[: max(0, others - len(maps.get("occlusion", ())))]
        for image, result in zip(some, pipe(some, labels=asker.labels, method="direct", batch_size=32), strict=True):
            found = asker.probabilities(image, result)
            note("occlusion", (found.all - found.without + found.alone - found.none) / 2)
            note("without", found.all - found.without)
            note("alone", found.alone - found.none)
            with asker.attention_weights():
                note("attention", asker.attention(image, result))
        for image, result in zip(tried, pipe(tried, labels=asker.labels, method="set", batch_size=32), strict=True):
            ways: list[tuple[str, str, Fill]] = [("zero", "direct", "zero"), ("chain", "set", "mean")]
            for name, method, fill in ways:
                found = asker.probabilities(image, result, method, fill)
                note(name, (found.all - found.without + found.alone - found.none) / 2)
            with asker.attention_weights():
                note("attention_chain", asker.attention(image, result, "set"))
        report(f"{len(maps['occlusion'])} of {count} explained")
    return summary(maps, scenes, [boxes for _, boxes in drawn])


class _Asker:
    """Maps of the label of a result, made in other ways than the pipeline's."""

    def __init__(self, pipe: EmoR3Pipeline) -> None:
        self.pipe, self.model, self.processor = pipe, pipe.model, pipe.processor
        self.labels = world.label_set(DATASET)
        self.sequences = box_sequences(self.processor.tokenizer, BOX, self.labels.labels)
        self.trie = LabelTrie(self.sequences)

    def inputs(self, image: Image.Image, method: str) -> dict[str, Tensor]:
        question = self.pipe.info.prompts.question(method, self.labels)
        prompt = render_prompt(self.processor, question, with_image=True)
        return dict(self.processor(text=[prompt], images=[[image]], return_tensors="pt"))

    def written(self, result: EmotionResult, method: str) -> Tokens:
        """What stands before the box."""
        before = result.text[: result.text.rindex(BOX)] if method == "set" else ""
        return encode_after(self.processor.tokenizer, before) if before else []

    def probabilities(
        self, image: Image.Image, result: EmotionResult, method: str = "direct", fill: Fill = "mean"
    ) -> CellProbabilities:
        inputs = self.inputs(image, method)
        return cell_probabilities(
            self.model,
            inputs,
            token_boxes(self.model, self.processor, inputs, image.size),
            self.sequences[self.labels.labels.index(result.label or "")],
            self.trie,
            context=self.written(result, method),
            fill=fill,
            max_rows=64,
        )

    @contextmanager
    def attention_weights(self) -> Iterator[None]:
        """Only the plain implementation tells its weights."""
        usual = self.model.config._attn_implementation
        self.model.set_attn_implementation("eager")
        try:
            yield
        finally:
            self.model.set_attn_implementation(usual)

    @torch.no_grad()
    def attention(self, image: Image.Image, result: EmotionResult, method: str = "direct") -> Tensor:
        """From the token after which the label comes to those of the image: mean over heads and the last layers."""
        inputs = self.inputs(image, method)
        opening = self.trie.paths[0]  # where the labels part
        rows = with_texts(inputs, [[*self.written(result, method), *opening]])
        layers = self.model(**rows, output_attentions=True, logits_to_keep=1).attentions[-_LAYERS:]
        of_image = rows["input_ids"][0] == self.model.config.image_token_id
        weights = torch.stack([layer[0, :, -1] for layer in layers]).float().mean((0, 1))[of_image]
        return weights.reshape(GRID, GRID)


def summary(
    maps: Mapping[str, Sequence[np.ndarray]], scenes: Sequence[world.Scene], boxes: Sequence[Mapping[str, Box]]
) -> dict[str, Any]:
    """The hits of maps and of what they have to beat: see [`measure_pointing`]."""
    right = np.array([_cells(there, scene.triggers) for scene, there in zip(scenes, boxes, strict=True)])
    wrong = np.array([_cells(there, scene.distractors) for scene, there in zip(scenes, boxes, strict=True)])
    both = np.array([bool(scene.distractors) for scene in scenes])
    found: dict[str, Any] = {}
    for name, some in maps.items():
        rows = np.arange(len(some))
        top = np.array([values.argmax() for values in some])
        above = np.array([values.ravel() for values in some]).clip(1e-9)  # a map of nothing is one of all
        beside = both[rows]
        found[name] = {
            "hit": rate(right[rows, top].sum(), len(rows)),
            "within": rate(((above * right[rows]).sum(1) / above.sum(1)).sum(), len(rows)),
            "trigger": rate(right[rows, top][beside].sum(), beside.sum()),
            "distractor": rate(wrong[rows, top][beside].sum(), beside.sum()),
        }
    count = len(scenes)
    things = [len(scene.triggers) / len(scene.contents) for scene in scenes]
    return found | {
        "best_cell": {"hit": rate(right.sum(0).max(), count)},
        "random_thing": {"hit": rate(sum(things), count)},
        "random_cell": {"hit": rate(right.mean(1).sum(), count)},
    }


def _cells(boxes: Mapping[str, Box], names: Sequence[str]) -> np.ndarray:
    """Which cells' middles lie in one of these things, row by row."""
    middles = (np.arange(GRID) + 0.5) * SIZE / GRID
    inside = np.zeros((GRID, GRID), bool)
    for left, top, right, bottom in (boxes[name] for name in names):
        high, wide = (middles >= top) & (middles < bottom), (middles >= left) & (middles < right)
        inside |= high[:, None] & wide[None, :]
    return inside.ravel()


def table(numbers: Mapping[str, Any]) -> str:
    """The numbers as a table in Markdown: hits with their 95 % intervals, in percent."""

    def cell(found: Mapping[str, Any], name: str) -> str:
        if name not in found:
            return ""
        entry = found[name]
        return f"{100 * entry['value']:.1f} [{100 * entry['low']:.1f}, {100 * entry['high']:.1f}]"

    columns = {
        "hit": "hits a trigger",
        "within": "lies in triggers",
        "trigger": "with a distractor: hits a trigger",
        "distractor": "hits the distractor",
    }
    lines = [f"| | images | {' | '.join(columns.values())} |", f"|---|---|{'---|' * len(columns)}"]
    for name, title in ((name, title) for name, title in MAPS.items() if name in numbers["results"]):
        count = numbers["results"][name]["hit"]["n"]
        lines.append(
            f"| {title} | {count} | {' | '.join(cell(numbers['results'][name], column) for column in columns)} |"
        )
    return "\n".join(lines) + "\n"
