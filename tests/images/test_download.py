"""Downloads against a real server on the loopback interface, well-behaved and otherwise."""

from __future__ import annotations

import io
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from emo_r3.errors import ImageError, UnavailableError
from emo_r3.images.download import MAX_REDIRECTS, _is_public, fetch, public_name
from emo_r3.images.loading import load_image

LIMITS: dict[str, Any] = {"max_bytes": 100_000, "timeout": 5.0, "allow_private_hosts": True}
SECRET = "?token=s3cret#s3cret"


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (255, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def answer(body: bytes = b"", status: str = "200 OK", **headers: Any) -> bytes:
    headers = {"Content_Length": len(body), **headers}
    lines = [f"HTTP/1.1 {status}", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items() if value)]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


Handler = Callable[[socket.socket], None]


class Server:
    """Hands each connection's request to what the test put under its path; speaks HTTP only as well as the test."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.paths: dict[str, bytes | Handler] = {}
        self.requests: list[str] = []
        self.context = context
        self.closing = threading.Event()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while not self.closing.is_set():
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        try:
            with self.context.wrap_socket(connection, server_side=True) if self.context else connection as stream:
                request = b""
                while b"\r\n\r\n" not in request:
                    if not (more := stream.recv(4096)):
                        return
                    request += more
                self.requests.append(request.decode("latin-1"))
                path = self.requests[-1].split()[1].partition("?")[0]
                reply = self.paths.get(path, answer(b"no", "404 Not Found"))
                stream.sendall(reply) if isinstance(reply, bytes) else reply(stream)
        except OSError:  # the client has gone, as it should in half of these tests
            pass

    def drip(self, start: bytes, piece: bytes) -> Handler:
        """Sends `start`, then `piece` every 50 ms until the client gives up."""

        def send(stream: socket.socket) -> None:
            stream.sendall(start)
            while not self.closing.wait(0.05):
                stream.sendall(piece)

        return send


@contextmanager
def running(context: ssl.SSLContext | None = None) -> Iterator[Server]:
    server = Server(context)
    try:
        yield server
    finally:
        server.closing.set()
        server.listener.close()


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as one:
        yield one


def refusal(url: str, **options: Any) -> str:
    with pytest.raises(ImageError) as caught:
        fetch(url, **{**LIMITS, **options})
    message = str(caught.value)
    assert len(message.splitlines()) == 1 and ";" in message, message
    assert "s3cret" not in message, message
    return message


def resolve_to(monkeypatch: pytest.MonkeyPatch, **hosts: list[str]) -> list[str]:
    """Answers for `<key>.test` with these addresses, in turn one per question; returns the list of questions."""
    asked: list[str] = []

    def getaddrinfo(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        asked.append(host)
        addresses = hosts.get(host.removesuffix(".test"), [host])
        address = addresses[min(asked.count(host), len(addresses)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


# --- what works


def test_an_image_from_a_url(server: Server) -> None:
    server.paths["/a.png"] = answer(png())
    loaded = load_image(f"{server.url}/a.png{SECRET}", allow_private_hosts=True)
    assert loaded.image.size == (6, 4) and loaded.image.getpixel((0, 0)) == (255, 0, 0)
    assert loaded.name == f"{server.url}/a.png" and loaded.notes == ()
    request = server.requests[0]
    assert request.startswith("GET /a.png?token=s3cret HTTP/1.1\r\n")  # the fragment stays at home
    assert f"\r\nHost: 127.0.0.1:{server.port}\r\n" in request


def test_a_bad_image_from_a_url_is_named_without_its_query(server: Server) -> None:
    server.paths["/a.png"] = answer(b"<!doctype html><title>Log in</title>")
    with pytest.raises(ImageError, match="web page") as caught:
        load_image(f"{server.url}/a.png{SECRET}", allow_private_hosts=True)
    assert str(caught.value).startswith(f"{server.url}/a.png: ")


def test_ways_to_send_a_body(server: Server) -> None:
    body = bytes(range(256)) * 20
    chunks = b"".join(f"{len(p):x}\r\n".encode() + p + b"\r\n" for p in (body[:7], body[7:])) + b"0\r\n\r\n"
    server.paths = {
        "/length": answer(body),
        "/until-close": answer(body, Content_Length=None),
        "/chunked": answer(chunks, Content_Length=None, Transfer_Encoding="chunked"),
        "/1.0": b"HTTP/1.0 200 OK\r\n\r\n" + body,
        "/early-hints": b"HTTP/1.1 100 Continue\r\n\r\n" + answer(body),
        "/nonsense-length": answer(body, Content_Length="many"),
        "/negative-length": answer(body, Content_Length="-5"),
        "/b%C3%BC%20cher": answer(body),
    }
    for path in [*server.paths, "/bü cher"]:
        assert fetch(server.url + path, **LIMITS) == body, path


def test_redirects_are_followed(server: Server) -> None:
    server.paths = {
        "/1": answer(status="301 Moved", Location="/2?x=1"),
        "/2": answer(status="302 Found", Location="3"),
        "/3": answer(b"ignored", status="303 See Other", Location=f"{server.url}/4#there"),
        "/4": answer(status="307 Temporary", Location="//" + server.url.removeprefix("http://") + "/5"),
        "/5": answer(status="308 Permanent", Location="/ü".encode().decode("latin-1")),
        "/%C3%BC": answer(b"there"),
    }
    assert fetch(f"{server.url}/1", **LIMITS) == b"there"
    assert len(server.requests) == MAX_REDIRECTS + 1


# --- bounds


def test_too_large(server: Server) -> None:
    chunk = b"2710\r\n" + bytes(10_000) + b"\r\n"
    server.paths = {
        "/announced": answer(b"", Content_Length=10**15),
        "/not-announced": server.drip(answer(Content_Length=None), bytes(90_000)),
        "/chunks": server.drip(answer(Content_Length=None, Transfer_Encoding="chunked"), chunk * 9),
        "/exact": answer(bytes(100_000)),
        "/one-more": answer(bytes(100_001)),
    }
    assert len(fetch(f"{server.url}/exact", **LIMITS)) == 100_000
    for path in ("/announced", "/not-announced", "/chunks", "/one-more"):
        assert "larger than 100,000 bytes" in refusal(server.url + path), path


def test_lengths_that_lie(server: Server) -> None:
    body = png()
    server.paths = {
        "/promises-more": answer(body, Content_Length=len(body) + 50),
        "/promises-less": answer(body, Content_Length=len(body) - 30),
        "/cut-chunk": answer(b"400\r\nshort", Content_Length=None, Transfer_Encoding="chunked"),
        "/bad-chunk": answer(b"zzz\r\nshort", Content_Length=None, Transfer_Encoding="chunked"),
    }
    assert f"ended early (50 of {len(body) + 50} bytes are missing)" in refusal(f"{server.url}/promises-more")
    assert fetch(f"{server.url}/promises-less", **LIMITS) == body[:-30]
    for path in ("/cut-chunk", "/bad-chunk"):
        assert "download failed (IncompleteRead)" in refusal(server.url + path)


@pytest.mark.parametrize(
    ("start", "piece"),
    [
        pytest.param(b"", b"", id="silence"),
        pytest.param(b"", b"H", id="status line"),
        pytest.param(b"HTTP/1.1 200 OK\r\n", b"a", id="header"),
        pytest.param(b"HTTP/1.1 200 OK\r\n", b"A: b\r\n", id="headers"),
        pytest.param(b"", b"HTTP/1.1 100 Continue\r\n\r\n", id="continue"),
        pytest.param(answer(Content_Length=5000), b"x", id="body"),
        pytest.param(answer(Content_Length=None), b"x", id="body without length"),
        pytest.param(answer(Content_Length=None, Transfer_Encoding="chunked"), b"1\r\nx\r\n", id="chunks"),
    ],
)
def test_a_dripping_server_cannot_hold_us(server: Server, start: bytes, piece: bytes) -> None:
    server.paths["/a"] = server.drip(start, piece)
    began = time.monotonic()
    assert "not there within 0.4 s" in refusal(f"{server.url}/a{SECRET}", timeout=0.4)
    assert time.monotonic() - began < 3


def test_the_deadline_spans_redirects(server: Server) -> None:
    def slow(stream: socket.socket) -> None:
        time.sleep(0.3)
        stream.sendall(answer(status="302 Found", Location="/next"))

    server.paths = {"/first": slow, "/next": slow}
    assert "not there within 0.5 s" in refusal(f"{server.url}/first", timeout=0.5)


def test_a_slow_resolver_counts_against_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: done.wait(30))
    began = time.monotonic()
    assert "not there within 0.3 s" in refusal(f"http://slow.test/a.png{SECRET}", timeout=0.3)
    done.set()
    assert time.monotonic() - began < 3


@pytest.mark.skipif(sys.platform != "linux", reason="a full queue swallows packets on Linux only")
def test_an_address_that_swallows_packets_leaves_time_for_the_next(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.paths["/a"] = answer(b"ok")
    full = socket.create_server(("127.0.0.1", 0), backlog=0)
    fillers = []
    for _ in range(4):  # a full queue: further connections get no answer
        filler = socket.socket()
        filler.setblocking(False)
        filler.connect_ex(full.getsockname())
        fillers.append(filler)
    places = [full.getsockname(), ("127.0.0.1", server.port)]
    answers = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", place) for place in places]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers)
    began = time.monotonic()
    assert fetch("http://two.test/a", **{**LIMITS, "timeout": 2.0}) == b"ok"
    assert time.monotonic() - began > 0.5
    for one in (full, *fillers):
        one.close()


# --- refusals


@pytest.mark.parametrize(
    ("reply", "part"),
    [
        (answer(b"no", "404 Not Found"), "answered 404 Not Found"),
        (answer(b"no", "403 \x1b[31mNo"), "answered 403 Forbidden"),
        (answer(b"", "500 Oops"), "answered 500 Internal Server Error"),
        (answer(b"x", "206 Partial Content"), "answered 206"),
        (answer(b"", "302 Found"), "answered 302"),
        (answer(b"", "799 What"), "answered 799;"),
        (b"", "download failed"),
        (b"SSH-2.0-OpenSSH\r\n", "download failed"),
        (b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n", "download failed"),
        (b"HTTP/1.1 200 OK\r\nA: " + b"b" * 100_000 + b"\r\n\r\n", "download failed"),
    ],
)
def test_answers_that_are_no_image(server: Server, reply: bytes, part: str) -> None:
    server.paths["/a.png"] = reply
    message = refusal(f"{server.url}/a.png{SECRET}")
    assert part in message and message.startswith(f"{server.url}/a.png: ")


def test_what_may_work_later_says_so(server: Server) -> None:
    def after(wait: str, status: str = "429 Slow Down") -> float | None:
        server.paths["/a"] = answer(b"", status, Retry_After=wait)
        with pytest.raises(UnavailableError, match="try again later") as caught:
            fetch(f"{server.url}/a", **LIMITS)
        return caught.value.retry_after

    assert [after("7"), after(" 0", "503 No"), after(""), after("soon"), after("-3")] == [7.0, 0.0, None, None, None]
    assert 95 < (after(formatdate(time.time() + 100, usegmt=True)) or 0) <= 100
    assert after("Fri, 20 Nov 1970 10:00:00 GMT") == 0.0
    for reply in (b"", answer(b"x", Content_Length=9)):
        server.paths["/a"] = reply
        with pytest.raises(UnavailableError):
            fetch(f"{server.url}/a", **LIMITS)
    for reply in (answer(b"no", "404 Not Found"), answer(b"x" * 200_000)):
        server.paths["/a"] = reply
        with pytest.raises(ImageError) as caught:
            fetch(f"{server.url}/a", **LIMITS)
        assert not isinstance(caught.value, UnavailableError)


def test_nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as bound:  # but not listening
        bound.bind(("127.0.0.1", 0))
        assert "refused" in refusal(f"http://127.0.0.1:{bound.getsockname()[1]}/a.png{SECRET}")

    def unknown(*_: Any, **__: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert "Name or service not known" in refusal(f"http://nowhere.test/a.png{SECRET}")


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("ftp://example.org/a.png?token=s3cret", "only http and https"),
        ("file:///etc/passwd", "only http and https"),
        ("http:///a.png", "not a valid"),
        ("http://user:s3cret@example.org/a.png", "user name or password"),
        ("http://s3cret@example.org/a.png", "user name or password"),
        ("http://@example.org/a.png", "user name or password"),
        ("http://example.org\\@127.0.0.1/a.png", "user name or password"),
        ("http://u:s3cret/x@example.org/a.png", "not a valid"),
        ("http://u:s3cret@[bad/a.png", "not a valid"),
        ("http://[bad/a.png", "not a valid"),
        ("http://example.org:99999/a.png", "not a valid"),
        ("http://a..b/a.png", "not a valid"),
        (f"http://{'a' * 70}.org/a.png", "not a valid"),
        ("http://exa mple.org/a.png", "not a valid"),
        ("http://exa\x1bmple.org/a.png", "not a valid"),
    ],
)
def test_addresses_that_are_not_even_asked(url: str, part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = resolve_to(monkeypatch)
    assert part in refusal(url)
    assert not asked


def test_no_request_can_be_smuggled_in(server: Server) -> None:
    server.paths["/a"] = answer(b"ok")
    assert fetch(f"{server.url}/a?x=\r\nEvil:\t1\r\n\r\nGET /b y\x0b\x7f", **LIMITS) == b"ok"
    assert server.requests[0].split("\r\n")[0] == "GET /a?x=Evil:1GET%20/b%20y%0B%7F HTTP/1.1"
    assert len(server.requests) == 1 and "\nEvil" not in server.requests[0]


def test_redirects_that_lead_nowhere(server: Server) -> None:
    loop = "".join(f"/{n}" for n in range(3))
    server.paths = {
        "/loop": answer(status="302 Found", Location="/loop?token=s3cret"),
        "/file": answer(status="302 Found", Location="file:///etc/passwd"),
        "/ftp": answer(status="302 Found", Location="ftp://example.org/s3.png?token=s3cret"),
        "/login": answer(status="302 Found", Location="http://user:s3cret@example.org/"),
        "/bad": answer(status="302 Found", Location="http://[s3cret"),
        "/gone": answer(status="302 Found", Location=loop + "?token=s3cret"),
    }
    assert f"more than {MAX_REDIRECTS} redirects" in refusal(f"{server.url}/loop{SECRET}")
    assert len(server.requests) == MAX_REDIRECTS + 1
    for path, part in {
        "/file": "only http and https",
        "/ftp": "ftp://example.org/s3.png (redirected): only http and https",
        "/login": "user name or password",
        "/bad": "redirects to no valid address",
        "/gone": f"{server.url}{loop} (redirected): the server answered 404",
    }.items():
        assert part in refusal(server.url + path), path


# --- private networks


PRIVATE = [
    "127.0.0.1", "127.255.255.254", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254",
    "100.64.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1",
    "fe80::1%eth0", "fec0::1", "fc00::1", "fd12::1", "ff02::1", "2001:db8::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
    "::127.0.0.1", "64:ff9b::127.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1", "2002:7f00:1::",
    "2002:c0a8:101::1", "100::1",
]  # fmt: skip
PUBLIC = ["93.184.216.34", "8.8.8.8", "172.32.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::8.8.8.8"]


def test_which_addresses_are_public() -> None:
    assert [address for address in PRIVATE if _is_public(address)] == []
    assert [address for address in PUBLIC if not _is_public(address)] == []


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "localhost", "2130706433", "0177.0.0.1", "0x7f.1", "127.1", "[::1]", "[::ffff:127.0.0.1]", "0"],
)
def test_private_hosts_in_any_spelling(host: str, server: Server) -> None:
    server.paths["/a"] = answer(b"secret page")
    message = refusal(f"http://{host}:{server.port}/a", allow_private_hosts=False)
    # where there is no IPv6, the resolver may refuse such a host before we do
    assert "private or reserved" in message or (host.startswith("[") and "download failed" in message)
    assert not server.requests


def test_one_private_address_among_public_ones_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, 80)) for ip in ("93.184.216.34", "10.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: answers)
    assert "private or reserved" in refusal("http://mixed.test/a", allow_private_hosts=False)


@contextmanager
def internet_here(monkeypatch: pytest.MonkeyPatch, port: int) -> Iterator[list[Any]]:
    """Leads connections to a public address to the local server instead; yields the addresses asked for."""
    asked: list[Any] = []
    connect = socket.socket.connect

    def lead(self: socket.socket, address: Any) -> None:
        asked.append(address[0])
        connect(self, ("127.0.0.1", port) if _is_public(address[0]) else address)

    with monkeypatch.context() as patch:
        patch.setattr(socket.socket, "connect", lead)
        yield asked


def test_a_name_is_resolved_once_and_that_address_used(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.paths["/a"] = answer(b"public page")
    asked = resolve_to(monkeypatch, rebinding=["93.184.216.34", "127.0.0.1"])
    with internet_here(monkeypatch, server.port) as connections:
        assert fetch("http://rebinding.test/a", max_bytes=100, timeout=5) == b"public page"
        assert asked == ["rebinding.test"] and connections == ["93.184.216.34"]
        assert "\r\nHost: rebinding.test\r\n" in server.requests[0]
        # A later fetch asks again, gets the private address, and stops there.
        assert "private or reserved" in refusal("http://rebinding.test/a", allow_private_hosts=False)
        assert connections == ["93.184.216.34"]


def test_a_redirect_into_the_private_network(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, public=["93.184.216.34"], inside=["192.168.0.7"])
    targets = [f"http://127.0.0.1:{server.port}/secret", "http://inside.test/?token=s3cret", "http://169.254.169.254/"]
    server.paths["/secret"] = answer(b"secret")
    with internet_here(monkeypatch, server.port) as connections:
        for number, target in enumerate(targets, start=1):
            server.paths["/a"] = answer(status="302 Found", Location=target)
            assert "(redirected): the host has a private" in refusal("http://public.test/a", allow_private_hosts=False)
            assert connections == ["93.184.216.34"] * number
    assert not any("/secret" in request for request in server.requests)


def test_host_header_of_other_ports_and_scripts(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    server.paths["/"] = answer(b"ok")
    asked = resolve_to(monkeypatch, **{"xn--bcher-kva": ["127.0.0.1"]})
    assert fetch(f"http://bücher.test:{server.port}", **LIMITS) == b"ok"
    assert asked == ["xn--bcher-kva.test"]
    assert f"\r\nHost: xn--bcher-kva.test:{server.port}\r\n" in server.requests[0]


# --- https


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("openssl"):
        pytest.skip("needs the openssl command to make a certificate")
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", str(path), "-out", f"{path}.crt", "-days", "2", "-subj", "/CN=images.test"]
    subprocess.run([*command, "-addext", "subjectAltName=DNS:images.test"], check=True, capture_output=True)
    return path


def test_https_checks_the_name_that_was_asked_for(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, images=["127.0.0.1"], other=["127.0.0.1"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{certificate}.crt", certificate)
    names: list[str | None] = []
    context.sni_callback = lambda _, name, __: names.append(name)
    with running(context) as server:
        server.paths["/a"] = answer(b"secure")
        url = f"https://images.test:{server.port}/a"
        assert "no secure connection (CERTIFICATE_VERIFY_FAILED)" in refusal(url + SECRET)
        monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")
        assert fetch(url, **LIMITS) == b"secure"
        assert names == ["images.test", "images.test"]
        assert f"\r\nHost: images.test:{server.port}\r\n" in server.requests[0]
        assert "CERTIFICATE_VERIFY_FAILED" in refusal(f"https://other.test:{server.port}/a")
        assert len(server.requests) == 1


def test_https_to_something_else(server: Server) -> None:
    url = server.url.replace("http", "https")

    def silent(stream: socket.socket) -> None:
        server.closing.wait(5)

    server.paths["/a"] = silent
    began = time.monotonic()
    # This server waits for the end of a request, so the handshake never gets an answer.
    assert "not there within 0.4 s" in refusal(f"{url}/a{SECRET}", timeout=0.4)
    assert time.monotonic() - began < 3


# --- names


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://user:s3cret@example.org:8080/a/b.png?token=s3cret#s3cret", "https://example.org:8080/a/b.png"),
        ("HTTP://EXAMPLE.org/a%20b.png", "http://example.org/a%20b.png"),
        ("http://[::1]:80/a", "http://[::1]:80/a"),
        ("http://[s3cret", "http://..."),
        ("http://u:s3cret/x", "http://..."),
        ("http://example.org/\x1b[31m", "http://example.org/?[31m"),
        ("http://example.org/" + "a" * 1000, "http://example.org/" + "a" * 181 + "..."),
    ],
)
def test_public_name(url: str, name: str) -> None:
    assert public_name(url) == name
