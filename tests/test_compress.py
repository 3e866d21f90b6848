"""Whole networks: budgets kept, functions kept, files kept, and clear words where not."""

import copy
import io

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrizations

from lowrank_course import compress as package_compress
from lowrank_course.compress import apply, compress, fold_batch_norms
from lowrank_course.data import balanced_subset, load_images, make_loader
from lowrank_course.measure import count_macs, count_parameters
from lowrank_course.models import load_resnet18, resnet18
from lowrank_course.plan import Plan, load_compressed, save_compressed
from lowrank_course.train import evaluate

COUNT = {"macs": count_macs, "params": lambda model, example: count_parameters(model)}


@pytest.fixture(scope="module")
def digits():
    """The shipped digits network, a few images for statistics, others for judging."""
    train, val = load_images("train", "digits"), load_images("val", "digits")
    size = load_resnet18("digits").evaluation_size
    loader = make_loader(balanced_subset(train, 12), 60, size)
    judged = make_loader(balanced_subset(val, 12), 60, size)
    return load_resnet18("digits"), list(loader), list(judged)


def vgg():
    """Biased convolutions without batch norm, then two linear layers; trained on nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1, padding_mode="reflect"), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 32, (3, 1), padding="same", dilation=2), nn.ReLU(), nn.Flatten(),
        nn.Linear(32 * 16, 64), nn.ReLU(), nn.Dropout(), nn.Linear(64, 10),
    )  # fmt: skip
    return model.eval()


def images(n=4, size=16, channels=3, seed=0):
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(seed))


def batches(n=48, size=16, **options):
    x = images(n, size, **options)
    return [(part, torch.zeros(len(part), dtype=torch.long)) for part in x.split(16)]


def outputs(model, x):
    with torch.no_grad():
        return model(x)


def difference(model, other, x):
    """Relative distance of two models' outputs."""
    expected = outputs(model, x)
    return float((outputs(other, x) - expected).norm() / expected.norm())


def total(plan, key="after"):
    return sum(getattr(row, key) for row in plan)


# ---- budgets -----------------------------------------------------------------------------------


@pytest.mark.parametrize("cost", ["macs", "params"])
@pytest.mark.parametrize("with_data", [False, True])
@pytest.mark.parametrize("kind", ["digits", "vgg"])
def test_budget_is_kept_and_used(digits, kind, with_data, cost):
    model, loader, _ = digits if kind == "digits" else (vgg(), batches(), None)
    example, count = loader[0][0], COUNT[cost]
    for budget in (0.3, 0.6):
        small = compress(model, example, budget, cost, data=loader if with_data else None)
        share = count(small, example) / count(model, example)
        assert 0.85 * budget < share <= budget
        # The plan's own sums are what is counted.
        saved = total(small.plan, "before") - total(small.plan)
        assert saved == count(model, example) - count(small, example)


def test_budget_counts_every_call_and_every_folded_image():
    class Folded(nn.Module):
        """One layer called three times, on an image cut into four."""

        def __init__(self):
            super().__init__()
            self.first = nn.Conv2d(3, 24, 3)
            self.second = nn.Conv2d(24, 24, 3, padding=1)
            self.alias = self.second

        def forward(self, x):
            x = self.first(x.unflatten(1, (4, 3)).flatten(0, 1))
            return self.alias(self.second(self.second(x)))

    model, x = Folded(), images(2, channels=12)
    small = compress(model, x, 0.4)
    assert [row.name for row in small.plan] == ["first", "second"]
    assert total(small.plan, "before") == count_macs(model, x)
    assert total(small.plan) == count_macs(small, x) <= 0.4 * count_macs(model, x)
    assert small.alias is small.second and isinstance(small.second, nn.Sequential)
    assert isinstance(model.second, nn.Conv2d)


def test_budget_of_one_keeps_the_function_exactly(digits):
    dense, loader, _ = digits
    x = loader[0][0]
    for data in (None, loader, [(x[:2], x[:2])]):  # two images: responses of very low rank
        assert torch.equal(outputs(dense, x), outputs(compress(dense, x, 1.0, data=data), x))
    model = vgg()
    model[3].weight.data[5:] = 0  # of rank 5: factors would give the same up to rounding
    assert torch.equal(
        outputs(model, images()), outputs(compress(model, images(), 1, "params"), images())
    )


@pytest.mark.parametrize("cost", ["macs", "params"])
def test_unreachable_budget_names_one_that_works(digits, cost):
    dense, loader, _ = digits
    example = loader[0][0]
    with pytest.raises(ValueError, match="budget=0.001 cannot be reached") as caught:
        compress(dense, example, 0.001, cost)
    named = float(str(caught.value).split("model is ")[1].split()[0])
    small = compress(dense, example, named, cost)
    assert COUNT[cost](small, example) <= named * COUNT[cost](dense, example)
    with pytest.raises(ValueError, match="cannot be reached"):
        compress(dense, example, named - 0.002, cost)


# ---- what stays --------------------------------------------------------------------------------


def test_dense_is_left_untouched(digits):
    _, loader, _ = digits
    dense = load_resnet18("digits").train()
    dense.layer1.eval()
    dense.fc.register_forward_hook(lambda *_: None)
    modes = [module.training for module in dense.modules()]
    before = copy.deepcopy(dense.state_dict())
    small = compress(dense, loader[0][0], 0.4, data=loader)
    assert not any(module.training for module in small.modules())
    assert [module.training for module in dense.modules()] == modes
    assert all(torch.equal(before[key], value) for key, value in dense.state_dict().items())
    assert sum(len(module._forward_hooks) for module in dense.modules()) == 1
    assert not hasattr(dense, "plan")
    shared = {p.data_ptr() for p in dense.parameters()} & {p.data_ptr() for p in small.parameters()}
    assert not shared


def test_model_in_train_mode_gives_the_same_network(digits):
    dense, loader, _ = digits
    trained = copy.deepcopy(dense).train()
    x = loader[0][0]
    one, other = (compress(model, x, 0.4, data=loader) for model in (dense, trained))
    assert torch.equal(outputs(one, x), outputs(other, x))


@pytest.mark.parametrize("form", ["channel", "spatial"])
@pytest.mark.parametrize("with_data", [False, True])
def test_all_of_a_layers_rank_is_all_of_its_function(form, with_data):
    """A layer whose own rank is low costs less and loses nothing."""
    torch.manual_seed(0)
    if form == "channel":  # 5 (24 + 50) of 24 x 50 MACs a pixel
        rank, budget, conv = 5, 0.36, nn.Conv2d(2, 24, 5, padding=2)
        conv.weight.data = torch.einsum("or,rcij->ocij", torch.randn(24, 5), conv.weight[:5])
    else:  # 3 (6 + 36) of 12 x 18
        rank, budget, conv = 3, 0.65, nn.Conv2d(2, 12, 3, padding=1)
        column, row = torch.randn(3, 2, 3, 1), torch.randn(12, 3, 1, 3)
        conv.weight.data = torch.einsum("rcix,orxj->ocij", column, row)
    model = nn.Sequential(conv, nn.BatchNorm2d(len(conv.weight)), nn.ReLU()).eval()
    model[1].running_mean.normal_()
    model[1].weight.data.normal_()
    data = batches(channels=2) if with_data else None
    x = images(channels=2, seed=3)
    small = compress(model, x, budget, form=form, data=data, recalibrate=False)
    (found,) = small.plan
    assert (found.form, found.rank) == (form, rank)
    assert found.error < 1e-6
    assert difference(model, small, x) < 1e-4


def test_responses_beat_weights_at_equal_macs(digits):
    """The claim of chapter 07, before any recalibration, by output and by accuracy."""
    dense, loader, judged = digits
    x = torch.cat([images for images, _ in judged])
    for budget in (0.4, 0.6):
        by_weights, by_responses = (
            compress(dense, x, budget, form="channel", data=data, recalibrate=False)
            for data in (None, loader)
        )
        assert difference(dense, by_responses, x) < 0.8 * difference(dense, by_weights, x)
    small = compress(dense, x, 0.5, data=loader)
    assert evaluate(small, judged) > evaluate(dense, judged) - 5


def test_recalibrate_can_be_left_out(digits):
    dense, loader, _ = digits
    x = loader[0][0]
    plain, mended = (compress(dense, x, 0.3, data=loader, recalibrate=r) for r in (False, True))
    assert torch.equal(plain.bn1.running_mean, dense.bn1.running_mean)
    assert not torch.equal(mended.bn1.running_mean, dense.bn1.running_mean)
    assert not torch.equal(plain.fc[-1].weight, mended.fc[-1].weight)
    assert plain.plan == mended.plan


def test_one_pass_data_is_told(digits):
    dense, loader, _ = digits
    with pytest.raises(ValueError, match="used up after one pass"):
        compress(dense, loader[0][0], 0.4, data=iter(loader))


# ---- any module --------------------------------------------------------------------------------


class Odd(nn.Module):
    """Layers that cannot be factorised, beside one that can."""

    def __init__(self):
        super().__init__()
        self.plain = nn.Conv2d(3, 32, 3)
        self.grouped = nn.Conv2d(32, 32, 3, groups=32)
        self.hooked = parametrizations.weight_norm(nn.Conv2d(32, 8, 3))
        self.unused = nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 6)

    def forward(self, x):
        x = self.hooked(self.grouped(self.plain(x))).flatten(2).mT  # (N, tokens, 8)
        return self.head(self.attention(x, x, x)[0])


@pytest.mark.parametrize("with_data", [False, True])
def test_what_cannot_be_factorised_stays_dense_with_a_reason(with_data):
    torch.manual_seed(0)
    model = Odd()
    small = compress(model, images(), 0.8, data=batches() if with_data else None)
    reasons = {row.name: row.reason for row in small.plan}
    assert reasons.pop("plain") == "" == reasons.pop("head")
    assert "grouped convolution (groups=32)" in reasons["grouped"]
    assert reasons["unused"] == "not called"
    assert reasons["attention.out_proj"] == "its weight is read from outside"
    assert "ParametrizedConv2d" in reasons["hooked"] or "hook" in reasons["hooked"]
    ranks = {row.name: row.rank for row in small.plan}
    assert ranks["plain"] > 0 and all(ranks[name] == 0 for name in reasons)
    assert all(reason in str(small.plan) for reason in reasons.values())
    assert count_macs(small, images()) <= 0.8 * count_macs(model, images())


def test_linear_layers_on_tokens():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(2), nn.Linear(256, 64), nn.GELU(), nn.Linear(64, 256))
    example = images(3)  # three tokens an image
    small = compress(model, example, 0.4, data=batches())
    assert {row.form for row in small.plan} <= {"linear", "dense"}
    assert total(small.plan, "before") == count_macs(model, example) == 3 * 2 * 256 * 64
    assert total(small.plan) == count_macs(small, example)
    assert small(example).shape == (3, 3, 256)


def test_a_model_that_is_itself_a_layer(tmp_path):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 16, 3)
    small = compress(conv, images(), 0.5, data=batches())
    assert isinstance(small, nn.Sequential) and isinstance(conv, nn.Conv2d)
    assert count_macs(small, images()) <= 0.5 * count_macs(conv, images())
    assert difference(conv, small, images()) < 1
    save_compressed(small, tmp_path / "conv.safetensors")
    again = load_compressed(tmp_path / "conv.safetensors", conv)
    assert torch.equal(outputs(again, images()), outputs(small, images()))


def test_batch_norm_without_statistics():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16, track_running_stats=False))
    small = compress(model, images(), 0.5, data=batches())
    assert difference(model, small, images()) < 1


# ---- an ordinary module ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(digits):
    dense, loader, _ = digits
    return compress(dense, loader[0][0], 0.3, data=loader)


def test_compressed_network_is_an_ordinary_module(digits, small):
    x = digits[1][0][0][:8]
    expected = outputs(small, x)
    twin = copy.deepcopy(small)
    assert torch.equal(outputs(twin, x), expected) and twin.plan == small.plan
    twin.load_state_dict({k: v.clone() for k, v in small.state_dict().items()})
    pickled = io.BytesIO()
    torch.save(small, pickled)
    pickled.seek(0)
    assert torch.equal(outputs(torch.load(pickled, weights_only=False), x), expected)

    twin.train()(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in twin.parameters())
    torch.optim.SGD(twin.parameters(), 0.1).step()
    assert not torch.equal(outputs(twin.eval(), x), expected)
    assert torch.equal(outputs(small, x), expected)
    assert outputs(copy.deepcopy(small).double(), x.double()).dtype == torch.float64


def test_compressed_network_exports(small, digits):
    x = digits[1][0][0][:2]
    exported = torch.export.export(copy.deepcopy(small), (x,)).module()
    torch.testing.assert_close(outputs(exported, x), outputs(small, x), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def mixed():
    """Every form, a dense layer and a grouped one, in one small network with random statistics."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 5, 2, 2, padding_mode="reflect"), nn.BatchNorm2d(12), nn.ReLU(True),
        nn.Conv2d(12, 16, 3, padding="same", dilation=2, bias=False), nn.BatchNorm2d(16), nn.SiLU(),
        nn.Conv2d(16, 16, 3, groups=4, bias=False), nn.BatchNorm2d(16), nn.ReLU(True),
        nn.Conv2d(16, 12, (1, 3)), nn.BatchNorm2d(12, affine=False), nn.Dropout(), nn.Flatten(),
        nn.Linear(12 * 6 * 4, 20, bias=False), nn.BatchNorm1d(20), nn.ReLU(), nn.Linear(20, 10),
    ).eval()  # fmt: skip
    for norm in (m for m in model if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d)):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
        if norm.affine:
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)
    plan = compress(model, images(), 1.0).plan
    plan = plan.edit("0", "tucker2", (2, 6)).edit("3", "spatial", 9).edit("9", "channel", 5)
    return apply(model, images(), plan.edit("13", "linear", 7), batches())


def test_mixed_network_is_an_ordinary_module(mixed):
    x = images(seed=3)
    expected, state = outputs(mixed, x), copy.deepcopy(mixed.state_dict())
    twin = copy.deepcopy(mixed)
    twin.train()(x).square().mean().backward()
    assert all(p.requires_grad and p.grad.abs().max() > 0 for p in twin.parameters())
    torch.optim.SGD(twin.parameters(), 0.1).step()
    assert torch.equal(outputs(mixed, x), expected)
    assert all(torch.equal(state[key], value) for key, value in mixed.state_dict().items())
    wide = copy.deepcopy(mixed).to(torch.float64)
    torch.testing.assert_close(outputs(wide, x.double()).float(), expected, rtol=1e-3, atol=1e-4)
    half = copy.deepcopy(mixed).to(torch.bfloat16)
    assert outputs(half, x.bfloat16()).dtype == torch.bfloat16
    last = copy.deepcopy(mixed).to(memory_format=torch.channels_last)
    there = outputs(last, x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(there, expected, rtol=1e-4, atol=1e-5)
    assert outputs(copy.deepcopy(mixed).to("meta"), x.to("meta")).shape == expected.shape


def both(mixed):
    """The network as it trains, and as it is used for inference."""
    return mixed, fold_batch_norms(mixed, images())


def test_mixed_network_exports_for_any_batch_size(mixed):
    x = images(seed=3)
    for model in both(mixed):
        batch = torch.export.Dim("batch")
        program = torch.export.export(model, (x,), dynamic_shapes=({0: batch},))
        for n in (2, 4):
            found = outputs(program.module(), x[:n])
            torch.testing.assert_close(found, outputs(model, x[:n]), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.needs("c++", "g++", "clang++")
def test_mixed_network_compiles(mixed):
    x = images(seed=3)
    compiled = torch.compile(copy.deepcopy(mixed))
    torch.testing.assert_close(outputs(compiled, x), outputs(mixed, x), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_mixed_network_runs_in_onnx(mixed, tmp_path):
    hint = "needs onnxscript and onnxruntime: pip install -e '.[dev]'"
    pytest.importorskip("onnxscript", reason=hint)
    runtime = pytest.importorskip("onnxruntime", reason=hint)
    x = images(seed=3)
    for model in both(mixed):
        program = torch.onnx.export(model, (x,), dynamo=True, verbose=False)
        program.save(tmp_path / "small.onnx")
        session = runtime.InferenceSession(
            tmp_path / "small.onnx", providers=["CPUExecutionProvider"]
        )
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        np.testing.assert_allclose(found, outputs(model, x), rtol=1e-3, atol=1e-4)


# ---- batch norms folded for inference ----------------------------------------------------------


def norms(model):
    return [name for name, m in model.named_modules() if isinstance(m, _BatchNorm)]


def test_every_batch_norm_of_a_resnet_is_folded(small, digits):
    x = digits[1][0][0][:4]
    folded = fold_batch_norms(small, x)
    assert len(norms(small)) == 20 and not norms(folded)
    assert difference(small, folded, x) < 1e-5
    assert count_macs(folded, x) == count_macs(small, x)
    assert not hasattr(folded, "plan") and small.plan and not folded.training
    for row in small.plan:  # in the last factor
        if row.form == "channel" and "conv" in row.name:
            first, last = folded.get_submodule(row.name)
            assert torch.equal(first.weight, small.get_submodule(row.name)[0].weight)
            assert last.bias is not None
    assert not norms(fold_batch_norms(digits[0], x))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_folding_every_kind_of_layer(mixed, dtype):
    """Tucker-2, spatial, grouped, channel without affine, linear; to the last digit in float64."""
    model, x = copy.deepcopy(mixed).to(dtype), images(seed=3).to(dtype)
    folded = fold_batch_norms(model, x)
    assert len(norms(model)) == 5 and not norms(folded)
    assert difference(model, folded, x) < (1e-12 if dtype == torch.float64 else 0.05)
    assert outputs(folded, x).dtype == dtype


def test_folding_leaves_a_model_in_training_as_it_was(mixed):
    model = copy.deepcopy(mixed).train()
    model[1].eval()
    state, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    folded = fold_batch_norms(model, images())
    assert [m.training for m in model.modules()] == modes and model.plan == mixed.plan
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    shared = {p.data_ptr() for p in model.parameters()} & {
        p.data_ptr() for p in folded.parameters()
    }
    assert not shared


class Branching(nn.Module):
    """Batch norms that must stay, and two that need not."""

    def __init__(self):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(6))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(7))
        self.linear, self.by_token = nn.Linear(4, 6), nn.BatchNorm1d(6)
        self.fresh = nn.BatchNorm2d(4, track_running_stats=False)
        for norm in (*self.norms, self.by_token):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.3, 3)

    def forward(self, x):
        x = self.norms[0](x)  # in front
        y = self.convs[0](x)
        x = self.norms[1](y) + y  # the layer's output is used twice
        x = self.norms[2](self.convs[1](x))  # folded
        x = self.norms[3](self.convs[2](self.norms[3](self.convs[3](x))))  # one for two layers
        x = self.norms[5](self.norms[4](self.convs[4](x)))  # the first is folded
        x = self.fresh(self.convs[5](x)).flatten(2)[..., :6]  # (N, 4, 6)
        return {"answer": self.by_token(self.linear(x.mT)), "more": [x.sum(), 3]}  # (N, 6, 6)


def test_batch_norms_stay_where_folding_would_change_the_answer():
    torch.manual_seed(0)
    model = Branching().eval()
    folded = fold_batch_norms(model, images(channels=4))
    assert norms(folded) == [f"norms.{i}" for i in (0, 1, 3, 5, 6)] + ["by_token", "fresh"]
    x = images(channels=4, seed=3)
    torch.testing.assert_close(outputs(folded, x), outputs(model, x), rtol=1e-4, atol=1e-4)


def test_folding_what_does_not_fit(mixed, small, digits, tmp_path):
    with pytest.raises(ValueError, match=r"\(1, 4, 16, 16\) does not fit the model"):
        fold_batch_norms(mixed, images(1, channels=4))
    with pytest.raises(ValueError, match="example is a list"):
        fold_batch_norms(mixed, [1])
    folded = fold_batch_norms(small, digits[1][0][0])
    with pytest.raises(ValueError, match="model has no plan"):
        save_compressed(folded, tmp_path / "folded.safetensors")
    hooked = nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4))
    assert norms(fold_batch_norms(hooked, images())) == ["1"]  # its weight is made anew each time


def test_compressing_twice(digits, small):
    x = digits[1][0][0]
    smaller = compress(small, x, 0.7)
    assert count_macs(smaller, x) <= 0.7 * count_macs(small, x)


def test_compress_is_the_packages_front_door():
    assert package_compress is compress


# ---- plan and file -----------------------------------------------------------------------------


def test_plan_prints_every_layer_and_the_sum(small, digits):
    lines = str(small.plan).splitlines()
    rows = list(small.plan)
    assert len(lines) == len(rows) + 2
    for line, row in zip(lines[1:], rows, strict=False):
        assert line.split()[:2] == [row.name, row.form]
        assert f"{row.before:,.0f}" in line and f"{row.after:,.0f}" in line
        assert f" {row.rank} " in line if row.rank else " - " in line
    assert lines[-1].split()[0] == "macs"
    assert lines[-1].split()[1:] == [f"{total(rows, 'before'):,}", f"{total(rows):,}"]
    assert {row.form for row in rows} >= {"channel"} and max(map(len, lines)) < 100


def test_plan_survives_json(small):
    again = Plan.from_json(small.plan.to_json())
    assert again == small.plan and str(again) == str(small.plan)


@pytest.mark.parametrize("kind", ["digits", "vgg"])
def test_saved_file_loads_without_pickle(tmp_path, digits, small, kind):
    dense, x = digits[0], digits[1][0][0]
    if kind == "vgg":
        dense, x = vgg(), images()
        small = compress(dense, x, 0.4, "params")
    path = tmp_path / "small.safetensors"
    save_compressed(small, path)
    assert load_file(path).keys() == small.state_dict().keys()
    assert [file.name for file in tmp_path.iterdir()] == ["small.safetensors"]
    other = resnet18(16) if kind == "digits" else vgg()
    again = load_compressed(str(path), other.train())
    assert torch.equal(outputs(again, x), outputs(small, x))
    assert again.plan == small.plan and not again.training and other.training
    assert isinstance(other.get_submodule(small.plan.rows[0].name), nn.Conv2d)
    save_compressed(again, path)  # over itself


def test_file_with_a_shared_layer(tmp_path):
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, 3, padding=1)
    model = nn.Sequential(conv, nn.ReLU(), conv)
    small = compress(model, images(channels=8), 0.6)
    assert small[0] is small[2]
    save_compressed(small, tmp_path / "shared.safetensors")
    again = load_compressed(tmp_path / "shared.safetensors", model)
    assert again[0] is again[2]
    assert torch.equal(outputs(again, images(channels=8)), outputs(small, images(channels=8)))


def test_damaged_files_are_told(tmp_path, small):
    path = tmp_path / "small.safetensors"
    save_compressed(small, path)
    whole = path.read_bytes()
    damaged = tmp_path / "damaged.safetensors"
    state = {"weight": torch.zeros(2)}
    for make in (
        lambda: damaged.write_bytes(whole[: len(whole) // 2]),
        lambda: damaged.write_bytes(b""),
        lambda: damaged.write_bytes(b"no tensors here" * 100),
        lambda: save_file(state, damaged),
        lambda: save_file(state, damaged, metadata={"plan": "{"}),
        lambda: save_file(state, damaged, metadata={"plan": '{"rows": [{"a": 1}], "cost": ""}'}),
        lambda: damaged.unlink(),
    ):
        make()
        with pytest.raises(ValueError, match="damaged.safetensors holds no compressed network"):
            load_compressed(damaged, resnet18(16))
    assert path.read_bytes() == whole


@pytest.mark.parametrize("other", [lambda: resnet18(8), vgg, lambda: resnet18(16, 7)])
def test_file_of_another_network_is_told(tmp_path, small, other):
    path = tmp_path / "small.safetensors"
    save_compressed(small, path)
    model = other()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="was made from another network than model: .+"):
        load_compressed(path, model)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_saving_what_was_not_compressed(tmp_path):
    with pytest.raises(ValueError, match="model has no plan; pass what compress returned"):
        save_compressed(vgg(), tmp_path / "none.safetensors")
    assert not list(tmp_path.iterdir())


# ---- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [0, 0.0, -0.1, 1.5, float("nan"), float("inf")])
def test_budget_outside_its_range(budget):
    with pytest.raises(ValueError, match=r"budget=.* is not in \(0, 1\]"):
        compress(vgg(), images(), budget)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"cost": "flops"}, "cost='flops' is unknown; use one of macs, params"),
        ({"form": "tucker"}, "form='tucker' is unknown; use one of channel, spatial"),
    ],
)
def test_unknown_options(option, message):
    with pytest.raises(ValueError, match=message):
        compress(vgg(), images(), 0.5, **option)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_weights(value):
    model = vgg()
    model[3].weight.data[0, 0, 0, 0] = value
    with pytest.raises(ValueError, match="parameter 3.weight holds NaN or infinite values"):
        compress(model, images(), 0.5)


@pytest.mark.parametrize(
    ("example", "message"),
    [
        (torch.zeros(3, 16, 16), r"example has shape \(3, 16, 16\)"),
        (torch.zeros(1, 4, 16, 16), r"\(1, 4, 16, 16\) does not fit the model"),
        (torch.zeros(1, 3, 20, 20), r"\(1, 3, 20, 20\) does not fit the model"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), "dtype torch.uint8"),
        (torch.zeros(0, 3, 16, 16), r"\(0, 3, 16, 16\)"),
        (np.zeros((1, 3, 16, 16)), "example is a ndarray"),
    ],
)
def test_wrong_example(example, message):
    with pytest.raises(ValueError, match=message):
        compress(vgg(), example, 0.5)


@pytest.mark.parametrize(
    "model",
    [nn.Sequential(nn.MaxPool2d(2), nn.ReLU()), nn.Conv2d(3, 3, 3, groups=3), nn.BatchNorm2d(3)],
)
def test_nothing_to_factorise(model):
    with pytest.raises(ValueError, match="no convolution or linear layer that can be factorised"):
        compress(model, images(), 0.5)


def test_nan_data():
    data = batches()
    data[0][0][0] = float("nan")
    with pytest.raises(ValueError, match="layer 0 gives NaN or infinite values over data"):
        compress(vgg(), images(), 0.5, data=data)
