"""transformers#21431, one initialization: who writes what, and that nothing constant fails the check of a model."""

import math
import subprocess
import sys

import pytest

from coordcheck.check import check_config
from coordcheck.config.load import load

pytestmark = pytest.mark.slow
SMALL = ["experiment=hf_single_init", "widths=[64,128,256]", "seeds=2", "steps=3", "data.batch=2", "data.context=32"]
# full writes of a matrix: torch's (or Conv1D's) own, then transformers' once, twice in GPT-2's branches and in T5
WRITES = {"opt": ("fc1.weight", 2), "gpt2": ("attn.c_proj.weight", 3), "t5": ("SelfAttention.k.weight", 3)}


@pytest.fixture(scope="module", params=["opt", "gpt2", "t5", "llama"])
def checked(request, tmp_path_factory):
    """A model type and its check."""
    runs = f"runs={tmp_path_factory.mktemp('runs')}"
    return request.param, check_config(load([*SMALL, f"model.config={request.param}", runs]))


def test_nothing_is_dead_or_not_finite(checked):
    """Neither rotary embeddings nor T5's zero position biases, which no parameter reaches."""
    _, check = checked
    assert not set(check.slopes["verdict"]) & {"dead", "nonfinite"}
    assert check.control.saw


def test_a_constant_std_grows_by_half_an_exponent_for_each_matrix(checked):
    name, check = checked
    first = check.slopes.query("kind == 'activation' and step == 0").set_index("module")
    if name == "t5":  # fan-in, but for the position biases of std width^-1/2
        # its loss grows too: a decoder that is tied predicts the token that it reads, with a logit like sqrt(width)
        faults = check.slopes.query("verdict in ('explodes', 'vanishes') and step == 0 and module != '(loss)'")
        assert set(faults["module"].str.contains(r"relative_attention_bias|\[1\]$")) == {True}
        return
    assert check.verdict == "fail"
    query = next(module for module in first.index if module.endswith(("q_proj", "attn.c_attn")))
    assert first.loc[query, "slope"] == pytest.approx(0.5, abs=0.05)
    inner = next(module for module in first.index if module.endswith(("fc2", "mlp.c_proj")) or "down_proj" in module)
    assert first.loc[inner, "slope"] > 0.9
    assert {finding.verdict for finding in check.audit.findings} >= {"init"}


def test_who_writes_each_parameter_and_how_often(checked):
    name, check = checked
    table = check.audit.parameters
    assert (table["unwritten"] == 0).all()
    if name in WRITES:
        suffix, writes = WRITES[name]
        rows = table[table["parameter"].str.endswith(suffix)]
        assert len(rows) >= 2 and (rows["writes"] == writes).all()
        assert rows["rules"].str.contains("_init_weights").all()
    warned = {finding.verdict for finding in check.audit.findings} & {"repeated", "conflict"}
    assert warned == {"opt": set(), "llama": set(), "gpt2": {"repeated"}, "t5": {"conflict"}}[name]


def test_initial_loss_is_that_of_a_model_that_knows_nothing(checked):
    name, check = checked
    if name != "t5":
        loss = check.records.query("module == '(loss)' and step == 0")["l1"]
        assert loss.to_numpy() == pytest.approx(math.log(256), abs=0.3)


def test_a_class_whose_width_is_unknown_is_told_its_fields(tmp_path):
    (tmp_path / "own_model.py").write_text(
        "from transformers import PretrainedConfig\n"
        "class OwnConfig(PretrainedConfig):\n"
        "    model_type = 'own'\n"
        "    def __init__(self, my_width=48, my_inner=96, **other):\n"
        "        self.my_width, self.my_inner = my_width, my_inner\n"
        "        super().__init__(**other)\n"
    )
    code = "import sys; sys.path.insert(0, '.'); from coordcheck.cli.check import main; main()"
    ran = subprocess.run(
        [sys.executable, "-c", code, "experiment=hf_single_init", "hydra.mode=RUN", "model.config=own_model.OwnConfig"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 1
    assert "no field of OwnConfig is known to be its width" in ran.stderr
    assert "'my_width': 48, 'my_inner': 96" in ran.stderr and "'model.overrides={my_width: width}'" in ran.stderr
