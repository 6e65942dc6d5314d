"""Which logits belong to which rows.

A loop may fetch ahead, skip batches, run the model twice on one batch or on something else. So every batch that the
loader hands out leaves a :class:`Token` in a queue, and a training forward takes the token of its own batch, which is
recognised by its inputs, never by which batch was fetched last: by their identity, or by some of their values, and
where these are alike in several batches, by all of them.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from prunesampler.capture.forward_hook import tensor_leaves
from prunesampler.capture.input_match import Input, Pair, Probe, likeness, same_values, sample
from prunesampler.errors import ArgumentError, BindingError, check_choice

_LEAVES = 4  # inputs whose values are kept of each batch
_HELD = 4  # newest waiting batches whose inputs are held whole
_VERIFIED = 8  # first batches whose inputs are compared whole, at the price of a host synchronisation
_HISTORY = 4  # bound batches whose forward may come again: SAM, accumulation with recomputation
_UNBOUND = 64  # training batches without a training forward that are an error
_READ_AHEAD = 4096  # the same where another thread than the training loop's fetches them

_OBSERVE = (
    "attach(loader, None, ...), and after each forward call loader.pruning.observe(logits, inputs) with the inputs as "
    "the loader gave them"
)
_PART = (
    "where the model is given more than the batch at once (FixMatch), attach(loader, None, ...), and after each "
    "forward call loader.pruning.observe(logits, inputs) with the batch's inputs and their part of the logits"
)


@dataclass(eq=False)
class Pass:
    """One pass over the loader, from ``iter`` to its end or to where the loop leaves it.

    ``position`` is (epoch, global position) where a pruned order stood when the pass began; ``skipped`` batches came
    before its first one. A ``paused`` one is not followed.
    """

    number: int
    skipped: int = 0
    position: tuple[int, int] | None = None
    paused: bool = False
    fetched: int = 0
    bound: int = 0
    trained: int = 0  # batches up to and including the last bound one
    exhausted: bool = False
    released: bool = False
    closed: bool = False
    counted: bool = False  # by the batches handed out, as nobody follows the forwards

    @property
    def was_trained(self) -> bool:
        """Whether the loop trained in it; of a counted pass, whether it had more than the one batch of a peek."""
        return self.bound > (1 if self.counted and not self.exhausted else 0)

    def starts_at(self, position: tuple[int, int]) -> None:
        """The pass begins at this (epoch, global position) of a pruned order."""
        self.position = position

    def exhaust(self) -> None:
        """The loader has no more batches."""
        self.exhausted = True

    def release(self) -> None:
        """Nobody holds its iterator any more."""
        self.released = True

    def count(self, ahead: int, in_training: bool) -> None:
        """A batch is handed out whose forward nobody follows; so many are before they are trained on."""
        self.counted = True
        self.bound += in_training
        self.fetched += 1
        self.trained = max(self.trained, self.fetched - ahead)

    def count_all(self) -> None:
        """The last of such batches was handed out."""
        self.trained = self.fetched
        self.closed = True

    def close(self) -> None:
        """The epoch that the pass belongs to is over."""
        self.closed = True


@dataclass(eq=False)
class Token:
    """What is kept of a batch until its logits come: its rows (int64, CPU), its targets, some of its values.

    ``inputs`` are all its tensors but the targets, held while it is one of the newest.
    """

    rows: Tensor
    targets: Any
    of: Pass
    index: int
    in_training: bool
    drawn: int | None = None  # rows before a collate function left some out, or repeated them; None for as many
    probes: list[Probe] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)

    def hold(self, batch: Any) -> None:
        """Keep what the batch can be recognised by."""
        self.inputs = _comparable(leaf for leaf in tensor_leaves(batch) if leaf is not self.targets)
        self.probes = [Probe(leaf) for leaf in self.inputs[:_LEAVES]]

    def release(self) -> None:
        """Hold the inputs no longer: all of one can be compared only while others hold it."""
        self.inputs = []

    def is_of(self, leaves: list[Tensor]) -> bool:
        """Whether these are the very tensors of the batch, unchanged."""
        return all(any(probe.input.is_still(leaf) for probe in self.probes) or leaf is self.targets for leaf in leaves)

    def changed(self, pairs: list[Pair], leaves: list[Tensor]) -> bool:
        """Whether an input that is in none of the pairs seems to have been changed on its way to the model."""
        theirs, mine = {i for i, _ in pairs}, {j for _, j in pairs}
        loose = [leaf.numel() for i, leaf in enumerate(leaves) if i not in theirs and leaf.is_floating_point()]
        return bool(loose) and any(
            probe.input.numel in loose and not probe.constant for j, probe in enumerate(self.probes) if j not in mine
        )

    def more_in(self, leaves: list[Tensor]) -> int:
        """How many of its inputs are among these, of those whose values are not kept apart."""
        return sum(any(same_values(mine, leaf) for leaf in leaves) for mine in self.inputs[_LEAVES:])

    def targets_in(self, leaves: list[Tensor]) -> bool:
        """Whether its targets are among these, as they are for models that compute their loss."""
        return isinstance(self.targets, Tensor) and any(same_values(self.targets, leaf) for leaf in leaves)

    def covers(self, pairs: list[Pair], leaves: list[Tensor]) -> bool:
        """Whether all that a forward was given is in one of the pairs, or is the targets."""
        paired = {i for i, _ in pairs}
        return all(i in paired or self.targets_in([leaf]) for i, leaf in enumerate(leaves))

    def has_targets_of(self, other: Token) -> bool:
        """Whether both have the same targets."""
        mine, theirs = list(tensor_leaves(self.targets)), list(tensor_leaves(other.targets))
        return len(mine) == len(theirs) > 0 and all(map(same_values, mine, theirs))

    def skip(self, batches: int) -> None:
        """So many batches of the pass came before this one: its loader resumes inside an epoch."""
        self.index += batches
        self.of.fetched += batches
        self.of.trained += batches

    def check_counts(self, logits: Tensor) -> None:
        """Refuse another number of logits or targets than of rows."""
        check_counts(self.rows, logits, self.targets)


def check_counts(rows: Tensor, logits: Tensor, targets: Any) -> None:
    """Refuse another number of logits or targets than of rows."""
    counts = {"rows": len(rows), "logits": len(logits) if logits.dim() else 0}
    if isinstance(targets, Tensor) and targets.dim():
        counts["targets"] = len(targets)
    if len(set(counts.values())) == 1:
        return
    found = ", ".join(f"{count} {name}" for name, count in counts.items())
    if counts["rows"] == counts["logits"]:
        cure = "what is taken for targets is something else, so give target_fn=, a function from the batch to them"
    elif counts["logits"] == counts.get("targets"):
        cure = (
            "the collate function drops or repeats samples, so give row_fn=, a function from the batch to its rows "
            "(of a dataset that returns its index), or a collate function that keeps each sample once"
        )
    else:
        cure = (
            "the loop splits or mixes batches, or takes several crops of a sample, so score in a separate pass with "
            f"attach(..., rescore=plain_loader); or {_PART}"
        )
    raise BindingError(f"one batch has {found}, so logits cannot be attributed to rows: {cure}")


class Binder:
    """A queue of tokens, and the rule by which a forward takes one.

    With ``inputs_changed="augmented"`` values cannot be compared. With ``forwards="matching"`` a training forward on
    anything but a batch of the loader is ignored; each is then compared, which makes a GPU wait once a step.

    Attributes:
        repeated: the token of an earlier forward on the same batch, where the latest was such a second one.
    """

    def __init__(
        self, *, inputs_changed: Literal["augmented"] | None = None, forwards: Literal["all", "matching"] = "all"
    ) -> None:
        self._augmented = check_choice("inputs_changed", inputs_changed, (None, "augmented")) is not None
        self._matching = check_choice("forwards", forwards, ("all", "matching")) == "matching"
        if self._matching and self._augmented:
            rule = "must be 'all' with inputs_changed=, which keeps inputs from being compared"
            raise ArgumentError("forwards", rule, forwards)
        self._queue: deque[Token] = deque()
        self._passes = 0
        self._newest_bound = -1
        self._verified = 0
        self._unbound = 0
        self._skips = 0
        self._depth = 1  # batches from the one bound to the newest one fetched, itself included
        self._history: deque[tuple[Token, list[Input]]] = deque(maxlen=_HISTORY)
        self._pair: tuple[int, int] | None = None  # which input of the forward was which input of the batch
        self._suspects: Tensor | None = None
        self._following = True
        self.repeated: Token | None = None
        self._thread = threading.get_ident()  # that trains, as far as is known

    def follow(self, following: bool) -> None:
        """Whether scores or weights depend on the binding, or only the count of trained batches."""
        self._following = following

    @property
    def ahead(self) -> int:
        """Batches that the loop or its framework fetches before it trains on the first of them, that one aside."""
        return self._depth - 1

    def start(self, skipped: int = 0, paused: bool = False) -> Pass:
        """A pass begins, after so many skipped batches."""
        self._passes += 1
        return Pass(self._passes, skipped, paused=paused, fetched=skipped, trained=skipped)

    @property
    def reads_ahead(self) -> bool:
        """Whether this thread is another one than that of the training loop."""
        return threading.get_ident() != self._thread

    def fetched(
        self, of: Pass, rows: Tensor, batch: Any, targets: Any, in_training: bool, drawn: int | None = None
    ) -> None:
        """The loader hands out ``batch``, for which so many rows were drawn.

        BindingError: passes are interleaved, or the model is never seen.
        """
        if of.number < self._newest_bound:
            raise BindingError(
                "two training passes over one loader are interleaved: a batch of the older pass came after the newer "
                "one had been trained on; use one loader for each, or loader.pruning.paused() around the inner pass"
            )
        while self._queue and self._queue[-1].of.number > of.number:
            self._queue.pop()  # of an evaluation inside this pass: no training forward followed
        token = Token(rows, targets, of, of.fetched, in_training, drawn)
        of.fetched += 1
        if self._following and not self._augmented:
            token.hold(batch)
        self._queue.append(token)
        if len(self._queue) > _HELD:
            self._queue[-_HELD - 1].release()
        self._unbound += in_training
        self.check_called()
        while len(self._queue) > (_READ_AHEAD if self.reads_ahead else _UNBOUND):
            self._queue.popleft()

    def check_called(self) -> None:
        """Raises a BindingError if many training batches were fetched, and since then not one was bound."""
        if self._following and self._unbound > (_READ_AHEAD if self.reads_ahead else _UNBOUND):
            raise BindingError(
                f"{_UNBOUND} training batches were fetched and no training forward of the model was seen: is it the "
                "module that your loop calls (the DDP or compiled wrapper), called as model(x), not model.forward(x), "
                f"and outside a captured or fullgraph-compiled step? Otherwise {_OBSERVE}"
            )

    def match(self, inputs: Any) -> Token | None:
        """Take the token of a training forward's batch off the queue.

        None for a second forward on the batch bound last (SAM, recomputation), or one before any batch was fetched.
        """
        leaves = _comparable(tensor_leaves(inputs))
        self.repeated = self._repeated(leaves) if self._passes else None
        if not self._passes or self.repeated is not None:
            return None
        index = self._find(leaves) if self._following else self._by_depth()
        return None if index is None else self._take(index, leaves)

    def take_waiting(self) -> Token:
        """Take the only waiting token, for logits given by hand. BindingError: none waits, or several do."""
        waiting = self._in_training
        index = (waiting[0] if len(waiting) == 1 else None) if self._following else self._by_depth()
        if waiting and index is None:
            raise BindingError(
                f"{len(waiting)} batches wait for their logits, and which of them these belong to is not known: call "
                "observe(logits, inputs) with the inputs as the loader gave them"
            )
        if index is None:
            raise BindingError(
                "observe(logits) found no batch that waits for logits: call it once per batch; where the forward of "
                "the attached model was seen it is not needed, or attach(loader, None, ...)"
            )
        return self._take(index, [])

    def expect_skips(self, batches: int) -> None:
        """The loop resumes, and may skip so many batches before it trains again."""
        self._skips, self._unbound = batches, -batches

    def check(self) -> None:
        """Raises a BindingError if a comparison that was left on the device, to not wait for it, has failed."""
        suspects, self._suspects = self._suspects, None
        if suspects is not None and int(suspects):
            raise BindingError(
                f"the inputs of {int(suspects)} training forwards of this epoch were not the expected batches (used "
                f"out of order, or changed on the way): {_OBSERVE}, or score in a separate pass with "
                "rescore=plain_loader"
            )

    def check_seen(self) -> None:
        """Raises a BindingError if training batches were fetched, and not one was bound."""
        if self._following and self._unbound > 0 and self._newest_bound < 0:
            raise BindingError(f"a whole epoch ended and no training forward of the model was seen: {_OBSERVE}")

    def waiting(self, of: Pass, *, in_training: bool = False) -> bool:
        """Whether batches of the pass, or such fetched in training alone, still wait for their logits."""
        return any(token.of is of and (token.in_training or not in_training) for token in self._queue)

    def clear(self) -> None:
        """Forget every waiting batch."""
        self._queue.clear()

    def _repeated(self, leaves: list[Tensor]) -> Token | None:
        for token, inputs in self._history:
            if len(inputs) == len(leaves[:_LEAVES]) > 0 and all(map(Input.is_still, inputs, leaves)):
                return token
        return None

    def _by_depth(self) -> int | None:
        if not self._queue:
            return None
        if not self._history:
            self._depth = max(1, self._queue[-1].of.fetched - self._skips)
        return max(0, len(self._queue) - self._depth)

    def _find(self, leaves: list[Tensor]) -> int | None:
        if self._augmented:
            return self._only()
        given = leaves[:_LEAVES]
        index = self._identical(given)
        if index is None:
            settled = self._verified >= _VERIFIED and self._in_step
            if settled and not self._matching and any(leaf.device.type != "cpu" for leaf in given):
                self._suspect(given)
                return 0
            index = self._alike(leaves)
        if index is None:
            self._check_unknown(given)
            return None
        if not self._queue[index].of.exhausted:
            self._depth = len(self._queue) - index
        return index

    @property
    def _in_step(self) -> bool:
        """Whether as many batches wait as the loop looks ahead, so that none was skipped."""
        return len(self._queue) == self._depth and not self._queue[0].of.exhausted

    def _identical(self, leaves: list[Tensor]) -> int | None:
        """The one waiting batch whose very tensors these are."""
        found = [index for index, token in enumerate(self._queue) if leaves and token.probes and token.is_of(leaves)]
        # Tensors that the batch before held too are of every batch.
        known = len(found) == 1 and not (self._history and self._history[0][0].is_of(leaves))
        return found[0] if known else None

    def _alike(self, leaves: list[Tensor]) -> int | None:
        """The one waiting batch that has the values of these."""
        given = leaves[:_LEAVES]
        samples = [sample(leaf) for leaf in given]
        found: dict[int, list[Pair]] = {}
        sure = self._verified >= _VERIFIED
        for index, token in enumerate(self._queue):
            telling, constant = likeness(token.probes, given, samples)
            if telling or (constant and token.covers(constant, given)):
                found[index] = telling or constant
                sure = sure and bool(telling)
        found = _most(found, {index: len(pairs) for index, pairs in found.items()})
        if len(found) > 1 or not sure or self._is_in_history(given, samples):
            found = self._compare_whole(found, leaves)
        if not found:
            return None
        index = self._in_order(list(found)) if len(found) > 1 else next(iter(found))
        token = self._queue[index]
        if token.changed(found[index], given):
            return None
        self._pair = max(found[index], key=lambda pair: given[pair[0]].numel())
        self._verified += 1
        return index

    def _compare_whole(self, found: dict[int, list[Pair]], leaves: list[Tensor]) -> dict[int, list[Pair]]:
        """Of batches alike in some values those that are most alike in all, where these are still at hand."""
        sure: dict[int, int] = {}
        kept: dict[int, list[Pair]] = {}
        for index, pairs in found.items():
            token = self._queue[index]
            equal = {(i, j): token.probes[j].equals_whole(leaves[i]) for i, j in pairs}
            kept[index] = [pair for pair in pairs if equal[pair] is not False]
            if kept[index]:
                sure[index] = sum(equal[pair] is True for pair in pairs)
        most = _most(kept, sure)
        for others_in in (Token.more_in, Token.targets_in):
            if len(most) > 1:
                most = _most(most, {index: others_in(self._queue[index], leaves) for index in most})
        return most

    def _in_order(self, alike: list[int]) -> int:
        """Which of several waiting batches that cannot be told apart is trained on, where something else says so."""
        tokens = [self._queue[index] for index in alike]
        newest = max(token.of.number for token in tokens)
        for index, token in zip(alike, tokens, strict=True):
            if newest > token.of.number == self._newest_bound and token.index == token.of.trained:
                return index  # goes on in a pass that the loader has read ahead of
        # A pass that only peeked at a batch is over.
        alike = [index for index, token in zip(alike, tokens, strict=True) if token.of.number == newest]
        if len(alike) == 1:
            return alike[0]
        first = self._queue[alike[0]]
        if (
            self._history
            and self._in_step
            and alike[0] == 0
            and all(first.has_targets_of(self._queue[index]) for index in alike)
        ):
            return 0  # the same samples twice
        raise BindingError(
            f"{len(alike)} batches that wait for their logits have the same inputs, so it cannot be told which of them "
            "a training forward was given: train on every batch that is fetched, or score in a separate pass with "
            "attach(..., rescore=plain_loader)"
        )

    def _is_in_history(self, leaves: list[Tensor], samples: list[Tensor]) -> bool:
        for token, _ in self._history:
            telling, constant = likeness(token.probes, leaves, samples)
            if any(token.probes[j].equals_whole(leaves[i]) is not False for i, j in telling or constant):
                return True
        return False

    def _check_unknown(self, leaves: list[Tensor]) -> None:
        """Refuse a forward on something that waits for no logits, unless it may be ignored."""
        samples = [sample(leaf) for leaf in leaves]
        if self._matching or self._is_in_history(leaves, samples):
            return
        if not self._queue:
            raise BindingError(
                "a training forward came while no batch of the loader was waiting, on inputs that are not the last "
                'batch: if the model is also trained on other data, give attach(..., forwards="matching"); if an '
                "earlier attach() to this model is finished (a notebook cell run twice), detach() that loader.pruning; "
                "if the batch was fetched before another pass over the loader began, put loader.pruning.paused() "
                "around that pass"
            )
        raise BindingError(self._not_of_the_loader(leaves))

    def _not_of_the_loader(self, leaves: list[Tensor]) -> str:
        text = "a training forward was given inputs that are not a batch of the loader. "
        if not any(token.probes for token in self._queue):
            return text + (
                "No tensors were found in its batches to compare them with: give attach(..., "
                'inputs_changed="augmented")'
            )
        targets = [token.targets for token in self._queue if isinstance(token.targets, Tensor)]
        if any(target.numel() and same_values(target, leaf) for target in targets for leaf in leaves):
            return text + (
                "They are what is taken for the targets: give target_fn=, a function from the batch to its labels"
            )
        ahead = len(self._in_training) > 1
        changed = _OBSERVE if ahead else 'give attach(..., inputs_changed="augmented")'
        return text + (
            "If they were changed on the way and labels still hold (normalisation, augmentation on the GPU), "
            f"{changed}. With mixup, CutMix or micro-batches score in a separate pass with attach(..., "
            'rescore=plain_loader). If the model is also trained on other data, give attach(..., forwards="matching"); '
            f"{_PART}"
        )

    @property
    def _in_training(self) -> list[int]:
        """The batches that wait, in the queue; without those of evaluations where there are others."""
        return [i for i, token in enumerate(self._queue) if token.in_training] or list(range(len(self._queue)))

    def _only(self) -> int | None:
        waiting = self._in_training
        if len(waiting) == 1:
            return waiting[0]
        if not waiting:
            raise BindingError(
                "a training forward came while no batch of the loader was waiting: with inputs_changed= each batch "
                f"may have one training forward; leave inputs_changed= out, {_OBSERVE}, or give rescore=plain_loader"
            )
        raise BindingError(
            f"{len(waiting)} batches wait for their logits, and with inputs_changed= it cannot be told which of them "
            f"this forward belongs to (a skipped batch, or a framework that looks ahead): leave it out, {_OBSERVE}, or "
            "give rescore=plain_loader"
        )

    def _suspect(self, leaves: list[Tensor]) -> None:
        probes, (i, j) = self._queue[0].probes, self._pair or (0, 0)
        if i < len(leaves) and j < len(probes) and leaves[i].numel() == probes[j].input.numel:
            if leaves[i].device != probes[j].device:  # looking at those of a host costs no waiting
                probes[j].sharpen()
            differs = probes[j].differs(leaves[i])
        else:
            differs = torch.ones((), dtype=torch.int32, device=leaves[0].device)
        self._suspects = differs if self._suspects is None else self._suspects + differs

    def _take(self, index: int, leaves: list[Tensor]) -> Token:
        for _ in range(index):
            self._queue.popleft()  # skipped by the loop
        token = self._queue.popleft()
        token.release()
        self._history.appendleft((token, [Input.of(leaf) for leaf in leaves[:_LEAVES]]))
        self._unbound = 0
        self._thread = threading.get_ident()
        self._newest_bound = token.of.number
        token.of.bound += 1
        token.of.trained = token.index + 1
        return token


def _comparable(leaves: Iterable[Tensor]) -> list[Tensor]:
    """Tensors whose elements can be looked at one by one: of a sparse or nested one, what it is made of."""
    found: list[Tensor] = []
    for leaf in leaves:
        if leaf.layout == torch.sparse_coo:
            found += leaf._indices(), leaf._values()
        elif leaf.layout != torch.strided:
            found.append(leaf.values())
        else:
            found.append(leaf)
    return [leaf for leaf in found if leaf.numel()]


def _most(found: dict[int, list[Pair]], counts: dict[int, int]) -> dict[int, list[Pair]]:
    """Those of the highest count; others have none."""
    highest = max(counts.values(), default=0)
    return {index: pairs for index, pairs in found.items() if counts.get(index) == highest}
