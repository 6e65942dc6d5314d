"""The Hugging Face Trainer: one callback. A tiny text classifier, from scratch, on sentences that are made here."""

from __future__ import annotations

import random

from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, set_seed

from prunesampler.integrations.transformers import PruningCallback

set_seed(0)
rng = random.Random(0)
words = {0: [3, 4, 5, 6], 1: [7, 8, 9, 10]}  # of either class, and some of both


def sentence(label: int) -> dict[str, object]:
    tokens = [rng.choice(words[label] if rng.random() < 0.7 else [11, 12, 13]) for _ in range(8)]
    return {"input_ids": [1, *tokens, 2], "attention_mask": [1] * 10, "labels": label}


dataset = [sentence(row % 2) for row in range(400)]
shape = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
model = BertForSequenceClassification(BertConfig(vocab_size=16, num_labels=2, **shape))
callback = PruningCallback(keep=0.5, score_epochs=2, save_dir="runs/hf_trainer/scores-{n}")
args = TrainingArguments(
    "runs/hf_trainer",
    num_train_epochs=4,
    per_device_train_batch_size=32,
    learning_rate=5e-3,
    use_cpu=True,
    save_strategy="no",
    report_to=[],
    disable_tqdm=True,
)
Trainer(model, args, train_dataset=dataset, callbacks=[callback]).train()
print(callback.pruning.coreset.summary())
