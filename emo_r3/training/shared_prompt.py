"""Log-probabilities of a group's completions from one forward of their prompt, where TRL computes it for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate.logging import get_logger
from torch import Tensor
from trl import GRPOTrainer
from trl.trainer.utils import split_pixel_values_by_grid, split_tensor_dict, unsplit_pixel_values_by_grid

from ..errors import TrainingError
from ..models.group_attention import (
    PackedRows,
    attention_window,
    pack,
    prompt_positions,
    use_group_attention,
    why_not,
)
from ..models.vision_once import IMAGES, vision_once, why_not_once
from ..utils import chunks
from .config import EmoR3Config

logger = get_logger(__name__)

PER_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids")
"""What has a column for each token of a prompt and its completion."""

BOUNDS = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.01}
"""How far log-probabilities of tokens may be from the plain forward's, on average, by the type that is computed in.

Measured on the miniature: 1e-7 in float32; 4e-4 in bfloat16, a quarter of what bfloat16 itself is from float32; 1.1
where a model counts positions in another way.
"""


class SharedPrompt(GRPOTrainer):
    """
    TRL's GRPO trainer, which computes what a group shares once: the image, the question, and what the model makes of
    them, in the policy's forward and backward and in the log-probabilities of the old policy and of the reference.

    Groups stay whole in a microbatch, where TRL scatters their completions. A group that is larger than a microbatch
    is shared in parts.

    A model that can't share prompts still computes an image once; see [`vision_once`].
    """

    args: EmoR3Config
    model: Any  # the Trainer's own annotations allow for more than is ever there
    processing_class: Any
    num_generations: int
    _buffered_inputs: Any

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._shares = False
        self._why_not_once: str | None = "share_prompt is off"
        """Why images of whole rows aren't computed once; `None` if they are."""
        self._compared = False
        self._window: int | None = None
        if self.args.share_prompt == "off":
            return
        models = [self.model, self.ref_model] if self.ref_model is not None else [self.model]
        plain = [base_model(self.accelerator.unwrap_model(model)) for model in models]
        self._why_not_once = next((why for model in plain if (why := why_not_once(model))), None)
        reason = next((why for model in plain if (why := why_not(model.config))), None)
        if reason is None and self.aux_loss_enabled:
            reason = "its experts' loss is over whole rows"
        if reason is not None:
            self._say_whole_rows(reason)
            return
        for model in plain:
            use_group_attention(model)
        self._shares = True
        self._window = min([window for model in plain if (window := attention_window(model.config))], default=None)
        logger.info("share_prompt: a group computes its prompt once")

    def _say_whole_rows(self, reason: str) -> None:
        if self._why_not_once is None:
            way = f"vision once: an image is computed once and its prompt for each completion, as {reason}"
        else:
            way = f"each completion computes its image and prompt again, as {reason}, and {self._why_not_once}"
        logger.warning(f"share_prompt: {way}")

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        """As TRL's, but for the order: whole groups are shuffled, so that those of a prompt stay together."""
        if not self.model.training:
            return super()._prepare_inputs(generation_batch)
        size: int = self.args.steps_per_generation or 1
        if self._step % (size * self.num_iterations) == 0 or self._buffered_inputs is None:
            batch = split_pixel_values_by_grid(self._generate_and_score_completions(generation_batch))
            count = len(batch["completion_ids"])
            order = whole_groups(count, self.num_generations, self.accelerator.process_index * count)
            parts: list[Any] = split_tensor_dict(rows_of(batch, order), size)
            self._buffered_inputs = [unsplit_pixel_values_by_grid(part) for part in parts]
        return self._buffered_inputs[self._step % size]

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        pixel_values: Tensor | None = None,
        image_grid_thw: Tensor | None = None,
        num_images: list[int] | None = None,
        pixel_attention_mask: Tensor | None = None,
        spatial_shapes: Tensor | None = None,
        num_tiles: list[int] | None = None,
        image_sizes: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        mm_token_type_ids: Tensor | None = None,
        image_position_ids: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        images = {
            "pixel_values": pixel_values,
            "image_grid_thw": image_grid_thw,
            "num_images": num_images,
            "pixel_attention_mask": pixel_attention_mask,
            "spatial_shapes": spatial_shapes,
            "num_tiles": num_tiles,
            "image_sizes": image_sizes,
            "token_type_ids": token_type_ids,
            "mm_token_type_ids": mm_token_type_ids,
            "image_position_ids": image_position_ids,
        }
        if self._shares and (reason := self._why_whole_rows(input_ids, images)):
            self._say_whole_rows(reason)
            self._shares = self._compared = False
        if not self._shares and (self._why_not_once is not None or pixel_values is None):
            return super()._get_per_token_logps_and_entropies(
                model,
                input_ids,
                attention_mask,
                logits_to_keep,
                batch_size,
                compute_entropy,
                compute_aux_loss,
                **images,
            )
        if not self._compared:
            self._compared = True
            self._compare(model, input_ids, attention_mask, logits_to_keep, images)
        forward = self._packed_forward if self._shares else self._whole_forward
        batch = by_row(input_ids, attention_mask, images)
        parts = [
            forward(model, rows_of(batch, part), logits_to_keep, compute_entropy, compute_aux_loss)
            for part in chunks(range(len(input_ids)), batch_size or len(input_ids))
        ]
        log_probs, entropies, losses = zip(*parts, strict=True)
        return (
            torch.cat(log_probs),
            torch.cat(entropies) if compute_entropy else None,
            torch.stack(losses).mean() if compute_aux_loss else None,
        )

    def _why_whole_rows(self, ids: Tensor, images: Mapping[str, Any]) -> str | None:
        """Why these rows can't be packed; `None` if they can. The same on all processes."""
        others = [
            name for name in ("spatial_shapes", "token_type_ids", "image_position_ids") if images[name] is not None
        ]
        if others:
            return f"it takes {others[0]}"
        if self._window is None:
            return None
        longest = int(self.accelerator.gather(torch.tensor([ids.shape[1]], device=ids.device)).max())
        if longest <= self._window:
            return None
        return f"rows of {longest} tokens are longer than the attention's window of {self._window}"

    def _whole_forward(
        self, model: Any, batch: dict[str, Any], width: int, entropy: bool = False, aux_loss: bool = False
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """As TRL's on whole rows, but an image goes through the vision tower once."""
        images = {name: batch[name] for name in IMAGES if name in batch}
        first, of_row = distinct_rows(images, len(batch["input_ids"]))
        distinct = unsplit_pixel_values_by_grid(rows_of(images, first))
        few = unsplit_pixel_values_by_grid(batch)
        ids, mask = few.pop("input_ids"), few.pop("attention_mask")
        with vision_once(self.accelerator.unwrap_model(model), ids[first], distinct, of_row):
            return super()._get_per_token_logps_and_entropies(model, ids, mask, width, None, entropy, aux_loss, **few)

    def _packed_forward(
        self, model: Any, batch: dict[str, Any], width: int, entropy: bool = False, aux_loss: bool = False
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Log-probabilities and, if asked for, entropies of completions, of shape `(rows, width)`."""
        plain = self.accelerator.unwrap_model(model)
        packed, images = packed_rows(plain, batch, width, self._tokenizer.pad_token_id)
        with self.accelerator.autocast():
            output = model(
                input_ids=packed.ids,
                position_ids=packed.positions,
                groups=packed.groups,
                shift_labels=packed.labels,
                fused_lm_head=True,
                **images,
            )
        log_probs = packed.per_completion(output.log_probs, width)
        return log_probs, packed.per_completion(output.entropy, width) if entropy else None, None

    @torch.no_grad()
    def _compare(self, model: Any, ids: Tensor, mask: Tensor, width: int, images: Mapping[str, Any]) -> None:
        """Raises [`TrainingError`] if sharing gives other log-probabilities than the model's plain forward."""
        few = rows_of(by_row(ids, mask, images), range(min(2, len(ids))))
        training = model.training
        model.eval()  # no dropout
        try:
            shared, _, _ = (self._packed_forward if self._shares else self._whole_forward)(model, few, width)
            few = unsplit_pixel_values_by_grid(few)
            alone, _, _ = super()._get_per_token_logps_and_entropies(
                model, few.pop("input_ids"), few.pop("attention_mask"), width, **few
            )
        finally:
            model.train(training)
        computed = {"bf16": torch.bfloat16, "fp16": torch.float16}
        kind = computed.get(self.accelerator.mixed_precision, self.model.dtype)
        apart = (shared - alone).float().abs().sum() / mask[: len(shared), -width:].sum().clamp(min=1)
        most = float(self.accelerator.gather(apart).max())
        bound = BOUNDS.get(kind, BOUNDS[torch.float32])
        if not most <= bound:
            raise TrainingError(
                f"share_prompt: on the first batch, log-probabilities with a shared prompt are {most:.2g} from whole "
                f"rows' on average (bound {bound:g} in {kind}): this model can't share; set share_prompt: off"
            )


def by_row(ids: Tensor, mask: Tensor, images: Mapping[str, Any]) -> dict[str, Any]:
    """A batch as TRL computes it, what belongs to a row in its place: in a tensor, or a list of tensors."""
    given = {"input_ids": ids, "attention_mask": mask, **images}
    return split_pixel_values_by_grid({name: value for name, value in given.items() if value is not None})


def rows_of(batch: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    """Some rows of such a batch."""
    at = list(rows)
    return {
        name: [value[row] for row in at] if isinstance(value, list) else value[at] if value.ndim else value
        for name, value in batch.items()
    }


def packed_rows(
    model: torch.nn.Module, batch: Mapping[str, Any], width: int, pad_token: int
) -> tuple[PackedRows, dict[str, Tensor]]:
    """Completions packed behind their prompts, and what the model takes of each prompt's images, once.

    Args:
        model (`Module`): the model, which knows the positions of an image's tokens.
        batch (`dict`): as [`by_row`] makes it, prompts padded on the left.
        width (`int`): columns of the completions.
        pad_token (`int`): id that fills what is left of a row.
    """
    start = batch["input_ids"].shape[1] - width
    prompts = {name: value[:, :start] if name in PER_TOKEN else value for name, value in batch.items()}
    first, of_row = distinct_rows(prompts, len(prompts["input_ids"]))
    prompts = unsplit_pixel_values_by_grid(rows_of(prompts, first))
    positions = prompt_positions(model, prompts)
    kept = prompts["attention_mask"].bool()
    written = batch["attention_mask"][:, start:].bool()
    packed = pack(
        [ids[keep] for ids, keep in zip(prompts["input_ids"], kept, strict=True)],
        [positions[:, row, keep] for row, keep in enumerate(kept)],
        [ids[keep] for ids, keep in zip(batch["input_ids"][:, start:], written, strict=True)],
        of_row,
        pad_token,
    )
    names = ("pixel_values", "image_grid_thw", "pixel_attention_mask", "image_sizes")
    return packed, {name: prompts[name] for name in names if name in prompts}


def distinct_rows(values: Mapping[str, Any], count: int) -> tuple[list[int], list[int]]:
    """The rows of a batch that differ from the one before, and for each row, which of these it equals.

    Of prompts, images count, and not ids alone: prompts about images of one size have the same ids.
    """
    first: list[int] = []
    of_row = []
    for row in range(count):
        if not first or not all(equal(value[row], value[first[-1]]) for value in values.values()):
            first.append(row)
        of_row.append(len(first) - 1)
    return first, of_row


def equal(one: Any, other: Any) -> bool:
    """Whether two tensors, or numbers, are the same."""
    return torch.equal(one, other) if isinstance(one, Tensor) else one == other


def whole_groups(count: int, size: int, start: int = 0) -> list[int]:
    """The rows of a process in a random order of groups, each group's rows together.

    Args:
        count (`int`): rows.
        size (`int`): completions of a group.
        start (`int`, *optional*, defaults to 0): the first row's place among those of all processes: groups begin at
            multiples of `size`, so that a process may begin within one.
    """
    groups: dict[int, list[int]] = {}
    for row in range(count):
        groups.setdefault((start + row) // size, []).append(row)
    parts = list(groups.values())
    return [row for at in torch.randperm(len(parts)).tolist() for row in parts[at]]


def base_model(model: Any) -> Any:
    """The model under adapters."""
    return model.get_base_model() if hasattr(model, "peft_config") else model
