"""One line that makes an existing loader score its rows, then prune itself."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from prunesampler._format import brief
from prunesampler._logging import be_heard
from prunesampler.capture.binder import Binder
from prunesampler.capture.find import Finder
from prunesampler.capture.forward_hook import check_hookable
from prunesampler.capture.row_function import RowFunction, ordered_ids
from prunesampler.capture.rows import row_stream
from prunesampler.capture.threshold_samples import ThresholdSamples
from prunesampler.errors import (
    ArgumentError,
    PruneSamplerWarning,
    UnsupportedError,
    check_bool,
    check_choice,
    check_int,
)
from prunesampler.selection.select import Selection
from prunesampler.tables.columns import identities, optional_text
from prunesampler.tables.coreset import Coreset
from prunesampler.tables.dataset_names import class_names, sample_paths
from prunesampler.tables.fingerprint import check_same_dataset
from prunesampler.tables.fingerprint import contents as contents_of
from prunesampler.tables.fingerprint import fingerprint as fingerprint_of
from prunesampler.tables.score_table import ScoreTable
from prunesampler.tracking.eval_pass import score
from prunesampler.tracking.inputs import score_names
from prunesampler.tracking.ranks import Group
from prunesampler.tracking.tracker import ScoreTracker
from prunesampler.training.attached_loader import AttachedLoader, become_attached, loader_inside
from prunesampler.training.batch_reader import BatchReader
from prunesampler.training.config import RunConfig, SelectionOptions, check_ranks_agree, policy_of
from prunesampler.training.continuation import (
    RunKey,
    earlier_runs,
    samplers_as_found,
    take_over,
    tell_of_continuation,
    weakly,
)
from prunesampler.training.handle import Pruning
from prunesampler.training.phases import Phases
from prunesampler.training.policies.policy import Draw, Policy
from prunesampler.training.pruned_phase import PrunedPhase
from prunesampler.training.rescore_inputs import RescoreInputs, check_rescore
from prunesampler.training.run import Run
from prunesampler.training.run_folder import RunFolder
from prunesampler.training.sampler_swap import swap_of
from prunesampler.training.scoring_phase import ScoringPhase, Seen
from prunesampler.training.stream_swap import FixedOrder

if TYPE_CHECKING:
    from typing_extensions import Unpack

T = TypeVar("T")
_COUNTS = ("forgetting_events", "learned", "presentations")


def attach(
    loader: DataLoader[T],
    model: nn.Module | None,
    *,
    keep: float | int | Literal["auto", "clean"] | None = 0.5,
    score_epochs: int = 10,
    epoch_length: Literal["kept", "full"] = "kept",
    selection: Selection | None = None,
    policy: Policy | Callable[[int, ScoreTable | None], Draw] | None = None,
    seed: int = 0,
    scores: Sequence[str] | None = None,
    reduction: Literal["mean", "last", "running"] | None = None,
    rescore: DataLoader[Any] | None = None,
    save_dir: str | os.PathLike[str] | None = None,
    save_every: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    coreset: Coreset | str | os.PathLike[str] | None = None,
    keys: Any = None,
    fingerprint: str | None = None,
    inputs_changed: Literal["augmented"] | None = None,
    forwards: Literal["all", "matching"] = "all",
    row_fn: Callable[[Any], Any] | None = None,
    input_fn: Callable[[Any], Any] | None = None,
    logits_fn: Callable[[Any], Tensor] | None = None,
    target_fn: Callable[[Any], Any] | None = None,
    score_fn: Callable[[Tensor, Any], Mapping[str, Tensor]] | None = None,
    device: torch.device | str | None = None,
    audit: bool | Literal["aum"] = True,
    on_error: Literal["raise", "train_on_all"] = "raise",
    **options: Unpack[SelectionOptions],
) -> AttachedLoader[T]:
    """Score the rows of ``loader`` while ``model`` trains on them, then train on the kept ones.

    During the first ``score_epochs`` passes the logits of every training forward are credited to the rows of the
    batch that they were computed from. At the end of the last of them the kept rows are selected, both files are
    written, and the loader's order is a :class:`~prunesampler.PrunedSampler`'s over them.

    ``keep``, ``score_epochs``, ``epoch_length`` and the options of :func:`prunesampler.select` are the short form of
    ``policy=PruneOnce(Selection(keep, ...), score_epochs, epoch_length)``. Another policy draws a new set every epoch.

    Args:
        loader: a map-style ``DataLoader`` with a plain batch sampler and one of torch's samplers or ours; attached
            after a framework has prepared it and before its first pass; timm's prefetcher around one. Or a shard
            pipeline, or a loader over one, that :func:`prunesampler.shards.track` has made.
        model: the module that the loop calls as ``model(x)``: the DDP or compiled wrapper, where there is one.
            None: logits come through ``loader.pruning.observe(logits)`` alone.
        keep: the fraction in (0, 1] or the number (int >= 2) of rows to keep, of those that the loader's sampler
            can draw. ``"auto"`` keeps all but the superfluous ones: learned, never forgotten, and of a low score in
            both halves of the scoring epochs; how many that leaves is not known before. It wants two scoring epochs
            or more, ``reduction="mean"`` and forgetting, and no ``rescore`` or ``score_fn``. ``"clean"`` keeps all but
            the rows whose label is likely wrong (:func:`prunesampler.audit`), which six scoring epochs or more tell
            best; it wants no ``score_fn``. None scores only.
        score_epochs: passes to score, >= 1.
        epoch_length: pruned passes have the ``"kept"`` rows, or as many steps as before (``"full"``), which a shard
            pipeline's own ``with_epoch`` does. Also under a policy: an epoch then goes through the rows that it has
            drawn more than once.
        selection: a :class:`~prunesampler.Selection`, in the place of ``keep`` and the options of select.
        policy: a :class:`~prunesampler.Policy`, such as :class:`~prunesampler.RandomSubset`, in the place of all
            these but ``epoch_length``; or a function (epoch, table) → rows or :class:`~prunesampler.Probabilities`,
            which reads ``scores`` where they are given.
        seed: an int >= 0, of the selection's ties, of what a policy draws, and of the pruned epochs' order.
        scores: columns to track, as :class:`~prunesampler.ScoreTracker` has them; with ``rescore``, those of
            :func:`prunesampler.score`. By default EL2N and forgetting, with ``rescore`` EL2N alone, and under another
            policy what it reads.
        reduction: the ``"mean"`` over the scoring epochs, or the ``"last"`` one alone; by default the mean, and under a
            policy that reads scores every epoch the last.
        rescore: a loader over the same rows without augmentation. The scores then come from a pass of its own over
            it, in eval mode, when the scoring epochs are over: the protocol that EL2N was published with.
        save_dir: folder for ``scores.parquet`` and ``coreset.parquet``; None keeps nothing. ``"runs/{n}"`` numbers the
            folders: a new one for each run, the newest one with ``resume=True``.
        save_every: an int >= 1: under a policy that follows scores, ``scores.parquet`` is written anew at the end of
            every so many epochs, scored ones counted; without, after the scored epochs and by ``finish()``.
        resume: take up the files of an earlier run in ``save_dir``: a finished one starts pruned, and other selection
            options select again from its scores. One under a policy that draws every epoch goes on from its
            checkpoint, which ``loader.pruning.load_state_dict`` is to be given before the first pass.
        overwrite: replace the files of an earlier run in ``save_dir``, once there are new ones.
        coreset: start pruned on this coreset (or file) and score nothing. Its weights scale the gradient of each
            sample's logits.
        keys: one str or int per row, kept in the files to carry scores to a dataset that has grown or moved; or a
            mapping {id: row}, from the ids that ``row_fn`` returns.
        fingerprint: what the dataset is recognised by, where ours (length, type, a sample of paths and targets)
            would not do.
        inputs_changed: ``"augmented"`` says that the loop changes the inputs on their way to the model, and that the
            labels still hold.
        forwards: ``"matching"`` passes over training forwards on anything but the loader's batches.
        row_fn: batch → (B,) its rows, ints, or str ids that ``keys`` has: where the batch says them itself, as with a
            dataset that returns its index. Nothing is inferred then. With ``keep=None`` any sampler, batch sampler
            and ``IterableDataset`` will do. ``rescore`` is read by it too.
        input_fn: batch → what the model of ``rescore``, or the proxy of ``ProxyFilter``, is called with: a tuple of
            arguments, a dict of keywords, or one argument; by default found as :func:`prunesampler.score` says.
        logits_fn: model output → (B, classes), where they are no tensor, ``.logits``, ``["logits"]`` or first of a
            tuple.
        target_fn: batch → (B,), where they are not second in a tuple, or ``labels`` and the like in a dict.
        score_fn: (logits, targets) → columns, (B,) each: for soft or multi-dimensional targets.
        device: where the tracker's buffers lie (20 bytes a row for EL2N and forgetting); by default with the logits.
        audit: follow what :func:`prunesampler.audit` and ``keep="clean"`` read; False saves up to a fifth of
            the tracker's time. ``"aum"`` is for one of the runs that ``audit(..., method="aum")`` compares: margins are
            scored by default, and a loader without :class:`~prunesampler.ThresholdSamples` is refused.
        on_error: ``"train_on_all"`` turns a failure while scoring into a warning and training on all rows.
        options: ``by``, ``method``, ``offset``, ``class_balanced``, ``min_per_class``, ``unscored`` and ``threshold``
            of :func:`prunesampler.select`.

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
    plain = cast(Any, loader_inside(loader, row_fn=row_fn is not None))
    check_choice("on_error", on_error, ("raise", "train_on_all"))
    be_heard()
    check_bool("resume", resume)
    if audit == "aum":
        _check_threshold_samples(plain, keep)
        scores = ("margin",) if scores is None else scores
    else:
        check_bool("audit", audit)
    if save_every is not None:
        check_int("save_every", save_every, 1)
    functions = {
        "row_fn": row_fn,
        "input_fn": input_fn,
        "logits_fn": logits_fn,
        "target_fn": target_fn,
        "score_fn": score_fn,
    }
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise ArgumentError(name, "must be a function, or None", function)
    fingerprint = optional_text("fingerprint", fingerprint)
    if scores is not None and (scores or not callable(policy)):
        scores = score_names(scores, own=score_fn is not None)
    if model is not None and not isinstance(model, nn.Module):
        raise ArgumentError("model", "must be a torch.nn.Module or None", model)
    if model is not None:
        check_hookable(model)
    chosen = policy_of(
        policy,
        selection,
        keep=keep,
        score_epochs=score_epochs,
        epoch_length=epoch_length,
        seed=seed,
        scores=scores,
        options=options,
    )
    told = None if row_fn is None else RowFunction(row_fn, plain, keys=keys)
    stream = row_stream(plain)
    earlier = earlier_runs(plain, model)
    with samplers_as_found(earlier):
        swap: Any = swap_of(plain, chosen, seed, None if told is None else told.num_rows)
    if loader is not plain and "iteration" in vars(loader):
        swap.count_by(loader)
    proxy, recording = chosen.batch_filter(), chosen.recording()
    if proxy is not None and (stream is not None or swap.split.processes > 1):
        raise UnsupportedError(
            f"{type(chosen).__name__} needs batches of another size, which "
            + ("a shard pipeline makes itself" if stream is not None else "Accelerate splits over its processes")
            + ": use a map-style dataset (prunesampler.shards.IndexedShards), with PrunedSampler or DistributedSampler "
            "over several ranks"
        )
    if swap.rows_per_pass < 1:
        raise ArgumentError("loader", "must hand out at least one batch", plain)
    ids = None
    binder = Binder(inputs_changed=inputs_changed, forwards=forwards)
    if keys is not None:
        ids, keys = keys, identities("keys", ordered_ids(keys), swap.num_rows)
    config = _config(chosen, seed, scores, reduction, rescore, score_fn, epoch_length)
    if not audit and config.selection is not None and config.selection.keep == "clean":
        raise ArgumentError(
            "audit", 'must be True with keep="clean", which reads what the model says of each class', audit
        )
    if chosen.every_epoch and epoch_length == "full" and (proxy is not None or stream is not None):
        what = "a shard pipeline" if proxy is None else type(chosen).__name__
        raise ArgumentError("epoch_length", f'must be "kept" with {what}', epoch_length)
    by_user = fingerprint
    source = getattr(plain, "dataset", plain) if stream is None else stream
    if fingerprint is None and stream is not None:
        fingerprint = stream.fingerprint
    elif fingerprint is None:
        fingerprint = fingerprint_of(source, keys=keys if isinstance(source, IterableDataset) else None)
    if coreset is not None and isinstance(swap, FixedOrder):
        rule = f"must be None: the order of this {type(plain).__name__} cannot be exchanged"
        raise ArgumentError("coreset", rule, coreset)
    given = _given(coreset, swap, fingerprint)
    key = RunKey.of(
        source,
        by_user or (contents_of(source) if stream is None else stream.fingerprint),
        swap,
        {
            **config.to_dict(),
            **functions,
            **{"inputs_changed": inputs_changed, "forwards": forwards, "on_error": on_error},
            "save_dir": os.path.abspath(save_dir) if isinstance(save_dir, (str, os.PathLike)) else save_dir,
            "save_every": save_every,
            "audit": audit,
            "keys": None if ids is None else fingerprint_of(keys=keys),
            "coreset": None if given is None else given.digest,
        },
    )
    for run in earlier:
        if run.is_of(key, model):
            if not resume and given is None:  # else it is what was asked for
                tell_of_continuation(run, stacklevel=2)
            take_over([other for other in earlier if other is not run], key, stacklevel=2)
            if not run.followed.are(plain, model):
                attachment = run.go_on_with(plain, model, swap)
                become_attached(loader, plain, attachment, Pruning(run, fingerprint=fingerprint))
            return cast("AttachedLoader[T]", loader)
    if config.selection is not None:
        config.selection.check_features(swap.num_rows)
        config.selection.warn(swap.num_eligible, stacklevel=2)
    elif not config.scores_only:
        config.policy.num_draws(swap.num_eligible, 0)  # more than there are is refused now
    if rescore is not None:
        check_rescore(rescore, swap, model, row_fn=told is not None)
    pruned = PrunedPhase(config, swap, model, fingerprint=fingerprint)
    if coreset is None:
        pruned.check_batches(pruned.batches(config.score_epochs))
    _check_order(swap, config)
    group = Group.create()
    if recording is not None and save_dir is None:
        rule = f"must be given with {type(chosen).__name__}, which writes schedule.parquet there"
        raise ArgumentError("save_dir", rule, save_dir)
    if recording is not None and group.world_size > 1:
        raise UnsupportedError(
            f"{type(chosen).__name__} records the batches of one process, and there are {group.world_size}: train the "
            "model that records in one process; any number of ranks may replay it with Scheduled"
        )
    tracker = None
    online = config.scores if rescore is None else tuple(name for name in config.scores if name == "forgetting")
    if online or (score_fn is not None and scores is None and rescore is None and config.score_epochs):
        tracker = ScoreTracker(
            swap.num_rows,
            scores=online or None,
            reduction=config.reduction,
            device=device,
            score_fn=score_fn,
            group=group,
            forgetting_window=chosen.forgetting_window,
            audit=bool(audit),
        )
    finder = Finder(logits_fn, target_fn, own_scores=score_fn is not None)
    check_ranks_agree(group, config, swap, fingerprint=fingerprint, coreset=given)
    if save_dir is not None and (given is not None or (tracker is None and rescore is None)):
        reason = "where coreset= is given" if given is not None else f"with {brief(config.policy)}"
        raise ArgumentError("save_dir", f"must be None {reason}: nothing is scored", save_dir)
    if save_every is not None and (save_dir is None or not config.tracks_throughout):
        what = "save_dir=" if save_dir is None else "a policy that reads scores before every epoch"
        raise ArgumentError("save_every", f"must be None without {what}", save_every)
    take_over(earlier, key, stacklevel=2)
    if stream is not None and earlier:
        swap = swap_of(plain, chosen, seed, None)
    folder = RunFolder(
        save_dir,
        resume=resume,
        num_rows=swap.num_rows,
        fingerprint=fingerprint,
        group=group,
        overwrite=check_bool("overwrite", overwrite),
    )

    model_ref = weakly(model)  # it carries the run, which is not to keep it

    def rescored(tracked: ScoreTable | None) -> ScoreTable:
        table = score(
            cast(nn.Module, model_ref()),
            cast(Any, rescore),
            scores=None if scores is None and score_fn is not None else [s for s in config.scores if s != "forgetting"],
            row_fn=row_fn,
            num_rows=swap.num_rows,
            input_fn=input_fn,
            logits_fn=logits_fn or finder.settled,
            target_fn=target_fn,
            score_fn=score_fn,
            keys=ids,
            fingerprint=fingerprint,
            all_rows=True,
        )
        counts = {} if tracked is None else {name: getattr(tracked, name) for name in _COUNTS}
        return table.replace(provenance={"scoring": config.scoring()}, **counts)

    phases = Phases(
        config,
        swap,
        scoring=ScoringPhase(
            config,
            swap.progress(config.score_epochs),
            tracker=tracker,
            rescore=None if rescore is None else rescored,
            group=group,
            seen=Seen(group, swap, tracked=tracker is not None),
            keys=keys if keys is not None or told is not None else sample_paths(source),
            fingerprint=fingerprint,
            classes=class_names(source),
            finder=finder,
        ),
        pruned=pruned,
        folder=folder,
        group=group,
        proxy=proxy,
        recording=recording,
        save_every=save_every,
    )
    is_checked = config.rescored and model is not None and input_fn is None
    check = RescoreInputs(cast(nn.Module, model), finder) if is_checked else None
    reader = BatchReader(phases, finder, row_fn=told, input_fn=input_fn, rescore_inputs=check)
    run = Run(phases, reader, binder, key=key, train_on_all=on_error == "train_on_all")
    pruning = Pruning(run, fingerprint=fingerprint)
    become_attached(loader, plain, run.tie(plain, model), pruning)
    try:
        run.begin(given)
        if phases.now == "scoring":
            batches = pruned.batches(config.score_epochs)
            _warn_of_length(swap.batches(), batches, every_epoch=config.policy.every_epoch)
    except BaseException:
        pruning.detach()
        raise
    return cast("AttachedLoader[T]", loader)


def _check_threshold_samples(loader: Any, keep: Any) -> None:
    """Whether this is a run of the published AUM procedure: samples of a class that does not exist, and all rows."""
    dataset: Any = getattr(loader, "dataset", None)
    cure = "prunesampler.ThresholdSamples(dataset, num_classes)"
    while not isinstance(dataset, ThresholdSamples) and hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    if not isinstance(dataset, ThresholdSamples):
        rule = f'"aum" wants a loader over {cure}, and a model of one output more'
        raise ArgumentError("audit", rule, type(getattr(loader, "dataset", None)).__name__)
    if keep is not None:
        raise ArgumentError("keep", 'must be None with audit="aum", which compares margins of all rows', keep)


def _config(
    policy: Policy,
    seed: int,
    scores: Sequence[str] | None,
    reduction: Any,
    rescore: Any,
    score_fn: Any,
    epoch_length: Literal["kept", "full"],
) -> RunConfig:
    if scores is None and score_fn is None:
        scores = policy.reads if policy.every_epoch else ("el2n",) if rescore is not None else ("el2n", "forgetting")
    if reduction is None:
        reduction = policy.reduction if policy.reads else "mean"
    own, length = score_fn is not None, check_choice("epoch_length", epoch_length, ("kept", "full"))
    return RunConfig(policy, tuple(scores or ()), reduction, rescore is not None, seed, own, length)


def _check_order(swap: Any, config: RunConfig) -> None:
    """Make the sampler of a coreset once, so that what it refuses is refused now."""
    first = 0 if swap.eligible is None else int(swap.eligible[0])
    coreset = Coreset([first], num_rows=swap.num_rows)
    swap.sampler(coreset, seed=config.seed, epoch_length=config.epoch_length)


def _given(coreset: Coreset | str | os.PathLike[str] | None, swap: Any, fingerprint: str | None) -> Coreset | None:
    if coreset is None:
        return None
    if not isinstance(coreset, Coreset | str | os.PathLike):
        raise ArgumentError("coreset", "must be a Coreset, or the path of one", coreset)
    if not isinstance(coreset, Coreset):
        return Coreset.load(coreset, fingerprint, swap.num_rows)
    check_same_dataset("coreset", (coreset.num_rows, coreset.fingerprint), (swap.num_rows, fingerprint))
    return coreset


def _warn_of_length(now: int | None, later: int | None, *, every_epoch: bool) -> None:
    if now == later:
        return
    if later is not None:
        then, cure = f"be {later} once pruned", "give schedules that count steps loader.pruning.total_steps(epochs)"
    else:
        what = "then be what the policy draws" if every_epoch else 'be what keep="auto" or "clean" leaves once pruned'
        then, cure = f"{what}, which nobody knows yet", "let schedules count epochs"
    cure += "" if every_epoch else ', or keep the length with epoch_length="full"'
    warnings.warn(f"len(loader) is {now} and will {then}: {cure}", PruneSamplerWarning, stacklevel=3)
