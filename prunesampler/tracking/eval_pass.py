"""Scoring a dataset in a pass of its own, with a model in eval mode."""

from __future__ import annotations

import functools
import inspect
import itertools
import math
import operator
import random
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, IterableDataset

from prunesampler.capture.binder import check_counts
from prunesampler.capture.find import Finder
from prunesampler.capture.forward_hook import to_device
from prunesampler.capture.last_layer import LastLayer
from prunesampler.capture.plausibility import all_in_unit_interval, check_no_probabilities, many_columns
from prunesampler.capture.row_function import RowFunction, ordered_ids
from prunesampler.capture.row_loader import rows_of
from prunesampler.capture.rows import RowSource, check_followed, row_stream
from prunesampler.errors import ArgumentError, PruneSamplerWarning, UnsupportedError, check_int
from prunesampler.sampling.eligible import eligible_rows
from prunesampler.scores.registry import SCORES, Score, compute
from prunesampler.tables.dataset_names import class_names, sample_paths
from prunesampler.tables.fingerprint import fingerprint as fingerprint_of
from prunesampler.tables.merge import merge
from prunesampler.tables.score_table import ScoreTable
from prunesampler.tracking.inputs import score_names, target_tensor, torch_device
from prunesampler.tracking.ranks import Group
from prunesampler.tracking.tracker import ScoreFunction, ScoreTracker

_OF_TRAINED = {"grand", "grand_last"}  # scores that mean nothing at initialisation


def score(
    model: nn.Module | Iterable[nn.Module],
    loader: DataLoader[Any] | RowSource,
    *,
    scores: Sequence[str] | None = None,
    device: torch.device | str | int | None = None,
    row_fn: Callable[[Any], Any] | None = None,
    input_fn: Callable[[Any], Any] | None = None,
    logits_fn: Callable[[Any], Tensor] | None = None,
    target_fn: Callable[[Any], Any] | None = None,
    score_fn: ScoreFunction | None = None,
    num_rows: int | None = None,
    memory: int | None = None,
    progress: bool = True,
    keys: Any = None,
    fingerprint: str | None = None,
    all_rows: bool = False,
) -> ScoreTable:
    """Score every row that ``loader`` hands out, in eval mode, in one pass.

    This is the protocol that EL2N was published with (Paul et al. 2021), given a loader **without augmentation**; its
    order, batch size and workers do not matter. Published scores are means over ten models: one model's are noisier.
    The model's mode, its batch-norm statistics and the global random generators do not change. With several ranks call
    it on one of them, with a loader over the whole dataset.

    Args:
        model: any module; the inner one of a DistributedDataParallel or of ``torch.compile`` is called. Of several
            modules, one after another, the table is what :func:`prunesampler.merge` makes of theirs: means.
        loader: a ``DataLoader`` over a map-style dataset, or a shard pipeline with rows. A row that comes several
            times gets its mean, one that does not come has no score; one that cannot come, as the sampler never
            draws it or the pipeline filters it, is not in the table.
        scores: registered names, by default EL2N. Of logits there are ``"el2n"``, ``"loss"``, ``"margin"``,
            ``"entropy"``; of the model ``"grand"``, ``"grand_last"``, ``"curvature"`` and
            ``"curvature_rademacher"``; and those of :func:`prunesampler.register_score`. With ``score_fn``, names
            that it must return.
        device: where batches go; by default the device of the model's parameters.
        row_fn: batch → (B,) its rows, ints, or str ids that ``keys`` has, where the batch says them itself; then any
            ``DataLoader`` or ``IterableDataset`` will do.
        input_fn: batch → what the model is called with: a tuple of arguments, a dict of keywords, or one argument.
            By default the first of a tuple, and of a dict the entries that ``forward`` names, without the targets.
        logits_fn: model output → (B, classes); by default a tensor, ``.logits``, ``["logits"]`` or the first of a
            tuple.
        target_fn: batch → (B,); by default the second of a tuple, or ``labels`` and the like in a dict.
        score_fn: (logits, targets) → columns, (B,) each: for soft or multi-dimensional targets.
        num_rows: size of the dataset; by default the length of the loader's.
        memory: bytes that scores of the model may take for activations and gradients, beside the model and a batch;
            by default half of what is free on a GPU, and 1 GiB on a CPU.
        progress: show a progress bar on stderr.
        keys: one str or int per row, kept in the table to carry scores to a dataset that has grown or moved; or a
            mapping {id: row}, from the ids that ``row_fn`` returns.
        fingerprint: what the dataset is recognised by; by default ours.
        all_rows: have rows that cannot come in the table too, without scores.

    Returns:
        A table with protocol ``"rescored"``, the labels, and NaN for rows without a finite score.

    Raises:
        ArgumentError: an argument breaks its rule, or a target is not a class.
        UnsupportedError: rows, inputs, logits or targets cannot be found, or not without doubt.
        BindingError: there are not as many logits or targets as rows.
        StateError: the loader handed nothing out, or two labels for one row.

    Warns:
        PruneSamplerWarning: a score is not finite; what is taken for logits has far more columns than there are
            classes; or GraNd is asked of a model that predicts no better than chance.

    >>> from torch.utils.data import TensorDataset
    >>> model = nn.Linear(2, 2, bias=False)
    >>> _ = model.weight.data.copy_(torch.eye(2))
    >>> dataset = TensorDataset(torch.tensor([[0.0, 0.0], [3.0, 0.0]]), torch.tensor([1, 0]))
    >>> table = score(model, DataLoader(dataset, batch_size=2), scores=["el2n", "grand"], progress=False)
    >>> table.scores["el2n"].round(3), table.scores["grand"].round(3)
    (array([0.707, 0.067], dtype=float32), array([0.   , 0.201], dtype=float32))
    """
    models = [model] if isinstance(model, nn.Module) else model
    if not isinstance(models, Iterable):
        raise ArgumentError("model", "must be a torch.nn.Module, or several", model)
    if scores is None and score_fn is None:
        scores = ("el2n",)
    others = {}
    names = () if scores is None else score_names(scores, own=score_fn is not None)
    for name in names:
        if name == "forgetting" or (score_fn is None and SCORES[name].over_epochs):
            raise ArgumentError("scores", f"must not name {name}, which takes more than one pass", scores)
    if score_fn is None:
        others = {name: SCORES[name] for name in names if SCORES[name].needs != "logits"}
        scores = [name for name in names if name not in others] or None
    if memory is not None:
        check_int("memory", memory, 1)
    passes = functools.partial(
        EvalPass,
        loader=loader,
        device=device,
        row_fn=row_fn,
        input_fn=input_fn,
        logits_fn=logits_fn,
        target_fn=target_fn,
        num_rows=num_rows,
        progress=progress,
        keys=keys,
        fingerprint=fingerprint,
        own_scores=score_fn is not None,
    )
    tables = [
        _table(passes(each), scores=scores, others=others, score_fn=score_fn, memory=memory, keys=keys)
        for each in models
    ]
    if not tables:
        raise ArgumentError("model", "must be a torch.nn.Module, or several", models)
    table = tables[0] if len(tables) == 1 else merge(tables)
    if all_rows:
        return table
    if isinstance(getattr(loader, "dataset", loader), IterableDataset) or row_stream(loader) is not None:
        return table if table.presentations is None else table.only(np.flatnonzero(table.presentations > 0))
    sampler = getattr(getattr(loader, "batch_sampler", None), "sampler", None)
    eligible = eligible_rows(sampler, table.num_rows)
    return table if eligible is None else table.only(eligible)


class EvalPass:
    """A model in eval mode over the batches of a loader: rows, targets, inputs and output of each, one after another.

    Args are those of :func:`score`. While the batches come, gradients are off; afterwards model, loader and random
    generators are as before.

    Attributes:
        num_rows: size of the dataset.
        fingerprint: what the dataset is recognised by, or None.
        finder: finds logits and targets.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: Any,
        *,
        device: Any = None,
        row_fn: Callable[[Any], Any] | None = None,
        input_fn: Callable[[Any], Any] | None = None,
        logits_fn: Callable[[Any], Tensor] | None = None,
        target_fn: Callable[[Any], Any] | None = None,
        num_rows: int | None = None,
        progress: bool = True,
        keys: Any = None,
        fingerprint: str | None = None,
        own_scores: bool = False,
        title: str = "scoring",
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ArgumentError("model", "must be a torch.nn.Module", model)
        for name, function in (("input_fn", input_fn), ("logits_fn", logits_fn), ("target_fn", target_fn)):
            if function is not None and not callable(function):
                raise ArgumentError(name, "must be a function, or None", function)
        if isinstance(model, DistributedDataParallel):
            model = model.module  # its own forward would talk to ranks that may not be here
        self.model: nn.Module = getattr(model, "_orig_mod", model)  # compiled, it has no layers to look into
        if not isinstance(loader, RowSource):
            check_followed(loader, row_fn=row_fn is not None)
        self._told = None if row_fn is None else RowFunction(row_fn, loader, num_rows=num_rows, keys=keys)
        stream = row_stream(loader)
        dataset = None if stream is not None else getattr(loader, "dataset", None)
        if stream is not None:
            num_rows, fingerprint = num_rows or stream.num_rows, fingerprint or stream.fingerprint
        if num_rows is None and self._told is not None:
            num_rows = self._told.num_rows
        self.num_rows: int = _length(dataset) if num_rows is None else num_rows
        self.fingerprint = fingerprint_of(dataset) if fingerprint is None and dataset is not None else fingerprint
        self.dataset: Any = dataset
        self.paths = sample_paths(dataset) if self._told is None and dataset is not None else None
        self.finder = Finder(logits_fn, target_fn, own_scores=own_scores)
        self._loader, self._input_fn, self._progress, self._title = loader, input_fn, progress, title
        tensor = next(itertools.chain(self.model.parameters(), self.model.buffers()), torch.empty(0, device="cpu"))
        self.device: torch.device = tensor.device if device is None else torch_device(device)

    def __iter__(self) -> Iterator[Any]:
        for rows, batch in self.batches():
            targets = self.finder.targets(batch, rows)
            inputs = self.inputs(batch, targets)
            yield rows, targets, inputs, called(self.model, inputs)

    def batches(self) -> Iterator[Any]:
        """Rows and batch, one after another, with the model in eval mode and without gradients."""
        with _as_before(self.model, self._loader), torch.no_grad():
            self.model.eval()
            yield from _shown(rows_of(self._loader, self._told), self._loader, self._progress, self._title)

    def inputs(self, batch: Any, targets: Any = None) -> Any:
        """What the model is called with."""
        found = model_inputs(self.model, batch, targets) if self._input_fn is None else self._input_fn(batch)
        return to_device(found, self.device)


def _table(
    batches: EvalPass,
    *,
    scores: Sequence[str] | None,
    others: Mapping[str, Score],
    score_fn: ScoreFunction | None,
    memory: int | None,
    keys: Any,
) -> ScoreTable:
    """One model's scores: ``scores`` of logits, or those of ``score_fn``, and ``others``."""
    model, place, finder = batches.model, batches.device, batches.finder
    logits_score = score_fn if scores or score_fn else lambda logits, targets: {}
    tracker = ScoreTracker(batches.num_rows, scores=scores, device=place, score_fn=logits_score, group=Group())
    head = LastLayer(model) if any(entry.needs == "last_layer" for entry in others.values()) else None
    columns, losses = 0, []
    with head or nullcontext():
        for rows, targets, inputs, output in batches:
            logits = finder.logits(output)
            if isinstance(logits, Tensor):
                check_counts(rows, logits, targets)
            # Class indices are looked at while they are on the CPU; a user's function wants its arguments together.
            tracker.update(rows, logits, targets if score_fn is None else to_device(targets, place))
            if score_fn is None and not columns:
                check_no_probabilities(logits)
                if finder.logits_fn is None and (doubt := all_in_unit_interval(logits)):
                    warnings.warn(doubt, PruneSamplerWarning, stacklevel=4)
                columns = logits.shape[-1]
            if not others:
                continue
            targets = to_device(target_tensor(targets), place).long()
            if not others.keys().isdisjoint(_OF_TRAINED):
                losses.append(compute(("loss",), logits, targets)["loss"])
            for name, entry in others.items():
                options: dict[str, Any] = {}
                given: tuple[Any, ...] = (inputs,)
                if entry.needs == "model":
                    given = (model, inputs)
                    options = {"logits_fn": finder.logits, "memory": memory} if entry.built_in else {}
                elif head is not None and entry.needs == "last_layer":
                    given = (*head.inputs(logits), logits)
                with torch.set_grad_enabled(entry.needs != "last_layer"):
                    tracker.record(rows, **{name: entry.values(name, *given, targets, **options)})
    tracker.end_epoch()
    names, ids = class_names(batches.dataset), ordered_ids(keys)
    provenance = {"classes": names} if names else None
    ids = batches.paths if keys is None else ids
    table = tracker.table(kind="rescored", keys=ids, fingerprint=batches.fingerprint, provenance=provenance)
    classes = 0 if table.labels is None else int(table.labels.max()) + 1
    if finder.logits_fn is None and classes and (doubt := many_columns(columns, classes)):
        warnings.warn(doubt, PruneSamplerWarning, stacklevel=3)
    # Without a relation between prediction and label, the mean loss is that of a uniform prediction or higher.
    if losses and torch.cat(losses).mean() > 0.95 * math.log(columns):
        warnings.warn(
            f"{' and '.join(sorted(_OF_TRAINED & others.keys()))} of a model that predicts no better than chance: at "
            "initialisation this selects no better than random rows (arXiv 2303.14753), so train some epochs first",
            PruneSamplerWarning,
            stacklevel=3,
        )
    return table


def _length(dataset: Any) -> int:
    try:
        return len(dataset)
    except TypeError:
        raise ArgumentError("num_rows", "must be given for a loader without a dataset of known length", None) from None


def _shown(batches: Iterator[Any], loader: Any, progress: bool, title: str) -> Iterator[Any]:
    if not progress:
        return batches
    from tqdm import tqdm  # here, so that importing the package stays light

    total = operator.length_hint(loader) or None if row_stream(loader) is None else None
    return iter(tqdm(batches, desc=title, total=total, unit="batch"))


def model_inputs(model: nn.Module, batch: Any, targets: Any) -> Any:
    """What a model is called with, found in a batch: a tuple of arguments, or a dict of keywords."""
    if isinstance(batch, Mapping):
        entries = {name: value for name, value in batch.items() if value is not targets}
        parameters = inspect.signature(model.forward).parameters
        named = {name: value for name, value in entries.items() if name in parameters}
        if named:
            return named
        if len(entries) == 1:
            return tuple(entries.values())
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            return entries
    elif isinstance(batch, (tuple, list)) and batch:
        return (batch[0],)
    elif isinstance(batch, Tensor):
        return (batch,)
    raise UnsupportedError(
        f"no inputs for {type(model).__name__} in a batch of type {type(batch).__name__}: expected the first of a "
        "tuple, or entries of a dict that forward() takes; give input_fn=, a function from the batch to the inputs"
    )


def called(model: nn.Module, inputs: Any) -> Any:
    """The output of a model for such inputs."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


@contextmanager
def _as_before(model: nn.Module, loader: Any) -> Iterator[None]:
    """Restore the training flags, the global generators and those of the loader."""
    training = {module: module.training for module in model.modules()}
    batch_sampler = getattr(loader, "batch_sampler", None)
    owners = (loader, getattr(loader, "sampler", None), batch_sampler, getattr(batch_sampler, "sampler", None))
    own = {g: g.get_state() for o in owners if isinstance(g := getattr(o, "generator", None), torch.Generator)}
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(gpus, device_type="cuda"):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        for generator, state in own.items():
            generator.set_state(state)
        # Through train(), for modules that do more than set the flag; then each flag, for those set one by one.
        model.train(training[model])
        for module, flag in training.items():
            module.training = flag
