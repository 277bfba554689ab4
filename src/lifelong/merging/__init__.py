"""Model merging: one good model out of several fine-tuned ones."""
