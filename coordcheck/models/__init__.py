"""The transformers that coordcheck builds itself: structure only, no initialization and no training code."""

from coordcheck.models.gpt import GPT

__all__ = ["GPT"]
