"""Dataset pruning as a data-loader plugin.

>>> import prunesampler as ps
>>> ps.select(ps.ScoreTable({"el2n": [0.1, 0.9, 0.5, 0.7]}), keep=2, method="bottom").rows
array([0, 2])
"""

from prunesampler.attach import AttachedLoader, attach
from prunesampler.errors import (
    ArgumentError,
    BindingError,
    CorruptFileError,
    FileError,
    MismatchError,
    PruneSamplerError,
    PruneSamplerWarning,
    RankError,
    StateError,
    UnsupportedError,
    WriteError,
)
from prunesampler.merging import merge
from prunesampler.pruning import Pruning
from prunesampler.rescore import score
from prunesampler.rowloader import with_rows
from prunesampler.sampler import PrunedSampler
from prunesampler.selection import select
from prunesampler.superfluous import superfluous
from prunesampler.tables import Coreset, ScoreTable
from prunesampler.tracker import ScoreTracker
from prunesampler.version import __version__

__all__ = [
    "ArgumentError",
    "AttachedLoader",
    "BindingError",
    "Coreset",
    "CorruptFileError",
    "FileError",
    "MismatchError",
    "PruneSamplerError",
    "PruneSamplerWarning",
    "PrunedSampler",
    "Pruning",
    "RankError",
    "ScoreTable",
    "ScoreTracker",
    "StateError",
    "UnsupportedError",
    "WriteError",
    "__version__",
    "attach",
    "merge",
    "score",
    "select",
    "superfluous",
    "with_rows",
]
