"""Streamed statistics against numpy on all outputs at once."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lowrank_course.models import resnet18
from lowrank_course.responses import (
    covariances,
    following_batch_norms,
    input_covariances,
    recalibrate,
    sensitivities,
)


class Net(nn.Module):
    """A biased convolution with a large mean, one that is called twice, a layer on tokens."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3, stride=2)
        self.twice = nn.Conv2d(5, 5, 1)
        self.dropout = nn.Dropout()
        self.tokens = nn.Linear(5, 4)
        nn.init.normal_(self.stem.bias, 3000, 100)

    def forward(self, x):
        x = (self.stem(x) - 3000) / 100
        x = self.twice(self.dropout(self.twice(x)))  # (N, 5, h, w)
        return self.tokens(x.flatten(2).mT)  # (N, h w, 4)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


def data(images=12, batch=5, size=9, seed=1):
    """Images whose brightness drifts from batch to batch, as (images, labels) batches."""
    x = torch.randn(images, 3, size, size, generator=torch.Generator().manual_seed(seed))
    x = x + torch.linspace(-2, 2, images)[:, None, None, None]
    return [(part, torch.zeros(len(part), dtype=torch.long)) for part in x.split(batch)]


def collected(model, batches, name):
    """All outputs of a layer as (positions, O), float64, over all its calls."""
    outputs = []
    layer = model.get_submodule(name)
    hook = layer.register_forward_hook(lambda *args: outputs.append(args[2]))
    with torch.no_grad():
        for images, _ in batches:
            model(images)
    hook.remove()
    if isinstance(layer, nn.Conv2d):
        outputs = [y.permute(0, 2, 3, 1) for y in outputs]
    return np.concatenate([y.flatten(0, -2).double().numpy() for y in outputs])


@pytest.mark.parametrize("name", ["stem", "twice", "tokens"])
def test_covariances_are_numpys(net, name):
    mean, covariance = covariances(net, data(), [name])[name]
    outputs = collected(net, data(), name)
    expected = np.cov(outputs.T, bias=True)
    assert mean.dtype == covariance.dtype == torch.float64
    np.testing.assert_allclose(mean, outputs.mean(0), rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(covariance, expected, rtol=1e-4, atol=1e-5 * expected.max())


def test_streamed_equals_one_batch(net):
    names = ["stem", "twice", "tokens"]
    streamed, whole = (covariances(net, data(batch=size), names) for size in (1, 12))
    for name in names:
        for one, other in zip(streamed[name], whole[name], strict=True):
            # 3000 in float32 is known to 2e-4 only, and batch sizes round differently.
            torch.testing.assert_close(one, other, rtol=0, atol=5e-4 * float(other.abs().max()))


def test_covariances_leave_the_model_as_it_was(net):
    net.train()
    net.tokens.eval()
    before = copy.deepcopy(net.state_dict())
    expected = covariances(copy.deepcopy(net).eval(), data(), ["tokens"])["tokens"]
    found = covariances(net, data(), ["tokens"])["tokens"]  # dropout off meanwhile
    assert torch.equal(found[1], expected[1])
    assert net.dropout.training and not net.tokens.training
    assert not any(module._forward_hooks for module in net.modules())
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())


def test_one_shot_data_is_told(net):
    batches = iter(data())
    covariances(net, batches, ["stem"])
    for again in (lambda: covariances(net, batches, ["stem"]), lambda: recalibrate(net, batches)):
        with pytest.raises(ValueError, match="used up after one pass.*pass a DataLoader or a list"):
            again()
    assert not net.stem._forward_hooks


def test_nan_data_is_told(net):
    broken = data()
    broken[1][0][0, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="layer stem gives NaN or infinite values over data"):
        covariances(net, broken, ["stem"])


# What the answer feels


def classifier(inplace=True, seed=0):
    """Two convolutions with ReLUs behind that overwrite their outputs, and a linear layer."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False), nn.ReLU(inplace), nn.Conv2d(4, 5, 3, stride=2),
        nn.ReLU(inplace), nn.Flatten(), nn.Linear(45, 6),
    )  # fmt: skip
    for parameter in model.parameters():
        parameter.data *= 2
    return model.double().eval()


def many(images=768, batch=100):
    x = torch.randn(images, 3, 9, 9, generator=torch.Generator().manual_seed(3)).double()
    return [(part, None) for part in x.split(batch)]  # no labels


class NoLabels(list):
    """Stands where labels would: may be cut, holds nothing."""

    def __getitem__(self, _):
        return self


def unlabelled(batches):
    return [(images, NoLabels()) for images, _ in batches]


@pytest.mark.parametrize("name", ["0", "2", "5"])
def test_sensitivity_says_how_far_an_error_moves_the_answer(name):
    """KL(p || p_e) over many draws of a tiny error e against e^T G e / 2, in nats."""
    model, batches = classifier(), unlabelled(many())
    G = sensitivities(model, batches, [name], images=768)[name]
    assert G.dtype == torch.float64
    torch.testing.assert_close(G, G.mT)
    values, directions = torch.linalg.eigh(G)
    assert values.min() > -1e-6 * values.max()
    x = torch.cat([images for images, _ in batches])
    with torch.no_grad():
        log_p = model(x).log_softmax(1)
    numbers = torch.Generator().manual_seed(0)
    # Along the directions that are felt most and least, so that more than the trace is checked.
    for direction in directions.mT[[0, -1]]:

        def disturb(layer, _, y, direction=direction):
            size = torch.randn(y[:, :1].shape, generator=numbers, dtype=torch.float64)
            return y + 1e-3 * size * direction.view(-1, *[1] * (y.ndim - 2))

        hook = model[int(name)].register_forward_hook(disturb)
        with torch.no_grad():
            moved = [
                F.kl_div(model(x).log_softmax(1), log_p, log_target=True, reduction="batchmean")
                for _ in range(8)
            ]
        hook.remove()
        expected = float(direction @ G @ direction) * 1e-6 / 2
        rounding = 1e-3 * float(values.max()) * 1e-6
        assert float(torch.stack(moved).mean()) == pytest.approx(expected, 0.15, abs=rounding)


def test_sensitivities_see_the_output_before_a_relu_in_place():
    names = ["0", "2", "5"]
    one, other = (
        sensitivities(classifier(inplace), unlabelled(many(64)), names) for inplace in (True, False)
    )
    for name in names:
        assert torch.equal(one[name], other[name]) and one[name].abs().max() > 0


def test_sensitivities_do_without_gradients_of_parameters_and_leave_the_model_as_it_was():
    model = classifier().train()
    model[5].eval()
    expected = sensitivities(model, unlabelled(many(64)), ["2"])["2"]
    model.requires_grad_(False)
    model[2].weight.grad = torch.ones_like(model[2].weight)
    before, batches = copy.deepcopy(model.state_dict()), unlabelled(many(64))
    images = [part.clone() for part, _ in batches]
    torch.testing.assert_close(sensitivities(model, batches, ["2"])["2"], expected)
    assert torch.equal(model[2].weight.grad, torch.ones_like(model[2].weight))
    assert model[0].weight.grad is None and not any(p.requires_grad for p in model.parameters())
    assert model.training and not model[5].training and torch.is_grad_enabled()
    assert not any(module._forward_hooks for module in model.modules())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    for part, (given, _) in zip(images, batches, strict=True):
        assert torch.equal(part, given) and not given.requires_grad


def test_sensitivities_use_the_first_images_only():
    model, batches = classifier(), many(96, batch=40)
    broken = [*batches[:1], (batches[1][0] * float("nan"), None)]
    found = sensitivities(model, unlabelled(broken), ["0"], images=40)["0"]
    assert torch.equal(found, sensitivities(model, unlabelled(batches[:1]), ["0"])["0"])


def test_sensitivities_of_any_model():
    class Any(nn.Module):
        """Changes its input in place, names its arguments, has a layer that nothing feels."""

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)
            self.unfelt = nn.Conv2d(3, 4, 3)
            self.tokens = nn.Linear(4, 5)

        def forward(self, x):
            self.unfelt(x)
            y = self.conv(input=x.sub_(0.5)).flatten(2).mT  # (N, positions, 4)
            return self.tokens(y).mT  # (N, 5, positions): many answers an image

    model, batches = Any(), unlabelled([(torch.randn(6, 3, 7, 7), None)])
    felt = sensitivities(model, batches, ["conv", "unfelt", "tokens"])
    assert felt["unfelt"].abs().max() == 0 and felt["conv"].abs().max() > 0
    assert felt["tokens"].shape == (5, 5)
    assert input_covariances(model, batches, ["conv"])["conv"][0].shape == (3, 3)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda y: {"out": y}, "model gives no class scores"),
        (lambda y: y.mean((1, 2, 3)), "model gives no class scores"),
        (lambda y: y.mean((1, 2, 3))[:, None], "model gives no class scores"),
        (lambda y: y.detach().mean((2, 3)), "no gradient leads from the model's answer"),
        (lambda y: (y > 0).float().mean((2, 3)), "no gradient leads from the model's answer"),
    ],
)
def test_answers_that_say_nothing(answer, message):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return answer(self.conv(x))

    with pytest.raises(ValueError, match=message):
        sensitivities(Model(), data(), ["conv"])


# What convolutions take in


def patches(x, conv):
    """(N * positions, C*kh*kw), float64, without padding."""
    unfolded = F.unfold(x.double(), conv.kernel_size, conv.dilation)
    return unfolded.movedim(1, 2).flatten(0, 1).numpy()


def test_input_covariance_of_a_1x1_convolution_is_numpys(net):
    outputs = []
    hook = net.twice.register_forward_hook(lambda _, args, __: outputs.append(args[0]))
    with torch.no_grad():
        for images, _ in data():
            net(images)
    hook.remove()
    channels, rows, columns = input_covariances(net, data(), ["twice", "tokens"])["twice"]
    expected = np.cov(np.concatenate([patches(x, net.twice) for x in outputs]).T, bias=True)
    np.testing.assert_allclose(channels, expected, rtol=1e-4, atol=1e-5 * expected.max())
    assert rows.tolist() == columns.tolist() == [[1.0]]
    assert "tokens" not in input_covariances(net, data(), ["tokens"])


@pytest.mark.parametrize("dilation", [1, (2, 1)])
def test_input_covariances_of_separable_images_are_exact(dilation):
    """Channels, rows and columns mixed by one matrix each: the patches' covariance is their
    Kronecker product. The images wrap around, so that all positions look alike."""
    numbers = torch.Generator().manual_seed(0)
    channels = torch.randn(3, 3, generator=numbers)

    def circulant(n):
        first = torch.exp(-torch.arange(n).minimum(n - torch.arange(n)))
        return torch.stack([first.roll(i) for i in range(n)])

    down, across = circulant(6), circulant(5) + 0.3
    mixing = torch.kron(channels, torch.kron(down, across))  # (3*6*5, 3*6*5)
    images = torch.cat([mixing.mT, -mixing.mT]).reshape(-1, 3, 6, 5)  # together of mean zero
    conv = nn.Conv2d(3, 4, (3, 2), dilation=dilation)
    batches = [(part + 7, None) for part in images.split(50)]
    parts = input_covariances(conv, unlabelled(batches), [""], images=len(images))[""]
    expected = np.cov(patches(images, conv).T, bias=True)
    product = torch.kron(parts[0], torch.kron(parts[1], parts[2]))
    np.testing.assert_allclose(product, expected, atol=2e-5 * expected.max())
    for part in parts[1:]:
        assert torch.equal(part, part.mT) and torch.equal(part.diagonal(), part.new_ones(len(part)))


def test_input_covariances_of_images_smaller_than_the_kernel_and_of_nothing():
    conv = nn.Conv2d(2, 3, 5, padding=2)
    x = torch.randn(6, 2, 3, 3)
    _, rows, _ = input_covariances(conv, unlabelled([(x, None), (x + 1, None)]), [""])[""]
    assert rows.shape == (5, 5) and rows[0, 3] == rows[0, 4] == 0  # never seen together
    channels, rows, _ = input_covariances(conv, unlabelled([(0 * x, None)]), [""])[""]
    assert channels.abs().max() == 0 and torch.equal(rows, torch.eye(5).double())


def test_following_batch_norms_of_a_resnet():
    model = resnet18(4).train()
    found = following_batch_norms(model, torch.randn(2, 3, 32, 32))
    expected = {"conv1": model.bn1}
    for stage in (1, 2, 3, 4):
        for block in (0, 1):
            for i in (1, 2):
                name = f"layer{stage}.{block}"
                expected[f"{name}.conv{i}"] = model.get_submodule(f"{name}.bn{i}")
        if stage > 1:
            name = f"layer{stage}.0.downsample"
            expected[f"{name}.0"] = model.get_submodule(f"{name}.1")
    assert found == expected  # modules compare by identity; fc is not in it
    assert model.training


def test_following_means_directly_behind():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.BatchNorm2d(4),
        nn.Conv2d(4, 4, 1), nn.MaxPool2d(2), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1),
        nn.Flatten(), nn.Linear(36, 6), nn.BatchNorm1d(6),
    )  # fmt: skip
    assert following_batch_norms(model, torch.randn(2, 3, 8, 8)) == {"8": model[9]}


class Repeated(nn.Module):
    """Layers and batch norms that are used more than once; only the last pair is a pair."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(5))
        self.norms = nn.ModuleList(nn.BatchNorm2d(4).eval() for _ in range(5))

    def forward(self, x):
        a, b, c, d, e = self.layers
        k, m, n, o, p = self.norms
        x = k(b(k(a(x))))  # one batch norm behind two layers
        x = m(c(m(c(x))))  # both twice
        y = d(x)
        return p(e(n(y) + o(y)))  # two batch norms behind one layer


def test_one_layer_has_one_batch_norm():
    model = Repeated()
    assert following_batch_norms(model, torch.randn(2, 4, 3, 3)) == {"layers.4": model.norms[4]}


def test_batch_norms_of_tokens_normalise_something_else():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(8)

        def forward(self, x):
            return self.norm(self.linear(x.flatten(2)))  # (N, 8 tokens, 8): by token

    assert following_batch_norms(Tokens(), torch.randn(2, 8, 2, 4)) == {}


def normed():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.Dropout(0.5),
        nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6, momentum=None),
        nn.BatchNorm2d(6, track_running_stats=False),
    )  # fmt: skip
    for norm in (model[1], model[4]):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    return model


def test_recalibrate_measures_the_data_and_nothing_else():
    model = normed().train()
    model[1].eval()  # a mixture of modes
    before = copy.deepcopy(model.state_dict())
    x = torch.cat([images for images, _ in data()])
    recalibrate(model, [(x, x)])
    with torch.no_grad():
        first = model[0](x)  # (N, 4, h, w)
        model.eval()
        second = model[3](model[1](first))  # no dropout between
    for norm, y in ((model[1], first), (model[4], second)):
        variance, mean = torch.var_mean(y, dim=(0, 2, 3))
        torch.testing.assert_close(norm.running_mean, mean, rtol=1e-4, atol=1e-4)
        # The second layer saw the first one normalised by this very batch: biased, not unbiased.
        torch.testing.assert_close(norm.running_var, variance, rtol=5e-3, atol=1e-4)
    assert [model[1].momentum, model[4].momentum] == [0.3, None]
    weights = [key for key in before if "running" not in key and "tracked" not in key]
    assert len(weights) == 10
    assert all(torch.equal(before[key], model.state_dict()[key]) for key in weights)


def test_recalibrate_restores_the_modes():
    model = normed().train()
    model[1].eval()
    modes = [module.training for module in model.modules()]
    recalibrate(model, data())
    assert [module.training for module in model.modules()] == modes


def test_recalibrate_averages_over_batches():
    """Equal batches count alike: neither the last one nor the old statistics weigh more."""
    model, batches = normed(), data(batch=4)
    recalibrate(model, batches)
    with torch.no_grad():
        parts = [torch.var_mean(model[0](x), dim=(0, 2, 3)) for x, _ in batches]
    variances, means = zip(*parts, strict=True)
    torch.testing.assert_close(model[1].running_mean, torch.stack(means).mean(0))
    torch.testing.assert_close(model[1].running_var, torch.stack(variances).mean(0))


def test_a_failed_recalibration_changes_nothing():
    model = normed()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError):
        recalibrate(model, [*data(), (torch.ones(1, 7, 9, 9), torch.zeros(1))])
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert model[1].momentum == 0.3 and model.training
