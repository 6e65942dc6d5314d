"""Files too long for one machine's memory, worked on a block of rows at a time."""
