"""`emo-r3 push all`: the whole list over the test Hub, killed and gone on with; lists that are wrong."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest
from hub_server import HubServer
from made_run import make_run
from pusher import Pusher, files_on, make_space, titles

from emo_r3.errors import EmoR3Error
from emo_r3.models.checkpoint import CHECKPOINT
from emo_r3.publishing.targets import load_collection

ROOT = Path(__file__).parents[2]


def write_collection(folder: Path, names: dict[str, tuple[str, Path]], extra: str = "") -> Path:
    """A list of repositories: kind and folder by name."""
    lines = ['namespace = "emo-r3"', extra]
    for name, (kind, path) in names.items():
        lines += ["[[repository]]", f'kind = "{kind}"', f'name = "{name}"', f'folder = "{path}"']
    (folder / "collection.toml").write_text("\n".join(lines) + "\n")
    return folder / "collection.toml"


@pytest.mark.slow
def test_a_release_goes_on_where_it_stopped(hub: HubServer, pusher: Pusher, tmp_path: Path) -> None:
    make_space(tmp_path / "one")
    make_space(tmp_path / "two")
    make_run(tmp_path / "three")
    names = {"one": ("space", Path("one")), "two": ("space", Path("two")), "three": ("model", Path("three"))}
    path = write_collection(tmp_path, names | {"four": ("dataset", Path("nowhere"))})
    listing = pusher.push(path, kind="all", code=1)
    assert re.findall(r"^(\w+) +emo-r3/(\w+), new, private$", listing, re.MULTILINE) == [
        *(("space", "one"), ("space", "two"), ("model", "three"))
    ]
    assert f"left out   dataset emo-r3/four: {tmp_path / 'nowhere'} is not there" in listing and "add --yes" in listing
    assert hub.store.find("spaces", "emo-r3/one") is None

    def kill_at_the_second(phase: str, what: str) -> None:
        if phase == "arrived" and "/emo-r3/two/commit/" in what:
            pusher.kill()

    hub.faults.watch = kill_at_the_second
    pusher.push(path, "--yes", "--tag", "v1", kind="all", code=-signal.SIGKILL)
    hub.faults.watch = None
    assert files_on(hub, "emo-r3/one", "v1", kind="spaces")["app.py"]
    assert hub.store.find("models", "emo-r3/three") is None
    listing = pusher.push(path, "--yes", "--tag", "v1", kind="all", code=1)
    assert listing.count("nothing to do") == 1 and listing.count("/tree/") == 2
    for name, kind in (("one", "spaces"), ("two", "spaces"), ("three", "models")):
        assert "README.md" in files_on(hub, f"emo-r3/{name}", "v1", kind=kind)
        assert len(titles(hub, f"emo-r3/{name}", kind)) == 1
    assert pusher.push(path, "--yes", "--tag", "v1", kind="all", code=1).count("nothing to do") == 3


@pytest.mark.slow
def test_our_own_release(hub: HubServer, pusher: Pusher, tmp_path: Path) -> None:
    """All that is in the repository, under another name; what has to be built first is left out where it isn't."""
    source = ROOT / "hub/collection.toml"
    listed = load_collection(source)
    ours = {target.repo_id: target.kind for target in listed.targets}
    assert {
        "emo-r3/emo-r3-mini": "model",
        "emo-r3/domain_accuracy": "metric",
        "emo-r3/emo-r3-demo": "space",
    }.items() <= (ours.items())
    assert all("/outputs/" in line for line in listed.left_out)
    text = source.read_text().replace('namespace = "emo-r3"', 'namespace = "owner"')
    text = re.sub(r'"((\.\./)?[\w.-]+/[^"]+)"', lambda found: f'"{source.parent / found[1]}"', text)
    (tmp_path / "collection.toml").write_text(re.sub(r"outputs/", "never-built/", text))
    output = pusher.push(tmp_path / "collection.toml", "--yes", kind="all", code=1)
    assert output.count("left out") == 8 and "model      owner/emo-r3-mini, " in output
    files = files_on(hub, "owner/emo-r3-mini", kind="models")
    assert files["README.md"] == (ROOT / "hub/models/emo-r3-mini/README.md").read_bytes()
    assert files["model.safetensors"] == (CHECKPOINT / "model.safetensors").read_bytes()
    assert not hub.store.find("models", "owner/emo-r3-mini").private


@pytest.mark.slow
def test_one_broken_folder_does_not_hide_the_others(pusher: Pusher, tmp_path: Path) -> None:
    make_space(tmp_path / "one")
    make_run(tmp_path / "two")
    make_run(tmp_path / "three")
    (tmp_path / "three/run.json").write_text('{"recipe_hash":')
    path = write_collection(
        tmp_path, {"a": ("space", Path("one")), "b": ("model", Path("two")), "c": ("model", Path("three"))}
    )
    path.write_text(path.read_text().replace('folder = "two"', 'folder = "two"\nresults = ["evaluation-1"]'))
    listing = pusher.push(path, kind="all", code=1)
    assert "space      emo-r3/a, new, private" in listing
    assert re.search(r"^left out   model emo-r3/b: .*evaluation-1.*", listing, re.MULTILINE)
    assert re.search(r"^left out   model emo-r3/c: .*three/run.json is not JSON", listing, re.MULTILINE)


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "is not a list of repositories"),
        ("namespace =", "is not a list of repositories"),
        ('namespace = "a"\n[[repository]]\nkind = "model"\nname = "x"', "is not a list of repositories ('folder')"),
        ('namespace = "a"\n[[repository]]\nkind = "modle"\nname = "x"\nfolder = "x"', "has kind modle at a/x"),
        (
            'namespace = "a"\n[[repository]]\nkind = "space"\nname = "x"\nfolder = "x"\ncard = "y"',
            "has card at a/x: correct it",
        ),
        (
            'namespace = "a"\n' + '[[repository]]\nkind = "space"\nname = "x"\nfolder = "x"\n' * 2,
            "has it twice at a/x",
        ),
    ],
)
def test_lists_that_are_wrong(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "collection.toml").write_text(text)
    with pytest.raises(EmoR3Error) as error:
        load_collection(tmp_path / "collection.toml")
    assert said in str(error.value)


def test_no_list(tmp_path: Path) -> None:
    with pytest.raises(EmoR3Error, match="run this in a checkout, or name the file"):
        load_collection(tmp_path / "none.toml")
