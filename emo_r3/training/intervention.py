"""Counterfactual visual intervention (DSPO): is an emotion less probable without the region that is named for it?"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ..images.loading import image_digest
from ..models.coordinates import seen_size, to_fractions
from ..models.counterfactual import Candidates, candidate_log_probs, candidate_tokens
from ..models.image_tokens import Box, token_boxes
from ..models.occlusion import Fill
from ..models.reflection import once
from ..parsing import EMOTIONS, ParsedCompletion
from .dspo import Counterfactual
from .judge import JudgeModel
from .rollout import prompt_text

_EDGE = 1e-6
"""By so much, in parts of the image's sides, a region may lie over an edge that it means to end at."""


class Intervention:
    """
    Says of completions how probable the emotions of their lists are, with the image and without the named region.

    The image features of all tokens that the region touches are hidden from the language model. A completion without
    a region in the image, or without a list of emotions, is left out.

    Args:
        asked ([`~emo_r3.training.judge.JudgeModel`]): the policy.
        encode (`Callable[[dict], dict]`): the processor's tensors of a row's prompt.
        unit (`str`): what the numbers of a region are, as [`~emo_r3.models.coordinates.unit_of`] says it.
        region (`str`, *optional*, defaults to `"written"`): what is hidden: the `"written"` region, or one as wide and
            high at a `"random"` place.
        fill (`str`, *optional*, defaults to `"zero"`): what stands in the place of hidden features: `"zero"`, or the
            `"mean"` of the image's.
        batch_size (`int`, *optional*, defaults to 8): completions in one forward.
        seed (`int`, *optional*, defaults to 0): of random places; the same text gets the same one.
    """

    def __init__(
        self,
        asked: JudgeModel,
        encode: Callable[[Mapping[str, Any]], Mapping[str, Tensor]],
        unit: str,
        *,
        region: Literal["written", "random"] = "written",
        fill: Fill = "zero",
        batch_size: int = 8,
        seed: int = 0,
    ) -> None:
        self.asked, self.encode, self.unit = asked, encode, unit
        self.region, self.fill, self.batch_size, self.seed = region, fill, batch_size, seed

    def __call__(
        self, rows: Sequence[Mapping[str, Any]], texts: Sequence[str], parsed: Sequence[ParsedCompletion]
    ) -> list[Counterfactual | None]:
        """Measures completions.

        Args:
            rows (`list[dict]`): the row of each, with its `image` and `prompt`.
            texts (`list[str]`): the completions.
            parsed (`list[ParsedCompletion]`): what they say.

        Returns:
            `list[Counterfactual | None]`: for each; `None` where there is nothing to measure.
        """
        told = [place for place, one in enumerate(parsed) if one.region is not None and one.emotions]
        prompts = [(image_digest(rows[place]["image"]), repr(prompt_text(rows[place]["prompt"]))) for place in told]
        different, of_told = once(prompts)
        found: list[Counterfactual | None] = [None] * len(rows)
        with self.asked.scope():
            # Where processes share weights, all do as many forwards of images, and of texts about each.
            for number in range(self.asked.most(len(different))):
                group = [place for place, prompt in zip(told, of_told, strict=True) if prompt == number]
                row = rows[group[0] if group else 0]
                self._measure(row, group, texts, parsed, found)
        return found

    def _measure(
        self,
        row: Mapping[str, Any],
        group: Sequence[int],
        texts: Sequence[str],
        parsed: Sequence[ParsedCompletion],
        found: list[Counterfactual | None],
    ) -> None:
        """Measures the completions of one prompt about an image, at their places in `found`."""
        model, processor = self.asked.model, self.asked.processor
        inputs = self.encode(row)
        size = row["image"].size
        boxes = token_boxes(model, processor, inputs, size)
        given = seen_size(model, inputs, 0)
        found_regions = {place: self._region(parsed[place], texts[place], given) for place in group}
        regions = {place: region for place, region in found_regions.items() if region is not None}
        places = list(regions)
        # A sure policy often writes the same twice.
        different, of_place = once([(texts[place], parsed[place].emotions) for place in places])
        masks = [touched(boxes, regions[places[of_place.index(at)]]) for at in range(len(different))]
        candidates = []
        for (text, emotions), mask in zip(different, masks, strict=True):
            head = text[: text.index(EMOTIONS) + len(EMOTIONS)]
            candidates.append(Candidates(*candidate_tokens(processor.tokenizer, head, emotions), mask))
        scores = candidate_log_probs(
            model, inputs, candidates, fill=self.fill, max_rows=self.batch_size, most=self.asked.most
        )
        for place, at in zip(places, of_place, strict=True):
            shown, hidden = (tuple(torch.tensor(scores[at][side]).exp().tolist()) for side in (0, 1))
            found[place] = Counterfactual(shown, hidden, area(boxes, masks[at]))

    def _region(self, said: ParsedCompletion, text: str, size: tuple[int, int] | None) -> Box | None:
        """The region to hide, in parts of the image's sides; `None` if what is written is none."""
        assert said.region is not None
        region = to_fractions(said.region, self.unit, size)
        if region is None or self.region == "written":
            return region
        return moved(region, f"{self.seed} {text}")


def moved(region: Box, key: str) -> Box:
    """A region as wide and high as another, at a place that is drawn by a text."""
    draw = random.Random(hashlib.sha256(key.encode()).hexdigest())
    wide, high = region[2] - region[0], region[3] - region[1]
    left, top = draw.random() * (1 - wide), draw.random() * (1 - high)
    return left, top, left + wide, top + high


def touched(boxes: Tensor, region: Box) -> Tensor:
    """
    The tokens whose part of the image a region touches: in a grid, from the cell of its lower edges, rounded down, to
    that of its upper edges, rounded up.

    Args:
        boxes (`Tensor`): of [`~emo_r3.models.image_tokens.token_boxes`].
        region (`tuple[float, float, float, float]`): left, top, right and bottom in the same measure.

    Returns:
        `Tensor`: of shape `(tokens,)`, bool.
    """
    left, top, right, bottom = region
    from_left, from_top, to_right, to_bottom = boxes.unbind(1)
    across = (from_left < right - _EDGE) & (to_right > left + _EDGE)
    return across & (from_top < bottom - _EDGE) & (to_bottom > top + _EDGE)


def area(boxes: Tensor, mask: Tensor) -> float:
    """
    The share of the image that hidden tokens stand for: of the rectangle around them.

    It is what is hidden, and not what is written: a region that is as thin as a line hides whole cells, and one that
    leaves a margin of a pixel hides the whole image.
    """
    hidden = boxes[mask]
    if not len(hidden):
        return 0.0
    left, top = hidden[:, :2].amin(0).tolist()
    right, bottom = hidden[:, 2:].amax(0).tolist()
    return (right - left) * (bottom - top)
