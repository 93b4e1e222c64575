"""Every test runs offline, without the person's Hub cache and token, and with a small number of threads."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import socket
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import certifi
import pytest

if TYPE_CHECKING:
    from hub_server import HubServer
    from pusher import Pusher

# Until all is imported: a fifth of that time goes to collections that find nothing.
gc.disable()
# Before any test module imports a Hugging Face library: they read these once, at import.
_HOME = tempfile.TemporaryDirectory(prefix="emo-r3-tests-")
os.environ.update(HF_HOME=_HOME.name, HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")
# What a person has set is not for the tests.
_PERSONAL = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "EMO_R3_", "SSL_")
for _name in [name for name in os.environ if name.startswith(_PERSONAL)]:
    del os.environ[_name]
os.environ["EMO_R3_CACHE"] = f"{_HOME.name}/emo_r3"
# One of the world's certificates: no test needs any, and each client of httpx would read them all anew.
_CERTIFICATES = Path(certifi.where()).read_text(encoding="utf-8")
_END = "-----END CERTIFICATE-----\n"
os.environ["SSL_CERT_FILE"] = f"{_HOME.name}/certificate.pem"
Path(os.environ["SSL_CERT_FILE"]).write_text(_CERTIFICATES.partition(_END)[0] + _END, encoding="utf-8")
# One thread for each test process: with more, they wait for each other. A worker has the variables of the process that
# started it, which said 2.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "2")

# A shell starts what runs in its background with Ctrl+C ignored; what the tests start would ignore it too.
signal.signal(signal.SIGINT, signal.default_int_handler)

_connect = socket.socket.connect


def _connect_to_loopback_only(self: socket.socket, address: Any) -> None:
    if self.family in (socket.AF_INET, socket.AF_INET6):
        host = str(address[0])
        if host not in ("localhost", "::1") and not host.startswith("127."):
            raise OSError(f"tests run offline: no connection to {host}")
    _connect(self, address)


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection but to this machine."""
    monkeypatch.setattr(socket.socket, "connect", _connect_to_loopback_only)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full-width", action="store_true", help="run the tests marked full_width too")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long first, so that no process is left alone with one of them at the end."""
    seconds: Counter[Path] = Counter()
    for item in items:
        marker = item.get_closest_marker("slow")
        seconds[item.path] += 0.1 if marker is None else marker.args[0] if marker.args else 3
    items.sort(key=lambda item: -seconds[item.path])  # stable: a file's tests keep their order


def pytest_collection_finish() -> None:
    """Leave what was imported out of every later garbage collection, of which each took a second."""
    _freeze()
    gc.enable()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown() -> None:
    """Leave out what tests imported too, once it is much: each training begins with a collection."""
    if len(sys.modules) > _frozen + 100:
        gc.collect()
        _freeze()


def _freeze() -> None:
    global _frozen
    gc.freeze()
    _frozen = len(sys.modules)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Fork this process for the tests that need others, while it has no threads."""
    if "forked" in sys.modules:
        sys.modules["forked"].start_server()


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip what this machine can't run, or what nobody asked for."""
    if item.get_closest_marker("vllm") and find_spec("vllm") is None:
        pytest.skip("needs vLLM: make test-vllm")
    if item.get_closest_marker("full_width") and not item.config.getoption("--full-width"):
        pytest.skip("takes minutes and gibibytes: make test-full-width")
    if item.get_closest_marker("gpu"):
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Debian's Chromium, without a window: `chromium` is the same engine, but computes a fifth more."""
    names = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("needs Chromium: apt-get install chromium-headless-shell")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright: pip install playwright")
    options = {"executable_path": found, "args": ["--no-sandbox"]}
    with playwright.sync_playwright() as started, started.chromium.launch(**options) as running:
        yield running


@pytest.fixture(scope="session")
def small_sets() -> None:
    """The miniature's data sets, of a few rows, where those lie that commands draw: they would draw thousands."""
    from emo_r3.miniature.datasets import SIZES, drawn_folder, make_miniature

    for name in SIZES:
        make_miniature(name, drawn_folder(name), sizes={"train": 64, "test": 24})


@pytest.fixture(scope="session")
def running_hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubServer]:
    """The session's one Hub."""
    from hub_server import HubServer

    with HubServer(tmp_path_factory.mktemp("hub")) as hub:
        yield hub


@pytest.fixture
def hub(running_hub: HubServer) -> Iterator[HubServer]:
    """The session's Hub with nothing set to fail. Repositories stay: each test uses names of its own."""
    running_hub.faults.clear()
    yield running_hub
    reports = [seen.what for seen in running_hub.faults.seen if "/telemetry/" in seen.what]
    assert not reports, "a library reported what a user does"


@pytest.fixture(scope="session")
def pusher(running_hub: HubServer, tmp_path_factory: pytest.TempPathFactory) -> Pusher:
    """`emo-r3 push` to the session's Hub."""
    from pusher import Pusher

    return Pusher(running_hub, tmp_path_factory.mktemp("pusher"))
