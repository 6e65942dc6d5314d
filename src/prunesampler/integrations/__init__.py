"""Other people's training loops: one module for each, importing it only there."""
