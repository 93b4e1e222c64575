import pytest

from emo_r3.data.card import _size_category
from emo_r3.data.prepare import DATASETS


@pytest.mark.parametrize(
    ("count", "category"),
    [(0, "n<1K"), (999, "n<1K"), (1000, "1K<n<10K"), (99_999, "10K<n<100K"), (10**6, "1M<n<10M")],
)
def test_size_categories_of_the_hub(count: int, category: str) -> None:
    assert _size_category(count) == category


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("emoset", ("MIT", "no terms grant the redistribution", "INSETS-462k", "own seeded draw", "ICCV")),
        ("emotion6", ("academic research", "1/594", "original owners", "argmax_label", "CVPR")),
        ("webemo", ("states no licence", "last digit", "cheerfullness", "URLs", "ECCV")),
    ],
)
def test_each_data_set_states_its_terms(name: str, said: tuple[str, ...]) -> None:
    spec = DATASETS[name].SPEC
    text = " ".join(f"{spec.about} {spec.terms} {spec.obtain} {spec.citation}".split())
    for words in said:
        assert words in text
    assert f"emo-r3 prepare {name}" in text and spec.license in ("unknown", "other") and not spec.has_examples
