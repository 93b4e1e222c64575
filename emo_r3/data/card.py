"""The card of a data set: one template, and the facts of the build."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from PIL import Image, ImageOps

from ..environment import source_url
from ..images.loading import load_image
from .archive import DEFECTS, NOTES, Record
from .report import Report, Spec

STRIP_NAME, _STRIP_COUNT, _STRIP_SIDE = "examples.png", 8, 96

_COLUMNS = {
    "image": "the image, with its original bytes unless said otherwise below",
    "label": "the label",
    "label_text": "the label's name",
    "id": "unique; the same in every layout of the originals",
    "source": "path within the original distribution, or URL",
    "sha256": "of the original bytes of the image",
}
_WITH_PIXELS = """**This repository holds the images. Keep it private** unless you have the right to pass them on: see
the terms below. The index without pixels may be public."""
_WITH_PIXELS_OF_OURS = "This repository holds the images."
_WITHOUT_PIXELS = """**This is the index: labels, annotations and checksums, no images.** With the originals at hand,
{command} makes the identical data set with images."""
_RELATED = """`images`, `problem` and `answer` of related repositories are here: `[image]`, the question that `emo_r3`
asks ("Which emotion best describes the image?" and the label list), and `label_text`."""
_RELATED_WITHOUT_PIXELS = """`problem` and `answer` of related repositories are here: the question that `emo_r3` asks
("Which emotion best describes the image?" and the label list), and `label_text`. The originals have `images`."""
_REENCODED = """{count:,} images had more than {budget:,} pixels. They were scaled down to
that and written as JPEG, so that `sha256` is not of the bytes in their row; `report.json` lists them."""
_REENCODED_WITHOUT_PIXELS = """{count:,} of the originals have more than {budget:,} pixels. `sha256` is of those;
where the data set is rebuilt, they are scaled down to that and written as JPEG. `report.json` lists them."""


def render_card(spec: Spec, report: Report, info: Any, with_pixels: bool, strip: Path | None = None) -> str:
    """
    The text of `README.md`.

    Args:
        spec (`Spec`), report (`Report`): the facts.
        info (`datasets.DatasetInfo`): features and sizes, for the Hub.
        with_pixels (`bool`): which of the two flavours it is for.
        strip (`Path`, *optional*): an image of some of the images, beside the card.
    """
    template = Template(files(__package__).joinpath("card.md").read_text(encoding="utf-8"))
    repo_id = home(spec.name, with_pixels)
    flavour = _WITHOUT_PIXELS.format(command=_rebuild(spec, repo_id))
    if with_pixels:
        flavour = _WITH_PIXELS_OF_OURS if spec.has_examples else _WITH_PIXELS
    columns = {name: _COLUMNS[name] for name in _COLUMNS if name in info.features}
    columns |= {name: column.meaning for name, column in spec.columns.items()}
    body = template.substitute(
        title=spec.title if with_pixels else f"{spec.title}: index",
        repo_id=repo_id,
        about=spec.about.strip(),
        flavour=flavour,
        first_split=next(iter(report.rows)),
        examples=f"\n![Some of the images]({strip.name})\n" if strip else "",
        counts=_count_table(report.rows, spec.labels.labels),
        columns="\n".join(f"| `{name}` | {meaning} |" for name, meaning in columns.items()),
        related=_RELATED if with_pixels else _RELATED_WITHOUT_PIXELS,
        drawn=_how_drawn(report, with_pixels),
        found=", ".join(f"{sum(counts.values()):,} images of {split}" for split, counts in report.found.items()),
        findings=_finding_list(report),
        terms=spec.terms.strip(),
        obtain=_obtain(spec, report, with_pixels),
        citation=spec.citation.strip(),
        package=f"[`emo_r3`]({source})" if (source := source_url()) else "`emo_r3`",
        version=report.emo_r3,
    )
    return f"---\n{_front_matter(spec, report, info)}\n---\n{body}"


def home(name: str, with_pixels: bool) -> str:
    """The repository of a data set in our release. `emo-r3 push` puts the one that it goes to in its place."""
    from .load import NAMESPACE

    return f"{NAMESPACE}/{name}" if with_pixels else f"{NAMESPACE}/{name}-index"


def _rebuild(spec: Spec, repo_id: str) -> str:
    """What makes the data set with images of its index: a command for those that `emo-r3 prepare` knows."""
    from .prepare import DATASETS

    if any(module.SPEC.name == spec.name for module in DATASETS.values()):
        return f"`emo-r3 prepare rebuild {repo_id} ORIGINALS --output DIR`"
    call = f'rebuild("{repo_id}", "ORIGINALS", "DIR", spec=SPEC)'
    return f"`{call}` of `emo_r3.data.index`, with the `Spec` that its authors built it with,"


def _obtain(spec: Spec, report: Report, with_pixels: bool) -> str:
    """How to get the originals; the command that makes the data set of them has the options that made this one."""
    words = [*_options(spec, report), "--output DIR" if with_pixels else "--index DIR"]
    return spec.obtain.strip().replace("--output DIR", " ".join(words))


def _options(spec: Spec, report: Report) -> list[str]:
    """Those of `emo-r3 prepare`, or of `emo-r3 miniature dataset`, that draw the same rows again."""
    from . import build, emoset, emotion6, webemo

    sizes: Mapping[str, Any] = report.sizes
    usual: Mapping[str, Any] = {}
    suffix = "-size"
    if spec.drawn is not None:  # all of its rows are taken, of as many as are drawn
        sizes = {split: sum(counts.values()) for split, counts in report.rows.items()}
        usual, suffix = spec.drawn, ""
    elif report.dataset == emotion6.SPEC.name:
        usual = emotion6.sizes(sum(sum(counts.values()) for counts in report.found.values()))
    else:
        usual = {emoset.SPEC.name: emoset.SIZES, webemo.SPEC.name: webemo.SIZES}.get(report.dataset, {})
    words = [f"--seed {report.seed}"] if report.seed else []
    for split, size in sizes.items():
        if size == emoset.AUTHORS_TRAIN and split == "train":
            words.append("--authors-train")
        elif isinstance(size, int) and size != usual.get(split):
            words.append(f"--{split}{suffix} {size}")
    if report.pixel_budget != build.PIXEL_BUDGET:
        words.append(f"--pixel-budget {report.pixel_budget}")
    return words


def _front_matter(spec: Spec, report: Report, info: Any) -> str:
    from datasets.info import DatasetInfosDict
    from huggingface_hub import DatasetCardData

    licence: dict[str, Any] = {"license": spec.license} | dict(spec.license_other)
    facts = DatasetCardData(
        **licence,
        language=["en"],
        pretty_name=spec.title,
        task_categories=["image-classification"],
        size_categories=[_size_category(sum(sum(counts.values()) for counts in report.rows.values()))],
        tags=["emotion", "visual-emotion-recognition", "emo-r3", *spec.tags],
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"data/{split}-*"} for split in report.rows],
            }
        ],
    )
    DatasetInfosDict({"default": info}).to_dataset_card_data(facts)
    return facts.to_yaml().strip()


def _size_category(count: int) -> str:
    bounds = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
    return next((name for bound, name in bounds if count < bound), "1M<n<10M")


def _count_table(rows: Mapping[str, Mapping[str, int]], labels: Sequence[str]) -> str:
    lines = [f"| label | {' | '.join(rows)} |", f"|---|{'---|' * len(rows)}"]
    lines += [f"| {label} | {' | '.join(f'{rows[split][label]:,}' for split in rows)} |" for label in labels]
    lines += [f"| **all** | {' | '.join(f'**{sum(counts.values()):,}**' for counts in rows.values())} |"]
    return "\n".join(lines)


def _how_drawn(report: Report, with_pixels: bool) -> str:
    lines = [f"- {split}: asked for {_asked(size)}" for split, size in report.sizes.items()]
    drawn = f"""Which rows of a label were drawn, and in which order, follows from a hash of the seed
({report.seed}) and `id`, the same on any machine. No image is in two splits, judged by its bytes."""
    paragraphs = ["\n".join(lines) or "All rows were taken.", drawn]
    if count := len(report.reencoded):
        text = _REENCODED if with_pixels else _REENCODED_WITHOUT_PIXELS
        paragraphs.append(text.format(count=count, budget=report.pixel_budget))
    return "\n\n".join(paragraphs)


def _asked(size: int | Mapping[str, int]) -> str:
    if isinstance(size, int):
        return f"{size:,}, in the natural ratio of the labels by the largest remainder"
    return f"{sum(size.values()):,} ({', '.join(f'{label} {number:,}' for label, number in size.items())})"


def _finding_list(report: Report) -> str:
    lines = [f"- {kind}: {len(found):,} ({(DEFECTS | NOTES)[kind]})" for kind, found in report.by_kind().items()]
    if not lines:
        return "Nothing."
    return "\n".join([*lines, "", "Rows with a defect were left out; `report.json` lists all."])


def draw_strip(records: Sequence[Record], folder: Path) -> Path:
    """Some images side by side, as `examples.png` in `folder`."""
    shown = records[:_STRIP_COUNT]
    strip = Image.new("RGB", (_STRIP_SIDE * len(shown), _STRIP_SIDE), "white")
    for place, record in enumerate(shown):
        image = ImageOps.pad(load_image(record.read()).image, (_STRIP_SIDE, _STRIP_SIDE), color="white")
        strip.paste(image, (place * _STRIP_SIDE, 0))
    path = folder / STRIP_NAME
    strip.save(path)
    return path
