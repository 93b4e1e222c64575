"""An image of several rows goes through the vision tower once, where a model would compute it for each row."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError

IMAGES = (
    "pixel_values",
    "image_grid_thw",
    "pixel_attention_mask",
    "image_sizes",
    "spatial_shapes",
    "image_position_ids",
)
"""What models take of images."""


def why_not_once(model: torch.nn.Module) -> str | None:
    """Why a row can't be given what the vision tower made of another's image; `None` if it can."""
    config: Any = model.config
    if features_holder(model) is None or not isinstance(getattr(config, "image_token_id", None), int):
        return "its image is no tokens of a row"
    if config.model_type == "llama4":
        return "it projects features after it was given them"
    return None


@contextmanager
def vision_once(
    model: torch.nn.Module, ids: Tensor, images: Mapping[str, Any], of_row: Sequence[int]
) -> Iterator[None]:
    """
    Lets a model's forward on whole rows compute different images alone, once each, and give each row what belongs to
    it. Gradients of rows add up in what they share. The tower is called as often as without it: once a forward.

    Args:
        model (`Module`): the model, wrapped or not; see [`why_not_once`].
        ids (`Tensor`): of shape `(prompts, width)`, token ids of a row for each different image.
        images (`dict[str, Tensor]`): what the model takes of these images, by the names of [`IMAGES`].
        of_row (`list[int]`): for each row of the forward, which of these rows has its images.

    Raises:
        CheckpointError: in the forward, if the model's features don't fit its image tokens.
    """
    holder: Any = features_holder(model)
    own = holder.get_image_features
    tokens = (ids == holder.config.image_token_id).sum(-1).tolist()

    names = list(inspect.signature(own).parameters)

    def different(name: str, given: Any) -> Any:
        """What belongs to the different images of an argument."""
        return images[name].to(given.device, given.dtype) if name in images and given is not None else given

    @functools.wraps(own)  # `generate` asks for its parameters
    def get_image_features(*args: Any, **kwargs: Any) -> Any:
        found = own(
            *(different(name, given) for name, given in zip(names, args, strict=False)),
            **{name: different(name, given) for name, given in kwargs.items()},
        )
        found.pooler_output = _of_rows(found.pooler_output, tokens, of_row)
        if getattr(found, "deepstack_features", None) is not None:
            found.deepstack_features = [_of_rows(layer, tokens, of_row) for layer in found.deepstack_features]
        return found

    holder.get_image_features = get_image_features
    try:
        yield
    finally:
        del holder.get_image_features


def features_holder(model: torch.nn.Module) -> torch.nn.Module | None:
    """The innermost module that makes features of images: those around it only pass its own on."""
    # Of the class: adapters and wrappers answer with the attributes of what they hold.
    holders = [module for module in model.modules() if hasattr(type(module), "get_image_features")]
    return holders[-1] if holders else None


def _of_rows(features: Any, tokens: Sequence[int], of_row: Sequence[int]) -> Any:
    """
    Features of different images, one after another, as those of rows: a tensor of shape `(tokens, size)` or `(images
    or tiles, tokens, size)`, or a list of such tensors.
    """
    if isinstance(features, (list, tuple)) and features:
        features = torch.cat([one.flatten(0, -2) for one in features])
        return [_of_rows(features, tokens, [row]) for row in of_row]
    total = sum(tokens)
    if not isinstance(features, Tensor) or features.shape[:-1].numel() != total or total % len(features):
        raise CheckpointError(
            f"share_prompt: this model's features of images don't fit its {total} image tokens; set share_prompt: off"
        )
    parts = features.split([count * len(features) // total for count in tokens])
    return torch.cat([parts[row] for row in of_row])
