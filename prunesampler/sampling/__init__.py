"""A coreset in, the order of the next epoch out."""
