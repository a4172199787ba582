"""T5's structure: buckets by integer arithmetic, what may see what, and how its shapes grow under muP."""

import mup
import pytest
import torch

from coordcheck.models.layers import materialize
from coordcheck.models.t5 import T5, relative_buckets
from coordcheck.observe.recorder import Recorder
from coordcheck.observe.roles import infshapes, roles, shapes

CPU = torch.device("cpu")


def t5(width: int = 32, heads: int = 4, **options) -> T5:
    """With torch's own initialization."""
    torch.manual_seed(0)
    defaults = {"encoder_depth": 2, "decoder_depth": 2, "vocab_size": 11, "tied": False, "mup_multiplier": None}
    return T5(width, heads, 1.0, **(defaults | options))


def bucket_by_hand(distance: int, buckets: int) -> int:
    """T5's rule without a logarithm: bucket exact + j starts at exact * (128 / exact)^(j / geometric)."""
    exact = geometric = buckets // 2
    if distance < exact:
        return distance
    start = [j for j in range(geometric) if distance**geometric >= exact**geometric * (128 // exact) ** j]
    return exact + start[-1]


def test_encoder_buckets():
    offsets = torch.arange(-1000, 1001)
    expected = [bucket_by_hand(abs(o), 16) + 16 * (o > 0) for o in offsets.tolist()]
    assert relative_buckets(offsets, causal=False).tolist() == expected


def test_decoder_buckets():
    offsets = torch.arange(-1000, 1)
    assert relative_buckets(offsets, causal=True).tolist() == [bucket_by_hand(-o, 32) for o in offsets.tolist()]


def test_the_decoder_sees_the_past_and_all_of_the_encoder():
    model = t5()
    source, target = torch.arange(9)[None], torch.arange(7)[None]
    logits = model(source, target)
    assert logits.shape == (1, 7, 11)
    later = model(source, torch.tensor([[0, 1, 2, 3, 10, 5, 6]]))
    changed = (logits != later).any(-1)[0].tolist()
    assert changed == [False] * 4 + [True] * 3
    last_of_source = model(torch.tensor([[*range(8), 10]]), target)
    assert (logits != last_of_source).any(-1).all()


def test_the_encoder_looks_both_ways_and_tells_them_apart():
    model = t5()
    x = torch.randn(1, 6, 32)
    changed = x.clone()
    changed[:, -1] += 1
    assert (model.encoder(x) != model.encoder(changed)).any(-1).all()
    mirrored = model.encoder(x.flip(1)).flip(1)
    assert (mirrored - model.encoder(x)).abs().max() > 1e-3


def test_every_parameter_matters():
    model = t5(feed_forward="geglu")
    model(torch.arange(9)[None], torch.arange(7)[None]).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())
    assert not [name for name, _ in model.named_parameters() if name.endswith("bias")]


def test_only_a_plain_tied_readout_scales_its_input():
    assert t5(width=64, tied=True).readout_scale == 0.125
    assert t5(width=64).readout_scale == 1
    assert t5(width=64, tied=True, mup_multiplier=1.0).readout_scale == 1


@pytest.mark.parametrize("tied", [True, False])
def test_roles_and_a_step_in_mup(tied):
    def structure(width: int) -> T5:
        with torch.device("meta"):
            return t5(width, width // 8, tied=tied, mup_multiplier=1.0, feed_forward="geglu")

    narrow, wide = structure(32), structure(64)
    role = roles(narrow, infshapes(shapes(narrow), shapes(wide)))
    assert role["wte.weight"] == role["encoder.position_bias.weight"] == role["decoder.position_bias.weight"] == "input"
    assert role["lm_head.weight"] == "readout"
    assert role["decoder.ln_f.weight"] == role["encoder.blocks.0.ln_1.weight"] == "vector"
    in_blocks = {r for name, r in role.items() if "blocks" in name and "ln_" not in name}
    assert in_blocks == {"hidden"}

    model = materialize(structure(128), CPU)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.1)
    mup.set_base_shapes(model, mup.make_base_shapes(narrow, wide), rescale_params=False)
    assert (model.lm_head.weight is model.wte.weight) == tied
    tokens = torch.arange(9)[None]
    before = model(tokens, tokens)
    before.square().mean().backward()
    mup.MuAdam(model.parameters(), lr=0.01).step()
    assert (model(tokens, tokens) - before).abs().max() > 0


def test_a_recorder_sees_attention_and_only_finite_sizes():
    model = t5()
    with Recorder(model, width=32) as recorder:
        model(torch.arange(9)[None], torch.arange(7)[None])
        recorder.step()
    records = recorder.records().set_index("module")
    assert (records.nonfinite == 0).all()
    attentions = [
        f"{stack}.blocks.{i}.{name}[attention_logits]"
        for i in (0, 1)
        for stack, name in (("encoder", "attn"), ("decoder", "attn"), ("decoder", "cross"))
    ]
    assert set(attentions) == {module for module in records.index if module.endswith("[attention_logits]")}
    assert records.loc["decoder.blocks.0.cross[attention_logits]", "count"] == 4 * 7 * 9


def test_half_precision():
    with torch.autocast("cpu", torch.bfloat16):
        logits = t5(tied=True)(torch.arange(9)[None], torch.arange(7)[None])
    assert logits.isfinite().all()


def test_heads_that_do_not_divide_the_width_need_a_size():
    with pytest.raises(ValueError, match="`heads` must divide width=32; got 6"):
        t5(heads=6)
    assert t5(heads=6, head_size=8).encoder.blocks[0].attn.proj.weight.shape == (32, 48)
