"""Trainers whose loop is their own: the one line is a callback."""

from __future__ import annotations

import os
import warnings
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset

from tests.helpers.loops import BATCH, EPOCHS, OPTIONS, N, Plan, Record
from tests.helpers.training import CLASSES, Leaky, Net

CALLBACK = "PruningCallback(**options)"


class Lightning:
    name = "Lightning `Trainer`"
    packages = ("lightning",)
    line = CALLBACK
    rows = N
    resumes = "inside any epoch, by `ckpt_path`"
    continues = rest = True
    full = False
    several: str | None = "yes"

    def __init__(self, plan: Plan) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import lightning.pytorch as pl

            from prunesampler.integrations.lightning import PruningCallback
        record = self.record = Record()

        class Module(pl.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.net = Net()

            def forward(self, x: Tensor) -> Any:
                return self.net(x)

            def training_step(self, batch: Any, batch_idx: int) -> Tensor:
                x, y = batch
                logits = self(x)
                while len(record.epochs) <= self.current_epoch:
                    record.end_epoch()
                record.write(x[:, 0].long(), logits, y)
                return cross_entropy(logits, y)

            def configure_optimizers(self) -> Any:
                return torch.optim.SGD(self.parameters(), lr=0.4)

        class Save(pl.Callback):
            def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
                if record.steps in plan.saves:
                    trainer.save_checkpoint(plan.checkpoint(record.steps))

        self.plan = plan
        self.callback = eval(self.line, {"PruningCallback": PruningCallback, "options": OPTIONS})
        self.module = Module()
        self.trainer = pl.Trainer(
            callbacks=[self.callback, Save()],
            max_epochs=EPOCHS,
            accelerator="cpu",
            devices=plan.world,
            strategy="ddp" if plan.world > 1 else "auto",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    def run(self) -> dict[str, Any]:
        path = None if self.plan.resume is None else self.plan.checkpoint(self.plan.resume)
        data = DataLoader(Leaky(self.rows), batch_size=BATCH, shuffle=True)
        more = {} if path is None else {"ckpt_path": path, "weights_only": True}
        self.trainer.fit(self.module, data, **more)
        return self.record.report(self.callback.pruning)


class Texts(Dataset[Any]):
    """Rows of tokens whose first is the row."""

    def __init__(self, n: int) -> None:
        self.tokens = torch.randint(n, n + 20, (n, 6), generator=torch.Generator().manual_seed(0))
        self.tokens[:, 0] = torch.arange(n)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, i: int) -> dict[str, Any]:
        tokens = self.tokens[i]
        return {"input_ids": tokens, "labels": int(tokens[1:].sum()) % CLASSES}


class Transformers:
    name = "Transformers `Trainer`"
    packages = ("transformers",)
    line = CALLBACK
    rows = N
    resumes = "inside any epoch, by `resume_from_checkpoint`"
    continues = rest = True
    full = True
    several: str | None = "yes"

    def __init__(self, plan: Plan) -> None:
        os.environ["HF_HUB_OFFLINE"] = "1"
        import transformers
        from accelerate.state import AcceleratorState, GradientState

        from prunesampler.integrations.transformers import PruningCallback

        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        record = self.record = Record()

        class Save(transformers.TrainerCallback):
            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                control.should_save = record.steps in plan.saves

            def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                record.end_epoch()

        def forward(module: Any, args: Any, given: dict[str, Any], output: Any) -> None:
            if module.training:
                record.write(given["input_ids"][:, 0], output.logits, given["labels"])

        torch.manual_seed(1)
        size = {"vocab_size": self.rows + 20, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = transformers.BertConfig(**size, intermediate_size=16, num_labels=CLASSES, initializer_range=0.4)  # type: ignore[arg-type]
        model = transformers.BertForSequenceClassification(config)
        model.register_forward_hook(forward, with_kwargs=True)
        self.plan = plan
        self.callback = eval(self.line, {"PruningCallback": PruningCallback, "options": OPTIONS})
        self.trainer = transformers.Trainer(
            model,
            transformers.TrainingArguments(
                str(plan.folder),
                per_device_train_batch_size=BATCH,
                num_train_epochs=EPOCHS,
                learning_rate=0.02,
                save_strategy="no",
                report_to=[],
                use_cpu=True,
                ddp_backend="gloo" if plan.world > 1 else None,
                disable_tqdm=True,
                dataloader_pin_memory=False,
            ),
            train_dataset=Texts(self.rows),
            callbacks=[self.callback, Save()],
        )

    def run(self) -> dict[str, Any]:
        steps = -(-self.rows // (BATCH * self.plan.world))
        first = 0 if self.plan.resume is None else self.plan.resume // steps
        self.record.epochs = [[] for _ in range(first + 1)]
        path = None if self.plan.resume is None else str(self.plan.folder / f"checkpoint-{self.plan.resume}")
        self.trainer.train(resume_from_checkpoint=path)
        return self.record.report(self.callback.pruning)
