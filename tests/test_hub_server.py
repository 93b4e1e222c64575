"""The test Hub: what the unmodified clients do with it. The functions named `*_client` run in fresh processes."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path

import pytest
from hub_server import HubServer, run_client
from hub_server.cards import metadata_of, validate


def repository_client(repo_id: str, folder: str) -> None:
    """A repository's whole life: create, upload, list, download, branch, tag, conflict, delete."""
    import os
    from pathlib import Path

    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError

    api, where = HfApi(), {"repo_type": "dataset"}
    assert api.whoami()["name"] == "owner"
    assert api.create_repo(repo_id, private=True, **where).repo_id == repo_id
    api.create_repo(repo_id, exist_ok=True, **where)
    files = {"README.md": b"---\nlicense: mit\n---\n# A set\n", "data/large.parquet": os.urandom(300_000) * 2}
    files |= {"data/deep/er/small.json": b"{}", "with space.txt": b"a", "text/zero.txt": b""}
    for name, content in files.items():
        path = Path(folder, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    first = api.upload_folder(repo_id=repo_id, folder_path=folder, **where).oid

    tree = list(api.list_repo_tree(repo_id, recursive=True, **where))
    assert {entry.path for entry in tree} == {*files, ".gitattributes", "data", "data/deep", "data/deep/er", "text"}
    large = next(entry for entry in tree if entry.path == "data/large.parquet")
    assert (large.size, large.lfs.size) == (600_000, 600_000)
    below = {entry.path for entry in api.list_repo_tree(repo_id, "data", **where)}
    assert below == {"data/deep", "data/large.parquet"}
    assert [entry.path for entry in api.get_paths_info(repo_id, ["README.md", "data", "no"], **where)] == [
        "README.md",
        "data",
    ]
    got = Path(snapshot_download(repo_id, **where))
    assert {name: (got / name).read_bytes() for name in files} == files

    api.create_branch(repo_id, branch="try/it", **where)
    api.create_tag(repo_id, tag="v1.0", tag_message="first", **where)
    changes = [CommitOperationAdd("new.txt", b"new"), CommitOperationDelete("text/")]
    second = api.create_commit(repo_id, changes, commit_message="second", parent_commit=first, **where).oid
    refs = api.list_repo_refs(repo_id, **where)
    assert {ref.name: ref.target_commit for ref in refs.branches} == {"main": second, "try/it": first}
    assert {ref.name: ref.target_commit for ref in refs.tags} == {"v1.0": first}
    assert api.list_repo_commits(repo_id, **where)[0].title == "second"
    assert api.file_exists(repo_id, "new.txt", **where)
    assert not api.file_exists(repo_id, "new.txt", revision="try/it", **where)
    assert not api.file_exists(repo_id, "text/zero.txt", **where)
    assert api.dataset_info(repo_id, revision="v1.0", files_metadata=True).sha == first

    def status_of(call, *args, **kwargs) -> int:
        try:
            call(*args, **kwargs, **where)
        except HfHubHTTPError as error:
            return error.response.status_code
        return 200

    late = {"operations": [CommitOperationAdd("late.txt", b"")], "commit_message": "late", "parent_commit": first}
    assert status_of(api.create_commit, repo_id, **late) == 412
    assert status_of(api.create_tag, repo_id, tag="v1.0") == 409
    assert status_of(api.create_branch, repo_id, branch="try/it") == 409
    half = [CommitOperationAdd("half.txt", b""), CommitOperationDelete("none.txt", is_folder=False)]
    assert status_of(api.create_commit, repo_id, half, commit_message="all or nothing") == 404
    assert not api.file_exists(repo_id, "half.txt", **where)
    try:
        api.dataset_info(repo_id, revision="none")
        raise AssertionError("a revision that isn't there")
    except RevisionNotFoundError:
        pass

    api.delete_branch(repo_id, branch="try/it", **where)
    api.delete_tag(repo_id, tag="v1.0", **where)
    api.super_squash_history(repo_id, commit_message="one", **where)
    assert [commit.title for commit in api.list_repo_commits(repo_id, **where)] == ["one"]
    api.move_repo(repo_id, repo_id + "-moved", **where)
    assert [repo.id for repo in api.list_datasets(search=repo_id)] == [repo_id + "-moved"]
    api.delete_repo(repo_id + "-moved", **where)
    assert not api.repo_exists(repo_id + "-moved", **where)


@pytest.mark.slow
@pytest.mark.parametrize("disable_xet", [pytest.param("0", id="xet"), pytest.param("1", id="lfs")])
def test_repository_life(hub: HubServer, tmp_path: Path, disable_xet: str) -> None:
    run_client(
        hub,
        tmp_path / "home",
        repository_client,
        f"emo-r3/life-{disable_xet}",
        str(tmp_path / "folder"),
        HF_HUB_DISABLE_XET=disable_xet,
    )
    uploads = {seen.what.split("/")[1] for seen in hub.faults.seen if seen.received > 200_000}
    assert uploads == ({"_lfs"} if disable_xet == "1" else {"cas"})


def access_client(tokens: dict[str, str | None]) -> None:
    """Who sees what: a private and a gated repository in the eyes of four people."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    apis = {user: HfApi(token=token or False) for user, token in tokens.items()}
    where = {"repo_type": "dataset"}
    owner = apis["owner"]
    for name in ("emo-r3/private", "emo-r3/gated"):
        owner.create_repo(name, private=name.endswith("private"), **where)
        owner.upload_file(path_or_fileobj=b"x", path_in_repo="x.txt", repo_id=name, **where)
    owner.update_repo_settings("emo-r3/gated", gated="manual", **where)

    def outcome(user: str, repo_id: str) -> str | int:
        try:
            apis[user].hf_hub_download(repo_id, "x.txt", local_dir=f"{user}/{repo_id}", **where)
            return "read"
        except GatedRepoError:
            return "gated"
        except RepositoryNotFoundError as error:
            return error.response.status_code

    private = {user: outcome(user, "emo-r3/private") for user in apis}
    assert private == {"owner": "read", "reader": "read", "stranger": 404, "anonymous": 401}, private
    gated = {user: outcome(user, "emo-r3/gated") for user in apis}
    assert gated == {"owner": "read", "reader": "read", "stranger": "gated", "anonymous": "gated"}, gated
    owner.grant_access("emo-r3/gated", "stranger", **where)
    assert outcome("stranger", "emo-r3/gated") == "read"
    assert "emo-r3/private" not in [repo.id for repo in apis["stranger"].list_datasets()]

    def status_of_writing(user: str, repo_id: str) -> int:
        try:
            apis[user].upload_file(path_or_fileobj=b"y", path_in_repo="y", repo_id=repo_id, **where)
        except HfHubHTTPError as error:
            return error.response.status_code
        return 200

    written = {user: status_of_writing(user, "emo-r3/gated") for user in ("reader", "stranger", "anonymous")}
    assert written == {"reader": 403, "stranger": 403, "anonymous": 401}, written
    assert status_of_writing("stranger", "emo-r3/private") == 404
    try:
        HfApi(token="hf_unknown").whoami()
        raise AssertionError("an unknown token")
    except HfHubHTTPError as error:
        assert error.response.status_code == 401


@pytest.mark.slow
def test_access(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tokens = {user: f"hf_{user}0000000000" for user in ("owner", "reader", "stranger")}
    run_client(hub, tmp_path / "home", access_client, tokens | {"anonymous": None}, user=None)


def spaces_client() -> None:
    """What only Spaces have, and a model's card."""
    from huggingface_hub import HfApi

    api = HfApi()
    api.create_repo("emo-r3/demo", repo_type="space", space_sdk="gradio")
    api.add_space_secret("emo-r3/demo", "KEY", "planted-secret")
    api.add_space_variable("emo-r3/demo", "NAME", "value")
    assert api.get_space_variables("emo-r3/demo")["NAME"].value == "value"
    assert api.pause_space("emo-r3/demo").stage == "PAUSED"
    assert api.restart_space("emo-r3/demo").stage == "RUNNING"
    assert api.request_space_hardware("emo-r3/demo", "t4-small").requested_hardware == "t4-small"
    assert api.get_space_runtime("emo-r3/demo").stage == "RUNNING"
    assert api.space_info("emo-r3/demo").sdk == "gradio"

    api.create_repo("owner/model")
    card = b"---\nlibrary_name: transformers\ntags: [emotion]\n---\n"
    api.upload_file(path_or_fileobj=card, path_in_repo="README.md", repo_id="owner/model")
    assert api.model_info("owner/model").library_name == "transformers"
    assert "owner/model" in [model.id for model in api.list_models(filter="emotion")]
    assert "owner/model" not in [model.id for model in api.list_models(filter="weather")]
    try:
        api.upload_file(path_or_fileobj=b"---\ntags: {a: b}\n---\n", path_in_repo="README.md", repo_id="owner/model")
        raise AssertionError("a card that the Hub refuses")
    except ValueError as error:
        assert '"tags" must be' in str(error)


@pytest.mark.slow
def test_spaces_and_models(hub: HubServer, tmp_path: Path) -> None:
    run_client(hub, tmp_path / "home", spaces_client)


def push_to_hub_client(repo_id: str) -> None:
    """`Dataset.push_to_hub`, with images."""
    from datasets import ClassLabel, Dataset, Features, Image, Value
    from PIL import Image as ImagePool

    images = [ImagePool.new("RGB", (8, 8), (i, 10 * i, 255 - i)) for i in range(12)]
    rows = {"image": images, "label": [i % 2 for i in range(12)], "id": [f"{repo_id}-{i}" for i in range(12)]}
    features = Features({"image": Image(), "label": ClassLabel(names=["awe", "fear"]), "id": Value("string")})
    Dataset.from_dict(rows, features=features).push_to_hub(repo_id, split="test", private=True, num_shards=2)
    from huggingface_hub import HfApi

    HfApi().create_tag(repo_id, tag="v1", repo_type="dataset")


def load_dataset_client(*repo_ids: str) -> None:
    """`load_dataset` in full and streaming, by branch and by tag."""
    from datasets import load_dataset

    for repo_id in repo_ids:
        for options in ({}, {"revision": "v1"}, {"streaming": True}, {"streaming": True, "revision": "v1"}):
            rows = list(load_dataset(repo_id, split="test", **options))
            assert [row["id"] for row in rows] == [f"{repo_id}-{i}" for i in range(12)]
            assert [row["label"] for row in rows] == [0, 1] * 6
            assert all(row["image"].getpixel((3, 3)) == (i, 10 * i, 255 - i) for i, row in enumerate(rows))


@pytest.mark.slow
def test_datasets(hub: HubServer, tmp_path: Path) -> None:
    run_client(hub, tmp_path / "writer", push_to_hub_client, "emo-r3/by-xet")
    run_client(hub, tmp_path / "writer-2", push_to_hub_client, "emo-r3/by-lfs", HF_HUB_DISABLE_XET="1")
    assert any("/xorbs/" in seen.what for seen in hub.faults.seen)
    assert any("PUT /_lfs/" in seen.what for seen in hub.faults.seen)
    run_client(hub, tmp_path / "reader", load_dataset_client, "emo-r3/by-xet", "emo-r3/by-lfs", user="reader")


def pull_request_client(repo_id: str, reader: str) -> None:
    """A pull request leaves main as it is, may be added to, and may be opened by who only reads."""
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    api.create_repo(repo_id)
    before = api.model_info(repo_id).sha
    for number, token in ((1, None), (2, reader)):
        where = {"repo_id": repo_id, "token": token}
        made = api.create_commit(
            operations=[CommitOperationAdd("a.txt", b"a"), CommitOperationAdd("a.bin", bytes(9))],
            commit_message="Please take it",
            create_pr=True,
            **where,
        )
        assert (made.pr_num, made.pr_revision) == (number, f"refs/pr/{number}")
        assert made.pr_url.endswith(f"{repo_id}/discussions/{number}")
        assert api.file_exists(repo_id, "a.bin", revision=made.pr_revision)
    assert api.model_info(repo_id).sha == before and not api.file_exists(repo_id, "a.txt")
    api.upload_file(path_or_fileobj=b"b", path_in_repo="b.txt", repo_id=repo_id, revision="refs/pr/1")
    refs = api.list_repo_refs(repo_id, include_pull_requests=True)
    assert [ref.ref for ref in refs.pull_requests] == ["refs/pr/1", "refs/pr/2"] and len(refs.branches) == 1
    assert set(api.list_repo_files(repo_id, revision="refs/pr/1")) == {".gitattributes", "a.txt", "a.bin", "b.txt"}
    assert api.list_repo_refs(repo_id).pull_requests is None


@pytest.mark.slow
def test_a_pull_request_leaves_main_as_it_is(hub: HubServer, tmp_path: Path) -> None:
    run_client(hub, tmp_path / "home", pull_request_client, "emo-r3/asked", "hf_reader0000000000")


def ignored_client(repo_id: str) -> None:
    """The client leaves out what the repository's own .gitignore names, unless another one comes along."""
    from huggingface_hub import CommitOperationAdd, HfApi

    api = HfApi()
    api.create_repo(repo_id)

    def add(*names: str, **more: bytes) -> set[str]:
        content = {name: name.encode() for name in names} | more
        files = [CommitOperationAdd(name, data) for name, data in content.items()]
        api.create_commit(repo_id, files, commit_message="add")
        return set(api.list_repo_files(repo_id))

    add(**{".gitignore": b"# of a model\n*.bin\n!keep.bin\n/top.txt\nlogs/\n"})
    names = ("a.bin", "deep/a.bin", "keep.bin", "top.txt", "deep/top.txt", "logs/x.txt", "deep/logs/x.txt", "logs.txt")
    there = add(*names)
    assert there == {".gitattributes", ".gitignore", "keep.bin", "deep/top.txt", "logs.txt"}, there
    assert add(*names, **{".gitignore": b""}) == {".gitattributes", ".gitignore", *names}


@pytest.mark.slow
def test_a_repository_s_gitignore_leaves_files_out(hub: HubServer, tmp_path: Path) -> None:
    run_client(hub, tmp_path / "home", ignored_client, "emo-r3/ignoring")


def other_names_client(stranger: str) -> None:
    """A repository in capital letters, after a rename, and after its old name was taken by another."""
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

    api, where = HfApi(), {"repo_type": "dataset"}
    api.create_repo("emo-r3/Named", private=True, **where)
    api.create_repo("EMO-R3/named", exist_ok=True, **where)
    for number, name in enumerate(("emo-r3/Named", "Emo-R3/nameD")):
        for suffix in ("txt", "bin"):
            path = f"{number}.{suffix}"
            api.upload_file(path_or_fileobj=b"x" * 99, path_in_repo=path, repo_id=name, **where)
    assert [found.id for found in api.list_datasets(search="NAMED")] == ["emo-r3/Named"]

    api.move_repo("emo-r3/Named", "emo-r3/moved", **where)
    assert api.dataset_info("emo-r3/named").id == "emo-r3/moved"
    api.upload_file(path_or_fileobj=b"y" * 99, path_in_repo="2.bin", repo_id="emo-r3/Named", **where)
    api.create_tag("emo-r3/named", tag="v1", **where)
    for name in ("0.txt", "1.bin", "2.bin"):
        with open(hf_hub_download("EMO-R3/NAMED", name, revision="v1", **where), "rb") as file:
            assert len(file.read()) == 99
    try:
        api.dataset_info("emo-r3/named", token=stranger)
        raise AssertionError("a private repository gives its name away")
    except RepositoryNotFoundError:
        pass
    try:
        api.create_repo("emo-r3/MOVED", **where)
        raise AssertionError("the same name in capital letters")
    except HfHubHTTPError as error:
        assert error.response.status_code == 409
    api.create_repo("emo-r3/Named", **where)
    assert api.dataset_info("emo-r3/named").id == "emo-r3/Named"
    assert not api.file_exists("emo-r3/named", "0.txt", **where)


@pytest.mark.slow
def test_capital_letters_and_a_former_name_lead_to_the_repository(hub: HubServer, tmp_path: Path) -> None:
    run_client(hub, tmp_path / "home", other_names_client, "hf_stranger0000000000")
    assert any(seen.status == 307 for seen in hub.faults.seen)


def faults_client(repo_id: str) -> None:
    """Uploads and downloads of the client itself, which repeats what failed."""
    from huggingface_hub import HfApi, constants

    constants.DOWNLOAD_CHUNK_SIZE = 65_536  # what it writes at once, and so the least that it goes on from
    api = HfApi()
    api.create_repo(repo_id)
    api.upload_file(path_or_fileobj=bytes(range(256)) * 2000, path_in_repo="a.bin", repo_id=repo_id)
    with open(api.hf_hub_download(repo_id, "a.bin"), "rb") as file:
        assert file.read() == bytes(range(256)) * 2000


@pytest.mark.slow
def test_faults(hub: HubServer, tmp_path: Path) -> None:
    hub.faults.add("503", "PUT /_lfs")
    hub.faults.add("cut", "GET /_blobs")
    hub.faults.add("cut", "GET /_blobs", after=300_000)
    hub.faults.add("stall", "POST /api/validate|POST .*/commit/", seconds=0.3)
    run_client(hub, tmp_path / "home", faults_client, "owner/faults", waits=False, HF_HUB_DISABLE_XET="1")
    assert [seen.status for seen in hub.faults.seen if "PUT /_lfs" in seen.what] == [503, 200]
    got = [(seen.status, seen.range) for seen in hub.faults.seen if "GET /_blobs" in seen.what]
    # The second cut comes when four pieces are on disk: the client goes on behind them.
    assert got == [(200, ""), (200, ""), (206, "bytes=262144-")]
    assert not any(fault.times for fault in hub.faults.pending)


def test_faults_by_hand(hub: HubServer) -> None:
    def call(method: str, path: str, body: dict[str, object] | None = None) -> tuple[int, object]:
        data = json.dumps(body).encode() if body else None
        request = urllib.request.Request(hub.url + path, data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=5) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    assert call("POST", "/_test/faults", {"kind": "503", "where": "GET /api/whoami"}) == (200, {})
    assert [call("GET", "/api/whoami-v2")[0] for _ in range(2)] == [503, 401]
    assert call("POST", "/_test/faults", {"kind": "500", "where": ""})[0] == 400
    assert call("GET", "/_test/requests")[1][1]["status"] == 503
    assert call("DELETE", "/_test/faults") == (200, {})
    assert len(call("GET", "/_test/requests")[1]) == 1  # the DELETE itself


def test_store_outlives_the_server(tmp_path: Path) -> None:
    with HubServer(tmp_path) as server:
        server.store.create("models", "owner/kept", private=True, author="owner")
    with HubServer(tmp_path) as server:
        repo = server.store.find("models", "owner/kept")
        assert repo and repo.private and list(repo.tree(repo.branches["main"])) == [".gitattributes"]


@pytest.mark.parametrize(
    "metadata, complaint",
    [
        ("license: mit", None),
        ("license: [mit, other]\nsize_categories: [1K<n<10K]\ntags: emotion", None),
        ("license: Apache 2.0", '"license" must be one of'),
        ("license: llama3.1", None),
        ("license: [bsd-3-clause, cc-by-nc-sa-4.0, gpl-3.0, openrail++]", None),
        ("size_categories: [2K]", '"size_categories" must be one of'),
        ("tags: [1]", '"tags" must be'),
        ("language: no", '"language" must be'),  # YAML reads this country as False
        ("pretty_name: 3", '"pretty_name"'),
        ("configs: {}", '"configs"'),
        ("dataset_info: x", '"dataset_info"'),
        ("a: b: c", "mapping values are not allowed"),
        ("- a", "not a mapping"),
    ],
)
def test_card_metadata(metadata: str, complaint: str | None) -> None:
    errors, _ = validate(f"---\n{metadata}\n---\n# Text\n", "dataset")
    assert (complaint in errors[0]) if complaint else not errors


@pytest.mark.parametrize(
    "kind, metadata, complaint",
    [
        ("model", "base_model: Qwen/Qwen2.5-VL-3B-Instruct\nbase_model_relation: finetune", None),
        ("model", "base_model: /home/me/model", '"base_model" with value'),
        ("model", "datasets: [a/b/c]", '"datasets" with value'),
        ("model", "base_model_relation: child", '"base_model_relation"'),
        ("model", "model-index: [{name: a}]", "are required"),
        ("model", "model-index: [{name: a, results: [{task: {type: t}, dataset: {type: d}}]}]", "dataset.name"),
        ("model", "model-index: [{name: a, results: [{metrics: [{type: accuracy}]}]}]", "task.type"),
        ("space", "sdk: gradio\ncolorFrom: brown", '"colorFrom"'),
        ("space", f"sdk: gradio\nshort_description: {'long ' * 20}", '"short_description"'),
        ("space", "sdk: gradio\ncolorTo: indigo\nshort_description: short", None),
    ],
)
def test_metadata_of_models_and_spaces(kind: str, metadata: str, complaint: str | None) -> None:
    errors, _ = validate(f"---\n{metadata}\n---\n", kind)
    assert (complaint in errors[0]) if complaint else not errors


def test_a_pipeline_tag_that_is_not_listed_is_warned_of() -> None:
    assert validate("---\npipeline_tag: image-text-to-text\n---\n", "model") == ([], [])
    errors, [warning] = validate("---\npipeline_tag: emotion-recognition\n---\n", "model")
    assert not errors and 'pipeline tag "emotion-recognition" is not in the official list' in warning
    assert validate("---\npipeline_tag: 3\n---\n", "model")[0] == ['"pipeline_tag" must be a string']


def test_card_without_metadata() -> None:
    assert validate("# Text\n", "dataset") == ([], ["empty or missing yaml metadata in repo card"])
    assert validate("---\nlicense: mit\n---\n", "space")[0][0].startswith('"sdk" must be')
    assert metadata_of("---\r\nlicense: mit\r\n---\r\n") == {"license": "mit"}
