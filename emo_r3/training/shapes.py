"""The sizes of a model, counted without its weights: from a table of the recipes' models, or its config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download, try_to_load_from_cache
from peft import get_peft_model
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedConfig
from trl import ModelConfig, get_peft_config

from ..errors import CheckpointError, RecipeError
from ..models.checkpoint import CHECKPOINT
from ..models.group_attention import why_not
from .examples import PixelBudget
from .recipe import Recipe
from .stage import freeze_vision_tower


@dataclass(frozen=True)
class Shape:
    """A model's sizes, counted on the meta device with its adapters and its frozen tower."""

    parameters: int
    vision_parameters: int
    trained: int
    adapters: int
    linear: int  # parameters in linear layers that quantisation takes: all but the output's
    trained_linear: int
    head: int  # of the output embeddings
    head_is_trained: bool
    largest_layer: int
    hidden: int
    mlp: int
    layers: int
    key_values: int
    vocabulary: int
    vision_hidden: int
    vision_mlp: int
    vision_layers: int
    patch: int
    patch_values: int
    merge: int  # patches of a token, along a side; 0 for images of one size
    image_size: int
    vision_is_trained: bool
    shares_prompt: bool  # whether completions of a group can

    def image_tokens(self, image: tuple[int, int], budget: tuple[int, int]) -> tuple[int, int]:
        """Tokens and patches of an image in a pixel budget."""
        if not self.merge:
            patches = (self.image_size // self.patch) ** 2
            return patches, patches
        width, height = PixelBudget(self.patch * self.merge, *budget).fit(image)
        patches = (width // self.patch) * (height // self.patch)
        return patches // self.merge**2, patches


def model_shape(recipe: Recipe) -> Shape:
    """Sizes of the recipe's model: from its folder, the package's table, the cache or the Hub, in this order."""
    model, freeze = recipe.model, recipe.run.freeze_vision_tower
    adapters = json.dumps(
        {
            name: getattr(model, name)
            for name in ("use_peft", "lora_r", "lora_target_modules", "lora_alpha", "use_rslora", "use_dora")
        }
    )
    return _shape(str(model.model_name_or_path), model.model_revision, freeze, adapters)


@cache
def _shape(name: str, revision: str, freeze: bool, adapters: str) -> Shape:
    config = model_config(name, revision)
    with torch.device("meta"):
        model: Any = AutoModelForImageTextToText.from_config(config)
        towers = model.get_encoder(modality="image")
        seen = sum(value.numel() for value in towers.parameters())
        if freeze:
            tower = freeze_vision_tower(model)
        before = sum(value.numel() for value in model.parameters())
        head = model.get_output_embeddings().weight
        linear = [module for module in model.modules() if isinstance(module, torch.nn.Linear)]
        quantised = sum(part.weight.numel() for part in linear if part.weight is not head)
        blocks = [part for part in model.modules() if isinstance(part, torch.nn.ModuleList)]
        largest = max(sum(value.numel() for value in part.parameters()) for part in [*(b for x in blocks for b in x)])
        largest = max(largest, head.numel())
        options = json.loads(adapters)
        added = 0
        if options.pop("use_peft"):
            peft_config: Any = get_peft_config(ModelConfig(use_peft=True, **options))
            if freeze:
                peft_config.exclude_modules = rf".*\b{tower}\b.*"
            try:
                model = get_peft_model(model, peft_config)
            except ValueError as error:
                raise RecipeError(f"these settings can't be used together: {error}") from error
            added = sum(value.numel() for name, value in model.named_parameters() if "lora_" in name)
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    trained_linear = sum(
        part.weight.numel() for part in model.modules() if type(part) is torch.nn.Linear and part.weight.requires_grad
    )
    text, vision = config.get_text_config(), config.vision_config
    heads = text.num_attention_heads
    head_size = getattr(text, "head_dim", None) or text.hidden_size // heads
    merge = getattr(vision, "spatial_merge_size", 0)
    return Shape(
        parameters=before,
        vision_parameters=seen,
        trained=trained,
        adapters=added,
        linear=quantised,
        trained_linear=trained_linear,
        head=head.numel(),
        head_is_trained=head.requires_grad and not added,
        largest_layer=largest,
        hidden=text.hidden_size,
        mlp=text.intermediate_size,
        layers=text.num_hidden_layers,
        key_values=(getattr(text, "num_key_value_heads", None) or heads) * head_size,
        vocabulary=text.vocab_size,
        vision_hidden=vision.hidden_size,
        vision_mlp=vision.intermediate_size,
        vision_layers=getattr(vision, "depth", None) or vision.num_hidden_layers,
        patch=vision.patch_size,
        patch_values=3 * vision.patch_size**2 * getattr(vision, "temporal_patch_size", 1),
        merge=merge,
        image_size=getattr(vision, "image_size", 0),
        vision_is_trained=not freeze
        and (not added or any("vis" in n for n, v in model.named_parameters() if v.requires_grad)),
        shares_prompt=why_not(config) is None,
    )


def table() -> dict[str, dict[str, Any]]:
    """The recipes' models: the fields of their `config.json` that decide sizes, and where they were read."""
    return json.loads(resources.files(__package__).joinpath("model_shapes.json").read_text(encoding="utf-8"))


def model_config(name: str, revision: str | None = None) -> PreTrainedConfig:
    """The configuration of a model, offline for the recipes' models.

    Raises:
        [`CheckpointError`]: it can't be had, or the Hub's in the cache has other sizes than the package's table.
    """
    folder = CHECKPOINT if name == "miniature" else Path(name)
    known = table().get(name)
    if folder.is_dir():
        facts = _config_of(folder / "config.json")
    elif known is not None:
        facts = known["config"]
        cached = try_to_load_from_cache(name, "config.json", revision=revision)
        if isinstance(cached, str) and (other := differing(facts, _config_of(Path(cached)))):
            raise CheckpointError(f"{name} has another {', '.join(other)} on the Hub than in the package's table")
    else:
        try:
            facts = _config_of(Path(hf_hub_download(name, "config.json", revision=revision)))
        except CheckpointError:
            raise
        except Exception as error:  # whatever the Hub's client and the network raise
            raise CheckpointError(
                f"the sizes of {name} are not known here, and its config.json can't be fetched "
                f"({type(error).__name__}): give a folder, or one of {', '.join(table())}"
            ) from error
    facts = {key: value for key, value in facts.items() if key not in ("architectures", "transformers_version")}
    try:
        return AutoConfig.for_model(**facts)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{name}: config.json is of no model that is known here: {error}") from error


def differing(known: Mapping[str, Any], found: Mapping[str, Any], inside: str = "") -> list[str]:
    """Names of fields of `known` that `found` has with another value."""
    names = []
    for key, value in known.items():
        other = found.get(key)
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            names += differing(value, other, f"{inside}{key}.")
        elif other is not None and other != value:
            names.append(f"{inside}{key}")
    return names


def _config_of(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} can't be read: {error}") from error
    if not isinstance(facts, dict) or "model_type" not in facts:
        raise CheckpointError(f"{path} names no model_type")
    return facts
