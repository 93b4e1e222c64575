"""A server's answers must be the local pipeline's, and a bad server costs bounded time and no secret."""

from __future__ import annotations

import json
import math
import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from accelerate import PartialState
from chat_server import (
    ChatServer,
    answers_through,
    completion,
    drips,
    fails,
    hangs_up,
    says,
    stalls,
    truncates,
)
from PIL import Image

import emo_r3
import emo_r3.evaluation.run
import emo_r3.inference.endpoint
from emo_r3 import EmoR3Error, EmoR3Pipeline, EmotionResult, ImageError
from emo_r3.cli.main import main
from emo_r3.errors import CheckpointError, PromptError
from emo_r3.evaluation.run import Evaluation, load_engine
from emo_r3.inference.endpoint import EndpointError, EndpointPipeline
from emo_r3.inference.endpoint_reply import Reply, label_shares
from emo_r3.miniature import world
from emo_r3.miniature.datasets import make_miniature
from emo_r3.miniature.drawing import render
from emo_r3.models.calibration import Calibration, Way, write_calibrations
from emo_r3.models.checkpoint import CHECKPOINT, CheckpointInfo, write_info
from emo_r3.prompts import load_prompts

GOOD = "<step1>A dog.</step1> <step2>Joy.</step2> <step3>Calm.</step3> \\boxed{awe}"
TOKEN = "sk-very-secret-0123456789"
WHITE = Image.new("RGB", (40, 30), "white")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the client speak to loopback, and retry soon."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(emo_r3.inference.endpoint, "PAUSES", (0.01, 0.02, 0.03))


@pytest.fixture
def server() -> Iterator[ChatServer]:
    with ChatServer(says(GOOD)) as chat:
        yield chat


@cache
def local() -> EmoR3Pipeline:
    return EmoR3Pipeline.from_pretrained()


def drawings(count: int) -> list[Image.Image]:
    """Scenes of the miniature's world, of other sizes and shapes than it knows too."""
    rng = np.random.default_rng(7)
    made = [render(world.sample_scene("miniature-8", rng)) for _ in range(count)]
    return [*made[:-2], made[-2].resize((200, 90)), made[-1].resize((17, 25))]


def same(ours: EmotionResult, theirs: EmotionResult) -> None:
    for name in ("label", "text", "steps", "problems", "method", "prompt_version"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.notes[: len(theirs.notes)] == theirs.notes


@pytest.mark.parametrize("method", ["set", "direct"])
def test_answers_and_distributions_are_the_local_ones(server: ChatServer, method: Any) -> None:
    server.usual = answers_through(local())
    pipe = EmoR3Pipeline.from_endpoint(server.url, info=local().info)
    images = drawings(4)
    ours, theirs = pipe(images, method=method), local()(images, method=method, decoding="free")
    for mine, other in zip(ours, theirs, strict=True):
        same(mine, other)
        assert mine.label is not None and sum(mine.probabilities.values()) == pytest.approx(1)
        assert mine.probabilities == pytest.approx(other.probabilities, abs=2e-3)
        assert mine.valence == pytest.approx(other.valence, abs=0.02)


@pytest.mark.slow
def test_transformers_serve_gives_the_local_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The server of transformers itself; but its AutoProcessor wants Qwen's video part, and so torchvision."""
    pytest.importorskip("openai", reason="transformers serve needs fastapi, uvicorn and openai")
    import transformers
    from transformers.cli.serve import Serve

    from emo_r3.models.processor import load_processor

    if not transformers.utils.is_torchvision_available():
        monkeypatch.setattr(
            transformers.AutoProcessor,
            "from_pretrained",
            lambda folder, **_: load_processor(Path(folder), Path(folder)),
        )
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    options = {
        "device": "cpu",
        "dtype": "float32",
        "log_level": "error",
    }  # the pipeline's dtype; the weights are halves
    serve = Serve(str(CHECKPOINT), host="127.0.0.1", port=port, non_blocking=True, **options)
    try:
        while not serve.server.started:
            time.sleep(0.05)
        # The name of the model is its folder, which says how it wants to be asked.
        pipe = EmoR3Pipeline.from_endpoint(f"http://127.0.0.1:{port}/v1", str(CHECKPOINT))
        images = drawings(4)
        for method in ("set", "direct"):
            theirs = local()(images, method=method, decoding="free")
            for mine, other in zip(pipe(images, method=method), theirs, strict=True):
                same(mine, other)
                assert mine.label is not None and mine.probabilities == {}
                assert mine.notes[-1] == "no distribution: the server gives no log-probabilities"
        images[0].save(tmp_path / "image.png")
        words = ["predict", str(tmp_path / "image.png"), "--model", str(CHECKPOINT), "--format", "jsonl"]
        words += ["--output", str(tmp_path / "row.jsonl")]
        assert main([*words, "--endpoint", f"http://127.0.0.1:{port}/v1"]) == 0
        row = json.loads((tmp_path / "row.jsonl").read_text())
        assert row["text"] == local()(images[0], decoding="free").text
    finally:
        serve.kill_server()


def test_the_request_is_the_local_question_on_the_same_pixels(server: ChatServer) -> None:
    pipe = EndpointPipeline(server.url + "/v1/", "m", token=TOKEN)
    result = pipe(Image.new("RGB", (300, 2), "red"), labels=["awe", "joy"], max_new_tokens=7)
    [request] = server.requests
    assert request["path"] == "/v1/chat/completions" and request["headers"]["authorization"] == f"Bearer {TOKEN}"
    body = request["body"]
    image, text = body.pop("messages")[0]["content"]
    assert text["text"] == pipe.info.prompts.question("set", ["awe", "joy"])
    assert body == {
        "model": "m",
        "max_tokens": 7,
        "temperature": 0.0,
        "frequency_penalty": 0.0,
        "logprobs": True,
        "top_logprobs": 20,
        "stream": False,
    }
    assert result.notes[0] == "padded from 300x2 to 300x6" and result.label == "awe" and result.well_formed
    assert image["image_url"]["url"].startswith("data:image/png;base64,")


def test_sampling_depends_on_the_seed_and_the_image_alone(server: ChatServer) -> None:
    """So that a run that goes on in the middle of its list asks for the same samples."""
    pipe = EndpointPipeline(server.url)
    images = [Image.new("RGB", (30, 30), (level, 0, 0)) for level in range(3)]

    def seeds(given: list[Image.Image] = images, **options: Any) -> list[int]:
        server.requests.clear()
        pipe(given, temperature=0.7, batch_size=1, **options)
        assert {(r["body"]["temperature"], r["body"]["top_p"]) for r in server.requests} == {(0.7, 1.0)}
        return [request["body"]["seed"] for request in server.requests]

    assert len({*seeds(), *seeds(seed=1)}) == 6 and seeds() == seeds()
    assert seeds(images[1:]) == seeds()[1:] and seeds(images[::-1]) == seeds()[::-1]


def test_results_keep_their_order_and_requests_their_bound(server: ChatServer) -> None:
    def slower_first(handler: Any, body: dict[str, Any]) -> None:
        time.sleep(0.3 if len(server.requests) == 1 else 0.02)
        handler.send(200, completion(GOOD))

    server.usual = slower_first
    pipe = EndpointPipeline(server.url, concurrency=3)
    images = [Image.new("RGB", (40 + n, 40)) for n in range(12)]
    for n, image in enumerate(images):
        image.filename = f"image {n}"  # type: ignore[attr-defined]
    results = pipe(iter(images))
    assert [result.image for result in results] == [f"image {n}" for n in range(12)]
    assert server.most_busy == 3


def test_leaving_early_ends_the_requests(server: ChatServer) -> None:
    def first_only(handler: Any, body: dict[str, Any]) -> None:
        (says(GOOD) if body["messages"] == first else stalls)(handler, body)

    EndpointPipeline(server.url)(WHITE)
    first = server.requests.pop()["body"]["messages"]
    server.usual = first_only  # requests may arrive in another order
    others = (Image.new("RGB", (40, 30), "black") for _ in iter(int, 1))
    results = EndpointPipeline(server.url, concurrency=2)(chain([WHITE], others))
    start = time.monotonic()
    assert next(results).label == "awe"
    results.close()
    assert time.monotonic() - start < 5 and len(server.requests) <= 4


@pytest.mark.parametrize(
    "bad",
    [
        fails(429),
        fails(500),
        fails(503, "<html>busy</html>"),
        fails(408),
        fails(524),
        truncates,
        hangs_up,
        pytest.param(stalls, marks=pytest.mark.slow),
        pytest.param(drips, marks=pytest.mark.slow),
        lambda handler, body: handler.send(200, "{nonsense"),
        lambda handler, body: handler.send(200, "[]"),
        lambda handler, body: handler.send(200, '{"choices": []}'),
        lambda handler, body: handler.send(200, '{"choices": [{"message": {"content": 7}}]}'),
        lambda handler, body: handler.send(200, '{"choices": 3, "error": null}'),
        says("\\boxed{awe}", logprobs=[{"token": "a", "logprob": math.nan, "top_logprobs": []}]),
    ],
)
def test_what_may_pass_is_tried_again_and_then_given_up(server: ChatServer, bad: Any) -> None:
    pipe = EndpointPipeline(server.url, timeout=1.5)
    server.script = [bad]
    assert pipe(WHITE).label == "awe" and len(server.requests) == 2
    server.usual = bad
    start = time.monotonic()
    failed, *_ = pipe([WHITE, WHITE], on_error="return")
    assert time.monotonic() - start < 8
    assert failed.error and failed.error.startswith(f"PIL image: {server.url}: ") and "\n" not in failed.error
    assert failed.label is None and not failed.well_formed


def test_giving_up_is_an_error_unless_asked_for(server: ChatServer) -> None:
    server.usual = fails(500)
    with pytest.raises(EndpointError, match=r"answered 500, and no answer after 4 attempts; try again later"):
        EndpointPipeline(server.url)(WHITE)
    assert len(server.requests) == 4


def test_retry_after_is_kept(server: ChatServer) -> None:
    server.script = [fails(429, Retry_After="1")]
    start = time.monotonic()
    assert EndpointPipeline(server.url)(WHITE).label == "awe"
    assert 1.0 <= time.monotonic() - start < 8
    server.script = [fails(503, Retry_After="3600")]
    start = time.monotonic()
    with pytest.raises(EndpointError, match="asks to wait 3600 s"):
        EndpointPipeline(server.url, timeout=20)(WHITE)
    assert time.monotonic() - start < 8


@pytest.mark.parametrize("status", [401, 403, 404])
def test_what_no_image_can_change_ends_the_run(server: ChatServer, status: int) -> None:
    server.usual = fails(status, json.dumps({"error": f"the key {TOKEN} is unknown"}))
    with pytest.raises(EndpointError, match=rf"it answered {status} \(the key \*\*\* is unknown\); check") as caught:
        EndpointPipeline(f"{server.url}/v1?key=hidden", "m", token=TOKEN)([WHITE] * 3, on_error="return")
    assert TOKEN not in str(caught.value) and "hidden" not in str(caught.value) and caught.value.__cause__ is None
    assert server.requests[0]["path"] == "/v1/chat/completions?key=hidden"
    with pytest.raises(EndpointError, match="lists 2 models") as caught:
        server.models = ["a", "b"]
        EndpointPipeline(f"{server.url}/v1?key=hidden")
    assert "hidden" not in str(caught.value)


def test_a_server_that_is_gone_ends_the_run(server: ChatServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
    pipe = EndpointPipeline(url, "m")
    with pytest.raises(EndpointError, match=r"no connection .* start the server"):
        pipe([WHITE] * 3, on_error="return")
    with pytest.raises(EndpointError, match="doesn't list its models"):
        EndpointPipeline(url)


def test_a_refused_image_is_a_row(server: ChatServer, tmp_path: Path) -> None:
    server.script = [fails(400, '{"error": {"message": "image too large"}}')]
    missing = tmp_path / "none.png"
    refused, unread, good = EndpointPipeline(server.url)([WHITE, missing, WHITE], on_error="return", batch_size=1)
    assert refused.error and "answered 400 (" in refused.error and "image too large" in refused.error
    assert unread.error and unread.image == str(missing) and "no such file" in unread.error
    assert good.label == "awe"
    with pytest.raises(ImageError, match="no such file"):
        EndpointPipeline(server.url)(missing)


def test_a_server_without_log_probabilities_is_asked_without(server: ChatServer) -> None:
    def refuses(handler: Any, body: dict[str, Any]) -> None:
        if "logprobs" in body:
            handler.send(400, '{"error": {"message": "logprobs is not supported"}}')
        else:
            handler.send(200, completion(GOOD))

    server.usual = refuses
    pipe = EndpointPipeline(server.url)
    results = [pipe(WHITE), pipe(WHITE)]
    assert [result.label for result in results] == ["awe", "awe"] and len(server.requests) == 3
    assert results[0].notes == ("no distribution: the server gives no log-probabilities",)


def test_what_is_written_after_the_box_or_apart_from_the_text(server: ChatServer) -> None:
    pipe = EndpointPipeline(server.url)
    server.script = [says(GOOD + "\n\nShall I go on? \\boxed{fear}", finish="length")]
    result = pipe(WHITE)
    assert (result.label, result.text, result.problems) == ("awe", GOOD, ())
    server.script = [says("\\boxed{awe}", reasoning_content="A dog.")]
    assert pipe(WHITE, method="think").steps == {"think": "A dog."}
    server.script = [says("<step1>A dog", finish="length")]
    cut = pipe(WHITE, max_new_tokens=5)
    assert cut.label is None and "missing_box" in cut.problems and cut.notes[-1] == "cut at max_new_tokens=5"
    server.script = [says(None)]
    assert pipe(WHITE).text == ""


def test_the_saved_token_goes_to_hugging_face_alone(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emo_r3.inference.endpoint, "get_token", lambda: TOKEN)
    EndpointPipeline(server.url)(WHITE)
    sent = json.dumps(server.requests + server.listings)
    assert TOKEN not in sent and "Bearer EMPTY" in sent
    for url in ("https://router.huggingface.co/v1", "https://huggingface.co"):
        assert emo_r3.inference.endpoint._saved_token(url) == TOKEN
    for url in ("http://huggingface.co", "https://huggingface.co.example.org", "https://nothuggingface.co"):
        assert emo_r3.inference.endpoint._saved_token(url) is None
    monkeypatch.setenv("EMO_R3_ENDPOINT_TOKEN", "another")
    EndpointPipeline(server.url)(WHITE)
    assert server.requests[-1]["headers"]["authorization"] == "Bearer another"


def test_the_only_model_is_found_and_many_are_listed(server: ChatServer) -> None:
    assert EndpointPipeline(server.url).name == "miniature"
    assert server.listings[-1]["path"] == "/v1/models"
    server.models = ["one", "two"]
    with pytest.raises(EndpointError, match="lists 2 models: one, two; name the one"):
        EndpointPipeline(server.url + "/v1/chat/completions")
    server.models = []
    with pytest.raises(EndpointError, match="lists 0 models; name"):
        EndpointPipeline(server.url)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoding": "constrained"}, "needs the model itself"),
        ({"reflect": True}, "reflect: not with a server"),
        ({"num_candidates": 3}, "num_candidates: not with a server"),
        ({"explain": True}, "explain: not with a server"),
        ({"temperature": 0}, "temperature=0 is not above 0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"batch_size": -1}, "batch_size=-1"),
        ({"on_error": "skip"}, "on_error='skip'"),
    ],
)
def test_options_that_a_server_cant_have(server: ChatServer, options: dict[str, Any], message: str) -> None:
    with pytest.raises(EmoR3Error, match=message):
        EndpointPipeline(server.url)(WHITE, **options)
    assert not server.requests


@pytest.mark.parametrize("url", ["localhost:8000", "ftp://host/v1", "http://", "http://a\n/", "http://[::1/v1", ""])
def test_what_is_no_address(url: str) -> None:
    with pytest.raises(EndpointError, match="is not the address of a server"):
        EndpointPipeline(url, "m")


def test_addresses_and_times_that_cant_be() -> None:
    with pytest.raises(EndpointError, match="holds a user name") as caught:
        EndpointPipeline(f"http://me:{TOKEN}@host/v1", "m")
    assert TOKEN not in str(caught.value)
    for options in ({"timeout": 0.0}, {"timeout": math.nan}, {"concurrency": 0}):
        with pytest.raises(EmoR3Error, match=next(iter(options))):
            EndpointPipeline("http://host", "m", **options)  # type: ignore[arg-type]


def test_offline_is_said(server: ChatServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for pipe in (lambda: EndpointPipeline(server.url), lambda: EndpointPipeline(server.url, "m")(WHITE)):
        with pytest.raises(EndpointError, match="HF_HUB_OFFLINE is set"):
            pipe()


def test_info_says_how_to_ask(server: ChatServer) -> None:
    info = CheckpointInfo(method="direct", square=True)
    result = EndpointPipeline(server.url, info=info)(WHITE)
    assert result.method == "direct" and "padded from 40x30 to 40x40" in result.notes
    text = server.requests[-1]["body"]["messages"][0]["content"][1]["text"]
    assert text == info.prompts.question("direct", info.label_set)


def test_a_calibration_scales_what_the_server_says(server: ChatServer, tmp_path: Path) -> None:
    server.usual = answers_through(local())
    way = Way(local().info.label_set.labels, "direct")
    hot = Calibration(way, "temperature", (0.5,) * 8, (0.0,) * 8)
    info = replace(local().info, calibrations=(hot,))
    raw, scaled = (EmoR3Pipeline.from_endpoint(server.url, info=one) for one in (local().info, info))
    [image] = drawings(3)[:1]
    before, after = raw(image, method="direct"), scaled(image, method="direct")
    assert after.probabilities == pytest.approx(hot.apply(before.probabilities, before.label)[0])
    assert after.label == before.label and after.notes[-1] == "probabilities calibrated (temperature 2)"
    # An evaluation keeps the server's own answers, and measures both.
    write_info(tmp_path, info)
    asked = Evaluation(["x"], tmp_path, model=str(tmp_path), endpoint=server.url, method="direct")
    engine, facts = load_engine(asked, PartialState())
    assert facts["calibrations"] == (hot,) and engine(image, method="direct").probabilities == before.probabilities
    assert load_engine(replace(asked, calibration=False), PartialState())[1]["calibrations"] == ()


def test_prompts_and_a_calibration_in_place_of_the_models_own(server: ChatServer, tmp_path: Path) -> None:
    labels = CheckpointInfo().label_set.labels
    own, other = (Calibration(Way(labels, "direct"), "temperature", (by,) * 8, (0.0,) * 8) for by in (0.5, 0.25))
    model, answers = tmp_path / "model", tmp_path / "calibration.json"
    model.mkdir()
    write_info(model, CheckpointInfo(calibrations=(own,)))
    write_calibrations(answers, [other])
    prompts = tmp_path / "own.toml"
    text = (Path(emo_r3.__file__).parent / "prompts.toml").read_text()
    prompts.write_text(text.replace("Which emotion best describes", "Which feeling is in"))

    def asked(**options: Any) -> EndpointPipeline:
        return EmoR3Pipeline.from_endpoint(server.url, str(model), **options)

    assert asked().info.calibrations == (own,)
    assert asked(calibration=False).info.calibrations == ()
    assert asked(calibration=answers).info.calibrations == (other,)
    assert asked(prompts=load_prompts()).info.calibrations == (own,)
    assert asked(prompts=prompts).info.calibrations == (), "it was fitted to answers to another question"
    assert asked(prompts=str(prompts), calibration=answers).info.calibrations == (other,)
    asked(prompts=prompts)(WHITE)
    assert "Which feeling is in" in server.requests[-1]["body"]["messages"][0]["content"][1]["text"]
    with pytest.raises(CheckpointError, match="no such calibration"):
        asked(calibration=tmp_path / "none")
    with pytest.raises(PromptError):
        asked(prompts=tmp_path / "none.toml")


def shares(tokens: list[tuple[str, dict[str, float]]], *labels: str) -> tuple[dict[str, float], tuple[str, ...]]:
    steps = [(text, [(other, math.log(share)) for other, share in choices.items()]) for text, choices in tokens]
    return label_shares(Reply("".join(text for text, _ in tokens), False, steps), labels)


def test_shares_of_labels_of_one_token() -> None:
    tokens = [
        ("So \\boxed{", {"So \\boxed{": 1.0}),
        ("awe", {"awe": 0.6, "fear": 0.2, " awe": 0.1}),
        ("}", {"}": 1.0}),
    ]
    assert shares(tokens, "awe", "fear")[0] == pytest.approx({"awe": 0.75, "fear": 0.25})
    found, [note] = shares(tokens, "awe", "fear", "joy")
    assert found["joy"] == 0 and note.startswith("1 labels are none of")


def test_shares_where_labels_part_late() -> None:
    labels = ("disgust", "disappointment", "joy")
    first = ("dis", {"dis": 0.8, "joy": 0.1, "d": 0.1})
    second = ("gust", {"gust": 0.3, "appoint": 0.1, "x": 0.6})
    found, _ = shares([("\\boxed{", {}), first, second, ("}", {})], *labels)
    # "d" leads to both, as "dis" does, and is split evenly.
    assert found == pytest.approx({"disgust": 0.6 + 0.05, "disappointment": 0.2 + 0.05, "joy": 0.1})
    unwritten = ("joy", {"joy": 0.5, "dis": 0.5})
    found, _ = shares([("\\boxed{", {}), unwritten, ("}", {})], *labels)
    assert found == pytest.approx({"disgust": 0.25, "disappointment": 0.25, "joy": 0.5})


def test_shares_where_the_brace_is_part_of_a_token() -> None:
    tokens = [("\\", {}), ("boxed", {}), ("{joy", {"{joy": 0.5, "{awe": 0.25, "{": 0.25}), ("}.", {})]
    # "{" is how labels without a token of their own begin.
    assert shares(tokens, "joy", "awe", "excitement")[0] == {"joy": 0.5, "awe": 0.25, "excitement": 0.25}
    tokens = [("\\boxed{", {}), ("joy", {"joy": 1.0}), ("}", {"}": 0.5, "ful": 0.5})]
    assert shares(tokens, "joy", "joyful")[0] == {"joy": 0.5, "joyful": 0.5}


def test_no_shares_without_a_place_for_them() -> None:
    assert shares([("awe", {"awe": 1.0})], "awe", "joy") == ({}, ("no distribution: no box in the answer",))
    for tokens in ([("\\boxed{", {"\\boxed{": 1.0})], [("\\boxed{", {}), ("7", {"7": 1.0}), ("}", {})]):
        found, [note] = shares(tokens, "awe", "joy")
        assert found == {} and "none of the labels" in note


def test_broken_log_probabilities_leave_the_answer(server: ChatServer) -> None:
    entry = {"token": "\\boxed{", "logprob": 0.0, "top_logprobs": []}
    odd = {"token": "awe", "logprob": 1e999, "top_logprobs": [{"token": "joy", "logprob": 7.0}]}
    server.script = [says("\\boxed{awe}", logprobs=[entry, odd])]
    result = EndpointPipeline(server.url)(WHITE, method="direct")
    assert result.label == "awe" and result.probabilities == {} and json.loads(result.to_json())


def test_evaluate_asks_a_server_and_goes_on_when_it_is_back(
    server: ChatServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_miniature("miniature-6", tmp_path / "miniature-6", sizes={"train": 1, "test": 9})
    words = ["evaluate", "--datasets", str(tmp_path / "miniature-6"), "--output", str(tmp_path / "out")]
    words += ["--endpoint", server.url, "--batch-size", "1"]  # so that the first five have an answer
    assert main([*words, "--dtype", "float32"]) == 2 and "--dtype is for a model that is" in capsys.readouterr().err
    server.script = [says("\\boxed{joy}")] * 5
    server.usual = fails(403)
    assert main(words) == 2 and "it answered 403" in capsys.readouterr().err
    server.requests.clear()
    server.usual = says("<step1>A dog.</step1> <step2>Joy.</step2> <step3>Calm.</step3> \\boxed{joy}")
    assert main(words) == 0 and "miniature" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    assert [row["prediction"] for row in rows] == ["joy"] * 9 and not any(row["distribution"] for row in rows)
    assert len(server.requests) == 4, "what was done is not asked again"
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert results["model"]["name"] == "miniature" and results["model"]["endpoint"] == server.url


@pytest.fixture
def measured(server: ChatServer, tmp_path: Path) -> Any:
    """Evaluates nine drawings through the server; the exit code, the rows, and how often the server was asked."""
    make_miniature("miniature-6", tmp_path / "miniature-6", sizes={"train": 1, "test": 9})

    def evaluate(output: str = "out", *more: str) -> tuple[int, list[dict[str, Any]], int]:
        folder = tmp_path / output
        words = ["--datasets", str(tmp_path / "miniature-6"), "--output", str(folder), "--endpoint", server.url]
        server.requests.clear()
        code = main(["evaluate", *words, "--batch-size", "4", *more])
        path = folder / "predictions.jsonl"
        return (
            code,
            list(map(json.loads, path.read_text().splitlines())) if path.exists() else [],
            len(server.requests),
        )

    return evaluate


def by_image(handler: Any, body: dict[str, Any]) -> None:
    """An answer that depends on the image alone."""
    number = sum(body["messages"][0]["content"][0]["image_url"]["url"].encode())
    handler.send(200, completion(f"{GOOD[:-5]}{['joy', 'fear', 'anger'][number % 3]}}}"))


@pytest.mark.parametrize(
    "bad", [fails(500), *(pytest.param(bad, marks=pytest.mark.slow) for bad in (fails(429), fails(501), truncates))]
)
def test_a_500_is_asked_again(
    server: ChatServer, measured: Any, tmp_path: Path, bad: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was a final wrong answer: accuracy 0.00, never asked again, and compared with p < 0.001."""
    server.usual = by_image
    code, whole, asked = measured("whole")
    assert (code, len(whole), asked) == (0, 9, 9)
    server.usual = bad
    assert measured()[:2] == (2, [])
    said = capsys.readouterr().err
    assert "9 of 9 images have no answer, so there are no results yet; the same command asks about them" in said
    assert main(["compare", str(tmp_path / "whole"), str(tmp_path / "out")]) == 2
    assert f"{tmp_path / 'out'} has no results.json: finish it" in capsys.readouterr().err
    server.usual = by_image
    assert measured() == (0, whole, 9)
    first, second = ((tmp_path / name / "predictions.jsonl").read_bytes() for name in ("whole", "out"))
    assert first == second and not list((tmp_path / "out").glob("predictions-*"))


def test_only_what_a_server_failed_to_answer_is_asked_again(server: ChatServer, measured: Any, tmp_path: Path) -> None:
    """A good answer stays what it was, whatever the server says now."""
    server.script = [by_image] * 3
    server.usual = fails(503)
    assert measured()[:2] == (2, [])
    batches = [json.loads(line) for line in (tmp_path / "out/predictions-0.jsonl").read_text().split("\n") if line]
    before = {row["id"]: row for batch in batches for row in batch["rows"] if "error" not in row}
    assert len(before) == 3
    server.usual = says("\\boxed{surprise}")
    code, rows, asked = measured()
    assert (code, asked) == (0, 6)
    assert {row["id"]: row for row in rows if row["id"] in before} == before
    assert sum(row["prediction"] == "surprise" for row in rows) == 6
    assert measured() == (0, rows, 0)


def test_one_image_that_a_server_always_fails_on_can_be_given_up(
    server: ChatServer, measured: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """It held up the results for ever. A server that answers nothing is not given up."""
    server.usual = fails(500)
    assert measured("down", "--give-up")[:2] == (2, [])
    url: list[str] = []

    def all_but_one(handler: Any, body: dict[str, Any]) -> None:
        image = body["messages"][0]["content"][0]["image_url"]["url"]
        url[:] = url or [image]
        (fails(500) if image == url[0] else by_image)(handler, body)

    server.usual = all_but_one
    assert measured()[:2] == (2, [])
    assert "1 of 9 images have no answer" in (said := capsys.readouterr().err) and "--give-up" in said
    code, rows, asked = measured("out", "--give-up")
    assert code == 1 and asked > 0 and sum("error" in row for row in rows) == 1
    assert "1 of 9 images of miniature-6 could not be read and count as wrong" in capsys.readouterr().out


def test_a_server_that_stays_down_ends_the_run(
    server: ChatServer, measured: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(emo_r3.evaluation.run, "SERVER_FAILURES", 4)
    one_by_one = ("out", "--batch-size", "1")  # so that the first four are the ones with an answer
    server.script = [by_image] * 4
    server.usual = fails(500)
    assert measured(*one_by_one)[:2] == (2, [])
    assert "4 images in a row without an answer, the last because of " in capsys.readouterr().err
    server.usual = by_image
    code, rows, _ = measured(*one_by_one)
    # Not the number of requests: one that the first run took back may come late, and asks about one of these images.
    asked = {json.dumps(request["body"]["messages"]) for request in server.requests}
    assert code == 0 and len(asked) == 5 and not any("error" in row for row in rows)


def test_an_image_that_a_server_refuses_is_marked(
    server: ChatServer, measured: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A content filter, or an image too large for the model, will say the same tomorrow: the row is final."""
    server.usual = by_image
    measured("whole")
    server.script = [fails(400, '{"error": {"message": "filtered"}}')]
    code, rows, _ = measured()
    assert code == 1 and sum("error" in row for row in rows) == 1
    note = "1 of 9 images of miniature-6 could not be read and count as wrong"
    assert f"- miniature: {note}" in capsys.readouterr().out
    assert measured() == (1, rows, 0)
    capsys.readouterr()
    assert main(["compare", str(tmp_path / "whole"), f"other={tmp_path / 'out'}"]) == 0
    assert capsys.readouterr().out.endswith(f"\n\n- other: {note}\n")


def test_a_server_that_refuses_every_image_has_measured_nothing(server: ChatServer, measured: Any) -> None:
    """As one whose model takes no images: started again with another model, it is asked again."""
    server.usual = fails(400, '{"error": {"message": "no images"}}')
    assert measured()[:2] == (2, [])
    server.usual = by_image
    code, rows, asked = measured()
    assert (code, asked) == (0, 9) and not any("error" in row for row in rows)
