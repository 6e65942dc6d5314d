"""A few synthetic images a class in the place of a dataset."""

from prunesampler.condensation.condense import METHODS, condense
from prunesampler.condensation.dataset import CondensedDataset
from prunesampler.condensation.evaluate import Result, evaluate
from prunesampler.condensation.networks import MLP, Blocks, ConvNet, ResNet18

__all__ = ["METHODS", "MLP", "Blocks", "CondensedDataset", "ConvNet", "ResNet18", "Result", "condense", "evaluate"]
