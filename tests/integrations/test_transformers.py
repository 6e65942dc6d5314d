"""The Trainer of transformers against the hand-kept record: the first token of each row is its index."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from tests.helpers.training import Journal, check_scores, hardest

os.environ["HF_HUB_OFFLINE"] = "1"

import datasets
import transformers
from transformers import BertConfig, BertForSequenceClassification, LlamaConfig, LlamaForCausalLM, TrainingArguments

from prunesampler.errors import (
    ArgumentError,
    BindingError,
    CorruptFileError,
    PruneSamplerWarning,
    StateError,
    UnsupportedError,
)
from prunesampler.integrations.transformers import PruningCallback

N, BATCH, LENGTH, VOCABULARY = 22, 4, 6, 40
KEEP = {"keep": 0.64, "method": "top", "score_epochs": 2}


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    torch.manual_seed(0)
    datasets.disable_progress_bars()
    yield
    assert transformers.trainer.skip_first_batches.__module__ == "accelerate.data_loader"


class Texts(Dataset[Any]):
    def __init__(self, kind: str = "classes") -> None:
        generator = torch.Generator().manual_seed(0)
        self.tokens = torch.randint(N, VOCABULARY, (N, LENGTH), generator=generator)
        self.tokens[:, 0] = torch.arange(N)
        self.kind = kind

    def __len__(self) -> int:
        return N

    def __getitem__(self, i: int) -> dict[str, Any]:
        tokens, mask = self.tokens[i], torch.ones(LENGTH, dtype=torch.int64)
        if self.kind == "classes":
            return {"input_ids": tokens, "attention_mask": mask, "labels": int(tokens[1:].sum()) % 3}
        labels = tokens.clone()
        labels[: 1 + i % 3] = -100
        return {"input_ids": tokens, "attention_mask": mask, "labels": labels}


def model_of(kind: str = "classes") -> Any:
    torch.manual_seed(1)
    size = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    if kind == "classes":
        more = {"intermediate_size": 16, "max_position_embeddings": 8, "num_labels": 3, "initializer_range": 0.4}
        return BertForSequenceClassification(BertConfig(**size, **more))
    return LlamaForCausalLM(LlamaConfig(**size, intermediate_size=16, max_position_embeddings=8, num_key_value_heads=2))


class Record(transformers.TrainerCallback):
    """Writes the journal from outside of everything that is tested."""

    def __init__(self, model: Any) -> None:
        self.journal, self.logits = Journal(), []
        model.register_forward_hook(self.forward, with_kwargs=True)

    def forward(self, module: Any, args: Any, given: dict[str, Any], output: Any) -> None:
        if not module.training:
            return
        tokens, labels = given["input_ids"], given["labels"]
        if labels.dim() == 2:
            self.journal.epochs[-1] += tokens[:, 0].tolist()
            self.logits.append((tokens[:, 0].tolist(), output.logits.detach().double(), labels))
        else:
            self.journal.write(tokens, output.logits, labels)

    def on_epoch_end(self, *args: Any, **given: Any) -> None:
        if len(self.journal.epochs) >= KEEP["score_epochs"]:
            self.journal.recording = False
        self.journal.end_epoch()


class Run:
    def __init__(self, folder: Path, kind: str = "classes", dataset: Any = None, **options: Any) -> None:
        self.model = model_of(kind)
        self.record = Record(self.model)
        self.callback = PruningCallback(**{**KEEP, **options.pop("pruning", {})})
        data = Texts(kind) if dataset is None else dataset
        defaults = {
            "output_dir": str(folder),
            "per_device_train_batch_size": BATCH,
            "num_train_epochs": 5,
            "learning_rate": 0.02,
            "save_strategy": "no",
            "logging_strategy": "steps",
            "logging_steps": 3,
            "report_to": [],
            "use_cpu": True,
            "disable_tqdm": True,
            "dataloader_pin_memory": False,
        }
        self.trainer = transformers.Trainer(
            self.model,
            TrainingArguments(**{**defaults, **options}),  # type: ignore[arg-type]
            train_dataset=data,
            eval_dataset=Texts(kind),
            callbacks=[self.callback, self.record],
        )

    @property
    def epochs(self) -> list[list[int]]:
        return self.record.journal.epochs[:-1]

    @property
    def pruning(self) -> Any:
        return self.callback.pruning

    def train(self, **options: Any) -> Run:
        self.trainer.train(**options)
        return self


def check_epochs(run: Run, kept: set[int], pruned: int) -> None:
    """All rows once in each scoring epoch; then full epochs, in which each run through the kept rows has all of them.

    The runs are counted from the beginning of training, so the first pruned epoch begins inside one.
    """
    assert [sorted(epoch) for epoch in run.epochs[:2]] == [list(range(N))] * 2
    assert run.epochs[0] != run.epochs[1]
    assert [len(epoch) for epoch in run.epochs[2:]] == [N] * pruned
    stream = [row for epoch in run.epochs[2:] for row in epoch]
    starts = [start for start in range(-2 * N % len(kept), len(stream), len(kept)) if start + len(kept) <= len(stream)]
    assert len(starts) >= 3
    for start in starts:
        assert set(stream[start : start + len(kept)]) == kept


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gradient_accumulation_steps": 4},
        {"dataloader_num_workers": 1, "eval_strategy": "steps", "eval_steps": 4},
        {"activation_checkpointing": True},
        {"label_smoothing_factor": 0.1},
    ],
    ids=str,
)
def test_one_line_scores_and_prunes(options: dict[str, Any], tmp_path: Path) -> None:
    run = Run(tmp_path, **options)
    if "label_smoothing_factor" in options:  # the Trainer takes the labels out of what the model is given
        texts = Texts()
        run.model.register_forward_pre_hook(
            lambda module, args, given: (
                args,
                {**given, "labels": torch.tensor([texts[row]["labels"] for row in given["input_ids"][:, 0].tolist()])},
            ),
            with_kwargs=True,
        )
    run.train()
    journal, kept = run.record.journal, hardest(run.record.journal, N, 14)
    check_scores(run.pruning.table, journal, N)
    assert set(run.pruning.coreset.rows.tolist()) == kept
    check_epochs(run, kept, pruned=3)
    steps = -(-6 // options.get("gradient_accumulation_steps", 1)) * 5
    assert run.trainer.state.global_step == run.trainer.state.max_steps == steps
    assert run.trainer.lr_scheduler.get_last_lr()[0] == 0.0


@pytest.mark.parametrize("by", ["el2n", "loss"])
def test_a_causal_language_model_has_a_score_for_each_sequence(by: str, tmp_path: Path) -> None:
    run = Run(tmp_path, "tokens", pruning={"by": by}, gradient_accumulation_steps=2).train()
    seen: dict[int, list[float]] = {row: [] for row in range(N)}
    for rows, logits, labels in run.record.logits[:12]:
        for row, z, y in zip(rows, logits[:, :-1], labels[:, 1:], strict=True):
            p = z.softmax(-1)[y != -100]
            wanted = torch.eye(VOCABULARY, dtype=torch.float64)[y[y != -100]]
            values = (p - wanted).norm(dim=1) if by == "el2n" else -(p * wanted).sum(1).log()
            seen[row].append(float(values.mean()))
    expected = np.array([np.mean(values) for values in seen.values()])
    np.testing.assert_allclose(run.pruning.table.scores[by], expected, rtol=1e-6, atol=1e-6)
    kept = set(np.argsort(-expected)[:14].tolist())
    assert set(run.pruning.coreset.rows.tolist()) == kept
    check_epochs(run, kept, pruned=3)


@pytest.mark.parametrize("through_log", [False, True])
def test_figures_are_logged(through_log: bool, tmp_path: Path) -> None:
    class Reporter(transformers.TrainerCallback):
        seen: ClassVar[list[dict[str, float]]] = []

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **given: Any) -> None:
            self.seen.append(dict(logs))

    run = Run(tmp_path)
    if through_log:
        run.callback.trainer = run.trainer
        run.trainer.callback_handler.callbacks.insert(0, Reporter())
    run.train()
    logged = Reporter.seen if through_log else run.trainer.state.log_history
    found = [one for one in logged if "prune/kept" in one]
    assert [one["prune/kept"] for one in found] == [N, N, 14, 14, 14]
    assert [one["epoch"] for one in found] == [1, 2, 3, 4, 5]
    values = [run.record.journal.el2n(row) for row in range(N)]
    for percent in (10, 50, 90):
        assert found[1][f"prune/el2n_p{percent}"] == pytest.approx(np.percentile(values, percent), abs=1e-5)
    assert "prune/el2n_p50" not in found[2]


def test_max_steps_ends_where_it_says(tmp_path: Path) -> None:
    run = Run(tmp_path, max_steps=15).train()
    assert run.trainer.state.global_step == 15
    check_scores(run.pruning.table, run.record.journal, N)
    assert [len(epoch) for epoch in run.epochs] == [N, N, 3 * BATCH]
    with pytest.warns(PruneSamplerWarning, match="none is left"):
        early = Run(tmp_path, max_steps=7)
        with pytest.warns(PruneSamplerWarning, match="inside the scoring epochs"):
            early.train()
    assert early.pruning.coreset is None


@pytest.mark.parametrize(("kind", "options"), [("classes", {}), ("tokens", {"gradient_accumulation_steps": 4})])
def test_a_run_resumes_exactly_from_any_checkpoint(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 1, "num_train_epochs": 4, **options}
    folder = tmp_path / "run"
    whole = Run(folder, kind, pruning={"save_dir": tmp_path / "scores"}, **saving).train()
    batches, last = [row for epoch in whole.epochs for row in epoch], whole.trainer.state.global_step
    accumulation = options.get("gradient_accumulation_steps", 1)
    per_epoch = -(-6 // accumulation)
    for step in (1, 6, 7, 12, 13, 19) if accumulation == 1 else range(1, last):
        again = tmp_path / f"again-{step}"
        shutil.copytree(folder / f"checkpoint-{step}", again / f"checkpoint-{step}")
        resumed = Run(again, kind, pruning={"save_dir": tmp_path / "scores"}, **saving)
        resumed.train(resume_from_checkpoint=str(again / f"checkpoint-{step}"))
        done = N * (step // per_epoch) + BATCH * accumulation * (step % per_epoch)
        assert [row for epoch in resumed.epochs for row in epoch] == batches[done:], step
        assert resumed.pruning.coreset == whole.pruning.coreset, step
        for name, value in resumed.model.state_dict().items():
            assert torch.equal(value, whole.model.state_dict()[name]), (step, name)


def test_a_checkpoint_that_lies_elsewhere_is_named(tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 5, "num_train_epochs": 3}
    for name in ("a", "b"):
        Run(tmp_path / name, learning_rate=0.02 if name == "a" else 0.01, **saving).train()
    with pytest.raises(StateError, match=r"there is no .*PruningCallback\(checkpoint=folder\)"):
        Run(tmp_path / "c").train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-10"))
    with pytest.raises(StateError, match="from another checkpoint than"):
        Run(tmp_path / "b", **saving).train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-10"))
    run = Run(tmp_path / "c", pruning={"checkpoint": tmp_path / "a" / "checkpoint-10"})
    run.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-10"))
    assert len(run.pruning.coreset) == 14


def test_a_state_that_is_damaged_or_of_an_older_version_is_refused(tmp_path: Path) -> None:
    Run(tmp_path, save_strategy="steps", save_steps=8).train()
    checkpoint = tmp_path / "checkpoint-8"
    state = checkpoint / "prunesampler_0.pt"
    for content in (state.read_bytes()[:-40], b"not at all", b""):
        state.write_bytes(content)
        with pytest.raises(CorruptFileError, match="is damaged"):
            Run(tmp_path).train(resume_from_checkpoint=str(checkpoint))
    state.rename(checkpoint / "prunesampler_0.safetensors")
    with pytest.raises(StateError, match="older version of prunesampler"):
        Run(tmp_path).train(resume_from_checkpoint=str(checkpoint))


def test_data_that_is_not_skipped_starts_the_epoch_again(tmp_path: Path) -> None:
    Run(tmp_path, save_strategy="steps", save_steps=8).train()
    resumed = Run(tmp_path, ignore_data_skip=True).train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert resumed.pruning.table.presentations.tolist() == [2] * N
    assert sorted(resumed.epochs[0]) == list(range(N))


def test_training_again_starts_again(tmp_path: Path) -> None:
    run = Run(tmp_path, num_train_epochs=3).train()
    first, table = run.pruning, run.pruning.table
    run.record.journal = Journal()
    run.train()
    assert run.pruning is not first
    assert first.phase == run.pruning.phase == "detached"
    assert first.table is table
    check_scores(run.pruning.table, run.record.journal, N)


def test_scores_alone(tmp_path: Path) -> None:
    run = Run(tmp_path, num_train_epochs=2, pruning={"keep": None, "method": "stratified"}).train()
    check_scores(run.pruning.table, run.record.journal, N)
    assert run.pruning.coreset is None


def test_a_dataset_of_hugging_face_as_torch(tmp_path: Path) -> None:
    texts = Texts()
    columns = {name: [np.asarray(texts[i][name]).tolist() for i in range(N)] for name in texts[0]}
    data = datasets.Dataset.from_dict(columns)
    data.set_format("torch")
    run = Run(tmp_path, dataset=data, num_train_epochs=3).train()
    check_scores(run.pruning.table, run.record.journal, N)


def test_what_cannot_be_followed_is_refused_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsupportedError, match="fetches all 100 batches"):
        Run(tmp_path, gradient_accumulation_steps=100).train()
    run = Run(tmp_path)
    monkeypatch.setattr(TrainingArguments, "n_gpu", 2)
    with pytest.raises(UnsupportedError, match="DataParallel"):
        run.callback.on_train_begin(
            run.trainer.args, run.trainer.state, run.trainer.control, train_dataloader=None, model=run.model
        )


def test_the_largest_accumulation_is_followed(tmp_path: Path) -> None:
    columns = [Texts()[i % N] for i in range(130)]
    for i, column in enumerate(columns):
        column["input_ids"] = torch.tensor([i, 3, 5, 7, 9, i % 7])
    run = Run(
        tmp_path, dataset=columns, gradient_accumulation_steps=62, per_device_train_batch_size=1, num_train_epochs=3
    )
    run.model.resize_token_embeddings(130)
    run.train()
    check_scores(run.pruning.table, run.record.journal, 130)


@pytest.mark.parametrize(
    ("options", "argument"),
    [
        ({"epoch_length": "kept"}, "epoch_length"),
        ({"resume": True}, "resume"),
        ({"kep": 0.5}, "kep"),
        ({"loader": None}, "loader"),
    ],
)
def test_arguments_are_checked_at_once(options: dict[str, Any], argument: str) -> None:
    with pytest.raises(ArgumentError) as caught:
        PruningCallback(**options)
    assert caught.value.argument == argument


def test_batches_that_are_changed_on_the_way_are_noticed(tmp_path: Path) -> None:
    run = Run(tmp_path)
    step = run.trainer.training_step
    run.trainer.training_step = lambda model, inputs, *more: step(  # type: ignore[method-assign]
        model, {**inputs, "input_ids": inputs["input_ids"].flip(0)}, *more
    )
    with pytest.raises(BindingError, match="not a batch of the loader"):
        run.train()
