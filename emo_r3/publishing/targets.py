"""What a folder becomes on the Hub, for data sets, models, the metric, Spaces, and all at once."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from ..errors import EmoR3Error
from ..files import read_text as read_named
from ..utils import published
from .contents import check_contents
from .listing import Kind, LocalFile, Target, find_files, local_file
from .wheel import bring_package, read_text

RUN_FILES = ("run.json", "recipe.yaml", "cold_start.json", "log.csv", "curves.png")
# What the pipeline loads, and the facts beside it; optimizers and other pickles of a training checkpoint stay out.
MODEL_FILES = r"[^/]+\.(safetensors|json|jinja|model|txt)"
INFO_FILE = "emo_r3.json"
CARD = "README.md"  # of a Space too


def dataset_target(folder: Path, repo_id: str, **options: Any) -> Target:
    """A data set, of the folder that `emo-r3 prepare` wrote."""
    files = find_files(folder)
    if not any(name.endswith(".parquet") for name in files):
        raise EmoR3Error(f"{folder} holds no Parquet file: name the folder that `emo-r3 prepare` wrote")
    check_contents(files)
    return Target("dataset", repo_id, rename_home(files, repo_id), **options)


# The line of a card that shows how to use what it is the card of.
HOME = re.compile(r'(?:load_dataset|evaluate\.load|Client)\("(emo-r3/[\w.-]+)"')


def rename_home(files: Mapping[str, LocalFile], repo_id: str) -> dict[str, LocalFile]:
    """Makes a card, and the modules beside it, name the repository that they go to, not the one of our release."""
    card = read_text(files[CARD]) if CARD in files else ""
    found = HOME.search(card)
    if not found or found[1] == repo_id:
        return dict(files)
    home = re.compile(rf"{re.escape(found[1])}(?![\w-])")
    named = {name: home.sub(repo_id, read_text(file)) for name, file in files.items() if name.endswith((CARD, ".py"))}
    return {**files} | {name: _generated(name, text) for name, text in named.items()}


def model_target(
    folder: Path,
    repo_id: str,
    *,
    adapter: bool = False,
    results: Sequence[Path] = (),
    card: Path | None = None,
    **options: Any,
) -> Target:
    """A model, of the output folder of `emo-r3 train` or of a checkpoint.

    Args:
        folder (`Path`): of the run, whose `final` is taken, or of a checkpoint.
        repo_id (`str`): `namespace/name`.
        adapter (`bool`, *optional*, defaults to `False`): take the run's LoRA adapter, not the merged model.
        results (`list[Path]`, *optional*): folders of `emo-r3 evaluate`, for the card.
        card (`Path`, *optional*): a card to use; otherwise a checkpoint's own is, or one is written.
        options: of [`Target`].

    Raises:
        `EmoR3Error`: the folder is none of a model, the run is not finished, the adapter's base is not on the Hub,
            or results are of another model.
    """
    weights, run = _parts(folder, adapter)
    files = {name: file for name, file in find_files(weights).items() if re.fullmatch(MODEL_FILES, name)}
    if INFO_FILE in files:
        files[INFO_FILE] = _facts_file(INFO_FILE, weights / INFO_FILE)
    needed = "adapter_config.json" if adapter else "config.json"
    for pattern, what in ((re.escape(needed), needed), (r".*\.safetensors", "*.safetensors files")):
        if not any(re.fullmatch(pattern, name) for name in files):
            raise EmoR3Error(f"{weights} is not the folder of {'an adapter' if adapter else 'a model'}: no {what}")
    if run:
        files |= {name: _facts_file(name, run / name) for name in RUN_FILES if (run / name).is_file()}
    for found in results:
        name = f"evaluation/{found.resolve().name}/results.json"
        if name in files:
            raise EmoR3Error(f"two --results folders are called {found.resolve().name}: rename one")
        if (found / "results.json").is_file():
            files[name] = _facts_file(name, found / "results.json")
    check_contents(files)
    if card and not card.is_file():
        raise EmoR3Error(f"the card {card} is not a file: name one, or leave it out and one is written")
    own = weights / CARD
    if card or (own.is_file() and not run):
        if results:
            raise EmoR3Error(f"--results go into a card that is written here: leave them out, or {card or own}")
        files[CARD] = local_file(CARD, card or own)
        return Target("model", repo_id, files, **options)

    from .model_card import render_model_card
    from .model_facts import adapter_config, load_model_facts

    facts = load_model_facts(weights, run, repo_id, results, adapter)
    if adapter:
        files[needed] = _generated(needed, adapter_config(weights / needed, facts))
    files[CARD] = _generated(CARD, render_model_card(facts))
    return Target("model", repo_id, files, **options)


def _parts(folder: Path, adapter: bool) -> tuple[Path, Path | None]:
    """The folders of the weights and of the run that made them, if one did."""
    if not folder.is_dir():
        raise EmoR3Error(f"{folder} is not a folder: name the output of `emo-r3 train`, or a checkpoint")
    if not (folder / "run.json").is_file():
        if folder.name in ("final", "adapter") and (folder.parent / "run.json").is_file():
            raise EmoR3Error(f"{folder} is a part of a run, whose facts the card needs: push {folder.parent}")
        return folder, None
    weights = folder / ("adapter" if adapter else "final")
    if not weights.is_dir():
        if (folder / "final").is_dir():
            raise EmoR3Error(f"{folder} has no adapter: it was not trained with LoRA, so leave --adapter out")
        raise EmoR3Error(f"{folder} holds a run that is not finished: run the same `emo-r3 train` again, it goes on")
    return weights, folder


def _generated(name: str, text: str) -> LocalFile:
    return local_file(name, text.encode())


def _facts_file(name: str, path: Path) -> LocalFile:
    """A file of a run, without the paths of the machine that wrote it."""
    import yaml

    is_yaml = path.suffix == ".yaml"
    if not is_yaml and path.suffix != ".json":
        return local_file(name, path)
    try:
        text = path.read_text(encoding="utf-8")
        told = yaml.safe_load(text) if is_yaml else json.loads(text)
    except (OSError, ValueError, yaml.YAMLError):
        return local_file(name, path)  # the card tells what is wrong with it
    facts = published(told)
    if name == INFO_FILE and isinstance(told, dict):  # its prompts are texts
        facts = told | {"base_model": published(told.get("base_model"))}
    if facts == told:
        return local_file(name, path)
    if is_yaml:
        return _generated(name, yaml.safe_dump(facts, sort_keys=False, allow_unicode=True))
    return _generated(name, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")


def metric_target(folder: Path, repo_id: str, **options: Any) -> Target:
    """A metric of `evaluate`: a Space whose module has the repository's name."""
    module = f"{repo_id.rpartition('/')[2]}.py"
    if folder.is_dir() and not (folder / module).is_file():
        raise EmoR3Error(f"{folder} has no {module}, which evaluate.load would ask {repo_id} for: rename one of them")
    return _space("metric", folder, repo_id, options)


def space_target(folder: Path, repo_id: str, **options: Any) -> Target:
    """A Space."""
    return _space("space", folder, repo_id, options)


def _space(kind: Kind, folder: Path, repo_id: str, options: dict[str, Any]) -> Target:
    from huggingface_hub import metadata_load

    files = find_files(folder)
    try:
        sdk = (metadata_load(folder / CARD) or {}).get("sdk") if CARD in files else None
    except (OSError, ValueError, AttributeError) as error:
        raise EmoR3Error(f"{folder / CARD} can't be read ({error}): mend the lines between its ---") from None
    if not sdk:
        raise EmoR3Error(f"{folder} is not the folder of a Space: its {CARD} must begin with a `sdk:` between ---")
    files = bring_package(rename_home(files, repo_id), folder, repo_id)
    return Target(kind, repo_id, files, sdk=str(sdk), **options)


TARGETS = {"dataset": dataset_target, "model": model_target, "metric": metric_target, "space": space_target}


@dataclass(frozen=True)
class Collection:
    """The repositories of a release.

    Args:
        targets (`list[Target]`): those whose folders are there and whole, in the order of the file.
        left_out (`list[str]`): a line on each of the others.
    """

    targets: list[Target]
    left_out: list[str]


def load_collection(path: Path, tag: str | None = None) -> Collection:
    """
    Reads the file that lists all repositories.

    Args:
        path (`Path`): TOML: `namespace`, and for each `[[repository]]` its `kind`, `name`, `folder` (from the file's
            own) and, if wanted, `public`, and for models `card`, `adapter` and `results`.
        tag (`str`, *optional*): to set on all.

    Raises:
        `EmoR3Error`: the file can't be used. A folder that can't be is left out, with the reason.
    """
    import tomllib

    try:
        listed = tomllib.loads(read_named(path))
        namespace, entries = listed["namespace"], [dict(entry) for entry in listed["repository"]]
        repo_ids = [(entry.pop("kind"), f"{namespace}/{entry.pop('name')}") for entry in entries]
        folders = [path.parent / entry.pop("folder") for entry in entries]
    except OSError as error:
        raise EmoR3Error(
            f"{path} can't be read ({error.strerror}): run this in a checkout, or name the file"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise EmoR3Error(f"{path} is not a list of repositories ({error}): see hub/collection.toml") from None
    found = Collection([], [])
    for place, ((kind, repo_id), folder, options) in enumerate(zip(repo_ids, folders, entries, strict=True)):
        known = {"public"} | ({"card", "adapter", "results"} if kind == "model" else set())
        if kind not in get_args(Kind) or set(options) - known or (kind, repo_id) in repo_ids[:place]:
            wrong = f"kind {kind}" if kind not in get_args(Kind) else ", ".join(set(options) - known) or "it twice"
            raise EmoR3Error(f"{path} has {wrong} at {repo_id}: correct it")
        if not folder.is_dir():
            found.left_out.append(f"{'left out':<10} {kind} {repo_id}: {folder} is not there")
            continue
        if "card" in options:
            options["card"] = path.parent / options["card"]
        if "results" in options:
            options["results"] = [path.parent / name for name in options["results"]]
        try:
            found.targets.append(TARGETS[kind](folder, repo_id, tag=tag, **options))
        except EmoR3Error as error:
            found.left_out.append(f"{'left out':<10} {kind} {repo_id}: {error}")
    return found
