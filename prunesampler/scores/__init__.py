"""Pure functions of logits, gradients and inputs: one number a sample."""

from prunesampler.scores.logits import correct, el2n, entropy, loss, margin

__all__ = ["correct", "el2n", "entropy", "loss", "margin"]
