"""A stage of a run: a model that is trained on rows, from its last checkpoint if it has one, and written whole."""

from __future__ import annotations

import copy
import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from peft import PeftModel
from safetensors import SafetensorError
from transformers import PreTrainedModel, ProcessorMixin
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from trl import SFTTrainer, get_peft_config, get_quantization_config
from trl.data_utils import apply_chat_template, prepare_multimodal_messages
from trl.trainer.sft_trainer import DataCollatorForVisionLanguageModeling

from ..errors import CheckpointError, EmoR3Error, RecipeError, TrainingError
from ..labels import named_labels
from ..models.checkpoint import CheckpointInfo, load_for_training, save_checkpoint
from ..models.checkpoint_files import hub_commit
from ..models.coordinates import prompts_for
from ..models.decoding import end_tokens
from ..models.prefix_cache import adds_special_tokens, render_prompt
from ..models.processor import set_pixel_budget
from ..prompts import load_prompts
from ..utils import without_folders
from .config import EmoR3Config, SupervisedConfig
from .examples import check_images, label_rows, pixel_budget, question_rows
from .progress import follow
from .recipe import Recipe
from .rewards import columns_read, reward_functions
from .saving import last_checkpoint
from .stopping import SafeTrainer
from .trainer import EmoR3Trainer

if TYPE_CHECKING:
    from datasets import Dataset


_logger = logging.getLogger(__name__)


class SupervisedTrainer(SafeTrainer, SFTTrainer):
    """TRL's SFT trainer, with checkpoints that are whole or not there."""


@dataclass
class Stage:
    """
    A part of a run with a model and a folder of its own: Cold-Start-Emo, or what follows it.

    Args:
        recipe ([`Recipe`]): the recipe.
        config (`EmoR3Config` or `SupervisedConfig`): settings of this stage's trainer.
        rows (`Dataset`): all rows of the run, as [`~emo_r3.data.examples.load_rows`] returns them.
        base (`str`, *optional*): model that it starts from.
        chosen (`list[int]`, *optional*): places of the rows that it trains on; all unless given.
        long_prompts (`int`): rows of the run whose prompts are too long, known when it has begun.
    """

    recipe: Recipe
    config: EmoR3Config | SupervisedConfig
    rows: Dataset
    base: str | None
    chosen: list[int] | None = None
    long_prompts: int = 0

    @property
    def output(self) -> Path:
        return Path(self.config.output_dir or ".")

    @property
    def final(self) -> Path:
        return self.output / "final"

    def train(self) -> dict[str, Any]:
        """Trains from the start, or from the last whole checkpoint, and writes `final`; returns the last metrics."""
        trainer, info = self._trainer()
        checkpoint = last_checkpoint(self.output)
        if checkpoint is not None:
            say(f"going on from {checkpoint}")
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        try:
            self._save(trainer, info)
        except (OSError, SafetensorError) as error:  # which has an error of its own for a full disk
            for staged in (".adapter", ".final"):
                shutil.rmtree(self.output / staged, ignore_errors=True)
            reason = getattr(error, "strerror", None) or next(iter(str(error).splitlines()), type(error).__name__)
            raise TrainingError(
                f"{self.final} can't be saved ({reason}); make room, then run the same command"
            ) from error
        logged: dict[str, Any] = {}
        for row in trainer.state.log_history[-2:]:
            logged |= row
        trainer.accelerator.free_memory()
        return logged

    def _trainer(self) -> tuple[Any, CheckpointInfo]:
        run, model_config = self.recipe.run, self.recipe.model
        model, processor, info = load_for_training(
            self.base,
            revision=model_config.model_revision,
            dtype=model_config.dtype or "auto",
            quantization_config=get_quantization_config(model_config),
        )
        if model_config.attn_implementation:
            model.set_attn_implementation(model_config.attn_implementation)
        supervised = isinstance(self.config, SupervisedConfig)
        own_base = self.base == model_config.model_name_or_path
        info = replace(
            info,
            method="direct" if supervised else run.method,
            label_set=named_labels(self.rows.features["label"].names),
            prompts=prompts_for(load_prompts(run.prompts), model) if run.prompts else info.prompts,
            min_pixels=run.min_pixels or info.min_pixels,
            max_pixels=run.max_pixels or info.max_pixels,
            base_model=without_folders(str(model_config.model_name_or_path)),
            # What follows a cold start begins with that stage's model, which knows the base.
            base_commit=hub_commit(Path(model.name_or_path or "")) if own_base else info.base_commit,
            recipe_hash=self.recipe.hash,
            calibrations=(),  # those were the base's
        )
        set_pixel_budget(processor, info)
        if processor.tokenizer.pad_token is None:
            processor.tokenizer.pad_token = processor.tokenizer.eos_token
        question = info.prompts.question(run.method, info.label_set)
        share = (self.config.process_index, self.config.world_size)
        rows = self._rows(check_images(self.rows, run, processor, question, square=info.square, process=share))
        peft_config: Any = get_peft_config(model_config)
        if run.freeze_vision_tower:
            name = freeze_vision_tower(model)
            if peft_config is not None:
                peft_config.exclude_modules = rf".*\b{name}\b.*"
        given: dict[str, Any] = {
            "model": model,
            "args": self.config,
            "processing_class": processor,
            "peft_config": peft_config,
        }
        images: dict[str, Any] = {"square": info.square, "budget": pixel_budget(processor)}
        trainer: Any
        try:
            if supervised:
                trainer = SupervisedTrainer(
                    train_dataset=label_rows(rows, info.prompts, **images),
                    data_collator=label_collator(processor, model),
                    **given,
                )
            else:
                assert isinstance(self.config, EmoR3Config)
                keep = columns_read(reward_functions(self.config), rows.column_names)
                questions = question_rows(rows, run.method, info.prompts, keep=keep, **images)
                trainer = EmoR3Trainer(train_dataset=questions, method=run.method, prompts=info.prompts, **given)
        except EmoR3Error:
            raise
        except (ValueError, NotImplementedError, ImportError) as error:  # TRL's and PEFT's checks of the settings
            text = next(iter(str(error).splitlines()), type(error).__name__)
            raise RecipeError(f"these settings can't be used together: {text}") from error
        trainer.checkpoint_info = info
        follow(trainer, self.output)
        return trainer, info

    def _rows(self, long: list[int]) -> Dataset:
        """The rows to train on: without those whose prompts are too long, which are counted."""
        self.long_prompts = len(long)
        places = range(len(self.rows)) if self.chosen is None else self.chosen
        if not long:
            return self.rows if self.chosen is None else self.rows.select(places)
        kept = [place for place in places if place not in set(long)]
        say(
            f"{len(places) - len(kept)} of {len(places)} rows are left out: their prompts have more tokens than "
            f"max_prompt_tokens {self.recipe.run.max_prompt_tokens}"
        )
        if not kept:  # of a cold start
            raise RecipeError("no row is left to train on: raise max_prompt_tokens, or lower max_pixels")
        if self.chosen is None:
            for line in self.recipe.plan.lines(len(kept)):
                say(line)
        return self.rows.select(kept)

    def _save(self, trainer: Any, info: CheckpointInfo) -> None:
        """Writes `final`, and `adapter` under LoRA. Every process takes part: weights may be spread over them."""
        adapter = self.recipe.model.use_peft
        staged = self.output / (".adapter" if adapter else ".final")
        trainer.save_model(str(staged))
        if trainer.is_world_process_zero():
            if not any(staged.glob("*.safetensors")):  # what ZeRO-3 leaves unless told to gather them
                raise TrainingError(
                    f"{staged} has no safetensors: set zero3_save_16bit_model in the launcher's file, or "
                    "stage3_gather_16bit_weights_on_model_save for DeepSpeed, and run the same command"
                )
            (staged / "training_args.bin").unlink(missing_ok=True)  # a pickle, and all of it is in recipe.yaml
            if adapter:
                (staged / "README.md").unlink(missing_ok=True)  # PEFT's empty form of a card
                replace_folder(staged, self.output / "adapter")
                unset_hf_deepspeed_config()  # or ZeRO-3 would spread it over processes that don't take part
                base, _, _ = load_for_training(
                    self.base, revision=self.recipe.model.model_revision, dtype=self.recipe.model.dtype or "auto"
                )
                merged: Any = PeftModel.from_pretrained(base, str(self.output / "adapter"))
                save_checkpoint(self.final, merged.merge_and_unload(), trainer.processing_class, info)
            else:
                replace_folder(staged, self.final)
        trainer.accelerator.wait_for_everyone()


def freeze_vision_tower(model: PreTrainedModel) -> str:
    """Leaves the vision tower as it is, and returns its name in the model; raises `RecipeError` if there is none."""
    tower = model.get_encoder(modality="image")
    name = next((name for name, module in model.named_modules() if name and module is tower), None)
    if name is None:
        raise RecipeError(f"freeze_vision_tower: {type(model).__name__} has no vision tower that can be told apart")
    tower.requires_grad_(False)
    return name.rpartition(".")[2]


@dataclass
class LabelCollator(DataCollatorForVisionLanguageModeling):
    """
    TRL's collator, and answers that end with a token at which `generate` stops, whether or not the chat template
    closes them (LLaVA's doesn't).

    Args:
        ends (`list[int]`): ids of these tokens; an answer with none of them is closed with the first.
    """

    ends: Sequence[int] = ()

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch of rows of [`~emo_r3.training.examples.label_rows`]."""
        return super().torch_call([self._as_text(example) for example in examples])

    def _as_text(self, example: dict[str, Any]) -> dict[str, Any]:
        turns: dict[str, Any] = {
            "prompt": prepare_multimodal_messages(example["prompt"], images=example["images"]),
            "completion": prepare_multimodal_messages(example["completion"]),
        }
        text: dict[str, Any] = apply_chat_template(turns, self.processor)
        tokenizer = self.processor.tokenizer
        if not set(tokenizer.encode(text["completion"], add_special_tokens=False)) & set(self.ends):
            end = tokenizer.convert_ids_to_tokens(self.ends[0])
            if end is None or tokenizer.encode(end, add_special_tokens=False) != [self.ends[0]]:
                raise CheckpointError(
                    f"the end token {self.ends[0]} of this model is none of its tokenizer's: set eos_token_id in its "
                    "generation_config.json to one that is"
                )
            text["completion"] = text["completion"].rstrip() + end
        return text | {"images": example["images"]}


def label_collator(processor: ProcessorMixin, model: PreTrainedModel) -> LabelCollator:
    """The collator, with prompts that begin with the mark of a beginning where the pipeline puts one (LLaVA)."""
    start = processor.tokenizer.bos_token
    if start and adds_special_tokens(processor, render_prompt(processor, "", with_image=True)):
        ids = processor.tokenizer("").input_ids
        if ids[:1] == [processor.tokenizer.bos_token_id]:
            processor = copy.copy(processor)
            processor.chat_template = f"{{{{ {json.dumps(start)} }}}}{processor.chat_template}"
    ends = end_tokens(model, processor.tokenizer)
    return LabelCollator(processor, max_length=None, completion_only_loss=True, ends=ends)


def replace_folder(new: Path, folder: Path) -> None:
    """Puts a finished folder in its place; what was there was of a run that broke off here."""
    if folder.exists():
        shutil.rmtree(folder)
    new.rename(folder)


def rank() -> int:
    """Number of this process."""
    return PartialState().process_index


def say(text: str) -> None:
    """Logs a line, once for all processes."""
    if rank() == 0:
        _logger.info(text)
