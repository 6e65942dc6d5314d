"""Lightning, Transformers and Ray."""
