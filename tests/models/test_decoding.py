"""Whatever a model prefers, constrained decoding gives a well-formed answer within its budget."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from tiny_models import tiny_checkpoint
from transformers import AutoTokenizer

from emo_r3.errors import EmoR3Error
from emo_r3.forms import FORMS, METHODS
from emo_r3.labels import LABEL_SETS
from emo_r3.models.decoding import (
    BOX,
    AnswerForm,
    BoxClosed,
    ConstrainedDecoding,
    FreeDecoding,
    Sampling,
    Vocabulary,
    box_sequences,
    encode_after,
    find_box,
    read,
)
from emo_r3.parsing import parse_completion, render_completion

# Byte-level with Qwen's words, and Llama's sentencepiece kind.
TOKENIZERS = ("qwen2_5_vl", "llava")
CPU = torch.device("cpu")
CUSTOM = ("sad", "sadness", "very sad", "joy", "Zorn", "радость", "no emotion at all")


@cache
def vocabulary(name: str) -> Vocabulary:
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint(name))
    return Vocabulary(tokenizer, len(tokenizer) + 3)


def decode_with(forced: ConstrainedDecoding, preference: object, rows: int, limit: int) -> list[list[int]]:
    """Greedy decoding of a model whose logits are `preference(step)`."""
    ids = torch.zeros(rows, 1, dtype=torch.long)
    ended: dict[int, int] = {}
    for step in range(limit):
        chosen = forced(ids, preference(step)).argmax(-1)  # type: ignore[operator]
        ids = torch.cat([ids, chosen[:, None]], 1)
        for row, token in enumerate(chosen.tolist()):
            if token == forced.end_token:
                ended.setdefault(row, step)
        if len(ended) == rows:
            break
    assert len(ended) == rows, "a row did not end in its budget"
    return [ids[row, 1 : 1 + ended[row]].tolist() for row in range(rows)]


def finished(forced: ConstrainedDecoding, tokens: list[int]) -> str:
    text = read(forced.form.tokenizer, tokens)
    return (text[: text.rindex("\\")] if "\\" in text else text) + f"{BOX}{forced.form.labels[0]}}}"


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("labels", [LABEL_SETS["emoset"].labels, CUSTOM], ids=["emoset", "custom"])
def test_any_preference_gives_a_well_formed_answer(name: str, method: str, labels: tuple[str, ...]) -> None:
    words = vocabulary(name)
    form = AnswerForm(words, method, labels)
    size, rows = len(words.texts), 6
    generator = torch.Generator().manual_seed(1)
    marks = torch.tensor([sum(text.count(c) for c in "<>/\\{}") + 5 * ("step" in text) for text in words.texts])
    special = words.suppressed.float()
    for budget in (form.min_new_tokens, form.min_new_tokens + 20):
        for liking in (0.0, 3.0):
            forced = ConstrainedDecoding(form, rows, budget, words.tokenizer.eos_token_id, CPU)
            taste = liking * marks + 50 * liking * special
            written = decode_with(
                forced, lambda _, taste=taste: torch.randn(rows, size, generator=generator) * 3 + taste, rows, budget
            )
            for tokens in written:
                assert not words.suppressed[tokens].any()
                parsed = parse_completion(finished(forced, tokens), labels, method)
                assert parsed.well_formed, (read(words.tokenizer, tokens), parsed.problems)
            assert all(trie is not None and trie.size == len(labels) for trie in forced.tries)


@pytest.mark.parametrize("name", TOKENIZERS)
def test_a_model_that_repeats_itself_gives_well_formed_answers(name: str) -> None:
    """It likes the same few tokens at each place, digits above all."""
    words, labels = vocabulary(name), LABEL_SETS["emoset"].labels
    form, rows = AnswerForm(words, "grounded", labels), 12
    digits = torch.tensor([6.0 * any(sign in "0123456789.,]" for sign in text) for text in words.texts])
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        budget = form.min_new_tokens + 20 * (seed % 2)
        liked = 6 * torch.randn(1, len(words.texts), generator=generator) + digits * (seed // 2)
        forced = ConstrainedDecoding(form, rows, budget, words.tokenizer.eos_token_id, CPU)

        def scores(_: int, liked: torch.Tensor = liked, generator: torch.Generator = generator) -> torch.Tensor:
            return liked + torch.randn(rows, len(words.texts), generator=generator)

        for tokens in decode_with(forced, scores, rows, budget):
            text = finished(forced, tokens)
            assert parse_completion(text, labels, "grounded").well_formed, text


@pytest.mark.parametrize("name", TOKENIZERS)
def test_noted_choices_are_the_logits_at_the_box(name: str) -> None:
    words = vocabulary(name)
    form = AnswerForm(words, "direct", LABEL_SETS["emoset"].labels)
    forced = ConstrainedDecoding(form, 1, 40, words.tokenizer.eos_token_id, CPU)
    seen = []

    def preference(step: int) -> torch.Tensor:
        seen.append(torch.randn(1, len(words.texts), generator=torch.Generator().manual_seed(step)))
        return seen[-1]

    tokens = decode_with(forced, preference, 1, 40)[0]
    trie = forced.tries[0]
    assert trie is not None and forced.choices[0] is not None
    torch.testing.assert_close(forced.choices[0], seen[-1][0, trie.tokens[0]])
    # What was forced and the trie together spell every label in its box, as the tokenizer would.
    spelled = {read(words.tokenizer, sequence) for sequence in box_sequences(words.tokenizer, BOX, form.labels)}
    assert {text.strip() for text in spelled} == {f"{BOX}{label}}}" for label in form.labels}
    assert f"{BOX}fear}}".startswith(read(words.tokenizer, tokens).strip())


def test_budget_below_the_form_is_refused() -> None:
    words = vocabulary("qwen2_5_vl")
    form = AnswerForm(words, "set", LABEL_SETS["emoset"].labels)
    with pytest.raises(EmoR3Error, match=f"{form.min_new_tokens} or more"):
        ConstrainedDecoding(form, 1, form.min_new_tokens - 1, words.tokenizer.eos_token_id, CPU)


def test_sections_share_the_budget_and_cuts_are_noted() -> None:
    words = vocabulary("qwen2_5_vl")
    form = AnswerForm(words, "set", LABEL_SETS["emoset"].labels)
    forced = ConstrainedDecoding(form, 1, 200, words.tokenizer.eos_token_id, CPU)
    talkative = torch.zeros(1, len(words.texts))
    talkative[0, words.tokenizer.encode("a", add_special_tokens=False)[0]] = 9.0
    text = read(words.tokenizer, decode_with(forced, lambda _: talkative.clone(), 1, 200)[0])
    lengths = [text.split(f"<{name}>")[1].index("<") for name in FORMS["set"].tags]
    assert forced.cut == [["step1", "step2", "step3"]]
    assert max(lengths) - min(lengths) <= 12 and min(lengths) > 40


def test_a_grounded_answer_as_a_model_writes_it() -> None:
    """A model that follows a text gets it through as it is: every number, every word, and no more of each."""
    words = vocabulary("qwen2_5_vl")
    form = AnswerForm(words, "grounded", LABEL_SETS["emoset"].labels)
    region, emotions = (0, 24, 148, 264), ("awe", "joy", "calm", "fun", "peace")
    text = render_completion("A dog.", "It soothes.", "Calm.", "awe", region=region, emotions=emotions)
    wanted = encode_after(words.tokenizer, text)
    forced = ConstrainedDecoding(form, 1, 400, words.tokenizer.eos_token_id, CPU)
    ids, written = torch.zeros(1, 1, dtype=torch.long), ""
    for _ in range(400):
        allowed = forced(ids, torch.zeros(1, len(words.texts)))[0] > -torch.inf
        # Of the tokens that may follow, the longest that goes on as the text does.
        fitting = [t for t in allowed.nonzero().flatten().tolist() if text[len(written) :].startswith(words.texts[t])]
        if forced.tries[0] is not None:
            break
        token = max((t for t in fitting if words.texts[t]), key=lambda t: len(words.texts[t]))
        ids, written = torch.cat([ids, torch.tensor([[token]])], 1), written + words.texts[token]
    assert written and text.startswith(written) and len(wanted) > 20
    parsed = parse_completion(finished(forced, ids[0, 1:].tolist()), form.labels, "grounded")
    assert parsed.well_formed and not forced.cut[0]
    assert (parsed.region, parsed.emotions) == (region, emotions)


def test_a_merged_token_may_close_a_section() -> None:
    words = vocabulary("qwen2_5_vl")
    form = AnswerForm(words, "think", LABEL_SETS["emoset"].labels)
    merged = [token for token in form.closers[0] if words.texts[token].endswith("</") and words.texts[token] != "</"]
    assert merged, "the tiny tokenizer should have a token such as '.</'"
    forced = ConstrainedDecoding(form, 1, 60, words.tokenizer.eos_token_id, CPU)
    scores = torch.zeros(1, len(words.texts))
    scores[0, merged[0]] = 9.0
    text = read(words.tokenizer, decode_with(forced, lambda _: scores.clone(), 1, 60)[0])
    assert words.texts[merged[0]] + "think>" in text and not forced.cut[0]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_encode_after_continues_a_text(name: str) -> None:
    tokenizer = vocabulary(name).tokenizer
    head = tokenizer.encode("It is calm", add_special_tokens=False)
    for text in ("</step1>", " <step2>", "\n\\boxed{", "{anger}", "Yes", " a"):
        assert read(tokenizer, head + encode_after(tokenizer, text)) == "It is calm" + text


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize(
    ("text", "count_text", "opening"),
    [
        ("<think>x</think> \\boxed{anger}", "<think>x</think>", " \\boxed{"),
        ("\\boxed{joy} and \\boxed{fear", "\\boxed{joy} and", " \\boxed{"),
        ("nothing here", "nothing here", "\n\\boxed{"),
        ("", "", "\n\\boxed{"),
        ("日本 \\boxed{anger}", "日本", " \\boxed{"),
    ],
)
def test_find_box(name: str, text: str, count_text: str, opening: str) -> None:
    tokenizer = vocabulary(name).tokenizer
    ids = tokenizer.encode(text, add_special_tokens=False)
    count, rest = find_box(tokenizer, ids)
    # However the opening is cut into tokens, what is before and what is left make it up.
    assert read(tokenizer, ids[:count]) + rest == count_text + opening
    assert BOX not in read(tokenizer, ids[:count])[len(count_text) :]


def test_sampling_draws_from_the_softmax_and_keeps_to_its_seeds() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0, -torch.inf])
    state = torch.get_rng_state()
    rows = 4000
    drawn = Sampling(0.7, range(rows), CPU)(torch.zeros(rows, 1), logits.expand(rows, -1)).argmax(-1)
    assert torch.equal(torch.get_rng_state(), state)
    share = torch.bincount(drawn, minlength=4) / rows
    torch.testing.assert_close(share, (logits / 0.7).softmax(-1), atol=0.03, rtol=0)
    alone = [int(Sampling(0.7, [seed], CPU)(torch.zeros(1, 1), logits[None]).argmax()) for seed in range(20)]
    assert alone == drawn[:20].tolist()


def test_free_decoding_keeps_special_tokens_out_but_for_the_end() -> None:
    words = vocabulary("qwen2_5_vl")
    end = words.tokenizer.eos_token_id
    scores = FreeDecoding(words, [end], CPU)(torch.zeros(1, 1), torch.zeros(1, len(words.texts)))
    out = {token for token, value in enumerate(scores[0].tolist()) if value == -torch.inf}
    assert end not in out
    assert {words.tokenizer.convert_tokens_to_ids(t) for t in ("<|image_pad|>", "<|im_start|>")} <= out
    assert set(range(len(words.tokenizer), len(words.texts))) <= out  # ids that the tokenizer doesn't know


def test_box_closed_looks_at_the_completion_alone() -> None:
    words = vocabulary("qwen2_5_vl")
    prompt = words.tokenizer.encode("form: \\boxed{label}")
    texts = ["<think>x</think> \\boxed{joy}", "a brace } alone, no box there", "\\boxed{joy} and more of the text"]
    rows = [words.tokenizer.encode(text) for text in texts]
    longest = max(map(len, rows))
    pad = words.tokenizer.pad_token_id
    ids = torch.tensor([prompt + [pad] * (longest - len(row)) + row for row in rows])
    done = BoxClosed(words, len(prompt), CPU)(ids, torch.empty(0))
    assert done.tolist() == [True, False, False]
    brace = torch.cat([torch.tensor([prompt]), torch.tensor([words.tokenizer.encode("}")])], 1)
    assert BoxClosed(words, len(prompt), CPU)(brace, torch.empty(0)).tolist() == [False]
