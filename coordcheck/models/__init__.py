"""The transformers that coordcheck builds itself: structure only, no initialization and no training code."""

from coordcheck.models.gpt import GPT
from coordcheck.models.post_ln import PostLN
from coordcheck.models.t5 import T5

__all__ = ["GPT", "T5", "PostLN"]
