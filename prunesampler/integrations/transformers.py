"""A callback for the Hugging Face ``Trainer``."""

from __future__ import annotations

import json
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from prunesampler.errors import (
    ArgumentError,
    CorruptFileError,
    PruneSamplerWarning,
    StateError,
    UnsupportedError,
    missing,
)
from prunesampler.integrations.callback import check_options, quantiles
from prunesampler.scores.sequences import sequence_scores
from prunesampler.tables.atomic import atomic_write
from prunesampler.training.attach import attach
from prunesampler.training.handle import Pruning

try:
    import transformers.trainer
    from transformers import TrainerCallback
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
except ImportError as error:
    raise missing("transformers", error) from error

_trainer: Any = transformers.trainer
_skip_first_batches = _trainer.skip_first_batches
_OWN = ("loader", "model", "keep", "score_epochs", "epoch_length", "resume")
_AHEAD = 62  # the most batches of one optimizer step, which the Trainer fetches before it trains on the first


class PruningCallback(TrainerCallback):
    """Score the training set in the first epochs of a ``Trainer``, then train on the kept rows.

    The Trainer fixes its steps and learning rates before it begins. So a pruned epoch has as many steps as a full one
    and goes through the kept rows more often, under a policy through those that it has drawn; for a shorter run give
    the Trainer fewer epochs or steps. The Trainer's
    checkpoints hold the state of the pruning, and ``resume_from_checkpoint`` resumes exactly; inside the scoring
    epochs it needs as many processes as before.

    At the end of each epoch ``state.log_history`` gets ``prune/kept``, the number of rows that the epoch drew from,
    and while scoring ``prune/<by>_p10``, ``_p50`` and ``_p90``, quantiles of the scores so far.

    Args:
        keep: fraction or number of rows to keep, ``"auto"``, ``"clean"``, or None to score only; see
            :func:`prunesampler.attach`.
        score_epochs: epochs to score, >= 1.
        checkpoint: the folder given to ``train(resume_from_checkpoint=...)``, if it is not
            ``output_dir/checkpoint-<step>``.
        options: any other argument of attach but ``epoch_length`` and ``resume``. With ``policy=`` leave out ``keep``
            and ``score_epochs``. For causal language
            models ``score_fn`` is :func:`~prunesampler.scores.sequences.sequence_scores`, with ``"el2n"`` and
            ``"loss"``, by default.

    Attributes:
        pruning: the handle, a :class:`~prunesampler.Pruning`; None before training begins.
        trainer: set it to the Trainer to send the figures through its ``log``, to whatever it reports to.

    Raises:
        ArgumentError: attach has no such option, or the callback sets it itself.

    >>> PruningCallback(keep=0.5, score_epochs=2).pruning is None
    True
    """

    def __init__(
        self,
        keep: float | int | Literal["auto", "clean"] | None = 0.5,
        score_epochs: int = 2,
        *,
        checkpoint: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        if "epoch_length" in options:
            rule = "must be left out: the Trainer fixes its steps beforehand, so epochs keep their length"
            raise ArgumentError("epoch_length", rule, options["epoch_length"])
        if "resume" in options:
            raise ArgumentError("resume", "must be left out: use train(resume_from_checkpoint=...)", options["resume"])
        check_options(options, _OWN)
        self.pruning: Pruning | None = None
        self._before: tuple[bool, Any] = False, None  # whether the epoch is scored, and the rows that it reads
        self.trainer: Any = None
        self._checkpoint = checkpoint
        short = {"keep": (keep, 0.5), "score_epochs": (score_epochs, 2)}
        drawn = options.get("policy") is not None
        self._options = {name: value for name, (value, usual) in short.items() if not drawn or value != usual} | options

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Attach to the prepared loader, and load the state from the checkpoint that training resumes from."""
        self._let_go()
        loader, model = kwargs["train_dataloader"], kwargs["model"]
        resumed = state.global_step > 0
        _check(args)
        found = _load(self._file(args, state)) if resumed else None
        options = {"score_fn": _score_fn(model), **self._options}
        self.pruning = pruning = attach(loader, model, epoch_length="full", resume=resumed, **options).pruning
        if found is not None:
            pruning.load_state_dict(found, mid_epoch=False)
            pruning.begin_pass()
            self._follow_the_rest(loader, pruning)
        elif options.get("keep") is not None and options["score_epochs"] >= state.num_train_epochs:
            message = f"all {state.num_train_epochs} epochs are scored: none is left to train on the kept rows"
            warnings.warn(message, PruneSamplerWarning, stacklevel=2)

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Remember what the epoch is."""
        if self.pruning is not None:
            self._before = self.pruning.phase == "scoring", self.pruning.coreset

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Merge and log the scores; select after the last scoring epoch."""
        self._stop_following()
        if self.pruning is None or self.pruning.phase == "detached":
            return
        scoring, coreset = self._before
        self.pruning.begin_pass()  # here, as the Trainer numbers the next epoch before it reads it
        figures = {"prune/kept": float(len(kwargs["train_dataloader"].dataset if coreset is None else coreset))}
        if scoring:
            figures |= quantiles(self.pruning, self._options.get("by", "el2n"))
        if self.trainer is not None:
            self.trainer.log(figures)
        else:
            state.log_history.append({**figures, "epoch": state.epoch, "step": state.global_step})

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the state into the checkpoint."""
        if self.pruning is not None and _folder(args, state).is_dir():
            with atomic_write(_folder(args, state) / _name(args)) as file:
                torch.save(self.pruning.state_dict(), file)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Detach from the loader and the model; the handle keeps its scores and its coreset."""
        if self.pruning is not None and self.pruning.phase == "scoring":
            warnings.warn(
                "training ended inside the scoring epochs, so nothing was selected: resume from the last checkpoint, "
                "or give fewer score_epochs",
                PruneSamplerWarning,
                stacklevel=2,
            )
        self._let_go()

    def _let_go(self) -> None:
        self._stop_following()
        if self.pruning is not None:
            self.pruning.detach()

    def _follow_the_rest(self, loader: Any, pruning: Pruning) -> None:
        # When it resumes, the Trainer reads the rest of the epoch through another loader, made after all callbacks.
        def followed(given: Any, num_batches: int = 0) -> Any:
            rest = _skip_first_batches(given, num_batches)
            if given is loader:
                pruning.follow(rest, skipped=num_batches)
            return rest

        _trainer.skip_first_batches = followed

    def _stop_following(self) -> None:
        _trainer.skip_first_batches = _skip_first_batches

    def _file(self, args: Any, state: Any) -> Path:
        folder = Path(self._checkpoint or _folder(args, state))
        file, record = folder / _name(args), folder / "trainer_state.json"
        if file.with_suffix(".safetensors").is_file():
            raise StateError(f"{folder} was written by an older version of prunesampler: resume it with that version")
        if not file.is_file():
            raise StateError(
                f"training resumes at step {state.global_step}, and there is no {file}: if the checkpoint "
                "lies elsewhere, give PruningCallback(checkpoint=folder); if it has no state of ours, start anew"
            )
        saved = json.loads(record.read_text()) if record.is_file() else {}
        if (saved.get("global_step"), saved.get("log_history")) != (state.global_step, state.log_history):
            raise StateError(
                f"training resumes from another checkpoint than {folder}: give PruningCallback(checkpoint=folder) the "
                "folder that was given to train(resume_from_checkpoint=...)"
            )
        return file


def _folder(args: Any, state: Any) -> Path:
    return Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"


def _name(args: Any) -> str:
    return f"prunesampler_{args.process_index}.pt"


def _load(file: Path) -> dict[str, Any]:
    try:
        return torch.load(file, weights_only=True, map_location="cpu")  # type: ignore[no-any-return]
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise CorruptFileError(f"{file} is damaged, or holds no state of a pruning run: {error}") from error


def _check(args: Any) -> None:
    if args.n_gpu > 1:
        raise UnsupportedError(
            f"torch.nn.DataParallel splits each batch over {args.n_gpu} GPUs, where it cannot be followed: set "
            "CUDA_VISIBLE_DEVICES to one GPU, or start with torchrun"
        )
    if args.gradient_accumulation_steps > _AHEAD:
        raise UnsupportedError(
            f"the Trainer fetches all {args.gradient_accumulation_steps} batches of a step before it trains on the "
            f"first, and at most {_AHEAD} can be followed: use larger batches and fewer accumulation steps"
        )


def _score_fn(model: nn.Module) -> Callable[..., Any] | None:
    # PEFT wraps the model in one of its own.
    names = {type(module).__name__ for module in model.modules()}
    return sequence_scores if names & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()) else None
