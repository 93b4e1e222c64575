"""One result of several answers to the same question: the best of them, or what they say together; and calibrated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ..lexicon import LEAST_KNOWN, Affect, expected_affect
from ..models.calibration import Calibration
from ..results import EmotionResult


def best_of(candidates: Sequence[EmotionResult]) -> EmotionResult:
    """The well-formed before others, then the highest score; all scores stay on it."""
    best = max(candidates, key=lambda result: (result.well_formed, result.score or 0.0))
    return replace(best, candidate_scores=tuple(result.score or 0.0 for result in candidates))


def calibrated(
    result: EmotionResult, calibration: Calibration | None, lexicon: Mapping[str, Affect] | None = None
) -> EmotionResult:
    """
    The answer with its probabilities scaled, and with valence, arousal and label that follow from them.

    Args:
        result (`EmotionResult`): the answer, of one completion or of several.
        calibration (`Calibration`, *optional*): for the way it was asked; the answer stays as it is without, or if it
            has no probabilities.
        lexicon (`dict[str, Affect]`, *optional*): valence and arousal of words; the shipped norms unless given.
    """
    if calibration is None or not result.probabilities:
        return result
    probabilities, label = calibration.apply(result.probabilities, result.label)
    affect = expected_affect(probabilities, lexicon, least=LEAST_KNOWN)
    moved = f"; they made {label} of {result.label}, which is in the text" if label != result.label else ""
    return replace(
        result,
        label=label,
        probabilities=probabilities,
        valence=affect.valence if affect else None,
        arousal=affect.arousal if affect else None,
        notes=(*result.notes, f"probabilities calibrated ({calibration}){moved}"),
    )


def self_consistent(
    candidates: Sequence[EmotionResult],
    lexicon: Mapping[str, Affect] | None = None,
    calibration: Calibration | None = None,
) -> EmotionResult:
    """
    The mean of the answers' distributions (self-consistency, arXiv:2203.11171, with distributions for votes).

    One chain of thought decides on a label before its box, so that the distribution there is a spike. The mean over
    chains that were drawn says how sure the model is of the image. The label is the one with the largest share among
    those in the boxes; the text is the best answer with this label.

    Args:
        candidates (`list[EmotionResult]`): answers about one image, drawn with a temperature.
        lexicon (`dict[str, Affect]`, *optional*): valence and arousal of words; the shipped norms unless given.
        calibration (`Calibration`, *optional*): for this mean; where it makes another label the most probable, the
            text is the best answer with that one, if there is any.
    """
    labels = list(candidates[0].probabilities)
    mean = {label: sum(one.probabilities[label] for one in candidates) / len(candidates) for label in labels}
    boxed = [one.label for one in candidates if one.label is not None]
    label = max(dict.fromkeys(boxed), key=mean.__getitem__, default=None)
    answer = calibration.apply(mean, label)[1] if calibration else label
    same = [one for one in candidates if one.label == answer] or [one for one in candidates if one.label == label]
    best = max(same, key=lambda one: (one.well_formed, one.score or 0.0, one.confidence or 0.0))
    affect = expected_affect(mean, lexicon, least=LEAST_KNOWN)
    result = replace(
        best,
        probabilities=mean,
        valence=affect.valence if affect else None,
        arousal=affect.arousal if affect else None,
        chain_agreement=boxed.count(answer) / len(candidates) if answer is not None else 0.0,
        candidate_scores=tuple(one.score for one in candidates if one.score is not None),
    )
    return calibrated(result, calibration, lexicon)
