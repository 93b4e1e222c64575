"""Trains the miniature from nothing, on two CPU cores.

Two stages. First the vision tower learns to see: each of the 4 x 4 image tokens must tell which things lie under it,
by its similarity to the language model's own embeddings of the words for them. Then everything is trained on questions
and answers. Yes / No about a text is learned through a second, dense signal: at each word that names a thing, a
throw-away read-out of a middle layer must tell whether the thing is in the image, so that the answer only collects.
"""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
import transformers
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl

from ..labels import LABEL_SETS
from ..models.checkpoint import CheckpointInfo, save_checkpoint
from ..models.coordinates import unit_of
from ..prompts import load_prompts
from . import world
from .model import GRID, MERGE, PATCH, make_config, make_processor, make_tokenizer
from .tasks import CONCEPT_NAMES, CONCEPTS, ImagePool, Questions, to_patches, word_id

PROCESSES = 2
"""Two single-threaded processes that average their gradients: faster on two cores than two threads of one process."""
SEE_STEPS, MIX_STEPS, PEAK = 700, 1800, 1.5e-3
POOL = 8000
READ_OUT_LAYER = 3
"""Index of the layer after which a word must know whether its thing is in the image."""


class Learner(nn.Module):
    """The model with its throw-away read-outs.

    Args:
        model: the miniature.
        tokenizer: its tokenizer; each word in `CONCEPTS` is one token of it.
    """

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration, tokenizer: PreTrainedTokenizerFast) -> None:
        super().__init__()
        self.model = model
        words = [[word_id(tokenizer, word) for word in CONCEPTS[name]] for name in CONCEPT_NAMES]
        # One or two words tell a thing; where it is one, it counts twice.
        self.words = torch.tensor([[ids[0], ids[-1]] for ids in words])
        self.tag_scale = nn.Parameter(torch.tensor(2.5))
        self.tag_bias = nn.Parameter(torch.full((len(CONCEPTS),), -3.0))
        self.read_out = nn.Linear(model.config.get_text_config().hidden_size, 1)
        self.seen: dict[str, Tensor] = {}
        model.model.visual.register_forward_hook(lambda _, __, out: self.seen.update(image=out.pooler_output))
        layer = model.model.language_model.layers[READ_OUT_LAYER]
        layer.register_forward_hook(lambda _, __, out: self.seen.update(middle=out))

    def tag_loss(self, image: Tensor, tags: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Binary cross-entropy of cell against concept, through the tied word embeddings."""
        embedding: Any = self.model.get_input_embeddings().weight
        words = F.normalize(embedding[self.words].sum(1), dim=-1)
        cells = F.normalize(image.float().view(*tags.shape[:2], -1), dim=-1)
        logits = cells @ words.T * self.tag_scale.exp() + self.tag_bias
        loss = F.binary_cross_entropy_with_logits(logits, tags.float(), pos_weight=torch.tensor(2.0))
        triggers = len(world.TRIGGERS)
        found, there = (logits > 0).any(1)[:, :triggers], tags.any(1)[:, :triggers]
        hits = (found & there).sum().item()
        recall, precision = hits / max(1, there.sum().item()), hits / max(1, found.sum().item())
        return loss, {"tag": loss.item(), "tag_recall": recall, "tag_precision": precision}

    def forward(self, batch: dict[str, Any], tag_weight: float) -> tuple[Tensor, dict[str, float]]:
        grid = torch.tensor([[1, GRID * MERGE, GRID * MERGE]]).expand(len(batch.get("tags", ())), 3)
        if "input_ids" not in batch:
            image = self.model.model.visual(batch["pixel_values"], grid_thw=grid).pooler_output
            loss, metrics = self.tag_loss(image, batch["tags"])
            return 10 * loss, metrics
        logits, targets, chosen = answer_logits(self.model, batch)
        loss = F.cross_entropy(logits, targets[chosen])
        metrics = {batch["task"]: loss.item()}
        if batch["task"] in ("consistency", "coherence"):
            starts = chosen & (chosen.cumsum(1) == 1)
            right = (logits.argmax(-1) == targets[chosen])[starts[chosen]]
            metrics[f"{batch['task']}_right"] = right.float().mean().item()
        total = loss
        if "tags" in batch:
            tag_loss, tag_metrics = self.tag_loss(self.seen["image"], batch["tags"])
            total, metrics = total + 10 * tag_weight * tag_loss, metrics | tag_metrics
        if "truth" in batch:
            known = batch["truth"] >= 0
            read = self.read_out(self.seen["middle"].float()[known])[:, 0]
            truth = batch["truth"][known].float()
            # True words are three times as frequent as false ones.
            read_loss = F.binary_cross_entropy_with_logits(read, truth, weight=torch.where(truth > 0.5, 0.6, 2.0))
            total = total + read_loss
            metrics |= {"word": read_loss.item(), "word_right": balanced(read > 0, truth > 0.5)}
        return total, metrics


def answer_logits(model: Any, batch: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of the answers' tokens in a batch of [`Questions`], all tokens shifted by one, and which these are."""
    images = {}
    if "tags" in batch:
        grid = torch.tensor([[1, GRID * MERGE, GRID * MERGE]]).expand(len(batch["tags"]), 3)
        images = {"pixel_values": batch["pixel_values"], "image_grid_thw": grid}
    hidden = model.model(
        input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False, **images
    ).last_hidden_state
    targets = batch["targets"][:, 1:]
    chosen = targets != -100
    return model.lm_head(hidden[:, :-1][chosen]).float(), targets, chosen


@contextmanager
def fast_vision() -> Iterator[None]:
    """The same vision tower, computed faster while all images of a batch have one size.

    The stock attention loops over images, and both the 3-D convolution over whole patches (a matrix product) and the
    fused attention have slow backward passes on a CPU.
    """
    attention, embedding = modeling_qwen2_5_vl.Qwen2_5_VLVisionAttention, modeling_qwen2_5_vl.Qwen2_5_VisionPatchEmbed
    stock = attention.forward, embedding.forward

    def attend(
        self: Any, hidden_states: Tensor, cu_seqlens: Tensor, position_embeddings: Any = None, **_: Any
    ) -> Tensor:
        length = int(cu_seqlens[1])
        q, k, v = self.qkv(hidden_states).reshape(len(hidden_states), 3, self.num_heads, -1).unbind(1)
        q, k = modeling_qwen2_5_vl.apply_rotary_pos_emb_vision(q, k, *position_embeddings)
        q, k, v = (t.reshape(-1, length, self.num_heads, self.head_dim).transpose(1, 2) for t in (q, k, v))
        weights = F.softmax(q @ k.transpose(2, 3) * self.scaling, dim=-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(len(hidden_states), -1))

    def embed(self: Any, hidden_states: Tensor) -> Tensor:
        return F.linear(hidden_states, self.proj.weight.flatten(1))

    attention.forward, embedding.forward = attend, embed  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        attention.forward, embedding.forward = stock  # type: ignore[method-assign]


def init_patch_embedding(model: Qwen2_5_VLForConditionalGeneration, pixels: Tensor) -> None:
    """Starts the patch embedding at the whitened principal components of the world's patches: edges and colours are
    there from the first step, where a random projection of 864 numbers shows little but the mean colour."""
    patches = to_patches(pixels).view(-1, 3, 2, PATCH * PATCH)[:, :, 0].flatten(1)
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    weight = model.model.visual.patch_embed.proj.weight
    top = (vectors * (values.clamp(min=0) + 0.01).rsqrt())[:, -len(weight) :].T
    with torch.no_grad():
        weight.copy_(top.reshape(len(weight), 3, 1, PATCH, PATCH) / 4)  # a quarter: an image is two equal frames


def balanced(said: Tensor, truth: Tensor) -> float:
    """Mean of the hit rates on what is true and on what is false."""
    return (said[truth].float().mean() + (~said[~truth]).float().mean()).item() / 2


# Share of the batches of each task, and images per batch and process.
MIX = {
    "set": 0.24,
    "grounded": 0.16,
    "consistency": 0.4,
    "coherence": 0.07,
    "think": 0.05,
    "direct": 0.05,
    "see": 0.03,
}
ROWS = {"see": 48, "set": 16, "grounded": 16, "think": 16, "direct": 32, "consistency": 32, "coherence": 32}


def make_optimizers(learner: nn.Module, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the transformers, AdamW for everything else."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, weight in learner.named_parameters():
        inside = weight.ndim == 2 and "embed" not in name and "read_out" not in name
        (matrices if inside else others).append(weight)
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def learning_rate(step: int, steps: int) -> float:
    """Warm-up over 100 steps, constant to the middle, then a cosine down to a fiftieth of `PEAK`."""
    warm, late = min(1.0, (step + 1) / 100), max(0.0, 2 * step / steps - 1)
    return PEAK * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * late)))


def train_stage(
    name: str, learner: nn.Module, questions: Questions, steps: int, mix: dict[str, float]
) -> list[dict[str, Any]]:
    """Runs `steps` updates over batches of the tasks in `mix`: the same in every process, of its own images.

    Returns:
        A row of mean losses and hit rates per hundred steps, as printed by the first process.
    """
    optimizers = make_optimizers(learner, PEAK)
    tasks = np.random.default_rng(7).choice(list(mix), steps, p=np.array(list(mix.values())) / sum(mix.values()))
    sums: dict[str, list[float]] = defaultdict(list)
    rows, began = [], time.monotonic()
    for step, task in enumerate(tasks.tolist()):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps)
        with torch.autocast("cpu", torch.bfloat16):
            loss, metrics = learner(questions.batch(task, ROWS[task]), 0.5 if step < steps / 2 else 0.2)
        loss.backward()
        nn.utils.clip_grad_norm_(learner.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        questions.images.refresh(16)
        for key, value in metrics.items():
            sums[key].append(value)
        if (step + 1) % 100 == 0 or step + 1 == steps:
            row = {"stage": name, "step": step + 1, "minutes": round((time.monotonic() - began) / 60, 2)}
            rows.append(row | {key: round(float(np.mean(values)), 4) for key, values in sums.items()})
            sums.clear()
            if dist.get_rank() == 0:
                print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
    return rows


def work(rank: int, folder: str, seed: int, pool: int, see_steps: int, mix_steps: int, rendezvous: str) -> None:
    """One of the processes: trains, and the first of them writes the checkpoint."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=PROCESSES, timeout=timedelta(minutes=10)
    )
    prompts = load_prompts().in_unit(unit_of(Qwen2_5_VLConfig.model_type))
    tokenizer = make_tokenizer(prompts, seed)
    torch.manual_seed(seed)
    # The plain attention: on a CPU the fused one has a slow backward pass.
    model = Qwen2_5_VLForConditionalGeneration._from_config(make_config(tokenizer), attn_implementation="eager")
    rng = np.random.default_rng([seed, rank])
    images = ImagePool(pool, rng)
    init_patch_embedding(model, images.pixels(range(min(pool, 1000))))
    learner = DistributedDataParallel(Learner(model, tokenizer), find_unused_parameters=True)
    questions = Questions(tokenizer, prompts, images, rng)
    with fast_vision():
        rows = train_stage("see", learner, questions, see_steps, {"see": 1.0}) if see_steps else []
        rows += train_stage("mix", learner, questions, mix_steps, MIX) if mix_steps else []
    if rank == 0:
        facts = {
            "seed": seed,
            "processes": PROCESSES,
            "steps": {"see": see_steps, "mix": mix_steps},
            "minutes": round(sum(row["minutes"] for row in rows if row["step"] in (see_steps, mix_steps)), 1),
            "pictures": PROCESSES * images.drawn,
            "parameters": sum(weight.numel() for weight in model.parameters()),
            "bias_dial": world.BIAS_DIAL,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "versions": {
                "torch": torch.__version__,
                "transformers": transformers.__version__,
                "numpy": np.__version__,
            },
            "log": rows,
        }
        model.config._attn_implementation = "sdpa"
        model.to(torch.bfloat16)
        info = CheckpointInfo(label_set=LABEL_SETS["emoset"], prompts=prompts, square=True)
        save_checkpoint(Path(folder), model, make_processor(tokenizer), info)
        (Path(folder) / "training.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    dist.barrier()
    dist.destroy_process_group()
