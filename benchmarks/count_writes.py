"""Counts who writes each parameter while transformers builds a model, and prints it as JSON.

For one parameter of each kind: how often torch's own layers and transformers' ``_init_weights`` wrote it, in calls of
a rule and in operations, and which rule won (https://github.com/huggingface/transformers/issues/21431). Runs under
any transformers 4 and 5.
"""

import json
from collections import Counter

from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM, T5Config, T5ForConditionalGeneration

from coordcheck.observe.writes import Write, WriteTracer


def count(model_class: type[nn.Module], config: object) -> dict[str, str]:
    """By kind of parameter, "torch + transformers" in calls, the same in operations, and the winner."""
    with WriteTracer() as tracer:
        model = model_class(config)
    said: dict[str, str] = {}
    for name, parameter in model.named_parameters():
        row = ".".join([part for part in name.split(".") if not part.isdigit()][-2:])
        cell = describe(tracer.history(parameter).writes)
        if said.setdefault(row, cell) != cell:
            raise ValueError(f"parameters called {row} differ: {said[row]!r} and, {name}, {cell!r}.")
    return said


def describe(writes: list[Write]) -> str:
    """The cell of a parameter."""
    calls: Counter[bool] = Counter()
    operations: Counter[bool] = Counter()
    for write in writes:
        in_transformers = write.code.co_name == "_init_weights"
        calls[in_transformers] += 1
        operations[in_transformers] += write.operations
    of = (f"{counts[False]}+{counts[True]}" for counts in (calls, operations))
    return "; ".join((*of, f"`{writes[-1].code.co_qualname}`"))


def main() -> None:
    """Builds the models, of two layers each, and prints."""
    opt = OPTConfig(
        hidden_size=64,
        word_embed_proj_dim=64,
        ffn_dim=256,
        num_attention_heads=4,
        num_hidden_layers=2,
        vocab_size=256,
        max_position_embeddings=32,
    )
    t5 = T5Config(vocab_size=256, d_model=64, d_kv=16, d_ff=256, num_layers=2, num_heads=4)
    tokens = {"bos_token_id": None, "eos_token_id": None}
    gpt2 = GPT2Config(vocab_size=256, n_positions=32, n_embd=64, n_layer=2, n_head=4, **tokens)
    models = ((OPTForCausalLM, opt), (T5ForConditionalGeneration, t5), (GPT2LMHeadModel, gpt2))
    print(json.dumps({model_class.__name__: count(model_class, config) for model_class, config in models}))


if __name__ == "__main__":
    main()
