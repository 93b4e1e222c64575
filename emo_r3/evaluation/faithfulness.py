r"""Does an answer depend on what it says and shows? Each item is asked again, with its text or its image changed.

An answer's *label* is the most probable one at its box, or at a box put at its end, so that every answer has one. An
item *flips* under a change if its label becomes another. The changes:

- `step1_removed`: the answer is made to begin at `<step2>`, and the model writes the rest: step 2, step 3, the box.
- `step1_swapped`: it is made to begin with its partner's step 1, up to `<step2>`; the model writes the rest. Its own
  step 2 is not kept, as it could carry what step 1 said past the change.
- `image_shuffled`: the reverse: the partner's image, and the answer is made to begin with its own step 1. (Asked
  again about that image, the model could only repeat the partner's answer.)
- `image_grey`: a grey image of the same size; the model answers again.
- `triggers_removed`: where the scene is known (the miniature), it is drawn without its triggers, all else in place.
- `trigger_masked`: a grey rectangle over one of the triggers that stand somewhere, drawn at random.
- `control_masked`: a grey rectangle of the same area at a place, drawn at random, where no such trigger is. What flips
  here flips because a grey rectangle is strange; only flips beyond that are due to the trigger.

An item's *partner* is another item of the data set, drawn at random among those whose answer has another label: an
answer that goes by what was swapped takes the partner's label. What follows a given beginning is decoded freely and
greedily; an image is asked about again as the answers were made.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer

from ..errors import CheckpointError, EmoR3Error
from ..images.fitting import GREY, fit_image
from ..images.loading import load_image
from ..inference.engine import Batch, Rows
from ..inference.pipeline import EmoR3Pipeline
from ..labels import LabelSet
from ..metrics.accuracy import mcnemar, wilson
from ..miniature.datasets import read_scenes
from ..miniature.drawing import WHOLE, Box, render_with_boxes
from ..miniature.world import Scene
from ..models.checkpoint import check_size, load_weights, loading
from ..models.checkpoint_files import checkpoint_folder
from ..models.decoding import special_texts
from ..models.prefix_cache import Tokens
from ..models.reflection import LabelReader, distinct_images, quotable, reflected_texts
from ..parsing import parse_completion
from ..utils import chunks
from .examples import SEED, Items, Row

CONTINUED = ("step1_removed", "step1_swapped", "image_shuffled")
ASKED_AGAIN = ("image_grey", "triggers_removed", "trigger_masked", "control_masked")
PARTNERED = ("step1_swapped", "image_shuffled")
NEXT = "<step2>"


class Judge(LabelReader):
    """A text model that reads a label out of a text, as independent of the model that wrote it as you choose."""

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        revision: str | None = None,
        device_map: Any = None,
    ) -> Judge:
        """Loads a text model that chats, by the same rules as any model: safetensors, and no code of its own.

        Args:
            pretrained_model_name_or_path (`str` or `Path`): folder or repository.
            revision (`str`, *optional*): branch, tag or commit of a repository.
            device_map (*optional*): as transformers takes it; the accelerator if there is one unless given.

        Raises:
            [`CheckpointError`]: it can't be loaded, not safely, or has no chat template.
        """
        folder = checkpoint_folder(pretrained_model_name_or_path, revision, None)
        if device_map is None and torch.accelerator.is_available():
            device_map = "auto"
        dtype: Any = torch.float32 if device_map in (None, "cpu") else "auto"
        with loading(f"the judge {os.fspath(pretrained_model_name_or_path)}"):
            check_size(AutoModelForCausalLM, folder)
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            model = load_weights(AutoModelForCausalLM, folder, dtype=dtype, device_map=device_map)
        if not tokenizer.chat_template or tokenizer.eos_token_id is None:
            raise CheckpointError(
                f"the judge {pretrained_model_name_or_path} has no chat template or end token: name an "
                "instruction-tuned text model"
            )

        def render(question: str) -> Tokens:
            turn = [{"role": "user", "content": question}]
            text = tokenizer.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
            return tokenizer.encode(text, add_special_tokens=False)

        return cls(model.eval(), tokenizer, render, tokenizer.eos_token_id)


@dataclass
class Probe:
    """Asks about answered items again.

    Args:
        pipe ([`EmoR3Pipeline`]): the model that answered.
        items ([`Items`]): the data set.
        rows (`list[dict]`): its answers to all items, in order.
        options (`dict`): `method`, `decoding` and `max_new_tokens` of the answers.
        judge ([`Judge`], *optional*): an independent reader of the answers' text.
    """

    pipe: EmoR3Pipeline
    items: Items
    rows: Sequence[Row]
    options: Mapping[str, Any]
    judge: Judge | None = None
    partners: list[int | None] = field(init=False)
    scenes: list[Scene] | None = field(init=False)

    def __post_init__(self) -> None:
        self.scenes = read_scenes(self.items.rows)
        self.partners = draw_partners([label_of(row["distribution"]) for row in self.rows])

    def __call__(self, batches: Sequence[int], batch_size: int) -> Iterator[tuple[int, list[Row]]]:
        """Asks about some batches, numbered as in [`~emo_r3.evaluation.examples.predict_items`].

        Returns:
            `Iterator[tuple[int, list[dict]]]`: number of each batch, and for each of its items

            - `dataset`, `id` and `label`, which is `None` where there was no answer;
            - `read_by_itself` and, with a judge, `read_by_judge`: the label that steps 1 and 2 (or a plain thought)
              suggest to it without the image; `None` where there is no such text;
            - `partner` and `partner_label`;
            - `after`: the label under each change; changes that the item doesn't allow are missing.
        """
        every = list(chunks(range(len(self.rows)), batch_size))
        for number in sorted(batches):
            yield number, self._batch(every[number])

    def _batch(self, places: Sequence[int]) -> list[Row]:
        records: dict[int, Row] = {}
        for place in places:
            row, partner = self.rows[place], self.partners[place]
            records[place] = {
                "dataset": row["dataset"],
                "id": row["id"],
                "label": label_of(row["distribution"]),
                "partner": None if partner is None else self.rows[partner]["id"],
                "partner_label": None if partner is None else label_of(self.rows[partner]["distribution"]),
                "after": {},
            }
        asked = [place for place in places if records[place]["label"]]
        self._read_texts(asked, records)
        for change, place, label in [*self._go_on(asked), *self._ask_again(asked)]:
            records[place]["after"][change] = label
        return [records[place] for place in places]

    def _steps(self, place: int) -> dict[str, str]:
        method = self.options["method"]
        return dict(parse_completion(self.rows[place]["text"], self.items.labels, method).steps)

    def _read_texts(self, places: Sequence[int], records: Mapping[int, Row]) -> None:
        labels, reflector = self.items.labels.labels, self.pipe.reflector
        texts = {place: reflected_texts(self._steps(place))[1] for place in places}
        there = {place: text for place, text in texts.items() if text}
        choices = [labels] * len(there)
        questions = reflector.coherence_questions(list(there.values()), choices)
        readers = {"read_by_itself": reflector.reader} | ({"read_by_judge": self.judge} if self.judge else {})
        for name, reader in readers.items():
            found = dict(zip(there, (reading.label for reading in reader(questions, choices)), strict=True))
            for place, record in records.items():
                record[name] = found.get(place)

    def _go_on(self, places: Sequence[int]) -> Iterator[tuple[str, int, str | None]]:
        if self.options["method"] != "set":
            return
        special = special_texts(self.pipe.processor.tokenizer)

        def first_step(place: int | None) -> str | None:
            text = None if place is None else self._steps(place).get("step1")
            return f"<step1>{quotable(text, special)}</step1>\n{NEXT}" if text else None

        begun: list[tuple[str, int, int, str]] = []  # change, item, item whose image is shown, beginning
        for place in places:
            partner = self.partners[place]
            own, other = first_step(place), first_step(partner)
            if own:
                begun.append(("step1_removed", place, place, NEXT))
            if own and other and partner is not None:
                begun.append(("step1_swapped", place, place, other))
                begun.append(("image_shuffled", place, partner, own))
        begun.sort(key=lambda one: one[2])  # one image beside itself
        found = []
        for rows in chunks(begun, max(1, len(places))):
            images = {shown: self._image(shown) for _, _, shown, _ in rows}
            every, beginnings = [images[shown] for _, _, shown, _ in rows], [text for _, _, _, text in rows]
            after = go_on(self.pipe, every, beginnings, self.items.labels, self.options["max_new_tokens"])
            found += [
                (change, place, label_of(spread)) for (change, place, _, _), spread in zip(rows, after, strict=True)
            ]
        yield from sorted(found, key=lambda one: CONTINUED.index(one[0]))

    def _ask_again(self, places: Sequence[int]) -> Iterator[tuple[str, int, str | None]]:
        changed: dict[str, dict[int, Image.Image]] = {change: {} for change in ASKED_AGAIN}
        for place in places:
            original = self._image(place)
            changed["image_grey"][place] = Image.new("RGB", original.size, GREY)
            if self.scenes:
                rng = np.random.default_rng([SEED, place])
                for change, image in mask_scene(self.scenes[place], original, rng).items():
                    changed[change][place] = image
        for change, images in changed.items():
            results = self.pipe(list(images.values()), labels=self.items.labels, **self.options)
            for place, result in zip(images, results, strict=True):
                yield change, place, label_of(result.probabilities)

    def _image(self, place: int) -> Image.Image:
        return load_image(self.items.rows[place]["image"]).image


def label_of(distribution: Mapping[str, float]) -> str | None:
    """The most probable label; `None` of an empty distribution."""
    return max(distribution, key=lambda label: distribution[label]) if distribution else None


def draw_partners(labels: Sequence[str | None]) -> list[int | None]:
    """For each item the place of another one with another label, drawn at random; `None` where there is none."""
    partners: list[int | None] = []
    by_label = {label: [place for place, other in enumerate(labels) if other not in (label, None)] for label in labels}
    for place, label in enumerate(labels):
        others = by_label[label] if label else []
        drawn = np.random.default_rng([SEED, place, 1]).integers(len(others)) if others else None
        partners.append(None if drawn is None else others[drawn])
    return partners


def go_on(
    pipe: EmoR3Pipeline,
    images: Sequence[Image.Image],
    beginnings: Sequence[str],
    labels: LabelSet,
    max_new_tokens: int,
) -> list[dict[str, float]]:
    """Label distributions of answers in three steps that begin as given; the model writes the rest, greedily."""
    if not images:
        return []
    request = pipe._request(
        labels=labels, method="set", decoding="free", max_new_tokens=max_new_tokens, batch_size=len(images)
    )
    different, of_row = distinct_images(images)
    fitted = [fit_image(load_image(image), pipe.info.square) for image in different]
    slots: list[Any] = [fitted[number] for number in of_row]
    prompts = [request.prompt + beginning for beginning in beginnings]
    inputs = pipe._engine.encode(prompts, [slot.image for slot in slots])
    every = list(range(len(slots)))
    results = pipe._engine.predict(Batch(slots, [Rows(slots, inputs, [0] * len(slots), every)], every), request)
    return [result.probabilities for result in results]


def mask_scene(scene: Scene, image: Image.Image, rng: np.random.Generator) -> dict[str, Image.Image]:
    """The images of `triggers_removed`, `trigger_masked` and `control_masked`.

    The last two are missing where no trigger stands somewhere, or where no free rectangle is as large as it.

    Args:
        scene ([`Scene`]): what there is.
        image (`Image`): its image.
        rng (`np.random.Generator`): for the trigger and the free place.
    """
    boxes = {name: box for name, box in render_with_boxes(scene)[1].items() if name in scene.triggers and box != WHOLE}
    removed, _ = render_with_boxes(scene, frozenset(scene.triggers))
    changed = {"triggers_removed": removed}
    if not boxes:
        return changed
    taken = np.zeros((image.height, image.width), bool)
    for box in boxes.values():
        left, top, right, bottom = _whole(box, image)
        taken[top:bottom, left:right] = True
    trigger = _whole(boxes[list(boxes)[rng.integers(len(boxes))]], image)
    control = free_rectangle(taken, (trigger[2] - trigger[0], trigger[3] - trigger[1]), rng)
    if control is None:
        return changed
    for change, rectangle in (("trigger_masked", trigger), ("control_masked", control)):
        changed[change] = image.copy()
        changed[change].paste(GREY, rectangle)
    return changed


def _whole(box: Box, image: Image.Image) -> tuple[int, int, int, int]:
    left, top, right, bottom = box
    return (
        max(0, int(left)),
        max(0, int(top)),
        min(image.width, int(np.ceil(right))),
        min(image.height, int(np.ceil(bottom))),
    )


def free_rectangle(
    taken: np.ndarray[Any, Any], size: tuple[int, int], rng: np.random.Generator
) -> tuple[int, int, int, int] | None:
    """A rectangle (left, top, right, bottom) of about the area of `size` on no pixel that is taken, drawn at random.

    Its sides are at least half the shorter one of `size`, so that it hides things as well; its area is off by at most
    half of its longer side. `None` if there is no place for one.
    """
    height, width = taken.shape
    least = max(1, min(size) // 2)
    # Sums over all pixels above and to the left: a rectangle's own sum is a difference of four.
    sums = np.pad(taken.astype(int).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    found = []
    for high in range(least, height + 1):
        wide = round(size[0] * size[1] / high)
        if least <= wide <= width and high <= height:
            inside = sums[high:, wide:] - sums[:-high, wide:] - sums[high:, :-wide] + sums[:-high, :-wide]
            found += [(left, top, left + wide, top + high) for top, left in np.argwhere(inside == 0).tolist()]
    return found[rng.integers(len(found))] if found else None


def summarize(records: Sequence[Row]) -> dict[str, Any]:
    """
    What the records of a data set come to; shares have a 95 % interval (Wilson) and the `count` of items they are of.

    Args:
        records (`list[dict]`): of [`Probe`].

    Returns:
        `dict`:

        - `read_by_itself`, `read_by_judge`: share of the texts out of which the answer's own label is read
          (explanation-prediction consistency);
        - `flips`: by change, the share of items whose label becomes another;
        - `followed`: for `step1_swapped` and `image_shuffled`, the share whose label becomes their partner's;
        - `masked_against_control`: McNemar's test of `trigger_masked` flips against `control_masked` ones.

        What no item allows is missing.
    """

    def share(hits: Sequence[bool]) -> dict[str, Any]:
        return wilson(sum(hits), len(hits)) | {"count": len(hits)}

    found: dict[str, Any] = {}
    for name in ("read_by_itself", "read_by_judge"):
        if hits := [record[name] == record["label"] for record in records if record.get(name)]:
            found[name] = share(hits)
    flips: dict[str, Any] = {}
    followed: dict[str, Any] = {}
    for change in (*CONTINUED, *ASKED_AGAIN):
        allowed = [record for record in records if change in record["after"]]
        if allowed:
            flips[change] = share([record["after"][change] != record["label"] for record in allowed])
        if allowed and change in PARTNERED:
            followed[change] = share([record["after"][change] == record["partner_label"] for record in allowed])
    found |= {name: part for name, part in (("flips", flips), ("followed", followed)) if part}
    masked = [record for record in records if "control_masked" in record["after"]]
    if masked:
        both = [
            [record["after"][change] != record["label"] for record in masked]
            for change in ("trigger_masked", "control_masked")
        ]
        found["masked_against_control"] = mcnemar(*both)
    return found


def check_probed(engine: Any, method: str) -> EmoR3Pipeline:
    """The engine, if it can be asked so; raises `EmoR3Error` for one that is no local model."""
    if not isinstance(engine, EmoR3Pipeline):
        raise EmoR3Error(f"faithfulness needs a model on this machine, asked by set, think or direct, not {method}")
    return engine
