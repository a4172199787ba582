"""What a check can be told. Imports neither torch nor pandas: ``coordcheck --help`` must answer at once."""
