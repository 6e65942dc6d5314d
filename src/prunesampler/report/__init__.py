"""One page about a table of scores, to look at in a browser and to keep."""
