"""Pushing a dataset folder, over the test Hub. Pushes run in forks of a process that has imported everything."""

from __future__ import annotations

import random
import re
import signal
import urllib.error
import urllib.request
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hub_server import HubServer, run_client
from pusher import TOKEN, Pusher, files_in, files_on, titles

from emo_r3.errors import EmoR3Error
from emo_r3.publishing import listing, sync, targets


def write_rows(path: Path, count: int, size: int = 100, pixels: bool = True) -> None:
    """A Parquet file of random rows, `size` bytes of image each."""
    chance = random.Random(f"{path.name} {count}")
    rows: dict[str, Any] = {"id": [f"{path.stem}-{row}" for row in range(count)], "label": [0] * count}
    if pixels:
        rows["image"] = [{"bytes": chance.randbytes(size), "path": None} for _ in range(count)]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(rows), path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A small dataset with images, and a hidden file that is nobody's business."""
    folder = tmp_path / "set"
    write_rows(folder / "data/test-00000-of-00001.parquet", 3)
    write_rows(folder / "data/train-00000-of-00001.parquet", 5)
    (folder / "README.md").write_text("---\nlicense: other\n---\n# A set\n")
    (folder / ".DS_Store").write_bytes(b"\0")
    return folder


def status_for(hub: HubServer, repo_id: str, token: str | None = None) -> int:
    """What the Hub answers to somebody who asks for a repository."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    try:
        request = urllib.request.Request(f"{hub.url}/api/datasets/{repo_id}", headers=headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_listing_push_and_repetition(hub: HubServer, pusher: Pusher, folder: Path) -> None:
    repo_id = "emo-r3/listed"
    listing = pusher.push(folder, repo_id, "--tag", "v1")
    assert "dataset    emo-r3/listed, new, private\nadd        README.md (31 B)" in listing
    assert "tag        v1" in listing and "add --yes" in listing and "DS_Store" not in listing
    assert hub.store.find("datasets", repo_id) is None

    pushed = pusher.push(folder, repo_id, "--tag", "v1", "--yes")
    repo = hub.store.find("datasets", repo_id)
    assert f"{hub.url}/datasets/{repo_id}/tree/{repo.branches['main']}" in pushed
    assert files_on(hub, repo_id) == files_on(hub, repo_id, "v1") == files_in(folder)
    assert repo.private and len(titles(hub, repo_id)) == 1
    assert [status_for(hub, repo_id, token) for token in (TOKEN, "hf_stranger0000000000", None)] == [200, 404, 401]

    for arguments in ((), ("--yes",), ("--yes", "--tag", "v1")):
        assert pusher.push(folder, repo_id, *arguments).count("nothing to do") == 1
    assert len(titles(hub, repo_id)) == 1

    # Fewer shards than before: rows of the old ones must not stay.
    (folder / "data/train-00000-of-00001.parquet").rename(folder / "data/train-00000-of-00002.parquet")
    write_rows(folder / "data/train-00001-of-00002.parquet", 2)
    write_rows(folder / "data/test-00000-of-00001.parquet", 4)
    listing = pusher.push(folder, repo_id, "--yes", "--tag", "v2")
    assert re.findall(r"^(add|replace|delete|unchanged) +(\S+)", listing, re.MULTILINE) == [
        ("add", "data/train-00000-of-00002.parquet"),
        ("add", "data/train-00001-of-00002.parquet"),
        ("replace", "data/test-00000-of-00001.parquet"),
        ("delete", "data/train-00000-of-00001.parquet"),
        ("unchanged", "1"),
    ]
    assert files_on(hub, repo_id) == files_in(folder) and len(titles(hub, repo_id)) == 2
    assert "on commit" in pusher.push(folder, repo_id, "--yes", "--tag", "v1", code=2)  # tags don't move


@pytest.mark.parametrize(
    "fault, where, times, commits",
    [
        ("412", "/commit/", 2, 3),  # two foreign ones and ours
        ("503", "/commit/", 2, 1),
        ("503", "GET /api/datasets", 1, 1),
        ("503", "/repos/create", 1, 1),
        ("503", "/tag/", 1, 1),
        ("cut", "/commit/", 1, 1),  # it landed, but we weren't told
        ("cut", "/repos/create", 1, 1),
    ],
)
def test_a_hub_in_trouble(
    hub: HubServer, pusher: Pusher, folder: Path, fault: str, where: str, times: int, commits: int
) -> None:
    repo_id = f"emo-r3/trouble-{fault}-{where.split('/')[-2 if where.endswith('/') else -1]}"
    hub.faults.add(fault, where, times)
    pusher.push(folder, repo_id, "--yes", "--tag", "v1")
    assert not any(fault.times for fault in hub.faults.pending)
    files = files_on(hub, repo_id, "v1")
    assert (files.pop("foreign.txt", None) is not None) == (fault == "412")
    assert files == files_in(folder)
    assert len(titles(hub, repo_id)) == commits


@pytest.mark.parametrize("fault, said", [("412", "others kept committing"), ("503", "503 Service Unavailable")])
def test_giving_up_and_going_on(hub: HubServer, pusher: Pusher, tmp_path: Path, fault: str, said: str) -> None:
    folder, repo_id = tmp_path, f"emo-r3/given-up-{fault}"
    write_rows(folder / "data/test-00000-of-00001.parquet", int(fault) // 100, size=400_000)  # unknown to the Hub yet
    hub.faults.add(fault, "/commit/", sync.ATTEMPTS)
    output = pusher.push(folder, repo_id, "--yes", code=2)
    assert said in output and "run the same command again" in output
    assert not set(files_on(hub, repo_id)) & set(files_in(folder))
    sent = [seen for seen in hub.faults.seen if "/xorbs/" in seen.what]
    assert len(sent) == 1 and sent[0].received > 1_600_000  # however often the commit was tried

    pusher.push(folder, repo_id, "--yes")
    assert len([seen for seen in hub.faults.seen if "/xorbs/" in seen.what]) == 1
    assert files_on(hub, repo_id).items() >= files_in(folder).items()


def test_killed_between_large_files(hub: HubServer, pusher: Pusher, tmp_path: Path) -> None:
    """What arrived whole is not sent again."""
    for shard in range(2):
        write_rows(tmp_path / f"data/test-0000{shard}-of-00002.parquet", 5 + shard, size=300_000)
    uploads = 0

    def kill_at_the_second(phase: str, what: str) -> None:
        nonlocal uploads
        uploads += (phase, "/xorbs/" in what) == ("arrived", True)
        if uploads == 2:
            pusher.kill()

    hub.faults.watch = kill_at_the_second
    pusher.push(tmp_path, "emo-r3/between", "--yes", code=-signal.SIGKILL)
    hub.faults.watch = None
    pusher.push(tmp_path, "emo-r3/between", "--yes")
    assert files_on(hub, "emo-r3/between") == files_in(tmp_path)
    first, *others = [seen.what for seen in hub.faults.seen if "/xorbs/" in seen.what]
    assert others and first not in others


@pytest.mark.slow
def test_rights(hub: HubServer, pusher: Pusher, folder: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    write_rows(index / "data/test-00000-of-00001.parquet", 3, pixels=False)

    refused = pusher.push(folder, "emo-r3/shown", "--public", "--yes", code=2)
    assert "data/test-00000-of-00001.parquet holds images" in refused and "--i-have-the-rights" in refused
    assert hub.store.find("datasets", "emo-r3/shown") is None
    pusher.push(folder, "emo-r3/shown", "--public", "--i-have-the-rights", "--yes")
    assert status_for(hub, "emo-r3/shown") == 200
    write_rows(folder / "data/test-00000-of-00001.parquet", 9)
    assert "would be public" in pusher.push(folder, "emo-r3/shown", "--yes", code=2)  # it is, whatever the options say

    assert "new, public" in pusher.push(index, "emo-r3/index", "--public")
    pusher.push(index, "emo-r3/index", "--public", "--yes")
    assert status_for(hub, "emo-r3/index") == 200

    pusher.push(folder, "emo-r3/opened", "--i-have-the-rights", "--yes")
    assert status_for(hub, "emo-r3/opened") == 401
    assert "history may hold images" in pusher.push(index, "emo-r3/opened", "--public", "--yes", code=2)
    assert files_on(hub, "emo-r3/opened") == files_in(folder)
    listing = pusher.push(folder, "emo-r3/opened", "--public", "--i-have-the-rights", "--yes")
    assert "public (was private)" in listing and status_for(hub, "emo-r3/opened") == 200
    assert len(titles(hub, "emo-r3/opened")) == 1


@pytest.mark.parametrize(
    "token, repo_id, said",
    [
        ("hf_stranger0000000000", "emo-r3/theirs", "may not write to emo-r3/theirs"),
        ("hf_stranger0000000000", "emo-r3/mine", "may not write to emo-r3/mine"),
        ("hf_stranger0000000000", "emo-r3/shown", "may not write to emo-r3/shown"),
        ("hf_reader0000000000", "emo-r3/theirs", "may not write to emo-r3/theirs"),
        ("hf_reader0000000000", "reader/mine", "may not write to reader/mine"),
        ("hf_reader0000000000", "emo-r3/mine", "may not write to emo-r3/mine"),
        ("hf_nobody0000000000", "emo-r3/mine", "does not accept the token"),
        (TOKEN, "emo-r3", "write namespace/name"),
        (TOKEN, "emo-r3/a/b", "write namespace/name"),
        (TOKEN, "emo-r3/a b", "write namespace/name"),
    ],
)
def test_refusals(hub: HubServer, pusher: Pusher, folder: Path, token: str, repo_id: str, said: str) -> None:
    if hub.store.find("datasets", "emo-r3/theirs") is None:
        hub.store.create("datasets", "emo-r3/theirs", private=True, author="owner")
        hub.store.create("datasets", "emo-r3/shown", private=False, author="owner")
    have_rights = "--i-have-the-rights"  # which the Hub doesn't ask for
    assert said in pusher.push(folder, repo_id, have_rights, token=token, code=2)  # before anything is listed
    assert said in pusher.push(folder, repo_id, have_rights, "--yes", token=token, code=2)
    assert not titles(hub, "emo-r3/theirs") and hub.store.find("datasets", "emo-r3/mine") is None


def test_a_card_that_the_hub_refuses(hub: HubServer, pusher: Pusher, folder: Path) -> None:
    (folder / "README.md").write_text("---\nlicense: anything goes\n---\n")
    output = pusher.push(folder, "emo-r3/bad-card", "--yes", code=2)
    assert 'the Hub refuses the content: Invalid metadata in README.md. - "license" must be one of' in output
    assert len([seen for seen in hub.faults.seen if "validate-yaml" in seen.what]) == 1  # no use in repeating it
    assert files_on(hub, "emo-r3/bad-card") == {}


def test_a_gitignore_that_names_our_files_is_told_before_the_commit(
    hub: HubServer, pusher: Pusher, folder: Path
) -> None:
    pusher.push(folder, "emo-r3/ignoring-ours", "--yes")
    repo = hub.store.find("datasets", "emo-r3/ignoring-ours")
    tree = repo.tree(repo.branches["main"])
    tree[".gitignore"] = hub.store.add_regular(b"# images stay at home\ndata/\n")
    repo.commit("main", tree, "a .gitignore", "owner")
    assert "nothing to do" in pusher.push(folder, "emo-r3/ignoring-ours", "--yes")  # nothing is sent, nothing left out
    write_rows(folder / "data/test-00000-of-00001.parquet", 7)
    (folder / "README.md").write_text("---\nlicense: other\n---\n# Another card\n")
    for words in ((), ("--yes",)):
        said = pusher.push(folder, "emo-r3/ignoring-ours", *words, code=2)
        assert "the .gitignore of emo-r3/ignoring-ours keeps out data/test-00000-of-00001.parquet: take" in said
    assert len(titles(hub, "emo-r3/ignoring-ours")) == 2  # not even the card
    assert repo.tree(repo.branches["main"])["README.md"] == tree["README.md"]

    del tree["data/train-00000-of-00001.parquet"]
    tree[".gitignore"] = hub.store.add_regular(b"*.log\n")
    repo.commit("main", tree, "a harmless one", "owner")
    pusher.push(folder, "emo-r3/ignoring-ours", "--yes")
    assert files_on(hub, "emo-r3/ignoring-ours").items() >= files_in(folder).items()


def test_a_commit_that_lost_a_file_is_told(hub: HubServer, pusher: Pusher, folder: Path) -> None:
    repo_id, lost = "emo-r3/losing", "data/train-00000-of-00001.parquet"

    def lose(phase: str, what: str) -> None:
        if phase == "answered" and "/commit/" in what:
            repo = hub.store.find("datasets", repo_id)
            del repo.commits[repo.branches["main"]]["tree"][lost]

    hub.faults.watch = lose
    said = pusher.push(folder, repo_id, "--yes", "--tag", "v1", code=2)
    hub.faults.watch = None
    assert f"of {repo_id} is not as it was meant: look at {lost} there" in said
    assert not hub.store.find("datasets", repo_id).tags
    pusher.push(folder, repo_id, "--yes", "--tag", "v1")
    assert files_on(hub, repo_id, "v1") == files_in(folder)


def test_a_409_without_an_address(hub: HubServer, pusher: Pusher, folder: Path) -> None:
    hub.faults.add("409", "/repos/create")
    said = pusher.push(folder, "emo-r3/reserved", "--yes", code=2)
    assert "the Hub won't make emo-r3/reserved (Conflict): give it another name" in said

    def make_it(phase: str, what: str) -> None:  # somebody else, in the same moment
        if phase == "arrived" and "/repos/create" in what:
            hub.store.create("datasets", "emo-r3/reserved", True, "owner")

    hub.faults.add("409", "/repos/create")
    hub.faults.watch = make_it
    pusher.push(folder, "emo-r3/reserved", "--yes")
    hub.faults.watch = None
    assert files_on(hub, "emo-r3/reserved") == files_in(folder)


def test_a_persistent_503_is_bounded_and_told(hub: HubServer, pusher: Pusher, tmp_path: Path) -> None:
    hub.faults.add("503", "GET /api/datasets/emo-r3/busy", 1000)
    write_rows(tmp_path / "data/test-00000-of-00001.parquet", 1)
    said = pusher.push(tmp_path, "emo-r3/busy", code=2)
    notes = re.findall(r"^emo-r3: emo-r3/busy: the Hub answers 503; attempt (\d) of 5 in 0 s$", said, re.MULTILINE)
    assert notes == ["2", "3", "4", "5"] and "503 Service Unavailable" in said


def test_no_further_attempt_after_a_while(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """However long an attempt takes: the clock here is ours, and that of the Hub's thread is not touched."""
    clock = iter([0.0, 50.0, 61.0])
    ours = SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda seconds: None)
    monkeypatch.setattr(sync, "time", ours)

    def fail() -> None:
        raise ConnectionError("the line is down")

    with pytest.raises(EmoR3Error, match="stopped: the line is down"):
        sync.persist("emo-r3/x", fail)
    assert capsys.readouterr().err == "emo-r3: emo-r3/x: the line is down; attempt 2 of 5 in 1 s\n"


@pytest.mark.slow
def test_xet_that_is_down_is_bounded(hub: HubServer, pusher: Pusher, tmp_path: Path) -> None:
    """The transport's own attempts are a few: it would go on for minutes, in silence."""
    write_rows(tmp_path / "data/test-00000-of-00001.parquet", 2, size=600_000)
    hub.faults.add("503", "/v1/xorbs/", 4)
    said = pusher.push(tmp_path, "emo-r3/no-xet", "--yes", HF_XET_CLIENT_RETRY_BASE_DELAY="10ms")
    assert "attempt 2 of 5" in said
    assert files_on(hub, "emo-r3/no-xet") == files_in(tmp_path)


def lfs_client(folder: str, repo_id: str) -> None:
    """A push whose commit fails for good, and one that goes on, without Xet."""
    from pathlib import Path

    from emo_r3.errors import EmoR3Error
    from emo_r3.publishing import sync, targets

    sync.PAUSE = 0.01
    target = targets.dataset_target(Path(folder), repo_id)
    try:
        sync.push(target)
        raise AssertionError("the Hub fails until we give up")
    except EmoR3Error:
        pass
    sync.push(target)
    assert sync.plan(target).nothing_to_do


@pytest.mark.slow
def test_without_xet(hub: HubServer, folder: Path, tmp_path: Path) -> None:
    for path in folder.glob("data/*.parquet"):
        write_rows(path, 11)  # unknown to the Hub yet
    hub.faults.add("503", "/commit/", sync.ATTEMPTS)
    run_client(hub, tmp_path / "home", lfs_client, str(folder), "emo-r3/lfs", HF_HUB_DISABLE_XET="1")
    assert files_on(hub, "emo-r3/lfs") == files_in(folder)
    assert len([seen for seen in hub.faults.seen if seen.what.startswith("PUT /_lfs")]) == 2  # each file once


@pytest.mark.slow
def test_killed_at_twenty_points(hub: HubServer, pusher: Pusher, tmp_path: Path) -> None:
    """SIGKILL before the Hub reads a request, or after it did the work and before the client hears of it."""
    folder = tmp_path / "set"
    write_rows(folder / "data/train-00000-of-00001.parquet", 4, size=300_000)
    write_rows(folder / "data/test-00000-of-00001.parquet", 3)
    (folder / "README.md").write_text("---\nlicense: other\n---\n")

    moments: list[tuple[str, str]] = []
    hub.faults.watch = lambda phase, what: moments.append((phase, what))
    pusher.push(folder, "emo-r3/whole", "--yes", "--tag", "v1", HF_XET_CACHE=str(tmp_path / "xet"))
    commit = [number for number, (_, what) in enumerate(moments) if "/commit/" in what]
    others = [number for number in range(len(moments)) if number not in commit]
    points = commit + random.Random(3).sample(others, 20 - len(commit))
    assert len(commit) == 2

    for point in points:
        repo_id, cache = f"emo-r3/killed-{point}", str(tmp_path / f"xet-{point}")
        count = 0

        def kill(phase: str, what: str, point: int = point) -> None:
            nonlocal count
            if count == point:
                pusher.kill()
            count += 1

        hub.faults.watch = kill
        arguments = (folder, repo_id, "--yes", "--tag", "v1")
        pusher.push(*arguments, code=-signal.SIGKILL, HF_XET_CACHE=cache)
        hub.faults.watch = None
        if hub.store.find("datasets", repo_id):
            assert files_on(hub, repo_id) in ({}, files_in(folder)), moments[point]
        pusher.push(*arguments, HF_XET_CACHE=cache)
        assert files_on(hub, repo_id) == files_on(hub, repo_id, "v1") == files_in(folder), moments[point]
        assert len(titles(hub, repo_id)) == 1, moments[point]


# Without a Hub


def test_folders_that_are_not_datasets(tmp_path: Path) -> None:
    with pytest.raises(EmoR3Error, match="is not a folder"):
        targets.dataset_target(tmp_path / "none", "emo-r3/x")
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache/x.parquet").touch()
    with pytest.raises(EmoR3Error, match="holds no Parquet file"):
        targets.dataset_target(tmp_path, "emo-r3/x")


def test_no_token_and_no_network(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(EmoR3Error, match="hf auth login"):
        sync.plan(targets.dataset_target(folder, "emo-r3/x"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    for call in (sync.plan, sync.push):
        with pytest.raises(EmoR3Error, match="HF_HUB_OFFLINE is set"):
            call(targets.dataset_target(folder, "emo-r3/x"))


def test_a_token_in_an_error_is_blotted_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    text = sync.explain(RuntimeError(f"curl -H 'Bearer {TOKEN}'"), "emo-r3/x")
    assert "curl -H 'Bearer ***'" in text


@pytest.mark.parametrize(
    "column, images",
    [
        (["text"], False),
        ([1.5], False),
        ([["a", "b"]], False),
        ([b"\xff\xd8"], True),
        ([[b"\xff\xd8"]], True),
        ([{"bytes": b"\xff\xd8", "path": "a.jpg"}], True),
        (pa.array(["a"]).dictionary_encode(), False),
        (pa.array([b"abcd"], pa.binary(4)), True),
        (pa.array([b"a"], pa.large_binary()), True),
    ],
    ids=str,
)
def test_parquet_that_may_hold_images(tmp_path: Path, column: Any, images: bool) -> None:
    pq.write_table(pa.table({"id": ["a"], "column": column}), tmp_path / "a.parquet")
    assert listing.may_hold_images(tmp_path / "a.parquet") is images


@pytest.mark.parametrize("name, images", [("a.md", False), ("a.json", False), ("a.png", True), ("a", True)])
def test_other_files_that_may_hold_images(tmp_path: Path, name: str, images: bool) -> None:
    assert listing.may_hold_images(tmp_path / name) is images


def test_broken_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.parquet").write_bytes(b"no")
    with pytest.raises(EmoR3Error, match=r"a\.parquet can't be read"):
        listing.may_hold_images(tmp_path / "a.parquet")


def test_same_content_is_recognised(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"hello\n")
    file = listing.LocalFile("a", path, 6)
    git = SimpleNamespace(size=6, lfs=None, blob_id="ce013625030ba8dba906f756967f9e9ca394464a")
    sha256 = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
    large = SimpleNamespace(size=6, lfs=SimpleNamespace(sha256=sha256), blob_id="of the pointer")
    for theirs in (git, large):
        assert not listing.differs(file, theirs)
        assert listing.differs(listing.LocalFile("a", path, 7), theirs)
    path.write_bytes(b"hallo\n")
    assert listing.differs(file, git) and listing.differs(file, large)


def test_sizes() -> None:
    sizes = {0: "0 B", 999: "999 B", 1000: "1 kB", 12_345_678: "12.3 MB", 5_000_000_000: "5 GB"}
    assert {size: listing.size_text(size) for size in sizes} == sizes
