"""WebEmo's lists against a server on the loopback interface that fails in every way a server can."""

from __future__ import annotations

import io
import json
import random
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from test_download import Handler, Server, answer, running

from emo_r3.data import webemo
from emo_r3.data.archive import open_raw
from emo_r3.data.webemo_download import (
    DownloadLimits,
    DownloadReport,
    Link,
    _host,
    _Schedule,
    download_webemo,
    read_lists,
)
from emo_r3.errors import DataError
from emo_r3.labels import LABEL_SETS

QUICK: dict[str, Any] = {"delay": 0.0, "backoff": 0.01, "timeout": 0.4, "max_bytes": 100_000}


@pytest.fixture
def server() -> Iterator[Server]:
    with running() as one:
        yield one


def make_image(number: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (6, 4), (number % 256, number // 256, 7)).save(buffer, kind)
    return buffer.getvalue()


def lists(folder: Path, train: list[tuple[str, int]], test: list[tuple[str, int]] | None = None) -> Path:
    folder.mkdir(exist_ok=True)
    for name, links in (("train25.txt", train), ("test25.txt", test or [])):
        (folder / name).write_text("".join(f"{url} {label}\n" for url, label in links), encoding="utf-8")
    return folder


def download(folder: Path, output: Path, count: int | None = None, **limits: Any) -> DownloadReport:
    limits = DownloadLimits(**{**QUICK, "allow_private_hosts": True, **limits})
    return download_webemo(folder, output, count=count, limits=limits)


def rows(path: Path) -> dict[str, dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len({row["url"] for row in lines}) == len(lines)
    return {row["url"].rpartition("/")[2]: row for row in lines}


def asked(server: Server) -> list[str]:
    return [request.split()[1].rpartition("/")[2] for request in server.requests]


def once(first: bytes, then: bytes, times: int = 1) -> Handler:
    left = [first] * times

    def send(stream: socket.socket) -> None:
        stream.sendall(left.pop() if left else then)

    return send


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@pytest.mark.slow
def test_every_way_to_fail(server: Server, tmp_path: Path) -> None:
    jpeg = answer(make_image(1, "JPEG"))
    server.paths = {
        "/fine": jpeg,
        "/slow-down": once(answer(b"", "429 Too Many Requests", Retry_After="1"), answer(make_image(2))),
        "/broken-once": once(answer(b"", "500 Oops"), answer(make_image(3)), times=2),
        "/cut-once": once(answer(make_image(4), Content_Length=9999), answer(make_image(4))),
        "/moved": answer(status="301 Moved", Location="/new-place"),
        "/new-place": answer(make_image(5, "WEBP")),
        "/odd": answer(make_image(6, "GIF")),
        "/stall": server.drip(answer(make_image(7), Content_Length=9999), b""),
        "/cut": answer(make_image(8), Content_Length=9999),
        "/broken": answer(b"", "503 Oops"),
        "/page": answer(b"<!DOCTYPE html><html>This photo is no longer available</html>"),
        "/half": answer(make_image(9, "JPEG")[:-40]),
        "/empty": answer(b""),
        "/huge": answer(b"x", Content_Length=2**40),
        "/huge-unsaid": answer(b"\x89PNG" * 50_000, Content_Length=None),
        "/loop": answer(status="302 Found", Location="/loop"),
        "/forbidden": answer(b"", "403 No"),
    }
    good = ["fine", "slow-down", "broken-once", "cut-once", "moved", "odd?size=l&name=a b"]
    later = ["stall", "cut", "broken"]
    dead = ["gone", "page", "half", "empty", "huge", "huge-unsaid", "loop", "forbidden"]
    names = [*good, *later, *dead]
    train = [(f"{server.url}/{name}", number) for number, name in enumerate(names)]
    raw = lists(tmp_path / "raw", [*train, ("ftp://example.org/ftp", 3)], [(f"{server.url}/fine2", 24)])
    server.paths["/fine2"] = answer(make_image(10))

    out = tmp_path / "out"
    report = download(raw, out, attempts=3, failures=99)
    assert report == DownloadReport(had=0, downloaded=len(good) + 1, dead=len(dead) + 1, later=len(later))
    assert "7 downloaded, 0 there already, 9 dead, 3 not available now" in str(report)

    found = rows(out / "urls.jsonl")
    assert set(found) == {*good, "fine2"}
    assert files(out) == sorted(["dead.jsonl", "urls.jsonl", *(row["file"] for row in found.values())])
    assert (out / found["fine"]["file"]).read_bytes() == make_image(1, "JPEG")
    assert {name: row["file"].rpartition("/")[0] for name, row in found.items()} == {
        **{name: f"train/{number}" for number, name in enumerate(good)},
        "fine2": "test/24",
    }
    assert [found[name]["file"].rpartition(".")[2] for name in good] == ["jpg", "png", "png", "png", "webp", "gif"]
    assert found["fine2"]["url"] == f"{server.url}/fine2" and found["fine2"]["label"] == 24
    assert found["fine2"]["split"] == "test" and len(found["fine2"]["sha256"]) == 64

    with open_raw(out) as copy:  # and what reads downloaded copies finds the URLs
        read, _ = webemo.read(copy)
    assert {record.source for split in read for record in read[split]} == {row["url"] for row in found.values()}
    assert {record.fields["label_25"] for record in read["test"]} == {"zest"}

    buried = rows(out / "dead.jsonl")
    assert {name for name, row in buried.items() if row["again"]} == set(later)
    assert {name for name, row in buried.items() if not row["again"]} == {*dead, "ftp"}
    for name, part in {"gone": "404", "page": "web page", "stall": "not there within", "cut": "ended early"}.items():
        assert part in buried[name]["error"], name
    for name, part in {"huge": "larger than", "broken": "503", "ftp": "only http", "loop": "redirects"}.items():
        assert part in buried[name]["error"], name
    counts = {name: asked(server).count(name) for name in names if " " not in name}
    assert {name: count for name, count in counts.items() if count != 1} == {
        **dict.fromkeys(later, 3), "slow-down": 2, "broken-once": 3, "cut-once": 2, "loop": 6
    }  # fmt: skip

    # The next run asks for what may be there now, and for nothing else.
    server.requests.clear()
    server.paths["/stall"] = answer(make_image(7))
    (out / found["fine2"]["file"]).unlink()
    assert download(raw, out, attempts=1) == DownloadReport(had=6, downloaded=2, dead=9, later=2)
    assert sorted(asked(server)) == ["broken", "cut", "fine2", "stall"]
    assert set(rows(out / "urls.jsonl")) == {*good, "fine2", "stall"}
    assert {name for name, row in rows(out / "dead.jsonl").items() if row["again"]} == {"cut", "broken"}


def test_a_private_host_is_not_asked_unless_allowed(server: Server, tmp_path: Path) -> None:
    raw = lists(tmp_path, [(f"{server.url}/a", 0)])
    assert download(raw, tmp_path, allow_private_hosts=False).dead == 1
    assert "private" in rows(tmp_path / "dead.jsonl")["a"]["error"] and not server.requests


@pytest.mark.slow
def test_killed_again_and_again(server: Server, tmp_path: Path) -> None:
    def slowly(number: int) -> Handler:
        def send(stream: socket.socket) -> None:
            reply = answer(make_image(number))
            stream.sendall(reply[:-9])
            time.sleep(0.03)
            stream.sendall(reply[-9:])

        return send

    links = [(f"{server.url}/{number}", number % 25) for number in range(120)]
    server.paths = {f"/{number}": slowly(number) for number in range(120)}
    raw, out = lists(tmp_path / "raw", links), tmp_path / "out"
    code = (
        "import sys; from emo_r3.data.webemo_download import *;"
        "download_webemo(*sys.argv[1:], limits=DownloadLimits(per_host=4, delay=0.0, allow_private_hosts=True))"
    )
    for enough in (25, 60):
        child = subprocess.Popen([sys.executable, "-c", code, str(raw), str(out)])
        while len(server.requests) < enough and child.poll() is None:
            time.sleep(0.005)
        assert child.poll() is None
        child.kill()
        child.wait()
        with (out / "urls.jsonl").open("a") as journal:  # as a kill in the middle of a line leaves it
            journal.write('{"file": "train/0/ab')
        for path in [*out.glob("train/*/*"), *out.glob("test/*/*")]:
            with Image.open(path) as image:
                image.load()
    report = download(raw, out)
    assert report.had >= 40 and report.had + report.downloaded == 120
    assert len(rows(out / "urls.jsonl")) == 120 and len(files(out)) == 122
    # Only what was under way at a kill is asked for twice: four links each time, and one that had just ended.
    assert len(server.requests) <= 120 + 2 * 5


def test_hosts_are_asked_politely_and_side_by_side(server: Server, tmp_path: Path) -> None:
    lock, under_way, most = threading.Lock(), {"a": 0, "b": 0}, {"a": 0, "b": 0}
    starts: dict[str, list[float]] = {"a": [], "b": []}

    def count(host: str, number: int) -> Handler:
        def send(stream: socket.socket) -> None:
            with lock:
                starts[host].append(time.monotonic())
                under_way[host] += 1
                most[host] = max(most[host], under_way[host])
            time.sleep(0.12 if host == "a" else 0.01)
            with lock:
                under_way[host] -= 1
            stream.sendall(answer(make_image(number)))

        return send

    hosts = {"a": f"http://127.0.0.1:{server.port}", "b": f"http://localhost:{server.port}"}
    links = [(f"{url}/{host}{number}", 0) for host, url in hosts.items() for number in range(12)]
    server.paths = {f"/{host}{number}": count(host, number) for host in hosts for number in range(12)}
    report = download(lists(tmp_path, links), tmp_path, delay=0.05, per_host=2)
    assert report.downloaded == 24
    assert max(most.values()) == 2
    for times in starts.values():
        assert times[-1] - times[0] > 11 * 0.05 - 0.1  # less what the last may be quicker than the first
    # Two at a time of 0.12 s each, so 0.72 s for the one; the other, beside it, takes its own 12 x 0.05 s.
    assert starts["b"][0] < starts["a"][2] and starts["b"][-1] < starts["a"][-1]


@pytest.mark.parametrize("seed", range(20))
def test_the_schedule_by_a_clock_of_its_own(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, now = random.Random(seed), [100.0]
    monkeypatch.setattr("emo_r3.data.webemo_download.time", SimpleNamespace(monotonic=lambda: now[0]))
    schedule = _Schedule(DownloadLimits(per_host=2, delay=0.5, failures=3, patience=60))
    links = [Link(f"http://{rng.choice('abc')}.test/{number}", 0, "train") for number in range(40)]
    waits: dict[Link, float] = {}  # when a link may be asked for at the earliest
    running: list[Link] = []
    starts: dict[str, float] = {}  # when a host may be
    settled: list[Link] = []
    left: set[str] = set()
    later = links[20:]
    for link in links[:20]:
        schedule.add(link)
    while len(settled) < len(links):
        if later and rng.random() < 0.3:
            link = later.pop()
            if schedule.is_left(link.url):
                settled.append(link)
            else:
                schedule.add(link)
        while job := schedule.take():
            host = _host(job.link.url)
            assert sum(_host(one.url) == host for one in running) < 2 and host not in left
            assert now[0] >= starts.get(host, 0.0) and now[0] >= waits.get(job.link, 0.0)
            starts[host] = now[0] + 0.5
            running.append(job.link)
        pause = schedule.wait()
        assert running or later or pause is not None or len(settled) == len(links)
        now[0] += rng.choice([0.1, 0.7, pause or 0.0])
        if running and rng.random() < 0.7:
            link = running.pop(rng.randrange(len(running)))
            host, failed = _host(link.url), rng.random() < 0.3
            wait = rng.choice([0.0, 5.0, 61.0]) if failed and rng.random() < 0.2 else 0.0
            if failed:
                waits[link] = now[0] + 2.0
                schedule.add(link, 1, 2.0)
            else:
                settled.append(link)
            starts[host] = max(starts[host], now[0] + wait)
            if given_up := schedule.ended(link.url, failed=failed, pause=wait):
                assert schedule.is_left(link.url)
                left.add(host)
                settled += given_up
    assert sorted(settled) == sorted(links) and not running and schedule.take() is None


def test_a_link_that_waits_holds_up_no_other() -> None:
    schedule = _Schedule(DownloadLimits())
    schedule.add(Link("http://a.test/1", 0, "train"), 1, 50.0)
    assert schedule.take() is None and 49 < (schedule.wait() or 0) <= 50
    schedule.add(fresh := Link("http://a.test/2", 0, "train"))
    job = schedule.take()
    assert job is not None and job.link == fresh
    assert schedule.take() is None and 49 < (schedule.wait() or 0) <= 50


def test_retry_after_holds_for_the_whole_host(server: Server, tmp_path: Path) -> None:
    times: list[float] = []

    def send(stream: socket.socket) -> None:
        times.append(time.monotonic())
        slow_down = answer(b"", "429 Too Many Requests", Retry_After="1")
        stream.sendall(slow_down if len(times) == 1 else answer(make_image(1)))

    links = [(f"{server.url}/{number}", 0) for number in range(5)]
    server.paths = {f"/{number}": send for number in range(5)}
    assert download(lists(tmp_path, links), tmp_path, per_host=1).downloaded == 5
    assert times[1] - times[0] >= 1.0 and times[-1] - times[1] < 0.9


@pytest.mark.parametrize(("reply", "tries"), [(b"", 5), (answer(b"", "503 No", Retry_After="3600"), 1)])
def test_a_host_that_fails_is_left_for_the_next_run(reply: bytes, tries: int, server: Server, tmp_path: Path) -> None:
    names = [str(number) for number in range(40)]
    server.paths = {f"/{name}": reply for name in names}
    raw = lists(tmp_path, [(f"{server.url}/{name}", 0) for name in names], [(f"http://localhost:{server.port}/x", 1)])
    server.paths["/x"] = answer(make_image(1))
    report = download(raw, tmp_path, per_host=1, failures=5, count=10)
    assert report == DownloadReport(had=0, downloaded=1, dead=0, later=40)
    assert len(server.requests) == tries + 1
    assert all(row["again"] for row in rows(tmp_path / "dead.jsonl").values())


def test_only_as_many_as_asked_for_and_the_same_ones(server: Server, tmp_path: Path) -> None:
    links = [(f"{server.url}/{number}", number % 25) for number in range(60)]
    server.paths = {f"/{number}": answer(make_image(number)) for number in range(0, 60, 2)}  # the others are gone
    raw = lists(tmp_path / "raw", links, links[:20])
    report = download(raw, tmp_path / "a", count=8)
    assert report.downloaded == 16 and len(server.requests) == 16 + report.dead
    found = rows_of_both(tmp_path / "a")
    assert [sum(link.split == split for link in found) for split in ("train", "test")] == [8, 8]
    lists(tmp_path / "turned", links[::-1], links[19::-1])
    download(tmp_path / "turned", tmp_path / "b", count=8)
    assert rows_of_both(tmp_path / "b") == found
    server.requests.clear()
    assert download(raw, tmp_path / "a", count=8).had == 16 and not server.requests
    assert download(raw, tmp_path / "a", count=10).downloaded == 4


def rows_of_both(folder: Path) -> set[Link]:
    lines = [json.loads(line) for line in (folder / "urls.jsonl").read_text().splitlines()]
    return {Link(row["url"], row["label"], row["split"]) for row in lines}


# --- lists and folders


def test_read_lists(tmp_path: Path) -> None:
    lists(tmp_path, [("http://a.b/c d.jpg", 3), ("http://a.b/x", 3), ("http://a.b/x", 3)], [("http://a.b/x", 24)])
    with (tmp_path / "train25.txt").open("ab") as file:
        file.write(b"\r\n\nhttp://a.b/caf\xe9\t 0 \r\n")
    assert read_lists(tmp_path) == [
        Link("http://a.b/c d.jpg", 3, "train"),
        Link("http://a.b/x", 3, "train"),
        Link("http://a.b/caf\ufffd", 0, "train"),
        Link("http://a.b/x", 24, "test"),
    ]
    categories = [*LABEL_SETS["webemo-25"].labels]
    categories[1], categories[11] = "cheerfullness", "irritabilty"
    (tmp_path / "category.txt").write_text("\n".join(f"{name} {index}" for index, name in enumerate(categories)))
    assert len(read_lists(tmp_path)) == 4
    for changed in (categories[::-1], categories[:24], [*categories, "zest"], ["joyful", *categories]):
        (tmp_path / "category.txt").write_text("\n".join(changed))
        with pytest.raises(DataError, match=r"category\.txt: not WebEmo's 25"):
            read_lists(tmp_path)


@pytest.mark.parametrize("line", ["http://a.b/c", "http://a.b/c 25", "http://a.b/c -1", "http://a.b/c joy", "a b ²"])
def test_lines_of_another_form(line: str, tmp_path: Path) -> None:
    lists(tmp_path, [("http://a.b/x", 3)])
    (tmp_path / "test25.txt").write_text(f"http://a.b/x 1\n{line}\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"test25\.txt, line 2: .* is not '<url> <label 0\.\.24>'"):
        read_lists(tmp_path)


def test_no_lists(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"train25\.txt: no such file; give the folder"):
        read_lists(tmp_path)
    with pytest.raises(DataError, match="the lists hold no links"):
        read_lists(lists(tmp_path, []))


def test_folders_that_cannot_be_used(server: Server, tmp_path: Path) -> None:
    raw = lists(tmp_path / "raw", [(f"{server.url}/a", 3)])
    server.paths["/a"] = answer(make_image(1))
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="file: can't be written"):
        download(raw, tmp_path / "file")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "train").touch()
    with pytest.raises(DataError, match="out: can't be written"):
        download(raw, tmp_path / "out")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "urls.jsonl").write_text('{"url": "http://a.b"}\n{}\n')
    with pytest.raises(DataError, match=r"urls\.jsonl, line 1: not a line of an earlier download"):
        download(raw, tmp_path / "bad")


def test_progress(server: Server, tmp_path: Path) -> None:
    raw, said = lists(tmp_path, [(f"{server.url}/a", 3)]), []
    download_webemo(raw, tmp_path, limits=DownloadLimits(allow_private_hosts=True), progress=said.append)
    assert said == ["0 downloaded, 0 there already, 1 dead, 0 not available now (run again to try these)"]
