"""A text classifier as a judge: a tiny one that knows two words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_run import make_trainer
from transformers import BertConfig, BertForSequenceClassification, BertTokenizerFast

from emo_r3.errors import CheckpointError
from emo_r3.parsing import parse_completion
from emo_r3.training.classifier import TextJudge

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "calm", "wolf", "chair", ".", "a")
CLASSES = ("Joy", "fear", "neutral")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier that says joy to calm, fear to wolf, and neutral to the rest."""
    folder = tmp_path_factory.mktemp("classifier")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
        id2label=dict(enumerate(CLASSES)),
        label2id={name: number for number, name in enumerate(CLASSES)},
        initializer_range=0.3,  # with less, it learns nothing
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    torch.manual_seed(0)
    model = BertForSequenceClassification(config)
    tokenizer = BertTokenizerFast.from_pretrained(folder)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    texts = ["a calm .", "calm", "calm .", "a wolf .", "wolf", "wolf .", "a chair .", "chair", "a"]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    for _ in range(60):
        loss = model(**inputs, labels=torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder


def said(step1: str, step2: str) -> str:
    return f"<step1>{step1}</step1> <step2>{step2}</step2> <step3>b</step3> \\boxed{{fear}}"


def test_sentences_are_read_one_by_one(folder: Path) -> None:
    judge = TextJudge.from_pretrained(folder)
    texts = [said("A wolf. A chair.", "Calm."), said("A chair.", "A chair."), "no answer", said("Wolf.", "Wolf.")]
    choices = [["joy", "fear"]] * 3 + [["awe", "joy"]]
    found = judge([None] * 4, texts, [parse_completion(text) for text in texts], choices)
    assert [one.sentence_labels for one in found] == [("fear", None, "joy"), (None, None), (), (None, None)]
    assert [one.read_label for one in found] == ["fear", None, None, None]
    assert all(one.consistency_answer is None for one in found), "it sees no image"
    assert judge.tokens > 20


def test_what_is_no_classifier_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        TextJudge.from_pretrained(tmp_path)


@pytest.mark.slow
def test_a_run_is_rewarded_by_a_classifier(folder: Path, tmp_path: Path) -> None:
    weights = {"rewards": ["accuracy", "coherence"], "reward_weights": [0.9, 0.1]}
    trainer = make_trainer(tmp_path, judge=f"classifier:{folder}", max_steps=2, **weights)
    trainer.train()
    assert isinstance(trainer.judge, TextJudge)
    logged = [row for row in trainer.state.log_history if "rewards/coherence_reward/mean" in row]
    assert logged
    assert not any("reflection/asked" in row and row["reflection/asked"] for row in logged)


def test_nobody_is_asked_where_no_reward_needs_it(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, judge="policy", rewards=["accuracy"], reward_weights=[1.0])
    assert trainer.judge is None
