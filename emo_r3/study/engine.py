"""Runs what a study lacks: some processes at a time, a run in each; what fails doesn't stop the others."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from pathlib import Path
from statistics import median
from typing import Any

from ..errors import EmoR3Error
from .arms import Arm, Run, Study, StudyError, matches
from .one_run import chosen_rate, failed_facts, failure, identity, in_a_process, unfinished
from .place import Place
from .results import Result, read_results, write_result

TRIES = 2
PATIENCE = 300
"""Seconds that runs have to save what they did when they are told to end."""
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
ENVIRONMENT["DS_ACCELERATOR"] = "cpu"  # or DeepSpeed, where it is installed, remarks that it found no other

PRELOADED = ("deepspeed", "transformers.models.qwen2_5_vl.modeling_qwen2_5_vl", "matplotlib.backends.backend_agg")
"""What a run imports on its way, where it is installed: once for all of them, as that takes seconds."""

Say = Callable[[str], None]


@dataclass
class Todo:
    """
    What there is to do.

    Args:
        study ([`Study`]): of which.
        done (`dict[str, Result]`): results that are there, by the run's name.
        missing (`list[Run]`): the runs of this part that have none, in their order.
        others (`int`): how many runs other parts lack.
        impossible (`dict[str, str]`): arms that can't be run with this package, and why.
    """

    study: Study
    done: dict[str, Result]
    missing: list[Run]
    others: int = 0
    impossible: dict[str, str] = field(default_factory=dict)

    def minutes(self, run: Run) -> float:
        """What a run takes: the median of those that are most like it, so that a paused one doesn't count."""
        arm = self.study.arm(run.arm)

        def like(test: Callable[[Arm], bool]) -> list[float]:
            found = [one for one in self.done.values() if not one.failed and test(self.study.arm(one.run.arm))]
            return [float(one.facts["seconds"]["run"]) / 60 for one in found]

        same = (arm.recipe, arm.method, arm.split, arm.tuning)
        kinds: list[Callable[[Arm], bool]] = [
            lambda one: one.name == arm.name,
            lambda one: (one.recipe, one.method, one.split, one.tuning) == same,
        ]
        for kind in kinds:
            if measured := like(kind):
                return median(measured)
        usual = "tune" if arm.tuning else "train" if arm.recipe else "measure"
        return arm.minutes or self.study.minutes[usual]

    def left(self, runs: Sequence[Run], jobs: int) -> float:
        """Minutes for runs, so many at a time."""
        return sum(self.minutes(run) for run in runs) / max(1, min(jobs, len(runs) or 1))


def find_todo(place: Place, output: Path, *, part: tuple[int, int] = (1, 1), only: Sequence[str] = ()) -> Todo:
    """
    What a study lacks.

    Args:
        place ([`Place`]): of the study.
        output (`Path`): its folder with results.
        part (`tuple[int, int]`, *optional*, defaults to `(1, 1)`): number of this machine, and of how many: which
            runs are a part's doesn't depend on what is done.
        only (`list[str]`, *optional*): names of arms, or patterns such as `m8-*`; tuning that they need comes along.

    Raises:
        [`StudyError`]: results are there that aren't of this study as its file stands; or an arm that was asked for by
            its name can't be run.
    """
    study = place.study
    known = set(study.runs())
    done = {one.run.name: one for one in read_results(output) if one.run in known}
    impossible, stale, missing, others = {}, [], [], 0
    identities: dict[tuple[str, float | None], str] = {}
    wanted = _wanted(study, only)
    for number, run in enumerate(study.runs()):
        arm = study.arm(run.arm)
        if arm.name not in wanted or arm.name in impossible:
            continue
        try:
            rate, waits = chosen_rate(study, arm, done)
            if (arm.name, rate) not in identities:
                identities[arm.name, rate] = identity(place, arm, 0, rate)["identity"]
        except EmoR3Error as error:
            impossible[arm.name] = str(error)
            continue
        if run.name in done:
            if not waits and done[run.name].facts["identity"] != identities[arm.name, rate]:
                stale.append(run.name)
        elif number % part[1] == part[0] - 1:
            missing.append(run)
        else:
            others += 1
    if stale:
        raise StudyError(
            f"{len(stale)} results in {output} aren't of {study.path} as it stands ({unfinished(stale)}): recipe, "
            "base, items or prompts are others; remove them to run them again, or undo the change"
        )
    if asked := [name for name in only if name in impossible]:
        raise StudyError(impossible[asked[0]])
    return Todo(study, done, missing, others, impossible)


def _wanted(study: Study, only: Sequence[str]) -> set[str]:
    if not only:
        return {one.name for one in study.arms}
    chosen = [one for one in study.arms if matches(one.name, only)]
    if not chosen:
        raise StudyError(f"no arm is called {' or '.join(only)}: emo-r3 study {study.path} --plan lists them")
    methods = {study.tuned_by(one) for one in chosen}
    return {one.name for one in chosen} | {one.name for one in study.arms if one.tuning and one.rate_of in methods}


def run_study(place: Place, output: Path, todo: Todo, *, jobs: int = 2, say: Say = lambda line: None) -> list[str]:
    """
    Runs what is missing.

    Args:
        place ([`Place`]): of the study.
        output (`Path`): its folder, for the results.
        todo ([`Todo`]): of [`find_todo`].
        jobs (`int`, *optional*, defaults to 2): runs at a time, a thread each.
        say (`Callable`, *optional*): told a line for each run that begins or ends.

    Returns:
        `list[str]`: a line for each run that failed, or that has to wait for another part's tuning.

    Raises:
        KeyboardInterrupt: as it came; what runs has saved what it can.
    """
    for one in todo.done.values():  # of one that was killed when its result was just written
        shutil.rmtree(place.work(one.run), ignore_errors=True)
    runs = _Runs(place, output, todo, jobs, say)
    try:
        while runs.begin():
            for sentinel in wait(list(runs.running), timeout=5):
                runs.end(sentinel)
    except BaseException:
        _end([process for process, _, _ in runs.running.values()], say)
        raise
    return [*runs.failed, *runs.held_up()]


class _Runs:
    """Runs that wait, that are under way, and what failed of them.

    Args:
        place, output, todo, jobs, say: as [`run_study`] has them.
    """

    def __init__(self, place: Place, output: Path, todo: Todo, jobs: int, say: Say) -> None:
        self.place, self.output, self.todo, self.jobs, self.say = place, output, todo, jobs, say
        self.waiting, self.failed = list(todo.missing), list[str]()
        self.running: dict[Any, tuple[Any, Run, float | None]] = {}
        self.attempts: Counter[Run] = Counter()
        self.total, self.finished = len(self.waiting), 0
        self.context = _context()

    def begin(self) -> bool:
        """Starts what can be started, and says whether anything is under way."""
        for run in list(self.waiting):
            if len(self.running) >= self.jobs:
                break
            try:
                rate, missing = self._rate(run)
            except StudyError as error:
                self.waiting.remove(run)
                self.failed.append(str(error))
                continue
            if not missing:
                self.waiting.remove(run)
                self._start(run, rate)
        return bool(self.running)

    def end(self, sentinel: Any) -> None:
        """Takes up the result of a process that has ended, or has its run tried once more."""
        process, run, rate = self.running.pop(sentinel)
        process.join()
        for result in read_results(self.output):
            self.todo.done.setdefault(result.run.name, result)
        if run.name in self.todo.done:
            self.finished += 1
            left = self.todo.left([*self.waiting, *(one for _, one, _ in self.running.values())], self.jobs)
            minutes = self.todo.done[run.name].facts["seconds"]["run"] / 60
            done = f"{run.name} is done in {minutes:.1f} min; {self.finished} of {self.total}"
            self.say(f"{done}, about {duration(left)} left")
            return
        told = failure(self.place.work(run))
        reason = f"{run.name} failed (exit code {process.exitcode}): {told['reason']}"
        if self.attempts[run] < TRIES:
            self.say(f"{reason}; it is tried once more")
            self.waiting.insert(0, run)
            return
        self.say(reason)
        self.failed.append(reason)
        if told["final"]:
            facts = failed_facts(self.place, run, rate, told["reason"])
            self.todo.done[run.name] = Result(run, facts)
            write_result(self.output, run, facts)

    def held_up(self) -> list[str]:
        """A line for each run whose tuning isn't there."""
        held = "{} waits for {}, which other parts run, or which failed"
        return [held.format(run.name, unfinished(self._rate(run)[1])) for run in self.waiting]

    def _rate(self, run: Run) -> tuple[float | None, list[str]]:
        """The tuned learning rate of a run, and what it lacks for that."""
        return chosen_rate(self.place.study, self.place.study.arm(run.arm), self.todo.done)

    def _start(self, run: Run, rate: float | None) -> None:
        self.attempts[run] += 1
        work = self.place.work(run)
        (work / "failed").unlink(missing_ok=True)
        arguments = (self.place, self.output, run, rate)
        process = self.context.Process(target=in_a_process, args=arguments, name=run.name)
        with _environment():
            process.start()
        self.running[process.sentinel] = (process, run, rate)
        again = ", going on" if any(work.glob("checkpoint-*")) else ""
        self.say(f"{run.name} begins{again}")


def _context() -> Any:
    """Processes that begin with everything imported where the system can, and without what this one holds."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"{__package__}.one_run", "emo_r3.training.trainer", *PRELOADED])
    return context


@contextmanager
def _environment() -> Iterator[None]:
    """One thread for each process that starts here."""
    before: Mapping[str, str] = dict(os.environ)
    os.environ.update(ENVIRONMENT)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _end(processes: Sequence[Any], say: Say) -> None:
    """Tells runs to end; a training saves first."""
    if processes:
        say(f"ending {len(processes)} runs; a training saves at the end of its update")
    for process in processes:
        process.terminate()
    end = time.monotonic() + PATIENCE
    # A second Ctrl-C is for those that have patience no more.
    for process in processes:
        process.join(max(0.1, end - time.monotonic()))
        if process.is_alive():
            os.kill(process.pid, signal.SIGKILL)


def duration(minutes: float) -> str:
    """Minutes in words."""
    hours, rest = divmod(round(minutes), 60)
    return f"{hours} h {rest:02} min" if hours else f"{rest} min"


def plan_lines(todo: Todo, jobs: int) -> list[str]:
    """What is missing by step, how long it takes, and what can't be run."""
    study = todo.study
    lines = []
    for step in sorted({one.step for one in study.arms}):
        own = [run for run in study.runs() if study.arm(run.arm).step == step]
        lacking = [run for run in todo.missing if study.arm(run.arm).step == step]
        there = sum(run.name in todo.done for run in own)
        minutes = duration(todo.left(lacking, jobs))
        lines.append(f"step {step}: {len(own)} runs, {there} done, {len(lacking)} to do here, about {minutes}")
        seeds: dict[str, list[str]] = {}
        for run in lacking:
            seeds.setdefault(run.arm, []).append(str(run.seed))
        for name, some in seeds.items():
            told = f", seeds {' '.join(some)}" if study.arm(name).recipe else ""
            lines.append(f"    {name}{told}, about {todo.minutes(Run(name, int(some[0]))):.0f} min each")
    for name, why in todo.impossible.items():
        lines.append(f"can't be run yet: {name}: {why}")
    return lines


def summary(todo: Todo, jobs: int) -> str:
    """What is about to happen, in a line."""
    told = f"{len(todo.done)} results are there, {len(todo.missing)} runs are to do here"
    told += f" and {todo.others} elsewhere" if todo.others else ""
    told += f", {jobs} at a time: about {duration(todo.left(todo.missing, jobs))}" if todo.missing else ""
    return told + (f"; {len(todo.impossible)} arms can't be run yet" if todo.impossible else "")
