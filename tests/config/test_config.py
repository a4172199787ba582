"""Every rule of a configuration: what it says when it is broken."""

import pytest

from conftest import tiny_config
from coordcheck.config.load import default_gate, gate_from, load
from coordcheck.config.rules import head_count


def test_the_default_is_the_main_job():
    config = load()
    assert config.widths == [64, 128, 256, 512, 1024]
    assert (config.seeds, config.steps, config.model.name) == ("auto", 4, "gpt")
    assert (config.parametrization.name, config.embedding.name, config.readout.name) == ("mup", "untied", "zero")
    assert (config.optimizer.name, config.data.name, config.device) == ("adam", "stdlib", "auto")
    assert config.gate == default_gate()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["widths=[64,128]"], r"`widths`.*at least 3 distinct.*\[64, 128\].*widths=\[64,128,256\]"),
        (["widths=[64,64,128]"], r"`widths`.*distinct"),
        (["widths=[64,128,250]"], r"`model.head_size` must divide.*32 does not divide 250.*For example"),
        (["model.heads=3", "model.head_size=null"], r"`model.heads` must divide.*3 does not divide 64"),
        (["model.heads=4"], r"one of `model.heads`.*heads=4, head_size=32"),
        (["base_width=48"], r"32 does not divide 48"),
        (["steps=0"], r"`steps`.*from 1 on; got 0.*steps=4"),
        (["seeds=0"], r"`seeds` is at least 1; got 0.*seeds=5"),
        (["first_seed=-1"], r"`first_seed` is at least 0; got -1"),
        (["kinds=[gradients]"], r"`kinds`.*\['gradients'\]"),
        (["workers=0"], r"`workers` is at least 1; got 0"),
        (["data.batch=0"], r"`data.batch` is at least 1; got 0"),
        (["optimizer.lr=-1"], r"`optimizer.lr` is a finite number.*-1"),
        (["optimizer.lr=inf"], r"`optimizer.lr` is a finite number"),
        (["optimizer.betas=[0.9]"], r"`optimizer.betas` are two numbers.*\[0.9\].*For example"),
        (["optimizer.betas=[0.9,1.0]"], r"`optimizer.betas`.*below 1; got \[0.9, 1.0\]"),
        (["optimizer.eps=-1"], r"`optimizer.eps` is a finite number, zero or more; got -1"),
        (["optimizer.momentum=nan"], r"`optimizer.momentum` is a finite number.*nan"),
        (["gate.tolerance.explodes.delta=-0.1"], r"`gate.tolerance.explodes`.*got delta: -0.1.*delta=0.2"),
        (["gate.tolerance.vanishes.activation=inf"], r"`gate.tolerance.vanishes`.*got activation: inf"),
        (["gate.tolerance.exponent=-1"], r"`gate.tolerance.exponent` is a finite number, zero or more; got -1"),
        (["+gate.tolerance.explodes.slope=1"], r"each of \['activation', .*\]; got slope: 1"),
        (["kinds=[delta]", "steps=1"], r"`steps` is at least 2.*kinds=\['delta'\].*steps=4"),
        (['gate.accept=["wte.weight"]'], r"`gate.accept` lists PARAMETER: QUANTITY.*example gate.accept=\["),
        (["gate.confidence=95"], r"`gate.confidence` lies between 0 and 1; got 95"),
        (
            ["model=hf", "readout=zero"],
            "model=hf takes readout=own, since transformers initializes it .*; got readout=zero. For example",
        ),
        (
            ["readout=own"],
            "model=gpt takes readout=zero, constant or fan_in, since it is initialized here and learns text; got "
            "readout=own. For example readout=zero",
        ),
        (["model=hf", "parametrization=mup"], "model=hf takes parametrization=sp, since .*got parametrization=mup"),
        (["model=post_ln", "data=zipf"], "model=post_ln takes data=scenes, since .* learns scenes; got data=zipf"),
        (["data=scenes"], "model=gpt takes data=stdlib, file, tokens or zipf, since .*; got data=scenes"),
        (["model=hf", "embedding=tied_rescaled"], "model=hf takes embedding=own, untied or tied, since "),
        (["model=own"], r"`model.build` is the dotted name of a function from width to a model; got ''"),
        (["model=own", "model.build=build"], r"`model.build` is the dotted name .*; got 'build'"),
        (["model=own", "model.build=a.b", "model.loss=loss"], r"`model.loss` is a dotted name, or null; got 'loss'"),
        (["model=own", "model.build=a.b", "model.inputs=[x]"], r"`model.inputs` are two different names.*got \['x'\]"),
        (["model=own", "model.build=a.b", "readout=zero"], r"model=own takes readout=own, since `model.build` decides"),
        (["model=own", "model.built=a.b"], r"built"),
        (["model=t5", "embedding=tied"], "readout=zero makes the shared embedding zero"),
        (["model.queries_per_key=0"], "`model.queries_per_key` is at least 1; got 0"),
        (["model.depth=three"], "`model.depth` is a whole number; got 'three'. For example model.depth=3"),
        (["model.name=bert"], r"`model.name` is one of .*'own', 'flax'\]; got 'bert'"),
        (["embedding=tied", "model.positions=none"], r"shared embedding zero.*positions=none.*For example"),
        (["embedding=tied", "embedding.position_std=0"], r"position_std=0.0"),
        (["model.deepth=3"], r"deepth"),
        (["embedding=knotted"], r"knotted"),
        (["steps=many"], r"many"),
    ],
)
def test_a_broken_rule_names_the_value_and_the_rule(overrides, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        load(overrides)


def test_a_tied_zero_readout_with_positions_is_fine():
    assert load(["embedding=tied"]).readout.name == "zero"


def test_heads_by_size_or_by_count():
    by_size, by_count = tiny_config().model, tiny_config("model.heads=4", "model.head_size=null").model
    assert [head_count(by_size, width) for width in (64, 128)] == [2, 4]
    assert [head_count(by_count, width) for width in (64, 128)] == [4, 4]


def test_a_stored_gate_is_read_back_and_a_strange_one_refused():
    tolerance = {"explodes": {"delta": 0.1}, "vanishes": {"delta": 0.2}, "exponent": 0.1}
    diagnosis = {"certain": 0.3, "same": 0.1, "exact": 0.01, "rounding": 1e-5, "initial_loss": 1.0}
    stored = {"expect": "sp", "confidence": 0.9, "tolerance": tolerance, "diagnosis": diagnosis}
    assert gate_from(stored).tolerance.vanishes == {"delta": 0.2}
    with pytest.raises(ValueError, match="strictness"):
        gate_from({**stored, "strictness": 1})
    with pytest.raises(ValueError, match=r"`gate.confidence` lies between 0 and 1; got 2"):
        gate_from({**stored, "confidence": 2})


@pytest.mark.parametrize("experiment", ["tiny"])
def test_every_experiment_is_a_valid_configuration(experiment):
    assert load([f"experiment={experiment}"]).widths
