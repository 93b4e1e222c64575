"""What the baselines without training share: which models, which options, which polarity of a label."""

from __future__ import annotations

import pytest
import torch
from seen_tokens import IMAGE, pipe_of

from emo_r3.errors import CheckpointError, EmoR3Error, ImageError
from emo_r3.evaluation.dan import DanPipeline
from emo_r3.evaluation.sepm import SepmPipeline
from emo_r3.evaluation.training_free import TRAINING_FREE, TrainingFreePipeline, option_tokens, sign_of
from emo_r3.labels import LABEL_SETS, LabelSet

BASELINES = (SepmPipeline, DanPipeline)


def test_the_methods_are_all_of_them() -> None:
    assert tuple(baseline.method for baseline in BASELINES) == TRAINING_FREE


@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("name", ["llava", "idefics3"])
def test_models_of_other_families_are_refused(baseline: type[TrainingFreePipeline], name: str) -> None:
    told = f"{baseline.method.upper()} needs a model of the type qwen2_5_vl, qwen2_vl or qwen3_vl, and .* is {name}"
    with pytest.raises(CheckpointError, match=told):
        baseline(pipe_of(name))


@pytest.mark.parametrize("baseline", BASELINES)
def test_an_image_that_cannot_be_read_is_a_row_or_an_error(baseline: type[TrainingFreePipeline]) -> None:
    pipe = baseline(pipe_of("qwen2_5_vl"))
    broken, good = pipe(["no-such.png", IMAGE], on_error="return")
    assert broken.error and broken.label is None and good.label in pipe.pipe.info.label_set.labels
    with pytest.raises(ImageError):
        next(pipe([b"nothing"]))


@pytest.mark.parametrize("baseline", BASELINES)
def test_numbers_that_are_not_finite_are_told(
    baseline: type[TrainingFreePipeline], monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = pipe_of("qwen2_vl")
    monkeypatch.setattr(pipe.model.lm_head, "forward", lambda hidden: hidden @ hidden.new_full((64, 600), torch.nan))
    with pytest.raises(EmoR3Error, match="computes no finite numbers"):
        next(baseline(pipe)([IMAGE]))


def test_letters_that_are_no_tokens_are_refused() -> None:
    class Bytes:
        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            return [1, ord(text[-1])]

    with pytest.raises(CheckpointError, match="token of its own"):
        option_tokens(Bytes())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("labels", "label", "sign"),
    [
        (LABEL_SETS["emoset"], "awe", "positive"),
        (LABEL_SETS["emotion6"], "surprise", None),  # left out on purpose, though the word has a valence
        (LABEL_SETS["webemo"], "surprise", "positive"),
        (LabelSet("custom", ("Joy", "rage")), "Joy", "positive"),  # by valence
        (LabelSet("custom", ("Joy", "rage")), "rage", "negative"),
        (LabelSet("custom", ("Joy", "numbish")), "numbish", None),  # no norms
    ],
)
def test_signs_are_of_the_list_or_of_the_valence(labels: LabelSet, label: str, sign: str | None) -> None:
    assert sign_of(labels, label) == sign
