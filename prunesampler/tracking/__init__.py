"""Scores and counts per row, as training goes on."""
