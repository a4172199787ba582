"""Odd overrides, as data: each ends in one line with the key, the rule and a working example, and trains nothing."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from coordcheck.config.load import load

LARGE = 10**30

# by kind: overrides, one or several apart by blanks, and a pattern of what is said
ODD = {
    "grammar": [
        ("widths=[64,128", r"`widths=\[64,128` cannot be read as key=value"),
        ("widths", r"`widths` cannot be read as key=value"),
        ("=3", r"`=3` cannot be read as key=value"),
        ("widths=[64,,128]", "cannot be read"),
        ("model.args={a", "cannot be read"),
        ("name='x", "cannot be read"),
        ("widths==3", "`widths==3`"),
        ("name=${", "cannot be read"),
        ("name=a)b", "cannot be read"),
        (".=3", "cannot be read"),
        ("name=${foo}", r"`name`.*'foo'"),
        ("name=${oc.env:COORDCHECK_NO_SUCH}", r"`name`.*COORDCHECK_NO_SUCH"),
        ("name=${no_such_resolver:1}", r"`name`.*no_such_resolver"),
        ("widths=${steps}", r"`widths`"),
        ("steps=???", r"`steps` .* whole number.*steps=4"),
        ("seeds=1,2", r"`seeds=1,2`.*-m"),
        ("widths=[64,128,256],[64,128,512]", "-m"),
        ("steps=range(1,3)", "-m"),
        ("widths=64,128,256", r"-m.*widths=\[64,128,256\]"),
    ],
    "keys": [
        ("stepz=3", r"`stepz`.*did you mean `steps`"),
        ("+stepz=3", r"`stepz`.*`steps`"),
        ("++stepz=3", r"`stepz`.*`steps`"),
        ("width=[64,128,256]", r"`width`.*`widths`"),
        ("model.deepth=3", r"`model.deepth`.*`model.depth`"),
        ("+model.deepth=3", r"`model.deepth`.*`model.depth`"),
        ("depth=3", r"`depth`.*`model.depth`"),
        ("lr=0.1", r"`lr`.*`optimizer.lr`"),
        ("optimizer.learning_rate=0.1", "`optimizer.learning_rate`"),
        ("gate.confidense=0.9", r"`gate.confidense`.*`gate.confidence`"),
        ("gate.tolerance.explodes.deltas=1", r"`gate.tolerance.explodes.deltas`.*explodes.delta`"),
        ("data.vocab=256", r"`data.vocab`.*`data.vocab_size`"),
        ("embedding.sd=1", "`embedding.sd`"),
        ("readout.mult=1", r"`readout.mult`.*`readout.multiplier`"),
        ("foo/bar=3", "`foo/bar`"),
        ("steps.x=3", r"`steps`"),
        ("widths.0.x=3", r"`widths"),
        ("hydra.run.dirr=x", r"`hydra.run.dirr`.*`hydra.run.dir`"),
        ("+widths=3", "`widths`"),
        ("~steps", "`steps`"),
        ("~model", "`model`"),
        ("~nothing", "`nothing`"),
        ("~optimizer.lr", "`optimizer.lr`"),
        ("model=own model.build=a.b model.lss=a.b", r"`model.lss`.*`model.loss`"),
        ("model=t5 model.depth=3", r"`model.depth`.*`model.(en|de)coder_depth`"),
        ("model=hf model.overide.x=3", r"`model.overide.x`.*`model.overrides"),
        ("Steps=3", r"`Steps`.*`steps`"),
        ("0=3", r"`0=3` cannot be read"),
    ],
    "options": [
        ("embedding=knotted", r"`embedding` is one of .*'tied'.*; got 'knotted'"),
        ("model=gtp", r"`model` is one of \['flax', 'gpt', 'hf', 'own', 'post_ln', 't5'\]; got 'gtp'.*model=gpt"),
        ("model=GPT", r"`model` is one of .*got 'GPT'"),
        ("model=hf_schema", "`model.name`|`model`"),
        ("optimizer=tiger", r"`optimizer` is one of .*; got 'tiger'"),
        ("data=http://example.org", r"`data` is one of|cannot be read"),
        ("gate=strict", r"`gate` is one of .*; got 'strict'"),
        ("executor=procs", r"`executor` is one of .*'submitit'.*; got 'procs'. For example executor=processes"),
        ("readout=ones", r"`readout` is one of"),
        ("parametrization=xp", r"`parametrization` is one of"),
        ("experiment=none_such", r"`experiment` is one of"),
        ("model=null", r"`model`"),
        ("model=3", r"`model`"),
        ("model=[gpt,t5]", r"`model`"),
        ("model={a:1}", r"`model`"),
        ("model=", r"`model`"),
        ("+model=t5", r"`model`"),
        ("embedding=true", r"`embedding`"),
        ("optimizer={lr:0.1,size:3}", r"`optimizer.*size`"),
        ("model.name=bert", r"`model.name` is one of"),
        ("gate.expect=xp", r"`gate.expect` is one of \['mup', 'sp', .*\]; got 'xp'.*gate.expect="),
        ("precision=FP16", r"`precision` is one of \['fp32', 'bf16'\]; got 'FP16'"),
        ("precision=16", r"`precision` is one of"),
        ("precision=null", r"`precision` is one of"),
        ("embedding.name=null", r"`embedding.name` is one of"),
        ("optimizer.name=rmsprop", r"`optimizer.name` is one of"),
        ("model.feed_forward=reglu", r"`model.feed_forward` is one of .*'swiglu'\]; got 'reglu'"),
        ("model.norm=batch", r"`model.norm` is one of"),
        ("model.positions=null", r"`model.positions` is one of"),
    ],
    "types": [
        ("steps=many", r"`steps` is a whole number; got 'many'. For example steps=4"),
        ("steps=4.5", r"`steps` is a whole number; got 4.5"),
        ("steps=4.0", r"`steps` is a whole number; got 4.0"),
        ("steps=true", r"`steps` is a whole number; got true"),
        ("steps=null", r"`steps` is a whole number; got null"),
        ("steps=", r"`steps` is a whole number; got ''"),
        ("steps=[4]", r"`steps` is a whole number; got \[4\]"),
        ("steps={a:1}", r"`steps` is a whole number"),
        ("++steps=x", r"`steps` is a whole number"),
        ("seeds=1e3", r"`seeds` is a whole number; got 1000.0"),
        ("seeds=[0,1]", r"`seeds` is a whole number; got \[0, ?1\].*seeds=5"),
        ("seeds=true", r"`seeds` is a whole number"),
        ("first_seed=null", r"`first_seed` is a whole number"),
        ("base_width=64.0", r"`base_width` is a whole number"),
        ("workers=1.5", r"`workers` is a whole number or null; got 1.5"),
        ("executor=ray executor.args=3", r"`executor.args` is a group of keys; got 3"),
        ("executor.args.x=1", r"`executor.args.x` is no key"),
        ("model=flax model.build=a.b executor=processes", r"model=flax makes its runs in this process"),
        ("workers=auto", r"`workers` is a whole number or null; got 'auto'"),
        ("widths=64", r"`widths` is a list of whole numbers; got 64. For example widths=\[64,128,256"),
        ("widths=null", r"`widths` is a list of whole numbers; got null"),
        ("widths=[64,null,128]", r"`widths` is a list of whole numbers; got \[64, ?null, ?128\]"),
        ("widths=[64.5,128,256]", r"`widths` is a list of whole numbers"),
        ("widths=[a,b,c]", r"`widths` is a list of whole numbers"),
        ("widths=[[64],128,256]", r"`widths` .*whole numbers"),
        ("widths=[true,false,64]", r"`widths` is a list of whole numbers"),
        ("widths={a:1}", r"`widths` is a list of whole numbers"),
        ("kinds=activation", r"`kinds` is a list of texts; got 'activation'. For example kinds=\[activation"),
        ("kinds=null", r"`kinds` is a list of texts"),
        ("kinds=[null]", r"`kinds`"),
        ("modules=lm_head", r"`modules` is a list of texts or null; got 'lm_head'"),
        ("modules=3", r"`modules` is a list of texts or null"),
        ("control=maybe", r"`control` is true or false; got 'maybe'"),
        ("control=null", r"`control` is true or false; got null"),
        ("control=2.5", r"`control` is true or false"),
        ("audit=[true]", r"`audit` is true or false"),
        ("resume=sometimes", r"`resume` is true or false"),
        ("device=null", r"`device` is a text; got null. For example device=auto"),
        ("device=[cpu]", r"`device` is a text"),
        ("name=null", r"`name` is a text"),
        ("name=[a]", r"`name` is a text"),
        ("runs=null", r"`runs` is a text"),
        ("plots=[a]", r"`plots` is a text or null"),
        ("optimizer.lr=fast", r"`optimizer.lr` is a number; got 'fast'. For example optimizer.lr=0.001"),
        ("optimizer.lr=true", r"`optimizer.lr` is a number"),
        ("optimizer.lr=null", r"`optimizer.lr` is a number"),
        ("optimizer.lr=[0.1]", r"`optimizer.lr` is a number"),
        ("optimizer.betas=0.9", r"`optimizer.betas` is a list of numbers"),
        ("optimizer.betas=[a,b]", r"`optimizer.betas` is a list of numbers"),
        ("optimizer.decay_embedding=some", r"`optimizer.decay_embedding` is true or false"),
        ("readout.std=wide", r"`readout.std` is a number or null"),
        ("data.path=[x]", r"`data.path` is a text or null"),
        ("data.batch=8.5", r"`data.batch` is a whole number"),
        ("gate.tolerance=3", r"`gate.tolerance`"),
        ("gate.tolerance.explodes=3", r"`gate.tolerance.explodes`"),
        ("gate.tolerance.explodes.delta=x", r"`gate.tolerance.explodes.delta` is a number; got 'x'"),
        ("gate.confidence=high", r"`gate.confidence` is a number"),
        ("gate.diagnosis.same=x", r"`gate.diagnosis.same` is a number"),
        ("model.depth=null", r"`model.depth` is a whole number; got null. For example model.depth=3"),
        ("model.depth=three", r"`model.depth` is a whole number; got 'three'"),
        ("model.bias=perhaps", r"`model.bias` is true or false"),
        ("model.head_size=big", r"`model.head_size` is a whole number or null"),
        ("model=post_ln model.eps=x", r"`model.eps` is a number"),
        ("model=hf model.overrides=3", r"`model.overrides`"),
        ("model=own model.build=a.b model.args=3", r"`model.args`"),
        ("model=own model.build=3.5", r"`model.build`"),
        ("model=own model.build=null", r"`model.build`"),
        ("model=own model.build=a.b model.inputs=x", r"`model.inputs` is a list of texts or null"),
    ],
    "values": [
        ("widths=[]", r"`widths` needs at least 3"),
        ("widths=[0,64,128]", r"`widths` needs at least 3 distinct positive"),
        ("widths=[-64,64,128]", r"`widths` needs"),
        ("widths=[32,64,64,128]", r"`widths` needs at least 3 distinct"),
        (f"widths=[64,128,{LARGE}]", r"`widths`"),
        (f"widths=[64,128,{2**63}]", r"`widths`"),
        ("widths=[64,128,250]", r"`model.head_size` must divide"),
        (f"base_width={LARGE}", r"`base_width`"),
        ("base_width=0", r"`base_width`|`model.head_size`"),
        ("seeds=0", r"`seeds`.*seeds=5"),
        ("seeds=-3", r"`seeds`.*got -3.*seeds=5"),
        (f"seeds={2**63}", r"`seeds`.*seeds=5"),
        ("seeds=99999999999", r"`seeds` is at most"),
        (f"seeds={LARGE}", r"`seeds` is at most"),
        ("first_seed=-1", r"`first_seed`"),
        (f"first_seed={2**63}", r"`first_seed`.*first_seed=100"),
        (f"first_seed={2**63 - 2}", r"`first_seed`"),
        (f"first_seed={LARGE}", r"`first_seed`"),
        ("steps=0", r"`steps`"),
        (f"steps={LARGE}", r"`steps` is at most"),
        ("steps=-1", r"`steps`"),
        ("workers=0", r"`workers` is at least 1"),
        ("workers=-1", r"`workers` is at least 1"),
        (f"workers={LARGE}", r"`workers` is at most"),
        ("kinds=[]", r"`kinds`"),
        ("kinds=[delta,delta]", r"`kinds`.*distinct"),
        ("kinds=[Activation]", r"`kinds`"),
        ("modules=[]", r"`modules` needs at least one"),
        ("modules=['']", r"`modules`"),
        ("name=", r"`name`"),
        ("name='  '", r"`name`"),
        ("runs=", r"`runs`"),
        ("plots=", r"`plots`"),
        ("device=", r"`device`"),
        ("optimizer.lr=nan", r"`optimizer.lr` is a finite number"),
        ("optimizer.lr=-inf", r"`optimizer.lr` is a finite number"),
        ("optimizer.lr=1e400", r"`optimizer.lr` is a finite number"),
        ("optimizer.weight_decay=nan", r"`optimizer.weight_decay`"),
        ("optimizer.betas=[nan,0.9]", r"`optimizer.betas`"),
        ("optimizer.betas=[]", r"`optimizer.betas`"),
        ("embedding.std=-1", r"`embedding.std`"),
        ("embedding.std=nan", r"`embedding.std`"),
        ("embedding.position_std=inf", r"`embedding.position_std`"),
        ("readout.std=-1", r"`readout.std`"),
        ("readout.multiplier=nan", r"`readout.multiplier`"),
        ("readout.multiplier=inf", r"`readout.multiplier`"),
        ("readout.multiplier=-1", r"`readout.multiplier`"),
        ("readout.multiplier=0", r"`readout.multiplier`"),
        ("gate.confidence=nan", r"`gate.confidence`"),
        ("gate.confidence=1", r"`gate.confidence`"),
        ("gate.tolerance.exponent=nan", r"`gate.tolerance.exponent`"),
        ("gate.tolerance.explodes.delta=nan", r"`gate.tolerance.explodes`"),
        ("gate.diagnosis.certain=nan", r"`gate.diagnosis.certain`"),
        ("gate.diagnosis.initial_loss=-1", r"`gate.diagnosis.initial_loss`"),
        ("gate.diagnosis.rounding=inf", r"`gate.diagnosis.rounding`"),
        ("model=post_ln model.eps=nan", r"`model.eps`"),
        ("model=post_ln model.eps=-1", r"`model.eps`"),
        ("data.vocab_size=100000000000", r"`data.vocab_size` is at most"),
        ("data=zipf data.vocab_size=100000000000", r"`data.vocab_size` is at most"),
        ("data.batch=-1", r"`data.batch`"),
        (f"data.batch={LARGE}", r"`data.batch` is at most"),
        (f"data.context={LARGE}", r"`data.context` is at most"),
        ("model=post_ln data.batch=1000000 data.context=1000000", r"`data.batch` x `data.context`"),
        ("model.depth=0", r"`model.depth`"),
        (f"model.depth={LARGE}", r"`model.depth` is at most"),
        (f"model.queries_per_key={LARGE}", r"`model.queries_per_key` is at most"),
        ("model.heads=0 model.head_size=null", r"`model.heads`"),
        ("model.head_size=-32", r"`model.head_size`"),
        ("model.head_size=null", r"one of `model.heads`"),
        ("model=own model.build=", r"`model.build`"),
        ("model=own model.build=.", r"`model.build`"),
        ("model=own model.build=a.b model.inputs=[x,x]", r"`model.inputs`"),
    ],
}

# what only a machine, a file or a model can tell: by the command alone
ODD_TO_RUN = {
    "run": [
        ("device=abacus", "`device`"),
        ("device=meta", "`device`"),
        ("device=cuda:99", "`device`"),
        ("device=5", "`device`"),
        ("device=vulkan", "`device`"),
        ("data=file", "`data.path`"),
        ("data=file data.path=missing.txt", "`data.path`"),
        ("data=file data.path=.", "`data.path`"),
        ("data=tokens data.path=short.bin data.dtype=float32", "`data.dtype`"),
        ("data=tokens data.path=short.bin data.dtype=nonsense", "`data.dtype`"),
        ("data=tokens data.path=negative.bin data.dtype=int16", r"`data.vocab_size`.*-1"),
        ("data=tokens data.path=negative.bin data.dtype=uint16 data.vocab_size=256", r"`data.vocab_size`.*65535"),
        ("data=file data.path=negative.bin data.vocab_size=16", r"`data.vocab_size` must exceed"),
        ("data=file data.path=empty.txt", "`data`"),
        ("data.context=100000", "`data`"),
        ("data.batch=100000", "`data`"),
        ("modules=[head]", "`modules` pattern 'head' matches no module"),
        ("modules=[nothing.*]", r"`modules` pattern 'nothing.\*'"),
        ("widths=[1000000000,2000000000,1024] model.head_size=8", r"`widths`.*memory"),
        ("widths=[999999936,999999968,1000000000]", r"`widths`.*memory"),
        ("data=zipf data.vocab_size=10000000 widths=[16384,32768,65536]", r"`widths`.*memory"),
        ("runs=empty.txt", "`runs`"),
        ("model=hf model.config=no_such_model", "`model.config`"),
        ("model=hf model.overrides.no_such_field=3", "no_such_field"),
        ("model=own model.build=theirs.missing", "`model.build`"),
        ("model=own model.build=theirs.twelve", "`model.build`"),
        ("model=own model.build=theirs.broken", "`model.build`"),
        ("model=own model.build=theirs.two", "`model.args`"),
        ("model=own model.build=theirs.raises", r"`build` raises.*KeyError"),
        ("model=own model.build=theirs.build model.args.dept=3", "`model.args`"),
        ("model=own model.build=theirs.build model.loss=theirs.twelve", "`loss`"),
        ("model=own model.build=theirs.build model.optimizer=theirs.twelve", "`optimizer`"),
        ("model=own model.build=theirs.build model.batch=theirs.two", "`batch`"),
        ("model=own model.build=theirs.build data.vocab_size=256 model.args.vocab=9", "IndexError"),
        ("model=own model.build=fails_on_import.build", "`model.build`.*ZeroDivisionError"),
        ("--config-dir=nowhere", "nowhere"),
        ("--config-name=nothing", "nothing"),
        ("hydra.run.dir=/dev/null/x", "/dev/null/x"),
        ("hydra/launcher=no_such", "`hydra/launcher`"),
        ("-m embedding=tied,knotted", "`embedding`"),
        ("-m steps=1,many", "`steps`"),
        ("-m stepz=1,2", "`stepz`"),
        ("-m widths=[64,128", "cannot be read"),
    ]
}
THEIRS = """
from torch import nn
twelve = 12
def two(width, depth): return nn.Linear(8, width)
def raises(width): return {}["x"]
def build(width, vocab=256): return nn.Sequential(nn.Embedding(vocab, width), nn.Linear(width, 256))
"""
# some of each kind go through the command too, which says it through the same code
COMMANDS = [
    *(case for kind in ODD.values() for case in kind[::9] if "'" not in case[0]),
    *(case for kind in ODD_TO_RUN.values() for case in kind),
]
# one process for all, since starting one takes longer than what it says
TELL_ALL = """
import contextlib, io, json, sys
import torch
torch.set_num_threads(1)
from coordcheck.cli.check import main
for line in json.load(sys.stdin):
    sys.argv = ["coordcheck", *line.split()]
    err, code = io.StringIO(), 0
    with contextlib.redirect_stderr(err), contextlib.redirect_stdout(io.StringIO()):
        try:
            main()
        except SystemExit as end:
            code = end.code
        except BaseException as error:
            code = repr(error)
    print(json.dumps([line, code, err.getvalue()]), flush=True)
"""


def overrides_of(text: str) -> list[str]:
    return text.split(" ") if "'  '" not in text else [text]


def problem(said: str, pattern: str) -> str:
    """What is wrong with a message; nothing if it is one line of our form."""
    if "\n" in said.strip():
        return "more than one line"
    if not re.search(pattern, said):
        return f"no {pattern!r}"
    return "" if "or example" in said else "no example"


@pytest.mark.parametrize(
    ("text", "pattern"), [case for kind in ODD.values() for case in kind], ids=lambda value: str(value)[:40]
)
def test_an_odd_override_is_told_in_one_line(text, pattern):
    with pytest.raises(ValueError) as caught:
        load(overrides_of(text))
    assert not problem(str(caught.value), pattern), str(caught.value)


def tell(lines, directory):
    """What the command says to each line of arguments: exit code and stderr."""
    import json

    done = subprocess.run(
        [sys.executable, "-c", TELL_ALL],
        cwd=directory,
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        timeout=240,
    )
    return {line: (code, err) for line, code, err in map(json.loads, done.stdout.splitlines())}


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    directory = tmp_path_factory.mktemp("odd")
    (directory / "theirs.py").write_text(THEIRS)
    (directory / "fails_on_import.py").write_text("1 / 0\n")
    (directory / "broken.py").write_text("def (\n")
    (directory / "empty.txt").write_text("")
    (directory / "short.bin").write_bytes(b"\0" * 64)
    (directory / "negative.bin").write_bytes(b"\xff" * 4096)
    return directory, tell([text for text, _ in COMMANDS], directory)


@pytest.mark.parametrize(("text", "pattern"), COMMANDS, ids=lambda value: str(value)[:40])
def test_the_command_says_it_in_one_line_and_exits_with_1(told, text, pattern):
    directory, said = told
    code, err = said[text]
    assert code == 1, err
    assert err.startswith("coordcheck: "), err
    assert not problem(err, pattern), err
    assert not (Path(directory) / "checks/runs").exists()  # nothing was trained
