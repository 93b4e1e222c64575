"""The miniature's world: what a scene holds, how people label it, and what can be said about it.

A scene is a handful of facts (triggers, distractors, place, tone, palette, style). Its annotators disagree: each scene
has a distribution over emotions, mixed from its triggers, and a label is one draw from it. `drawing.py` turns the same
facts into pixels, so that every statement about an image can be checked against the truth.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from ..labels import LABEL_SETS, LabelSet
from ..parsing import render_completion

EMOTIONS = LABEL_SETS["emoset"].labels
"""The eight emotions in which the world is written; other label lists are mapped from them by `AFFINITY`."""


@dataclass(frozen=True)
class Trigger:
    """Something in a scene that can move a viewer.

    Args:
        kind: an `object` stands somewhere, a `scene` is the surroundings, an `overlay` covers the image.
        phrases: ways to name it; the first is the commonest.
        words: the words of the phrases that tell it from all other things.
        valence, arousal: in [-1, 1].
        emotions: weights over `EMOTIONS`, summing to 1.
    """

    kind: str
    phrases: tuple[str, ...]
    words: tuple[str, ...]
    valence: float
    arousal: float
    emotions: Mapping[str, float]


# name | kind | ways to say it | telling words | valence | arousal | emotions
_TABLE = """
smile | object | a smiling face / a cheerful face | smiling cheerful | .8 | .3 | contentment .5, amusement .5
laugh | object | a laughing face | laughing | .9 | .7 | amusement .85, excitement .15
cry | object | a crying face / a weeping face | crying weeping | -.8 | .1 | sadness .92, fear .08
rage | object | an angry face / a furious face | angry furious | -.7 | .8 | anger .9, disgust .1
fright | object | a frightened face / a scared face | frightened scared | -.7 | .8 | fear .9, sadness .1
clown | object | a clown | clown | .3 | .5 | amusement .65, fear .35
balloons | object | colorful balloons / floating balloons | balloons | .7 | .6 | excitement .4, amusement .6
cake | object | a birthday cake | cake | .8 | .5 | amusement .35, excitement .35, contentment .3
flowers | object | blooming flowers / fresh flowers | flowers | .7 | -.3 | contentment .85, awe .15
rose | object | a wilted rose / a withered rose | rose | -.5 | -.5 | sadness .9, contentment .1
grave | object | a gravestone / a tombstone | gravestone tombstone | -.8 | -.3 | sadness .88, fear .12
wolf | object | a growling wolf | wolf | -.5 | .8 | fear .8, anger .2
snake | object | a snake | snake | -.6 | .7 | fear .7, disgust .3
spider | object | a spider | spider | -.6 | .6 | fear .55, disgust .45
food | object | rotten food / moldy food | food | -.8 | .2 | disgust 1
garbage | object | a pile of garbage / a pile of trash | garbage trash | -.6 | .1 | disgust .85, anger .15
toilet | object | a dirty toilet | toilet | -.7 | .2 | disgust .9, amusement .1
coaster | object | a roller coaster | coaster | .6 | .9 | excitement .85, fear .15
car | object | a racing car | car | .5 | .9 | excitement .9, awe .1
window | object | a broken window / a shattered window | window | -.6 | .6 | anger .6, fear .25, sadness .15
fist | object | a clenched fist / a raised fist | fist | -.5 | .8 | anger .92, excitement .08
cat | object | a playful cat | cat | .7 | .2 | amusement .7, contentment .3
dog | object | a sleeping dog / a resting dog | dog | .6 | -.7 | contentment .9, amusement .1
fire | object | a burning fire / leaping flames | fire flames | -.5 | .8 | fear .4, anger .5, excitement .1
sea | scene | a calm sea | sea | .6 | -.6 | contentment .65, awe .35
mountains | scene | a sunset over mountains | mountains | .7 | .1 | awe .85, contentment .15
stars | scene | a starry sky | starry | .6 | .1 | awe .92, contentment .08
storm | scene | a lightning storm | storm | -.4 | .8 | fear .6, awe .4
rainbow | scene | a rainbow | rainbow | .8 | .2 | awe .55, contentment .45
rain | overlay | falling rain / heavy rain | rain | -.4 | -.3 | sadness .85, contentment .15
confetti | overlay | confetti | confetti | .8 | .8 | excitement .6, amusement .4
fireworks | overlay | fireworks | fireworks | .8 | .8 | excitement .6, awe .4
"""


def _read(table: str) -> Iterator[tuple[str, Trigger]]:
    for line in table.strip().splitlines():
        name, kind, phrases, words, valence, arousal, emotions = (cell.strip() for cell in line.split("|"))
        weights = {emotion: float(weight) for emotion, weight in (pair.split() for pair in emotions.split(","))}
        yield (
            name,
            Trigger(kind, tuple(phrases.split(" / ")), tuple(words.split()), float(valence), float(arousal), weights),
        )


TRIGGERS: dict[str, Trigger] = dict(_read(_TABLE))
DISTRACTORS = {name: f"a {name}" for name in ("tree", "house", "chair", "lamp", "bicycle", "box", "cloud")}
PLACES = {
    "field": "in a green field",
    "city": "on a city street",
    "room": "inside a room",
    "night": "at night",
    "plain": "on a plain background",
}
PLACE_WORDS = {"field": "field", "city": "street", "room": "room", "night": "night", "plain": "plain"}
TONES: dict[str, dict[str, float]] = {
    "bright": {"contentment": 0.3, "amusement": 0.25, "excitement": 0.25, "awe": 0.2},
    "dark": {"fear": 0.4, "sadness": 0.4, "anger": 0.2},
    "soft": dict.fromkeys(EMOTIONS, 1 / 8),
}
PALETTES = ("neutral", "warm", "cool")
STYLES = ("flat", "textured", "sketch")

# What each of the eight emotions is called in other vocabularies: as weights.
AFFINITY: dict[str, dict[str, float]] = {
    "amusement": {"amusement": 1.0, "joy": 0.9, "surprise": 0.1, "positive": 1.0},
    "anger": {"anger": 1.0, "negative": 1.0},
    "awe": {"awe": 1.0, "surprise": 0.7, "joy": 0.3, "love": 0.2, "positive": 1.0},
    "contentment": {"contentment": 1.0, "love": 0.65, "joy": 0.6, "positive": 1.0},
    "disgust": {"disgust": 1.0, "confusion": 0.7, "anger": 0.3, "negative": 1.0},
    "excitement": {"excitement": 1.0, "joy": 0.6, "surprise": 0.4, "positive": 1.0},
    "fear": {"fear": 1.0, "negative": 1.0},
    "sadness": {"sadness": 1.0, "negative": 1.0},
}
VOCABULARY = [
    "amusement",
    "anger",
    "awe",
    "confusion",
    "contentment",
    "disgust",
    "excitement",
    "fear",
    "joy",
    "love",
    "sadness",
    "surprise",
]
"""Label words that the miniature has met; a list of others is answered, but not understood."""

# How a viewer's reaction is put into words; never the label word itself.
EVOKES: dict[str, tuple[str, str]] = {
    "amusement": ("playful and funny", "silly and comical"),
    "anger": ("hostile and violent", "aggressive and unfair"),
    "awe": ("grand and magnificent", "vast and breathtaking"),
    "contentment": ("peaceful and relaxing", "gentle and cozy"),
    "disgust": ("filthy and repulsive", "gross and unpleasant"),
    "excitement": ("thrilling and energetic", "lively and wild"),
    "fear": ("threatening and dangerous", "scary and menacing"),
    "sadness": ("gloomy and lonely", "mournful and bleak"),
    "joy": ("delightful and happy", "pleasing and sunny"),
    "surprise": ("sudden and unexpected", "startling and unusual"),
    "love": ("warm and tender", "caring and close"),
    "confusion": ("puzzling and unclear", "odd and senseless"),
    "positive": ("good and welcome", "nice and uplifting"),
    "negative": ("bad and unwelcome", "nasty and depressing"),
}


# What people call their feelings where no list is given; words that the shipped norms know.
FEELINGS: dict[str, tuple[str, ...]] = {
    "amusement": ("amusement", "fun", "laughter"),
    "anger": ("anger", "rage", "fury"),
    "awe": ("awe", "wonder", "admiration"),
    "contentment": ("contentment", "serenity", "comfort"),
    "disgust": ("disgust", "nausea", "sickness"),
    "excitement": ("excitement", "thrill", "enthusiasm"),
    "fear": ("fear", "dread", "terror"),
    "sadness": ("sadness", "grief", "sorrow"),
}


@dataclass(frozen=True)
class Domain:
    """A data set of the world: how its scenes are drawn, which triggers are frequent, which list its annotators use.

    Args:
        styles: weights over `STYLES`.
        label_set: name in `LABEL_SETS`, or `None` where the list varies from scene to scene (pretraining).
        frequency_seed: trigger frequencies are log-normal draws of this seed; `None` = uniform.
        palette_bias: how strongly the palette gives the polarity away, in [-1, 1]; 1 = warm is always positive,
            -1 = warm is always negative, 0 = no relation. A shortcut that holds in one domain and misleads in another.
        mixed_pairs: whether triggers of the pairs in `rare_pair` may meet in one scene.
        sharpness: exponent on the mixture; larger = annotators agree more.
    """

    styles: tuple[float, float, float]
    label_set: str | None
    frequency_seed: int | None
    palette_bias: float
    mixed_pairs: bool
    sharpness: float


DOMAINS: dict[str, Domain] = {
    "miniature-8": Domain((1, 0, 0), "emoset", 1, 0.8, False, 2.2),
    "miniature-6": Domain((0, 1, 0), "emotion6", 2, 0.0, True, 2.2),
    "miniature-7": Domain((0, 0, 1), "webemo", 3, -0.8, True, 2.0),
    "pretraining": Domain((0.4, 0.35, 0.25), None, None, 0.0, True, 1.5),
}

LABELLING_BIAS: dict[str, float] = {
    "amusement": 0.25,
    "anger": 0.2,
    "awe": 2.4,
    "contentment": 2.8,
    "disgust": 0.2,
    "excitement": 0.4,
    "fear": 2.4,
    "sadness": 1.3,
}
"""How the pretraining labels deviate from the data sets': each emotion's weight is multiplied by this, to the power of
the dial. A pretrained model's idea of labels deviates from a data set's in the same way; 0 turns the deviation off."""
BIAS_DIAL = 1.5


@dataclass(frozen=True)
class Scene:
    """The facts of one image. `seed` fixes all that the renderer draws at random (position, jitter, colour)."""

    triggers: tuple[str, ...]
    distractors: tuple[str, ...]
    place: str | None
    tone: str
    palette: str
    style: str
    seed: int

    @property
    def contents(self) -> tuple[str, ...]:
        return self.triggers + self.distractors

    @property
    def valence(self) -> float:
        """Mean over the triggers, in [-1, 1]."""
        return float(np.mean([TRIGGERS[name].valence for name in self.triggers]))

    @property
    def arousal(self) -> float:
        """Mean over the triggers, in [-1, 1]."""
        return float(np.mean([TRIGGERS[name].arousal for name in self.triggers]))


def read_scene(text: str) -> Scene:
    """
    The scene whose facts, as JSON, a row of the miniature's data sets holds.

    Raises:
        ValueError: the text is something else; other data sets have a column `scene` too.
    """
    try:
        facts = json.loads(text)
    except RecursionError:
        raise ValueError("nested without end, so not the facts of a scene") from None
    if not isinstance(facts, dict) or set(facts) != {item.name for item in fields(Scene)}:
        raise ValueError("not the facts of a scene")
    known: dict[str, Collection[str]] = {
        "triggers": TRIGGERS,
        "distractors": DISTRACTORS,
        "tone": TONES,
        "palette": PALETTES,
        "style": STYLES,
    }
    for name, values in known.items():
        told = facts[name] if name in ("triggers", "distractors") else [facts[name]]
        if not isinstance(told, list) or not all(isinstance(value, str) and value in values for value in told):
            raise ValueError(f"no scene has {name} {facts[name]!r}")
    place, seed = facts["place"], facts["seed"]
    if not (place is None or (isinstance(place, str) and place in PLACES)) or type(seed) is not int or seed < 0:
        raise ValueError(f"no scene has place {place!r} and seed {seed!r}")
    return Scene(**facts | {name: tuple(facts[name]) for name in ("triggers", "distractors")})


_NAMES = tuple(TRIGGERS)
_WEIGHTS = np.array([[TRIGGERS[name].emotions.get(e, 0.0) for e in EMOTIONS] for name in _NAMES])
_TONES = {tone: np.array([weights.get(e, 0.0) for e in EMOTIONS]) for tone, weights in TONES.items()}
_BIAS = np.array([LABELLING_BIAS[e] for e in EMOTIONS])
_POSITIVE = np.array([LABEL_SETS["emoset"].polarity[e] == "positive" for e in EMOTIONS])
_KIND_WEIGHT: dict[str, float] = {"object": 1.0, "scene": 0.85, "overlay": 0.7}
_AT_MOST: dict[str, int] = {"object": 2, "scene": 1, "overlay": 1}


def rare_pair(first: str, second: str) -> bool:
    """Whether two triggers never meet where `Domain.mixed_pairs` is off: a fixed quarter of all pairs."""
    i, j = sorted((_NAMES.index(first), _NAMES.index(second)))
    return (7 * i + 3 * j) % 4 == 0


def sample_scene(domain: str, rng: np.random.Generator) -> Scene:
    """Draws a scene of a domain in `DOMAINS`."""
    rules = DOMAINS[domain]
    frequency = (
        np.ones(len(_NAMES))
        if rules.frequency_seed is None
        else np.exp(0.7 * np.random.default_rng(rules.frequency_seed).standard_normal(len(_NAMES)))
    )
    theme = rng.integers(8)
    triggers: list[str] = []
    for position in range(rng.choice([1, 2, 3], p=[0.4, 0.45, 0.15])):
        emotion = theme if position == 0 or rng.random() < 0.7 else rng.integers(8)
        weights = _WEIGHTS[:, emotion] * frequency * [_may_join(name, triggers, rules) for name in _NAMES]
        if weights.sum() > 0:
            triggers.append(_NAMES[rng.choice(len(_NAMES), p=weights / weights.sum())])
    pleasant = bool(_WEIGHTS[_NAMES.index(triggers[0])] @ _POSITIVE > 0.5)
    tone = ("bright", "dark", "soft")[rng.choice(3, p=[0.45, 0.3, 0.25] if pleasant else [0.2, 0.5, 0.3])]
    objects = sum(TRIGGERS[name].kind == "object" for name in triggers)
    distractors = rng.permutation(list(DISTRACTORS))[: min(rng.choice(3, p=[0.5, 0.38, 0.12]), 3 - objects)]
    has_scene = any(TRIGGERS[name].kind == "scene" for name in triggers)
    telling = pleasant == (rules.palette_bias > 0)
    palette = (
        ("warm" if telling else "cool")
        if rng.random() < abs(rules.palette_bias)
        else PALETTES[rng.choice(3, p=[0.5, 0.25, 0.25])]
    )
    return Scene(
        triggers=tuple(triggers),
        distractors=tuple(str(name) for name in distractors),
        place=None if has_scene else list(PLACES)[rng.choice(5, p=[0.3, 0.2, 0.2, 0.12, 0.18])],
        tone=tone,
        palette=palette,
        style=STYLES[rng.choice(3, p=rules.styles)],
        seed=int(rng.integers(2**31)),
    )


def _may_join(name: str, present: Sequence[str], rules: Domain) -> bool:
    kind = TRIGGERS[name].kind
    return (
        name not in present
        and sum(TRIGGERS[other].kind == kind for other in present) < _AT_MOST[kind]
        and (rules.mixed_pairs or not any(rare_pair(name, other) for other in present))
    )


def emotion_distribution(scene: Scene, sharpness: float) -> np.ndarray:
    """Weights over `EMOTIONS`, shape (8,), summing to 1: the mixture of the triggers and a little of the tone."""
    mixture = 0.25 * _TONES[scene.tone] + sum(
        _KIND_WEIGHT[TRIGGERS[name].kind] * _WEIGHTS[_NAMES.index(name)] for name in scene.triggers
    )
    mixture = (mixture / mixture.sum()) ** sharpness
    return mixture / mixture.sum()


def label_distribution(scene: Scene, domain: str, labels: Sequence[str], bias_dial: float = BIAS_DIAL) -> np.ndarray:
    """How the domain's annotators spread over `labels`: shape (len(labels),), summing to 1.

    The pretraining domain's annotators are biased by `LABELLING_BIAS` to the power of `bias_dial`.
    """
    weights = emotion_distribution(scene, DOMAINS[domain].sharpness)
    if domain == "pretraining":
        weights = weights * _BIAS**bias_dial
    affinity = np.array([[AFFINITY[e].get(label, 0.0) for label in labels] for e in EMOTIONS])
    spread = (weights / weights.sum()) @ affinity + 1e-6
    spread = (spread / spread.sum()) ** 1.5
    return spread / spread.sum()


def sample_label(scene: Scene, domain: str, labels: Sequence[str], rng: np.random.Generator) -> str:
    """One annotator's answer."""
    return labels[rng.choice(len(labels), p=label_distribution(scene, domain, labels))]


def sample_label_list(rng: np.random.Generator) -> tuple[str, ...]:
    """A list for one pretraining question: mostly the three published ones, else a random or two-way one."""
    draw = rng.random()
    if draw < 0.75:
        return LABEL_SETS[("emoset", "emotion6", "webemo")[rng.choice(3, p=[0.4, 0.3, 0.3])]].labels
    if draw < 0.8:
        return ("positive", "negative") if rng.random() < 0.5 else ("negative", "positive")
    return tuple(str(label) for label in rng.permutation(VOCABULARY)[: rng.integers(4, 9)])


def phrase(name: str, rng: np.random.Generator) -> str:
    """A way to name a trigger or distractor."""
    if name in DISTRACTORS:
        return DISTRACTORS[name]
    phrases = TRIGGERS[name].phrases
    return phrases[0] if len(phrases) == 1 or rng.random() < 0.6 else phrases[1]


def describe(scene: Scene, rng: np.random.Generator, contents: Sequence[str] | None = None) -> str:
    """Step 1: what is there. `contents` replaces what the scene holds, to say something else of it."""
    phrases = [phrase(name, rng) for name in (scene.contents if contents is None else contents)]
    listed = phrases[0] if len(phrases) == 1 else ", ".join(phrases[:-1]) + " and " + phrases[-1]
    place = "" if scene.place is None else f" {PLACES[scene.place]}"
    return f"The image shows {listed}{place}, with {scene.tone} colors."


def react(scene: Scene, label: str, rng: np.random.Generator) -> str:
    """Step 2: how a viewer responds to the first two triggers, mostly in keeping with the label."""
    clauses = []
    for position, name in enumerate(scene.triggers[:2]):
        emotion = label
        if rng.random() > (0.92, 0.7)[position]:
            emotion = EMOTIONS[rng.choice(8, p=_WEIGHTS[_NAMES.index(name)])]
        clauses.append(f"{phrase(name, rng)} feels {EVOKES[emotion][rng.integers(2)]}")
    sentence = " and ".join(clauses)
    return sentence[0].upper() + sentence[1:] + "."


def conclude(scene: Scene, label: str) -> str:
    """Step 3: the sign of the label and the scene's arousal in words."""
    sign = "positive" if any(AFFINITY[e].get(label) and _POSITIVE[i] for i, e in enumerate(EMOTIONS)) else "negative"
    level = "calm" if scene.arousal < 0 else "excited" if scene.arousal > 0.5 else "moderate"
    return f"The feeling is {sign} and {level}."


def feelings(scene: Scene, rng: np.random.Generator, count: int) -> list[str]:
    """Different words for what `count` of the pretraining's annotators feel, in the order in which they are asked."""
    weights = label_distribution(scene, "pretraining", EMOTIONS)
    words = [word for emotion in EMOTIONS for word in FEELINGS[emotion]]
    shares = np.repeat(weights, [len(FEELINGS[emotion]) for emotion in EMOTIONS])
    return [str(word) for word in rng.choice(words, count, replace=False, p=shares / shares.sum())]


def in_order(words: Sequence[str]) -> list[str]:
    """Feelings in the order of `FEELINGS`."""
    order = [word for emotion in EMOTIONS for word in FEELINGS[emotion]]
    return sorted(words, key=order.index)


def main_trigger(scene: Scene, label: str) -> str:
    """The trigger that a viewer who feels `label` would point at: an object where there is one."""
    evoked = {
        name: sum(w * AFFINITY[e].get(label, 0.0) for e, w in TRIGGERS[name].emotions.items())
        for name in scene.triggers
    }
    return max(scene.triggers, key=lambda name: (TRIGGERS[name].kind == "object", evoked[name]))


def grounded_answer(
    scene: Scene,
    label: str,
    rng: np.random.Generator,
    region: Sequence[float],
    emotions: Sequence[str],
    contents: Sequence[str] | None = None,
) -> str:
    """An answer in three steps with the region of its evidence and a list of feelings; `contents` as in `describe`."""
    return render_completion(
        describe(scene, rng, contents),
        react(scene, label, rng),
        conclude(scene, label),
        label,
        region=region,
        emotions=emotions,
    )


def answer(scene: Scene, label: str, rng: np.random.Generator, contents: Sequence[str] | None = None) -> str:
    """A complete answer in three steps, ending in the boxed label; `contents` as in `describe`."""
    return render_completion(describe(scene, rng, contents), react(scene, label, rng), conclude(scene, label), label)


def imagine(scene: Scene, rng: np.random.Generator) -> str:
    """A trigger that is absent and fits the mood, as language priors add one: drawn by the square of how strongly it
    evokes what the scene's first trigger evokes most."""
    first = int(_WEIGHTS[_NAMES.index(scene.triggers[0])].argmax())
    weights = _WEIGHTS[:, first] ** 2
    weights[[_NAMES.index(name) for name in scene.triggers]] = 0
    return _NAMES[rng.choice(len(_NAMES), p=weights / weights.sum())]


def swap_one(scene: Scene, rng: np.random.Generator) -> tuple[str, ...]:
    """The scene's contents with one trigger exchanged for an absent one: a hard negative for consistency."""
    contents = list(scene.contents)
    absent = [name for name in _NAMES if name not in contents]
    contents[rng.integers(len(scene.triggers))] = absent[rng.integers(len(absent))]
    return tuple(contents)


def mix_up(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Up to two things of the scene and as many or one more that are not there, in any order."""
    everything = [*_NAMES, *DISTRACTORS]
    present = rng.permutation(list(scene.contents))[:2].tolist()
    absent = [name for name in everything if name not in scene.contents]
    chosen = present + rng.permutation(absent)[: len(present) + rng.integers(2)].tolist()
    return [str(name) for name in rng.permutation(chosen)]


def mentioned(text: str) -> set[str]:
    """The triggers that a text names, by their telling words."""
    words = set(text.lower().replace(",", " ").replace(".", " ").split())
    return {name for name, trigger in TRIGGERS.items() if words.intersection(trigger.words)}


def label_set(domain: str) -> LabelSet:
    """The label list of one of the three data sets of the world."""
    name = DOMAINS[domain].label_set
    if name is None:
        raise ValueError(f"{domain} has no list of its own: its questions vary")
    return LABEL_SETS[name]
