"""Answers in a form, in few forwards: tokens that the form leaves no choice about go with the one before them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import DynamicCache, PreTrainedModel
from transformers.generation.streamers import BaseStreamer

from .decoding import ConstrainedDecoding, Sampling
from .prefix_cache import Tokens, input_device, is_reusable, position_offsets, repeat_prompts, run_prompts
from .roomy_cache import with_room

# A forward takes as long for being run at all (weights are read, kernels are started) as for so many tokens.
_FIXED_COST = {"cpu": 10}
_FIXED_COST_ELSEWHERE = 256


def can_write(model: PreTrainedModel) -> bool:
    """Whether [`write_answers`] can use a model, going by its configuration; else its answers need `generate`."""
    try:
        return is_reusable(_new_cache(model))
    except Exception:  # a configuration that no cache can be made of can raise anything: `generate` says what is wrong
        return False


def _new_cache(model: PreTrainedModel) -> DynamicCache:
    """As `generate` makes it."""
    return DynamicCache(config=model.config.get_text_config(decoder=True))


@torch.no_grad()
def write_answers(
    model: PreTrainedModel,
    inputs: Mapping[str, Tensor],
    prompts: Sequence[int],
    form: ConstrainedDecoding,
    sampling: Sampling | None = None,
    streamer: BaseStreamer | None = None,
    stopped: Callable[[], bool] | None = None,
) -> tuple[list[Tokens], Any]:
    """
    Writes what `generate` would write with these processors, up to the opened box; each prompt is read once.

    Tokens that the form leaves no choice about go through the model with the one before them (jump-forward decoding).
    Where it leaves the choice of a separator, they go with a guess, which stays if the model chooses the same. An
    answer that is done leaves the batch.

    Args:
        model (`PreTrainedModel`): the model; see [`can_write`].
        inputs (`dict[str, Tensor]`): the processor's tensors of the prompts, padded on the left, on the device.
        prompts (`list[int]`): per answer, the number of its prompt.
        form ([`~emo_r3.models.decoding.ConstrainedDecoding`]): the form, not used yet.
        sampling ([`~emo_r3.models.decoding.Sampling`], *optional*): draws, for forced tokens too, so that they are
            those of `generate`; greedy unless given.
        streamer (`BaseStreamer`, *optional*): gets the prompt, then token by token; for a single answer.
        stopped (`Callable[[], bool]`, *optional*): asked before each forward whether to leave it at that.

    Returns:
        `tuple[list[list[int]], Cache]`: the tokens of each answer, without the end token; and the cache of what was
        read, a row for each answer, its tokens right behind its prompt.
    """
    started = [form.forced(row) for row in range(len(prompts))]
    start, cache = started[0], _new_cache(model)  # all answers start alike
    output = run_prompts(model, _longer(inputs, start), cache)
    place = torch.tensor(prompts, device=inputs["input_ids"].device)
    repeat_prompts(model, cache, place)
    mask = inputs["attention_mask"][place].cpu()
    positions = position_offsets(model, len(prompts)) + mask.sum(-1)
    if streamer is not None:
        streamer.put(inputs["input_ids"].cpu())
    writing = _Writing(model, cache, mask, positions.tolist(), form, sampling, streamer)
    writing.begin(start, output.logits[place.to(output.logits.device)])
    while writing.unfinished and not (stopped and stopped()):
        writing.step()
    if streamer is not None:
        streamer.end()
    return [answer.tokens for answer in writing.answers], writing.ordered_cache()


def _longer(inputs: Mapping[str, Tensor], tokens: Tokens) -> dict[str, Tensor]:
    """Prompts with tokens behind them."""
    ids = inputs["input_ids"]
    values: dict[str, Any] = {"input_ids": ids.new_tensor(tokens), "attention_mask": 1}
    longer = dict(inputs)
    for name, value in inputs.items():
        if value.shape == ids.shape:
            more = value.new_zeros(len(ids), len(tokens))  # 0 is text, where tokens have types
            more[:] = values.get(name, 0)
            longer[name] = torch.cat([value, more], 1)
    return longer


def _width(wanted: Sequence[int], device: torch.device) -> int:
    """How many tokens of each row to run at once, where rows have so many: the most for the time that it takes."""
    fixed = _FIXED_COST.get(device.type, _FIXED_COST_ELSEWHERE)
    return max(
        range(1, max(wanted) + 1),
        key=lambda width: sum(min(width, count) for count in wanted) / (fixed + width * len(wanted)),
    )


@dataclass
class _Answer:
    row: int
    position: int
    """Of its first token."""
    tokens: Tokens = field(default_factory=list)
    columns: list[int] = field(default_factory=list)
    """Where in the cache its tokens are; further ones the model has not read."""

    @property
    def unread(self) -> Tokens:
        return self.tokens[len(self.columns) :]


class _Writing:
    """Answers in the making. Those that are unfinished are the first rows of the cache."""

    def __init__(
        self,
        model: PreTrainedModel,
        cache: Any,
        mask: Tensor,
        positions: Sequence[int],
        form: ConstrainedDecoding,
        sampling: Sampling | None,
        streamer: BaseStreamer | None,
    ) -> None:
        self.model, self.cache, self.mask, self.width = model, cache, mask, mask.shape[1]
        self.form, self.sampling, self.streamer = form, sampling, streamer
        self.answers = [_Answer(row, position) for row, position in enumerate(positions)]
        self.rows = list(self.answers)
        """The answers in the order of the cache."""
        self.unfinished = len(self.rows)
        with_room(cache)

    def begin(self, start: Tokens, logits: Tensor) -> None:
        """Chooses the first tokens after a start that all prompts were read with."""
        for answer in self.answers:
            self._write(answer, start)
            if self.sampling is not None:
                self.sampling.skip(answer.row, len(start), logits[0, 0])
            answer.columns += range(self.width, self.width + len(start))
        self.mask = pad(self.mask, (0, len(start)), value=1)
        self._settle(logits, [[]] * len(self.rows), dict.fromkeys(range(len(self.rows)), 0))

    def step(self) -> None:
        """One forward of the unfinished answers, and the choices after it."""
        device, rows = input_device(self.model), self.rows[: self.unfinished]
        wanted = [answer.unread + self.form.draft(answer.row) for answer in rows]
        width = _width([len(tokens) for tokens in wanted], device)
        given = [tokens[:width] for tokens in wanted]
        pads = [width - len(tokens) for tokens in given]
        # Padded on the left: the last column has a token of every row.
        block = [tokens[:1] * before + tokens for before, tokens in zip(pads, given, strict=True)]
        places = torch.arange(width) - torch.tensor(pads)[:, None]
        starts = torch.tensor([answer.position + len(answer.columns) for answer in rows])
        logits = self.model(
            input_ids=torch.tensor(block).to(device),
            attention_mask=torch.cat([self.mask, (places >= 0).to(self.mask.dtype)], 1).to(device),
            position_ids=(starts[:, None] + places.clamp(min=0)).to(device),
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=width,
        ).logits
        ends = {}
        for line, (answer, before) in enumerate(zip(rows, pads, strict=True)):
            known = min(width - before, len(answer.unread))
            first = self.mask.shape[1] + before
            answer.columns += range(first, first + known)
            if not answer.unread:
                ends[line] = before + known - 1
        self._settle(logits, block, ends)

    def _settle(self, logits: Tensor, block: Sequence[Tokens], ends: dict[int, int]) -> None:
        """Chooses tokens after a forward, keeps the guesses that they confirm, and lets finished answers go.

        Args:
            logits (`Tensor`): of shape `(unfinished, width, vocabulary)`.
            block (`list[list[int]]`): the tokens of the forward, of shape `(unfinished, width)`.
            ends (`dict[int, int]`): for the rows of which everything written has been read, the column of its last
                token. What comes after it in the block is a guess.
        """
        length, width = self.mask.shape[1], len(block[0])
        while ends:
            asked, ends = ends, {}
            runs = self._choose(list(asked), logits[list(asked), list(asked.values())].float())
            for (line, column), run in zip(asked.items(), runs, strict=True):
                answer = self.rows[line]
                self._write(answer, run)
                while answer.unread and column + 1 < width and block[line][column + 1] == answer.unread[0]:
                    column += 1
                    answer.columns.append(length + column)
                if run and not answer.unread:
                    ends[line] = column
        # A wrong guess stays in the cache, and is not to be seen any more.
        seen = [[0] * width for _ in block]
        for flags, answer in zip(seen, self.rows[: self.unfinished], strict=True):
            for column in answer.columns[-width:]:
                if column >= length:
                    flags[column - length] = 1
        self.mask = torch.cat([self.mask, torch.tensor(seen, dtype=self.mask.dtype)], 1)
        for line in reversed(range(self.unfinished)):
            if self.form.tries[self.rows[line].row] is not None:
                self._leave(line)

    def _choose(self, lines: Sequence[int], logits: Tensor) -> list[Tokens]:
        """The next tokens of some rows: the model's choice and what is forced after it; none at the opened box."""
        rows = [self.rows[line].row for line in lines]
        scores = self.form.allow(rows, logits)
        if self.sampling is not None:
            scores = self.sampling.noisy(rows, scores)
        runs = []
        for row, token in zip(rows, scores.argmax(-1).tolist(), strict=True):
            runs.append([] if self.form.tries[row] is not None else self.form.take(row, token))
            if self.sampling is not None:
                self.sampling.skip(row, len(runs[-1]) - 1, logits[0])
        return runs

    def _write(self, answer: _Answer, tokens: Tokens) -> None:
        answer.tokens += tokens
        if self.streamer is not None:
            for token in tokens or [self.form.end_token]:
                self.streamer.put(torch.tensor([token]))

    def _leave(self, line: int) -> None:
        """Puts a finished answer behind the unfinished ones."""
        self.unfinished -= 1
        other = self.unfinished
        self.mask[line] = self.mask[other]
        self.mask = self.mask[:other]
        self.rows[line], self.rows[other] = self.rows[other], self.rows[line]
        for layer in self.cache.layers:
            layer.swap(line, other)

    def ordered_cache(self) -> Any:
        """The cache with a row for each answer in their order, its tokens right behind its prompt."""
        rows = torch.tensor([self.rows.index(answer) for answer in self.answers])
        longest = max(len(answer.columns) for answer in self.answers)
        columns = torch.tensor(
            [[*range(self.width), *answer.columns, *[0] * (longest - len(answer.columns))] for answer in self.answers]
        )
        self.cache.layers = [layer.gathered(rows, columns) for layer in self.cache.layers]
        return self.cache
