"""The REST API: one server in a process of its own, as `emo-r3 serve` starts it, and bounds at the seam."""

from __future__ import annotations

import asyncio
import multiprocessing
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forked
import httpx
import pytest
from fastapi.testclient import TestClient

import emo_r3.serving.api
import emo_r3.serving.bounded
import emo_r3.serving.limits
from emo_r3 import EmoR3Pipeline
from emo_r3.cli.main import main
from emo_r3.errors import ImageError
from emo_r3.serving import create_api
from emo_r3.serving.bounded import BoundedPipeline
from emo_r3.serving.limits import BodyLimit

ROOT = Path(__file__).parents[2]
SAMPLES = sorted((ROOT / "docs/samples").glob("*.png"))
TOKEN = "a-token-of-24-characters"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@dataclass(frozen=True)
class Running:
    url: str
    log: Path
    process: Any


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path_factory.mktemp("serve") / "log.txt"
    log.touch()
    variables = {"EMO_R3_SERVER_TOKEN": TOKEN}
    process = forked.start(main, ["serve", "--port", str(port)], environment=variables, output=log, errors=log)
    url = f"http://127.0.0.1:{port}"
    for _ in range(600):
        try:
            httpx.get(f"{url}/health")
            break
        except httpx.TransportError:
            assert process.exitcode is None, log.read_text()
            time.sleep(0.1)
    yield Running(url, log, process)
    process.terminate()
    process.join(20)
    # uvicorn ends its work, and then by the signal itself, so that who started it can tell.
    assert process.exitcode in (0, -signal.SIGTERM), log.read_text()
    assert "Traceback" not in log.read_text()
    assert TOKEN not in log.read_text()


def image(path: Path, name: str | None = None) -> tuple[str, bytes]:
    return (name or path.name, path.read_bytes())


@pytest.mark.slow
def test_one_image_gets_what_the_pipeline_gives(server: Running) -> None:
    options = {"labels": "joy, fear, sadness", "reflect": "true"}
    files = {"image": image(SAMPLES[0], "../../etc/a photo.png")}
    answer = httpx.post(f"{server.url}/predict", files=files, data=options, headers=BEARER, timeout=60)
    assert answer.status_code == 200, answer.text
    given = answer.json()
    expected = EmoR3Pipeline.from_pretrained()(str(SAMPLES[0]), labels="joy, fear, sadness", reflect=True).to_dict()
    assert given["image"] == "a photo.png"
    assert given["probabilities"] == pytest.approx(expected["probabilities"], abs=1e-5)
    for name in ("label", "steps", "text", "model", "notes"):
        assert given[name] == expected[name]
    assert given["score"] == pytest.approx(expected["score"], abs=1e-5)


@pytest.mark.slow
def test_several_images_come_in_order_and_a_broken_one_says_why(server: Running) -> None:
    files = [("images", image(path)) for path in SAMPLES[:2]]
    files.insert(1, ("images", ("broken.png", b"no image")))
    answer = httpx.post(f"{server.url}/predict-many", files=files, headers=BEARER, timeout=60)
    assert answer.status_code == 200, answer.text
    first, broken, second = answer.json()["results"]
    assert [first["image"], broken["image"], second["image"]] == [SAMPLES[0].name, "broken.png", SAMPLES[1].name]
    assert first["label"] and second["label"] and not broken["label"]
    assert "broken.png" in broken["error"]


@pytest.mark.slow
def test_several_chains_are_one_answer(server: Running) -> None:
    data = {"num_candidates": "4", "aggregate": "self-consistency"}
    answer = httpx.post(
        f"{server.url}/predict", files={"image": image(SAMPLES[0])}, data=data, headers=BEARER, timeout=60
    )
    assert answer.json()["chain_agreement"] in (0.25, 0.5, 0.75, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}])
def test_without_the_token_nothing_is_read(server: Running, headers: dict[str, str]) -> None:
    for path in ("/predict", "/predict-many", "/", "/redoc"):
        answer = httpx.post(f"{server.url}{path}", content=b"x" * 1000, headers=headers)
        assert (answer.status_code, answer.json()["error"][:25]) == (401, "send the server's token: ")


@pytest.mark.slow
def test_health_and_documentation_are_for_all(server: Running) -> None:
    health = httpx.get(f"{server.url}/health").json()
    assert (health["status"], health["model"], health["method"]) == ("ok", "miniature", "set")
    assert "contentment" in health["labels"]
    described = httpx.get(f"{server.url}/openapi.json").json()
    assert set(described["paths"]) == {"/health", "/predict", "/predict-many"}
    assert described["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    assert "swagger" in httpx.get(f"{server.url}/docs").text


@pytest.mark.slow
@pytest.mark.parametrize(
    ("data", "code", "said"),
    [
        ({"labels": "joy"}, 422, "joy"),
        ({"labels": "a,b" * 1000}, 422, "characters long"),
        ({"num_candidates": "1000"}, 422, "num_candidates: input should be less than or equal to 16"),
        ({"reflect": "maybe"}, 422, "reflect: input should be a valid boolean"),
        ({"label": "joy,fear"}, 422, "there is no field 'label': the form has image, labels, reflect"),
        ({"aggregate": "mean"}, 422, "self-consistency"),
        ({"aggregate": "self-consistency"}, 422, "num_candidates of 2 or more"),
    ],
)
def test_an_option_that_cannot_be_used_says_why(server: Running, data: dict[str, str], code: int, said: str) -> None:
    answer = httpx.post(f"{server.url}/predict", files={"image": image(SAMPLES[0])}, data=data, headers=BEARER)
    assert answer.status_code == code
    assert said in answer.json()["error"]


@pytest.mark.slow
def test_nothing_that_is_sent_is_passed_over(server: Running) -> None:
    one = ("image", image(SAMPLES[0]))
    answer = httpx.post(f"{server.url}/predict", files=[one, one], headers=BEARER)
    assert (answer.status_code, answer.json()["error"]) == (
        422,
        "the field image is there twice: send several to /predict-many",
    )
    answer = httpx.post(f"{server.url}/predict?labels=joy,fear", files=[one], headers=BEARER)
    assert (answer.status_code, "in the address" in answer.json()["error"]) == (422, True)
    for method, path, code in (("GET", "/predict", 405), ("POST", "/predictions", 404)):
        answer = httpx.request(method, f"{server.url}{path}", headers=BEARER)
        assert answer.status_code == code and answer.json()["error"]
    lower = {"Authorization": f"bearer {TOKEN}"}
    assert httpx.get(f"{server.url}/nothing", headers=lower).status_code == 404, "a scheme has no capitals"


@pytest.mark.slow
def test_no_image_and_a_broken_one_say_why(server: Running) -> None:
    answer = httpx.post(f"{server.url}/predict", headers=BEARER)
    assert answer.status_code == 422 and answer.json()["error"].startswith("the field image is missing")
    answer = httpx.post(f"{server.url}/predict", files={"image": ("a.png", b"no image")}, headers=BEARER)
    assert answer.status_code == 422
    assert "a.png" in answer.json()["error"]
    many = [("images", image(SAMPLES[0]))] * 17
    answer = httpx.post(f"{server.url}/predict-many", files=many, headers=BEARER)
    assert (answer.status_code, answer.json()) == (422, {"error": "images: at most 16 in one call"})


@pytest.mark.slow
def test_a_request_that_is_too_large_is_not_read(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2]))) as raw:
        raw.settimeout(20)
        raw.sendall(
            f"POST /predict HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n"
            "Content-Length: 100000000\r\n\r\n".encode()
        )
        assert b" 413 " in raw.recv(1000).partition(b"\r\n")[0]


# At the seam


def test_a_call_that_takes_too_long_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emo_r3.serving.bounded, "TIME_LIMIT", 0.01)
    client = TestClient(create_api(EmoR3Pipeline.from_pretrained()))
    answer = client.post("/predict", files={"image": image(SAMPLES[0])})
    assert answer.status_code == 503
    assert "took longer" in answer.json()["error"]


def test_an_image_that_is_too_large_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emo_r3.serving.api, "MAX_FILE", 100)
    answer = TestClient(create_api(EmoR3Pipeline.from_pretrained())).post(
        "/predict", files={"image": image(SAMPLES[0])}
    )
    assert answer.status_code == 413
    assert "exceeds" in answer.json()["error"]


@pytest.mark.parametrize("token", [None, TOKEN])
def test_who_has_the_token_has_no_quota(token: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind a proxy all who call have one address."""
    monkeypatch.setattr(emo_r3.serving.limits, "MAX_SENT", 10)
    client = TestClient(create_api(EmoR3Pipeline.from_pretrained(), token), headers=BEARER if token else {})
    answer = client.post("/predict", files={"image": ("a.png", b"no image")})
    assert answer.status_code == (422 if token else 429) and answer.json()["error"]


def test_what_comes_at_one_time_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each address and each request was bounded, but not what many addresses send together."""
    monkeypatch.setattr(emo_r3.serving.limits, "MAX_DISK", 100)
    statuses: list[int] = []

    async def ask(limited: BodyLimit, host: int, size: int) -> None:
        async def send(message: Any) -> None:
            statuses.extend([message["status"]] if "status" in message else [])

        headers = [(b"content-length", str(size).encode())]
        await limited({"type": "http", "path": "/predict", "headers": headers, "client": (str(host), 1)}, None, send)

    async def together() -> None:
        done = asyncio.Event()

        async def application(scope: Any, receive: Any, send: Any) -> None:
            await done.wait()
            await send({"status": 200})

        limited = BodyLimit(application, 80)
        calls = [asyncio.create_task(ask(limited, host, 60)) for host in (1, 2)]
        await asyncio.sleep(0.05)
        done.set()
        await asyncio.gather(*calls)
        await ask(limited, 3, 60)

    asyncio.run(together())
    assert sorted(statuses) == [200, 200, 507] and statuses[-1] == 200


def test_more_calls_than_may_wait_are_sent_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emo_r3.serving.api, "MAX_WAITING", 0)
    answer = TestClient(create_api(EmoR3Pipeline.from_pretrained())).post(
        "/predict", files={"image": image(SAMPLES[0])}
    )
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "30"


# The command


def test_without_fastapi_the_command_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in [name for name in sys.modules if name.startswith("emo_r3.serving.api")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert main(["serve"]) == 2
    assert "pip install 'emo-r3[serve]'" in capsys.readouterr().err


def test_a_short_token_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("EMO_R3_SERVER_TOKEN", "short")
    assert main(["serve"]) == 2
    said = capsys.readouterr().err
    assert "give 16 or more" in said
    assert "short" not in said


@pytest.mark.slow
def test_a_port_in_use_is_one_line(server: Running, capsys: pytest.CaptureFixture[str]) -> None:
    port = server.url.rpartition(":")[2]
    assert main(["serve", "--port", port]) == 2
    assert f"--port {port}: nothing can be served there" in capsys.readouterr().err


def test_the_image_of_the_dockerfile_copies_what_is_there() -> None:
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    copied = [word for line in lines if line.startswith("COPY ") for word in line.split()[1:-1]]
    assert copied
    assert all((ROOT / name).exists() for name in copied)


def has_docker() -> bool:
    """Whether a daemon answers that can build."""
    return bool(shutil.which("docker")) and not subprocess.run(["docker", "info"], capture_output=True).returncode


@pytest.mark.slow
@pytest.mark.skipif(not has_docker(), reason="needs docker")
def test_the_dockerfile_is_built_and_serves() -> None:
    subprocess.run(["docker", "build", "--tag", "emo-r3-test", str(ROOT)], check=True, timeout=1800)
    run = ["docker", "run", "--rm", "emo-r3-test", "emo-r3", "serve", "--help"]
    assert "POST /predict" in subprocess.run(run, capture_output=True, text=True, check=True, timeout=120).stdout


# A GPU that is lent


def elsewhere(function: Any) -> Any:
    """Runs a generator function in a fork, and pickles what goes there and comes back, as ZeroGPU does."""

    def ask(*arguments: Any) -> Iterator[Any]:
        there, here = (multiprocessing.get_context("fork").SimpleQueue() for _ in range(2))
        there.put(arguments)

        def work() -> None:
            for one in function(*there.get()):
                here.put((one,))
            here.put(None)

        process = multiprocessing.get_context("fork").Process(target=work, daemon=True)
        process.start()
        while (got := here.get()) is not None:
            yield got[0]
        process.join(20)

    return ask


@pytest.mark.slow
def test_the_model_may_answer_in_another_process(tmp_path: Path) -> None:
    pipeline = EmoR3Pipeline.from_pretrained()
    here, there = BoundedPipeline(pipeline), BoundedPipeline(pipeline, elsewhere)
    assert [one.text for one in there.results([str(SAMPLES[0])])] == [
        one.text for one in here.results([str(SAMPLES[0])])
    ]
    *events, last = there.stream(str(SAMPLES[0]))
    assert len(events) > 3 and last.result.label
    with pytest.raises(ImageError, match=r"broken\.png"):
        list(there.stream({"bytes": b"no image", "path": "broken.png"}))
