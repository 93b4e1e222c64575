"""What is known of a model: its run, its base and its evaluations, out of their files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from ..errors import EmoR3Error
from ..evaluation.comparison import Run, load_run
from ..miniature.datasets import SIZES
from ..models import CHECKPOINT
from ..models.checkpoint import CheckpointInfo
from ..models.checkpoint_files import weights_digest
from .sync import persist

CARD = "README.md"
MINIATURE, MINIATURE_REPO = "miniature", "emo-r3/emo-r3-mini"


@dataclass(frozen=True)
class Base:
    """The model that another was made from.

    Args:
        name (`str`, *optional*): for people; `None` if it is not recorded.
        repo_id (`str`, *optional*): on the Hub, if it is there.
        revision (`str`, *optional*): as it was asked for.
        commit (`str`, *optional*): that was loaded.
        license (`dict[str, str]`): the entries of its card's metadata on it; empty if it has none.
    """

    name: str | None
    repo_id: str | None
    revision: str | None
    commit: str | None
    license: Mapping[str, str]


@dataclass(frozen=True)
class ModelFacts:
    """All that a card says.

    Args:
        repo_id (`str`): where the model will be.
        info (`CheckpointInfo`): its `emo_r3.json`.
        base (`Base`): what it was made from.
        run (`dict`): of `run.json`; empty if no run was recorded.
        recipe (`dict`): of `recipe.yaml`.
        cold_start (`dict`): of `cold_start.json`; empty if there was none.
        has_curves (`bool`): whether `curves.png` is there.
        results (`list[Run]`): its evaluations.
        is_adapter (`bool`): whether it is a LoRA adapter alone.
    """

    repo_id: str
    info: CheckpointInfo
    base: Base
    run: Mapping[str, Any]
    recipe: Mapping[str, Any]
    cold_start: Mapping[str, Any]
    has_curves: bool
    results: Sequence[Run]
    is_adapter: bool

    @property
    def name(self) -> str:
        """The last part of the repository's name."""
        return self.repo_id.rpartition("/")[2]

    @property
    def data_drawn(self) -> bool:
        """Whether it was trained on the miniature's drawings."""
        return is_drawn(self.run.get("dataset") or {})

    @property
    def all_drawn(self) -> bool:
        """Whether model and data are the miniature's, so that no person and no photograph had a part in it."""
        return self.base.repo_id == MINIATURE_REPO and self.data_drawn


def load_model_facts(
    weights: Path, run: Path | None, repo_id: str, results: Sequence[Path], is_adapter: bool
) -> ModelFacts:
    """
    Collects what is known of a model.

    Args:
        weights (`Path`): folder of the checkpoint or of the adapter.
        run (`Path`, *optional*): output folder of `emo-r3 train`.
        repo_id (`str`): where the model will be.
        results (`list[Path]`): folders of `emo-r3 evaluate`.
        is_adapter (`bool`): whether `weights` are a LoRA adapter.

    Raises:
        `EmoR3Error`: a file can't be read, or results are of another model, or don't tell of which.
    """
    info = CheckpointInfo.read(weights)
    told = read_facts(run / "run.json") if run else {}
    if told and told.get("recipe_hash") != info.recipe_hash:
        raise EmoR3Error(f"{weights} is not of the run in {run}: their recipes differ; train again in a new folder")
    evaluations: list[Run] = []
    whole = run / "final" if run else weights  # what answers: of an adapter, the model that it was merged into
    digest = weights_digest(whole) if results else ""
    for folder in results:
        found = load_run(str(folder))
        _check_model(found.results["model"], folder, whole, digest, info.recipe_hash)
        measured = [
            (items.get("repo_id") or items["name"], items["fingerprint"])
            for one in (*evaluations, found)
            for items in one.results["datasets"]
        ]
        if len(set(measured)) < len(measured):
            raise EmoR3Error(f"{folder} holds results on a data set that another of the results has: give one of them")
        evaluations.append(replace(found, system=repo_id.rpartition("/")[2]))
    return ModelFacts(
        repo_id=repo_id,
        info=info,
        base=find_base(
            told.get("base_model", info.base_model),
            told.get("base_revision"),
            told.get("base_commit") or info.base_commit,
        ),
        run=told,
        recipe=read_facts(run / "recipe.yaml") if run else {},
        cold_start=read_facts(run / "cold_start.json") if run else {},
        has_curves=bool(run and (run / "curves.png").is_file()),
        results=evaluations,
        is_adapter=is_adapter,
    )


def _check_model(model: Mapping[str, Any], folder: Path, whole: Path, digest: str, recipe_hash: str | None) -> None:
    """Raises `EmoR3Error` unless results are of the model in `whole`: by its weights, or, in results that don't tell
    them, by the recipe that made it and the step."""
    remedy = f"give those of `emo-r3 evaluate --model {whole}`"
    if "weights" not in model and model.get("recipe_hash") is None:
        raise EmoR3Error(f"{folder} doesn't tell the weights that it measured ({model['name']}): {remedy}")
    part = re.fullmatch(r"checkpoint-\d+", Path(str(model["name"])).name)
    same = model["recipe_hash"] == recipe_hash and not (part and part[0] != whole.name)
    if model["weights"] != digest if "weights" in model else not same:
        raise EmoR3Error(f"{folder} holds results of another model ({model['name']}): {remedy}")


def read_facts(path: Path) -> dict[str, Any]:
    """The facts of a JSON or YAML file, none if there is no such file."""
    try:
        text = path.read_text(encoding="utf-8")
        facts = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise EmoR3Error(f"{path} can't be read ({' '.join(str(error).split())}): repair or remove it") from None
    if not isinstance(facts, dict):
        raise EmoR3Error(f"{path} holds no facts by name: repair or remove it")
    return facts


def find_base(name: str | None, revision: str | None, commit: str | None = None) -> Base:
    """The base model by its name in a recipe, and what its own card says of its licence."""
    if name is None:
        return Base(None, None, None, None, {})
    if name == MINIATURE:
        return Base("the EMO-R3 miniature", MINIATURE_REPO, None, None, _license(CHECKPOINT / CARD))
    if commit is None and (Path(name).is_dir() or not re.fullmatch(r"[\w.-]+/[\w.-]+", name)):
        return Base(Path(name).name, None, None, None, _license(Path(name) / CARD))

    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    def look() -> dict[str, str]:
        try:
            home = f"{constants.ENDPOINT}/{name}"
            return _license(Path(hf_hub_download(name, CARD, revision=commit or revision)), home)
        except (RemoteEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError):
            return {}

    # A branch moves, so that its name says nothing of what was there.
    return Base(name, name, None if revision == "main" else revision, commit, persist(name, look))


def _license(card: Path, home: str | None = None) -> dict[str, str]:
    """What a card says of a licence; `home` is the address of its repository, if it is on the Hub."""
    from huggingface_hub import metadata_load

    told = (metadata_load(card) or {}) if card.is_file() else {}
    entries = {key: told[key] for key in ("license", "license_name", "license_link") if isinstance(told.get(key), str)}
    if "license" not in entries:
        return {}
    link = entries.pop("license_link", None)
    if link and not re.match(r"https?://", link):  # a file beside that card, which is not beside ours
        link = f"{home}/blob/main/{link}" if home else None
    if entries["license"] == "other":  # which says nothing by itself
        entries.setdefault("license_name", "see-the-base-model")
        link = link or home
    return entries | ({"license_link": link} if link else {})


def adapter_config(path: Path, facts: ModelFacts) -> str:
    """The adapter's configuration with its base as the Hub knows it, in place of a folder of the machine it is from.

    Raises:
        `EmoR3Error`: nobody else has that base: it is the run's own cold start, or a folder.
    """
    if facts.cold_start:
        raise EmoR3Error("this adapter is for its run's own cold start, which nobody else has: leave --adapter out")
    if facts.base.repo_id is None:
        named = facts.base.name or "an unknown model"
        raise EmoR3Error(f"this adapter is for {named}, which is not on the Hub: leave --adapter out")
    base = {"base_model_name_or_path": facts.base.repo_id, "revision": facts.base.commit or facts.base.revision}
    config = read_facts(path) | base
    return json.dumps(config, indent=2, sort_keys=True) + "\n"


def short_name(name: str) -> str:
    """A data set's name without the folders of somebody's machine."""
    return name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists() else Path(name).name


def repository(dataset: Mapping[str, Any]) -> str | None:
    """A data set's repository; `None` for a folder."""
    if "repo_id" in dataset:
        return dataset["repo_id"]
    short = short_name(dataset.get("name") or "")  # as runs said it before
    return short if "/" in short else None


def is_drawn(dataset: Mapping[str, Any]) -> bool:
    """Whether a data set is the miniature's. What it is called says nothing, except in runs that say no more."""
    return dataset["drawn"] if "drawn" in dataset else dataset.get("name") in SIZES
