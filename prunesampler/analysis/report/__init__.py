"""One HTML page about scores and what a coreset keeps of them."""
