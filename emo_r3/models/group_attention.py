"""A group's prompt computed once: rows of a prompt and its completions, and the attention that keeps these apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.utils.rnn import pad_sequence
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel
from transformers.integrations.flash_attention import flash_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "sdpa_groups"
"""The attention's name among those of transformers."""

FLASH = "flash_attention_2"
"""A name of transformers' that serves packed rows too: it looks flash attention up by its name."""

IGNORED = -100
"""Label of a position that isn't scored."""


@dataclass(frozen=True)
class Sequences:
    """Packed rows as sequences of their own lengths, without padding: prompts, and completions that see theirs.

    Args:
        queries (`Tensor`): of shape `(tokens,)`, places of all tokens in all rows one after another.
        keys (`Tensor`): places of what each sequence sees, up to its last token: itself, and its prompt before it.
        query_starts, key_starts (`Tensor`): of shape `(sequences + 1,)`, where each begins in these.
        longest (`tuple[int, int]`): most queries and most keys of a sequence.
    """

    queries: Tensor
    keys: Tensor
    query_starts: Tensor
    key_starts: Tensor
    longest: tuple[int, int]


@dataclass(frozen=True)
class Groups:
    """Where prompts and completions lie in packed rows.

    Args:
        prompt_width (`int`): columns of the longest prompt.
        of_completion (`Tensor`): of shape `(completions,)`, the packed row of each.
        columns (`Tensor`): of shape `(completions, longest)`, places of its tokens in all rows one after another.
        back (`Tensor`): of shape `(rows * width,)`, for each token its place among the attention's outputs: those of
            prompts, then those of completions.
        mask (`Tensor`): of shape `(completions, 1, longest, prompt_width + longest)`, what a completion's token sees
            of its prompt and of its own completion.
        sequences ([`Sequences`]): the same for attention of variable length.
    """

    prompt_width: int
    of_completion: Tensor
    columns: Tensor
    back: Tensor
    mask: Tensor
    sequences: Sequences


@dataclass(frozen=True)
class PackedRows:
    """Packed rows, padded on the right.

    The last token of a prompt stands before each of its completions and not in the prompt: every token of a completion
    then has the one before it in its own place, and the language model's head needs no special case.

    Args:
        ids (`Tensor`): of shape `(rows, width)`.
        positions (`Tensor`): of shape `(rows, width)`, or `(3, rows, width)` for M-RoPE.
        labels (`Tensor`): of shape `(rows, width)`, the token that follows; -100 where it isn't scored.
        groups ([`Groups`]): where is what.
        scored (`Tensor`): of shape `(completions, longest)`, whether there is such a token.
    """

    ids: Tensor
    positions: Tensor
    labels: Tensor
    groups: Groups
    scored: Tensor

    def dense_mask(self) -> Tensor:
        """What [`attend`] does as one mask, of shape `(rows, 1, width, width)`: an oracle, quadratic in the width."""
        rows, width = self.ids.shape
        part = torch.zeros(rows * width, dtype=torch.long, device=self.ids.device)
        numbers = torch.arange(1, len(self.scored) + 1, device=self.ids.device)[:, None].expand_as(self.scored)
        part[self.groups.columns[self.scored]] = numbers[self.scored]
        part = part.view(rows, width)
        causal = torch.ones(width, width, dtype=torch.bool, device=self.ids.device).tril()
        seen = (part[:, :, None] == part[:, None, :]) | (part[:, None, :] == 0)
        return (seen & causal)[:, None]

    def per_completion(self, values: Tensor, width: int) -> Tensor:
        """Values of shape `(rows, width of a packed row)` as `(completions, width)`, 0 where there is no token."""
        chosen = values.reshape(-1)[self.groups.columns].masked_fill(~self.scored, 0)
        return torch.nn.functional.pad(chosen, (0, width - chosen.shape[1]))


def pack(
    prompts: Sequence[Tensor],
    positions: Sequence[Tensor],
    completions: Sequence[Tensor],
    of_completion: Sequence[int],
    pad_token: int,
) -> PackedRows:
    """Packs completions behind their prompts.

    Args:
        prompts (`list[Tensor]`): token ids of each, of shape `(length,)`; at least two.
        positions (`list[Tensor]`): of each prompt's tokens, of shape `(1 or 3, length)`.
        completions (`list[Tensor]`): token ids of each, of shape `(length,)`; one may be empty.
        of_completion (`list[int]`): the prompt of each; completions of a prompt need not follow each other.
        pad_token (`int`): id that fills what is left of a row.
    """
    device = prompts[0].device
    lengths = [len(completion) for completion in completions]
    longest = max(1, *lengths)
    ids, places, labels, starts = [], [], [], [0] * len(completions)
    for row, (prompt, own) in enumerate(zip(prompts, positions, strict=True)):
        parts, steps, follow = [prompt[:-1]], [own[:, :-1]], [prompt.new_full((len(prompt) - 1,), IGNORED)]
        column = len(prompt) - 1
        for number, completion in enumerate(completions):
            if of_completion[number] != row or not len(completion):
                continue
            starts[number] = column
            column += len(completion)
            parts += [prompt[-1:], completion[:-1]]
            steps.append(own[:, -1:] + torch.arange(len(completion), device=device))
            follow.append(completion)
        ids.append(torch.cat(parts))
        places.append(torch.cat(steps, 1).T)
        labels.append(torch.cat(follow))
    packed = pad_sequence(ids, batch_first=True, padding_value=pad_token)
    width = packed.shape[1]
    where = torch.tensor(of_completion, device=device)
    first = where * width + torch.tensor(starts, device=device)
    step = torch.arange(longest, device=device)
    scored = step < torch.tensor(lengths, device=device)[:, None]
    found = torch.where(scored, first[:, None] + step, 0)
    stacked = pad_sequence(places, batch_first=True).permute(2, 0, 1)
    return PackedRows(
        ids=packed,
        positions=stacked[0] if len(stacked) == 1 else stacked,
        labels=pad_sequence(labels, batch_first=True, padding_value=IGNORED),
        groups=_groups(
            [len(prompt) - 1 for prompt in prompts],
            where,
            found,
            scored,
            width,
            _sequences([len(prompt) - 1 for prompt in prompts], lengths, of_completion, width, device),
        ),
        scored=scored,
    )


def _sequences(
    prompts: Sequence[int], completions: Sequence[int], of_completion: Sequence[int], width: int, device: torch.device
) -> Sequences:
    """The sequences of packed rows, from the lengths of their parts."""
    queries, keys, sizes = [], [], [(0, 0)]
    for row, length in enumerate(prompts):
        start = column = row * width
        prompt = torch.arange(start, start + length, device=device)
        own = [size for size, of_row in zip(completions, of_completion, strict=True) if of_row == row and size]
        for size, before in [(length, prompt[:0]), *((size, prompt) for size in own)]:
            queries.append(torch.arange(column, column + size, device=device))
            keys += [before, queries[-1]]
            sizes.append((size, len(before) + size))
            column += size
    asked, seen = torch.tensor(sizes, dtype=torch.int32).T
    return Sequences(
        torch.cat(queries),
        torch.cat(keys),
        asked.cumsum(0, dtype=torch.int32).to(device),
        seen.cumsum(0, dtype=torch.int32).to(device),
        (int(asked.max()), int(seen.max())),
    )


def _groups(
    lengths: Sequence[int], of_completion: Tensor, found: Tensor, scored: Tensor, width: int, sequences: Sequences
) -> Groups:
    """Where is what, from the prompts' lengths in the rows, and the places of completions' tokens."""
    device, longest, rows = found.device, found.shape[1], len(lengths)
    prompt_width = max(lengths)
    columns = torch.arange(width, device=device).clamp(max=prompt_width - 1)
    back = (torch.arange(rows, device=device)[:, None] * prompt_width + columns).flatten()
    outputs = rows * prompt_width + torch.arange(scored.numel(), device=device).view_as(scored)
    back[found[scored]] = outputs[scored]
    ends = torch.tensor(lengths, device=device)[of_completion]
    sees_prompt = torch.arange(prompt_width, device=device) < ends[:, None]
    causal = torch.ones(longest, longest, dtype=torch.bool, device=device).tril()
    mask = torch.cat([sees_prompt[:, None].expand(-1, longest, -1), causal.expand(len(found), -1, -1)], -1)
    return Groups(prompt_width, of_completion, found, back, mask[:, None], sequences)


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    groups: Groups | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """
    transformers' scaled dot-product attention; on packed rows in two calls. A prompt attends to itself, a completion
    to its prompt and itself. On a GPU that has flash attention, in one call of variable-length attention, which
    computes no padding.

    Where is what comes as an argument of each forward: with gradient checkpointing, a layer is computed again later,
    when a variable set around the forward would be gone.

    Args:
        module (`Module`): the attention layer.
        query, key, value (`Tensor`): of shape `(rows, heads, width, head size)`.
        attention_mask (`Tensor`, *optional*): for rows that aren't packed.
        groups ([`Groups`], *optional*): of packed rows.

    Returns:
        `tuple[Tensor, None]`: of shape `(rows, width, heads, head size)`.
    """
    if groups is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return _attend_in_groups(module, query, key, value, groups, **kwargs), None


def attend_flash(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    groups: Groups | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """As [`attend`], but rows that aren't packed are computed by transformers' flash attention."""
    if groups is None:
        return flash_attention_forward(module, query, key, value, attention_mask, **kwargs)
    return _attend_in_groups(module, query, key, value, groups, **kwargs), None


def _attend_in_groups(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    groups: Groups,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> Tensor:
    kind = _varlen_kind(query, value)
    if kind is not None and not dropout:
        return _attend_to_sequences(query.to(kind), key.to(kind), value.to(kind), groups.sequences, scaling)
    kwargs |= {"dropout": dropout, "scaling": scaling}
    rows, heads, width, _ = query.shape
    end = groups.prompt_width
    of_prompts, _ = sdpa_attention_forward(
        module, query[:, :, :end], key[:, :, :end], value[:, :, :end], None, **kwargs
    )

    def own(states: Tensor) -> Tensor:
        tokens = _tokens(states)
        return (
            tokens.index_select(0, groups.columns.flatten())
            .view(*groups.columns.shape, *tokens.shape[1:])
            .transpose(1, 2)
        )

    def seen(states: Tensor) -> Tensor:
        return torch.cat([states[:, :, :end].index_select(0, groups.of_completion), own(states)], 2)

    of_completions, _ = sdpa_attention_forward(module, own(query), seen(key), seen(value), groups.mask, **kwargs)
    outputs = torch.cat([of_prompts.flatten(0, 1), of_completions.flatten(0, 1)])
    return outputs.index_select(0, groups.back).view(rows, width, heads, -1)


def _tokens(states: Tensor) -> Tensor:
    """Heads' states of rows as those of their tokens, of shape `(rows * width, heads, head size)`."""
    return states.transpose(1, 2).flatten(0, 1)


def _varlen_kind(query: Tensor, value: Tensor) -> torch.dtype | None:
    """The type in which variable-length attention can compute these states; `None` if it can't."""
    if not query.is_cuda or not torch.backends.cuda.is_flash_attention_available():
        return None
    kind = torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else query.dtype
    size = query.shape[-1]
    fits = kind in (torch.bfloat16, torch.float16) and size == value.shape[-1] and size % 8 == 0 and size <= 256
    return kind if fits and torch.cuda.get_device_capability(query.device) >= (8, 0) else None


def _attend_to_sequences(
    query: Tensor, key: Tensor, value: Tensor, sequences: Sequences, scaling: float | None
) -> Tensor:
    """Outputs for all tokens, 0 for padding. Of a sequence's keys, the last is its last query: causal from there."""
    rows, heads, width, _ = query.shape
    found: Any = varlen_attn(
        _tokens(query).index_select(0, sequences.queries),
        _tokens(key).index_select(0, sequences.keys),
        _tokens(value).index_select(0, sequences.keys),
        sequences.query_starts,
        sequences.key_starts,
        *sequences.longest,
        scale=scaling,
        window_size=(-1, 0),
        enable_gqa=key.shape[1] != heads,
    )
    outputs = found.new_zeros(rows * width, *found.shape[1:])
    return outputs.index_copy(0, sequences.queries, found).view(rows, width, heads, -1)


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)


def why_not(config: PreTrainedConfig) -> str | None:
    """Why completions of this model can't share their prompt; `None` if they can.

    A text model must attend to what stands before a token, and to nothing else: no state that goes from token to
    token, no image seen in both directions, no attention across to an image. See [`attention_window`] too.
    """
    text: Any = config.get_text_config()
    kinds = sorted(set(getattr(text, "layer_types", None) or ()) - {"full_attention", "sliding_attention"})
    if kinds:
        return f"it has layers of the kind {', '.join(kinds)}"
    if getattr(text, "cross_attention_layers", None):
        return "it attends across to the image"
    if getattr(text, "attn_logit_softcapping", None):
        return "its attention is capped (softcap)"
    if getattr(text, "use_bidirectional_attention", False) or config.model_type in ("gemma3", "paligemma"):
        return "its image tokens see each other in both directions"
    if text._attn_implementation not in (None, "sdpa", NAME, FLASH):
        return f"its attention is {text._attn_implementation!r}, not 'sdpa' or {FLASH!r}"
    return None


def attention_window(config: PreTrainedConfig) -> int | None:
    """How many tokens back a token sees; `None` for all. Longer rows can't be packed: [`attend`] has no window."""
    text: Any = config.get_text_config()
    return getattr(text, "sliding_window", None) if getattr(text, "use_sliding_window", True) else None


def use_group_attention(model: PreTrainedModel) -> None:
    """Gives the text model [`attend`], which without packed rows does what it did before."""
    if model.config.get_text_config()._attn_implementation == FLASH:
        AttentionInterface.register(FLASH, attend_flash)
        return
    text = next(
        (name for name in model.config.sub_configs if getattr(model.config, name) is model.config.get_text_config()),
        "",
    )
    model.set_attn_implementation({text: NAME})


def prompt_positions(model: torch.nn.Module, prompts: Mapping[str, Tensor]) -> Tensor:
    """Positions of prompts' tokens, of shape `(1 or 3, prompts, width)`: M-RoPE gives an image's tokens a grid.

    Args:
        model (`Module`): the model, wrapped or not.
        prompts (`dict[str, Tensor]`): `input_ids`, `attention_mask` of 0 and 1, and what the model takes of images.
    """
    mask = prompts["attention_mask"]
    holder: Any = next((module for module in model.modules() if hasattr(module, "get_rope_index")), None)
    if holder is None:
        return (mask.cumsum(-1) - 1).clamp(min=0)[None]
    names = ("input_ids", "mm_token_type_ids", "image_grid_thw", "attention_mask")
    positions, _ = holder.get_rope_index(**{name: prompts[name] for name in names if name in prompts})
    return positions
