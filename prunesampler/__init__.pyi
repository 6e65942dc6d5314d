"""What ``import prunesampler as ps`` gives: the one list of public names, which ``__init__.py`` reads too."""

from prunesampler._load import load as load
from prunesampler._logging import set_verbosity as set_verbosity
from prunesampler._version import __version__ as __version__
from prunesampler.analysis.audit import (
    LabelIssues as LabelIssues,
    audit as audit,
)
from prunesampler.analysis.relabel import relabel as relabel
from prunesampler.analysis.compare import Comparison as Comparison, compare as compare
from prunesampler.analysis.report.write import report as report
from prunesampler.analysis.sweep import Sweep as Sweep, sweep as sweep
from prunesampler.capture.row_loader import with_rows as with_rows
from prunesampler.capture.threshold_samples import ThresholdSamples as ThresholdSamples
from prunesampler.errors import (
    ArgumentError as ArgumentError,
    BindingError as BindingError,
    CorruptFileError as CorruptFileError,
    FileError as FileError,
    MismatchError as MismatchError,
    PruneSamplerError as PruneSamplerError,
    PruneSamplerWarning as PruneSamplerWarning,
    RankError as RankError,
    StateError as StateError,
    UnsupportedError as UnsupportedError,
    WriteError as WriteError,
)
from prunesampler.sampling.sampler import PrunedSampler as PrunedSampler
from prunesampler.scores.registry import register_score as register_score
from prunesampler.selection.combine import combine as combine
from prunesampler.selection.learned import (
    LearnedSelector as LearnedSelector,
    fit_selector as fit_selector,
)
from prunesampler.selection.near_duplicates import (
    NearDuplicates as NearDuplicates,
    near_duplicates as near_duplicates,
    similar_pairs as similar_pairs,
)
from prunesampler.selection.registry import register_method as register_method
from prunesampler.selection.select import (
    Selection as Selection,
    select as select,
)
from prunesampler.selection.superfluous import superfluous as superfluous
from prunesampler.tables.merge import merge as merge
from prunesampler.tables.schedule import Schedule as Schedule
from prunesampler.tables.score_table import (
    Coreset as Coreset,
    ScoreTable as ScoreTable,
)
from prunesampler.tracking.eval_pass import score as score
from prunesampler.tracking.features import features as features
from prunesampler.tracking.tracker import ScoreTracker as ScoreTracker
from prunesampler.training.attach import attach as attach
from prunesampler.training.attached_loader import AttachedLoader as AttachedLoader
from prunesampler.training.handle import Pruning as Pruning
from prunesampler.training.policies.importance_sampling import ImportanceSampling as ImportanceSampling
from prunesampler.training.policies.infobatch import InfoBatch as InfoBatch
from prunesampler.training.policies.orderdp import OrderDP as OrderDP
from prunesampler.training.policies.policy import (
    Policy as Policy,
    Probabilities as Probabilities,
)
from prunesampler.training.policies.proxy_filter import ProxyFilter as ProxyFilter
from prunesampler.training.policies.prune_once import PruneOnce as PruneOnce
from prunesampler.training.policies.random_subset import RandomSubset as RandomSubset
from prunesampler.training.policies.record_hardest import RecordHardest as RecordHardest
from prunesampler.training.policies.scheduled import Scheduled as Scheduled
from prunesampler.training.policies.seta import SeTa as SeTa
from prunesampler.training.policies.small_loss import SmallLoss as SmallLoss
from prunesampler.training.policies.swap_forgotten import SwapForgotten as SwapForgotten
from prunesampler.training.tiny_proxy import tiny_proxy as tiny_proxy
