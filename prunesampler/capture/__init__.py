"""Rows travel with the batches, logits are taken at the forward, and the binder says which belong together."""
