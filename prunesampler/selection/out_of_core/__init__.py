"""Selecting from files that are longer than memory."""
