"""The models that a check builds: one family a file, each whole, and what they share."""
