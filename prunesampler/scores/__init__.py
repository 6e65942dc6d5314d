"""Pure functions of logits, gradients and inputs: one number a sample."""
