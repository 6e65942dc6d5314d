"""Dataset pruning as a data-loader plugin.

>>> import prunesampler as ps
>>> ps.select(ps.ScoreTable({"el2n": [0.1, 0.9, 0.5, 0.7]}), keep=2, method="bottom").rows
array([0, 2])
"""

from prunesampler._version import __version__
from prunesampler.capture.row_loader import with_rows
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
from prunesampler.sampling.sampler import PrunedSampler
from prunesampler.scores.registry import register_score
from prunesampler.selection.registry import register_method
from prunesampler.selection.select import Selection, select
from prunesampler.selection.superfluous import superfluous
from prunesampler.tables.merge import merge
from prunesampler.tables.schedule import Schedule
from prunesampler.tables.score_table import Coreset, ScoreTable
from prunesampler.tracking.eval_pass import score
from prunesampler.tracking.tracker import ScoreTracker
from prunesampler.training.attach import AttachedLoader, attach
from prunesampler.training.handle import Pruning
from prunesampler.training.policies.importance_sampling import ImportanceSampling
from prunesampler.training.policies.infobatch import InfoBatch
from prunesampler.training.policies.orderdp import OrderDP
from prunesampler.training.policies.policy import Policy, Probabilities
from prunesampler.training.policies.proxy_filter import ProxyFilter
from prunesampler.training.policies.prune_once import PruneOnce
from prunesampler.training.policies.random_subset import RandomSubset
from prunesampler.training.policies.scheduled import Scheduled
from prunesampler.training.policies.seta import SeTa
from prunesampler.training.policies.small_loss import SmallLoss
from prunesampler.training.policies.swap_forgotten import SwapForgotten
from prunesampler.training.tiny_proxy import tiny_proxy

__all__ = [
    "ArgumentError",
    "AttachedLoader",
    "BindingError",
    "Coreset",
    "CorruptFileError",
    "FileError",
    "ImportanceSampling",
    "InfoBatch",
    "MismatchError",
    "OrderDP",
    "Policy",
    "Probabilities",
    "ProxyFilter",
    "PruneOnce",
    "PruneSamplerError",
    "PruneSamplerWarning",
    "PrunedSampler",
    "Pruning",
    "RandomSubset",
    "RankError",
    "Schedule",
    "Scheduled",
    "ScoreTable",
    "ScoreTracker",
    "SeTa",
    "Selection",
    "SmallLoss",
    "StateError",
    "SwapForgotten",
    "UnsupportedError",
    "WriteError",
    "__version__",
    "attach",
    "merge",
    "register_method",
    "register_score",
    "score",
    "select",
    "superfluous",
    "tiny_proxy",
    "with_rows",
]
