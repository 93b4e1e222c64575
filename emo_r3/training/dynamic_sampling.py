"""Dynamic sampling (DAPO, section 3.2): groups of completions that teach nothing are replaced by others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from accelerate.logging import get_logger
from torch import Tensor
from trl.data_utils import prepare_multimodal_messages

from ..errors import RecipeError
from ..utils import chunks
from .config import EmoR3Config
from .group_statistics import is_tied, weighted
from .rewards import accuracy_reward, parse_all
from .rollout import SharedRollout, images_read_once, mixed_seed

logger = get_logger(__name__)


class Rollout(NamedTuple):
    """A row and what was generated for it."""

    row: dict[str, Any]
    prompt_ids: list[int]
    completion_ids: list[int]
    completion: Any
    logprobs: list[float] | None


def check_whole_groups(config: EmoR3Config) -> None:
    """Raises [`RecipeError`] if a group's completions would lie on two processes: whole groups are replaced."""
    rows = config.per_device_train_batch_size * (config.steps_per_generation or 1)
    if rows % (config.num_generations or 1):
        raise RecipeError(
            f"dynamic_sampling replaces whole groups, and a process has {rows} completions of a generation, in groups "
            f"of {config.num_generations}: make per_device_train_batch_size times steps_per_generation a multiple of "
            "num_generations"
        )


class KeptGroups:
    """What dynamic sampling keeps of its tries: never more than the groups that are wanted.

    Args:
        wanted (`int`): groups of a batch.
    """

    def __init__(self, wanted: int) -> None:
        self.wanted = wanted
        self._informative: list[Sequence[Rollout]] = []
        self._others: list[Sequence[Rollout]] = []

    @property
    def missing(self) -> int:
        """How many informative groups are still to be found."""
        return self.wanted - len(self._informative)

    def add(self, groups: Sequence[Sequence[Rollout]], informative: Sequence[bool]) -> None:
        """Takes what is missing out of a try."""
        found = [group for group, teaches in zip(groups, informative, strict=True) if teaches]
        others = [group for group, teaches in zip(groups, informative, strict=True) if not teaches]
        self._informative += found[: self.missing]
        self._others = [*self._others, *others][: self.missing]

    def __iter__(self) -> Iterator[Rollout]:
        """The informative groups in the order in which they were found, then others in the places that are left."""
        for group in (*self._informative, *self._others):
            yield from group


class DynamicSampling(SharedRollout):
    """
    Looks for groups that differ in what `dynamic_sampling` says before anything else is computed of them: what
    accuracy rules out costs a rollout, but no log-probability and no reflection.
    """

    args: EmoR3Config
    train_dataset: Any
    processing_class: Any
    num_generations: int
    method: str
    _found: list[Rollout] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.dynamic_sampling:
            check_whole_groups(self.args)

    def measured(self, rows: Sequence[dict[str, Any]], completions: Sequence[Any]) -> list[dict[str, Any]]:
        """The rows with all that reward functions read of their completions."""
        raise NotImplementedError

    def _generate(self, prompts: list[Any]) -> Any:
        """As TRL's; what dynamic sampling has found, if it has looked for this batch."""
        if self._found is None:
            return super()._generate(prompts)
        found, self._found = self._found, None
        logprobs = None if found[0].logprobs is None else [one.logprobs for one in found]
        images = [[one.row["image"]] for one in found]
        none: list[Any] = [[] for _ in found]
        return (
            [one.prompt_ids for one in found],
            [one.completion_ids for one in found],
            None,
            [one.completion for one in found],
            logprobs,
            {},
            images,
            none,
        )

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        if self.args.dynamic_sampling is None or not self.model.training:
            return super()._generate_and_score_completions(inputs)
        with images_read_once(self.processing_class):
            self._found = self._look(inputs)
            return super()._generate_and_score_completions([one.row for one in self._found])

    def _look(self, rows: list[dict[str, Any]]) -> list[Rollout]:
        """As many rollouts as rows, of groups that teach something while there are any."""
        wanted = len(rows)
        kept = KeptGroups(wanted // self.num_generations)
        groups = informative_groups = 0
        for tries in range(self.args.dynamic_sampling_tries):
            self._try = tries
            if tries:
                rows = self._other_rows(wanted, tries)
            rollouts, informative = self._roll_out(rows)
            groups += len(informative)
            informative_groups += int(informative.sum())
            start = self.accelerator.process_index * kept.wanted
            kept.add(list(chunks(rollouts, self.num_generations)), informative[start : start + kept.wanted].tolist())
            self.processing_class.image_processor.forget_all_but(one.row["image"] for one in kept)
            missing = self._most(kept.missing)
            if missing == 0:
                break
        self._try = 0
        self._read.clear()  # of the last try alone
        self._log_metric("dynamic_sampling/tries", tries + 1)
        self._log_metric("dynamic_sampling/informative", informative_groups / groups)
        self._log_metric("dynamic_sampling/starved", missing / kept.wanted)
        if missing:
            logger.warning(
                f"dynamic sampling starved at step {self.state.global_step}: {informative_groups} of {groups} groups "
                f"differ in {self.args.dynamic_sampling} after {tries + 1} tries; up to {missing} of {kept.wanted} "
                "groups of a process teach nothing. Raise num_generations or temperature, or choose other data."
            )
        return list(kept)

    def _roll_out(self, rows: list[dict[str, Any]]) -> tuple[list[Rollout], Tensor]:
        """Completions of rows, and which groups of all processes differ in what is asked for."""
        prompts = [prepare_multimodal_messages(row["prompt"], images=[row["image"]]) for row in rows]
        prompt_ids, ids, _, completions, logprobs, *_ = self._generate(prompts)
        if self.args.dynamic_sampling == "reward":
            rows = self.measured(rows, completions)
            values = weighted(self._rewards(rows, prompts, completions, ids), self.reward_weights)
            self._pending_extra_logs.clear()  # the table has a line for each completion that is kept, and no other
        else:
            found = parse_all(completions, [self.method] * len(rows))
            own = accuracy_reward(completions, [row["label"] for row in rows], found)
            values = self.accelerator.gather(torch.tensor(own, device=self.accelerator.device))
        each = logprobs or [None] * len(rows)
        rollouts = [Rollout(*one) for one in zip(rows, prompt_ids, ids, completions, each, strict=True)]
        return rollouts, ~is_tied(values, self.num_generations)

    def _rewards(self, rows: Any, prompts: Any, completions: Any, ids: Any) -> Tensor:
        """Rewards of all processes, of shape `(completions, functions)`, with nothing logged."""
        raise NotImplementedError

    def _most(self, number: int) -> int:
        """The largest of a number over all processes."""
        return int(self.accelerator.gather(torch.tensor([number], device=self.accelerator.device)).max())

    def _other_rows(self, wanted: int, tries: int) -> list[dict[str, Any]]:
        """Rows for another try, the same on every machine and after a resume: drawn by seed, step and try."""
        generator = torch.Generator().manual_seed(mixed_seed(self.args.seed, self.state.global_step, tries))
        total = wanted * self.accelerator.num_processes
        size = len(self.train_dataset)
        drawn: list[int] = []
        while len(drawn) * self.num_generations < total:
            drawn += torch.randperm(size, generator=generator).tolist()
        start = self.accelerator.process_index * wanted // self.num_generations
        chosen = drawn[start : start + wanted // self.num_generations]
        return [row for index in chosen for row in [self.train_dataset[index]] * self.num_generations]
