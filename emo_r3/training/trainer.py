"""GRPO with what a model is asked about completions in the reward. Contract tests hold TRL's private parts."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from peft import PeftConfig
from torch import Tensor
from torch.distributed.fsdp import register_fsdp_forward_method
from transformers import PreTrainedModel, ProcessorMixin, TrainerCallback
from trl.data_utils import prepare_multimodal_messages
from trl.extras.profiling import profiling_context
from trl.models import unwrap_model_for_generation
from trl.models.utils import prepare_deepspeed, prepare_fsdp
from trl.trainer.utils import use_adapter

from ..errors import RecipeError
from ..models.checkpoint import load_for_training
from ..models.coordinates import prompts_for
from ..parsing import ParsedCompletion
from ..prompts import Prompts, load_prompts
from .classifier import TextJudge
from .config import CLASSIFIER, EmoR3Config
from .contract import check_private_parts
from .deviation import PopulationDeviation
from .dynamic_sampling import DynamicSampling
from .group_statistics import group_statistics, weighted
from .intervention import Intervention
from .judge import Judge, JudgeModel, Reflection
from .measures import truth_metrics
from .prior import Priors, lookup_in
from .rewards import (
    accuracy_reward,
    check_arguments,
    completion_text,
    guarded,
    measurements,
    parse_all,
    reads,
    reward_functions,
)
from .rollout import mixed_seed
from .stopping import SafeTrainer
from .vllm_prompts import check_vllm, send_images_once

if TYPE_CHECKING:
    from datasets import Dataset


check_private_parts()


class EmoR3Trainer(SafeTrainer, PopulationDeviation, DynamicSampling):
    """
    TRL's GRPO trainer, which reflects on each completion before it is rewarded (section 3.3).

    What reflection found is put on the row that it belongs to, as `reflection`, and reward functions read it there;
    likewise `counterfactual`, what the policy says without the region that an answer names (DSPO), and `prior`.

    Args:
        model (`PreTrainedModel`, `str` or `Path`): the policy, or its folder or Hub repository.
        args ([`~emo_r3.training.config.EmoR3Config`]): the settings.
        train_dataset (`Dataset`): rows with `prompt` (conversational), `image`, `label` and `labels`, as
            [`~emo_r3.data.load.to_prompts`] makes them.
        processing_class (`ProcessorMixin`, *optional*): the model's processor; needed unless the model is given by
            name.
        reward_funcs (`Callable` or `list[Callable]`, *optional*): rewards of your own beside those that `args` asks
            for, as TRL calls them; they see the columns `parsed` and `reflection` too. Their weights stand last in
            `reward_weights`; where that has none for them, each counts 1.
        method (`str`, *optional*, defaults to `"set"`): form of the answers that the prompts ask for.
        prompts ([`Prompts`], *optional*): with the reflection questions; those of a model given by name, else the
            package's, unless given.
        eval_dataset (`Dataset`, *optional*): rows for evaluation.
        peft_config (`PeftConfig`, *optional*): train adapters.
        callbacks (`list[TrainerCallback]`, *optional*): the Trainer's.

    Raises:
        RecipeError: the settings don't fit together.
        CheckpointError: the model can't be loaded by its name.

    Example:

    ```python
    >>> def short(completions, parsed, **kwargs):
    ...     return [float(len(one.steps.get("step1", "")) < 200) for one in parsed]
    >>> EmoR3Trainer("miniature", EmoR3Config(output_dir="out"), rows, reward_funcs=short).train()
    ```
    """

    args: EmoR3Config
    model: Any  # the Trainer's own annotations allow for more than is ever there
    processing_class: Any
    train_dataset: Any
    num_generations: int
    num_generations_eval: int

    _tag_names = ["trl", "grpo", "emo-r3"]  # noqa: RUF012
    _name = "EMO-R3"

    def __init__(
        self,
        model: PreTrainedModel | str | os.PathLike[str],
        args: EmoR3Config,
        train_dataset: Dataset,
        processing_class: ProcessorMixin | None = None,
        *,
        reward_funcs: Callable[..., list[float]] | Sequence[Callable[..., list[float]]] = (),
        method: str = "set",
        prompts: Prompts | None = None,
        eval_dataset: Dataset | None = None,
        peft_config: PeftConfig | None = None,
        callbacks: list[TrainerCallback] | None = None,
    ) -> None:
        check_vllm(args)
        if isinstance(model, (str, os.PathLike)):
            model, processor, info = load_for_training(model)
            processing_class, prompts = processing_class or processor, prompts or info.prompts
        if processing_class is None:
            raise RecipeError("processing_class is missing: give the model's processor, or the model by its name")
        functions = _with_own(reward_funcs, args)
        check_arguments(functions, train_dataset.column_names)
        given: Any = args.generation_kwargs or {}
        args.generation_kwargs = without_images(model, processing_class, args) | given
        # TRL relies on it for the token types of images, and sets it only on processors that it loads itself.
        processing_class.tokenizer.padding_side = "left"
        if args.use_vllm:
            os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # it reports what it runs on otherwise
        super().__init__(
            model=model,
            reward_funcs=functions,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            peft_config=peft_config,
            callbacks=callbacks,
        )
        if args.use_vllm:
            send_images_once(self.vllm_generation, processing_class)
        self.method = method
        asked, prompts = measurements(functions), prompts or load_prompts()
        self.judge = self._make_judge(prompts) if "reflection" in asked else None
        self.intervention = self._make_intervention(prompts) if "counterfactual" in asked else None
        self.priors = self._make_priors() if reads(functions, "prior") else None

    def _make_judge(self, prompts: Prompts) -> Judge | TextJudge:
        """Whom a reward reads the reflection of."""
        args = self.args
        if not args.judge:
            raise RecipeError("a reward reads `reflection`, and there is no judge: name one, or leave the reward out")
        if args.has_classifier:
            return TextJudge.from_pretrained(str(args.judge).removeprefix(CLASSIFIER), self.accelerator.device)
        # Under autocast, reflection computes in another type than the rollout of float32 weights.
        plain = self.accelerator.mixed_precision == "no" or self.model.dtype != torch.float32
        self._keeps_images = args.judge == "policy" and args.reflection_mode == "logits" and plain
        return Judge(
            self._judge_model(args.judge),
            prompts,
            args.preset,
            str(args.reflection_mode),
            args.reflection_batch_size,
        )

    def _make_intervention(self, prompts: Prompts) -> Intervention:
        """What hides regions of images from the policy."""
        args = self.args
        return Intervention(
            self._judge_model("policy"),
            self._encode_row,
            str(prompts_for(prompts, self.model).unit),
            region=args.counterfactual_region,
            fill=args.counterfactual_fill,
            batch_size=args.counterfactual_batch_size,
            seed=args.seed,
        )

    def _make_priors(self) -> Priors:
        """What an item's emotion may be, of which all labels of the training rows tell."""
        args = self.args
        labels = self.train_dataset.with_format(None)["label"][:]
        priors = Priors(lookup_in(args.lexicon), args.prior, args.prior_variance, labels, args.seed)
        priors.check(self.train_dataset.column_names)
        return priors

    # The seam: reflection, then TRL's own reward machinery.

    def measured(self, rows: Sequence[dict[str, Any]], completions: Sequence[Any]) -> list[dict[str, Any]]:
        """
        The rows with what reward functions read of their completions: `method`, `parsed`, and with a judge
        `reflection`, and `counterfactual` and `prior` where a reward reads them. What a row has already stays: dynamic
        sampling asks before it chooses.
        """
        if rows and "parsed" in rows[0]:
            return list(rows)
        found = parse_all(completions, [self.method] * len(completions))
        done = [{**row, "method": self.method, "parsed": one} for row, one in zip(rows, found, strict=True)]
        texts = [completion_text(text) for text in completions]
        if self.judge is not None:
            with self._timed("reflection"):
                reflections = self._reflect(done, texts, found)
            self._log_metric("reflection/tokens", self.judge.tokens)
            for name, value in truth_metrics(done, reflections).items():
                self._log_metric(name, value)
            done = [{**row, "reflection": one} for row, one in zip(done, reflections, strict=True)]
        if self.intervention is not None:
            with self._timed("counterfactual"):
                measured = self.intervention(done, texts, found)
            done = [{**row, "counterfactual": one} for row, one in zip(done, measured, strict=True)]
        if self.priors is not None:
            done = [{**row, "prior": self.priors(row)} for row in done]
        return done

    @contextmanager
    def _timed(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        with profiling_context(self, name):
            yield
        self._log_metric(f"{name}/seconds", time.perf_counter() - start)

    def _encode_row(self, row: Mapping[str, Any]) -> dict[str, Tensor]:
        """The processor's tensors of a row's prompt, as a rollout has them."""
        return self._encode_prompts([prepare_multimodal_messages(row["prompt"], images=[row["image"]])])

    def _rewards(
        self, rows: list[dict[str, Any]], prompts: list[Any], completions: list[Any], ids: list[list[int]]
    ) -> Tensor:
        return super()._calculate_rewards(rows, prompts, completions, ids)

    def _calculate_rewards(
        self,
        inputs: list[dict[str, Any]],
        prompts: list[Any],
        completions: list[Any],
        completion_ids_list: list[list[int]],
    ) -> Tensor:
        rows = self.measured(inputs, completions)
        rewards = self._rewards(rows, prompts, completions, completion_ids_list)
        self._log_groups(rewards)
        return rewards

    def _reflect(
        self, rows: Sequence[dict[str, Any]], texts: Sequence[str], found: Sequence[ParsedCompletion]
    ) -> list[Reflection]:
        assert self.judge is not None
        read = self._read if self._read and sum(len(one.of_text) for one in self._read) == len(rows) else []
        if read and self._most(int(not all(map(self.judge.continues, read)))):
            read = []
        reflections = self.judge([row["image"] for row in rows], texts, found, [row["labels"] for row in rows], read)
        self._read.clear()
        if self.args.shuffle_reflections:
            # A generator of its own: the run's random state is as without reflection.
            generator = torch.Generator().manual_seed(mixed_seed(self.args.seed, self.state.global_step))
            dealt = torch.randperm(len(reflections), generator=generator).tolist()
            reflections = [reflections[place] for place in dealt]
        return reflections

    # Judges.

    def _judge_model(self, name: str) -> JudgeModel:
        own = self.processing_class
        if name == "policy":
            return JudgeModel(self.model, own, self._as_policy, self._generate_sharded, self._most)
        if name == "reference":
            if self.ref_model is not None:
                frozen = self._generate_frozen(self.ref_model)
                return JudgeModel(self.ref_model, own, self._as_frozen, frozen, self._most)
            if self._is_peft():
                return JudgeModel(self.model, own, self._as_base, self._generate_sharded, self._most)
            raise RecipeError(
                "judge: reference needs a reference model: set beta above 0, train adapters (use_peft), or name the "
                "base model's folder or repository as the judge"
            )
        loaded, processor, _ = load_for_training(name, dtype=self.model.dtype)
        model: Any = loaded.eval()
        if self.is_deepspeed_enabled:  # as TRL prepares its reference
            model = prepare_deepspeed(model, self.accelerator)
        elif self.is_fsdp_enabled:
            model = prepare_fsdp(model, self.accelerator)
        else:
            model = self.accelerator.prepare_model(model, evaluation_mode=True)
        return JudgeModel(model, processor, self._as_frozen, self._generate_frozen(model), self._most)

    def _is_peft(self) -> bool:
        return hasattr(self.accelerator.unwrap_model(self.model), "peft_config")

    @contextmanager
    def _as_frozen(self) -> Iterator[None]:
        with torch.no_grad(), self.accelerator.autocast():
            yield

    @contextmanager
    def _as_policy(self) -> Iterator[None]:
        # Evaluation mode: no dropout, and with gradient checkpointing there would be no cache in training mode.
        model, training = self.model, self.model.training
        model.eval()
        try:
            with self._as_frozen():
                yield
        finally:
            model.train(training)

    @contextmanager
    def _as_base(self) -> Iterator[None]:
        model = self.accelerator.unwrap_model(self.model)
        with self._as_policy(), use_adapter(model, adapter_name="ref" if "ref" in model.peft_config else None):
            yield

    def _is_sharded(self) -> bool:
        return (self._dist.is_fsdp or self._dist.is_zero3) and self.accelerator.num_processes > 1

    def _generate_frozen(self, model: Any) -> Callable[..., Tensor]:
        if self._dist.fsdp_version == 2:  # transformers does so for the policy alone
            register_fsdp_forward_method(model, "generate")
        # Where weights are sharded, nobody may end before the others.
        return functools.partial(model.generate, synced_gpus=self._is_sharded())

    def _generate_sharded(self, **inputs: Any) -> Tensor:
        # TRL reads and sets the old name of activation_checkpointing_kwargs alone.
        checkpointing: Any = self.args.gradient_checkpointing_kwargs
        devices = [self.accelerator.device] if self.accelerator.device.type == "cuda" else []
        with (
            torch.random.fork_rng(devices=devices),  # the run's random state is as without reflection
            unwrap_model_for_generation(
                self.model_wrapped,
                self.accelerator,
                gather_deepspeed3_params=self.args.ds3_gather_for_generation,
                gradient_checkpointing_kwargs=checkpointing,
            ) as model,
            self._dist.summon_full_params(self.model_wrapped, recurse=False),
        ):
            return model.generate(**inputs, synced_gpus=self._is_sharded())

    # What is logged.

    def _log_groups(self, rewards: Tensor) -> None:
        size: int = self.num_generations if self.model.training else self.num_generations_eval
        if size > 1:
            overall = weighted(rewards, self.reward_weights)
            functions: list[Any] = self.reward_funcs
            right = rewards[:, functions.index(accuracy_reward)] if accuracy_reward in functions else None
            for name, value in group_statistics(overall, right, size).items():
                self._log_metric(name, value)


def _with_own(
    given: Callable[..., list[float]] | Sequence[Callable[..., list[float]]], args: EmoR3Config
) -> list[Any]:
    """The rewards that the settings ask for and those of the user's own, each of which counts 1 unless weighed.

    Raises:
        RecipeError: there are more weights than rewards, or fewer.
    """
    own = [given] if callable(given) else list(given)
    functions = reward_functions(args)
    if own and len(args.reward_weights or ()) == len(functions):
        args.reward_weights = [*(args.reward_weights or ()), *([1.0] * len(own))]
    functions += map(guarded, own)
    if len(args.reward_weights or ()) != len(functions):
        names = ", ".join(getattr(function, "__name__", "overlong penalty") for function in functions)
        raise RecipeError(
            f"reward_weights has {len(args.reward_weights or ())} numbers; these settings have {len(functions)} "
            f"rewards: {names}"
        )
    return functions


def without_images(model: PreTrainedModel, processor: ProcessorMixin, args: EmoR3Config) -> dict[str, Any]:
    """Generation options under which a completion holds no image or video token, which no model could read back."""
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    ids = {getattr(source, name, None) for source in (processor, model.config) for name in names}
    unwanted = sorted(token for token in ids if isinstance(token, int))
    if args.use_vllm:  # vLLM takes a bias by token id
        return {"logit_bias": dict.fromkeys(unwanted, -100.0)}
    return {"suppress_tokens": unwanted} if unwanted else {}
