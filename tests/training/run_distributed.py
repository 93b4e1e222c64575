"""Trains tiny models in a mode, in one of the processes that share them.

Every mode sees the same rows and the same completions, so that all must come to the same weights.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import sys
from functools import cache
from pathlib import Path
from typing import Any

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from datasets import Dataset, Features, Image, Value
from peft import LoraConfig
from PIL import Image as ImagePool
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from emo_r3.labels import LABEL_SETS
from emo_r3.models.checkpoint import load_for_training
from emo_r3.models.group_attention import why_not
from emo_r3.prompts import load_prompts
from emo_r3.training import shared_prompt
from emo_r3.training.config import EmoR3Config
from emo_r3.training.trainer import EmoR3Trainer

PLAIN = LABEL_SETS["emoset"].labels
# Each set parts at other depths, so that reading a label takes other numbers of forwards than with the plain one.
ALIKE = (
    ("sad", "sadness", "sadden", "saddened"),
    ("content", "contentment", "contented", "contentedness", "contenting"),
)
GROUP = 4
SETTINGS: dict[str, Any] = {
    "num_generations": GROUP,
    "max_completion_length": 64,
    "max_steps": 2,
    "learning_rate": 0.5,
    "optim": "sgd",  # Adam would turn the rounding of gradients near 0 into whole steps
    "lr_scheduler_type": "constant",
    "loss_type": "dapo",  # a token's share of the loss doesn't depend on its process
    "shuffle_dataset": False,
    "logging_steps": 1,
    "save_strategy": "no",
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
}


def use_fsdp_on_cpu() -> None:
    """accelerate ignores FSDP unless there are several GPUs: pretend."""
    plain = PartialState.__init__

    def pretend(self: PartialState, *args: Any, **kwargs: Any) -> None:
        plain(self, *args, **kwargs)
        if self._shared_state.get("distributed_type") == DistributedType.MULTI_CPU:
            self._shared_state["distributed_type"] = DistributedType.MULTI_GPU

    PartialState.__init__ = pretend  # type: ignore[method-assign]


def zero(stage: int) -> dict[str, Any]:
    """A DeepSpeed configuration that shards the smallest weights too."""
    return {
        "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {
            "stage": stage,
            "stage3_param_persistence_threshold": 0,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
    }


@cache
def rows(number: int = 16) -> Dataset:
    """Noise of mixed sizes. Of each 4 rows, which 2 processes share, the last 2 have labels that begin alike."""
    prompts = load_prompts()
    made = []
    for index in range(number):
        generator = torch.Generator().manual_seed(index)
        width, height = ((56, 56), (112, 56), (56, 84))[index % 3]
        pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
        labels = PLAIN if index % 4 < 2 else ALIKE[index % 2]
        question = prompts.question("set", labels)
        content = [{"type": "image", "text": None}, {"type": "text", "text": question}]
        made.append(
            {
                "prompt": [{"role": "user", "content": content}],
                "image": ImagePool.fromarray(pixels.numpy()),
                "label": labels[index % 3],
                "labels": list(labels),
            }
        )
    text = Value("string")
    prompt = [{"role": text, "content": [{"type": text, "text": text}]}]
    return Dataset.from_list(
        made, features=Features({"prompt": prompt, "image": Image(), "label": text, "labels": [text]})
    )


def grounded(image: ImagePool.Image, place: int) -> str:
    """An answer with a region and a list. Of a wide image none can be read, of a high one some, of others all."""
    number = int.from_bytes(hashlib.sha256(image.tobytes()).digest()[:4], "big")
    wide, high = image.size
    readable = wide == high or (wide < high and place % 2 == 0)
    words = [("joy", "calm", "sad", "lonely", "hopeful", "proud")[(number + place + at) % 6] for at in range(5)]
    right = 20 + 8 * place if readable else 4000
    return (
        f"<step1>The face. \\bboxed{{[4, 4, {right}, 30]}}</step1> <step2>The sea.</step2> "
        f"<step3>Calm. \\list{{{', '.join(words)}}}</step3> \\boxed{{{PLAIN[(number + place) % 8]}}}"
    )


def completion(image: ImagePool.Image, place: int) -> str:
    """An answer that follows from the image and the place in the group; a third of them lack something."""
    number = int.from_bytes(hashlib.sha256(image.tobytes() + bytes([place])).digest()[:4], "big")
    label = [*PLAIN, *ALIKE[0], *ALIKE[1]][number % 17]
    words = [("face", "sea", "smiling", "calm", "sunset")[number // 17 % (5 + power) % 5] for power in range(4)]
    if number % 3 == 0:
        return f"<step1>A {' '.join(words)}.</step2> \\boxed{{{label}"
    steps = "\n".join(f"<step{step}>The {' '.join(words[:step])}.</step{step}>" for step in (1, 2, 3))
    return f"{steps}\n\\boxed{{{label}}}"


class FixedRollouts(EmoR3Trainer):
    """The trainer on given completions. Notes the rewards, and how many forwards each process wants and does."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.rewards: list[Any] = []
        self.wanted: list[int] = []
        self.forwards = 0
        self.rolls_out = False
        layer = next(module for module in self.model.modules() if type(module).__name__.endswith("DecoderLayer"))
        layer.register_forward_pre_hook(self._count)
        if self.judge is None:
            return
        judge, reader = self.judge.asked, self.judge.reflector.reader
        most, generate, rank = reader.most, judge.generate, self.accelerator.process_index

        def note(number: int) -> int:
            self.wanted.append(number)
            return most(number)

        def end_at_other_lengths(**inputs: Any) -> torch.Tensor:
            assert generate is not None
            return generate(**inputs | {"max_new_tokens": 4 - rank})

        reader.most, judge.generate = note, end_at_other_lengths

    def _count(self, *_: Any) -> None:
        self.forwards += 1

    def _generate_single_turn(
        self, prompt_ids: Any, images: Any, multimodal_fields: Any, num_generations: int, *_: Any
    ) -> Any:
        if self.rolls_out:  # and reflection goes on from there
            super()._generate_single_turn(prompt_ids, images, multimodal_fields, num_generations)
        write = grounded if self.method == "grounded" else completion
        texts = [write(image, place % num_generations) for place, (image,) in enumerate(images)]
        ends = [self._tokenizer.eos_token_id]
        return [self._tokenizer.encode(text, add_special_tokens=False) + ends for text in texts], None

    def _calculate_rewards(self, *args: Any) -> torch.Tensor:
        rewards = super()._calculate_rewards(*args)
        self.rewards.append(rewards.tolist())
        return rewards


def sharing(trainer: EmoR3Trainer) -> dict[str, Any]:
    """How the parameters are kept, and the share of them, and of what the optimizer updates, that this process has."""
    parameters = list(trainer.model.parameters())
    trained = sum(getattr(one, "ds_numel", one.numel()) for one in parameters if one.requires_grad)
    held = whole = 0
    for parameter in parameters:
        whole += getattr(parameter, "ds_numel", parameter.numel())
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        held += getattr(parameter, "ds_tensor", local).numel()
    optimizer = getattr(trainer.model_wrapped, "optimizer", None)
    updated = sum(part.numel() for part in getattr(optimizer, "single_partition_of_fp32_groups", []))
    return {
        "model": type(trainer.model_wrapped).__name__,
        "tensors": all(isinstance(parameter, DTensor) for parameter in parameters),
        "statuses": sorted({parameter.ds_status.name for parameter in parameters if hasattr(parameter, "ds_status")}),
        "held": held / whole,
        "updated": updated / trained,
    }


def whole_weights(trainer: EmoR3Trainer) -> dict[str, torch.Tensor]:
    """Trained parameters, gathered from all processes."""
    found = {}
    for name, parameter in trainer.model.named_parameters():
        if not parameter.requires_grad:
            continue
        if hasattr(parameter, "ds_status"):
            import deepspeed

            with deepspeed.zero.GatheredParameters([parameter]):
                found[name] = parameter.detach().clone()
        else:
            found[name] = (parameter.full_tensor() if isinstance(parameter, DTensor) else parameter).detach().clone()
    return {name.removeprefix("module."): value.contiguous() for name, value in found.items()}


def train(mode: str, name: str, job: dict[str, Any], out: Path) -> None:
    """One run; what it found goes to `out`."""
    settings = {
        key: value
        for key, value in job.items()
        if key not in ("model", "peft", "from", "rolls_out", "whole_rows", "method")
    }
    shared_prompt.why_not = (lambda config: job["whole_rows"]) if "whole_rows" in job else why_not
    if mode.startswith("zero"):
        settings["deepspeed"] = zero(int(mode[-1]))
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    args = EmoR3Config(
        **{
            **SETTINGS,
            "output_dir": str(out / f"{name} run"),
            "per_device_train_batch_size": 4 * GROUP // processes,
            "per_device_eval_batch_size": 4 * GROUP // processes,
            **settings,
        }
    )
    if mode.startswith("zero"):
        import deepspeed

        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # would be compiled, for a minute
        deepspeed.utils.nvtx.enable_nvtx = False  # marks for a profiler, in each of many calls
        deepspeed.init_distributed("gloo")
    torch.manual_seed(0)
    model, processor, _ = load_for_training(job["model"])
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False) if job.get("peft") else None
    trainer = FixedRollouts(
        model,
        args,
        rows(),
        processor,
        method=job.get("method", "set"),
        eval_dataset=rows(4) if args.do_eval else None,
        peft_config=lora,
    )
    trainer.rolls_out = job.get("rolls_out", False)
    before = whole_weights(trainer)
    trainer.train(resume_from_checkpoint=str(out / job["from"]) if "from" in job else None)
    weights = whole_weights(trainer)
    found = {
        "rewards": trainer.rewards,
        "moved": max(float((weights[key] - value).abs().max()) for key, value in before.items()),
        "history": trainer.state.log_history,
        "extra": {column: list(values) for column, values in trainer._logs["extra"].items()},
        "wanted": trainer.wanted,
        "forwards": trainer.forwards,
        "sharing": sharing(trainer),
    }
    rank = trainer.accelerator.process_index
    (out / f"{name}-{rank}.json").write_text(json.dumps(found))
    if rank == 0:
        save_file(weights, out / f"{name}.safetensors")


def run(mode: str, jobs: dict[str, dict[str, Any]], out: Path) -> None:
    """Does all jobs: `{name: {"model": folder, "peft": bool, "from": checkpoint, "whole_rows": why, **settings}}`."""
    torch.set_num_threads(1)
    if mode == "fsdp2":
        use_fsdp_on_cpu()
    for name, job in jobs.items():
        gc.freeze()  # else each collection, of several in a job, goes through what the jobs before have left
        train(mode, name, job, out)
    sys.stdout.flush()
    if torch.distributed.is_initialized():
        torch.distributed.barrier()
        os._exit(0)  # what gloo's threads do at the end of an interpreter is not what is tested
