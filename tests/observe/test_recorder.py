"""The recorder against mup's own, and in models that return, repeat or change what they like."""

import gc
import weakref
from collections import namedtuple
from dataclasses import dataclass, replace

import mup.coord_check
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
import torch.utils.checkpoint
from torch import nn

from conftest import Dispatched, plan_of, recorded, row, tiny_cell
from coordcheck.observe import recorder as record
from coordcheck.observe.recorder import Recorder
from coordcheck.observe.sums import moved
from coordcheck.records.schema import KINDS, RECORD_COLUMNS, ROOT
from coordcheck.run.train import run

CPU = torch.device("cpu")


def test_l1_agrees_with_mups_own_recorder():
    cell = tiny_cell("readout=constant")
    inputs, targets = cell.batch(0, CPU)
    models = {width: lambda width=width: cell.build(width, 0, CPU) for width in (64, 128)}
    theirs = mup.coord_check._get_coord_data(
        models,
        [(inputs, targets.flatten())],
        lambda model: cell.optimizer(model, 0),
        nsteps=4,
        flatten_output=True,
        cuda=False,
        show_progress=False,
        output_fdict={"l1": "l1", "rms": "l2"},
    )
    ours = []
    for width, build in models.items():
        model = build()
        optimizer = cell.optimizer(model, width)
        with Recorder(model, width=width, kinds=["activation"]) as recorder:
            for _ in range(4):
                optimizer.zero_grad()
                cell.loss(model, (inputs, targets)).backward()
                optimizer.step()
                recorder.step()
        ours.append(recorder.records())
    ours = pd.concat(ours).assign(t=lambda r: r.step + 1, module=lambda r: r.module.replace(ROOT, ""))
    ours = ours[ours.role.fillna("") != "attention_logits"]
    both = ours.merge(theirs, on=["width", "module", "t"], suffixes=("", "_mup"))
    assert len(both) == len(theirs) > 200
    assert both["l1"].to_numpy() == pytest.approx(both["l1_mup"].to_numpy(), rel=1e-5)
    assert both["rms"].to_numpy() == pytest.approx(both["rms_mup"].to_numpy(), rel=5e-5)


def test_delta_is_the_change_since_step_0():
    model = nn.Sequential(nn.Linear(4, 8))
    x = torch.randn(3, 4)
    with Recorder(model, width=8, kinds=("activation", "delta")) as recorder:
        before = model(x)
        recorder.step()
        with torch.no_grad():
            model[0].bias += 0.5
        after = model(x)
        recorder.step()
    records = recorder.records()
    assert row(records, "0", "delta", 1)["l1"] == pytest.approx(0.5, rel=1e-6)
    assert row(records, "0", "delta", 1)["l1"] == pytest.approx((after - before).abs().mean().item())
    assert len(records[(records.kind == "delta") & (records.step == 0)]) == 0


def test_a_tensor_changed_in_place_after_its_module_does_not_change_the_record():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            y = self.fc(x)
            y += 100.0
            return y

    records = recorded(Residual(), torch.randn(3, 4), steps=2, kinds=("delta",))
    assert row(records, "fc", "delta", 1)["l1"] == 0.0


def test_calls_and_micro_batches_of_one_step_are_pooled_exactly():
    fc = nn.Linear(4, 8)
    x = torch.randn(6, 4)
    whole = row(recorded(nn.Sequential(fc), x), "0")
    model = nn.Sequential(fc)
    with Recorder(model, width=8) as recorder:
        model(x[:2])
        model(x[2:])
    pooled = row(recorder.records(), "0")
    assert pooled["count"] == whole["count"] == 48
    for statistic in ("l1", "rms", "max"):
        assert pooled[statistic] == pytest.approx(whole[statistic], rel=1e-6)


def test_every_tensor_of_a_nested_output_has_a_name():
    Output = namedtuple("Output", ["logits", "cache"])

    class Model(nn.Module):
        def forward(self, x):
            return {"out": Output(x, [x * 2, None, "text"]), "loss": x.mean(), "ids": x.long()}

    records = recorded(Model(), torch.ones(2, 3))
    assert dict(zip(records.module, records.l1, strict=True)) == {
        f"{ROOT}[out][0]": 1.0,
        f"{ROOT}[out][1][0]": 2.0,
    }


def test_the_fields_of_a_dataclass_are_recorded():
    @dataclass
    class Output:
        hidden: torch.Tensor
        cache: list
        note: str = "text"

    class Model(nn.Module):
        def forward(self, x):
            return Output(x, [2 * x])

    records = recorded(Model(), torch.ones(2, 3))
    assert dict(zip(records.module, records.l1, strict=True)) == {f"{ROOT}[hidden]": 1.0, f"{ROOT}[cache][0]": 2.0}


def test_columns_order_and_roles():
    cell = tiny_cell()
    model = cell.build(64, 3, CPU)
    with Recorder(model, width=64, seed=3) as recorder:
        model(cell.batch(3, CPU)[0])
    records = recorder.records()
    assert list(records.columns) == list(RECORD_COLUMNS)
    assert (records.width == 64).all()
    assert (records.seed == 3).all()
    order = records.set_index("module")["order"]
    assert order["wte"] < order["blocks.0.attn.q"] < order["blocks.0.attn"] < order["blocks.1"] < order["lm_head"]
    role = records.set_index("module")["role"]
    assert role[["wte", "blocks.0.mlp.fc", "blocks.0.ln_1", "lm_head"]].tolist() == [
        "input",
        "hidden",
        "vector",
        "readout",
    ]
    assert pd.isna(role["blocks.0"])


def test_modules_are_selected_by_pattern_and_an_unknown_one_is_named():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    assert recorded(model, torch.ones(1, 4), modules=["1", ROOT]).module.tolist() == ["1", ROOT]
    with pytest.raises(ValueError, match=r"`modules` needs at least one.*got \[\].*For example"):
        Recorder(model, width=4, modules=[])
    with pytest.raises(ValueError, match=r"pattern 'blocks.*' matches no module; the model has \(model\), 0, 1"):
        Recorder(model, width=4, modules=["blocks.*"])


def test_an_unknown_kind_is_named():
    with pytest.raises(ValueError, match="'weights'"):
        Recorder(nn.Linear(2, 2), width=2, kinds=("weights",))


def test_delta_of_another_batch_is_refused():
    model = nn.Linear(4, 4)
    with Recorder(model, width=4, kinds=("delta",)) as recorder:
        model(torch.ones(2, 4))
        recorder.step()
        model(torch.ones(3, 4))
        with pytest.raises(ValueError, match=r"same batch.*\(3, 4\).*\(2, 4\)"):
            recorder.step()


class Experts(nn.Module):
    """A mixture of two experts: how many rows each gets changes from step to step, the second starts at step 1."""

    def __init__(self):
        super().__init__()
        self.norm = nn.Linear(4, 4)
        self.experts = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, x, rows):
        x = self.norm(x)
        self.experts[0](x[:rows])
        if rows < len(x):
            self.experts[1](x[rows:])
        return x


def test_the_delta_of_a_module_whose_output_varies_is_left_out_with_one_warning():
    model, x = Experts(), torch.randn(6, 4)
    with Recorder(model, width=4, kinds=("activation", "delta")) as recorder:
        for step, rows in enumerate((6, 4, 4)):
            model(x, rows)
            if step == 1:
                with pytest.warns(
                    UserWarning, match=r"other shapes: \['experts.0', 'experts.1'\]. .*`modules`"
                ) as seen:
                    recorder.step()
                assert len(seen) == 1
            else:
                recorder.step()
    records = recorder.records()
    assert set(records[records.kind == "delta"].module) == {"norm", ROOT}
    assert set(records[records.kind == "activation"].module) == {"norm", "experts.0", "experts.1", ROOT}


def test_a_model_that_calls_itself_is_recorded():
    class Recursive(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x, depth=2):
            x = F.scaled_dot_product_attention(x, x, x)
            return self.fc(self(x, depth - 1) if depth else x)

    records = recorded(Recursive(), torch.randn(2, 3, 4))
    assert records.set_index("module")["count"].to_dict() == {f"{ROOT}[attention_logits]": 54, "fc": 72, ROOT: 72}
    assert torch.overrides._get_current_function_mode() is None


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_changes_no_record(reentrant):
    class Block(nn.Module):
        def __init__(self, checkpointed):
            super().__init__()
            self.fc_in = nn.Linear(4, 4)
            self.layers = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
            self.checkpointed = checkpointed

        def forward(self, x):
            x = self.fc_in(x)
            if self.checkpointed:
                return torch.utils.checkpoint.checkpoint(self.layers, x, use_reentrant=reentrant)
            return self.layers(x)

    def records(checkpointed):
        torch.manual_seed(0)
        model, x = Block(checkpointed), torch.randn(3, 4)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with Recorder(model, width=4, kinds=("activation", "delta")) as recorder:
            for _ in range(3):
                model(x).square().mean().backward()
                optimizer.step()
                recorder.step()
        return recorder.records()

    pd.testing.assert_frame_equal(records(True), records(False))


def test_a_module_that_runs_more_often_than_at_step_0_is_reported():
    model = nn.Sequential(nn.Linear(4, 4))
    with Recorder(model, width=4) as recorder:
        model(torch.ones(2, 4))
        recorder.step()
        model(torch.ones(2, 4))
        model(torch.ones(2, 4))
        with pytest.warns(UserWarning, match="different number of times at step 1"):
            recorder.step()


def test_nothing_is_recorded_or_left_behind_outside_the_block():
    model = nn.Sequential(nn.Linear(4, 4))
    with Recorder(model, width=4) as recorder:
        pass
    model(torch.ones(2, 4))
    assert len(recorder.records()) == 0
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_an_error_in_the_model_leaves_the_recorder_usable():
    model = nn.Sequential(nn.Linear(4, 4))
    with Recorder(model, width=4) as recorder:
        with pytest.raises(RuntimeError, match="shapes"):
            model(torch.ones(2, 5))
        model(torch.ones(2, 4))
    assert torch.overrides._get_current_function_mode() is None
    assert row(recorder.records(), "0")["count"] == 8


def test_bf16_autocast_is_recorded_in_float32():
    model = nn.Sequential(nn.Linear(64, 64))
    x = torch.randn(32, 64)
    with torch.autocast("cpu", torch.bfloat16):
        records = recorded(model, x)
        exact = model(x).double()
    assert row(records, "0")["l1"] == pytest.approx(exact.abs().mean().item(), rel=1e-6)


def test_models_inside_torch_func_grad_are_recorded():
    model, x = nn.Sequential(nn.Linear(4, 4)), torch.ones(2, 4)
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    with Recorder(model, width=4) as recorder:
        torch.func.grad(lambda p: torch.func.functional_call(model, p, x).sum())(parameters)
    assert row(recorder.records(), "0")["l1"] == pytest.approx(model(x).abs().mean().item())


def test_an_error_within_a_hook_leaves_no_mode_behind(monkeypatch):
    def broken(*_):
        raise RuntimeError("broken")

    monkeypatch.setattr(record, "sums", broken)
    with pytest.raises(RuntimeError, match="broken"):
        recorded(nn.Linear(4, 4), torch.ones(2, 4))
    assert torch.overrides._get_current_function_mode() is None


def test_no_recorded_step_reads_a_value_off_the_device_or_copies_one_to_it():
    """A meta tensor has no values, so anything that would wait for a GPU raises on it."""
    cell = tiny_cell()
    model = cell.runnable_on_meta(64)
    batch = tuple(x.to("meta") for x in cell.batch(0, CPU))
    with Recorder(model, width=64, kinds=KINDS) as recorder:
        with Dispatched():
            for _ in range(3):
                loss = cell.loss(model, batch)
                recorder.record_loss(loss)
                loss.backward()
                recorder.step()
        with pytest.raises((RuntimeError, NotImplementedError), match=r"(?i)meta"):
            recorder.records()


@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_no_recorded_step_of_a_run_synchronizes(precision):
    """From the first forward pass to the last ``step()``; building before and the transfer after may wait."""
    cell = tiny_cell(f"precision={precision}")
    device = torch.device("cuda")
    plan = replace(plan_of(cell.config), device=device)

    def train(loss):
        model = cell.build(64, 0, device)
        optimizer = cell.optimizer(model, 64)
        return run(model, optimizer, cell.batch(0, device), loss, plan, width=64, seed=0, roles=cell.roles)

    def watched(model, batch):
        torch.cuda.set_sync_debug_mode("error")
        return cell.loss(model, batch)

    def told(measured):
        modes.append(torch.cuda.get_sync_debug_mode())
        torch.cuda.set_sync_debug_mode("default")
        return moved(measured)

    modes = []
    train(cell.loss)  # kernels and optimizer code that are loaded once may wait
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, "moved", told)
        try:
            records = train(watched)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert modes == [2]  # "error" from the first forward pass on
    assert set(records.step) == {0, 1, 2, 3}


@pytest.mark.gpu
def test_a_gpu_records_what_the_cpu_records():
    cell = tiny_cell("readout=constant")
    on_cpu = cell.build(64, 0, CPU)
    on_gpu = cell.build(64, 0, CPU).to("cuda")
    mup.set_base_shapes(on_gpu, cell._base_infshapes, rescale_params=False)
    tokens = cell.batch(0, CPU)[0]
    ours, theirs = recorded(on_cpu, tokens), recorded(on_gpu, tokens.cuda())
    assert theirs["rms"].to_numpy() == pytest.approx(ours["rms"].to_numpy(), rel=1e-3)


def test_a_finished_run_frees_its_model_without_waiting_for_the_garbage_collector():
    cell = tiny_cell()
    freed = []
    gc.disable()
    try:
        for _ in range(2):  # torch's first use of a meta tensor leaves a traceback behind
            model = cell.build(64, 0, CPU)
            optimizer = cell.optimizer(model, 64)
            alive = weakref.ref(model.wte.weight)
            run(model, optimizer, cell.batch(0, CPU), cell.loss, plan_of(cell.config), width=64, seed=0, roles={})
            del model, optimizer
            freed.append(alive() is None)
    finally:
        gc.enable()
    assert freed[-1]


def test_a_constant_beside_a_trained_output_is_left_out():
    """As T5's cross-attention returns a position bias of zeros, which would look dead."""

    class WithMask(nn.Linear):
        def forward(self, x):
            return super().forward(x), torch.zeros(3)

    model = nn.Sequential(WithMask(4, 8))
    with Recorder(model, width=8, kinds=["activation", "delta"]) as recorder:
        for _ in range(2):
            model(torch.ones(2, 4))
            recorder.step()
    assert set(recorder.records()["module"]) == {"0[0]", "(model)[0]"}
