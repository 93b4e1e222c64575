"""Decoding: answers forced into their form, special tokens kept out, reproducible sampling, an end at the box."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria

from ..errors import CheckpointError, EmoR3Error
from ..forms import FORMS, Form
from ..parsing import BOX, EMOTIONS, EMOTIONS_END, REGION, REGION_END
from .prefix_cache import LabelTrie, Tokens
from .values import Emotions, Numbers, Values, value_of

# The model chooses among these; which one it has learned doesn't matter to the form.
_SEPARATORS = ("", " ", "\n", "\n\n")
# After one of these, tokens come out as they do in the middle of a text; one on which nothing merges is used.
_ANCHORS = ("\n", ".", "a", "0", " ")
# How tokenizers with a fallback to bytes name them.
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
CLOSED_BOX = re.compile(r"\\boxed\{[^{}]*\}")


def encode_after(tokenizer: PreTrainedTokenizerBase, text: str) -> Tokens:
    """Token ids of a text in the middle of another, without the marks that a tokenizer puts at the start."""
    for anchor in _ANCHORS:
        head = tokenizer.encode(anchor, add_special_tokens=False)
        ids = tokenizer.encode(anchor + text, add_special_tokens=False)
        if ids[: len(head)] == head:
            return ids[len(head) :]
    return tokenizer.encode(text, add_special_tokens=False)


def read(tokenizer: PreTrainedTokenizerBase, tokens: Tokens) -> str:
    """The text of tokens, exactly."""
    return cast(str, tokenizer.decode(tokens, clean_up_tokenization_spaces=False))


def box_sequences(tokenizer: PreTrainedTokenizerBase, before: str, labels: Sequence[str]) -> list[Tokens]:
    """The labels as they are written in a box, its brace included; `before` is what is left of the opening."""
    return [encode_after(tokenizer, f"{before}{label}}}") for label in labels]


def find_box(tokenizer: PreTrainedTokenizerBase, ids: Tokens) -> tuple[int, str]:
    """Where the last box opens in a completion.

    Returns:
        `tuple[int, str]`: how many tokens come before the one that completes the opening, and the text of the opening
        that those tokens don't hold yet. Without any box: all tokens, and a whole opening on a new line.
    """

    def text_of(count: int) -> str:
        return read(tokenizer, ids[:count])

    text = text_of(len(ids))
    start = text.rfind(BOX)
    if start < 0:
        return len(ids), "\n" + BOX
    stop = start + len(BOX)
    count = bisect_left(range(len(ids) + 1), stop, key=lambda size: len(text_of(size))) - 1
    before = text_of(count)
    if text.startswith(before):
        return count, text[len(before) : stop]
    # A character cut in two reads differently: go by how much of the opening is there.
    held = next(size for size in range(len(BOX), -1, -1) if before.endswith(BOX[:size]))
    return count, BOX[held:]


def special_texts(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Texts that a tokenizer takes for special tokens, longest first."""
    added = {entry.content for entry in tokenizer.added_tokens_decoder.values() if entry.special}
    return sorted({*added, *tokenizer.all_special_tokens}, key=len, reverse=True)


class Vocabulary:
    """What each token of a model reads like, and which are never to be written.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): the tokenizer.
        size (`int`): number of logits, which may be larger than the tokenizer's vocabulary.
        unwanted (`list[int]`, *optional*): ids to keep out besides special tokens, such as a processor's image token.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, size: int, unwanted: Sequence[int] = ()) -> None:
        self.tokenizer = tokenizer
        known = min(size, len(tokenizer))
        texts = tokenizer.batch_decode([[token] for token in range(known)], clean_up_tokenization_spaces=False)
        self.texts: list[str] = [*texts, *[""] * (size - known)]
        added = [token for token, entry in tokenizer.added_tokens_decoder.items() if entry.special]
        self.special = special_texts(tokenizer)
        special = {*added, *tokenizer.all_special_ids, *unwanted}
        self.suppressed = torch.zeros(size, dtype=torch.bool)
        self.suppressed[[token for token in special if token < size]] = True
        self.suppressed[known:] = True
        self.closes_brace = torch.tensor(["}" in text for text in self.texts])
        # A letter that is a byte of its own is lost when a byte of no character follows it.
        bytes_alone = [bool(_BYTE.fullmatch(piece)) for piece in tokenizer.convert_ids_to_tokens(list(range(known)))]
        words = [any(map(str.isalnum, text)) for text in self.texts]
        self.wordy = torch.tensor(words) & ~torch.tensor([*bytes_alone, *[False] * (size - known)])


@dataclass
class _Node:
    """A place in what is forced: the tokens that may follow, or what comes next."""

    children: dict[int, _Node] = field(default_factory=dict)
    toward: dict[str, int] = field(default_factory=dict)
    """The token that leads on to each separator."""
    field: int | None = None
    labels: LabelTrie | None = None
    separator: str | None = None

    def add(
        self,
        tokens: Sequence[int],
        separator: str,
        *,
        field: int | None = None,
        labels: LabelTrie | None = None,
    ) -> None:
        node = self
        for token in tokens:
            node.toward[separator] = token
            node = node.children.setdefault(token, _Node())
        node.field, node.labels, node.separator = field, labels, separator

    @property
    def depth(self) -> int:
        if self.field is not None or self.labels is not None:
            return 0
        return 1 + max(child.depth for child in self.children.values())


def vocabulary_size(model: PreTrainedModel) -> int:
    """Number of logits at each place."""
    head = model.get_output_embeddings()
    if head is None:
        return int(model.config.get_text_config().vocab_size)
    return int(getattr(head.weight, "ds_shape", head.weight.shape)[0])  # ZeRO-3 keeps the weights elsewhere


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str = "this model") -> list[int]:
    """Token ids at which `generate` stops.

    Args:
        model (`PreTrainedModel`): its generation configuration names them, else the tokenizer does.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer.
        name (`str`, *optional*): what the error calls the model.

    Raises:
        CheckpointError: there is none, or one is no token of the vocabulary.
    """
    named: Any = model.generation_config.eos_token_id if model.generation_config else None
    ends = named if isinstance(named, list) else [named]
    found = list(dict.fromkeys(tokenizer.eos_token_id if end is None else end for end in ends))
    if found in ([], [None]):
        raise CheckpointError(f"{name} names no token that ends an answer (eos_token_id)")
    for end in found:
        if type(end) is not int or not 0 <= end < vocabulary_size(model):
            raise CheckpointError(
                f"{name} names {end!r} as a token that ends an answer (eos_token_id); its vocabulary has "
                f"{vocabulary_size(model)} tokens: repair generation_config.json"
            )
    return found


_FREE: dict[str, tuple[Callable[[str], bool], int | None]] = {
    "text": (lambda text: not set(text) & set("<\\{}"), None),
    "number": (lambda text: set(text) <= set("0123456789."), 6),
    "emotion": (lambda text: all(sign.isalpha() or sign in " -'" for sign in text), 8),
}
"""Kinds of free text: which texts a token of it may have, and how many tokens it has at most. A text's are a share of
what the answer may have."""


@dataclass(frozen=True)
class _Field:
    """Free text in an answer.

    Args:
        section (`str`): tag of the section in which it stands.
        kind (`str`): a key of `_FREE`.
        opening (`str`): what is forced right before it, behind the separator.
        closing (`str`): what ends it.
        separators (`tuple[str, ...]`): what may stand between its closing and what comes next.
    """

    section: str
    kind: str
    opening: str
    closing: str
    separators: tuple[str, ...] = ("",)


def _fields(form: Form) -> list[_Field]:
    """All free texts of a form in their order: of each section the text, then what else it holds."""
    fields: list[_Field] = []
    for section in form.sections:
        kinds = ["text"]
        closings = []
        if section.region:
            kinds += ["number"] * 4
            closings += [REGION, ", ", ", ", ", ", REGION_END]
        if section.emotions:
            kinds += ["emotion"] * section.emotions
            closings = [*closings[:-1], *([REGION_END + EMOTIONS] if section.region else [EMOTIONS])]
            closings += [","] * (section.emotions - 1) + [EMOTIONS_END]
        closings = [*closings[:-1], f"{closings[-1] if closings else ''}</{section.tag}>"]
        for place, (kind, closing) in enumerate(zip(kinds, closings, strict=True)):
            opening = f"<{section.tag}>" if place == 0 else ""
            last = place + 1 == len(kinds)
            fields.append(_Field(section.tag, kind, opening, closing, _SEPARATORS if last else ("",)))
    return fields


class AnswerForm:
    """The form of an answer over one label list, as tokens: literal text that is forced, free text in between.

    Free text holds no `<`, backslash or brace, so it can't imitate a tag or a box; the numbers of a region are in
    their order, and the emotions of a list differ. A token that begins what ends a free text ends it. Built once per
    label list and used for any number of batches.

    Args:
        vocabulary (`Vocabulary`): the model's.
        method (`str`): one of `METHODS`.
        labels (`list[str]`): the labels to choose from.
    """

    def __init__(self, vocabulary: Vocabulary, method: str, labels: Sequence[str]) -> None:
        self.tokenizer, self.labels = vocabulary.tokenizer, tuple(labels)
        self.fields = _fields(FORMS[method])
        self.start = self._forced(0, "", ("",))
        self.closings = [
            self._forced(index + 1, field.closing, field.separators) for index, field in enumerate(self.fields)
        ]
        kinds = {field.kind for field in self.fields}
        plain = {kind: self._tokens(vocabulary, _FREE[kind][0]) for kind in kinds}
        self.values: dict[str, Values] = {}
        if "number" in kinds:
            self.values["number"] = Numbers(self.tokenizer, _places(plain["number"]))
        if "emotion" in kinds:
            texts = {token: vocabulary.texts[token] for token in _places(plain["emotion"])}
            self.values["emotion"] = Emotions(self.tokenizer, texts)
        self.closers: list[dict[int, _Node]] = [self._closers(index, vocabulary) for index in range(len(self.fields))]
        # Rows: nothing free (forced text), then for each field its first token and its further ones.
        rows = [torch.ones_like(vocabulary.wordy)]
        for place, closers in zip(self.fields, self.closers, strict=True):
            further = ~plain[place.kind]
            further[list(closers)] = False
            rows += [~(plain[place.kind] & vocabulary.wordy), further]
        self.banned = torch.stack(rows)
        # What must still fit after the free text of a field: its closing and all that follows, and the end.
        self.reserved = [0] * (len(self.fields) + 1)
        for index in reversed(range(len(self.fields))):
            most = _FREE[self.fields[index + 1].kind][1] if index + 1 < len(self.fields) else None
            self.reserved[index] = self.reserved[index + 1] + self.closings[index].depth + (most or 1)
        self.min_new_tokens = self.start.depth + self.reserved[0] + 1

    def most_tokens(self, index: int, left: int) -> int:
        """How many tokens the free text of a field may have, where `left` are left for all that is to come."""
        _, most = _FREE[self.fields[index].kind]
        if most is not None:
            return most
        texts = sum(_FREE[field.kind][1] is None for field in self.fields[index:])
        return max(1, (left - self.reserved[index] - 1) // texts)

    @staticmethod
    def _tokens(vocabulary: Vocabulary, free: Callable[[str], bool]) -> Tensor:
        return torch.tensor([free(text) for text in vocabulary.texts]) & ~vocabulary.suppressed

    def _forced(self, index: int, before: str, separators: Sequence[str]) -> _Node:
        """The trie of `before`, a separator, and the opening of field `index` or of the box."""
        root = _Node()
        for separator in separators:
            if index < len(self.fields):
                text = f"{before}{separator}{self.fields[index].opening}"
                root.add(encode_after(self.tokenizer, text) if text else [], separator, field=index)
                continue
            # The opening goes up to where the labels part, since a brace may be one token with what follows it.
            sequences = box_sequences(self.tokenizer, before + separator + BOX, self.labels)
            shared = next(at for at, column in enumerate(zip(*sequences, strict=False)) if len(set(column)) > 1)
            labels = LabelTrie([sequence[shared:] for sequence in sequences])
            root.add(sequences[0][:shared], separator, labels=labels)
        return root

    def _closers(self, index: int, vocabulary: Vocabulary) -> dict[int, _Node]:
        """Tokens that begin what ends a field, each with what is forced after it."""
        field = self.fields[index]
        is_free, _ = _FREE[field.kind]
        rest: dict[str, _Node] = {}
        closers = {}
        for token, text in enumerate(vocabulary.texts):
            free, found, _ = text.partition(field.closing[0])
            tail = text[len(free) :]
            if found and field.closing.startswith(tail) and is_free(free) and not vocabulary.suppressed[token]:
                if tail not in rest:
                    rest[tail] = self._forced(index + 1, field.closing[len(tail) :], field.separators)
                closers[token] = rest[tail]
        return closers


def _places(mask: Tensor) -> Tokens:
    return mask.nonzero().flatten().tolist()


@dataclass
class _Row:
    node: _Node | None
    left: int
    tokens: Tokens = field(default_factory=list)
    """Of the free text that is being written."""
    values: list[str] = field(default_factory=list)
    """Of the same kind, right before it."""
    field: int = -1
    limit: int = 0
    separator: str = "\n"


class ConstrainedDecoding(LogitsProcessor):
    """Makes every row of a batch write an answer of the form, up to the opened box.

    There it notes in `choices` what the model thinks of the labels' first tokens, and ends the row: the label is
    chosen from the whole distribution, not token by token. One object serves one `generate` call; it goes first.

    Args:
        form (`AnswerForm`): the form.
        batch_size (`int`): number of rows.
        max_new_tokens (`int`): budget of a row; free sections share what the forced text leaves.
        end_token (`int`): token that ends a row.

    Raises:
        EmoR3Error: the budget is too small for the form.
    """

    def __init__(
        self, form: AnswerForm, batch_size: int, max_new_tokens: int, end_token: int, device: torch.device
    ) -> None:
        if max_new_tokens < form.min_new_tokens:
            raise EmoR3Error(
                f"max_new_tokens={max_new_tokens} is too small for this form: {form.min_new_tokens} or more"
            )
        self.form, self.end_token = form, end_token
        self.banned = form.banned.to(device)
        self.rows = [_Row(form.start, max_new_tokens) for _ in range(batch_size)]
        self.choices: list[Tensor | None] = [None] * batch_size
        """Per row, logits of the first branch of its label trie."""
        self.tries: list[LabelTrie | None] = [None] * batch_size
        self.cut: list[list[str]] = [[] for _ in range(batch_size)]
        """Per row, the sections that were ended by the budget."""
        self.started = False

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.started:
            for index, token in enumerate(input_ids[:, -1].tolist()):
                if self.tries[index] is None:
                    self._advance(index, token)
        self.started = True
        return self.allow(range(len(self.rows)), scores)

    def allow(self, rows: Sequence[int], scores: Tensor) -> Tensor:
        """Logits of the next token of some rows, of shape `(rows, vocabulary)`, without what may not come there."""
        kinds: list[int] = []
        lines: list[int] = []
        tokens: list[int] = []
        for line, index in enumerate(rows):
            row = self.rows[index]
            if row.node is None:
                kinds.append(2 * row.field + (2 if row.tokens else 1))
                continue
            kinds.append(0)
            allowed: Sequence[int] = list(row.node.children)
            if (trie := row.node.labels) is not None:
                if self.tries[index] is None:
                    self.tries[index], self.choices[index] = trie, scores[line, trie.tokens[0]]
                allowed = [self.end_token]
            lines += [line] * len(allowed)
            tokens += allowed
        result = scores.masked_fill(self.banned[kinds], -torch.inf)
        if lines:
            result[lines, tokens] = scores[lines, tokens]
        for line, index in enumerate(rows):
            if unfit := self._unfit(self.rows[index]):
                result[line, unfit] = -torch.inf
        return result

    def _unfit(self, row: _Row) -> Tokens:
        """The tokens with which a number or an emotion would be none, or none that may stand there."""
        values = None if row.node is not None else self.form.values.get(self.form.fields[row.field].kind)
        if values is None:
            return []
        left = row.limit - len(row.tokens) - 1
        return values.unfit(row.tokens, row.values, left, self.form.closers[row.field])

    def take(self, index: int, token: int) -> Tokens:
        """Notes a row's next token.

        Returns:
            `list[int]`: the token, and those after it to which there is no other.
        """
        self._advance(index, token)
        return [token, *self.forced(index)]

    def forced(self, index: int) -> Tokens:
        """The tokens that a row has to go on with, which it then has."""
        run: Tokens = []
        while (node := self.rows[index].node) is not None and len(node.children) == 1:
            run += node.children
            self._advance(index, run[-1])
        return run

    def draft(self, index: int) -> Tokens:
        """A guess at a row's next tokens, where the form leaves a separator to choose: the one that it chose last."""
        row, run = self.rows[index], []
        node = row.node
        while node is not None and (token := node.toward.get(row.separator)) is not None:
            run.append(token)
            node = node.children[token]
        return run

    def _advance(self, index: int, token: int) -> None:
        row = self.rows[index]
        row.left -= 1
        if row.node is not None:
            self._go_to(row, row.node.children[token])
            return
        closers = self.form.closers[row.field] if row.tokens else {}
        row.tokens.append(token)
        if token in closers:
            self._go_to(row, closers[token])
        elif len(row.tokens) >= row.limit:
            section = self.form.fields[row.field].section
            if section not in self.cut[index]:
                self.cut[index].append(section)
            self._go_to(row, self.form.closings[row.field])

    def _go_to(self, row: _Row, node: _Node) -> None:
        row.node = node
        fields = self.form.fields
        if node.separator is not None and row.field >= 0 and len(fields[row.field].separators) > 1:
            row.separator = node.separator
        if node.field is not None:
            same = row.field >= 0 and fields[row.field].kind == fields[node.field].kind in self.form.values
            row.values = [*row.values, value_of(read(self.form.tokenizer, row.tokens))] if same else []
            row.field, row.tokens, row.node = node.field, [], None
            row.limit = self.form.most_tokens(row.field, row.left)


class FreeDecoding(LogitsProcessor):
    """Keeps image and other special tokens out of the text, the end tokens excepted."""

    def __init__(self, vocabulary: Vocabulary, end_tokens: Sequence[int], device: torch.device) -> None:
        self.suppressed = vocabulary.suppressed.clone()
        self.suppressed[list(end_tokens)] = False
        self.suppressed = self.suppressed.to(device)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.masked_fill(self.suppressed, -torch.inf)


class Sampling(LogitsProcessor):
    """Turns greedy decoding into sampling, with a generator for each row: Gumbel noise, whose maximum is a sample.

    The same seed gives a row the same text in any batch, and PyTorch's global generator is not touched.

    Args:
        temperature (`float`): of the sampling, above 0.
        seeds (`list[int]`): one per row.
    """

    def __init__(self, temperature: float, seeds: Sequence[int], device: torch.device) -> None:
        self.temperature = temperature
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return self.noisy(range(len(self.generators)), scores)

    def noisy(self, rows: Sequence[int], scores: Tensor) -> Tensor:
        """Logits of some rows, of shape `(rows, vocabulary)`, with the next draws of their generators."""
        noise = torch.empty_like(scores)
        for line, row in zip(noise, rows, strict=True):
            line.exponential_(generator=self.generators[row])
        # Never 0, whose logarithm would let a forbidden token through.
        return scores / self.temperature - noise.clamp_(min=torch.finfo(noise.dtype).tiny).log_()

    def skip(self, row: int, count: int, logits: Tensor) -> None:
        """Makes draws of a row, each for logits like these, and leaves them: of tokens that are not chosen."""
        for _ in range(count):
            torch.empty_like(logits, dtype=torch.float32).exponential_(generator=self.generators[row])


class BoxClosed(StoppingCriteria):
    """Ends a row when its box is closed. Text is decoded only after a token that holds a closing brace."""

    def __init__(self, vocabulary: Vocabulary, prompt_length: int, device: torch.device) -> None:
        self.tokenizer, self.prompt_length = vocabulary.tokenizer, prompt_length
        self.closes_brace = vocabulary.closes_brace.to(device)

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: object) -> Tensor:
        done = self.closes_brace[input_ids[:, -1]]
        for row in done.nonzero().flatten().tolist():
            tail = input_ids[row, max(self.prompt_length, input_ids.shape[1] - 64) :]
            done[row] = bool(CLOSED_BOX.search(read(self.tokenizer, tail.tolist())))
        return done
