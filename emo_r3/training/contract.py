"""The private parts of TRL and transformers that the trainer builds on: one table, checked when it is imported."""

from __future__ import annotations

import inspect
from importlib import metadata
from typing import Any, NamedTuple

from accelerate.state import AcceleratorState
from transformers import Trainer
from trl import GRPOTrainer
from trl.distributed import DistributedBackend

from ..errors import TrainingError


class Private(NamedTuple):
    """A private name, the parameters that we count on (`None` for an attribute), and what we do with it."""

    owner: Any
    name: str
    parameters: tuple[str, ...] | None
    use: str


_TURN = ("self", "prompt_ids", "images", "multimodal_fields", "num_generations", "has_tool_images")
_LOG_PROBS = (
    *("self", "model", "input_ids", "attention_mask", "logits_to_keep", "batch_size", "compute_entropy"),
    *("compute_aux_loss", "pixel_values", "image_grid_thw", "num_images", "pixel_attention_mask", "spatial_shapes"),
    *("num_tiles", "image_sizes", "token_type_ids", "mm_token_type_ids", "image_position_ids"),
)

PRIVATE = (
    Private(
        GRPOTrainer,
        "_calculate_rewards",
        ("self", "inputs", "prompts", "completions", "completion_ids_list"),
        "trainer: reflection before the rewards; safety: rewards that are not finite",
    ),
    Private(
        GRPOTrainer, "_generate_and_score_completions", ("self", "inputs"), "dynamic_sampling, rollout: one generation"
    ),
    Private(GRPOTrainer, "_generate", ("self", "prompts"), "dynamic_sampling: completions that are there already"),
    Private(GRPOTrainer, "_prepare_inputs", ("self", "generation_batch"), "shared_prompt: groups stay whole"),
    Private(GRPOTrainer, "_get_per_token_logps_and_entropies", _LOG_PROBS, "shared_prompt: packed rows"),
    Private(GRPOTrainer, "_tokenize_prompts", ("self", "prompts"), "rollout: each different prompt once"),
    Private(GRPOTrainer, "_generate_single_turn", _TURN, "rollout: in parts, from a shared prompt"),
    Private(GRPOTrainer, "_send_telemetry", ("self",), "safety: nothing about a run is reported"),
    Private(GRPOTrainer, "_log_metric", ("self", "name", "value"), "trainer, dynamic_sampling: what is no reward's"),
    Private(DistributedBackend, "summon_full_params", None, "rollout, judges: generation on sharded weights"),
    Private(DistributedBackend, "is_fsdp", None, "judges: whether processes must go together"),
    Private(DistributedBackend, "is_zero3", None, "judges: whether processes must go together"),
    Private(Trainer, "_get_output_dir", ("self", "trial"), "saving: into a hidden folder first"),
    Private(Trainer, "_save_checkpoint", ("self", "model", "trial"), "saving: whole or not at all"),
    Private(Trainer, "_save", ("self", "output_dir", "state_dict"), "saving: emo_r3.json beside the weights"),
    Private(
        Trainer, "_load_from_checkpoint", ("self", "resume_from_checkpoint", "model"), "resuming: names of weights"
    ),
    Private(Trainer, "_load_best_model", ("self",), "resuming: names of weights"),
    Private(GRPOTrainer, "_get_train_sampler", ("self", "dataset"), "resuming: order by seed and epoch"),
    Private(Trainer, "_get_train_sampler", ("self", "train_dataset"), "resuming: the same for other trainers"),
    Private(Trainer, "_run_epoch", None, "resuming: no step beyond the last"),
    Private(Trainer, "_get_grad_norm", ("self", "model", "grad_norm"), "safety: gradients that are not finite"),
    Private(AcceleratorState, "_reset_state", None, "run: between a cold start and what follows it"),
)


def check_private_parts(parts: tuple[Private, ...] = PRIVATE) -> None:
    """
    Raises [`TrainingError`] where an installed library has not what the table says: better now than in the middle of
    a run, or never.
    """
    wrong = []
    for part in parts:
        found = getattr(part.owner, part.name, None)
        name = f"{part.owner.__name__}.{part.name}"
        if found is None:
            wrong.append(f"{name} is gone")
        elif part.parameters is not None:
            given = tuple(inspect.signature(found).parameters)
            if given != part.parameters:
                wrong.append(f"{name} takes {', '.join(given)} and not {', '.join(part.parameters)}")
    if wrong:
        versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("trl", "transformers", "accelerate"))
        raise TrainingError(
            f"these versions don't fit this package ({versions}): {'; '.join(wrong)}. Install the versions in "
            "constraints.txt, or a newer emo-r3"
        )
