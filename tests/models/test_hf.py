"""Oracles: transformers' own default configurations, torch's cross entropy, and identity of tensors."""

import math
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import transformers
from torch.nn.functional import cross_entropy

from coordcheck.config.load import load
from coordcheck.models import hf
from coordcheck.models.families import make_cell
from coordcheck.observe.roles import infshapes, roles, shapes
from coordcheck.run.loss import default_loss

CAUSAL = ["gpt2", "opt", "llama", "qwen3", "gpt_neox", "mistral"]
TYPES = [*CAUSAL, "t5"]
WIDTHS = (64, 128, 256)
SIZES = {"depth": 2, "vocab_size": 96, "context": 16}


def config_of(name, width=64, heads=4, **other):
    return hf.scaled_config(name, width, heads, **{**SIZES, **other})


def tokens():
    sequence = torch.randint(0, 96, (2, 17), generator=torch.Generator().manual_seed(0))
    return sequence[:, :-1], sequence[:, 1:]


class OwnConfig(transformers.LlamaConfig):
    model_type = "own"


class UnknownWidth(transformers.PretrainedConfig):
    model_type = "unknown_width"

    def __init__(self, my_width=48, my_inner=96, **kwargs):
        self.my_width = my_width
        self.my_inner = my_inner
        super().__init__(**kwargs)


class ForgottenField(transformers.PretrainedConfig):
    model_type = "forgotten_field"

    def __init__(self, hidden_size=48, my_latent=48, **kwargs):
        self.hidden_size = hidden_size
        self.my_latent = my_latent
        super().__init__(**kwargs)


def dotted(cls):
    sys.modules.setdefault("own_configs", sys.modules[__name__])
    return f"own_configs.{cls.__name__}"


@pytest.mark.parametrize("name", TYPES)
@pytest.mark.parametrize("head_size", [16, None], ids=["fixed size", "fixed count"])
def test_every_dimension_is_a_given_size_or_grows(name, head_size):
    built = []
    for width in WIDTHS:
        with torch.device("meta"):
            built.append(hf.build(config_of(name, width, width // head_size if head_size else 4)))
    narrow, *_, wide = (shapes(model) for model in built)
    given = {
        96,
        16,
        18,
        4,
        32,
    }  # tokens, positions or head size, OPT's positions with their offset, heads, T5's buckets
    for parameter, shape in wide.items():
        for small, large in zip(narrow[parameter], shape, strict=True):
            assert large == 4 * small or (large == small and large in given), parameter


@pytest.mark.parametrize("name", TYPES)
def test_roles(name):
    """Also of GPT-2's Conv1D, which stores its fan-in first."""
    narrow, wide = (hf.build(config_of(name, width)) for width in (64, 128))
    found = roles(narrow, infshapes(shapes(narrow), shapes(wide)))
    for parameter, role in found.items():
        if parameter == "lm_head.weight" or parameter == "embed_out.weight":
            expected = "readout"
        elif "relative_attention_bias" in parameter:
            expected = "fixed"
        elif any(word in parameter for word in ("wte", "wpe", "embed", "shared")):
            expected = "input"
        else:
            expected = "vector" if len(narrow.get_parameter(parameter).shape) == 1 else "hidden"
        assert role == expected, parameter


@pytest.mark.parametrize("name", TYPES)
def test_a_model_trains_at_every_width(name):
    inputs, targets = tokens()
    for width in WIDTHS:
        config = config_of(name, width)
        model = hf.build(config)
        loss = default_loss(model, hf.make_batch(config, inputs, targets))
        loss.backward()
        assert 0.5 * math.log(96) < loss.item() < 3 * math.log(96)
        assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("name", TYPES)
def test_widths_heads_and_ratios_follow(name):
    config, default = config_of(name, 256, 8), transformers.CONFIG_MAPPING[name]()
    assert (config.hidden_size, config.num_attention_heads, config.num_hidden_layers) == (256, 8, 2)
    assert getattr(config, "head_dim", 32) == 32
    assert getattr(config, "num_decoder_layers", 2) == 2
    for field in ("intermediate_size", "ffn_dim", "d_ff"):
        if hasattr(default, field):
            assert getattr(config, field) / 256 == getattr(default, field) / default.hidden_size
    if hasattr(default, "num_key_value_heads"):
        assert config.num_key_value_heads / 8 == default.num_key_value_heads / default.num_attention_heads
    assert not [k for k, v in config.to_dict().items() if "drop" in k and isinstance(v, float) and v]
    assert config.use_cache is False


def test_special_tokens_are_in_the_vocabulary_or_none():
    assert config_of("gpt2").eos_token_id is None  # 50256 by default
    assert config_of("opt").pad_token_id == 1
    assert config_of("t5", vocab_size=1).eos_token_id is None


@pytest.mark.parametrize("name", ["gpt2", "opt", "llama", "t5"])
@pytest.mark.parametrize("tied", [True, False])
def test_tied_is_as_asked(name, tied):
    model = hf.build(config_of(name, tied=tied))
    assert (model.lm_head.weight is model.get_input_embeddings().weight) == tied


@pytest.mark.parametrize("name", TYPES)
def test_tied_by_default_as_the_class_is(name):
    default = transformers.CONFIG_MAPPING[name]().tie_word_embeddings
    model = hf.build(config_of(name))
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == default


def test_t5_scales_the_readouts_input_only_if_tied():
    """The logits of a head of std 1 are then of size sqrt(width), as in transformers before 5.1."""
    inputs, targets = tokens()
    std = {}
    for tied in (True, False):
        for width in (64, 256):
            config = config_of("t5", width, tied=tied)
            torch.manual_seed(0)
            with torch.no_grad():
                std[tied, width] = hf.build(config)(**hf.make_batch(config, inputs, targets)).logits.std().item()
    assert std[False, 64] == pytest.approx(8, rel=0.2) and std[False, 256] == pytest.approx(16, rel=0.2)
    assert std[True, 256] / std[True, 64] < 1.3


def test_ties_that_the_model_does_not_make_are_refused(monkeypatch):
    monkeypatch.setattr(transformers.LlamaForCausalLM, "_tied_weights_keys", {})
    with pytest.raises(
        ValueError, match=r"LlamaForCausalLM in transformers .* are untied whatever .* embedding=untied"
    ):
        hf.build(config_of("llama", tied=True), tied=True)
    assert not hf.is_tied(hf.build(config_of("llama")))  # nobody asked, nobody complains


def test_initialization_is_that_of_transformers_under_the_global_seed():
    config = config_of("gpt2", 256, 8)
    ours = hf.build(config, seed=3)
    torch.manual_seed(3)
    theirs = transformers.GPT2LMHeadModel(config)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(mine, other)
    assert ours.transformer.h[0].mlp.c_fc.weight.std().item() == pytest.approx(0.02, rel=0.05)


def test_models_built_at_a_time_are_those_built_in_turn():
    config = config_of("llama", 256, 8)
    in_turn = [hf.build(config, seed) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for one, other in zip(in_turn, pool.map(lambda seed: hf.build(config, seed), range(8)), strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", CAUSAL)
def test_causal_labels_meet_their_logits(name):
    inputs, _ = tokens()
    targets = torch.randint(0, 96, inputs.shape, generator=torch.Generator().manual_seed(1))
    config = config_of(name)
    output = hf.build(config)(**hf.make_batch(config, inputs, targets))
    expected = cross_entropy(output.logits[:, :-1].flatten(0, 1), targets[:, :-1].flatten())
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_decoder_reads_targets_behind_a_start_token():
    inputs, targets = tokens()
    config = config_of("t5")
    batch = hf.make_batch(config, inputs, targets)
    assert torch.equal(batch["decoder_input_ids"][:, 1:], targets[:, :-1])
    assert batch["decoder_input_ids"][:, 0].tolist() == [config.pad_token_id] * 2  # as T5 was trained
    output = hf.build(config)(**batch)
    expected = cross_entropy(output.logits.flatten(0, 1), targets.flatten())
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_nothing_is_read_from_the_hub(monkeypatch):
    asked = []

    def refuse(*args, **kwargs):
        asked.append(args)
        raise OSError("no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(transformers.PreTrainedModel, "from_pretrained", refuse)
    for name in TYPES:
        hf.build(config_of(name))
    assert not asked  # a library may catch the error


def test_transformers_is_imported_only_where_it_is_used():
    code = "import sys, coordcheck.check, coordcheck.models.hf; print('transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_transformers_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r'pip install "coordcheck\[hf\]"'):
        config_of("gpt2")


@pytest.mark.parametrize("name", ["gtp2", "no.such.module", "torch.nn.Linear", "", ".x"])
def test_an_unknown_configuration_is_refused(name):
    with pytest.raises(ValueError, match=r"`model.config` is a model type .* For example model.config=gpt2"):
        config_of(name)


def test_a_class_of_ones_own_by_dotted_name():
    config = config_of(dotted(OwnConfig))
    assert type(config) is OwnConfig and config.hidden_size == 64
    with pytest.raises(ValueError, match=r"AutoModelForCausalLM.register\(OwnConfig, MyModel\)"):
        hf.build(config)


def test_a_registered_class_of_ones_own_is_built(monkeypatch):
    class OwnModel(transformers.LlamaForCausalLM):
        config_class = OwnConfig

    monkeypatch.setattr(transformers.MODEL_FOR_CAUSAL_LM_MAPPING, "_extra_content", {})
    transformers.AutoModelForCausalLM.register(OwnConfig, OwnModel)
    assert type(hf.build(config_of(dotted(OwnConfig)))) is OwnModel


def test_a_width_of_unknown_name_must_be_stated():
    with pytest.raises(
        ValueError, match=r"no field of UnknownWidth .*'my_width': 48.*'model.overrides={my_width: width}'"
    ):
        config_of(dotted(UnknownWidth))
    config = config_of(dotted(UnknownWidth), overrides={"my_width": "width", "my_inner": "ratio"})
    assert (config.my_width, config.my_inner) == (64, 128)


def test_a_field_that_equals_the_width_must_be_stated():
    with pytest.raises(
        ValueError, match=r"\['my_latent'\] of ForgottenField may follow .*'model.overrides={my_latent: width}'"
    ):
        config_of(dotted(ForgottenField))
    assert config_of(dotted(ForgottenField), overrides={"my_latent": "width"}).my_latent == 64
    assert config_of(dotted(ForgottenField), overrides={"my_latent": 8}).my_latent == 8


def test_overrides_that_fit_nothing_are_refused():
    with pytest.raises(ValueError, match=r"'n_embed', which GPT2Config has not; .*'n_embd'"):
        config_of("gpt2", overrides={"n_embed": 64})
    with pytest.raises(ValueError, match=r"n_inner='ratio', a rule for whole numbers.*'model.overrides={n_inner: 64}'"):
        config_of("gpt2", overrides={"n_inner": "ratio"})
    assert config_of("gpt2", overrides={"n_inner": 128, "activation_function": "relu"}).n_inner == 128


def test_heads_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match="3 does not divide 64"):
        config_of("gpt2", heads=3)
    with pytest.raises(
        ValueError, match=r"`num_key_value_heads` keeps 4 .* divide 2 at width 32.*{num_key_value_heads: h"
    ):
        config_of("mistral", 32, 2, base_width=64, base_heads=4)
    assert config_of("mistral", 32, 2, overrides={"num_key_value_heads": "heads"}).num_key_value_heads == 2


def test_what_a_class_refuses_is_told():
    with pytest.raises(ValueError, match=r"DoryConfig is not supported: .*must equal num_hidden_layers. For example"):
        config_of("dory")
    assert config_of("dory", overrides={"num_hidden_layers": 6}).n_input_layers == 2


# Kinds of fields: null heads, sizes of heads by other names, low ranks, experts, state spaces, lists with an entry for
# each block, tokens and positions beyond what is given, groups of queries that do not divide, nested configurations.
KINDS = {
    "nemotron": "causal",
    "deepseek_v3": "causal",
    "mixtral": "causal",
    "starcoder2": "causal",
    "mamba2": "causal",
    "nemotron_h": "causal",
    "qwen3_next": "causal",
    "gpt_neo": "causal",
    "gptj": "causal",
    "gemma3": "causal",
    "qwen2_audio": "causal",
    "bert-generation": "causal",
    "bert": "masked",
    "roberta": "masked",
    "electra": "masked",
    "trocr": "causal",
    "marian": "seq2seq",
    "t5gemma": "seq2seq",
}


def at(name, width, **other):
    return config_of(name, width, width // 16, base_width=64, base_heads=4, **other)


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_of_configuration_grows_and_learns(name):
    with torch.device("meta"):
        narrow, middle, wide = (shapes(hf.build(at(name, width))) for width in (64, 128, 256))
    assert narrow.keys() == middle.keys() == wide.keys()
    for parameter in narrow:
        for sizes in zip(narrow[parameter], middle[parameter], wide[parameter], strict=True):
            assert len(set(sizes)) == 1 or sizes[2] - sizes[1] == 2 * (sizes[1] - sizes[0]) > 0, parameter
    assert max(map(max, wide.values())) < 20 * 256  # nothing has its default size
    inputs, targets = tokens()
    config = at(name, 64)
    loss = default_loss(hf.build(config, seed=0), hf.make_batch(config, inputs, targets))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(96), abs=1.5)


@pytest.mark.parametrize("name", [name for name in KINDS if KINDS[name] != "seq2seq"])
def test_a_causal_model_sees_no_later_token_and_a_masked_one_does(name):
    config = at(name, 64)
    assert hf.kind_of_model(config) == KINDS[name]
    model = hf.build(config, seed=0).eval()
    inputs, _ = tokens()
    changed = torch.cat([inputs[:, :-1], (inputs[:, -1:] + 1) % 96], dim=1)
    with torch.no_grad():
        before, after = (model(input_ids=ids).logits[:, :-1] for ids in (inputs, changed))
    assert torch.allclose(before, after, atol=1e-5) == (KINDS[name] == "causal")


def test_sizes_of_kinds():
    deepseek = at("deepseek_v3", 128)
    heads = (deepseek.qk_nope_head_dim, deepseek.qk_rope_head_dim, deepseek.v_head_dim, deepseek.qk_head_dim)
    assert heads == (16, 16, 16, 32)
    assert (deepseek.q_lora_rank, deepseek.kv_lora_rank) == (28, 10)  # 1536 and 512 of 7168 are 13.7 and 4.6 of 64
    assert deepseek.moe_intermediate_size == 32  # 2048 of 7168 are 18.3 of 64, to the nearest 8: 16
    assert deepseek.first_k_dense_replace == 1  # of 61 blocks 3
    assert at("nemotron", 128).num_key_value_heads == 8
    assert [at("starcoder2", width).num_key_value_heads for width in (64, 128, 256)] == [1, 2, 4]  # 2 to 24 by default
    mamba = at("mamba2", 64)
    assert mamba.num_heads * mamba.head_dim == mamba.expand * 64
    assert config_of("mamba2", 64, 2).n_groups == 4  # not 8: there are four heads of size 32
    assert at("qwen3_next", 64).layer_types == ["linear_attention", "full_attention"]
    assert at("gpt_neo", 64).attention_layers == ["global", "local"]
    assert at("roberta", 64).max_position_embeddings == 16 + 2  # counted from behind the padding token, 1
    assert type(at("gemma3", 64)).__name__ == "Gemma3TextConfig"
    assert at("qwen2_audio", 64).intermediate_size == 344  # the nested default, 22016 of 4096
    assert (at("t5gemma", 64).encoder.hidden_size, at("t5gemma", 128).decoder.hidden_size) == (64, 128)


def test_a_masked_model_predicts_what_is_behind_the_mask():
    inputs, targets = tokens()
    config = at("bert", 64)
    batch = hf.make_batch(config, inputs, targets)
    hidden = [0, 7, 14]
    assert (batch["input_ids"][:, hidden] == 95).all()
    assert torch.equal(batch["labels"][:, hidden], inputs[:, hidden])
    seen = [place for place in range(16) if place not in hidden]
    assert torch.equal(batch["input_ids"][:, seen], inputs[:, seen]) and (batch["labels"][:, seen] == -100).all()
    output = hf.build(config, seed=0).eval()(**batch)
    expected = cross_entropy(output.logits[:, hidden].flatten(0, 1), inputs[:, hidden].flatten())
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)


def test_a_masked_type_that_is_made_a_decoder_is_causal():
    inputs, targets = tokens()
    config = at("roberta", 64, overrides={"is_decoder": True})
    model = hf.build(config, seed=0)
    assert type(model) is transformers.RobertaForCausalLM
    assert torch.isfinite(default_loss(model, hf.make_batch(config, inputs, targets)))


def test_a_decoder_that_does_not_shift_its_labels_gets_them_as_they_are():
    inputs, targets = tokens()
    config = at("trocr", 64)
    output = hf.build(config, seed=0).eval()(**hf.make_batch(config, inputs, targets))
    expected = cross_entropy(output.logits.flatten(0, 1), targets.flatten())
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)


REFUSED = {
    "vit": r"ViTConfig is not supported: transformers lists no language model for it; .* For example model.config=",
    "whisper": r"WhisperConfig is not supported: transformers has no model for it that reads a text and writes a text",
    "phi4_multimodal": r"Phi4MultimodalConfig is not supported: its model has parts that do not follow the width",
    "xlnet": r"XLNetConfig is not supported: given token ids alone, its model sees the tokens that it is to predict",
    "gemma4_assistant": r"Gemma4AssistantConfig is not supported: it does not accept its own defaults",
    "dbrx": r"DbrxConfig is not supported: transformers cannot build its model, AttributeError: .*rope_theta",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_supported_is_refused_with_its_reason(name):
    with pytest.raises(ValueError, match=REFUSED[name]):
        hf.build(at(name, 64))


@pytest.mark.parametrize("name", ["deepseek_v2", "xmod", "dots1", "lfm2_moe", "qwen4_exp"])
def test_advice_on_what_a_class_leaves_open_runs_as_typed(name):
    with pytest.raises(ValueError, match=r"has no default for .* For example 'model.overrides={\w+: ") as told:
        at(name, 64)
    typed = str(told.value).rpartition("For example '")[2].removesuffix("'.")
    cell = cell_of(f"model.config={name}", typed)
    cell.loss(cell.build(64, 0, torch.device("cpu")), cell.batch(0, torch.device("cpu"))).backward()


def cell_of(*choice):
    return make_cell(load(["model=hf", "parametrization=sp", "gate.expect=sp", "readout=own", *choice]))


def test_a_cell_asks_for_ties_and_rounds_at_the_base_width():
    grown = [cell_of("model.config=starcoder2").on_meta(width).config.num_key_value_heads for width in (64, 128, 256)]
    assert grown == [1, 2, 4]
    with pytest.raises(
        ValueError, match=r"NemotronHForCausalLM .* are untied whatever .* For example embedding=untied"
    ):
        cell_of("model.config=nemotron_h", "embedding=tied").on_meta(64)
