"""A few real steps of every method on the miniature, and the seam to TRL held in place."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from miniature_rows import make_images, make_trainer, training_rows
from peft import LoraConfig

from emo_r3.errors import RecipeError
from emo_r3.models.checkpoint import CHECKPOINT, load_for_training
from emo_r3.parsing import PROBLEMS, parse_completion
from emo_r3.training.config import EmoR3Config
from emo_r3.training.rewards import completion_text
from emo_r3.training.trainer import EmoR3Trainer

METHODS: dict[str, dict[str, Any]] = {
    "grpo": {"method": "think", "judge": None, "beta": 0.01},
    "dapo": {
        "method": "think",
        "judge": None,
        "loss_type": "dapo",
        "epsilon_high": 0.28,
        "dynamic_sampling": "accuracy",
        "dynamic_sampling_tries": 2,
        "overlong_buffer": 16,
    },
    "set": {"method": "set", "judge": None},
    "emo-r3": {"beta": 0.01},
    "emo-r3, authors' code": {"preset": "authors-code"},
    "emo-r3 on dapo": {"loss_type": "dapo", "dynamic_sampling": "reward", "dynamic_sampling_tries": 2},
}


def weights(trainer: EmoR3Trainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


def short_answers(folder: Path, **fields: Any) -> EmoR3Trainer:
    """A trainer of one step on labels alone, where neither steps nor reflection matter: it takes half as long."""
    return make_trainer(folder, training_rows(method="direct"), method="direct", judge=None, max_steps=1, **fields)


def history(trainer: EmoR3Trainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_every_method_trains(name: str, tmp_path: Path) -> None:
    fields = dict(METHODS[name])
    trainer = make_trainer(tmp_path, training_rows(method=fields.get("method", "set")), **{"max_steps": 1, **fields})
    before = weights(trainer)
    trainer.train()
    assert any(not torch.equal(before[name], value) for name, value in weights(trainer).items())
    form = "lenient_format_reward" if fields.get("preset") == "authors-code" else "format_reward"
    for function in ("accuracy_reward", form):
        for number in ("mean", "std"):
            assert len(history(trainer, f"rewards/{function}/{number}")) == 1
    reflects = trainer.args.judge is not None
    for logged in ("rewards/consistency_reward/mean", "rewards/coherence_reward/mean", "reflection/seconds"):
        assert len(history(trainer, logged)) == reflects
    for logged in ("zero_variance", "zero_variance_accuracy", "tied_advantage_share"):
        assert all(0 <= value <= 1 for value in history(trainer, f"groups/{logged}"))
    assert set(PROBLEMS) == {
        key.split("/")[1] for key in trainer.state.log_history[0] if key.startswith("format_failures")
    }
    assert len(history(trainer, "completions/mean_length")) == 1


@pytest.mark.slow
def test_a_seed_gives_the_same_run_and_another_another(tmp_path: Path) -> None:
    runs = []
    for number, seed in enumerate((1, 1, 2)):
        trainer = short_answers(tmp_path / str(number), seed=seed)
        trainer.train()
        runs.append(weights(trainer))
    assert all(torch.equal(runs[1][name], value) for name, value in runs[0].items())
    assert any(not torch.equal(runs[2][name], value) for name, value in runs[0].items())


def judged_by(name: str | None) -> dict[str, Any]:
    return {"judge": "policy", "shuffle_reflections": True} if name == "shuffled" else {"judge": name}


@cache
def judged(name: str | None) -> dict[str, list[Any]]:
    """What one step says under a judge: its completions, and what each was told of it."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(Path(folder), **judged_by(name), beta=0.01, max_steps=1)
        trainer.train()
    told = {key: list(trainer._logs["extra"][key]) for key in ("consistency_answer", "read_label") if name}
    return {"written": [completion_text(text) for text in trainer._logs["completion"]], **told}


@pytest.mark.slow
def test_reflection_leaves_the_rollouts_as_they_are() -> None:
    """The first batch of rollouts is that of a run without reflection: it takes nothing from the random state."""
    written = [judged(judge)["written"] for judge in (None, "policy", "shuffled")]
    assert written[0] == written[1] == written[2]


@pytest.mark.slow
@pytest.mark.parametrize("judge", ["shuffled", "reference", str(CHECKPOINT)])
def test_the_judge_is_a_choice(judge: str) -> None:
    answers, labels = (
        [judged(name)[key] for name in (judge, "policy")] for key in ("consistency_answer", "read_label")
    )
    if judge == "shuffled":  # the same answers, dealt out otherwise
        assert sorted(map(str, labels[0])) == sorted(map(str, labels[1]))
        assert (answers[0], labels[0]) != (answers[1], labels[1])
    else:  # before the first update, they are the policy
        assert answers[0] == answers[1]
        assert labels[0] == labels[1]


@pytest.mark.slow
@pytest.mark.parametrize("judge", ["policy", "reference"])
def test_adapters(judge: str, tmp_path: Path) -> None:
    """The reference is the model without its adapter: what it answers doesn't change with the adapter."""
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    trainer = make_trainer(tmp_path, judge=judge, max_steps=1, peft_config=lora)
    plain = make_trainer(tmp_path, max_steps=1)
    image = make_images()[0][0]
    text = "<step1>A grave and rain.</step1> <step2>It saddens.</step2> <step3>Negative.</step3> \\boxed{sadness}"
    arguments = ([image], [text], [parse_completion(text)], [training_rows()[0]["labels"]])
    assert trainer.judge is not None and plain.judge is not None
    found, base = trainer.judge(*arguments)[0], plain.judge(*arguments)[0]
    assert (found.yes == pytest.approx(base.yes, abs=1e-5)) == (judge == "reference")
    trainer.train()
    assert all("lora" in name for name, weight in trainer.model.named_parameters() if weight.requires_grad)


@pytest.mark.slow
def test_activation_checkpointing_gives_the_same_run(tmp_path: Path) -> None:
    runs = []
    for on in (False, True):
        trainer = make_trainer(tmp_path / str(on), activation_checkpointing=on, max_steps=1)
        trainer.train()
        runs.append((history(trainer, "reward"), history(trainer, "reflection/yes_rate"), weights(trainer)))
    assert runs[0][:2] == runs[1][:2]
    for name, value in runs[0][2].items():
        torch.testing.assert_close(runs[1][2][name], value, atol=2e-4, rtol=0)


@pytest.mark.slow
def test_dynamic_sampling_keeps_informative_groups(tmp_path: Path) -> None:
    trainer = short_answers(tmp_path, dynamic_sampling="accuracy", dynamic_sampling_tries=20, temperature=1.5)
    batches: list[dict[str, Any]] = []
    inner = trainer._generate_and_score_completions
    trainer._generate_and_score_completions = lambda inputs: batches.append(inner(inputs)) or batches[-1]
    trainer.train()
    assert history(trainer, "dynamic_sampling/starved") == [0.0]
    assert history(trainer, "dynamic_sampling/tries")[0] >= 1
    # No completion of a group that ties has an advantage from accuracy; every group here has both signs.
    groups = batches[0]["advantages"].view(-1, 4)
    assert (groups.amax(1) > 0.1).all() and (groups.amin(1) < -0.1).all()


@pytest.mark.slow
def test_starvation_ends_and_holds_the_pixels_of_no_more_than_is_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Greedy rollouts are all the same, so that no group ever differs."""
    greedy = {"top_k": 1}
    trainer = short_answers(tmp_path, dynamic_sampling="reward", dynamic_sampling_tries=3, generation_kwargs=greedy)
    before, held = weights(trainer), []
    inner = trainer._other_rows

    def look(*arguments: int) -> Any:
        held.append(len({digest for digest, *_ in trainer.processing_class.image_processor._made}))
        return inner(*arguments)

    trainer._other_rows = look
    trainer.train()
    assert held == [2, 2], "the pixels of two groups, however many tries there were"
    assert history(trainer, "dynamic_sampling/tries") == [3]
    assert history(trainer, "dynamic_sampling/starved") == [1.0]
    assert history(trainer, "dynamic_sampling/informative") == [0.0]
    assert "starved at step 0: 0 of 6 groups" in caplog.text
    assert all(torch.equal(before[name], value) for name, value in weights(trainer).items())


def test_reward_mode_keeps_what_reflection_tells_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And accuracy mode asks no judge before it has chosen."""
    trainer = make_trainer(tmp_path, dynamic_sampling="accuracy")
    rows = [{**row, "label": "awe"} for row in training_rows(2) for _ in range(4)]
    said = ["awe", "fear"] * 2 + ["awe"] * 4
    completions = [[{"role": "assistant", "content": rf"\boxed{{{label}}}"}] for label in said]
    generated = ([[1]] * 8, [[2]] * 8, None, completions, None, {}, None, None)
    monkeypatch.setattr(trainer, "_generate", lambda prompts: generated)
    # Columns: accuracy, format, consistency, coherence. In the second group, only consistency differs.
    rewards = torch.tensor([[1.0, 1, 1, 1], [0, 1, 1, 0]] * 2 + [[1.0, 1, 1, 1], [1, 1, 0, 1]] * 2)
    monkeypatch.setattr(trainer, "_rewards", lambda *_: rewards)
    asked: list[int] = []
    monkeypatch.setattr(trainer, "measured", lambda rows, completions: asked.append(len(rows)) or rows)
    assert trainer._roll_out(rows)[1].tolist() == [True, False] and asked == []
    trainer.args.dynamic_sampling = "reward"
    assert trainer._roll_out(rows)[1].tolist() == [True, True] and asked == [8]


def test_other_rows_are_the_same_after_a_resume(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    prompts = [[row["label"] for row in trainer._other_rows(8, tries)] for tries in (1, 2, 1)]
    assert prompts[0] == prompts[2]
    images = [row["image"].tobytes() for row in trainer._other_rows(8, 1)]
    assert len(set(images)) == 2 and images[0] == images[3] != images[4]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"reward_weights": [0.5, 0.5]}, "has 2 numbers; these settings have 4"),
        ({"judge": "reference", "beta": 0.0}, "set beta above 0"),
    ],
)
def test_settings_that_do_not_fit_together(fields: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=words):
        make_trainer(tmp_path, **fields)


def test_a_completion_can_hold_no_image_token(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    config = trainer.model.config
    assert {config.image_token_id, config.video_token_id} <= set(trainer.generation_config.suppress_tokens)


def test_the_private_attributes_that_the_trainer_reads(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    for name in (
        "_metrics",
        "_pending_extra_logs",
        "_dist",
        "_tokenizer",
        "reward_weights",
        "num_generations",
        "num_generations_eval",
        "ref_model",
    ):
        assert hasattr(trainer, name), name
    assert {"is_fsdp", "is_zero3", "summon_full_params"} <= set(dir(trainer._dist))
    assert trainer._step == 0
    assert hasattr(AcceleratorState, "_reset_state")  # between a cold start and what follows it


def test_the_package_has_the_trainer_and_waits_for_trl() -> None:
    import emo_r3.training

    assert emo_r3.training.EmoR3Trainer is EmoR3Trainer
    with pytest.raises(AttributeError, match="no attribute 'Trainer'"):
        emo_r3.training.Trainer  # noqa: B018
    program = "import sys, emo_r3.plotting, emo_r3.evaluation.comparison; sys.exit('trl' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("weights", [None, [0.8, 0.1, 0.05, 0.05, 0.3]], ids=["weights of ours", "weights of all"])
def test_a_reward_of_one_s_own(weights: list[float] | None, tmp_path: Path) -> None:
    """It stands beside ours, and sees what was parsed and what reflection found."""
    seen: list[Any] = []

    def short(completions: Any, parsed: Any, reflection: Any, **kwargs: Any) -> list[float]:
        seen.extend(zip(parsed, reflection, strict=True))
        return [float(len(one.steps.get("step1", "")) < 40) for one in parsed]

    trainer = make_trainer(tmp_path, reward_funcs=short, max_steps=1, reward_weights=weights)
    assert trainer.args.reward_weights == [0.8, 0.1, 0.05, 0.05, 0.3 if weights else 1.0]
    trainer.train()
    assert len(seen) == 8 and all(found.consistency in (0.0, 1.0) for _, found in seen)
    [mean] = history(trainer, "rewards/short/mean")
    assert mean == sum(len(one.steps.get("step1", "")) < 40 for one, _ in seen) / 8


def test_a_model_without_its_processor(tmp_path: Path) -> None:
    model, _, _ = load_for_training()
    args = EmoR3Config(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    with pytest.raises(RecipeError, match="processing_class is missing"):
        EmoR3Trainer(model, args, training_rows())
