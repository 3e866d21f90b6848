"""Refitted networks against the dense ones: what was mixed up comes back, a cut is mended."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lowrank_course.compress import compress
from lowrank_course.data import balanced_subset, load_images, make_loader
from lowrank_course.measure import count_macs, count_parameters
from lowrank_course.models import load_resnet18
from lowrank_course.refit import refit


def images(n=64, size=9, channels=3, seed=0):
    return torch.randn(n, channels, size, size, generator=torch.Generator().manual_seed(seed))


def batches(n=64, **options):
    return [(part, torch.zeros(len(part))) for part in images(n, **options).split(20)]


def outputs(model, x):
    with torch.no_grad():
        return model(x)


def difference(model, other, x):
    expected = outputs(model, x)
    return float((outputs(other, x) - expected).norm() / expected.norm())


def net(bias=True, norm=False):
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(3, 6, 3, bias=bias),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 8, 3, bias=bias),
        *([nn.BatchNorm2d(8)] if norm else []),
        nn.ReLU(inplace=True),
        nn.Flatten(),
        nn.Linear(200, 5, bias=bias),
    ]
    model = nn.Sequential(*layers).eval()
    if norm:
        model[3].running_mean.normal_()
        model[3].running_var.uniform_(0.5, 2)
    return model


def mixed(layer):
    """Outputs mixed by an invertible matrix and shifted, as a cut before the layer would."""
    outputs = len(layer.weight)
    numbers = torch.Generator().manual_seed(1)
    M = torch.eye(outputs) + torch.randn(outputs, outputs, generator=numbers) / outputs**0.5 / 2
    layer.weight.data = torch.tensordot(M, layer.weight.data, 1)
    if layer.bias is not None:
        layer.bias.data = M @ layer.bias.data + torch.randn(outputs, generator=numbers)


@pytest.mark.parametrize("name", ["0", "2", "5"])
@pytest.mark.parametrize("change", ["scaled", "mixed"])
def test_what_was_mixed_up_comes_back(name, change):
    dense = net()
    small = copy.deepcopy(dense)
    layer = small.get_submodule(name)
    if change == "mixed":
        mixed(layer)
    else:
        layer.weight.data *= 3
    x = images(seed=5)
    errors = [difference(dense, small, x)]
    for _ in range(4):  # each pass closes most of the gap; the ridge leaves a little
        refit(small, dense, batches(), [name])
        errors.append(difference(dense, small, x))
    assert errors[0] > 0.2 and errors[1] < 0.15 * errors[0]
    assert errors[-1] < 0.02


def test_a_network_that_needs_nothing_stays():
    dense = net(norm=True)
    small = copy.deepcopy(dense)
    refit(small, dense, batches(), ["0", "2", "6"])
    assert difference(dense, small, images(seed=5)) < 1e-4


def test_the_shift_of_a_layer_without_bias_goes_into_the_batch_norm_behind():
    dense = net(bias=False, norm=True)
    dense[0].bias = nn.Parameter(torch.randn(6))
    small = copy.deepcopy(dense)
    small[0].bias.data += 1
    x = images(seed=5)
    before = difference(dense, small, x)
    refit(small, dense, batches(), ["2"])
    assert difference(dense, small, x) < 0.3 * before
    assert small[2].bias is None and not torch.equal(small[3].running_mean, dense[3].running_mean)
    for key in ("running_var", "weight", "bias"):
        assert torch.equal(getattr(small[3], key), getattr(dense[3], key))


def test_a_shift_without_a_place_is_not_fitted():
    """Without bias and batch norm, y ≈ B z is fitted as it stands, mean included."""
    dense = net(bias=False)
    small = copy.deepcopy(dense)
    small[2].weight.data *= 1.5
    refit(small, dense, batches(), ["2", "5"])
    assert difference(dense, small, images(seed=5)) < 0.05
    # The first layer's outputs, all shifted by one: a regression that counts on a shift of its
    # own would divide by the variance; this one divides by the second moment.
    dense[0].bias = nn.Parameter(torch.zeros(6))
    small = copy.deepcopy(dense)
    small[0].bias.data += 1
    before = difference(dense, small, images(seed=5))
    refit(small, dense, batches(), ["2"])
    assert difference(dense, small, images(seed=5)) < 0.8 * before


class Shared(nn.Module):
    """A layer that is called twice, and one that two names hold."""

    def __init__(self):
        super().__init__()
        self.twice = nn.Conv2d(3, 3, 3, padding=1)
        self.one = nn.Conv2d(3, 4, 1)
        self.other = self.one
        self.tokens = nn.Linear(4, 4)

    def forward(self, x):
        x = self.other(self.twice(self.twice(x).relu()))
        return self.tokens(x.flatten(2).mT).mean(1)


def test_layers_that_are_called_twice_are_fitted_once():
    torch.manual_seed(0)
    dense = Shared().eval()
    small = copy.deepcopy(dense)
    small.twice.weight.data *= 1.3
    x = images(seed=5)
    before = difference(dense, small, x)
    refit(small, dense, batches(), ["twice", "one", "tokens"])
    assert difference(dense, small, x) < 0.3 * before
    assert small.other is small.one


def test_few_images_change_little():
    dense = net()
    small = copy.deepcopy(dense)
    for layer in (small[2], small[5]):
        layer.weight.data += 0.3 * layer.weight.std() * torch.randn_like(layer.weight)
    moved = []
    for n in (2, 8, 64):
        fitted = copy.deepcopy(small)
        refit(fitted, dense, batches(n), ["5"])  # one row an image: fewer than 5 at first
        moved.append(float((fitted[5].weight - small[5].weight).detach().norm()))
    assert moved[0] < moved[-1]
    constant = [(torch.ones(4, 3, 9, 9), None)]
    fitted = copy.deepcopy(small)
    refit(fitted, dense, [(x, torch.zeros(4)) for x, _ in constant], ["2", "5"])
    assert all(torch.isfinite(p).all() for p in fitted.parameters())


def test_only_the_first_images_are_used():
    dense = net()
    small = copy.deepcopy(dense)
    small[2].weight.data *= 2
    broken = [*batches(40), (images() * float("nan"), torch.zeros(64))]
    twin = copy.deepcopy(small)
    refit(small, dense, broken, ["2", "5"], images=40)
    refit(twin, dense, batches(40), ["2", "5"])
    assert all(
        torch.equal(p, q) for p, q in zip(small.parameters(), twin.parameters(), strict=True)
    )


def test_both_models_keep_modes_hooks_and_the_dense_one_everything():
    dense = net(norm=True).train()
    dense[0].eval()
    small = copy.deepcopy(dense)
    small[2].weight.data *= 2
    before = copy.deepcopy(dense.state_dict())
    modes = [m.training for m in dense.modules()]
    refit(small, dense, batches(), ["0", "2", "6"])
    for model in (dense, small):
        assert [m.training for m in model.modules()] == modes
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert all(torch.equal(before[key], value) for key, value in dense.state_dict().items())


def test_an_error_leaves_no_hooks():
    dense, small = net(), net()
    with pytest.raises((RuntimeError, ValueError)):
        refit(small, dense, [(torch.randn(4, 7, 9, 9), torch.zeros(4))], ["0", "2"])
    assert not any(m._forward_hooks for model in (dense, small) for m in model.modules())


# ---- on the digits -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    train, holdout = load_images("train", "digits"), load_images("holdout", "digits")
    dense = load_resnet18("digits")
    size = dense.evaluation_size
    data = list(make_loader(balanced_subset(train, 20), 60, size))
    return dense, data, torch.cat([x for x, _ in make_loader(holdout, 100, size)])


def kl(dense, small, x):
    """How far the answers moved, in nats an image."""
    p, q = (outputs(model, x).log_softmax(1) for model in (dense, small))
    return float(F.kl_div(q, p, log_target=True, reduction="batchmean"))


@pytest.mark.parametrize("budget", [0.5, 0.3, 0.2])
def test_digits_are_better_with_refit_front_to_back(digits, budget):
    dense, data, x = digits
    cut = compress(dense, x, budget, data=data, recalibrate=False)
    names = [row.name for row in cut.plan if not row.reason]
    fitted = copy.deepcopy(cut)
    refit(fitted, dense, data, names)
    assert kl(dense, fitted, x) < 0.5 * kl(dense, cut, x)

    # All layers at once: each is fitted behind predecessors that are not mended.
    at_once = copy.deepcopy(cut)
    for name in names:
        one = copy.deepcopy(cut)
        refit(one, dense, data, [name])
        before, after = cut.state_dict(), one.state_dict()
        changed = {k: v for k, v in after.items() if not torch.equal(v, before[k])}
        at_once.load_state_dict(changed, strict=False)
    assert kl(dense, fitted, x) < kl(dense, at_once, x)

    # Nothing but numbers changed.
    assert count_parameters(fitted) == count_parameters(cut)
    assert count_macs(fitted, x) == count_macs(cut, x)
    assert {k: v.shape for k, v in fitted.state_dict().items()} == {
        k: v.shape for k, v in cut.state_dict().items()
    }
    for row in cut.plan:
        assert type(fitted.get_submodule(row.name)) is type(cut.get_submodule(row.name))
