"""The trainer in one process: architectures, adapters, checkpointed and half-precision training, vLLM, evaluation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import trl.trainer.grpo_trainer as grpo
from datasets import Dataset, Features, Image, Value
from peft import LoraConfig
from PIL import Image as ImagePool
from tiny_models import ARCHITECTURES, tiny_checkpoint

from emo_r3.labels import LABEL_SETS
from emo_r3.models.checkpoint import load_for_training
from emo_r3.models.reflection import answer_tokens
from emo_r3.parsing import parse_completion
from emo_r3.prompts import load_prompts
from emo_r3.training.config import EmoR3Config
from emo_r3.training.group_statistics import group_statistics
from emo_r3.training.judge import Judge, JudgeModel, Reflection
from emo_r3.training.trainer import EmoR3Trainer

LABELS = LABEL_SETS["emoset"].labels
ALIKE = ("sad", "sadness", "sadden", "saddened")
STEPS = (
    "A calm sea at sunset.",
    "A face.",
    "The smiling face of no one",
    "awe",
    "A dog, and a cake on the table",
    "Sea.",
)
SIZES = ((56, 56), (112, 56), (56, 84))


def image(number: int) -> ImagePool.Image:
    """Noise of one of three sizes."""
    width, height = SIZES[number % 3]
    generator = torch.Generator().manual_seed(number)
    pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
    return ImagePool.fromarray(pixels.numpy())


def answer(number: int) -> str:
    step = STEPS[number % len(STEPS)]
    return (
        f"<step1>{step}</step1>\n<step2>It is {number}.</step2>\n<step3>So.</step3>\n\\boxed{{{LABELS[number % 8]}}}"
    )


# Nine completions about three images, the images not next to each other, and two label sets.
IMAGES = [image(number % 3) for number in range(9)]
TEXTS = [answer(number) for number in range(9)]
CHOICES = [LABELS if number % 2 else ALIKE for number in range(9)]


def asked_plainly(model: Any, processor: Any, question: str, image: ImagePool.Image | None, after: Any = ()) -> Any:
    """Logits of the next token: one prompt, one whole forward, nothing remembered, nothing padded."""
    content: list[Any] = [{"type": "text", "text": question}]
    if image is not None:
        content.insert(0, {"type": "image", "image": image})
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    extra = torch.tensor([list(after)], dtype=torch.long)
    for name in ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids"):
        if name in inputs:
            fill = {"input_ids": extra, "attention_mask": torch.ones_like(extra)}.get(name, torch.zeros_like(extra))
            inputs[name] = torch.cat([inputs[name], fill], 1)
    with torch.no_grad():
        return model(**inputs, use_cache=False).logits[0, -1].float()


def reflected_plainly(model: Any, processor: Any, end: int) -> list[tuple[float, str]]:
    """Probability of Yes, and the label that greedy decoding among the labels writes, for each completion alone."""
    prompts, tokenizer = load_prompts(), processor.tokenizer
    yes, no = answer_tokens(tokenizer)
    found = []
    for image, text, labels in zip(IMAGES, TEXTS, CHOICES, strict=True):
        steps = parse_completion(text).steps
        logits = asked_plainly(model, processor, prompts.consistency_question(steps["step1"]), image)
        probability = float((logits[yes].max() - logits[no].max()).sigmoid())
        question = prompts.coherence_question(f"{steps['step1']} {steps['step2']}", labels)
        left = {label: [*tokenizer.encode(label, add_special_tokens=False), end] for label in labels}
        depth = 0
        while len(left) > 1:
            written = next(iter(left.values()))[:depth]
            allowed = sorted({tokens[depth] for tokens in left.values()})
            best = allowed[int(asked_plainly(model, processor, question, None, written)[allowed].argmax())]
            left = {label: tokens for label, tokens in left.items() if tokens[depth] == best}
            depth += 1
        found.append((probability, next(iter(left))))
    return found


def ask(judge: Judge) -> list[Reflection]:
    return judge(IMAGES, TEXTS, [parse_completion(text) for text in TEXTS], CHOICES)


def agree(found: list[Reflection], plain: list[tuple[float, str]], tolerance: float = 1e-4) -> None:
    assert [one.yes for one in found] == pytest.approx([yes for yes, _ in plain], abs=tolerance)
    assert [one.read_label for one in found] == [label for _, label in plain]
    assert [one.consistency for one in found] == [float(yes > 0.5) for yes, _ in plain]


@pytest.mark.parametrize("batch_size", [4, 32])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_reflection_equals_whole_forwards(name: str, batch_size: int) -> None:
    """Images of several sizes in a batch, a prefix shared, suffixes padded: all of it changes nothing."""
    model, processor, _ = load_for_training(tiny_checkpoint(name))
    judge = Judge(JudgeModel(model.eval(), processor), load_prompts(), batch_size=batch_size)
    found = ask(judge)
    agree(found, reflected_plainly(model, processor, judge.reflector.end_token))
    assert len({one.read_label for one in found}) > 1
    assert max(one.yes or 0 for one in found) - min(one.yes or 1 for one in found) > 1e-2  # inputs matter


def rows(number: int = 4) -> Dataset:
    text = Value("string")
    question = load_prompts().question("set", LABELS)
    content = [{"type": "image", "text": None}, {"type": "text", "text": question}]
    made = [
        {
            "prompt": [{"role": "user", "content": content}],
            "image": image(index),
            "label": LABELS[index],
            "labels": list(LABELS),
        }
        for index in range(number)
    ]
    prompt = [{"role": text, "content": [{"type": text, "text": text}]}]
    features = Features({"prompt": prompt, "image": Image(), "label": text, "labels": [text]})
    return Dataset.from_list(made, features=features)


def make_trainer(folder: Path, peft_config: Any = None, eval_dataset: Any = None, **fields: Any) -> EmoR3Trainer:
    given: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 6,
        "max_steps": 1,
        "learning_rate": 0.1,
        "optim": "sgd",
        "use_cpu": True,
        "bf16": False,
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    model, processor, _ = load_for_training(tiny_checkpoint("qwen2_5_vl"))
    args = EmoR3Config(**given | fields)
    return EmoR3Trainer(model, args, rows(), processor, peft_config=peft_config, eval_dataset=eval_dataset)


def adapters() -> LoraConfig:
    return LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.5, init_lora_weights=False)


@pytest.mark.parametrize("judge", ["policy", "reference"])
def test_adapters_are_on_for_the_policy_and_off_for_the_reference(judge: str, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, adapters(), judge=judge)
    assert trainer.judge is not None
    model, end = trainer.model, trainer.judge.reflector.end_token
    model.train()
    found = ask(trainer.judge)
    assert model.training
    model.eval()
    on = reflected_plainly(model, trainer.processing_class, end)
    with model.disable_adapter():
        off = reflected_plainly(model, trainer.processing_class, end)
    assert max(abs(one - other) for (one, _), (other, _) in zip(on, off, strict=True)) > 1e-2
    agree(found, on if judge == "policy" else off)


@pytest.mark.parametrize("peft_config", [None, adapters()], ids=["full", "adapters"])
def test_activation_checkpointing_does_not_turn_off_the_cache(peft_config: Any, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, peft_config, activation_checkpointing=True, reflection_batch_size=9)
    assert trainer.judge is not None
    trainer.train()  # which leaves the model in training mode, checkpointing
    model = trainer.model.train()
    vision = next(module for name, module in model.named_modules() if name.endswith("visual"))
    encoded: list[int] = []
    hook = vision.register_forward_pre_hook(lambda *_: encoded.append(1))
    found = ask(trainer.judge)
    hook.remove()
    assert len(encoded) == 1
    assert model.training
    assert model.is_gradient_checkpointing  # the name in all versions
    agree(found, reflected_plainly(model.eval(), trainer.processing_class, trainer.judge.reflector.end_token))


@pytest.mark.slow
def test_half_precision(tmp_path: Path) -> None:
    """`bf16=True` trains float32 weights under autocast: the judge answers as the policy is trained."""
    trainer = make_trainer(tmp_path, bf16=True)
    assert trainer.judge is not None
    trainer.train()
    seen: set[torch.dtype] = set()
    layer = next(module for module in trainer.model.modules() if isinstance(module, torch.nn.Linear))
    hook = layer.register_forward_hook(lambda module, inputs, output: seen.add(output.dtype))
    found = ask(trainer.judge)
    hook.remove()
    assert seen == {torch.bfloat16}
    assert {weight.dtype for weight in trainer.model.parameters()} == {torch.float32}
    whole = [yes for yes, _ in reflected_plainly(trainer.model.eval(), trainer.processing_class, 0)]
    assert [one.yes for one in found] == pytest.approx(whole, abs=0.1)


def test_images_of_several_sizes_keep_their_places(tmp_path: Path) -> None:
    """TRL pads twice, in a processor that may pad on the right, and by itself on the left."""
    trainer = make_trainer(tmp_path)
    trainer.model.train()
    inputs = [row for row in rows(2) for _ in range(4)]
    batch = trainer._generate_and_score_completions(inputs)
    assert len({int(mask.sum()) for mask in batch["prompt_mask"]}) == 2
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    assert torch.equal(batch["mm_token_type_ids"], (ids == trainer.processing_class.image_token_id).long())


def test_evaluation_has_groups_of_its_own_size(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path,
        eval_dataset=rows(4),
        num_generations_eval=2,
        per_device_eval_batch_size=8,
        dynamic_sampling="accuracy",  # is for training alone
        temperature=5.0,
    )
    weights = [value.clone() for value in trainer.model.parameters()]
    trainer._logs["rewards"].clear()
    metrics = trainer.evaluate()
    logged = trainer.state.log_history[-1] | metrics
    columns = [torch.tensor(list(trainer._logs["rewards"][name])) for name in trainer.reward_func_names]
    assert [len(column) for column in columns] == [8] * 4
    rewards = torch.stack(columns, 1)
    expected = group_statistics(rewards @ trainer.reward_weights, rewards[:, 0], 2)
    for name, value in expected.items():
        assert logged[f"eval_{name}"] == pytest.approx(value)
    assert logged["eval_rewards/consistency_reward/mean"] == pytest.approx(float(rewards[:, 2].mean()))
    assert logged["eval_reflection/tokens"] > 0
    assert not any("dynamic_sampling" in name for name in logged)
    assert all(torch.equal(old, new) for old, new in zip(weights, trainer.model.parameters(), strict=True))


class FakeVLLM:
    """What TRL asks of vLLM: completions and their log-probabilities. The real one is in `tests/with_vllm/`."""

    llm = _place_features = None

    def __init__(self, **given: Any) -> None:
        self.given, self.mode = given, given["mode"]
        self.synced = 0

    def sync_weights(self) -> None:
        self.synced += 1

    def generate(self, prompts: Any, images: Any, num_generations: int, profiler: Any) -> Any:
        tokenizer = self.given["processing_class"].tokenizer
        texts = [answer(number) for number in range(len(prompts))]
        ids = [[*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id] for text in texts]
        return None, ids, [[[-1.0] for _ in tokens] for tokens in ids], None


@pytest.mark.parametrize("mode", ["colocate", "server"])
def test_with_vllm_reflection_is_read_off_the_model_in_training(
    mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpo, "VLLMGeneration", FakeVLLM)
    monkeypatch.setattr("emo_r3.training.trainer.check_vllm", lambda args: None)
    trainer = make_trainer(
        tmp_path,
        use_vllm=True,
        vllm_mode=mode,
        vllm_importance_sampling_correction=False,
        max_completion_length=64,
    )
    assert trainer.judge is not None
    biased = trainer.vllm_generation.given["generation_kwargs"]["logit_bias"]
    processor = trainer.processing_class
    assert processor.image_token_id in biased
    assert processor.tokenizer.convert_tokens_to_ids("<|vision_start|>") in biased
    assert processor.tokenizer.eos_token_id not in biased
    assert set(biased.values()) == {-100.0}  # the least that vLLM takes
    assert trainer.judge.asked.model is trainer.model

    trainer.train()
    assert trainer.vllm_generation.synced == 1
    extra = trainer._logs["extra"]
    assert all(value is not None for value in extra["p_yes"])
    texts = [message[0]["content"] for message in trainer._logs["completion"]]
    assert texts == [answer(number) for number in range(8)]
    assert len(set(extra["p_yes"])) > 4


@pytest.mark.parametrize("sharded", [True, False])
def test_written_answers_end_together_where_weights_are_sharded(sharded: bool, tmp_path: Path) -> None:
    """The policy's and a frozen judge's `generate` go on until all processes are done."""
    asked: list[Any] = []
    trainer = make_trainer(tmp_path, reflection_mode="generate")
    trainer._is_sharded = lambda: sharded  # type: ignore[method-assign]
    trainer.model.generate = lambda **inputs: asked.append(inputs["synced_gpus"])
    trainer._generate_sharded()
    trainer._generate_frozen(trainer.model)()
    assert asked == [sharded] * 2
