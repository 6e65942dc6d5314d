"""Hugging Face's ``Trainer`` prunes its training set by one more callback."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import transformers.trainer
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from prunesampler.errors import ArgumentError, PruneSamplerWarning, StateError, UnsupportedError
from prunesampler.integrations.figures import quantiles
from prunesampler.integrations.options import check_options
from prunesampler.integrations.states import load_state, save_state
from prunesampler.scores.sequences import sequence_scores
from prunesampler.training.attach import attach
from prunesampler.training.handle import Pruning

__all__ = ["PruningCallback"]

_trainer: Any = transformers.trainer
_skip_first_batches = _trainer.skip_first_batches
_OWN = ("loader", "model", "keep", "score_epochs", "epoch_length", "resume")
_AHEAD = 62  # batches of one optimizer step, which the Trainer fetches before it trains on the first


class PruningCallback(TrainerCallback):
    """Score the training set in the first epochs of a ``Trainer``, then train on the rows that are kept.

    The Trainer fixes its number of steps and its learning rates before it begins, so a pruned epoch has as many
    steps as a full one and goes through the kept rows more often; for a shorter run ask it for fewer epochs or steps.
    Checkpoints of the Trainer hold the state of the pruning, and ``resume_from_checkpoint`` goes on exactly, in as
    many processes as before while scoring.

    At the end of each epoch ``state.log_history`` has ``prune/kept``, the rows that the epoch drew from, and while
    scoring the deciles ``prune/<by>_p10``, ``_p50`` and ``_p90`` of the scores so far.

    Args:
        keep: the share or number of rows to keep, ``"auto"``, or None to score only; see
            :func:`prunesampler.attach`.
        score_epochs: epochs to score, >= 1.
        checkpoint: the folder that ``train(resume_from_checkpoint=...)`` is given, where that is not
            ``output_dir/checkpoint-<step>``.
        options: any of attach's other arguments but ``epoch_length`` and ``resume``. Causal language models have by
            default ``score_fn=``:func:`~prunesampler.scores.sequences.sequence_scores`, ``by="el2n"`` or ``"loss"``.

    Attributes:
        pruning: the handle, a :class:`~prunesampler.Pruning`; None before training begins.
        trainer: set it to the Trainer, and the figures go through its ``log``, to whatever it reports to.

    Raises:
        ArgumentError: attach has no such argument, or it is the callback's own affair.

    >>> PruningCallback(keep=0.5, score_epochs=2).pruning is None
    True
    """

    def __init__(
        self,
        keep: float | int | Literal["auto"] | None = 0.5,
        score_epochs: int = 2,
        *,
        checkpoint: str | os.PathLike[str] | None = None,
        **options: Any,
    ) -> None:
        if "epoch_length" in options:
            rule = "must be left out: the Trainer fixes its steps and learning rates before, so each epoch stays full"
            raise ArgumentError("epoch_length", rule, options["epoch_length"])
        if "resume" in options:
            rule = "must be left out: give the Trainer's train() resume_from_checkpoint"
            raise ArgumentError("resume", rule, options["resume"])
        check_options(options, _OWN)
        self.pruning: Pruning | None = None
        self.trainer: Any = None
        self._checkpoint = checkpoint
        self._options = {"keep": keep, "score_epochs": score_epochs, **options}

    # -- what the Trainer calls --------------------------------------------------------------------------------

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Attach to the prepared loader, and take up the state of a checkpoint.

        Raises:
            UnsupportedError: this Trainer's loader cannot be followed.
            StateError: the checkpoint that training resumes from has no state of ours.
        """
        self._let_go()
        loader, model = kwargs["train_dataloader"], kwargs["model"]
        resumed = state.global_step > 0
        _check(args)
        found = load_state(self._file(args, state)) if resumed else None
        options = {"score_fn": _score_fn(model), **self._options}
        attached: Any = attach(loader, model, epoch_length="full", resume=resumed, **options)
        pruning: Pruning = attached.pruning
        self.pruning = pruning
        if found is not None:
            pruning.load_state_dict(found, mid_epoch=False)
            pruning.begin_pass()
            self._follow_the_rest(loader, pruning)
        elif options["keep"] is not None and pruning.phase == "scoring":
            _warn_of_epochs(options["score_epochs"], state.num_train_epochs)

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Switch here, where scores are due: the Trainer numbers the next epoch before it is read."""
        self._stop_following()
        if self.pruning is None or self.pruning.phase == "detached":
            return
        scoring, coreset = self.pruning.phase == "scoring", self.pruning.coreset
        self.pruning.begin_pass()
        drawn = len(kwargs["train_dataloader"].dataset) if coreset is None else len(coreset)
        figures = {"prune/kept": float(drawn)}
        if scoring:
            figures |= quantiles(self.pruning, self._options.get("by", "el2n"))
        if self.trainer is not None:
            self.trainer.log(figures)
        else:
            state.log_history.append({**figures, "epoch": state.epoch, "step": state.global_step})

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Put the state into the checkpoint."""
        folder = _folder(args, state)
        if self.pruning is not None and folder.is_dir():
            save_state(folder / _name(args), self.pruning.state_dict())

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let go of the loader and the model; the handle keeps its scores and its coreset."""
        if self.pruning is not None and self.pruning.phase == "scoring":
            warnings.warn(
                "training ended inside the scoring epochs, so nothing was selected: resume it from its last "
                "checkpoint, or give fewer score_epochs",
                PruneSamplerWarning,
                stacklevel=2,
            )
        self._let_go()

    def _let_go(self) -> None:
        self._stop_following()
        if self.pruning is not None:
            self.pruning.detach()

    # -- the epoch that training resumes in --------------------------------------------------------------------

    def _follow_the_rest(self, loader: Any, pruning: Pruning) -> None:
        # The Trainer reads the rest of the epoch through a loader that it makes after every callback was called.
        def followed(given: Any, num_batches: int = 0) -> Any:
            rest = _skip_first_batches(given, num_batches)
            if given is loader:
                pruning.follow(rest, skipped=num_batches)
            return rest

        _trainer.skip_first_batches = followed

    def _stop_following(self) -> None:
        _trainer.skip_first_batches = _skip_first_batches

    # -- where the state lies ----------------------------------------------------------------------------------

    def _file(self, args: TrainingArguments, state: TrainerState) -> Path:
        folder = Path(self._checkpoint or _folder(args, state))
        file, record = folder / _name(args), folder / "trainer_state.json"
        if not file.is_file():
            raise StateError(
                f"training resumes at step {state.global_step}, and there is no {file}: was the checkpoint written "
                "without this callback? Where it lies elsewhere, give PruningCallback(checkpoint=folder)"
            )
        saved = json.loads(record.read_text()) if record.is_file() else {}
        if (saved.get("global_step"), saved.get("log_history")) != (state.global_step, state.log_history):
            raise StateError(
                f"training resumes from another checkpoint than {folder}: give PruningCallback(checkpoint=folder) "
                "the folder that train(resume_from_checkpoint=...) was given"
            )
        return file


def _folder(args: TrainingArguments, state: TrainerState) -> Path:
    return Path(args.output_dir or ".") / f"checkpoint-{state.global_step}"


def _name(args: TrainingArguments) -> str:
    return f"prunesampler_{args.process_index}.safetensors"


def _check(args: TrainingArguments) -> None:
    if args.n_gpu > 1:
        raise UnsupportedError(
            f"torch.nn.DataParallel over {args.n_gpu} GPUs splits each batch out of sight: set CUDA_VISIBLE_DEVICES "
            "to one of them"
        )
    if args.gradient_accumulation_steps > _AHEAD:
        raise UnsupportedError(
            f"the Trainer fetches all {args.gradient_accumulation_steps} batches of a step before it trains on the "
            f"first, and more than {_AHEAD} cannot be followed: use larger batches and fewer accumulation steps"
        )


def _score_fn(model: nn.Module) -> Callable[..., Any] | None:
    # A model under PEFT has one of its own inside.
    names = {type(module).__name__ for module in model.modules()}
    return sequence_scores if names & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()) else None


def _warn_of_epochs(score_epochs: int, epochs: int) -> None:
    if score_epochs >= epochs:
        message = f"all {epochs} epochs score (score_epochs={score_epochs}): none is left to train on the kept rows"
        warnings.warn(message, PruneSamplerWarning, stacklevel=3)
