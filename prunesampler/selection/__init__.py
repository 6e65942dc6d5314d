"""A table of scores in, a coreset out."""
