"""The pipeline end to end on tiny random models: its results must equal what the model says when asked at length."""

from __future__ import annotations

import base64
import copy
import io
import json
import pickle
import threading
import time
from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import ARCHITECTURES, tiny_checkpoint
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig

import emo_r3.inference.engine
import emo_r3.models.reflection
from emo_r3 import EmoR3Error, EmoR3Pipeline, EmotionResult, ImageError
from emo_r3.errors import CheckpointError
from emo_r3.models.decoding import BOX, encode_after, find_box, read
from emo_r3.models.prefix_cache import render_prompt
from emo_r3.parsing import parse_completion

TOKENS = 70
# They part at many places, so that there are many branches to score.
LABELS = "very sad, very glad, very calm, quite sad, quite glad, quite calm, sad, glad"


@cache
def pipe_of(name: str) -> EmoR3Pipeline:
    return EmoR3Pipeline.from_pretrained(tiny_checkpoint(name), batch_size=4)


# The last has a cache that can't be reused: correct all the same.
QUICK_AND_SLOW = [
    name if name in ("qwen2_5_vl", "llava") else pytest.param(name, marks=pytest.mark.slow)
    for name in (*ARCHITECTURES, "llava_sliding")
]


@pytest.fixture(scope="module", params=QUICK_AND_SLOW)
def pipe(request: pytest.FixtureRequest) -> EmoR3Pipeline:
    return pipe_of(request.param)


@pytest.fixture(scope="module")
def qwen() -> EmoR3Pipeline:
    return pipe_of("qwen2_5_vl")


def make_images(*sizes: tuple[int, int]) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = sizes or ((60, 40), (90, 200), (28, 28))
    return [Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)) for width, height in sizes]


def ask_again(pipe: EmoR3Pipeline, image: Image.Image | None, question: str, continuation: list[int]) -> torch.Tensor:
    """The reference: next-token logits of one full forward on the processor's own tensors."""
    prompt = render_prompt(pipe.processor, question, with_image=image is not None)
    if image is None:
        inputs = dict(pipe.processor.tokenizer(prompt, return_tensors="pt", return_token_type_ids=False))
    else:
        inputs = dict(pipe.processor(text=[prompt], images=[[image]], return_tensors="pt"))
    extra, shape = torch.tensor([continuation], dtype=torch.long), inputs["input_ids"].shape
    for name, value in inputs.items():
        if value.shape == shape:
            more = extra if name == "input_ids" else torch.full_like(extra, int(name == "attention_mask"))
            inputs[name] = torch.cat([value, more.to(value.dtype)], 1)
    with torch.no_grad():
        return pipe.model(**inputs, use_cache=False).logits[0, -1].float()


def walk(sequences: list[list[int]], next_logits: Any) -> tuple[list[float], int]:
    """Probability of each sequence if only these may be written, and the one that greedy decoding writes."""
    shares, paths = [1.0] * len(sequences), {}
    for index, sequence in enumerate(sequences):
        for depth, token in enumerate(sequence):
            allowed = sorted({s[depth] for s in sequences if s[:depth] == sequence[:depth]})
            key = tuple(sequence[:depth])
            if key not in paths:
                paths[key] = dict(zip(allowed, next_logits(list(key))[allowed].softmax(-1).tolist(), strict=True))
            shares[index] *= paths[key][token]
    path: tuple[int, ...] = ()
    while path in paths:
        path = (*path, max(paths[path], key=paths[path].__getitem__))
    return shares, sequences.index(list(path))


def check_distribution(
    pipe: EmoR3Pipeline, result: EmotionResult, image: Image.Image, text: str | None = None
) -> None:
    """The label probabilities against full forwards of every label, from where the box opens in the text."""
    labels = list(result.probabilities)
    tokenizer = pipe.processor.tokenizer
    ids = encode_after(tokenizer, result.text if text is None else text)
    count, opening = find_box(tokenizer, ids)
    sequences = [encode_after(tokenizer, f"{opening}{label}}}") for label in labels]
    question = pipe.info.prompts.question(result.method, labels)  # type: ignore[arg-type]
    shares, _ = walk(sequences, lambda path: ask_again(pipe, image, question, ids[:count] + path))
    np.testing.assert_allclose(list(result.probabilities.values()), shares, atol=1e-3)
    assert sum(result.probabilities.values()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("method", ["set", "think", "direct"])
def test_constrained_answers_are_well_formed(pipe: EmoR3Pipeline, method: str) -> None:
    for result in pipe(make_images(), max_new_tokens=TOKENS, method=method):
        assert result.well_formed and result.label in result.probabilities
        assert parse_completion(result.text, list(result.probabilities), method).well_formed  # type: ignore[arg-type]
        assert set(result.steps) == {"set": {"step1", "step2", "step3"}, "think": {"think"}, "direct": set()}[method]
        assert result.label == max(result.probabilities, key=result.probabilities.__getitem__)
        assert result.confidence == max(result.probabilities.values())
        assert 1 <= result.valence <= 9 and 1 <= result.arousal <= 9  # type: ignore[operator]
        assert EmotionResult.from_dict(json.loads(result.to_json())) == result


@pytest.mark.parametrize("labels", [None, "sad, sadness, very sad, joy"])
def test_constrained_distribution_equals_brute_force(
    pipe: EmoR3Pipeline, labels: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text that a tokenizer would not have cut the same way is compared by the tokens that were written."""
    images, written = make_images(), []
    original = emo_r3.inference.engine.forced_answers

    def spy(cached: Any, tokens: Any, forced: Any, tokenizer: Any) -> Any:
        written.extend(zip(tokens, forced.tries, strict=True))
        return original(cached, tokens, forced, tokenizer)

    monkeypatch.setattr(emo_r3.inference.engine, "forced_answers", spy)
    results = pipe(images, max_new_tokens=TOKENS, labels=labels, batch_size=3)
    for result, image, (ids, trie) in zip(results, images, written, strict=True):
        names = list(result.probabilities)
        question = pipe.info.prompts.question("set", names)
        text = read(pipe.processor.tokenizer, ids)
        # The trie's tokens, spelled after what was written, are the labels.
        paths: list[list[int]] = [[] for _ in names]
        for path, children in zip(trie.paths, trie.children, strict=True):
            for token, under in children.items():
                for label in under:
                    paths[label] = [*path, token]
        for name, path in zip(names, paths, strict=True):
            spelled = text[: text.rindex("\\")] if "\\" in text else text
            whole = read(pipe.processor.tokenizer, ids + path)
            assert f"{spelled}{BOX}{name}}}".startswith(whole)
        shares = np.ones(len(names))
        for path, children in zip(trie.paths, trie.children, strict=True):
            logits = ask_again(pipe, image, question, ids + list(path))
            for share, under in zip(logits[list(children)].softmax(-1).tolist(), children.values(), strict=True):
                shares[under] *= share
        np.testing.assert_allclose(list(result.probabilities.values()), shares, atol=1e-3)


class Scripted:
    """In the place of free decoding: makes the model write given texts, so that its cache is real."""

    texts: tuple[str, ...] = ()

    def __init__(self, vocabulary: Any, end_tokens: list[int], device: torch.device) -> None:
        self.ids = [[*encode_after(vocabulary.tokenizer, text), end_tokens[0]] for text in self.texts]
        self.step = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        forced = torch.full_like(scores, -torch.inf)
        for row, ids in enumerate(self.ids):
            forced[row, ids[min(self.step, len(ids) - 1)]] = 0
        self.step += 1
        return forced


SCRIPTS = {
    "<step1>A face.</step1> <step2>Good.</step2>\n<step3>Calm.</step3>\n\\boxed{joy}": ("joy", ()),
    "<step1>A face.</step1> <step2>Good.</step2> <step3>Calm.</step3> \\boxed{glee}": (None, ("unknown_label",)),
    "A face, and no box": (None, ("missing_section", "missing_box", "text_outside")),
    "<step1>A": (None, ("missing_section", "unclosed_section", "missing_box")),
}


def test_free_distribution_equals_brute_force(pipe: EmoR3Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emo_r3.inference.engine, "FreeDecoding", Scripted)
    monkeypatch.setattr(Scripted, "texts", tuple(SCRIPTS))
    images = make_images((60, 40), (90, 200), (28, 28), (50, 50))
    results = pipe(images, decoding="free", labels="emotion6", max_new_tokens=TOKENS)
    for result, image, (text, (label, problems)) in zip(results, images, SCRIPTS.items(), strict=True):
        assert (result.text, result.label, result.problems) == (text, label, problems)
        assert ("no box in the answer" in " ".join(result.notes)) == (BOX not in text)
        check_distribution(pipe, result, image, text)


def test_free_decoding_is_plain_greedy_decoding(qwen: EmoR3Pipeline) -> None:
    """The tiny checkpoint asks for sampling and a repetition penalty, which must not leak in."""
    [image] = make_images((60, 40))
    result = qwen(image, decoding="free", max_new_tokens=12)
    question = qwen.info.prompts.question("set", qwen.info.label_set)
    suppressed = qwen._engine.vocabulary.suppressed.clone()
    suppressed[qwen._engine.end_tokens] = False
    ids: list[int] = []
    for _ in range(12):
        ids.append(int(ask_again(qwen, image, question, ids).masked_fill(suppressed, -torch.inf).argmax()))
    assert result.text == read(qwen.processor.tokenizer, ids).strip()
    assert "cut at max_new_tokens=12" in result.notes


def test_reflection_equals_asking_anew(pipe: EmoR3Pipeline) -> None:
    images = make_images()
    prompts, tokenizer = pipe.info.prompts, pipe.processor.tokenizer
    for result, image in zip(pipe(images, max_new_tokens=TOKENS, reflect=True), images, strict=True):
        step1, step2 = (" ".join((result.steps[name]).split()) for name in ("step1", "step2"))
        logits = ask_again(pipe, image, prompts.consistency_question(step1), [])
        yes, no = emo_r3.models.reflection.answer_tokens(tokenizer)
        expected = torch.sigmoid(logits[yes].max() - logits[no].max())
        assert result.consistency == pytest.approx(float(expected), abs=1e-3)

        labels = list(result.probabilities)
        end = pipe._engine.end_tokens[0]
        sequences = [[*tokenizer.encode(label, add_special_tokens=False), end] for label in labels]
        question = prompts.coherence_question(f"{step1} {step2}", labels)
        shares, greedy = walk(sequences, lambda path, question=question: ask_again(pipe, None, question, path))
        assert result.coherence is not None
        assert result.coherence.label == labels[greedy]
        assert result.coherence.probability == pytest.approx(shares[greedy], abs=1e-3)
        assert result.coherence.agreement == pytest.approx(shares[labels.index(str(result.label))], abs=1e-3)
        assert result.score == pytest.approx((result.consistency + result.coherence.agreement) / 2)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_image_is_encoded_once(name: str) -> None:
    pipe = pipe_of(name)
    inner = pipe.model.model
    tower = getattr(inner, "visual", None) or getattr(inner, "vision_tower", None) or inner.vision_model
    calls = []
    hook = tower.register_forward_hook(lambda *_: calls.append(1))
    try:
        pipe(make_images(), max_new_tokens=TOKENS, reflect=True, batch_size=3)
    finally:
        hook.remove()
    assert len(calls) == 1


def test_batch_size_changes_nothing(pipe: EmoR3Pipeline) -> None:
    images = make_images()
    together, alone = (pipe(images, max_new_tokens=TOKENS, reflect=True, batch_size=size) for size in (3, 1))
    for one, other in zip(together, alone, strict=True):
        assert one.text == other.text
        np.testing.assert_allclose(list(one.probabilities.values()), list(other.probabilities.values()), atol=1e-4)
        assert one.consistency == pytest.approx(other.consistency, abs=1e-4)


@pytest.mark.slow
def test_preparing_ahead_does_not_disturb_asking(qwen: EmoR3Pipeline) -> None:
    """A fast tokenizer breaks when a thread pads with it while another asks a question."""
    images = make_images(*[(40, 40), (60, 90)] * 20)
    for _ in range(3):
        results = qwen(iter(images), method="think", reflect=True, max_new_tokens=16, batch_size=2)
        for result in results:
            qwen.processor.tokenizer(["the caller's own", "use of it"], padding=True, return_tensors="pt")
            assert result.consistency is not None


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen2_vl", "qwen3_vl"])
def test_threads_that_share_a_model_get_the_answers_of_one_thread(name: str) -> None:
    """These classes keep the positions of the last prompt on the model. Calls, a batch, a stream, two pipelines."""
    pipe = pipe_of(name)
    second = EmoR3Pipeline(pipe.model, pipe.processor, pipe.info, name=pipe.name)
    images = make_images((60, 40), (90, 200))
    options: dict[str, Any] = {"method": "think", "reflect": True, "max_new_tokens": 20}
    alone, together = [pipe(image, **options) for image in images], pipe(images, **options)
    wrong: list[Any] = []

    def check(make: Any, expected: Any) -> None:
        for _ in range(2):
            try:
                if make() != expected:
                    wrong.append(expected)
            except Exception as error:
                wrong.append(error)

    jobs = [
        (lambda: [pipe(image, **options) for image in images], alone),
        (lambda: [second(image, **options) for image in reversed(images)], alone[::-1]),
        (lambda: list(second(iter(images), batch_size=3, **options)), together),
        (lambda: [list(pipe.stream(image, **options))[-1].result for image in images], alone),
    ]
    if name == "qwen2_5_vl":  # what hides parts of an image is put into the model for a while

        def explained() -> Any:
            return pipe(images[0], method="direct", explain=True)

        jobs.append((explained, explained()))
    threads = [threading.Thread(target=check, args=job) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_stream_that_is_left_or_not_read_lets_others_in(qwen: EmoR3Pipeline) -> None:
    [image] = make_images((60, 40))
    expected = qwen(image, method="direct")
    left, unread = (qwen.stream(image, max_new_tokens=tokens) for tokens in (3000, TOKENS))
    next(left)
    left.close()
    next(unread)  # kept, and never read to its end
    start = time.monotonic()
    assert qwen(image, method="direct") == expected
    assert time.monotonic() - start < 20
    assert next(unread).section.startswith("step")


@pytest.mark.parametrize("size", [(20_000, 10), (3, 700), (1, 1), (1, 300)])
def test_extreme_shapes(pipe: EmoR3Pipeline, size: tuple[int, int]) -> None:
    result = pipe(Image.new("RGB", size, "red"), max_new_tokens=TOKENS, method="direct")
    assert result.well_formed and any(note.startswith(("padded", "enlarged")) for note in result.notes)


def test_inputs_and_their_results(qwen: EmoR3Pipeline, tmp_path: Path) -> None:
    [image] = make_images((60, 40))
    path = tmp_path / "image.png"
    image.save(path)
    row = {"bytes": path.read_bytes(), "path": None}
    expected = qwen(image, max_new_tokens=TOKENS)
    for source in (str(path), path, path.read_bytes(), np.asarray(image), row):
        result = qwen(source, max_new_tokens=TOKENS)
        assert isinstance(result, EmotionResult) and result.text == expected.text
    assert qwen(str(path), method="direct").image == str(path)
    assert [r.label for r in qwen((image, path), max_new_tokens=TOKENS)] == [expected.label] * 2
    assert qwen([], max_new_tokens=TOKENS) == []
    with pytest.raises(ImageError, match="float"):
        qwen(1.5)


def test_an_iterable_streams_lazily(qwen: EmoR3Pipeline) -> None:
    images, taken = make_images(*[(40, 40)] * 40), []

    def source() -> Iterator[Image.Image]:
        for index, image in enumerate(images):
            taken.append(index)
            yield image

    results = qwen(source(), method="direct", batch_size=2)
    assert not taken
    first = next(results)
    assert isinstance(first, EmotionResult) and len(taken) <= 6
    results.close()
    assert len(taken) <= 6
    everything = [result.text for result in qwen(source(), method="direct", batch_size=7)]
    assert everything == [result.text for result in qwen(images, method="direct", batch_size=16)]


def test_files_data_urls_and_rows_are_one_image(qwen: EmoR3Pipeline, tmp_path: Path) -> None:
    [image] = make_images((60, 40))
    path = tmp_path / "image.png"
    image.save(path)
    expected = qwen(image, method="direct")
    data_url = "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()
    written = io.BytesIO()
    image.save(written, "PNG")  # stands at its end
    with open(path, "rb") as file, open(path) as text:
        sources = {"file": file, "BytesIO": written, "data URL": data_url, "row": {"image": image, "label": 3}}
        for kind, source in sources.items():
            result = qwen(source, method="direct")
            assert isinstance(result, EmotionResult) and result.text == expected.text, kind
        assert [result.error for result in qwen(list(sources.values()), method="direct")] == [None] * 4
        assert qwen(file, method="direct").image == str(path)
        with pytest.raises(ImageError, match="opened as text; open it with mode 'rb'"):
            qwen(text, method="direct")
    [unread] = qwen(["data:image/png;base64,####"], method="direct", on_error="return")
    assert unread.image == "data URL" and "not base64" in str(unread.error)


def test_a_datasets_column_streams(qwen: EmoR3Pipeline) -> None:
    datasets = pytest.importorskip("datasets")
    rows = datasets.Dataset.from_dict({"image": make_images((40, 40), (30, 50))}).cast_column(
        "image", datasets.Image()
    )
    results = qwen(rows["image"], method="direct")
    assert iter(results) is results
    assert len(list(results)) == 2


def test_a_bad_image_among_good_ones(qwen: EmoR3Pipeline, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"<!doctype html><html>")
    good = make_images((60, 40), (40, 60))
    images = [good[0], str(bad), good[1]]
    with pytest.raises(ImageError, match=r"bad\.png"):
        qwen(images, method="direct")
    with pytest.raises(ImageError, match="missing"):
        qwen(tmp_path / "missing.png")
    results = qwen(images, method="direct", on_error="return", batch_size=3)
    expected = qwen(good, method="direct")
    assert [result.error is None for result in results] == [True, False, True]
    assert results[1].image == str(bad) and "web page" in str(results[1].error) and not results[1].well_formed
    assert [results[0].text, results[2].text] == [result.text for result in expected]
    assert json.loads(results[1].to_json())["confidence"] is None
    [alone] = qwen([bad], method="direct", on_error="return")
    assert alone == results[1]


@pytest.mark.slow
def test_the_best_of_candidates(qwen: EmoR3Pipeline) -> None:
    images = make_images((60, 40), (90, 60))
    state = torch.get_rng_state()
    results = qwen(images, num_candidates=3, seed=5, max_new_tokens=TOKENS)
    assert torch.equal(torch.get_rng_state(), state)
    for result in results:
        assert len(set(result.candidate_scores)) == 3 and result.score == max(result.candidate_scores)
        assert result.consistency is not None and result.coherence is not None
    again = qwen(images, num_candidates=3, seed=5, max_new_tokens=TOKENS, batch_size=1)
    assert [result.text for result in again] == [result.text for result in results]
    other = qwen(images, num_candidates=3, seed=6, max_new_tokens=TOKENS)
    assert [result.text for result in other] != [result.text for result in results]


@pytest.mark.slow
def test_samples_depend_on_the_image_and_not_on_its_place(qwen: EmoR3Pipeline, tmp_path: Path) -> None:
    images = make_images((60, 40), (90, 60), (30, 50))
    options: dict[str, Any] = {"num_candidates": 2, "seed": np.int64(5), "max_new_tokens": TOKENS}
    texts = [result.text for result in qwen(images, **options)]
    assert len(set(texts)) == 3
    assert [result.text for result in qwen(images[::-1], **options)] == texts[::-1]
    images[2].save(tmp_path / "last.png")
    assert qwen(tmp_path / "last.png", **options).text == texts[2]
    first, again = qwen([images[0]] * 2, **options)
    assert first == again and first.text == texts[0]


@pytest.mark.slow
def test_a_resumed_predict_with_candidates_gives_the_same_rows(tmp_path: Path) -> None:
    from emo_r3.cli.main import main

    folder = tmp_path / "images"
    folder.mkdir()
    for name, image in zip("bdc", make_images((60, 40), (90, 60), (30, 50)), strict=True):
        image.save(folder / f"{name}.png")
    common = ["--model", str(tiny_checkpoint("qwen2_5_vl")), "--candidates", "2", "--max-new-tokens", str(TOKENS)]
    common += ["--format", "jsonl"]
    begun, whole = tmp_path / "begun.jsonl", tmp_path / "whole.jsonl"
    assert main(["predict", str(folder / "d.png"), *common, "--output", str(begun)]) == 0
    for output in (begun, whole):
        assert main(["predict", str(folder), *common, "--output", str(output)]) == 0
    rows = ([json.loads(line) for line in path.read_text().splitlines()] for path in (begun, whole))
    texts, expected = ({row["image"]: row["text"] for row in some} for some in rows)
    assert texts == expected and len(set(texts.values())) == 3


@pytest.mark.parametrize(
    "options",
    [{"reflect": True}, {"decoding": "free"}, {"num_candidates": 2, "seed": 3}],
    ids=["constrained", "free", "candidates"],
)
def test_equal_images_of_a_batch_are_computed_once(qwen: EmoR3Pipeline, options: dict[str, Any]) -> None:
    """Of six images two are different: each is read by the processor, the vision tower and the model once."""
    first, second = make_images((60, 40), (90, 60))
    turned = second.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned back, it is `second`
    stream = io.BytesIO()
    turned.save(stream, "PNG", exif=exif)
    images = [first, second, b"no image", first.copy(), stream.getvalue(), first]
    given: dict[str, Any] = {"max_new_tokens": TOKENS, "batch_size": 12, "on_error": "return", **options}
    patches: list[int] = []
    hook = qwen.model.model.visual.register_forward_pre_hook(lambda _, args: patches.append(len(args[0])))
    try:
        results = qwen(images, **given)
        once_each, patches = sum(patches), []
        expected = qwen([first, second], **given)
    finally:
        hook.remove()
    assert once_each == sum(patches) > 0
    assert results[2].error and not any(result.error for at, result in enumerate(results) if at != 2)
    for at, number in ((0, 0), (1, 1), (3, 0), (4, 1), (5, 0)):
        one, other = results[at].to_dict(), expected[number].to_dict()
        assert one.pop("image") == ("image bytes" if at == 4 else other.pop("image"))
        other.pop("image", None)
        notes = one.pop("notes"), other.pop("notes")
        assert notes[0] == [*(["rotated by EXIF"] if at == 4 else []), *notes[1]]
        assert one == other


def test_candidates_of_a_model_that_reads_whole_rows_share_its_image(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, calls = pipe_of("llava_sliding"), []
    given: dict[str, Any] = {"num_candidates": 2, "max_new_tokens": TOKENS, "aggregate": "self-consistency"}
    tower: Any = pipe.model.model.vision_tower
    hook = tower.register_forward_pre_hook(lambda _, args: calls.append(len(args[0])))
    try:
        shared = pipe(make_images(), **given)
        first = len(calls)
        monkeypatch.setattr(emo_r3.inference.engine, "why_not_once", lambda model: "a test says so")
        whole = pipe(make_images(), **given)
    finally:
        hook.remove()
    assert (calls[0], calls[first]) == (2, 4), "two images, with two answers each"
    for one, other in zip(shared, whole, strict=True):
        assert one.text == other.text
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


@pytest.mark.parametrize("decoding", ["constrained", "free"])
@pytest.mark.slow
def test_batch_size_bounds_the_rows_of_every_forward(qwen: EmoR3Pipeline, decoding: Any) -> None:
    """Candidates, reflection and the labels' branches included."""
    images = make_images((60, 40), (90, 60))
    options: dict[str, Any] = {"num_candidates": 5, "decoding": decoding, "max_new_tokens": 30, "labels": LABELS}
    options["method"] = "think"
    rows: list[int] = []

    def note(module: Any, args: Any, given: dict[str, Any]) -> None:
        rows.append((args[0] if args else given["input_ids"]).shape[0])

    expected = qwen(images, batch_size=16, **options)
    hook = qwen.model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        results = qwen(images, batch_size=3, **options)
        assert max(rows) == 3
        rows.clear()
        qwen(images[0], batch_size=3, explain=True, method="direct", labels=LABELS)
    finally:
        hook.remove()
    assert max(rows) == 3, "of the parts of the image that are hidden"
    for one, other in zip(results, expected, strict=True):
        assert one.text == other.text and len(one.candidate_scores) == 5
        np.testing.assert_allclose(one.candidate_scores, other.candidate_scores, atol=1e-4)


def test_stream_grows_and_ends_with_the_result(pipe: EmoR3Pipeline) -> None:
    [image] = make_images((60, 40))
    events = list(pipe.stream(image, max_new_tokens=TOKENS, reflect=True))
    result = events[-1].result
    expected = pipe(image, max_new_tokens=TOKENS, reflect=True)
    assert result is not None and result.text == expected.text and result.consistency is not None
    assert events[-1].section == "result" and all(event.result is None for event in events[:-1])
    order = list(dict.fromkeys(event.section for event in events))
    assert order[:3] == ["step1", "step2", "step3"]
    for name in ("step1", "step2", "step3"):
        texts = [event.text for event in events if event.section == name]
        assert len(texts) > 1 and texts[-1] == result.steps[name]


def test_leaving_a_stream_stops_the_model(qwen: EmoR3Pipeline) -> None:
    steps = []
    hook = qwen.model.register_forward_hook(lambda *_: steps.append(1))
    try:
        events = qwen.stream(make_images((60, 40))[0], max_new_tokens=3000)
        next(events)
        events.close()
    finally:
        hook.remove()
    assert len(steps) < 200


def test_an_error_in_the_model_surfaces_from_a_stream(qwen: EmoR3Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(qwen.model, "forward", fail)
    with pytest.raises(EmoR3Error, match="out of memory"):
        list(qwen.stream(make_images((60, 40))[0], max_new_tokens=TOKENS))


def test_options_that_a_stream_does_not_have(qwen: EmoR3Pipeline) -> None:
    for option in ("num_candidates", "batch_size", "on_error", "colour"):
        with pytest.raises(EmoR3Error, match=f"{option}: a stream has no such option"):
            qwen.stream(make_images((60, 40))[0], **{option: 2})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoding": "beam"}, "constrained or free"),
        ({"method": "poem"}, "poem"),
        ({"labels": "joy"}, "joy"),
        ({"max_new_tokens": 3}, "or more"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"batch_size": -1}, "batch_size"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"num_candidates": 0}, "num_candidates=0"),
        ({"num_candidates": -1}, "num_candidates=-1"),
        ({"num_candidates": 2.0}, "num_candidates=2.0"),
        ({"temperature": 0.0}, "above 0"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": "hot"}, "temperature='hot'"),
        ({"seed": "first"}, "seed='first'"),
        ({"labels": 5}, "labels"),
        ({"labels": [1, 2]}, "label"),
        ({"method": 5}, "method"),
        ({"max_new_tokens": 4090}, "4,096 positions"),
        ({"on_error": "ignore"}, "raise or return"),
        ({"method": "direct", "reflect": True}, "direct"),
    ],
)
def test_options_that_cannot_be_used(qwen: EmoR3Pipeline, options: dict[str, Any], message: str) -> None:
    with pytest.raises(EmoR3Error, match=message):
        qwen(make_images((60, 40))[0], **options)


def test_a_model_that_computes_nan_is_told_what_is_to_blame() -> None:
    """float32 is no advice to a model that is in float32, or whose weights are broken."""
    model = EmoR3Pipeline.from_pretrained(tiny_checkpoint("llava"))
    head = model.model.get_output_embeddings().weight
    with torch.no_grad():
        head.fill_(1e38)
    with pytest.raises(EmoR3Error, match=r"its weights are finite and in torch\.float32: .* another checkpoint"):
        model(make_images((60, 40))[0], method="direct", max_new_tokens=TOKENS)
    half = emo_r3.inference.engine.not_finite("m", model.model.to(torch.bfloat16))
    assert str(half).endswith("in torch.bfloat16: load it with dtype='float32'")
    with torch.no_grad():
        head.fill_(torch.nan)
    model.model.to(torch.float32)
    with pytest.raises(EmoR3Error, match=r"broken weights: .*weight holds NaN or infinity; .* again"):
        model(make_images((60, 40))[0], method="direct", max_new_tokens=TOKENS)


def test_an_image_beyond_the_models_positions_is_refused(qwen: EmoR3Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = make_images((28, 28), (110, 110))
    plain = len(qwen._request(method="direct").plain)
    monkeypatch.setattr(qwen.model.config.get_text_config(), "max_position_embeddings", plain + 40 + 8)
    own = EmoR3Pipeline(qwen.model, qwen.processor, qwen.info, name="tiny")
    expected = qwen(small, method="direct", max_new_tokens=40)
    with pytest.raises(ImageError, match=rf"tokens .*max_new_tokens=40 .* {plain + 48} positions of tiny; use a sm.*"):
        own([small, large], method="direct", max_new_tokens=40)
    refused, read, again = own([large, small, large], method="direct", max_new_tokens=40, on_error="return")
    assert read.text == expected.text and read.probabilities == pytest.approx(expected.probabilities, abs=1e-4)
    assert refused.image == "PIL image" and "max_pixels" in str(refused.error) and again == refused
    with pytest.raises(EmoR3Error, match="fewer labels or a smaller max_new_tokens"):
        own(small, method="direct", max_new_tokens=60)


def test_positions_of_scaled_models() -> None:
    def of(**text: Any) -> int | None:
        config = type("Config", (), {"get_text_config": lambda self: type("Text", (), text)})()
        return emo_r3.inference.engine.positions(type("Model", (), {"config": config}))  # type: ignore[arg-type]

    assert of() is None and of(max_position_embeddings=None) is None and of(max_position_embeddings=64) == 64
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 100}
    assert of(max_position_embeddings=100, rope_parameters=yarn) == 400
    assert of(max_position_embeddings=64, rope_parameters={"rope_type": "llama3", "factor": 8.0}) == 64
    nested = {"full_attention": {"rope_type": "linear", "factor": 8.0}}
    assert of(max_position_embeddings=64, rope_parameters=nested) == 64


def test_a_revision_of_a_folder_is_refused() -> None:
    for folder in (tiny_checkpoint("llava"), None, "miniature"):
        with pytest.raises(EmoR3Error, match=r"revision='v1' is for a repository .* leave it out"):
            EmoR3Pipeline.from_pretrained(folder, revision="v1")


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.slow
def test_every_attention_gives_the_same_answers(name: str) -> None:
    found = []
    for kind in ("eager", "sdpa"):
        own = EmoR3Pipeline.from_pretrained(tiny_checkpoint(name), attn_implementation=kind)
        assert own.model.config._attn_implementation == kind
        results = own(make_images(), labels=LABELS, reflect=True, max_new_tokens=TOKENS)
        scores = [number for result in results for number in (*result.probabilities.values(), result.score)]
        found.append(([result.text for result in results], scores))
    assert found[0][0] == found[1][0]
    np.testing.assert_allclose(found[0][1], found[1][1], atol=1e-4)


@pytest.mark.parametrize("kind", ["owner/kernel", {"text_config": "owner/kernel@v1:run"}, 3, "flash_attention_9"])
def test_an_attention_that_transformers_does_not_have(kind: Any) -> None:
    with pytest.raises(CheckpointError, match=r"flash_attention_|owner/kernel") as caught:
        EmoR3Pipeline.from_pretrained(tiny_checkpoint("llava"), attn_implementation=kind)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["trust_remote_code", "use_safetensors", "attn_implementatoin", "repo_or_path"])
def test_from_pretrained_names_an_option_that_it_lacks(name: str) -> None:
    with pytest.raises(EmoR3Error, match=f"{name}: from_pretrained has no such option"):
        EmoR3Pipeline.from_pretrained(tiny_checkpoint("llava"), **{name: True})


def test_quantization_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `from_pretrained` is given; whether a quantized model answers, the test below says where it can."""
    load, given = AutoModelForImageTextToText.from_pretrained, []

    def record(folder: Any, **options: Any) -> Any:
        given.append(options)
        return load(folder, **{name: value for name, value in options.items() if name != "quantization_config"})

    monkeypatch.setattr(AutoModelForImageTextToText, "from_pretrained", record)
    wanted = BitsAndBytesConfig(load_in_8bit=True)
    EmoR3Pipeline.from_pretrained(tiny_checkpoint("llava"), quantization_config=wanted, attn_implementation="eager")
    EmoR3Pipeline.from_pretrained(tiny_checkpoint("llava"))
    safe = {"use_safetensors": True, "trust_remote_code": False}
    assert [{name: options[name] for name in safe} for options in given] == [safe, safe]
    assert (given[0]["quantization_config"], given[0]["attn_implementation"]) == (wanted, "eager")
    assert not given[1].keys() & {"quantization_config", "attn_implementation", "cache_dir"}


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
@pytest.mark.parametrize("bits", [8, 4])
def test_a_quantized_model_answers_and_is_loaded_again(bits: int, tmp_path: Path) -> None:
    own = EmoR3Pipeline.from_pretrained(quantization_config=BitsAndBytesConfig(**{f"load_in_{bits}bit": True}))
    own.save_pretrained(tmp_path / "quantized")
    again = EmoR3Pipeline.from_pretrained(tmp_path / "quantized")
    image = Path(__file__).parents[2] / "docs/samples/03-mountains-fireworks.png"
    full, *others = (each(image, method="direct") for each in (EmoR3Pipeline.from_pretrained(), own, again))
    for result in others:
        assert result.label == full.label
        assert result.probabilities == pytest.approx(full.probabilities, abs=0.05)


@pytest.mark.skipif(find_spec("bitsandbytes") is not None, reason="is about a machine without bitsandbytes")
def test_quantization_without_its_library_is_one_line() -> None:
    with pytest.raises(CheckpointError, match="bitsandbytes") as caught:
        EmoR3Pipeline.from_pretrained(
            tiny_checkpoint("llava"), quantization_config=BitsAndBytesConfig(load_in_8bit=True)
        )
    assert "\n" not in str(caught.value)


def test_checkpoint_facts_are_saved_and_followed(qwen: EmoR3Pipeline, tmp_path: Path) -> None:
    from dataclasses import replace

    from emo_r3.labels import resolve_labels
    from emo_r3.models.checkpoint import CheckpointInfo

    questions = {**qwen.info.prompts.questions, "think": "Of {labels}, which?"}
    prompts = replace(qwen.info.prompts, version="mine", questions=questions)
    info = CheckpointInfo("think", resolve_labels("joy, gloom"), prompts, square=True, max_pixels=28 * 28 * 4)
    own = EmoR3Pipeline(qwen.model, qwen.processor, info)
    own.save_pretrained(tmp_path / "saved")
    loaded = EmoR3Pipeline.from_pretrained(tmp_path / "saved")
    assert loaded.info == info
    result = loaded(make_images((60, 30))[0], max_new_tokens=TOKENS)
    assert (result.method, result.prompt_version, list(result.probabilities)) == ("think", "mine", ["joy", "gloom"])
    assert "padded from 60x30 to 60x60" in result.notes
    assert loaded.processor.image_processor.size["longest_edge"] == 28 * 28 * 4
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]  # nothing temporary is left
    with pytest.raises(EmoR3Error, match="exists"):
        own.save_pretrained(tmp_path / "saved")
    file = tmp_path / "prompts.toml"
    entries = {name: text for name, text in prompts.to_dict().items() if isinstance(text, str) and name != "unit"}
    tables = [f"[forms.{name}]\nquestion = '''{text}'''" for name, text in questions.items()]
    file.write_text("\n".join([*(f"{name} = '''{text}'''" for name, text in entries.items()), *tables]))
    read = EmoR3Pipeline.from_pretrained(tiny_checkpoint("llava"), prompts=file).info.prompts
    assert read == replace(prompts, unit="fractions")  # what LLaVA has learned


def test_a_pipeline_goes_to_no_other_process() -> None:
    for send in (pickle.dumps, copy.deepcopy):
        with pytest.raises(EmoR3Error, match="make one there with from_pretrained"):
            send(pipe_of("qwen2_5_vl"))


def test_a_tensor_is_refused_at_once() -> None:
    """It can be iterated over, so it was taken for many images, and failed when the first was asked for."""
    with pytest.raises(ImageError, match=r"Tensor is no image: give a path, .* array"):
        pipe_of("qwen2_5_vl")(torch.zeros(3, 8, 8))
