"""ScoreTable and Coreset, and their Parquet form."""
