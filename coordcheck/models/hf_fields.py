"""What the fields of Hugging Face configurations are, by their names: which of them follow the width, and how."""

import re
from collections.abc import Mapping
from typing import Any

# What a field is, by its name; the first pattern that fits the whole name decides.
#   width, depth, vocab_size, context  as given; a context with the places that are left out before it (RoBERTa's 2)
#   ratio       keeps its ratio to the width
#   heads       the count of attention heads
#   kv_heads    keeps its ratio to the count of heads, as far as that divides
#   head_size   the size of every head
#   inner_heads heads of another layer: count times size keeps its ratio to the width
#   groups      of inner heads: the default, as far as it divides their count
#   some_blocks a count of special blocks, at most half of all blocks
#   fixed       does not follow the width
PATTERNS = {
    "width": "hidden_size|hidden_size_global|n_embd|d_model|word_embed_proj_dim|emb_dim|embedding_dim",
    "vocab_size": (
        "((unpadded|decoder|src|tgt)_)?vocab_size(_per_layer_input)?|ngram_vocab_size_base|"
        "encoder_hash_byte_group_vocab"
    ),
    "context": (
        "max_(encoder_|decoder_)?position_embeddings|n_positions|n_ctx|max_seq_len|max_(source|target)_positions|"
        "context_length|model_max_length|attention_window"
    ),
    "kv_heads": r"\w*(key_value|kv|kv_n|multi_query)_heads|num_query_groups",
    "inner_heads": "(n_mamba|mamba_n|mamba_num|linear_num|linear_num_key|linear_num_value|index_n)_heads",
    "heads": r"(\w+_)?attention_heads|n_heads?|num_heads",
    "head_size": (
        r"head_dim|(\w+_)?head_dim|d_kv|d_head|dim_head|kv_channels|attention_head_size|mamba_headdim|mamba_d_head|"
        "query_pre_attn_scalar|rotary_dim"
    ),
    "groups": "n_groups|mamba_n_?groups",
    "some_blocks": "first_k_dense_replace|num_kv_shared_layers|num_dense_layers|num_hash_layers|moe_layer_start_index",
    "fixed": r"sliding_window|\w*index_topk|\w*max_new_tokens|embedding_multiplier|t2u_\w+|\w*_token_id|\w*_index",
    "depth": r"((num|n)_)?((en|de)coder_|hidden_|input_|output_|recurrent_)?layers?|num_layers_per_stack|num_blocks",
    "ratio": (
        r"\w*(intermediate_size|ffn_dim|ffn_hidden_size|ffn_size|feed_forward_size|inner|embedding_size|embed_dim)\w*|"
        r"d_ff|dff|dim_ff|\w*(lora_|dt_|step_|gate_|norm_|laurel_|adapter_)rank|\w*lowrank|mamba_d_ssm|lru_width|"
        r"(cross_)?attention_hidden_size|hidden_size_per_layer_input|router_hidden_size|axial_pos_embds_dim"
    ),
}
RULES = tuple(PATTERNS)
NEED_NO_DEFAULT = (
    "width",
    "vocab_size",
    "context",
    "kv_heads",
    "heads",
    "head_size",
    "depth",
)  # need no default to scale
FILLED = ("kv_heads", "head_size")  # null by default stands for what follows from the other sizes
# Fields that some classes leave null though their models need them, with values that run.
OPEN = {
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "layer_types": "full_attention",
    "default_language": "en_XX",
    "indexer_n_heads": "heads",
    "indexer_kv_heads": 1,
    "indexer_head_dim": "head_size",
    "indexer_budget": 16,
    "indexer_compress_ratio": 4,
}
# The size of the heads that a field of the rule inner_heads counts.
SIZE_OF = {
    "mamba_n_heads": "mamba_d_head",
    "mamba_num_heads": "mamba_head_dim",
    "n_mamba_heads": "mamba_headdim",
    "linear_num_heads": "linear_head_dim",
    "linear_num_key_heads": "linear_key_head_dim",
    "linear_num_value_heads": "linear_value_head_dim",
    "index_n_heads": "index_head_dim",
    "num_heads": "head_dim",  # of a state space model without attention
}


def rule_of(name: str, default: Mapping[str, Any]) -> str | None:
    """The rule that the name of a field stands for, None if it stands for none."""
    if name == "num_heads" and "expand" in default:
        return "inner_heads"
    return next((rule for rule, pattern in PATTERNS.items() if re.fullmatch(pattern, name)), None)
