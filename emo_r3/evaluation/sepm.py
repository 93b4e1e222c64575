"""SEPM, a baseline without training (ICML 2025), on Qwen2.5-VL-class models: polarity first, then the label.

Stage 1 asks for the polarity by the options A and B. Stage 2 asks for the label among those of this polarity, without
the visual tokens that the words "Please focus on emotion" attended to least.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb, repeat_kv

from ..errors import CheckpointError, EmoR3Error, ImageError
from ..images.fitting import fit_image
from ..images.loading import LoadedImage, load_image, source_name
from ..inference.engine import not_finite
from ..inference.pipeline import EmoR3Pipeline
from ..labels import LabelSet, label_key, resolve_labels
from ..lexicon import AFFECT, expected_affect
from ..models.decoding import BOX, box_sequences
from ..models.prefix_cache import (
    CachedPrompts,
    LabelTrie,
    adds_special_tokens,
    input_device,
    prompt_tokens,
    render_prompt,
    score_labels,
    splice_image,
)
from ..models.turns import turns_of
from ..results import EmotionResult

PRESETS: dict[str, tuple[float, float]] = {"paper": (0.632, 0.2), "code": (0.447, 0.1)}
"""Difference of the two probabilities below which an image is ambiguous, and share of visual tokens to drop."""

# Not in `prompts.toml`: they belong to a baseline that is never trained, so no checkpoint carries them. The question
# for the label is the prompt `direct` of the pipeline, like that of the other methods.
FOCUS = "Please focus on emotion"
POLARITY = "Is the emotion that the image evokes positive or negative? A: positive. B: negative. Answer A or B."
AMBIGUOUS = "The emotion may be positive or negative."

_TYPES = ("qwen2_5_vl", "qwen2_vl")
MIDDLE = 5.0
"""Of the scale of valence, from 1 to 9."""


@dataclass(frozen=True)
class Look:
    """What stage 1 saw.

    Args:
        positive, negative (`float`): probability of A and of B as the first token, among all tokens.
        attention (`Tensor`): of shape `(visual tokens,)`, see [`visual_attention`].
    """

    positive: float
    negative: float
    attention: Tensor

    def polarity(self, threshold: float) -> str | None:
        """`"positive"` or `"negative"`; `None` for an image that is ambiguous."""
        if abs(self.positive - self.negative) < threshold:
            return None
        return "positive" if self.positive > self.negative else "negative"


class SepmPipeline:
    """Answers as SEPM does, with the model of a pipeline.

    Both stages share what the vision tower made of the image. Dropped tokens are left out before the language
    model's first layer. All others, the text's too, keep the M-RoPE positions that they would have if nothing had been
    dropped: a visual token's position is its place in the image's grid, so renumbering would move what is seen, and
    text that moved closer would change for a second reason than what is missing.

    Labels have the polarity of their `LabelSet`, else that of their valence (`AFFECT`); a label with neither, such as
    Emotion6's surprise, belongs to both polarities. Where a polarity has fewer than two labels, all are asked for.

    Args:
        pipe ([`EmoR3Pipeline`]): with a model of the type `qwen2_5_vl` or `qwen2_vl`.
        preset (`str`, *optional*, defaults to `"paper"`): thresholds of the `"paper"` (0.632, 20 %) or of its authors'
            `"code"` (0.447, 10 %).

    Raises:
        [`CheckpointError`]: the model is of another type, or its tokenizer doesn't tell A from B by one token.
        [`EmoR3Error`]: the preset is unknown.

    Example:

    ```python
    >>> sepm = SepmPipeline(EmoR3Pipeline.from_pretrained("Qwen/Qwen2.5-VL-3B-Instruct"))
    >>> [result.label for result in sepm(["image.png"], labels="emotion6")]
    ```
    """

    def __init__(self, pipe: EmoR3Pipeline, preset: str = "paper") -> None:
        if preset not in PRESETS:
            raise EmoR3Error(f"SEPM's preset {preset!r} is unknown: choose one of {', '.join(PRESETS)}")
        kind = pipe.model.config.model_type
        if kind not in _TYPES:
            raise CheckpointError(f"SEPM needs a model of the type {' or '.join(_TYPES)}, and {pipe.name} is {kind}")
        self.pipe, self.preset = pipe, preset
        self.threshold, self.share = PRESETS[preset]
        self._options = option_tokens(pipe.processor.tokenizer)

    def __call__(
        self,
        images: Iterable[Any],
        *,
        labels: LabelSet | Sequence[str] | str | None = None,
        on_error: Literal["raise", "return"] = "raise",
        allow_private_hosts: bool = False,
    ) -> Iterator[EmotionResult]:
        r"""Reads the emotion of images, one by one.

        Args:
            images (`Iterable`): images, each as [`EmoR3Pipeline`] takes it.
            labels (`LabelSet`, `list[str]` or `str`, *optional*): to choose from; the checkpoint's unless given.
            on_error (`str`, *optional*, defaults to `"raise"`): `"return"` gives a result with `error` set for a
                image that can't be read.
            allow_private_hosts (`bool`, *optional*, defaults to `False`): fetch URLs of private networks too.

        Returns:
            `Iterator[EmotionResult]`: the most probable label of those that stage 2 asked for, as `\boxed{label}`;
            `probabilities` over the whole list, 0 for labels of the other polarity; `notes` on the polarity and the
            dropped tokens.

        Raises:
            [`ImageError`]: an image can't be read.
        """
        label_set = self.pipe.info.label_set if labels is None else resolve_labels(labels)
        for source in images:
            try:
                loaded = load_image(source, allow_private_hosts=allow_private_hosts)
            except ImageError as error:
                if on_error == "raise":
                    raise
                yield EmotionResult(image=source_name(source), error=str(error))
            else:
                with turns_of(self.pipe.model).turn():
                    result = self._result(fit_image(loaded, self.pipe.info.square), label_set)
                yield result

    @torch.no_grad()
    def _result(self, loaded: LoadedImage, labels: LabelSet) -> EmotionResult:
        info = self.pipe.info
        asked = EncodedImage(self.pipe, loaded, f"{FOCUS}. {POLARITY}")
        look = asked.look(self._options)
        polarity = look.polarity(self.threshold)
        options = options_of(labels, polarity)
        question = info.prompts.question("direct", options)
        dropped = least_attended(look.attention, self.share)
        cached = asked.ask(question if polarity else f"{AMBIGUOUS}\n{question}", dropped)
        trie = LabelTrie(box_sequences(self.pipe.processor.tokenizer, BOX, options))
        log_probs, _ = score_labels(cached, [0], [cached.tokens[0]], trie)
        if not log_probs.isfinite().all():
            raise not_finite(self.pipe.name, self.pipe.model)
        by_option = dict(zip(options, log_probs[0].double().softmax(-1).tolist(), strict=True))
        probabilities = {label: by_option.get(label, 0.0) for label in labels.labels}
        label = max(by_option, key=lambda label: by_option[label])
        affect = expected_affect(probabilities)
        read = f"A {look.positive:.3f}, B {look.negative:.3f}"
        notes = (
            f"polarity {polarity}: {read}" if polarity else f"polarity ambiguous: {read}",
            f"dropped {len(dropped)} of {len(look.attention)} visual tokens",
        )
        return EmotionResult(
            image=loaded.name,
            label=label,
            probabilities=probabilities,
            valence=affect.valence if affect else None,
            arousal=affect.arousal if affect else None,
            text=f"{BOX}{label}}}",
            notes=loaded.notes + notes,
            method="sepm",
            prompt_version=info.prompts.version,
            model=self.pipe.name,
        )


class EncodedImage:
    """An image that the vision tower has seen once, to be asked about with all of its tokens and with some.

    Args:
        pipe ([`EmoR3Pipeline`]): model and processor.
        loaded (`LoadedImage`): the image.
        question (`str`): the first question about it, with the words `FOCUS` in it.
    """

    def __init__(self, pipe: EmoR3Pipeline, loaded: LoadedImage, question: str) -> None:
        self.model: Any = pipe.model
        self.processor: Any = pipe.processor
        self.prompt = render_prompt(pipe.processor, question, with_image=True)
        inputs = self.processor(
            text=[self.prompt],
            images=[[loaded.image]],
            add_special_tokens=adds_special_tokens(pipe.processor, self.prompt),
            return_tensors="pt",
        ).to(input_device(self.model), dtype=self.model.dtype)
        self.ids, self.grid = inputs["input_ids"], inputs["image_grid_thw"]
        seen = self.model.model.get_image_features(inputs["pixel_values"], self.grid, return_dict=True)
        self.features = torch.cat(list(seen.pooler_output))

    def look(self, options: tuple[list[int], list[int]]) -> Look:
        """Stage 1, given the tokens of A and of B."""
        visual = self._visual(self.ids)
        words = self._focus()
        caught: list[Tensor] = []
        layer = self.model.model.language_model.layers[-1].self_attn

        def catch(module: Any, args: tuple[Any, ...], given: dict[str, Any]) -> None:
            hidden = args[0] if args else given["hidden_states"]
            caught.append(visual_attention(module, hidden, given["position_embeddings"], words, visual.tolist()))

        handle = layer.register_forward_pre_hook(catch, with_kwargs=True)
        try:
            output = self.model(**self._embed(self.ids, torch.ones_like(visual).bool()), logits_to_keep=1)
        finally:
            handle.remove()
        chances = output.logits[0, -1].float().softmax(-1)
        positive, negative = (float(chances[tokens].sum()) for tokens in options)
        return Look(positive, negative, caught[0].cpu())

    def ask(self, question: str, dropped: Sequence[int]) -> CachedPrompts:
        """Stage 2: reads another question, without some of the visual tokens (by their number), to be continued."""
        prompt = render_prompt(self.processor, question, with_image=True)
        plain, other = prompt_tokens(self.processor, self.prompt), prompt_tokens(self.processor, prompt)
        spliced, _ = splice_image(plain, self.ids[0].tolist(), other, self.processor.image_token_id)
        assert spliced is not None, "both prompts begin with the image"
        ids = torch.tensor([spliced], device=self.ids.device)
        kept = torch.ones(len(self.features), dtype=torch.bool, device=ids.device)
        kept[list(dropped)] = False
        given = self._embed(ids, kept)
        # A plain cache, whatever the configuration says, as its prefix is continued label by label.
        output = self.model(**given, past_key_values=DynamicCache(), use_cache=True, logits_to_keep=1)
        remaining = torch.ones(len(spliced), dtype=torch.bool, device=ids.device)
        remaining[self._visual(ids)] = kept
        tokens = ids[0, remaining].tolist()
        offset = given["position_ids"].max().cpu() + 1 - len(tokens)
        return CachedPrompts(
            self.model, [tokens], output.past_key_values, [0], offset[None], [0], lambda row: {}, [len(tokens)]
        )

    def _visual(self, ids: Tensor) -> Tensor:
        return (ids[0] == self.processor.image_token_id).nonzero().flatten()

    def _focus(self) -> list[int]:
        """Places of the words `FOCUS`: counted from the end, as only the image before them has grown."""
        start = self.prompt.index(FOCUS)
        spans = self.processor.tokenizer(
            self.prompt,
            add_special_tokens=adds_special_tokens(self.processor, self.prompt),
            return_offsets_mapping=True,
        )["offset_mapping"]
        places = [place for place, (low, high) in enumerate(spans) if low < start + len(FOCUS) and high > start]
        return [self.ids.shape[1] - len(spans) + place for place in places]

    def _embed(self, ids: Tensor, kept: Tensor) -> dict[str, Tensor]:
        """What the language model is given: embeddings and M-RoPE positions of a prompt's remaining tokens."""
        visual = self._visual(ids)
        types = torch.zeros_like(ids)
        types[0, visual] = 1
        positions, _ = self.model.model.get_rope_index(ids, mm_token_type_ids=types, image_grid_thw=self.grid)
        embeddings = self.model.get_input_embeddings()(ids)
        embeddings[0, visual] = self.features.to(embeddings.device, embeddings.dtype)
        remaining = torch.ones_like(ids[0]).bool()
        remaining[visual] = kept
        return {
            "inputs_embeds": embeddings[:, remaining],
            "position_ids": positions[:, :, remaining],
            "attention_mask": torch.ones_like(ids)[:, remaining],
        }


def visual_attention(
    layer: Any, hidden: Tensor, rotary: tuple[Tensor, Tensor], words: Sequence[int], visual: Sequence[int]
) -> Tensor:
    """How much some words of a prompt attend to its visual tokens: the mean over the words and the layer's heads.

    It is computed from the layer's own projections, for these words only: asking the model for its attention would
    keep the whole matrix of each layer, a gigabyte for a large image.

    Args:
        layer (`Qwen2_5_VLAttention`): the attention of the last layer.
        hidden (`Tensor`): its input, of shape `(1, length, hidden size)`.
        rotary (`tuple[Tensor, Tensor]`): cosines and sines of all positions, `(1, length, head size)` each.
        words, visual (`list[int]`): places of the words and of the visual tokens.

    Returns:
        `Tensor`: of shape `(visual tokens,)`, float32; the text's share of the attention is missing from its sum.
    """
    rows = torch.tensor(words, device=hidden.device)
    cos, sin = rotary
    query = layer.q_proj(hidden[:, rows]).unflatten(-1, (-1, layer.head_dim)).transpose(1, 2)
    key = layer.k_proj(hidden).unflatten(-1, (-1, layer.head_dim)).transpose(1, 2)
    query = apply_rotary_pos_emb(query, query, cos[:, rows], sin[:, rows])[0]
    key = repeat_kv(apply_rotary_pos_emb(key, key, cos, sin)[0], layer.num_key_value_groups)
    scores = query @ key.transpose(2, 3) * layer.scaling
    future = torch.arange(hidden.shape[1], device=hidden.device) > rows[:, None]
    weights = scores.masked_fill(future, -torch.inf).softmax(-1, dtype=torch.float32)
    return weights[0].mean((0, 1))[list(visual)]


def least_attended(attention: Tensor, share: float) -> list[int]:
    """Numbers of the visual tokens to drop: the lowest `share` of them, rounded down, the first of equals first."""
    return sorted(attention.argsort(stable=True)[: int(share * len(attention))].tolist())


def options_of(labels: LabelSet, polarity: str | None) -> tuple[str, ...]:
    """The labels that stage 2 asks for, in the list's order; see [`SepmPipeline`]."""

    def sign(label: str) -> str | None:
        if label in labels.polarity:
            return labels.polarity[label]
        # A list with signs of its own has left out this one's on purpose.
        if labels.polarity or label_key(label) not in AFFECT:
            return None
        return "positive" if AFFECT[label_key(label)].valence > MIDDLE else "negative"

    fitting = tuple(label for label in labels.labels if sign(label) in (polarity, None))
    return fitting if polarity and len(fitting) > 1 else labels.labels


def option_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Token ids by which an answer says A, and by which it says B.

    Raises:
        [`CheckpointError`]: a letter is no token of its own.
    """

    def spellings(letter: str) -> list[int]:
        written = [tokenizer.encode(text, add_special_tokens=False) for text in (letter, f" {letter}")]
        return sorted({ids[0] for ids in written if len(ids) == 1})

    positive, negative = spellings("A"), spellings("B")
    if not positive or not negative or set(positive) & set(negative):
        raise CheckpointError("this tokenizer has no token of its own for A and for B, by which SEPM reads polarity")
    return positive, negative
