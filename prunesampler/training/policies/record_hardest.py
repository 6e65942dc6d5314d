"""A run on all rows that writes down which of them were hard, for others to train on those alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from prunesampler.errors import check_number
from prunesampler.training.policies.policy import AllRows
from prunesampler.training.recording import Recording


@dataclass(frozen=True)
class RecordHardest(AllRows):
    """Train on all rows, and record of every batch those with the highest loss, in the order of training.

    For a small model, whose recorded epochs many runs of larger ones replay by :class:`Scheduled`: the filter of
    cifar10-airbench (2024), which :class:`ProxyFilter` is in one run. ``schedule.parquet`` in ``save_dir`` is written
    anew, atomically, at the end of each epoch: all epochs so far, in the columns ``epoch`` and ``row``.

    A state holds the epoch that it was saved in, and the file those before it: resume with the same ``save_dir`` and
    ``resume=True``, then load the state. In one process; any number of ranks may replay what it recorded.

    Args:
        keep: in (0, 1], the share of each batch of B rows that is recorded, round(keep * B) rows, at least one.

    Raises:
        ArgumentError: keep breaks its rule.

    >>> import tempfile, torch, prunesampler as ps
    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> x = torch.randn(8, 4)
    >>> loader, proxy = DataLoader(TensorDataset(x, x.argmax(1)), batch_size=4), torch.nn.Linear(4, 4)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     loader = ps.attach(loader, proxy, policy=RecordHardest(keep=0.75), save_dir=folder)
    ...     for inputs, targets in loader:
    ...         torch.nn.functional.cross_entropy(proxy(inputs), targets).backward()
    ...     ps.Scheduled(f"{folder}/schedule.parquet").num_draws(8, epoch=0)
    6
    """

    keep: float = 0.5
    reads: ClassVar[tuple[str, ...]] = ("loss",)  # type: ignore[misc]

    def __post_init__(self) -> None:
        check_number("keep", self.keep, 0, 1, above=True)

    def recording(self) -> Recording:
        """What records."""
        return Recording(self.keep)
