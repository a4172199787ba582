"""A language model, in muP by hand."""
