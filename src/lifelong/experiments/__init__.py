"""From a recipe to results: one run, a comparison of many, and the search for settings."""
