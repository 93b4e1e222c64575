"""The card of a model: one template, and the facts of its run and evaluations. What is missing is said to be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.repocard_data import eval_results_to_model_index

from .. import __version__
from ..data.load import NAMESPACE
from ..environment import source_url
from ..evaluation.comparison import Run, make_table, markdown
from ..models import CHECKPOINT
from ..models.calibration import Calibration
from ..utils import printable
from .model_facts import CARD, MINIATURE_REPO, ModelFacts, is_drawn, read_facts, repository, short_name

UNKNOWN = "not recorded"
PAPER_SETS = {"emoset-2k": "EmoSet", "emotion6": "Emotion6", "webemo-2k": "WebEmo"}
ANSWERS = {
    "set": "names what in it could trigger an emotion, says how a person would respond, concludes, and boxes a label",
    "think": "thinks in one passage, and boxes a label",
    "direct": "boxes a label, without reasons",
}


def render_model_card(facts: ModelFacts) -> str:
    """The text of `README.md`."""
    base = facts.base
    card = ModelCard.from_template(
        _metadata(facts),
        template_str=files(__package__).joinpath("model_card.md").read_text(encoding="utf-8"),
        facts=facts,
        base=base,
        base_is_drawn=base.repo_id == MINIATURE_REPO,
        pinned=base.commit or base.revision,
        answers=ANSWERS[facts.info.method],
        package=package_link(),
        install=install_line(),
        measured=_measured(facts.results),
        calibrated=_calibrated(facts.info.calibrations),
        trained=_trained(facts),
        unmeasured=_unmeasured(facts),
        version=__version__,
    )
    return f"{card}\n"


def package_link() -> str:
    """The package, with a link to where it comes from."""
    source = source_url()
    return f"[`emo_r3`]({source})" if source else "`emo_r3`"


def install_line() -> str:
    """How to get the package, which is on no index."""
    source = source_url()
    return f'\nGet {package_link()} first: `pip install "emo-r3 @ git+{source}"`.\n' if source else ""


def _metadata(facts: ModelFacts) -> ModelCardData:
    dataset = repository(facts.run.get("dataset") or {})
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
    return ModelCardData(
        language=["en"],
        library_name="peft" if facts.is_adapter else "transformers",
        pipeline_tag="image-text-to-text",
        tags=["emotion", "visual-emotion-recognition", "emo-r3"],
        **told,
    )


def _scores(run: Run) -> list[EvalResult]:
    """The entries of `model-index`, out of `results.json`."""
    return [
        _score(items, run.results["metrics"]["domains"][items["name"]][metric], kind, title)
        for items in run.results["datasets"]
        for metric, kind, title in (("accuracy", "accuracy", "Accuracy"), ("macro_f1", "f1", "Macro F1"))
    ]


def _score(items: Mapping[str, Any], estimate: Mapping[str, float], kind: str, title: str) -> EvalResult:
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


def _calibrated(calibrations: Sequence[Calibration]) -> str:
    """Which scalings of the probabilities `emo_r3.json` holds, and what they were fitted on."""
    lines = []
    for one in calibrations:
        how = "vector scaling" if one.temperature is None else f"temperature {one.temperature:.3g}"
        told = one.fitted
        if told.get("datasets"):
            sets = ", ".join(
                f"{items.get('name')} (split {items.get('split')}, fingerprint `{items.get('fingerprint')}`)"
                for items in told["datasets"]
            )
            how += f", fitted on {told.get('rows')} items of {sets} to the {told.get('to')}"
        else:
            how += f", fitted on items that are {UNKNOWN}"
        losses = told.get("log_loss", {})
        if losses:
            how += f"; log loss on held-out items {losses['before']:.3f} before, {losses['after']:.3f} after"
        lines.append(printable(f"- {one.way}: {how}."))
    return "\n".join(lines)


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
        cold_start = f"{len(facts.cold_start['rows'])} labels of {short_name(facts.cold_start['dataset'])}"
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
    recipe = facts.recipe
    stated = f"; rewards {', '.join(map(str, recipe['rewards']))}" if recipe.get("rewards") else ""
    if recipe.get("prior") == "shuffled":
        stated += ", priors shuffled: a control without information"
    if recipe.get("counterfactual_region") == "random":
        stated += ", regions at random: a control without information"
    if "judge" not in recipe:
        return printable(f"GRPO, reflection {UNKNOWN}{stated}")
    judge = recipe["judge"]
    if not judge:
        return printable(f"GRPO, no reflection{stated}")
    control = ", shuffled: a control without information" if recipe.get("shuffle_reflections") else ""
    return printable(f"GRPO, reflective reward judged by {short_name(judge)}{control}{stated}")


def _update(batch: Mapping[str, Any] | None) -> str:
    if not batch:
        return UNKNOWN
    processes, per_device, accumulation = (batch[name] for name in ("processes", "per_device", "accumulation"))
    what = f"completions, {batch['num_generations']} of a prompt" if batch.get("rollout") else "rows"
    parts = f"{processes} process{'es' * (processes > 1)} x {per_device} x {accumulation} accumulated"
    return f"{processes * per_device * accumulation} {what} ({parts})"


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
    name, repo_id = dataset.get("name"), repository(dataset)
    if not name:
        return UNKNOWN
    drawn = ", drawn by `emo_r3`" if is_drawn(dataset) else ""
    if repo_id:
        return f"[{repo_id}](/datasets/{repo_id}){drawn}, {_version_of(dataset)}"
    return f"{short_name(name)}{drawn or ', a local folder'}"


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
    card, told = ModelCard((folder / CARD).read_text(encoding="utf-8")), read_facts(folder / "evaluation.json")
    items = {"count": told["count"], "scene_seed": told["scene_seed"]}
    scores = [
        _score({"name": name} | items, found["accuracy"], "accuracy", "Accuracy")
        for name, found in told["results"].items()
    ]
    card.data["model-index"] = eval_results_to_model_index(MINIATURE_REPO.rpartition("/")[2], scores)
    return str(card).replace("\n```python\n", f"{install_line()}\n```python\n", 1)


if __name__ == "__main__":  # > hub/models/emo-r3-mini/README.md
    print(miniature_card(), end="")
