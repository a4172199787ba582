"""``coordcheck --help``: its manual page. Imports neither Hydra nor torch, so that it answers at once."""

import textwrap
from importlib.resources import files
from importlib.resources.abc import Traversable

OPTIONS = """\
coordcheck: did every activation, every update and every logit keep its size when the width changed?

Synopsis
  coordcheck [-v] [GROUP=OPTION ...] [KEY=VALUE ...]
  coordcheck -m GROUP=OPTION,OPTION ... KEY=VALUE,VALUE ...
  coordcheck --config-dir DIR experiment=NAME

What it does
  Trains one model at several widths for a few steps, fits the slope of each module's size against width with an
  interval, holds it against theory, and says what is at fault, why, and what to change. It trains a twin with a known
  fault too, which must fail. With -m it does so for every combination, and ends with one table and one picture.
  Finished runs are kept: the same command again goes on from there.

Options
  -v, --verbose         print tables of the worst curves and of parameters, and every finding in full
  -m, --multirun        sweep: several values of a key or a group, separated by commas
  --config-dir DIR      a directory with configurations of your own, DIR/experiment/NAME.yaml
  --cfg job             print the configuration that these arguments make, and do nothing
  -sc install=bash      tab completion: eval "$(coordcheck -sc install=bash)"; zsh and fish likewise
  --hydra-help          Hydra's own options
  --version             print the version
  -h, --help            print this page; behind arguments (coordcheck model=hf --help) what values they leave
"""

AFTER = """\
Exit codes
  0    pass: every curve keeps its size, and the twin failed as it must
  3    fail
  4    inconclusive
  1    a bad value, or a run that broke; one line says what is wrong (HYDRA_FULL_ERROR=1 shows the traceback)
  2    bad usage
  130  interrupted

Files
  checks/NAME/          report.html report.md report.png slopes.csv verdict.json records.parquet,
                        the audit's files, .hydra/
  checks/runs/          finished runs
  plots/NAME.png        the picture

Examples
  coordcheck                                               a GPT in muP
  coordcheck parametrization=sp                            the same model in standard parametrization, which fails
  coordcheck model=own model.build=my_package.my_module.build widths=[64,128,256]
  coordcheck model=hf model.config=llama                   a model of transformers
  coordcheck -m embedding=untied,tied parametrization=mup,sp
  coordcheck experiment=mup_shared_readout                 one of the discussions in docs/discussions.md

See also
  coordcheck-audit, coordcheck-cure, coordcheck-transfer, coordcheck-report, coordcheck-compare, coordcheck-history and
  coordcheck-gate, each with --help
"""


def manual() -> str:
    """The page; groups and keys are read from the configuration that ships with the package."""
    root = files("coordcheck.configs")
    groups = {folder.name: options(folder) for folder in root.iterdir() if folder.is_dir()}
    shown = [
        textwrap.fill(", ".join(groups[name]), 118, initial_indent=f"  {name:<17}", subsequent_indent=" " * 19)
        for name in sorted(groups)
        if groups[name]
    ]
    written = root.joinpath("check.yaml").read_text(encoding="utf-8")
    keys = written[written.index("# names the check's") : written.index("\nhydra:")].strip()
    return "\n".join(
        [
            OPTIONS,
            "Groups, set as GROUP=OPTION; without any: model=gpt parametrization=mup embedding=untied readout=zero",
            "optimizer=adam data=stdlib gate=default executor=auto",
            *shown,
            "",
            "Keys, set as KEY=VALUE, with their defaults; those of a group as GROUP.KEY=VALUE",
            *(f"  {line}".rstrip() for line in keys.splitlines()),
            "",
            AFTER.rstrip(),
        ]
    )


def options(folder: Traversable) -> list[str]:
    """The options of a group, without those that only tell types."""
    names = [path.name.removesuffix(".yaml") for path in folder.iterdir() if path.name.endswith(".yaml")]
    return sorted(name for name in names if not name.endswith("_schema"))
