import numpy as np
import pytest

from emo_r3.labels import LABEL_SETS
from emo_r3.miniature import world
from emo_r3.parsing import parse_completion

DATASETS = ("miniature-8", "miniature-6", "miniature-7")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def test_every_trigger_is_described_by_words_of_its_own() -> None:
    assert len(world.TRIGGERS) == 32
    words = [word for trigger in world.TRIGGERS.values() for word in trigger.words]
    words += [*world.DISTRACTORS, *world.PLACE_WORDS.values(), *world.TONES]
    assert len(words) == len(set(words))
    for name, trigger in world.TRIGGERS.items():
        assert sum(trigger.emotions.values()) == pytest.approx(1), name
        assert set(trigger.emotions) <= set(world.EMOTIONS), name
        assert -1 <= trigger.valence <= 1 and -1 <= trigger.arousal <= 1, name
        assert trigger.kind in ("object", "scene", "overlay"), name
        for phrase in trigger.phrases:
            assert world.mentioned(f"The image shows {phrase}, with dark colors.") == {name}


def test_reactions_never_give_the_label_away() -> None:
    for phrases in world.EVOKES.values():
        for phrase in phrases:
            assert not set(phrase.split()) & set(world.EVOKES)
    assert set(world.VOCABULARY) | {"positive", "negative"} == set(world.EVOKES)


@pytest.mark.parametrize("domain", [*DATASETS, "pretraining"])
def test_scenes_follow_their_domain(domain: str, rng: np.random.Generator) -> None:
    rules = world.DOMAINS[domain]
    for _ in range(300):
        scene = world.sample_scene(domain, rng)
        kinds = [world.TRIGGERS[name].kind for name in scene.triggers]
        assert 1 <= len(scene.triggers) <= 3 and len(set(scene.contents)) == len(scene.contents)
        assert kinds.count("object") <= 2 and kinds.count("scene") <= 1 and kinds.count("overlay") <= 1
        assert kinds.count("object") + len(scene.distractors) <= 3
        assert (scene.place is None) == ("scene" in kinds)
        assert rules.styles[world.STYLES.index(scene.style)] > 0
        if not rules.mixed_pairs:
            pairs = [(a, b) for a in scene.triggers for b in scene.triggers if a < b]
            assert not any(world.rare_pair(*pair) for pair in pairs)


def test_held_out_pairs_do_meet_elsewhere(rng: np.random.Generator) -> None:
    scenes = [world.sample_scene("miniature-6", rng) for _ in range(300)]
    pairs = [(a, b) for scene in scenes for a in scene.triggers for b in scene.triggers if a < b]
    assert 0.1 < np.mean([world.rare_pair(*pair) for pair in pairs]) < 0.5


def test_the_palette_is_a_shortcut_that_turns_around(rng: np.random.Generator) -> None:
    def warm_share(domain: str, sign: str) -> float:
        scenes = [world.sample_scene(domain, rng) for _ in range(400)]
        same_sign = [s for s in scenes if (s.valence > 0) == (sign == "positive")]
        return float(np.mean([scene.palette == "warm" for scene in same_sign]))

    assert warm_share("miniature-8", "positive") > 0.6 > 0.4 > warm_share("miniature-8", "negative")
    assert warm_share("miniature-7", "positive") < 0.4 < 0.6 < warm_share("miniature-7", "negative")
    assert 0.1 < warm_share("miniature-6", "positive") < 0.4


@pytest.mark.parametrize("domain", [*DATASETS, "pretraining"])
def test_label_distributions_are_distributions(domain: str, rng: np.random.Generator) -> None:
    for _ in range(50):
        scene = world.sample_scene(domain, rng)
        labels = world.sample_label_list(rng) if domain == "pretraining" else world.label_set(domain).labels
        spread = world.label_distribution(scene, domain, labels)
        assert spread.shape == (len(labels),) and spread.min() >= 0 and spread.sum() == pytest.approx(1)
        assert world.sample_label(scene, domain, labels, rng) in labels


def test_the_bias_dial_moves_the_pretraining_labels_away_from_the_data_set(rng: np.random.Generator) -> None:
    labels = world.label_set("miniature-8").labels
    scenes = [world.sample_scene("miniature-8", rng) for _ in range(400)]
    truth = np.array([world.label_distribution(scene, "miniature-8", labels) for scene in scenes])

    def accuracy(dial: float) -> float:
        biased = [world.label_distribution(scene, "pretraining", labels, dial).argmax() for scene in scenes]
        return float(truth[np.arange(len(scenes)), biased].mean())

    assert accuracy(0) == pytest.approx(truth.max(1).mean(), abs=0.01)
    assert accuracy(0) > accuracy(1) > accuracy(2)


def test_answers_are_well_formed_and_true(rng: np.random.Generator) -> None:
    for _ in range(100):
        scene = world.sample_scene("pretraining", rng)
        labels = world.sample_label_list(rng)
        label = world.sample_label(scene, "pretraining", labels, rng)
        parsed = parse_completion(world.answer(scene, label, rng), labels)
        assert parsed.well_formed and parsed.label == label
        assert world.mentioned(parsed.steps["step1"]) == set(scene.triggers)
        assert world.mentioned(parsed.steps["step2"]) <= set(scene.triggers)


def test_a_swapped_description_is_false(rng: np.random.Generator) -> None:
    for _ in range(100):
        scene = world.sample_scene("pretraining", rng)
        told = world.mentioned(world.describe(scene, rng, world.swap_one(scene, rng)))
        assert len(told - set(scene.triggers)) == 1


def test_label_lists_are_mostly_the_published_ones(rng: np.random.Generator) -> None:
    lists = [world.sample_label_list(rng) for _ in range(400)]
    published = [tuple(LABEL_SETS[name].labels) for name in ("emoset", "emotion6", "webemo")]
    assert 0.65 < np.mean([labels in published for labels in lists]) < 0.85
    assert all(len(labels) >= 2 and len(set(labels)) == len(labels) for labels in lists)


def test_pretraining_has_no_label_set_of_its_own() -> None:
    with pytest.raises(ValueError, match="no list of its own"):
        world.label_set("pretraining")


@pytest.mark.parametrize("text", ["a beach", "[]", "{}", '{"triggers": ["cat"]}', "[" * 100_000], ids=range(5))
def test_what_is_no_scene_is_a_value_error(text: str) -> None:
    """A data set of somebody else may have a column `scene` too, with anything in it."""
    with pytest.raises(ValueError):
        world.read_scene(text)
