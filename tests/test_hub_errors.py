"""What a person is told when a repository can't be read: over the test Hub, with the real clients."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer, run_client
from huggingface_hub import snapshot_download

from emo_r3.data.index import find_index
from emo_r3.data.load import load_emotion_dataset
from emo_r3.errors import DataError
from emo_r3.hub_errors import explain_hub_error, without_token


def reading_client(cases: list[list[str | None]]) -> None:
    """What is said about each repository and revision: by a data set's loading, an index's and a model's."""
    import json

    from huggingface_hub import snapshot_download

    from emo_r3.data.index import find_index
    from emo_r3.data.load import load_emotion_dataset
    from emo_r3.errors import DataError
    from emo_r3.hub_errors import explain_hub_error

    said = {}
    for repo_id, revision in cases:
        name = f"{repo_id}@{revision}" if revision else repo_id
        said[name] = []
        try:
            load_emotion_dataset(repo_id, revision=revision)
        except DataError as error:
            said[name].append(str(error))
        try:
            find_index(name)
        except DataError as error:
            said[name].append(str(error))
        try:
            snapshot_download(repo_id, repo_type="dataset", revision=revision)
        except Exception as error:
            said[name].append(explain_hub_error(error, repo_id, revision))
    print("\n" + json.dumps(said))


def ask(hub: HubServer, home: Path, *cases: tuple[str, str | None], **options: Any) -> dict[str, str]:
    """The one line about each; the three ways to read a repository have the same."""
    output = run_client(hub, home, reading_client, [list(case) for case in cases], **options)
    said = json.loads(output.strip().splitlines()[-1])
    assert all(len(lines) == 3 and len(set(lines)) == 1 for lines in said.values()), said
    return {name: lines[0] for name, lines in said.items()}


@pytest.mark.slow
def test_missing_private_gated_and_mistyped_read_differently(hub: HubServer, tmp_path: Path) -> None:
    for name, private in (("emo-r3/hidden", True), ("emo-r3/asks", False)):
        repo = hub.store.create("datasets", name, private, "owner")
        repo.gated = "manual" if name.endswith("asks") else False
        repo.commit("main", {"report.json": hub.store.add_regular(b"{}")}, "a file", "owner")
    hub.store.create("datasets", "emo-r3/open", False, "owner")
    cases = ("emo-r3/nowhere", None), ("emo-r3/hidden", None), ("emo-r3/asks", None), ("emo-r3/open", "v9")
    anonymous = ask(hub, tmp_path / "home", *cases, user=None)
    for name in ("emo-r3/nowhere", "emo-r3/hidden"):  # which the Hub tells nobody apart
        assert anonymous[name].startswith(
            f"there is no {name} on the Hub, or it is private: check the name, or log in"
        )
    assert anonymous["emo-r3/asks"].startswith("emo-r3/asks is gated: ask for access on its page")
    assert anonymous["emo-r3/open@v9"] == "emo-r3/open has no branch, tag or commit 'v9': check the revision"
    stranger = ask(hub, tmp_path / "home", *cases, user="stranger")
    assert "private and this login may not read it" in stranger["emo-r3/hidden"]
    assert stranger["emo-r3/asks"].startswith("emo-r3/asks is gated")
    expired = ask(hub, tmp_path / "home", cases[1], user=None, HF_TOKEN="hf_expired0000000000")
    assert expired["emo-r3/hidden"].startswith("the Hub does not accept the token")


@pytest.mark.slow  # `datasets` tries for long
def test_a_hub_out_of_reach(hub: HubServer, tmp_path: Path) -> None:
    case = ("emo-r3/open", None)
    nobody = ask(hub, tmp_path / "home", case, user=None, waits=False, HF_ENDPOINT="http://127.0.0.1:9")
    assert nobody["emo-r3/open"].startswith("the Hub can't be reached for emo-r3/open (")
    assert nobody["emo-r3/open"].endswith("): check the connection, and try again")


def test_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests themselves run with HF_HUB_OFFLINE set."""
    said = "emo-r3/x is not in the cache of this machine, and HF_HUB_OFFLINE is set: unset it to download"
    for call in (load_emotion_dataset, find_index):
        with pytest.raises(DataError) as error:
            call("emo-r3/x")
        assert str(error.value) == said
    with pytest.raises(OSError) as unreachable:
        snapshot_download("emo-r3/x", repo_type="dataset")
    assert explain_hub_error(unreachable.value, "emo-r3/x") == said


def test_other_errors_keep_their_first_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret0000000000")
    said = explain_hub_error(ValueError("hf_secret0000000000 is odd.\nAnd a page more"), "a/b")
    assert said == "a/b can't be fetched from the Hub: *** is odd" and without_token("hf_secret0000000000") == "***"


def test_names_that_no_repository_has() -> None:
    for name in ("a/b/c", "../x", "missing-folder"):
        with pytest.raises(DataError, match="no such folder"):
            find_index(name)


def test_the_hub_s_errors_are_of_the_http_client_that_it_has() -> None:
    """httpx2, and httpx before huggingface_hub 2, which vLLM needs."""
    from huggingface_hub.errors import HfHubHTTPError

    from emo_r3.hub_errors import http_client

    assert issubclass(HfHubHTTPError, http_client().HTTPError)
