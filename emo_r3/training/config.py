"""What a recipe may say: TRL's own fields, and the few that are ours."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, fields
from numbers import Integral
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from trl import GRPOConfig, SFTConfig

from ..errors import RecipeError
from .old_names import ActivationCheckpointing

Kind = TypeVar("Kind", bound=type[Any])

REFLECTIVE = ("consistency", "coherence")
"""Names of the rewards that a judge is asked for (section 3.3)."""

GROUNDED = ("counterfactual", "diversity")
"""Names of the rewards that read a region and a list of emotions (DSPO), which answers of `"grounded"` have."""

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"form": "format", "reward_weights": (0.8, 0.1, 0.05, 0.05), "reflection_mode": "logits"},
    "authors-code": {
        "form": "lenient_format",
        "reward_weights": (0.8, 0.1, 0.1, 0.1),
        "reflection_mode": "generate",
        "epsilon_high": 0.3,
        "delta": 3.0,
    },
}
"""Fields by preset, for a recipe that doesn't state them. Weights are of accuracy, format, consistency and coherence:
eq. 6 with eq. 5 in it, and what the authors' code does. `form` is the check of format. `delta` is its dual clip."""

CLASSIFIER = "classifier:"
"""What the name of a judge that is a text classifier begins with."""

PLAIN_WEIGHTS = (0.9, 0.1)
"""Weights of accuracy and format where nothing is reflected on: the GRPO baseline."""


def documented(kind: Kind) -> Kind:
    """Gives each field what the class's docstring says of it as `metadata["help"]`, where `--help` reads it."""
    entry = re.compile(r"^ {8}(\w[\w, ]*) \(.*?\): (.*?)(?=^ {8}\w|^ {4}\w|\Z)", re.DOTALL | re.MULTILINE)
    texts = {
        name: " ".join(text.split()) for names, text in entry.findall(kind.__doc__ or "") for name in names.split(", ")
    }
    for one in fields(kind):
        if one.name in texts:
            one.metadata = MappingProxyType({**one.metadata, "help": texts[one.name]})
    return kind


@documented
@dataclass
class RunArguments:
    """
    What a run needs beside the trainer's and the model's own settings.

    Args:
        dataset_name (`str`): folder, Hub repository, or one of the miniature's data sets, which is drawn on the spot.
        trainer (`str`, *optional*, defaults to `"grpo"`): `"grpo"`, or `"sft"` on label-only targets.
        dataset_revision (`str`, *optional*): branch, tag or commit of the data set's repository.
        dataset_split (`str`, *optional*, defaults to `"train"`): split, or a slice of it.
        method (`str`, *optional*, defaults to `"set"`): form of the answers: `"set"`, `"think"`, `"direct"` or
            `"grounded"`.
        prompts (`str`, *optional*): TOML file with other prompts than the package's.
        max_prompt_tokens (`int`, *optional*): longest prompt, image tokens included.
        long_prompts (`str`, *optional*, defaults to `"drop"`): `"drop"` leaves rows with longer ones out and counts
            them in `run.json`; with `"error"` they stop the run before it begins.
        min_pixels, max_pixels (`int`, *optional*): pixel budget of an image (Qwen-VL processors).
        freeze_vision_tower (`bool`, *optional*, defaults to `False`): train the language model alone.
        cold_start_samples (`int`, *optional*, defaults to 0): label-only samples of the train split for a supervised
            stage before GRPO: Cold-Start-Emo (section 3.4).
        cold_start_selection (`str`, *optional*, defaults to `"balanced"`): as many of each label, or `"random"`.
        cold_start_epochs (`float`, *optional*, defaults to 1): passes over these samples.
        cold_start_learning_rate (`float`, *optional*, defaults to 1e-5): of that stage.
    """

    dataset_name: str
    trainer: Literal["grpo", "sft"] = "grpo"
    dataset_revision: str | None = None
    dataset_split: str = "train"
    method: str = "set"
    prompts: str | None = None
    max_prompt_tokens: int | None = None
    long_prompts: Literal["drop", "error"] = "drop"
    min_pixels: int | None = None
    max_pixels: int | None = None
    freeze_vision_tower: bool = False
    cold_start_samples: int = 0
    cold_start_selection: Literal["balanced", "random"] = "balanced"
    cold_start_epochs: float = 1.0
    cold_start_learning_rate: float = 1.0e-5


@documented
@dataclass
class EmoR3Config(ActivationCheckpointing, GRPOConfig):
    """
    TRL's `GRPOConfig` with reflection and DAPO's dynamic sampling.

    Args:
        rewards (`list[str]`, *optional*): names of rewards, each with its weight in `reward_weights`: of
            docs/rewards.md, or the dotted path of a function of your own, such as `my_package.rewards.short`.
            Accuracy and format unless given, with a judge also consistency and coherence, and the overlong penalty
            where it has a buffer.
        judge (`str`, *optional*, defaults to `"policy"`): who answers the reflection questions (section 3.3): the
            `"policy"` as it is now, the frozen `"reference"`, another model by its folder or repository, or
            `"classifier:NAME"`, a text classifier, which can't see and so serves for coherence alone. `None` means no
            reflection.
        shuffle_reflections (`bool`, *optional*, defaults to `False`): deal the judge's answers out at random, a
            control that carries no information.
        preset (`str`, *optional*, defaults to `"paper"`): `"paper"`: reward weights of eq. 5 and 6, advantages over
            the population's standard deviation of a group; `"authors-code"`: weights that add up to 1.1, the
            sample's deviation, a clip of 0.2 and 0.3 with a dual clip of 3, a lenient check of form, and reflection
            written and read as in their program. `reward_weights`, `epsilon_high`, `delta` and `reflection_mode` win
            over it where they are stated.
        reflection_mode (`str`, *optional*, defaults to the preset's): `"logits"` (`paper`) reads the answer off the
            model's probabilities; `"generate"` (`authors-code`) lets it write one.
        reflection_batch_size (`int`, *optional*, defaults to 32): completions in one forward.
        share_prompt (`str`, *optional*, defaults to `"auto"`): `"auto"` computes a group's prompt, image and all, once
            for its completions where the model allows it, and else the image alone; `"off"` computes both for each,
            as TRL does.
        rollout_batch_size (`int`, *optional*): completions that are generated at once; all of them unless given.
        dynamic_sampling (`str`, *optional*): replace groups that teach nothing: those whose `"accuracy"` rewards are
            equal (DAPO), or whose overall `"reward"` is.
        dynamic_sampling_tries (`int`, *optional*, defaults to 20): batches of rollouts to look for others in.
        overlong_buffer (`int`, *optional*, defaults to 0): last tokens of `max_completion_length` over which a penalty
            grows to -1 (DAPO); 0 for none.
        prior (`str`, *optional*, defaults to `"label"`): what the reward `diversity` takes for the emotion of an item
            (DSPO): its `"label"`, which is all that other methods are given; `"context"`, the mean of label and
            `caption`; `"annotators"`, their votes in `distribution`; `"shuffled"`, another item's label, a control.
        prior_variance (`str`, *optional*, defaults to `"sigma_squared"`): `"sigma_squared"`, the square of a standard
            deviation, so that a distance has no unit and temperatures hold for any scale; `"sigma"`, a standard
            deviation in the place of a variance, as the paper writes it.
        lexicon (`str`, *optional*): file with valence, arousal and dominance of words, such as Warriner's; the
            package's own norms unless given.
        gate_temperature (`float`, *optional*, defaults to 0.1): tau of the weights of listed emotions (the paper
            doesn't say it): one that loses a tenth more of probability with its region counts e times as much.
        center_temperature (`float`, *optional*, defaults to 1.0): tau_ctr of `diversity` (the paper doesn't say it):
            at 1, nearness is the prior's density, relative to that at its mean.
        diversity_temperature (`float`, *optional*, defaults to 0.3): tau_div of `diversity` (the paper doesn't say
            it): what leaving out one word of five changes distances by, a few tenths.
        least_reward (`float`, *optional*, defaults to 0.0): of `counterfactual` and `diversity` (the paper doesn't
            say it): at 0, an answer that can't be read, which gets 0, gets no more than one that can. -1 lets
            the formulas be negative.
        counterfactual_region (`str`, *optional*, defaults to `"written"`): region that is hidden from the policy: the
            `"written"` one, or one as wide and high at a `"random"` place, a control.
        counterfactual_fill (`str`, *optional*, defaults to `"zero"`): features in the place of hidden ones: `"zero"`,
            as the paper does, or the `"mean"` of the image's.
        counterfactual_batch_size (`int`, *optional*, defaults to 8): completions in one forward; a group is at most
            one, since its completions share their image.
    """

    rewards: list[str] | None = None
    judge: str | None = "policy"
    shuffle_reflections: bool = False
    preset: Literal["paper", "authors-code"] = "paper"
    reflection_mode: Literal["logits", "generate"] | None = None
    reflection_batch_size: int = 32
    share_prompt: Literal["auto", "off"] = "auto"
    rollout_batch_size: int | None = None
    dynamic_sampling: Literal["accuracy", "reward"] | None = None
    dynamic_sampling_tries: int = 20
    overlong_buffer: int = 0
    prior: Literal["label", "context", "annotators", "shuffled"] = "label"
    prior_variance: Literal["sigma_squared", "sigma"] = "sigma_squared"
    lexicon: str | None = None
    gate_temperature: float = 0.1
    center_temperature: float = 1.0
    diversity_temperature: float = 0.3
    least_reward: float = 0.0
    counterfactual_region: Literal["written", "random"] = "written"
    counterfactual_fill: Literal["zero", "mean"] = "zero"
    counterfactual_batch_size: int = 8

    # Reward functions read the label columns, and a tracker is the user's choice.
    remove_unused_columns: bool = False
    report_to: None | str | list[str] = "none"  # noqa: RUF036 - TRL's parser reads this order alone
    # Answers of a policy with dropout on are not the policy's.
    disable_dropout: bool = True

    def __post_init__(self) -> None:
        said: Any = self.judge
        if said is False or said in ("", "none", "None", "false"):  # as a command line and YAML say it
            self.judge = None
        elif said is not None and (not isinstance(said, str) or said == "true"):
            raise RecipeError(f"judge is {said}; name one: policy, reference, a model, or none")
        if self.shuffle_reflections and self.judge is None:
            raise RecipeError("shuffle_reflections without a judge: there is nothing to shuffle; leave it out")
        for name, least in (
            ("reflection_batch_size", 1),
            ("rollout_batch_size", 1),
            ("dynamic_sampling_tries", 1),
            ("overlong_buffer", 0),
            ("counterfactual_batch_size", 1),
        ):
            value = getattr(self, name)
            if name == "rollout_batch_size" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
                raise RecipeError(f"{name} is {value!r}; it must be a whole number, {least} or more")
            setattr(self, name, int(value))  # a numpy number can't be written to JSON
        for name, choices in (
            ("preset", tuple(PRESETS)),
            ("reflection_mode", (None, "logits", "generate")),
            ("share_prompt", ("auto", "off")),
            ("dynamic_sampling", (None, "accuracy", "reward")),
            ("prior", ("label", "context", "annotators", "shuffled")),
            ("prior_variance", ("sigma_squared", "sigma")),
            ("counterfactual_region", ("written", "random")),
            ("counterfactual_fill", ("zero", "mean")),
        ):
            if getattr(self, name) not in choices:
                raise RecipeError(f"{name} is {getattr(self, name)!r}; choose one of {', '.join(map(str, choices))}")
        for name in ("gate_temperature", "center_temperature", "diversity_temperature"):
            if not 0 < getattr(self, name) < math.inf:
                raise RecipeError(f"{name} is {getattr(self, name)}; it must be above 0")
        if not -1 <= self.least_reward <= 0:
            raise RecipeError(f"least_reward is {self.least_reward}; it must be from -1 to 0")
        if self.overlong_buffer >= (self.max_completion_length or 1):
            raise RecipeError(
                f"overlong_buffer {self.overlong_buffer} leaves nothing of max_completion_length "
                f"{self.max_completion_length}: choose a smaller one"
            )
        preset = PRESETS[self.preset]
        for name in ("reflection_mode", "epsilon_high", "delta"):
            if getattr(self, name) is None:
                setattr(self, name, preset.get(name))
        if self.rewards is None:
            reflective = REFLECTIVE if self.judge else ()
            self.rewards = ["accuracy", preset["form"], *reflective, *(["overlong"] if self.overlong_buffer else [])]
            if self.reward_weights is None:
                weights = preset["reward_weights"] if self.judge else PLAIN_WEIGHTS
                self.reward_weights = [*weights, *([1.0] if self.overlong_buffer else [])]
        self._check_rewards()
        super().__post_init__()

    def _check_rewards(self) -> None:
        """Raises `RecipeError` unless the rewards, their weights, the judge and the buffer fit together."""
        names, weights = self.rewards or [], self.reward_weights or []
        if len(set(names)) < len(names) or not names:
            raise RecipeError(f"rewards is {names}; name at least one, and each once")
        if self.reward_weights is None:
            raise RecipeError(f"rewards without reward_weights: say a weight for each of {', '.join(names)}")
        # A trainer may be given functions besides, whose weights stand last.
        if len(weights) < len(names):
            raise RecipeError(
                f"reward_weights has {len(weights)} numbers; these settings have {len(names)} rewards: "
                f"{', '.join(names)}"
            )
        asked = [name for name in names if name in REFLECTIVE]
        if asked and self.judge is None:
            raise RecipeError(f"rewards: {', '.join(asked)} without a judge: name one, or leave them out")
        if "consistency" in asked and self.has_classifier:
            raise RecipeError(f"judge {self.judge} reads text alone: leave consistency out of the rewards")
        if ("overlong" in names) != bool(self.overlong_buffer):
            raise RecipeError("rewards: overlong and overlong_buffer go together: give both, or leave both out")

    @property
    def has_classifier(self) -> bool:
        """Whether a text classifier judges."""
        return (self.judge or "").startswith(CLASSIFIER)

    @property
    def reflects(self) -> bool:
        """Whether a vision-language model is asked about each completion."""
        return bool(self.judge) and not self.has_classifier and not set(REFLECTIVE).isdisjoint(self.rewards or ())

    @property
    def intervenes(self) -> bool:
        """Whether the policy is asked about each completion's emotions with and without its region."""
        return "counterfactual" in (self.rewards or ())


@dataclass
class SupervisedConfig(ActivationCheckpointing, SFTConfig):
    """TRL's `SFTConfig` for targets that are labels alone. No length limit: a small one would cut them all off."""

    max_length: int | None = None
    remove_unused_columns: bool = False
    report_to: None | str | list[str] = "none"  # noqa: RUF036 - TRL's parser reads this order alone
    dataset_kwargs: dict | None = field(default_factory=lambda: {"skip_prepare_dataset": True})
