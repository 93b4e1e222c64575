"""The visual tokens of a Qwen-VL model: how much words attend to each, and questions asked without some of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb, repeat_kv

from ..images.loading import LoadedImage
from ..inference.pipeline import EmoR3Pipeline
from ..models.prefix_cache import (
    CachedPrompts,
    Tokens,
    adds_special_tokens,
    input_device,
    prompt_tokens,
    render_prompt,
    splice_image,
)

MODEL_TYPES = ("qwen2_5_vl", "qwen2_vl", "qwen3_vl")
"""Models whose attention is read and whose visual tokens are dropped as this file does."""


class EncodedImage:
    """An image that the vision tower has seen once, to be asked about with all of its tokens and with some.

    Dropped tokens are left out before the language model's first layer, and from what Qwen3-VL adds to its first
    layers. All others, the text's too, keep the M-RoPE positions that they would have if nothing had been dropped: a
    visual token's position is its place in the image's grid, so renumbering would move what is seen, and text that
    moved closer would change for a second reason than what is missing.

    Args:
        pipe ([`EmoR3Pipeline`]): model, of one of `MODEL_TYPES`, and processor.
        loaded (`LoadedImage`): the image.
        question (`str`): the first question about it.
    """

    def __init__(self, pipe: EmoR3Pipeline, loaded: LoadedImage, question: str) -> None:
        self.model: Any = pipe.model
        self.processor: Any = pipe.processor
        prompt = render_prompt(pipe.processor, question, with_image=True)
        inputs = self.processor(
            text=[prompt],
            images=[[loaded.image]],
            add_special_tokens=adds_special_tokens(pipe.processor, prompt),
            return_tensors="pt",
        ).to(input_device(self.model), dtype=self.model.dtype)
        self.grid = inputs["image_grid_thw"]
        self._plain = prompt_tokens(pipe.processor, prompt)
        self._full: Tokens = inputs["input_ids"][0].tolist()
        seen = self.model.model.get_image_features(inputs["pixel_values"], self.grid, return_dict=True)
        self.features = torch.cat(list(seen.pooler_output))
        deeper = getattr(seen, "deepstack_features", None) or ()
        self.deepstack = [torch.cat(list(layer)) for layer in deeper]
        """Of Qwen3-VL: what is added at the visual tokens after each of the first layers."""

    def tokens(self, question: str) -> Tokens:
        """Token ids of a question about the image, all visual tokens included."""
        other = prompt_tokens(self.processor, render_prompt(self.processor, question, with_image=True))
        spliced, _ = splice_image(self._plain, self._full, other, self.processor.image_token_id)
        assert spliced is not None, "both prompts begin with the image"
        return spliced

    def attend(self, question: str, words: str, layers: int) -> tuple[Tensor, Tensor]:
        """Asks a question with all visual tokens, and looks where some of its words look.

        Args:
            question (`str`): the question.
            words (`str`): the words, a part of it.
            layers (`int`): the attention is the mean over so many of the last layers.

        Returns:
            `tuple[Tensor, Tensor]`: logits of the first token of the answer, of shape `(vocabulary,)`, float32, and
            the attention to each visual token, of shape `(visual tokens,)`, see [`visual_attention`], on the CPU.
        """
        tokens = self.tokens(question)
        places, visual = self._places(question, words, len(tokens)), self._visual(tokens)
        caught: list[Tensor] = []

        def catch(module: Any, args: tuple[Any, ...], given: dict[str, Any]) -> None:
            hidden = args[0] if args else given["hidden_states"]
            found = visual_attention(module, hidden, given["position_embeddings"], places, visual.tolist())
            caught.append(found.cpu())

        last = [layer.self_attn for layer in self.model.model.language_model.layers[-layers:]]
        handles = [layer.register_forward_pre_hook(catch, with_kwargs=True) for layer in last]
        try:
            logits, _ = self._forward(tokens, torch.ones(len(visual), dtype=torch.bool))
        finally:
            for handle in handles:
                handle.remove()
        return logits, torch.stack(caught).mean(0)

    def ask(self, question: str, dropped: Sequence[int] = ()) -> CachedPrompts:
        """Reads a question, without some of the visual tokens (by their number), to be continued."""
        tokens = self.tokens(question)
        kept = torch.ones(len(self.features), dtype=torch.bool)
        kept[list(dropped)] = False
        # A plain cache, whatever the configuration says, as its prefix is continued label by label.
        cache = DynamicCache()
        _, last = self._forward(tokens, kept, past_key_values=cache, use_cache=True)
        remaining = torch.tensor(tokens)[self._remaining(tokens, kept)].tolist()
        offset = torch.tensor([last + 1 - len(remaining)])
        return CachedPrompts(self.model, [remaining], cache, [0], offset, [0], lambda row: {}, [len(remaining)])

    def _visual(self, tokens: Tokens) -> Tensor:
        return (torch.tensor(tokens) == self.processor.image_token_id).nonzero().flatten()

    def _remaining(self, tokens: Tokens, kept: Tensor) -> Tensor:
        """Which tokens of a prompt are there, given which of the visual ones are."""
        remaining = torch.ones(len(tokens), dtype=torch.bool)
        remaining[self._visual(tokens)] = kept
        return remaining

    def _places(self, question: str, words: str, length: int) -> list[int]:
        """Places of words in a prompt: counted from the end, as only the image before them has grown."""
        prompt = render_prompt(self.processor, question, with_image=True)
        start = prompt.rindex(words)
        spans = self.processor.tokenizer(
            prompt,
            add_special_tokens=adds_special_tokens(self.processor, prompt),
            return_offsets_mapping=True,
        )["offset_mapping"]
        places = [place for place, (low, high) in enumerate(spans) if low < start + len(words) and high > start]
        return [length - len(spans) + place for place in places]

    def _forward(self, tokens: Tokens, kept: Tensor, **options: Any) -> tuple[Tensor, int]:
        """Logits after a prompt's remaining tokens, of shape `(vocabulary,)`, and the last of their positions."""
        ids = torch.tensor([tokens], device=input_device(self.model))
        visual = self._visual(tokens).to(ids.device)
        types = torch.zeros_like(ids)
        types[0, visual] = 1
        positions, _ = self.model.model.get_rope_index(ids, mm_token_type_ids=types, image_grid_thw=self.grid)
        embeddings = self.model.get_input_embeddings()(ids)
        embeddings[0, visual] = self.features.to(embeddings.device, embeddings.dtype)
        remaining = self._remaining(tokens, kept).to(ids.device)
        if self.deepstack:
            options["visual_pos_masks"] = types[:, remaining].bool()
            options["deepstack_visual_embeds"] = [layer[kept.to(layer.device)] for layer in self.deepstack]
        # Not the whole model, which would look for image tokens among the embeddings where it adds to deeper layers.
        output = self.model.model.language_model(
            inputs_embeds=embeddings[:, remaining],
            position_ids=positions[:, :, remaining],
            attention_mask=torch.ones_like(ids)[:, remaining],
            **options,
        )
        logits = self.model.lm_head(output.last_hidden_state[:, -1:])
        return logits[0, -1].float(), int(positions[:, :, remaining].max())


def visual_attention(
    layer: Any, hidden: Tensor, rotary: tuple[Tensor, Tensor], words: Sequence[int], visual: Sequence[int]
) -> Tensor:
    """How much some words of a prompt attend to its visual tokens: the mean over the words and the layer's heads.

    It is computed from the layer's own projections, for these words only: asking the model for its attention would
    keep the whole matrix of each layer, a gigabyte for a large image.

    Args:
        layer (`Qwen2_5_VLAttention`): the attention of a layer, or that of a family like it.
        hidden (`Tensor`): its input, of shape `(1, length, hidden size)`.
        rotary (`tuple[Tensor, Tensor]`): cosines and sines of all positions, `(1, length, head size)` each.
        words, visual (`list[int]`): places of the words and of the visual tokens.

    Returns:
        `Tensor`: of shape `(visual tokens,)`, float32; the text's share of the attention is missing from its sum.
    """
    rows = torch.tensor(words, device=hidden.device)
    cos, sin = rotary
    query = layer.q_proj(hidden[:, rows]).unflatten(-1, (-1, layer.head_dim))
    key = layer.k_proj(hidden).unflatten(-1, (-1, layer.head_dim))
    if hasattr(layer, "q_norm"):  # Qwen3's
        query, key = layer.q_norm(query), layer.k_norm(key)
    query, key = query.transpose(1, 2), key.transpose(1, 2)
    query = apply_rotary_pos_emb(query, query, cos[:, rows], sin[:, rows])[0]
    key = repeat_kv(apply_rotary_pos_emb(key, key, cos, sin)[0], layer.num_key_value_groups)
    scores = query @ key.transpose(2, 3) * layer.scaling
    future = torch.arange(hidden.shape[1], device=hidden.device) > rows[:, None]
    weights = scores.masked_fill(future, -torch.inf).softmax(-1, dtype=torch.float32)
    return weights[0].mean((0, 1))[list(visual)]


def lowest(values: Tensor, share: float) -> list[int]:
    """Numbers of the visual tokens to drop: the lowest `share` of them, rounded down, the first of equals first."""
    return sorted(values.argsort(stable=True)[: int(share * len(values))].tolist())
