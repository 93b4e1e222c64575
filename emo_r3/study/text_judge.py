"""A text classifier of the miniature's world: a judge that reads of which emotion a sentence speaks, and is blind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from ..miniature import world
from ..models import CHECKPOINT

STEPS, ROWS, RATE, SEED = 400, 64, 1e-3, 0
HIDDEN, LAYERS, LONGEST = 64, 2, 64


def make_text_judge(folder: Path, steps: int = STEPS) -> None:
    """
    Teaches a small classifier sentences as step 1 and step 2 have them, and writes it.

    It learns from the same scenes as the miniature, those of its pretraining with their biased labels, so that it
    knows no more of the data sets than other judges do.

    Args:
        folder (`Path`): to write.
        steps (`int`, *optional*, defaults to 400): updates.
    """
    rng = np.random.default_rng([SEED, 16])
    labels = world.label_set("miniature-8").labels
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT, trust_remote_code=False)
    random, threads = torch.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    try:
        config = BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=HIDDEN,
            num_hidden_layers=LAYERS,
            num_attention_heads=4,
            intermediate_size=2 * HIDDEN,
            max_position_embeddings=2 * LONGEST,
            pad_token_id=tokenizer.pad_token_id,
            id2label=dict(enumerate(labels)),
            label2id={label: number for number, label in enumerate(labels)},
        )
        model = BertForSequenceClassification(config)
        optimizer = torch.optim.AdamW(model.parameters(), lr=RATE)
        for step in range(steps):
            texts, targets = [], []
            for _ in range(ROWS):
                scene = world.sample_scene("pretraining", rng)
                label = world.sample_label(scene, "pretraining", labels, rng)
                texts.append(world.describe(scene, rng) if rng.random() < 0.5 else world.react(scene, label, rng))
                targets.append(labels.index(label))
            inputs = tokenizer(texts, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
            logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
            loss = torch.nn.functional.cross_entropy(logits, torch.tensor(targets))
            loss.backward()
            for group in optimizer.param_groups:
                group["lr"] = RATE * min(1.0, 2 * (1 - step / steps))
            optimizer.step()
            optimizer.zero_grad()
    finally:
        torch.set_rng_state(random)
        torch.set_num_threads(threads)
    model.save_pretrained(folder)
    tokenizer.model_max_length = LONGEST
    tokenizer.save_pretrained(folder)
