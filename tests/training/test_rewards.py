"""The rewards by table: what earns them, and what tries to without earning."""

from __future__ import annotations

import inspect
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from emo_r3.errors import RecipeError, TrainingError
from emo_r3.lexicon import Affect
from emo_r3.training.config import EmoR3Config
from emo_r3.training.dspo import Counterfactual
from emo_r3.training.judge import Reflection
from emo_r3.training.prior import Prior
from emo_r3.training.rewards import (
    accuracy_reward,
    check_arguments,
    coherence_reward,
    columns_read,
    completion_text,
    consistency_reward,
    counterfactual_reward,
    diversity_reward,
    find_reward,
    format_reward,
    guarded,
    lenient_format_reward,
    measurements,
    parse_all,
    reward_functions,
)
from emo_r3.word_lookup import WordLookup

GOOD = "<step1>A cake.</step1> <step2>It cheers.</step2> <step3>Positive, excited.</step3> \\boxed{amusement}"
FORM = "<step1>...</step1> <step2>...</step2> <step3>...</step3> \\boxed{label}"


@pytest.mark.parametrize(
    ("text", "method", "expected"),
    [
        (GOOD, "set", 1.0),
        (GOOD, None, 1.0),
        (f"\n{GOOD}\n", "set", 1.0),
        ("<think>A cake.</think> \\boxed{awe}", "think", 1.0),
        ("\\boxed{awe}", "direct", 1.0),
        (GOOD, "think", 0.0),
        (FORM, "set", 0.0),  # the prompt's own words
        (f"{FORM}\n{GOOD}", "set", 0.0),
        (GOOD + GOOD, "set", 0.0),
        (GOOD + " \\boxed{awe}", "set", 0.0),
        (GOOD + " I am sure.", "set", 0.0),
        (GOOD.replace("</step2>", ""), "set", 0.0),
        (GOOD.replace("step2", "step3"), "set", 0.0),
        ("<step2>a</step2> <step1>b</step1> <step3>c</step3> \\boxed{awe}", "set", 0.0),
        ("<step1><step2>a</step2></step1> <step3>c</step3> \\boxed{awe}", "set", 0.0),
        ("<step1>a</step1> <step2>\\boxed{awe}</step2> <step3>c</step3>", "set", 0.0),
        ("<step1> </step1> <step2>b</step2> <step3>c</step3> \\boxed{awe}", "set", 0.0),
        (GOOD.replace("amusement", ""), "set", 0.0),
        (GOOD.replace("amusement", "awe, anger"), "set", 0.0),
        ("", "set", 0.0),
    ],
)
def test_format(text: str, method: Any, expected: float) -> None:
    assert format_reward([text], method=method and [method]) == [expected]


@pytest.mark.parametrize(
    ("text", "label", "expected"),
    [
        (GOOD, "amusement", 1.0),
        (GOOD, "Amusement", 1.0),
        (GOOD.replace("amusement", " AMUSEMENT "), "amusement", 1.0),
        (GOOD, "awe", 0.0),
        ("amusement", "amusement", 0.0),  # not in a box
        ("\\boxed{awe} \\boxed{anger}", "anger", 1.0),  # the last box counts, as the form is another reward
        ("\\boxed{awe} \\boxed{anger}", "awe", 0.0),
        ("\\boxed{amusement", "amusement", 0.0),
        ("\\boxed{}", "amusement", 0.0),
        ("", "amusement", 0.0),
    ],
)
def test_accuracy(text: str, label: str, expected: float) -> None:
    assert accuracy_reward([text], label=[label]) == [expected]


def test_completions_may_be_conversations() -> None:
    parts = [{"type": "text", "text": GOOD}]
    for turns in ([{"role": "assistant", "content": GOOD}], [{"role": "assistant", "content": parts}]):
        assert completion_text(turns) == GOOD
        assert format_reward([turns]) == accuracy_reward([turns], label=["amusement"]) == [1.0]


def test_reflection_rewards_read_the_rows_column() -> None:
    rows = [Reflection(1.0, "yes", "Awe"), Reflection(0.0, "no", "awe"), Reflection(0.0, None, None, 0.5)]
    texts = [GOOD] * 3
    assert consistency_reward(texts, reflection=rows) == [1.0, 0.0, 0.0]
    assert coherence_reward(texts, label=["awe", "anger", "awe"], reflection=rows) == [1.0, 0.0, 0.5]


AROUND = {"right": (7, 5, 5), "left": (3, 5, 5), "up": (5, 7, 5), "down": (5, 3, 5), "middle": (5, 5, 5)}
AROUND |= {"far": (9, 9, 9), "farther": (9, 9, 9.5)}
LEXICON = WordLookup({word: Affect(v, 1, a, 1, d, 1) for word, (v, a, d) in AROUND.items()})


def listed(*emotions: str) -> str:
    return (
        "<step1>A cake. \\bboxed{[1, 2, 30, 40]}</step1> <step2>It cheers.</step2> "
        f"<step3>Positive. \\list{{{', '.join(emotions)}}}</step3> \\boxed{{amusement}}"
    )


# Around the prior's mean, D = 0. Without one of the outer four the mean of the others is 0.5 from it, which counts
# 1 - exp(-0.5 / 0.3) = 0.811124; without the middle one, nothing changes.
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (listed("right", "left", "up", "down", "middle"), 0.8 * 0.811124),
        (listed("Right", "LEFT", "up", "downs", "middle"), 0.8 * 0.811124),
        # Four, of which the mean of three is 2/3 from the fourth's side: 1 - exp(-2.222222) = 0.891632.
        (listed("right", "left", "up", "down", "qwxzt"), 0.8 * 0.891632),
        # Hacks, and what can't be read.
        (listed("right", "right", "right", "right", "right"), 0.0),
        (listed("right", "left", "up", "down", "down"), 0.0),
        (listed("right", "left", "up", "down", "Down "), 0.0),
        (listed("right", "left", "up", "down", "downs"), 0.0),  # one word to the lexicon
        (listed("qwxzt", "wxzt", "zzz", "zzt", "txz"), 0.0),
        (listed("middle", "qwxzt", "wxzt", "zzz", "zzt"), 0.0),  # one alone, at the best of places
        (listed("right", "left", "up", "down"), 0.0),
        (listed("right", "left", "up", "down", "middle", "far"), 0.0),
        (listed(*["right", "left", "up", "down", "middle"] * 60), 0.0),
        (listed(*(f"word{'x' * number}" for number in range(300))), 0.0),
        (listed(), 0.0),
        (listed("...", "...", "...", "...", "..."), 0.0),
        (listed("right", "left", "up", "down", "middle").replace("\\list", ""), 0.0),
        (listed("right", "left", "up", "down", "middle") * 2, 0.0),
        ("right, left, up, down, middle", 0.0),
        ("", 0.0),
    ],
)
def test_diversity(text: str, expected: float) -> None:
    prior = [Prior((5, 5, 5), (1, 1, 1))]
    for least in (0.0, -1.0):
        [value] = diversity_reward([text], prior=prior, lookup=LEXICON, least=least)
        assert value == pytest.approx(expected, abs=1e-5)


def test_a_list_far_from_the_prior_is_worth_less() -> None:
    words = listed("right", "left", "up", "down", "middle")
    near, off = diversity_reward(
        [words] * 2, prior=[Prior((5, 5, 5), (1, 1, 1)), Prior((5, 5, 8), (1, 1, 1))], lookup=LEXICON
    )
    # D = 3; without one of the four sqrt(9.25) = 3.041381: exp(-4.5) * 0.8 * (1 - exp(-0.137937))
    assert off == pytest.approx(0.011109 * 0.8 * 0.128847, abs=1e-6) and off < near


def test_diversity_may_be_negative_where_that_is_said() -> None:
    text, prior = listed("middle", "far", "up", "down", "farther"), [Prior((5, 5, 5), (1, 1, 1))]
    assert diversity_reward([text], prior=prior, lookup=LEXICON) == [0.0]
    assert -1 <= diversity_reward([text], prior=prior, lookup=LEXICON, least=-1.0)[0] < 0


def test_the_gate_decides_what_counts_of_a_list() -> None:
    """All weight on the word that adds nothing, and all on one that does."""
    text, prior = listed("right", "left", "up", "down", "middle"), [Prior((5, 5, 5), (1, 1, 1))]
    for place, expected in ((4, 0.0), (0, 0.811124)):
        seen = tuple(float(at == place) for at in range(5))
        found = [Counterfactual(seen, (0.0,) * 5, 0.1)]
        given = {"prior": prior, "lookup": LEXICON, "gate_temperature": 0.01, "counterfactual": found}
        assert diversity_reward([text], **given)[0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("found", "expected", "signed"),
    [
        (Counterfactual((0.5, 0.3), (0.1, 0.4), 0.25), 0.1125, 0.1125),  # (0.4 - 0.1) / 2 * 0.75
        (Counterfactual((0.5, 0.3), (0.1, 0.1), 1.0), 0.0, 0.0),  # the whole image
        (Counterfactual((0.1, 0.1), (0.2, 0.2), 0.5), 0.0, -0.05),
        (None, 0.0, 0.0),
    ],
)
def test_counterfactual(found: Counterfactual | None, expected: float, signed: float) -> None:
    assert counterfactual_reward([GOOD], counterfactual=[found]) == pytest.approx([expected])
    assert counterfactual_reward([GOOD], counterfactual=[found], least=-1.0) == pytest.approx([signed])


def test_a_recipe_sets_what_the_paper_leaves_open() -> None:
    names, weights = ["counterfactual", "diversity"], [0.1, 0.3]
    made = config(
        rewards=names, reward_weights=weights, judge=None, least_reward=-1.0, diversity_temperature=5.0, lexicon=None
    )
    of_region, of_list = reward_functions(made)
    assert [function.__name__ for function in (of_region, of_list)] == ["counterfactual_reward", "diversity_reward"]
    assert of_region([GOOD], counterfactual=[Counterfactual((0.1,), (0.2,), 0.5)]) == pytest.approx([-0.05])
    text, prior = listed("joy", "fear", "calm", "sad", "proud"), [Prior((5, 5, 5), (1, 1, 1))]
    assert of_list([text], prior=prior) == diversity_reward([text], prior=prior, diversity_temperature=5.0, least=-1.0)
    assert of_list([text], prior=prior) != diversity_reward([text], prior=prior, least=-1.0)
    assert measurements([of_list]) == set() and measurements([of_region, of_list]) == {"counterfactual"}
    assert made.intervenes and not made.reflects and not config().intervenes


@pytest.mark.parametrize("function", [consistency_reward, coherence_reward, counterfactual_reward, diversity_reward])
def test_without_reflection_they_say_who_adds_it(function: Any) -> None:
    with pytest.raises(TrainingError, match="EmoR3Trainer"):
        function([GOOD], label=["awe"])


def config(**fields: Any) -> EmoR3Config:
    given = {"output_dir": "unused", "use_cpu": True, "bf16": False, **fields}
    return EmoR3Config(**given)


@pytest.mark.parametrize(
    ("fields", "weights"),
    [
        ({}, [0.8, 0.1, 0.05, 0.05]),
        ({"preset": "authors-code"}, [0.8, 0.1, 0.1, 0.1]),
        ({"judge": None}, [0.9, 0.1]),
        ({"judge": "none"}, [0.9, 0.1]),
        ({"judge": None, "overlong_buffer": 16}, [0.9, 0.1, 1.0]),
        ({"reward_weights": [1.0, 0.0, 0.0, 0.0]}, [1.0, 0.0, 0.0, 0.0]),
    ],
)
def test_weights_follow_the_preset_and_the_judge(fields: dict[str, Any], weights: list[float]) -> None:
    made = config(**fields)
    assert made.reward_weights == weights
    assert len(reward_functions(made)) == len(weights)


def test_paper_and_code_differ_in_what_the_best_answer_earns() -> None:
    assert sum(config().reward_weights or []) == pytest.approx(1.0)
    assert sum(config(preset="authors-code").reward_weights or []) == pytest.approx(1.1)


def test_a_preset_is_one_field_and_gives_way_to_what_is_stated() -> None:
    fields = ("epsilon", "epsilon_high", "delta", "reflection_mode")

    def said(**given: Any) -> list[Any]:
        made = config(**given)
        return [getattr(made, name) for name in fields]

    assert said() == [0.2, None, None, "logits"]  # TRL takes epsilon where epsilon_high is not stated
    assert said(preset="authors-code") == [0.2, 0.3, 3.0, "generate"]
    own = {"epsilon": 0.1, "epsilon_high": 0.28, "delta": 2.0, "reflection_mode": "logits"}
    assert said(preset="authors-code", **own) == list(own.values())


@pytest.mark.parametrize(
    ("text", "method", "expected"),
    [
        (GOOD, "set", 1.0),
        (f"\n{GOOD} I am sure.", "set", 1.0),
        (GOOD + GOOD, "set", 1.0),
        (FORM, "set", 1.0),
        (GOOD.replace("<step2>", "and so < step2 >"), "set", 1.0),
        ("<think>A cake.</think> so \\boxed{awe}", "think", 1.0),
        (f"Well, {GOOD}", "set", 0.0),
        (GOOD.replace("</step2>", ""), "set", 0.0),
        ("<step2>a</step2> <step1>b</step1> <step3>c</step3> \\boxed{awe}", "set", 0.0),
        (GOOD.replace("}", ""), "set", 0.0),
        (GOOD, "think", 0.0),
        ("", "direct", 0.0),
    ],
)
def test_the_lenient_check_of_form_is_the_authors(text: str, method: str, expected: float) -> None:
    assert lenient_format_reward([text], method=[method]) == [expected]
    assert lenient_format_reward in reward_functions(config(preset="authors-code"))
    assert lenient_format_reward not in reward_functions(config())


def test_the_overlong_penalty_grows_to_one() -> None:
    penalty = reward_functions(config(judge=None, overlong_buffer=20, max_completion_length=100))[-1]
    assert penalty(completion_ids=[[1] * 80, [1] * 90, [1] * 101]) == [0, -0.5, -1]


@pytest.mark.parametrize(
    "fields",
    [{"reflection_batch_size": 0}, {"dynamic_sampling_tries": 0}, {"overlong_buffer": 512}, {"overlong_buffer": -1}],
)
def test_impossible_settings_are_told(fields: dict[str, Any]) -> None:
    with pytest.raises(RecipeError, match=next(iter(fields))):
        config(**fields)


@pytest.mark.slow
def test_stock_trl_takes_them_by_name() -> None:
    """What `trl grpo --reward_funcs` does with a dotted path, in a process that knows nothing of this package."""
    program = (
        "from importlib import import_module\n"
        "for name in ('format_reward', 'accuracy_reward'):\n"
        "    function = getattr(import_module('emo_r3.training.rewards'), name)\n"
        f"    print(function(prompts=[0], completions=[{GOOD!r}], completion_ids=[[1]], label=['amusement'],\n"
        "        labels=[[]], trainer_state=None, log_extra=None, log_metric=None))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["[1.0]", "[1.0]"]


@pytest.mark.parametrize("method", ["set", "think", "direct"])
def test_what_was_parsed_before_gives_the_same_rewards(method: str) -> None:
    thought, boxed = "<think>A cake.</think> \\boxed{Amusement}", "\\boxed{amusement}"
    inside = "<step1>a</step1> <step2>\\boxed{amusement}</step2> <step3>c</step3>"
    texts = [GOOD, FORM, GOOD + GOOD, thought, boxed, inside, "\\boxed{}", "no box", ""]
    labels, methods = ["amusement"] * len(texts), [method] * len(texts)
    parsed = parse_all(texts, methods)
    assert format_reward(texts, method=methods, parsed=parsed) == format_reward(texts, method=methods)
    assert accuracy_reward(texts, label=labels, parsed=parsed) == accuracy_reward(texts, label=labels)


def shout(completions: Any, **columns: Any) -> list[float]:
    """A reward of somebody's own."""
    return [1.0] * len(completions)


def test_a_recipe_names_its_rewards() -> None:
    own = f"{__name__}.shout"
    made = config(rewards=["accuracy", "coherence", own], reward_weights=[0.8, 0.1, 0.1])
    *ours, theirs = reward_functions(made)
    assert ours == [accuracy_reward, coherence_reward] and inspect.unwrap(theirs) is shout
    assert theirs(completions=["a", "b"]) == [1.0, 1.0] and theirs.__name__ == "shout"
    assert measurements([accuracy_reward, format_reward, shout]) == set()
    assert measurements([accuracy_reward, coherence_reward]) == {"reflection"}
    assert made.reflects and not config(rewards=["accuracy"], reward_weights=[1.0]).reflects


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"rewards": ["accuracy", "format"]}, "rewards without reward_weights"),
        ({"rewards": [], "reward_weights": []}, "name at least one"),
        ({"rewards": ["accuracy", "accuracy"], "reward_weights": [1, 1]}, "each once"),
        ({"rewards": ["accuracy", "format"], "reward_weights": [1]}, "has 1 numbers; these settings have 2"),
        ({"rewards": ["coherence"], "reward_weights": [1], "judge": None}, "coherence without a judge"),
        ({"judge": "classifier:some/model"}, "leave consistency out"),
        ({"rewards": ["overlong"], "reward_weights": [1]}, "overlong_buffer go together"),
    ],
)
def test_rewards_that_do_not_fit_together(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        config(**fields)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("niceness", "none of accuracy"),
        ("no_such_package.reward", "can't be imported"),
        ("emo_r3.training.rewards.nothing", "check the function's name"),
        ("emo_r3.training.rewards.MEASUREMENTS", "not a function"),
    ],
)
def test_a_reward_that_is_not_there(name: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        find_reward(name)


def dark(completions: Any, darkness: Any, weight: float = 1.0, *, labels: Any, **columns: Any) -> list[float]:
    """Reads a column of its data set."""
    return [weight * value for value in darkness]


def test_an_argument_that_nothing_would_give_is_told_before_the_run() -> None:
    columns = ["id", "image", "label", "labels", "darkness", "parsed"]
    check_arguments([dark, accuracy_reward, confirmed], columns)
    assert columns_read([dark, confirmed, accuracy_reward], columns) == ["labels", "darkness"]
    with pytest.raises(RecipeError, match=r"dark has the argument 'darkness', and the rows have no .* label, labels"):
        check_arguments([guarded(dark)], ["image", "label", "labels"])


def confirmed(completions: Any, reflection: Any, parsed: Any, **columns: Any) -> list[float]:
    return [1.0]


def test_errors_of_a_reward_of_ones_own_name_it_and_the_line() -> None:
    def broken(completions: Any, **columns: Any) -> list[float]:
        return [1 / len(text) for text in completions]

    line = inspect.getsourcelines(broken)[1]
    with pytest.raises(TrainingError, match=rf"broken fails, test_rewards\.py line {line + 1}: ZeroDivisionError: "):
        guarded(broken)(completions=["a", ""])
    with pytest.raises(
        TrainingError, match=r"confirmed fails, .*: it returns 1 rewards for 2 completions: one number"
    ):
        guarded(confirmed)(["a", "b"], None, None)
    with pytest.raises(TrainingError, match="it returns a float for 2 completions: one number for each"):
        guarded(lambda completions: 0.5)(completions=["a", "b"])  # type: ignore[arg-type,return-value]


@pytest.mark.parametrize(
    ("sentences", "expected"),
    [(("awe", "awe"), 1.0), (("awe", None, "fear"), 0.5), ((None,), 0.0), ((), 0.0), (("fear",), 0.0)],
)
def test_coherence_of_a_classifier_is_a_share_of_sentences(sentences: tuple[Any, ...], expected: float) -> None:
    found = Reflection(0.0, None, None, sentence_labels=sentences)
    assert coherence_reward([GOOD], label=["Awe"], reflection=[found]) == [expected]


def test_the_page_of_rewards_is_made_of_docstrings() -> None:
    docs = Path(__file__).parents[2] / "docs"
    made = runpy.run_path(str(docs / "make_rewards.py"))["page"]()
    assert (docs / "rewards.md").read_text(encoding="utf-8") == made
    assert made.count("| Formula |") == made.count("| Range |") == made.count("| Licence |") == 7
