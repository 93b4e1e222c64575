"""The card of a model: one template, and the facts of its run and evaluations. What is missing is said to be."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import yaml

from .. import __version__
from ..data.load import NAMESPACE
from ..environment import source_url
from ..errors import EmoR3Error
from ..evaluation.comparison import Run, load_run, make_table, markdown
from ..miniature.datasets import SIZES
from ..models import CHECKPOINT
from ..models.checkpoint import CheckpointInfo
from ..models.checkpoint_files import weights_digest
from .sync import persist

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

CARD = "README.md"
MINIATURE, MINIATURE_REPO = "miniature", "emo-r3/emo-r3-mini"
UNKNOWN = "not recorded"
PAPER_SETS = {"emoset-2k": "EmoSet", "emotion6": "Emotion6", "webemo-2k": "WebEmo"}
ANSWERS = {
    "set": "names what in it could trigger an emotion, says how a person would respond, concludes, and boxes a label",
    "think": "thinks in one passage, and boxes a label",
    "direct": "boxes a label, without reasons",
}
USAGE = """from emo_r3 import EmoR3Pipeline

pipe = EmoR3Pipeline.from_pretrained("{repo_id}")
result = pipe("image.png")
print(result.label, result.text)"""
USAGE_OF_ADAPTER = """from pathlib import Path

from emo_r3 import EmoR3Pipeline
from emo_r3.models.checkpoint import CheckpointInfo, set_pixel_budget
from huggingface_hub import snapshot_download
from peft import PeftModel

folder = Path(snapshot_download("{repo_id}"))
info = CheckpointInfo.read(folder)
base = EmoR3Pipeline.from_pretrained("{base}"{revision})
set_pixel_budget(base.processor, info)
model = PeftModel.from_pretrained(base.model, folder).merge_and_unload()
pipe = EmoR3Pipeline(model, base.processor, info)"""


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
        return _drawn(self.run.get("dataset") or {})

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
    told = _read(run / "run.json") if run else {}
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
        recipe=_read(run / "recipe.yaml") if run else {},
        cold_start=_read(run / "cold_start.json") if run else {},
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


def _read(path: Path) -> dict[str, Any]:
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
    config = _read(path) | base
    return json.dumps(config, indent=2, sort_keys=True) + "\n"


def render_model_card(facts: ModelFacts) -> str:
    """The text of `README.md`."""
    info, base = facts.info, facts.base
    link = f"[{base.name}](/{base.repo_id})" if base.repo_id else base.name
    about = f"Made from {link}" if link else "A model for image and text whose base is not recorded"
    about += f", for explainable emotion recognition: it looks at an image, {ANSWERS[info.method]}."
    if facts.is_adapter:
        about += " **This is the LoRA adapter alone**, to be put on its base."
    usage = USAGE_OF_ADAPTER if facts.is_adapter else USAGE
    pinned = base.commit or base.revision
    revision = f', revision="{pinned}"' if pinned else ""
    template = Template(files(__package__).joinpath("model_card.md").read_text(encoding="utf-8"))
    body = template.substitute(
        title=facts.name,
        about=about,
        usage=usage.format(repo_id=facts.repo_id, base=base.repo_id, revision=revision),
        labels=", ".join(info.label_set.labels),
        prompts=info.prompts.version,
        package=package_link(),
        install=install_line(),
        measured=_measured(facts.results),
        trained=_trained(facts),
        curves="![Curves of the training run](curves.png)" if facts.has_curves else "Curves of the run: not drawn.",
        license=_license_text(base),
        annotators=_ANNOTATORS_DRAWN if facts.data_drawn else _ANNOTATORS,
        consent=_CONSENT_DRAWN if facts.all_drawn else _CONSENT_DRAWN_DATA if facts.data_drawn else _CONSENT,
        domain=_DRAWINGS_ONLY if facts.base.repo_id == MINIATURE_REPO else "",
        unmeasured="\n".join(f"- {line}" for line in _unmeasured(facts)),
        version=__version__,
    )
    return f"---\n{_front_matter(facts)}\n---\n{body}"


_ANNOTATORS = """The labels of this field's data sets are those of a
  few annotators each; how the model does for other viewers is not known."""
_ANNOTATORS_DRAWN = """The labels here are drawn by a program from a made-up
  distribution, and say nothing about people."""
_CONSENT = """This field's data sets were collected from the web by their makers. Whether those who took the images
  or are seen in them agreed is not known here: see the data set's own card."""
_CONSENT_DRAWN_DATA = """The images that it was trained on here were drawn by a program and show no person. For those
  that its base has seen, see the base's card."""
_CONSENT_DRAWN = "The images were drawn by a program and show no person; nobody's consent was needed."
_DRAWINGS_ONLY = """- **Drawings only.** The base knows some forty things of a world of small drawings. A photograph
  gets a fluent, confident, wrong answer.
"""


def package_link() -> str:
    """The package, with a link to where it comes from."""
    source = source_url()
    return f"[`emo_r3`]({source})" if source else "`emo_r3`"


def install_line() -> str:
    """How to get the package, which is on no index."""
    source = source_url()
    return f'\nGet {package_link()} first: `pip install "emo-r3 @ git+{source}"`.\n' if source else ""


def _front_matter(facts: ModelFacts) -> str:
    from huggingface_hub import ModelCardData

    dataset = _repo_id(facts.run.get("dataset") or {})
    scores = [score for run in facts.results for score in _scores(run)]
    told: dict[str, Any] = {"license": "unknown"} | dict(facts.base.license)
    if facts.base.repo_id:
        told |= {
            "base_model": facts.base.repo_id,
            "base_model_relation": "adapter" if facts.is_adapter else "finetune",
        }
    if dataset:
        told["datasets"] = [dataset]
    if scores:
        told |= {"model_name": facts.name, "eval_results": scores, "metrics": ["accuracy", "f1"]}
    card = ModelCardData(
        language=["en"],
        library_name="peft" if facts.is_adapter else "transformers",
        pipeline_tag="image-text-to-text",
        tags=["emotion", "visual-emotion-recognition", "emo-r3"],
        **told,
    )
    return card.to_yaml().strip()


def _scores(run: Run) -> list[EvalResult]:
    """The entries of `model-index`, out of `results.json`."""
    return [
        _score(items, run.results["metrics"]["domains"][items["name"]][metric], kind, title)
        for items in run.results["datasets"]
        for metric, kind, title in (("accuracy", "accuracy", "Accuracy"), ("macro_f1", "f1", "Macro F1"))
    ]


def _score(items: Mapping[str, Any], estimate: Mapping[str, float], kind: str, title: str) -> EvalResult:
    from huggingface_hub import EvalResult

    return EvalResult(
        task_type="image-classification",
        task_name="Visual emotion recognition",
        dataset_type=items.get("repo_id") or items["name"],
        dataset_name=items["name"],
        dataset_split=items.get("split"),
        dataset_revision=items.get("commit") or items.get("revision"),
        dataset_args={name: items[name] for name in ("count", "fingerprint", "scene_seed") if name in items},
        metric_type=kind,
        metric_name=title,
        metric_value=estimate["value"],
        metric_args={"interval_95": [estimate["low"], estimate["high"]]},
    )


def _measured(results: Sequence[Run]) -> str:
    if not results:
        return "Nothing: no evaluation was given when this card was written."
    parts = []
    for run in results:
        told = run.results
        parts.append(markdown(make_table([run])))
        lines = []
        for items in told["datasets"]:
            domain, form = told["metrics"]["domains"][items["name"]], told["format"][items["name"]]
            line = (
                f"- {_name_of(items)}: {items['count']:,} items of split {items['split']}, "
                f"{_version_of(items)}, fingerprint `{items['fingerprint']}`; without a readable label "
                f"{domain['unparsed']:.1%}, well-formed {form['well_formed']['value']:.1%}"
            )
            ece = (domain.get("calibration") or {}).get("ece")
            lines.append(line + (f", expected calibration error {ece:.3f}" if ece is not None else ""))
        parts.append("\n".join(lines))
        versions = ", ".join(f"{name} {version}" for name, version in told["versions"].items())
        parts.append(
            f"Accuracies are with 95 % intervals, {told['decoding']} decoding (greedy), {told['model']['dtype']} "
            f"weights, prompts `{told['prompts']['digest']}`; {versions}."
        )
    return "\n\n".join(parts)


def _trained(facts: ModelFacts) -> str:
    run, info = facts.run, facts.info
    if not run:
        recipe = f" The hash of its recipe is `{info.recipe_hash}`." if info.recipe_hash else ""
        return f"No run was given with this checkpoint: recipe, data, hardware, time and curves are {UNKNOWN}.{recipe}"
    data, seconds = run.get("dataset") or {}, run.get("seconds")
    machine = [str(value) for name, value in (run.get("hardware") or {}).items() if name != "processes"]
    versions = [f"{name} {value}" for name, value in (run.get("versions") or {}).items() if value != "not installed"]
    merged = ", merged" if run.get("weights") == "LoRA" and not facts.is_adapter else ""
    recipe, cold_start = "[`recipe.yaml`](recipe.yaml)" if facts.recipe else UNKNOWN, "none"
    if facts.cold_start:
        cold_start = f"{len(facts.cold_start['rows'])} labels of {_short(facts.cold_start['dataset'])}"
    rows = {
        "recipe": f"{recipe}, hash `{run.get('recipe_hash')}`",
        "trainer": _trainer(facts),
        "cold start": cold_start,
        "base model": f"{facts.base.name or UNKNOWN}, {_version_of(vars(facts.base))}",
        "data": f"{_data(data)}, split {data.get('split') or UNKNOWN}, {data.get('rows') or UNKNOWN} rows, "
        f"fingerprint `{data.get('fingerprint') or UNKNOWN}`",
        "vision tower": run.get("vision_tower") or UNKNOWN,
        "weights": f"{run.get('weights') or UNKNOWN}{merged}",
        "an update": _update(run.get("batch")),
        "updates": (run.get("metrics") or {}).get("step", UNKNOWN),
        "hardware": "; ".join(machine) or UNKNOWN,
        "time": UNKNOWN if seconds is None else f"{seconds / 60:.1f} minutes since it was last started",
        "versions": ", ".join(versions) or UNKNOWN,
    }
    return "| | |\n|---|---|\n" + "\n".join(f"| {name} | {value} |" for name, value in rows.items())


def _trainer(facts: ModelFacts) -> str:
    """How it was trained, and whether reflection had a part in it."""
    trainer = facts.run.get("trainer")
    if trainer != "grpo":
        return "supervised, on labels alone" if trainer == "sft" else UNKNOWN
    if "judge" not in facts.recipe:
        return f"GRPO, reflection {UNKNOWN}"
    judge = facts.recipe["judge"]
    if not judge:
        return "GRPO, no reflection"
    control = ", shuffled: a control without information" if facts.recipe.get("shuffle_reflections") else ""
    return f"GRPO, reflective reward judged by {_short(judge)}{control}"


def _update(batch: Mapping[str, Any] | None) -> str:
    if not batch:
        return UNKNOWN
    processes, per_device, accumulation = (batch[name] for name in ("processes", "per_device", "accumulation"))
    what = f"completions, {batch['num_generations']} of a prompt" if batch.get("rollout") else "rows"
    parts = f"{processes} process{'es' * (processes > 1)} x {per_device} x {accumulation} accumulated"
    return f"{processes * per_device * accumulation} {what} ({parts})"


def _short(name: str) -> str:
    """A data set's name without the folders of somebody's machine."""
    return name if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not Path(name).exists() else Path(name).name


def _repo_id(dataset: Mapping[str, Any]) -> str | None:
    """A data set's repository; `None` for a folder."""
    if "repo_id" in dataset:
        return dataset["repo_id"]
    short = _short(dataset.get("name") or "")  # as runs said it before
    return short if "/" in short else None


def _drawn(dataset: Mapping[str, Any]) -> bool:
    """Whether a data set is the miniature's. What it is called says nothing, except in runs that say no more."""
    return dataset["drawn"] if "drawn" in dataset else dataset.get("name") in SIZES


def _name_of(items: Mapping[str, Any]) -> str:
    """A data set with a link to its repository, if it has one."""
    repo_id = items.get("repo_id")
    return f"{items['name']} ([{repo_id}](/datasets/{repo_id}))" if repo_id else items["name"]


def _version_of(source: Mapping[str, Any]) -> str:
    """Commit or revision of a data set or a model."""
    if source.get("commit"):
        return f"commit `{source['commit']}`"
    return f"revision {source.get('revision') or UNKNOWN}"


def _data(dataset: Mapping[str, Any]) -> str:
    name, repo_id = dataset.get("name"), _repo_id(dataset)
    if not name:
        return UNKNOWN
    drawn = ", drawn by `emo_r3`" if _drawn(dataset) else ""
    if repo_id:
        return f"[{repo_id}](/datasets/{repo_id}){drawn}, {_version_of(dataset)}"
    return f"{_short(name)}{drawn or ', a local folder'}"


def _license_text(base: Base) -> str:
    if not base.license:
        return (
            "Unknown: no licence of the base model was found. Find it out before you use this model or pass it on. "
            "Where the data has terms of its own, its card says them."
        )
    name, link = base.license.get("license_name", base.license["license"]), base.license.get("license_link")
    text = f"[{name}]({link})" if link else f"`{name}`"
    return f"{text}, the base model's. Where the data has terms of its own, its card says them."


def _unmeasured(facts: ModelFacts) -> list[str]:
    # A data set is one of these if it was read from there. One of the same name in a folder may be any.
    measured = {items.get("repo_id") for run in facts.results for items in run.results["datasets"]}
    domains = [domain for run in facts.results for domain in run.results["metrics"]["domains"].values()]
    sets = {f"{NAMESPACE}/{key}": name for key, name in PAPER_SETS.items()}
    lines = [f"Accuracy on {name} as in `{repo_id}`." for repo_id, name in sets.items() if repo_id not in measured]
    if not any("calibration" in domain for domain in domains):
        lines.append("Calibration of its probabilities.")
    if not any("grounding" in run.results for run in facts.results):
        lines.append("Whether what its text names is in the image.")
    return [
        *lines,
        "Whether its text is the reason for its label.",
        "Differences between viewers: culture, age, gender, language.",
        "Images made to mislead it, images of other kinds than its data, languages other than English.",
        "What it may have kept of its training images, and the energy that training took.",
        *([] if facts.run.get("seconds") is not None else ["How long it was trained."]),
    ]


def miniature_card(folder: Path = CHECKPOINT) -> str:
    """The miniature's card for the Hub: the one beside its weights, the results in `evaluation.json`, and where to get
    the package."""
    from huggingface_hub import ModelCard
    from huggingface_hub.repocard_data import eval_results_to_model_index

    card, told = ModelCard((folder / CARD).read_text(encoding="utf-8")), _read(folder / "evaluation.json")
    items = {"count": told["count"], "scene_seed": told["scene_seed"]}
    scores = [
        _score({"name": name} | items, found["accuracy"], "accuracy", "Accuracy")
        for name, found in told["results"].items()
    ]
    card.data["model-index"] = eval_results_to_model_index(MINIATURE_REPO.rpartition("/")[2], scores)
    return str(card).replace("\n```python\n", f"{install_line()}\n```python\n", 1)


if __name__ == "__main__":  # > hub/models/emo-r3-mini/README.md
    print(miniature_card(), end="")
