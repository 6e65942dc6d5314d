"""What the scores say: statistics, advice, cost, and a report to look at."""
