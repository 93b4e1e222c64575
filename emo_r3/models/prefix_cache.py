"""Next-token logits after given tokens, from a cache that a model has filled already: nothing is encoded twice."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers import Cache, PreTrainedModel, ProcessorMixin
from transformers.cache_utils import DynamicLayer

from .chat_template import rendered_chat

Tokens = list[int]


class LabelTrie:
    """The labels as token sequences, and where they part from each other.

    A label's probability is the product, over the branches on its path, of the model's probabilities among the
    branch's children: what the model does when it may only write one of the labels. Tokens without an alternative
    count 1, so a label is not punished for being long, and the probabilities sum to 1.

    Args:
        sequences (`list[list[int]]`): one per label; none may begin with another, so end them all with the same token.
    """

    def __init__(self, sequences: Sequence[Sequence[int]]) -> None:
        self.size = len(sequences)
        prefixes: dict[tuple[int, ...], dict[int, list[int]]] = {}
        for label, sequence in enumerate(sequences):
            for depth, token in enumerate(sequence):
                prefixes.setdefault(tuple(sequence[:depth]), {}).setdefault(token, []).append(label)
        ends = [prefixes.get(tuple(sequence)) for sequence in sequences]
        if any(ends) or len({tuple(sequence) for sequence in sequences}) < self.size:
            raise ValueError("the tokens of one label begin with those of another")
        parting = sorted((path for path, children in prefixes.items() if len(children) > 1), key=len)
        self.paths: list[tuple[int, ...]] = parting
        """Tokens from the start to each branch, shortest first."""
        self.children = [prefixes[path] for path in parting]
        self.tokens = [list(children) for children in self.children]
        """Per branch, the tokens that may follow."""

    def score(self, choices: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
        """Label probabilities from what the model thinks at each branch.

        Args:
            choices (`list[Tensor]`): per branch, logits or log-probabilities of its `tokens`, of shape `(rows,
                children)`.

        Returns:
            `tuple[Tensor, list[int]]`: log-probabilities of shape `(rows, labels)`, and for each row the label at
            which a greedy walk ends (constrained greedy decoding).
        """
        rows = choices[0].shape[0]
        log_probs = torch.zeros(rows, self.size)
        alive = [set(range(self.size)) for _ in range(rows)]
        for children, logits in zip(self.children, choices, strict=True):
            shares = logits.float().log_softmax(-1).cpu()
            under = {label for labels in children.values() for label in labels}
            best = shares.argmax(-1).tolist()
            for child, labels in enumerate(children.values()):
                log_probs[:, labels] += shares[:, child, None]
                for row in range(rows):
                    if best[row] == child and alive[row] == under:
                        alive[row] = set(labels)
        return log_probs, [min(labels) for labels in alive]


def render_prompt(processor: ProcessorMixin, question: str, *, with_image: bool) -> str:
    """One user turn, the image first, in the model's own chat format, up to where the model begins to write."""
    return rendered_chat(processor, question, with_image=with_image)


def adds_special_tokens(processor: ProcessorMixin, prompt: str) -> bool:
    """Whether the tokenizer is still to put its marks around a rendered prompt: not if the template wrote them."""
    start = processor.tokenizer.bos_token
    return not (start and prompt.startswith(start))


def prompt_tokens(processor: ProcessorMixin, prompt: str) -> Tokens:
    """Token ids of a rendered prompt, an image being the one token (or few) that stands for it in the text."""
    return processor.tokenizer.encode(prompt, add_special_tokens=adds_special_tokens(processor, prompt))


def splice_image(plain: Tokens, full: Tokens, other: Tokens, image_token: int | None) -> tuple[Tokens | None, int]:
    """Gives a prompt the image tokens that another prompt of the same image has.

    Args:
        plain (`list[int]`): tokens of the first prompt as text.
        full (`list[int]`): the same with the processor's image tokens.
        other (`list[int]`): tokens of the second prompt as text.
        image_token (`int`, *optional*): id of the token that stands for the image.

    Returns:
        `tuple[list[int], int]`: the second prompt with the image tokens, or `None` if it begins differently; and how
        many tokens of `full` there are up to the end of the image.
    """
    shorter = min(len(plain), len(full))
    head = next((index for index in range(shorter) if plain[index] != full[index]), shorter)
    if plain == full and image_token in plain:  # an image so small that it is one token
        head = len(plain) - plain[::-1].index(image_token)
    rest = range(1, shorter - head + 1)
    tail = next((index - 1 for index in rest if plain[-index] != full[-index]), shorter - head)
    stands_for, image = plain[head : len(plain) - tail], full[head : len(full) - tail]
    same = head + len(stands_for)
    spliced = [*other[:head], *image, *other[same:]] if other[:same] == plain[:same] else None
    return spliced, head + len(image)


def whole_rows(logits: Tensor) -> Tensor:
    """All of the logits."""
    return logits


def input_device(model: PreTrainedModel) -> torch.device:
    """Where inputs go: to the embeddings, wherever the rest of the model is."""
    return cast(torch.device, model.get_input_embeddings().weight.device)


def is_reusable(cache: Any) -> bool:
    """Whether every layer keeps every token, so that any prefix can be continued: no sliding window, no recurrence."""
    return isinstance(cache, Cache) and all(type(layer) is DynamicLayer for layer in cache.layers)


def position_offsets(model: PreTrainedModel, batch_size: int) -> Tensor:
    """Per row of the last prefill, next position minus tokens so far: not 0 for M-RoPE, where an image is a grid."""
    # Searched for, as an adapter or a wrapper may be around the model that keeps them.
    found = (getattr(module, "rope_deltas", None) for module in model.modules())
    deltas = next((value for value in found if value is not None), None)
    if deltas is None:
        return torch.zeros(batch_size, dtype=torch.long)
    return deltas.reshape(-1).expand(batch_size).to("cpu", torch.long)


def cache_part(cache: Cache, rows: Sequence[int], first: int, stop: int) -> Cache:
    """Some rows and columns of a cache, a row as often as it is named. The cache stays as it is."""
    part = copy.copy(cache)
    layers: list[Any] = [copy.copy(layer) for layer in cache.layers]
    part.layers = layers
    for layer in layers:
        index = torch.tensor(rows, device=layer.keys.device)
        layer.keys = layer.keys[:, :, first:stop].index_select(0, index)
        layer.values = layer.values[:, :, first:stop].index_select(0, index)
    return part


@torch.no_grad()
def suffix_logits(
    model: PreTrainedModel,
    cache: Cache,
    mask: Tensor,
    next_position: Tensor,
    rows: Sequence[int],
    suffixes: Sequence[Sequence[int]],
) -> Tensor:
    """Logits of the token that follows each suffix, in one forward of the suffixes alone. The cache stays as it is.

    Args:
        model (`PreTrainedModel`): the model that filled the cache.
        cache (`Cache`): keys and values of shape `(batch, heads, length, dim)` per layer; see [`is_reusable`].
        mask (`Tensor`): of shape `(suffixes, length)`, 1 for what a suffix follows, 0 for what it must not see.
        next_position (`Tensor`): of shape `(suffixes,)`, position of each suffix's first token.
        rows (`list[int]`): per suffix, the row of the cache that it continues; a row may be used many times.
        suffixes (`list[list[int]]`): token ids, at least one each.

    Returns:
        `Tensor`: of shape `(suffixes, vocabulary)`, float32.
    """
    device = input_device(model)
    used = mask.any(0).nonzero().flatten()
    first, stop = int(used[0]), int(used[-1]) + 1
    part = cache_part(cache, rows, first, stop)

    # Padded on the left, so that the last column is the last token of every suffix.
    longest = max(map(len, suffixes))
    pads = [longest - len(suffix) for suffix in suffixes]
    ids = torch.tensor([[suffix[0]] * pad + list(suffix) for pad, suffix in zip(pads, suffixes, strict=True)])
    visible = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in pads])
    positions = next_position[:, None] + (torch.arange(longest) - torch.tensor(pads)[:, None]).clamp(min=0)
    output = model(
        input_ids=ids.to(device),
        attention_mask=torch.cat([mask[:, first:stop].to(visible.dtype), visible], 1).to(device),
        position_ids=positions.to(device),
        past_key_values=part,
        use_cache=True,
        logits_to_keep=1,
    )
    return output.logits[:, -1].float()


@torch.no_grad()
def run_prompts(model: PreTrainedModel, inputs: Mapping[str, Tensor], cache: Cache | None = None) -> Any:
    """The model's output on prompts, the logits after each and its cache.

    Args:
        model (`PreTrainedModel`): the model.
        inputs (`dict[str, Tensor]`): the processor's tensors of the prompts, padded on the left, on the device.
        cache (`Cache`, *optional*): an empty one to fill, instead of the model's choice.
    """
    given = dict(inputs)
    if not any(hasattr(module, "rope_deltas") for module in model.modules()):
        # M-RoPE skips padding by itself; other models would count it.
        given["position_ids"] = (given["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    return model(**given, past_key_values=cache, use_cache=True, logits_to_keep=1)


def repeat_prompts(model: PreTrainedModel, cache: Cache, rows: Tensor) -> None:
    """Makes a cache of prompts one of completions: `rows`, of shape `(completions,)`, has the prompt of each."""
    cache.batch_select_indices(rows)
    holders: list[Any] = [module for module in model.modules() if getattr(module, "rope_deltas", None) is not None]
    for holder in holders:
        holder.rope_deltas = holder.rope_deltas[rows]


def prefill(model: PreTrainedModel, inputs: Mapping[str, Tensor], rows: Tensor) -> Cache | None:
    """
    Runs prompts through the model, but for their last token, and repeats what it remembers: `generate` goes on from
    there with the repeated token ids and mask, and without pixels.

    Args:
        model (`PreTrainedModel`): the model.
        inputs (`dict[str, Tensor]`): the processor's tensors of the prompts, padded on the left.
        rows (`Tensor`): of shape `(completions,)`, the prompt of each.

    Returns:
        `Cache`: of as many rows as there are completions; `None` if this model's can't be continued from there.
    """
    shape = inputs["input_ids"].shape
    given = {name: value[:, :-1] if value.shape == shape else value for name, value in inputs.items()}
    cache = run_prompts(model, given).past_key_values
    if not is_reusable(cache):
        return None
    repeat_prompts(model, cache, rows)
    return cache


@dataclass(frozen=True)
class CachedPrompts:
    """A batch of prompts that a model has read, with what it wrote after them, ready to be continued in other ways.

    Args:
        model (`PreTrainedModel`): the model.
        tokens (`list[list[int]]`): per row, the prompt without padding and the completion.
        cache (`Cache`, *optional*): what the model remembers of them.
        padding (`list[int]`): per row, padded columns on the left of the cache.
        offsets (`Tensor`): of shape `(batch,)`, see [`position_offsets`].
        image_ends (`list[int]`): per row, number of tokens up to the end of the image; 0 without one.
        encode (`Callable[[int], dict]`): the processor's tensors for one row's prompt alone, or for another prompt
            about its image, for when the cache can't help.
        prompt_lengths (`list[int]`): per row, number of its tokens that are the prompt.
        max_rows (`int`, *optional*, defaults to 64): suffixes in one forward.
    """

    model: PreTrainedModel
    tokens: list[Tokens]
    cache: Cache | None
    padding: list[int]
    offsets: Tensor
    image_ends: list[int]
    encode: Callable[..., Mapping[str, Tensor]]
    prompt_lengths: list[int]
    max_rows: int = 64

    def prompt(self, row: int) -> Tokens:
        """A row's prompt, image tokens included."""
        return self.tokens[row][: self.prompt_lengths[row]]

    def next_logits(
        self, rows: Sequence[int], sequences: Sequence[Tokens], pick: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Logits of the token that follows each sequence.

        Args:
            rows (`list[int]`): per sequence, the row whose image it begins with.
            sequences (`list[list[int]]`): all token ids from the start of the prompt; what they have in common with
                the row's own tokens is taken from the cache.
            pick (`Callable`, *optional*): what is wanted of logits of shape `(n, vocabulary)`, of shape `(n, ...)`:
                computed where the model is, so that the rest never leaves the device.

        Returns:
            `Tensor`: of shape `(sequences, vocabulary)`, or what `pick` leaves of it, float32, on the CPU.
        """
        pick = pick or whole_rows
        if self.cache is None or not is_reusable(self.cache):
            alone = [self._full_logits(row, tokens) for row, tokens in zip(rows, sequences, strict=True)]
            return torch.cat([pick(logits[None]).cpu() for logits in alone])
        length = self.cache.get_seq_length()
        kept = [self.shared(row, tokens) for row, tokens in zip(rows, sequences, strict=True)]
        logits: dict[int, Tensor] = {}
        cached = []
        for index, (row, keep) in enumerate(zip(rows, kept, strict=True)):
            if keep == 0 or keep < self.image_ends[row]:
                logits[index] = pick(self._full_logits(row, sequences[index])[None]).cpu()[0]
            else:
                cached.append(index)
        for start in range(0, len(cached), self.max_rows):
            chunk = cached[start : start + self.max_rows]
            at = [rows[index] for index in chunk]
            mask = torch.zeros(len(chunk), length, dtype=torch.bool)
            for line, (index, row) in enumerate(zip(chunk, at, strict=True)):
                mask[line, self.padding[row] : self.padding[row] + kept[index]] = True
            position = torch.tensor([kept[index] for index in chunk]) + self.offsets[at]
            suffixes = [sequences[index][kept[index] :] for index in chunk]
            found = pick(suffix_logits(self.model, self.cache, mask, position, at, suffixes))
            logits.update(zip(chunk, found.cpu(), strict=True))
        return torch.stack([logits[index] for index in range(len(rows))])

    def shared(self, row: int, tokens: Tokens) -> int:
        """How many first tokens of a sequence the cache has for its row, leaving at least one to run."""
        if self.cache is None or not is_reusable(self.cache):
            return 0
        own = self.tokens[row]
        limit = min(len(own), len(tokens) - 1, self.cache.get_seq_length() - self.padding[row])
        return next((index for index in range(limit) if own[index] != tokens[index]), limit)

    @torch.no_grad()
    def _full_logits(self, row: int, tokens: Tokens) -> Tensor:
        device = input_device(self.model)
        inputs = dict(self.encode(row))
        prompt = inputs["input_ids"][0].tolist()
        for name, value in inputs.items():
            if name != "input_ids" and value.shape == inputs["input_ids"].shape:
                # Token types: a token has the type that it has in the prompt, and a new one is text.
                kinds = dict(zip(prompt, value[0].tolist(), strict=True))
                fresh = 1 if name == "attention_mask" else 0
                inputs[name] = torch.tensor([[kinds.get(token, fresh) for token in tokens]], dtype=value.dtype)
        inputs["input_ids"] = torch.tensor([tokens])
        # Pixels in the type of the weights, as in the first forward: some models don't cast them.
        kind = self.model.dtype
        inputs = {
            name: value.to(device, kind) if value.is_floating_point() else value.to(device)
            for name, value in inputs.items()
        }
        return self.model(**inputs, use_cache=False, logits_to_keep=1).logits[0, -1].float()


@torch.no_grad()
def read_prompts(
    model: PreTrainedModel,
    prompts: Sequence[Tokens],
    pad_token: int,
    max_rows: int = 64,
    pick: Callable[[Tensor], Tensor] | None = None,
) -> tuple[CachedPrompts, Tensor]:
    """Runs text-only prompts in one batch; `max_rows` is how many sequences may continue them in one forward.

    Returns:
        `tuple[CachedPrompts, Tensor]`: the prompts, ready to be continued, and the logits of the token after each, of
        shape `(prompts, vocabulary)`, float32, on the CPU; of these what `pick` leaves, as in `next_logits`.
    """
    device = input_device(model)
    longest = max(map(len, prompts))
    padding = [longest - len(prompt) for prompt in prompts]
    ids = torch.tensor([[pad_token] * pad + list(prompt) for pad, prompt in zip(padding, prompts, strict=True)])
    mask = torch.tensor([[0] * pad + [1] * (longest - pad) for pad in padding])
    inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp(min=0)}
    output = model(**{name: value.to(device) for name, value in inputs.items()}, use_cache=True, logits_to_keep=1)

    def encode(row: int) -> dict[str, Tensor]:  # there is no image to ask more about
        alone = torch.tensor([prompts[row]])
        return {"input_ids": alone, "attention_mask": torch.ones_like(alone)}

    tokens = [list(prompt) for prompt in prompts]
    offsets = torch.zeros(len(prompts), dtype=torch.long)
    lengths = [len(prompt) for prompt in prompts]
    cached = CachedPrompts(
        model, tokens, output.past_key_values, padding, offsets, [0] * len(prompts), encode, lengths, max_rows
    )
    return cached, (pick or whole_rows)(output.logits[:, -1].float()).cpu()


def score_labels(
    cached: CachedPrompts,
    rows: Sequence[int],
    contexts: Sequence[Tokens],
    trie: LabelTrie,
    first: Tensor | None = None,
) -> tuple[Tensor, list[int]]:
    """Label probabilities after given tokens; see [`LabelTrie.score`], whose values it returns.

    Args:
        cached (`CachedPrompts`): the prompts that the model has read.
        rows (`list[int]`): per context, its row.
        contexts (`list[list[int]]`): all token ids up to where the label begins.
        trie (`LabelTrie`): the labels.
        first (`Tensor`, *optional*): what is known already, logits of the first branch's tokens, of shape
            `(contexts, children)`; labels that part at their first token then need no forward at all.
    """
    paths = trie.paths if first is None else trie.paths[1:]
    known = [] if first is None else [first]
    if paths:
        sequences = [[*context, *path] for path in paths for context in contexts]
        choices = trie.tokens[len(known) :]
        wanted = sorted({token for tokens in choices for token in tokens})
        logits = cached.next_logits(list(rows) * len(paths), sequences, lambda logits: logits[:, wanted])
        for part, tokens in zip(logits.split(len(contexts)), choices, strict=True):
            known.append(part[:, [wanted.index(token) for token in tokens]])
    return trie.score(known)
