"""One line that makes an existing loader score its rows, then prune itself."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from prunesampler.capture.binder import Binder
from prunesampler.capture.row_loader import RowLoader, RowPipeline, row_loader_class
from prunesampler.capture.rows import RowStream, check_followed, row_stream
from prunesampler.capture.timm import Prefetched, followed_prefetcher, is_prefetcher
from prunesampler.errors import ArgumentError, MismatchError, PruneSamplerWarning, StateError, UnsupportedError
from prunesampler.selection.select import Method, Selection
from prunesampler.tables.columns import identities
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.fingerprint import fingerprint as fingerprint_of
from prunesampler.tables.score_table import ScoreTable
from prunesampler.tracking.eval_pass import score
from prunesampler.tracking.ranks import Group
from prunesampler.tracking.tracker import ScoreTracker
from prunesampler.training.config import Plan
from prunesampler.training.handle import Pruning
from prunesampler.training.pruned_phase import PrunedEpochs
from prunesampler.training.run import Run
from prunesampler.training.run_folder import RunDir
from prunesampler.training.sampler_swap import Replacement
from prunesampler.training.scoring_phase import Scoring
from prunesampler.training.stream_swap import StreamReplacement

__all__ = ["AttachedLoader", "attach"]

T = TypeVar("T")
_COUNTS = ("forgetting_events", "learned", "presentations")


class AttachedLoader(RowLoader[T]):
    """The loader that was given to :func:`attach`: the same object, with a ``pruning`` handle."""

    pruning: Pruning


class AttachedPipeline(RowPipeline):
    """The same of a shard pipeline that :func:`prunesampler.shards.track` has made."""

    pruning: Pruning


def attach(
    loader: DataLoader[T],
    model: nn.Module | None,
    *,
    keep: float | int | Literal["auto"] | None = 0.5,
    score_epochs: int = 10,
    by: str = "el2n",
    method: Method = "stratified",
    offset: float | int | None = None,
    class_balanced: bool = False,
    min_per_class: int | None = None,
    unscored: Literal["keep", "drop"] = "keep",
    threshold: float | None = None,
    seed: int = 0,
    scores: Sequence[str] | None = None,
    reduction: Literal["mean", "last"] = "mean",
    rescore: DataLoader[Any] | None = None,
    epoch_length: Literal["kept", "full"] = "kept",
    save_dir: str | os.PathLike[str] | None = None,
    resume: bool = False,
    coreset: Coreset | str | os.PathLike[str] | None = None,
    keys: Any = None,
    fingerprint: str | None = None,
    inputs_changed: Literal["augmented"] | None = None,
    forwards: Literal["all", "matching"] = "all",
    input_fn: Callable[[Any], Any] | None = None,
    logits_fn: Callable[[Any], Tensor] | None = None,
    target_fn: Callable[[Any], Any] | None = None,
    score_fn: Callable[[Tensor, Any], Mapping[str, Tensor]] | None = None,
    device: torch.device | str | None = None,
    on_error: Literal["raise", "train_on_all"] = "raise",
) -> AttachedLoader[T]:
    """Score the rows of ``loader`` while ``model`` trains on them, then train on the kept ones.

    During the first ``score_epochs`` passes the logits of every training forward are credited to the rows of the
    batch that they were computed from. At the next ``iter(loader)`` the kept rows are selected, both files are
    written, and the loader's order is a :class:`~prunesampler.PrunedSampler`'s over them.

    Args:
        loader: a map-style ``DataLoader`` with a plain batch sampler and one of torch's samplers or ours; attached
            after a framework has prepared it and before its first pass; timm's prefetcher around one. Or a shard
            pipeline, or a loader over one, that :func:`prunesampler.shards.track` has made.
        model: the module that the loop calls as ``model(x)``: the DDP or compiled wrapper, where there is one.
            None: logits come through ``loader.pruning.observe(logits)`` alone.
        keep: the fraction in (0, 1] or the number (int >= 2) of rows to keep, of those that the loader's sampler
            can draw. ``"auto"`` keeps all but the superfluous ones: learned, never forgotten, and of a low score in
            both halves of the scoring epochs; how many that leaves is not known before. It wants two scoring epochs
            or more, ``reduction="mean"`` and forgetting, and no ``rescore`` or ``score_fn``. None scores only.
        score_epochs: passes to score, >= 1.
        by, method, offset, class_balanced, min_per_class, unscored, threshold: see :func:`prunesampler.select`.
        seed: of the selection's ties and of the pruned epochs' order.
        scores: columns to track, of ``"el2n"``, ``"loss"``, ``"margin"``, ``"entropy"``, ``"forgetting"``; by default
            EL2N and forgetting, and with ``rescore`` EL2N alone.
        reduction: the ``"mean"`` over the scoring epochs, or the ``"last"`` one alone.
        rescore: a loader over the same rows without augmentation. The scores then come from a pass of its own over
            it, in eval mode, when the scoring epochs are over: the protocol that EL2N was published with.
        epoch_length: pruned passes have the ``"kept"`` rows, or as many steps as before (``"full"``), which a shard
            pipeline's own ``with_epoch`` does.
        save_dir: folder for ``scores.parquet`` and ``coreset.parquet``; None keeps nothing.
        resume: take up the files of an earlier run in ``save_dir``: a finished one starts pruned, and other selection
            options select again from its scores.
        coreset: start pruned on this coreset (or file) and score nothing. Its weights scale the gradient of each
            sample's logits.
        keys: one str or int per row, kept in the files to carry scores to a dataset that has grown or moved.
        fingerprint: what the dataset is recognised by, where ours (length, type, a sample of paths and targets)
            would not do.
        inputs_changed: ``"augmented"`` says that the loop changes the inputs on their way to the model, and that the
            labels still hold.
        forwards: ``"matching"`` passes over training forwards on anything but the loader's batches.
        input_fn: batch → what the model is called with, for ``rescore``: a tuple of arguments, a dict of keywords, or
            one argument; by default found as :func:`prunesampler.score` says.
        logits_fn: model output → (B, classes), where they are no tensor, ``.logits``, ``["logits"]`` or first of a
            tuple.
        target_fn: batch → (B,), where they are not second in a tuple, or ``labels`` and the like in a dict.
        score_fn: (logits, targets) → columns, (B,) each: for soft or multi-dimensional targets.
        device: where the tracker's buffers lie (16 bytes a row for EL2N and forgetting); by default with the logits.
        on_error: ``"train_on_all"`` turns a failure while scoring into a warning and training on all rows.

    Returns:
        ``loader`` itself, now with ``loader.pruning``, a :class:`~prunesampler.Pruning`.

    Raises:
        ArgumentError: an argument breaks its rule.
        UnsupportedError: this loader cannot be followed.
        StateError: the loader is attached or being iterated, or ``save_dir`` is occupied.
        FileError: files of an earlier run are damaged, or of another dataset.

    >>> import torch, prunesampler
    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> x = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
    >>> loader = DataLoader(TensorDataset(x, (x[:, 0] > 0).long()), batch_size=16, shuffle=True)
    >>> model = torch.nn.Linear(4, 2)
    >>> loader = prunesampler.attach(loader, model, keep=0.5, score_epochs=2, epoch_length="full")
    >>> for epoch in range(3):
    ...     for inputs, labels in loader:
    ...         torch.nn.functional.cross_entropy(model(inputs), labels).backward()
    >>> loader.pruning.phase, len(loader.pruning.coreset)
    ('pruned', 32)
    """
    loader_ = cast(Any, _followed(loader))
    if on_error not in ("raise", "train_on_all"):
        raise ArgumentError("on_error", 'must be "raise" or "train_on_all"', on_error)
    if model is not None and not isinstance(model, nn.Module):
        raise ArgumentError("model", "must be a torch.nn.Module or None", model)
    stream = row_stream(loader_)
    replacement = Replacement.of(loader_) if stream is None else _streamed(stream, seed, epoch_length)
    if loader is not loader_ and "iteration" in vars(loader):
        replacement.counter = loader
    if replacement.rows_per_pass < 1:
        raise ArgumentError("loader", "must hand out at least one batch", loader_)
    binder = Binder(inputs_changed=inputs_changed, forwards=forwards)
    if keys is not None:
        keys = identities("keys", keys, replacement.num_rows)
    if scores is None and score_fn is None:
        scores = ("el2n",) if rescore is not None else ("el2n", "forgetting")
    selection = None
    if keep is not None:
        selection = Selection(
            keep=keep,
            by=by,
            method=method,
            offset=offset,
            class_balanced=class_balanced,
            min_per_class=min_per_class,
            unscored=unscored,
            threshold=threshold,
            seed=seed,
        )
        for name, value in (("class_balanced", class_balanced), ("min_per_class", min_per_class)):
            if value and score_fn is not None:
                raise ArgumentError(name, "must be left out where score_fn= scores: it gives no labels", value)
        if keep == "auto" and score_fn is not None:
            raise ArgumentError("score_fn", 'must be None with keep="auto", which reads scores of ours', score_fn)
        selection.warn(replacement.num_eligible, stacklevel=2)
        if method != "random" and score_fn is None and by not in cast("Sequence[str]", scores):
            raise ArgumentError("by", f"must be one of the scores tracked, {scores}", by)
    elif threshold is not None:
        raise ArgumentError("threshold", 'belongs to keep="auto"', threshold)
    plan = Plan(score_epochs, tuple(scores or ()), reduction, rescore is not None, selection, epoch_length, seed)
    if rescore is not None:
        _check_rescore(rescore, replacement.num_rows, model)
    group = Group.create()
    tracker = None
    online = scores if rescore is None else [name for name in scores or () if name == "forgetting"]
    if online is None or online:
        tracker = ScoreTracker(
            replacement.num_rows, scores=online, reduction=reduction, device=device, score_fn=score_fn, group=group
        )
    fingerprint = fingerprint or (fingerprint_of(loader_.dataset) if stream is None else stream.fingerprint)
    _check_ranks(group, plan, replacement.num_rows, fingerprint)
    given = _given(coreset, replacement, fingerprint)
    if given is not None and save_dir is not None:
        raise ArgumentError("save_dir", "must be None where coreset= is given: nothing is scored", save_dir)
    rundir = RunDir(save_dir, resume=resume, num_rows=replacement.num_rows, fingerprint=fingerprint, group=group)

    def scored_apart(tracked: ScoreTable | None) -> ScoreTable:
        table = score(
            cast(nn.Module, model),
            cast(Any, rescore),
            scores=None if scores is None else [name for name in scores if name != "forgetting"],
            input_fn=input_fn,
            logits_fn=logits_fn,
            target_fn=target_fn,
            score_fn=score_fn,
            keys=keys,
            fingerprint=fingerprint,
        )
        counts = {} if tracked is None else {name: getattr(tracked, name)[table.rows] for name in _COUNTS}
        return table.replace(provenance={"scoring": plan.scoring()}, **counts)

    scoring = Scoring(
        plan,
        replacement.progress(score_epochs),
        tracker=tracker,
        rescore=None if rescore is None else scored_apart,
        group=group,
        keys=keys,
        fingerprint=fingerprint,
    )
    pruned = PrunedEpochs(plan, replacement, model)
    run = Run(
        loader_,
        model,
        plan,
        scoring=scoring,
        pruned=pruned,
        replacement=replacement,
        binder=binder,
        rundir=rundir,
        group=group,
        logits_fn=logits_fn,
        target_fn=target_fn,
        train_on_all=on_error == "train_on_all",
    )
    pruning = Pruning(run, group=group, fingerprint=fingerprint)
    kind: Any = AttachedLoader if isinstance(loader_, DataLoader) else AttachedPipeline
    loader_.__class__ = row_loader_class(kind, cast(Any, type(loader_)))
    loader_._row_listener, loader_.pruning = run, pruning
    if getattr(loader, "pruning", None) is not pruning:  # Ray Train's loaders look nothing up in the one they hold
        cast(Any, loader).pruning = pruning
    if is_prefetcher(loader):
        loader_._row_listener = Prefetched(run)
        cast(Any, loader).__class__ = followed_prefetcher(cast(Any, type(loader)))
    try:
        run.begin(given)
        if run.phase == "scoring":
            _warn_of_length(replacement.batches(), pruned.batches)
    except BaseException:
        pruning.detach()
        raise
    return cast("AttachedLoader[T]", loader)


def _followed(loader: Any) -> DataLoader[Any]:
    """The loader whose iterators make the batches, checked."""
    if type(loader).__name__ == "DataLoaderDispatcher" and loader.state.num_processes > 1:
        raise UnsupportedError(
            "with dispatch_batches=True one process reads the batches of all, and their rows would not reach the "
            "others: give Accelerator(dataloader_config=DataLoaderConfiguration(dispatch_batches=False))"
        )
    if is_prefetcher(loader):
        loader = loader.loader
    # Prepared loaders, of Accelerate and of Ray Train, hold the one that works.
    for held in ("base_dataloader", "_dataloader"):
        loader = vars(loader).get(held, loader) if hasattr(loader, "__dict__") else loader
    stages = getattr(loader, "pipeline", None)  # a WebLoader's, whose first is the DataLoader
    inner = row_stream(stages[0]) if isinstance(stages, list) and stages else None
    if inner is not None and row_stream(loader) is None:
        inner.adopt(loader)
    check_followed(loader)
    if isinstance(loader, RowLoader | RowPipeline):
        raise StateError("loader is attached already: use its handle, loader.pruning, or detach() it first")
    live = vars(loader).get("_iterator") is not None
    if live and (loader.persistent_workers or getattr(loader, "_initial_iter_for_state_dict", False)):
        raise StateError(
            "loader has a live iterator whose workers cannot be reached any more: call attach before the first "
            "iter(loader) or loader.state_dict()"
        )
    return cast("DataLoader[Any]", loader)


def _check_ranks(group: Group, plan: Plan, num_rows: int, fingerprint: str | None) -> None:
    """All ranks have to want the same of the same dataset: what differs would go unnoticed in its scores or order."""
    mine = {**plan.to_dict(), "len(loader.dataset)": num_rows, "fingerprint": fingerprint}
    mine.update(mine.pop("selection") or {"keep": None})
    ranks = group.exchange(mine)
    for name in ranks[0]:
        values = [rank.get(name) for rank in ranks]
        if any(value != values[0] for value in values):
            if name == "fingerprint":
                raise UnsupportedError(
                    f"the ranks have different datasets, by their fingerprints {values}: every rank wants the whole "
                    "one, and a DistributedSampler to split it; where only its paths differ, give fingerprint="
                )
            raise ArgumentError(name, "must be the same on every rank", values)


def _check_rescore(rescore: Any, num_rows: int, model: nn.Module | None) -> None:
    check_followed(rescore)
    if model is None:
        raise ArgumentError("model", "must be a torch.nn.Module where rescore= is given", model)
    if isinstance(rescore, RowLoader | RowPipeline):
        raise ArgumentError("rescore", "must be a loader of its own, not the attached one", rescore)
    stream = row_stream(rescore)
    found = len(rescore.dataset) if stream is None else stream.num_rows
    if found != num_rows:
        raise ArgumentError("rescore", f"must have the same {num_rows} rows as loader", found)


def _streamed(stream: RowStream, seed: int, epoch_length: str) -> Any:
    if epoch_length == "full":
        rule = 'must be "kept" for a shard pipeline: give it .with_epoch(nsamples) to keep its length'
        raise ArgumentError("epoch_length", rule, epoch_length)
    return StreamReplacement(stream, seed)


def _given(
    coreset: Coreset | str | os.PathLike[str] | None, replacement: Replacement, fingerprint: str | None
) -> Coreset | None:
    if coreset is None:
        return None
    if not isinstance(coreset, Coreset):
        coreset = Coreset.load(coreset, fingerprint=fingerprint)
    elif None not in (coreset.fingerprint, fingerprint) and coreset.fingerprint != fingerprint:
        raise MismatchError(f"coreset is of dataset {coreset.fingerprint}, and loader has {fingerprint}")
    if coreset.num_rows != replacement.num_rows:
        raise MismatchError(
            f"coreset is of {coreset.num_rows} rows, and the loader's dataset has {replacement.num_rows}"
        )
    return coreset


def _warn_of_length(now: int | None, later: int | None) -> None:
    if now == later:
        return
    text = (
        f"len(loader) is {now} and will be {later} once pruned: give schedules that count steps "
        "loader.pruning.total_steps(epochs), or keep the length with"
    )
    if later is None:
        text = (
            f'len(loader) is {now} and will be what keep="auto" leaves once pruned, which nobody knows yet: if '
            "schedules count steps, keep the length with"
        )
    warnings.warn(f'{text} epoch_length="full"', PruneSamplerWarning, stacklevel=3)
