"""The loop, what it yields, and what is measured and saved around it."""
