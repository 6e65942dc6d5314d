"""One attached run: from scoring to the pruned epochs."""
