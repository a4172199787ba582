"""Names by place in models of different depths: against the places that are counted by hand."""

import pandas as pd
import pytest
from torch import nn

from coordcheck.observe.blocks import by_place, growing_lists


class Model(nn.Module):
    def __init__(self, *lengths):
        super().__init__()
        self.embed = nn.Embedding(4, 8)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(lengths[0]))
        self.more = nn.Sequential(*(nn.Linear(8, 8) for _ in range(lengths[-1])))


def renamed(names, depth, patterns=None):
    records = pd.DataFrame({"module": names, "l1": range(len(names))})
    records.attrs["classes"] = 4
    return by_place(records, Model(depth), ["layers"], patterns)


def test_lists_that_grow_are_found():
    assert growing_lists(Model(2), Model(8)) == ("layers", "more")
    assert growing_lists(Model(2, 3), Model(4, 3)) == ("layers",)


def test_a_model_may_be_a_list_itself():
    short, long = (nn.Sequential(*(nn.Linear(8, 8) for _ in range(n))) for n in (2, 5))
    (lists,) = [growing_lists(short, long)]
    records = by_place(pd.DataFrame({"module": ["0", "2", "4", "(model)"]}), long, lists)
    assert [*records["module"]] == ["(first)", "(middle)", "(last)", "(model)"]


@pytest.mark.parametrize(
    ("depth", "first", "middle", "last"), [(2, 0, 1, 1), (4, 0, 2, 3), (5, 0, 2, 4), (32, 0, 16, 31)]
)
def test_blocks_are_named_by_the_share_of_branches_before_them(depth, first, middle, last):
    names = [f"layers.{number}.0" for number in range(depth)] + [f"layers.{number}[0]" for number in range(depth)]
    found = renamed(names, depth)
    told = {module: names[size] for module, size in zip(found["module"], found["l1"], strict=True)}
    inside = {"layers.(first).0": f"layers.{first}.0", "layers.(middle).0": f"layers.{middle}.0"}
    returned = {"(first)": first, "(middle)": middle, "(last)": last}
    assert told == inside | {f"layers.{place}[0]": f"layers.{number}[0]" for place, number in returned.items()}


def test_what_is_in_no_list_keeps_its_name():
    found = renamed(["embed", "(model)", "(loss)", "player.1", "layers"], 4)
    assert [*found["module"]] == ["embed", "(model)", "(loss)", "player.1", "layers"]
    assert found.attrs == {"classes": 4}


def test_patterns_select_by_place_and_keep_the_loss():
    names = ["embed", "layers.0.0", "layers.2.0[0]", "layers.3", "(loss)"]
    assert [*renamed(names, 4, ["*(last)", "*.(middle).0"])["module"]] == [
        "layers.(middle).0[0]",
        "layers.(last)",
        "(loss)",
    ]
    with pytest.raises(
        ValueError, match=r"`modules` selects none of .*got \['layers.0.\*'\].*modules=\['\*\(last\)'\]"
    ):
        renamed(names, 4, ["layers.0.*"])


def test_models_that_do_not_grow_in_depth_are_refused():
    with pytest.raises(ValueError, match=r"no list of blocks grows with depth.*For example nn\.ModuleList"):
        growing_lists(Model(3), Model(3))
    with pytest.raises(ValueError, match=r"at least 2 blocks.*got \{'layers': 1, 'more': 1\}.*depths=\[2,4,8,16\]"):
        growing_lists(Model(1), Model(4))
    deep = Model(4)
    deep.block4 = nn.Linear(8, 8)
    with pytest.raises(ValueError, match=r"same parameters at every depth.*\['block4.bias', 'block4.weight'\]"):
        growing_lists(Model(2), deep)
