"""Plans: read, edited, written and applied again; why layers stay dense."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from lowrank_course.compress import apply, compress
from lowrank_course.measure import count_macs, count_parameters
from lowrank_course.plan import (
    Plan,
    Row,
    all_layers,
    dense_reasons,
    load_compressed,
    replace_module,
    save_compressed,
)

FORMS = ["channel", "spatial", "tucker2", "auto"]


def net():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 5, padding=2), nn.BatchNorm2d(12), nn.ReLU(inplace=True),
        nn.Conv2d(12, 24, 3, stride=2, bias=False), nn.BatchNorm2d(24), nn.ReLU(inplace=True),
        nn.Conv2d(24, 24, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(216, 10),
    )  # fmt: skip
    return model.eval()


def images(n=4, seed=0, channels=3):
    return torch.randn(n, channels, 11, 11, generator=torch.Generator().manual_seed(seed))


def batches():
    return [(part, torch.zeros(len(part))) for part in images(60).split(20)]


def outputs(model, x):
    with torch.no_grad():
        return model(x)


def same_function(one, other, x=None):
    x = images(seed=3) if x is None else x
    return torch.equal(outputs(one, x), outputs(other, x))


@pytest.fixture(scope="module")
def tucker():
    return compress(net(), images(), 0.5, form="tucker2")


# ---- apply ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("with_data", [False, True])
@pytest.mark.parametrize("cost", ["macs", "params"])
def test_applying_a_networks_own_plan_gives_that_network(form, with_data, cost):
    data = batches() if with_data else None
    small = compress(net(), images(), 0.6, cost, form, data)
    again = apply(net(), images(), small.plan, data)
    assert same_function(small, again)
    assert [replace(row, error=0) for row in again.plan] == [
        replace(row, error=0) for row in small.plan
    ]
    for one, other in zip(small.plan, again.plan, strict=True):
        assert other.error == pytest.approx(one.error, abs=1e-9)
    count = {"macs": count_macs, "params": lambda model, x: count_parameters(model)}[cost]
    saved = sum(row.before - row.after for row in again.plan)
    assert saved == count(net(), images()) - count(again, images())


def test_recalibrate_is_passed_on():
    plain, mended = (
        apply(net(), images(), compress(net(), images(), 0.5).plan, batches(), recalibrate)
        for recalibrate in (False, True)
    )
    assert not same_function(plain, mended)
    assert same_function(
        plain, apply(net(), images(), plain.plan, batches(), False)
    )  # twice the same


@pytest.mark.parametrize("with_data", [False, True])
def test_an_edited_plan_is_what_the_network_becomes(with_data):
    dense, data = net(), batches() if with_data else None
    plan = compress(dense, images(), 0.5, form="channel").plan
    edited = plan.edit("0", "tucker2", (2, 7)).edit("3", "spatial", 5).edit("9", "dense")
    assert plan == compress(dense, images(), 0.5, form="channel").plan  # the old one stays
    small = apply(dense, images(), edited, data)
    assert [len(small[i]) for i in (0, 3)] == [3, 2] and isinstance(small[9], nn.Linear)
    assert [part.out_channels for part in small[0]] == [2, 7, 12]
    assert small[3][0].kernel_size == (3, 1) and small[3][0].out_channels == 5
    rows = {row.name: row for row in small.plan}
    assert (rows["0"].form, rows["0"].rank) == ("tucker2", (2, 7))
    assert (rows["9"].form, rows["9"].rank, rows["9"].error) == ("dense", 0, 0)
    assert rows["0"].error > 0 < rows["3"].error
    assert rows["9"].after == rows["9"].before == 2160
    total = sum(row.after for row in small.plan)
    assert total == count_macs(small, images()) < count_macs(dense, images())
    assert isinstance(dense[0], nn.Conv2d) and not hasattr(dense, "plan")
    # Ranks may be numpy's, and pairs lists.
    twin = plan.edit("0", "tucker2", [2, 7]).edit("3", "spatial", np.int64(5)).edit("9", "dense")
    assert same_function(apply(dense, images(), Plan.from_json(twin.to_json()), data), small)


def test_a_plan_that_cuts_nothing_gives_the_network_itself():
    plan = compress(net(), images(), 1.0).plan
    for data in (None, batches()):
        assert same_function(apply(net(), images(), plan, data), net())


def test_a_plan_serves_other_image_sizes_and_dtypes():
    """Costs are counted anew; ranks stay."""

    class Pooled(nn.Sequential):
        def __init__(self):
            super().__init__(
                nn.Conv2d(3, 12, 3),
                nn.ReLU(),
                nn.AdaptiveAvgPool2d(1),
                nn.Flatten(),
                nn.Linear(12, 6),
            )

    torch.manual_seed(0)
    model, large = Pooled(), torch.randn(1, 3, 30, 30)
    plan = compress(model, images(), 0.5).plan
    small = apply(model, large, plan)
    assert sum(row.after for row in small.plan) == count_macs(small, large)
    assert [(r.name, r.form, r.rank) for r in small.plan] == [
        (r.name, r.form, r.rank) for r in plan
    ]
    half = apply(copy.deepcopy(model).to(torch.bfloat16), large.bfloat16(), plan)
    assert outputs(half, large.bfloat16()).dtype == torch.bfloat16


# ---- JSON and file -------------------------------------------------------------------------------


def test_json_keeps_pairs(tucker):
    plan = tucker.plan
    again = Plan.from_json(plan.to_json())
    assert again == plan and str(again) == str(plan) and hash(again.rows) == hash(plan.rows)
    pairs = [row.rank for row in again if row.form == "tucker2"]
    assert pairs and all(isinstance(pair, tuple) for pair in pairs)
    assert any(f"{p},{q}" in str(plan) for p, q in pairs)


def test_json_is_made_to_be_edited(tucker):
    """Who sets a form to dense by hand need not think of the rank."""
    table = json.loads(tucker.plan.to_json())
    assert set(table) == {"cost", "rows"}
    for row in table["rows"]:
        row["form"] = "dense"
    plan = Plan.from_json(json.dumps(table))
    assert all(row.rank == 0 for row in plan)
    assert same_function(apply(net(), images(), plan), net())
    assert "tucker2" not in str(plan)


@pytest.mark.parametrize("with_data", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_saved_networks_load(tmp_path, form, with_data):
    """With and without biases that the factors gained."""
    small = compress(net(), images(), 0.5, form=form, data=batches() if with_data else None)
    save_compressed(small, tmp_path / "small.safetensors")
    again = load_compressed(tmp_path / "small.safetensors", net())
    assert same_function(small, again) and again.plan == small.plan
    assert count_parameters(again) == count_parameters(small)


def test_a_file_with_a_wrong_plan_is_told(tmp_path, tucker):
    for change in (
        {"rank": (2, 99)},
        {"rank": (2.5, 3)},
        {"rank": 4},
        {"form": "channel"},
        {"form": "unheard"},
        {"name": "unheard"},
    ):
        broken = copy.deepcopy(tucker)
        i = next(i for i, row in enumerate(broken.plan) if row.form == "tucker2")
        rows = list(broken.plan.rows)
        rows[i] = replace(rows[i], **change)
        broken.plan = Plan(tuple(rows), "macs")
        save_compressed(broken, tmp_path / "broken.safetensors")
        with pytest.raises(ValueError, match="broken.safetensors was made from another network"):
            load_compressed(tmp_path / "broken.safetensors", net())


# ---- wrong plans ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "form", "rank", "message"),
    [
        ("0", "channel", 0, "rank=0 is too small: give an int from 1 to 12"),
        ("0", "channel", 13, "rank=13 exceeds 12"),
        ("0", "channel", 2.5, "rank=2.5 is not a whole number"),
        ("0", "channel", (2, 2), r"rank=\(2, 2\) is not a whole number"),
        ("0", "tucker2", 4, r"rank=4: give two for tucker2, .* up to \(3, 12\)"),
        ("0", "tucker2", (4, 2), r"rank\[0\]=4 exceeds 3"),
        ("0", "linear", 2, "form='linear' does not fit a Conv2d"),
        ("9", "channel", 2, "form='channel' does not fit a Linear: use 'linear'"),
        ("3", "svd", 2, "form='svd' does not fit a Conv2d"),
    ],
)
def test_edits_that_do_not_fit(name, form, rank, message):
    plan = compress(net(), images(), 0.5).plan.edit(name, form, rank)
    for data in (None, batches()):
        with pytest.raises(ValueError, match=message):
            apply(net(), images(), plan, data)


def test_edits_of_layers_that_cannot_be_cut(tucker):
    plan = tucker.plan
    with pytest.raises(ValueError, match="name='conv1' is not in the plan; use one of 0, 3, 6, 9"):
        plan.edit("conv1", "dense")
    with pytest.raises(ValueError, match="name='6' stays dense: it is a grouped convolution"):
        plan.edit("6", "channel", 2)
    assert plan.edit("6", "dense") == plan
    forced = [replace(row, form="channel", rank=2, reason="") for row in plan]
    with pytest.raises(ValueError, match="plan cuts '6', which stays dense: it is a grouped"):
        apply(net(), images(), Plan(tuple(forced), "macs"))


def test_plans_of_other_networks(tucker):
    other = nn.Sequential(nn.Conv2d(3, 12, 5), nn.ReLU(), nn.Conv2d(12, 4, 3))
    with pytest.raises(ValueError, match="plan is of another model: they differ in '2'"):
        apply(other, images(), tucker.plan)
    fewer = Plan(tucker.plan.rows[:-1], "macs")
    with pytest.raises(ValueError, match="they differ in '9'"):
        apply(net(), images(), fewer)
    with pytest.raises(ValueError, match="cost='flops' is unknown"):
        apply(net(), images(), Plan(tucker.plan.rows, "flops"))
    double = Plan((*tucker.plan.rows, tucker.plan.rows[0]), "macs")
    with pytest.raises(ValueError, match="they differ in '0'"):
        apply(net(), images(), double)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "3",
        "{}",
        '{"rows": []}',
        '{"rows": [{}], "cost": "macs"}',
        '{"rows": [{"name": "0", "rang": 2}], "cost": "macs"}',
    ],  # fmt: skip
)
def test_text_that_is_no_plan(text):
    with pytest.raises(ValueError, match="text holds no plan"):
        Plan.from_json(text)


# ---- why layers stay dense -----------------------------------------------------------------------


class Peculiar(nn.Module):
    """Layers whose weights are used by others, or by nobody."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)
        self.typed = nn.Conv2d(16, 16, 1)
        self.cosine = nn.Linear(16, 16)
        self.unused = nn.Linear(16, 16)
        self.embedding = nn.Embedding(16, 16)
        self.tied = nn.Linear(16, 16, bias=False)
        self.tied.weight = self.embedding.weight
        self.encoder = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = self.typed(self.conv(x).to(self.typed.weight.dtype)).flatten(2).mT
        x = nn.functional.linear(x, nn.functional.normalize(self.cosine.weight))
        return self.head(self.encoder(self.tied(x)).mean(1))


@pytest.mark.parametrize("with_data", [False, True])
@pytest.mark.parametrize("cost", ["macs", "params"])
def test_weights_that_others_read_stay(with_data, cost):
    torch.manual_seed(0)
    model = Peculiar().eval()
    small = compress(model, images(), 0.9, cost, data=batches() if with_data else None)
    reasons = {row.name: row.reason for row in small.plan}
    outside = "its weight is read from outside"
    assert reasons == {
        "conv": "",
        "typed": outside,
        "cosine": outside,
        "unused": "not called",
        "tied": "its weight is another module's, too",
        "encoder.self_attn.out_proj": outside,
        "encoder.linear1": outside,  # by torch's fused kernel
        "encoder.linear2": outside,
        "head": "",
    }
    count = {"macs": count_macs, "params": lambda model, x: count_parameters(model)}[cost]
    assert count(small, images()) <= 0.9 * count(model, images())
    assert outputs(small, images()).isfinite().all()
    assert small.tied.weight is small.embedding.weight


def test_looking_for_reasons_leaves_no_trace():
    model = Peculiar().train()
    model.head.eval()
    before = copy.deepcopy(model.state_dict())
    kinds, modes = ([f(m) for m in model.modules()] for f in (type, lambda m: m.training))
    dense_reasons(model, images())
    with pytest.raises(RuntimeError):
        dense_reasons(model, torch.randn(1, 5, 9, 9))
    assert [type(m) for m in model.modules()] == kinds
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_module_is_replaced_wherever_it_is_held():
    conv = nn.Conv2d(3, 3, 1)
    model = nn.ModuleDict({"a": conv, "b": nn.Sequential(nn.ReLU(), conv)})
    assert list(all_layers(model)) == ["a"]
    new = nn.Identity()
    assert replace_module(model, conv, new) is model
    assert model["a"] is new and model["b"][1] is new
    assert replace_module(conv, conv, new) is new


def test_rows_are_rows():
    row = Row("conv", "tucker2", [2, 3], 0.0, 10, 5)
    assert row.rank == (2, 3) and replace(row, form="dense").rank == 0
