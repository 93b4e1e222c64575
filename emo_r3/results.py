"""What the pipeline found in one image: a typed, JSON-ready record."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from .errors import EmoR3Error

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image


@dataclass(frozen=True)
class Coherence:
    """Which label the model reads out of its own text, without the image (section 3.3).

    Args:
        label (`str`): the label at the end of a greedy walk.
        probability (`float`): its probability.
        agreement (`float`): probability, by the same reading, of the label in the box.
    """

    label: str
    probability: float
    agreement: float


@dataclass(frozen=True)
class EvidenceMap:
    """What of an image the label hangs on, cell by cell: see [`~emo_r3.models.occlusion.evidence_map`].

    Args:
        values (`tuple[tuple[float, ...], ...]`): rows from the top, cells from the left, from -1 to 1: the mean of how
            much of the label's probability goes when the language model doesn't see the cell, and of how much comes
            when it sees nothing else. Below 0, the cell speaks against the label.
        probability (`float`): the label's probability where all is seen, when asked for the label alone.
        box (`tuple[float, float, float, float]`): what the cells cover: left, top, right and bottom, in parts of the
            sides of the image as the model was given it.
        size (`tuple[int, int]`): width and height of that image, which may be reduced, or have a margin.
    """

    values: tuple[tuple[float, ...], ...]
    probability: float
    box: tuple[float, float, float, float]
    size: tuple[int, int]

    @property
    def array(self) -> np.ndarray:
        """The values, of shape `(rows, columns)`, float32."""
        import numpy as np

        return np.array(self.values, np.float32)

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        return {
            "values": [list(row) for row in self.values],
            "probability": self.probability,
            "box": list(self.box),
            "size": list(self.size),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EvidenceMap:
        """Makes the map of what `to_dict` returned."""
        rows = tuple(tuple(row) for row in values["values"])
        return cls(rows, values["probability"], tuple(values["box"]), tuple(values["size"]))


@dataclass(frozen=True)
class Evidence:
    """What the answer names as what could trigger an emotion, and where it is, with the method `"grounded"`.

    Args:
        text (`str`): the text of step 1.
        size (`tuple[int, int]`): width and height of the image as it was given, upright.
        box (`tuple[float, float, float, float]`, *optional*): left, top, right and bottom in its pixels; `None`
            where the model gave no region, or one that is not in the image.
    """

    text: str
    size: tuple[int, int]
    box: tuple[float, float, float, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values."""
        return {"text": self.text, "size": list(self.size), "box": self.box and list(self.box)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Evidence:
        """Makes the evidence of what `to_dict` returned."""
        return cls(values["text"], tuple(values["size"]), values["box"] and tuple(values["box"]))


@dataclass(frozen=True)
class EmotionResult:
    r"""The reading of one image.

    Args:
        image (`str`): name of the image: its path, its URL, or what it was given as.
        label (`str`, *optional*): the label in the box; `None` where there is none of the list.
        probabilities (`dict[str, float]`): the model's distribution over the label list at the box; sums to 1.
        steps (`dict[str, str]`): the tagged parts of the answer by name: `step1` (emotional triggers), `step2` (human
            reflection) and `step3` (conclusion), or `think`.
        valence, arousal (`float`, *optional*): expected under the distribution by the norms of `lexicon.py`, from 1 to
            9; `None` where labels with norms have less than half of the probability.
        text (`str`): the whole completion.
        problems (`tuple[str, ...]`): what is wrong with its form, by the codes of `parsing.py`; empty for a good one.
        notes (`tuple[str, ...]`): what was done to the image or to the answer, in words.
        consistency (`float`, *optional*): the model's probability of Yes when asked whether step 1 can describe the
            image; `None` if it was not asked or there is no such text.
        coherence (`Coherence`, *optional*): the model's reading of its own steps without the image.
        score (`float`, *optional*): mean of `consistency` and `coherence.agreement`, a missing one counting 0: the
            reward of eq. 5 as a self-check, with the boxed label in the place of the reference.
        candidate_scores (`tuple[float, ...]`): scores of all candidates, if there was more than one.
        chain_agreement (`float`, *optional*): share of the candidates that have the label, with
            `aggregate="self-consistency"`.
        evidence (`Evidence`, *optional*): what step 1 names and where it is, with the method `"grounded"`.
        emotions (`tuple[str, ...]`): what people may feel in the model's own words, with that method.
        evidence_map (`EvidenceMap`, *optional*): what of the image the label hangs on, with `explain=True`.
        method, prompt_version, model (`str`): how the model was asked.
        error (`str`, *optional*): why there is no result; all else but `image` is then empty.
    """

    image: str
    label: str | None = None
    probabilities: dict[str, float] = field(default_factory=dict)
    steps: dict[str, str] = field(default_factory=dict)
    valence: float | None = None
    arousal: float | None = None
    text: str = ""
    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    consistency: float | None = None
    coherence: Coherence | None = None
    score: float | None = None
    candidate_scores: tuple[float, ...] = ()
    chain_agreement: float | None = None
    evidence: Evidence | None = None
    emotions: tuple[str, ...] = ()
    evidence_map: EvidenceMap | None = None
    method: str = ""
    prompt_version: str = ""
    model: str = ""
    error: str | None = None

    @property
    def confidence(self) -> float | None:
        """Probability of the label in the box."""
        return None if self.label is None else self.probabilities.get(self.label)

    @property
    def entropy(self) -> float | None:
        """Of `probabilities`, in nats: 0 where one label has them all, the logarithm of their number where all do."""
        if not self.probabilities:
            return None
        return -sum(share * math.log(share) for share in self.probabilities.values() if share > 0)

    @property
    def well_formed(self) -> bool:
        """Whether the answer has its form, and there is one."""
        return self.error is None and not self.problems

    @property
    def step1(self) -> str | None:
        """Emotional Trigger Identification."""
        return self.steps.get("step1")

    @property
    def step2(self) -> str | None:
        """Human Emotional Reflection."""
        return self.steps.get("step2")

    @property
    def step3(self) -> str | None:
        """Emotional Conclusion."""
        return self.steps.get("step3")

    def overlay(self, image: Any) -> Image.Image:
        """The image with what there is of evidence: what the label hangs on is coloured, and the region has a frame.

        Args:
            image: the image that was read, as the pipeline takes it.

        Raises:
            EmoR3Error: there is neither a map nor a region, as nobody asked for it or there is no label.
            ImageError: the image can't be read.
        """
        framed = self.evidence is not None and self.evidence.box is not None
        if self.evidence_map is None and not framed:
            raise EmoR3Error(
                f"{self.image}: there is no evidence map and no region: ask for it with explain=True or "
                "method='grounded'"
            )
        from .images.loading import load_image
        from .images.overlay import with_evidence, with_frame

        made = load_image(image).image
        if self.evidence_map is not None:
            made = with_evidence(made, self.evidence_map)
        return with_frame(made, self.evidence) if framed and self.evidence else made

    @property
    def evidence_agreement(self) -> float | None:
        """Share of what speaks for the label in the evidence map that lies in the region; `None` without one of them.

        A region that is drawn at random has, on average, its share of the image.
        """
        if self.evidence_map is None or self.evidence is None or self.evidence.box is None:
            return None
        from .images.overlay import share_in_frame

        return share_in_frame(self.evidence_map, self.evidence)

    def to_dict(self) -> dict[str, Any]:
        """All fields and the confidence as plain values; numbers are finite or `None`.

        `evidence`, `emotions` and `evidence_map` are there where there is one.
        """
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values |= {name: list(values[name]) for name in ("problems", "notes", "candidate_scores")}
        values |= {"probabilities": dict(self.probabilities), "steps": dict(self.steps)}
        if self.coherence is not None:
            values["coherence"] = {item.name: getattr(self.coherence, item.name) for item in fields(Coherence)}
        for name in ("evidence", "emotions", "evidence_map"):
            if not values[name]:
                del values[name]
        if self.evidence is not None:
            values["evidence"] = self.evidence.to_dict()
        if self.emotions:
            values["emotions"] = list(self.emotions)
        if self.evidence_map is not None:
            values["evidence_map"] = self.evidence_map.to_dict()
        return values | {"confidence": self.confidence}

    def to_json(self, indent: int | None = None) -> str:
        """The record as strict JSON (no NaN)."""
        return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False, indent=indent)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EmotionResult:
        """Makes the record of what `to_dict` returned.

        Raises:
            TypeError: an entry is unknown.
        """
        entries = {name: value for name, value in values.items() if name != "confidence"}
        for name in ("problems", "notes", "candidate_scores", "emotions"):
            entries[name] = tuple(entries.get(name, ()))
        if entries.get("evidence") is not None:
            entries["evidence"] = Evidence.from_dict(entries["evidence"])
        if entries.get("coherence") is not None:
            entries["coherence"] = Coherence(**entries["coherence"])
        if entries.get("evidence_map") is not None:
            entries["evidence_map"] = EvidenceMap.from_dict(entries["evidence_map"])
        return cls(**entries)
