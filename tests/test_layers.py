"""Every form against the layer it replaces, its formulas against what is counted."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrizations, spectral_norm
from torch.utils.flop_counter import FlopCounterMode

from lowrank_course import layers
from lowrank_course.layers import channel_from_basis, factorise, floored_scale, full_rank, supported

PADDING_MODES = ["zeros", "reflect", "replicate", "circular"]
FORMS = pytest.mark.parametrize("form", ["channel", "spatial", "tucker2"])
MATRIX_FORMS = pytest.mark.parametrize("form", ["channel", "spatial"])
PRECISIONS = pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float64, 1e-10), (torch.float32, 1e-5)]
)


def randomise(layer, seed):
    """Random weights and bias; returns the generator for what else the test draws."""
    numbers = torch.Generator().manual_seed(seed)
    for values in layer.parameters():
        values.data = torch.randn(values.shape, generator=numbers, dtype=torch.float64)
    return numbers


def pairs(low, high):
    return st.tuples(st.integers(low, high), st.integers(low, high))


@st.composite
def convolutions(draw, bias=None):
    """A convolution of any geometry and an input (2, C, h, w), both float64."""
    padding = draw(st.one_of(st.sampled_from(["same", "valid"]), st.integers(0, 3), pairs(0, 3)))
    stride = 1 if padding == "same" else draw(st.one_of(st.integers(1, 3), pairs(1, 3)))
    conv = nn.Conv2d(
        draw(st.integers(1, 5)),
        draw(st.integers(1, 6)),
        draw(pairs(1, 4)),
        stride,
        padding,
        draw(st.one_of(st.integers(1, 2), pairs(1, 2))),
        bias=draw(st.booleans()) if bias is None else bias,
        padding_mode=draw(st.sampled_from(PADDING_MODES)),
    )
    numbers = randomise(conv, draw(st.integers(0, 10**6)))
    shape = (2, conv.in_channels, *draw(pairs(8, 11)))
    return conv, torch.randn(shape, generator=numbers, dtype=torch.float64)


@st.composite
def linears(draw):
    layer = nn.Linear(draw(st.integers(1, 7)), draw(st.integers(1, 7)), bias=draw(st.booleans()))
    numbers = randomise(layer, draw(st.integers(0, 10**6)))
    tokens = draw(st.lists(st.integers(1, 3), max_size=2))
    shape = (1, *tokens, layer.in_features)
    return layer, torch.randn(shape, generator=numbers, dtype=torch.float64)


@st.composite
def some_rank(draw, layer, form):
    full = full_rank(layer, form)
    if isinstance(full, tuple):
        return tuple(draw(st.integers(1, n)) for n in full)
    return draw(st.integers(1, full))


def relative_error(copied, layer, x):
    with torch.no_grad():
        output = layer(x)
        return float((copied(x) - output).norm() / output.norm())


def count(module):
    return sum(values.numel() for values in module.parameters())


def counted_macs(module, x):
    with FlopCounterMode(display=False) as counter:
        module(x[:1])
    return counter.get_total_flops() / 2


@FORMS
@PRECISIONS
@given(drawn=convolutions())
def test_full_rank_is_the_layer_itself(form, dtype, limit, drawn):
    conv, x = drawn[0].to(dtype), drawn[1].to(dtype)
    exact = factorise(conv, form, full_rank(conv, form))
    assert exact(x).dtype == dtype
    assert relative_error(exact, conv, x) < limit


@PRECISIONS
@given(drawn=linears())
def test_full_rank_is_the_linear_layer_itself(dtype, limit, drawn):
    layer, x = drawn[0].to(dtype), drawn[1].to(dtype)
    assert relative_error(factorise(layer, "linear", full_rank(layer, "linear")), layer, x) < limit


@MATRIX_FORMS
@given(drawn=convolutions())
def test_error_never_rises_with_rank_and_is_the_least(form, drawn):
    conv, _ = drawn
    O, C, kh, kw = conv.weight.shape  # noqa: E741
    W = conv.weight.detach().numpy()
    unfolded = {
        "channel": W.reshape(O, C * kh * kw),
        "spatial": W.transpose(1, 2, 0, 3).reshape(C * kh, O * kw),
    }[form]
    singular_values = np.linalg.svd(unfolded, compute_uv=False)
    errors = []
    for rank in range(1, full_rank(conv, form) + 1):
        first, second = (part.weight.detach() for part in factorise(conv, form, rank))
        assert float(first.norm()) == pytest.approx(float(second.norm()))  # balanced
        if form == "channel":
            copied = torch.einsum("orab,rcij->ocij", second, first)
        else:
            copied = torch.einsum("oraj,rcib->ocij", second, first)
        errors.append(float((conv.weight.detach() - copied).norm()))
        least = np.sqrt((singular_values[rank:] ** 2).sum())
        assert errors[-1] == pytest.approx(least, abs=1e-9)  # Eckart-Young
    assert all(later <= earlier + 1e-9 for earlier, later in zip(errors, errors[1:], strict=False))


@given(drawn=convolutions(), data=st.data())
def test_tucker2_error_lies_between_its_truncations(drawn, data):
    """Above the larger of both, below their sum (De Lathauwer et al. 2000, property 10)."""
    conv, _ = drawn
    r1, r2 = rank = data.draw(some_rank(conv, "tucker2"))
    first, core, last = (part.weight.detach() for part in factorise(conv, "tucker2", rank))
    assert core.shape == (r2, r1, *conv.kernel_size)
    copied = torch.einsum("oqab,qpij,pcde->ocij", last, core, first)
    W = conv.weight.detach()
    by_outputs, by_inputs = (
        np.linalg.svd(W.transpose(0, i).flatten(1).numpy(), compute_uv=False) for i in (0, 1)
    )
    left = [float((by_outputs[r2:] ** 2).sum()), float((by_inputs[r1:] ** 2).sum())]
    error = float((W - copied).square().sum())
    assert max(left) - 1e-9 <= error <= sum(left) + 1e-9


@FORMS
@given(drawn=convolutions(), data=st.data())
def test_formulas_equal_what_is_counted(form, drawn, data):
    conv, x = drawn
    rank = data.draw(some_rank(conv, form))
    small = factorise(conv, form, rank)
    assert layers.parameters(conv, form, rank) == count(small)
    output_hw = conv(x).shape[2:]
    assert layers.macs(conv, form, rank, x.shape[2:], output_hw) == counted_macs(small, x)


@given(drawn=linears(), data=st.data())
def test_linear_formulas_equal_what_is_counted(drawn, data):
    layer, x = drawn
    rank = data.draw(st.integers(1, full_rank(layer, "linear")))
    small = factorise(layer, "linear", rank)
    assert layers.parameters(layer, "linear", rank) == count(small)
    tokens = x.shape[1:-1]
    assert layers.macs(layer, "linear", rank, tokens, tokens) == counted_macs(small, x)


def test_matrices_lay_the_kernel_out_as_the_docstrings_say():
    W = torch.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    assert layers.channel_matrix(W)[1, (2 * 4 + 3) * 5 + 4] == W[1, 2, 3, 4]
    assert layers.spatial_matrix(W)[2 * 4 + 3, 1 * 5 + 4] == W[1, 2, 3, 4]


@pytest.mark.parametrize("form", ["channel", "spatial", "tucker2", "linear"])
def test_the_copy_trains_and_leaves_the_layer_alone(form):
    layer = nn.Linear(6, 5) if form == "linear" else nn.Conv2d(6, 5, 3)
    layer = layer.to(torch.bfloat16).eval()
    before = copy.deepcopy(layer.state_dict())
    state = torch.get_rng_state()
    small = factorise(layer, form, full_rank(layer, form))
    assert torch.equal(state, torch.get_rng_state())  # no random numbers are spent
    assert not any(module.training for module in small)
    x = torch.randn(2, 6, dtype=torch.bfloat16) if form == "linear" else torch.randn(2, 6, 4, 4)
    small(x.to(torch.bfloat16)).square().sum().backward()
    for values in small.parameters():
        assert values.dtype == torch.bfloat16 and values.grad.abs().sum() > 0
        values.data.zero_()
    torch.testing.assert_close(layer.state_dict(), before)


@pytest.mark.parametrize("form", ["channel", "spatial", "tucker2", "linear"])
def test_blank_has_the_shapes_of_the_factors(form):
    layer = nn.Linear(6, 5) if form == "linear" else nn.Conv2d(6, 5, (3, 2), bias=False)
    rank = (3, 2) if form == "tucker2" else 4
    factors, bias = factorise(layer, form, rank), layer.bias
    state = layers.blank(layer, form, rank, bias).state_dict()
    assert {k: v.shape for k, v in state.items()} == {
        k: v.shape for k, v in factors.state_dict().items()
    }


# Bases of the responses, with a batch norm behind (Zhang et al. 2016)


def responses(layer, x):
    """Outputs as samples: (N*h*w, O)."""
    with torch.no_grad():
        return layer(x).movedim(1, 3).flatten(0, 2)


@st.composite
def normalised(draw):
    """A convolution, its input and a batch norm with gammas near 0, at 0, and below 0."""
    conv, x = draw(convolutions())
    norm = nn.BatchNorm2d(conv.out_channels).double().eval()
    gammas = st.sampled_from([-2.0, -1e-7, 0.0, 1e-12, 1e-7, 0.3, 1.0, 5.0])
    for channel in range(conv.out_channels):
        norm.weight.data[channel] = draw(gammas)
    y = responses(conv, x)
    norm.running_mean, norm.running_var = y.mean(0), y.var(0, unbiased=False)
    return conv, x, norm


def leading_basis(y, D, rank):
    """Eigenvectors of D Cov(y) D, and what the others hold."""
    deviations = (y - y.mean(0)) * D
    values, vectors = np.linalg.eigh((deviations.mT @ deviations / len(y)).numpy())
    order = np.argsort(values)[::-1].copy()
    return torch.from_numpy(vectors[:, order[:rank]].copy()), values[order[rank:]].sum()


def batch_norm_scale(norm):
    return norm.weight.detach() / (norm.running_var + norm.eps).sqrt()


@given(drawn=normalised())
def test_full_basis_is_the_layer_itself(drawn):
    conv, x, norm = drawn
    y, scale = responses(conv, x), batch_norm_scale(norm)
    U, _ = leading_basis(y, floored_scale(scale), conv.out_channels)
    pair = channel_from_basis(conv, U, scale, y.mean(0))
    assert relative_error(pair, conv, x) < 1e-10
    assert relative_error(nn.Sequential(pair, norm), nn.Sequential(conv, norm), x) < 1e-10 or (
        norm.weight.abs().max() == 0
    )


@given(drawn=normalised(), data=st.data())
def test_lower_basis_is_the_best_projection_and_keeps_the_mean(drawn, data):
    conv, x, norm = drawn
    rank = data.draw(st.integers(1, conv.out_channels))
    y, D = responses(conv, x), floored_scale(batch_norm_scale(norm))
    U, rest = leading_basis(y, D, rank)
    copied = responses(channel_from_basis(conv, U, batch_norm_scale(norm), y.mean(0)), x)
    torch.testing.assert_close(copied.mean(0), y.mean(0))  # the mean is kept
    least = float((D * (y - copied)).square().sum(1).mean())
    assert least == pytest.approx(rest, rel=1e-6, abs=1e-9)  # Eckart-Young in units of D
    # Any other map of this rank, with any bias: random outputs, fitted by least squares.
    numbers = torch.Generator().manual_seed(rank)
    centred = D * (y - y.mean(0))
    for _ in range(5):
        noise = torch.randn(len(U), rank, generator=numbers, dtype=torch.float64)
        Q, _ = torch.linalg.qr(U + 0.3 * noise)
        assert float((centred - centred @ Q @ Q.mT).square().sum(1).mean()) >= least - 1e-9


@given(drawn=convolutions(bias=True))
def test_without_scale_and_mean_the_weight_is_projected(drawn):
    conv, x = drawn
    U, _ = torch.linalg.qr(conv.weight.detach().flatten(1)[:, :1])
    projected = copy.deepcopy(conv)
    projected.weight.data = (U @ U.mT @ conv.weight.detach().flatten(1)).view_as(conv.weight)
    assert relative_error(channel_from_basis(conv, U), projected, x) < 1e-10


@given(drawn=linears())
def test_a_basis_serves_linear_layers_too(drawn):
    layer, x = drawn
    outputs = layer.out_features
    U, _ = torch.linalg.qr(torch.vander(torch.arange(1.0, outputs + 1).double()))
    mean, scale = torch.arange(outputs).double() - 2, torch.arange(outputs).double() - 1
    exact = channel_from_basis(layer, U, scale, mean)
    assert relative_error(exact, layer, x) < 1e-10
    small = channel_from_basis(layer, U[:, :1], scale, mean)
    D = floored_scale(scale)
    with torch.no_grad():
        expected = mean + ((D * (layer(x) - mean)) @ U[:, :1] @ U[:, :1].mT) / D
        torch.testing.assert_close(small(x), expected)


def test_floor_keeps_signs_and_is_reached_once():
    scale = torch.tensor([10.0, -1e-9, 0.0, -3.0, 1e-9])
    floored = floored_scale(scale)
    assert floored.tolist() == pytest.approx([10, -0.01, 0.01, -3, 0.01])
    assert torch.equal(floored_scale(floored), floored)
    assert floored_scale(torch.zeros(2)).tolist() == [1, 1]


# Bad input: one clear ValueError each


class Special(nn.Conv2d):
    pass


UNSUPPORTED = [
    (nn.Conv2d(4, 4, 3, groups=2), r"grouped convolution \(groups=2\)"),
    (nn.ConvTranspose2d(4, 4, 3), "ConvTranspose2d is not a plain Conv2d or Linear"),
    (nn.Conv1d(4, 4, 3), "Conv1d is not a plain"),
    (nn.BatchNorm2d(4), "BatchNorm2d is not a plain"),
    (Special(4, 4, 3), "Special is not a plain"),
    (nn.LazyConv2d(4, 3), "LazyConv2d is not a plain"),
    (parametrizations.orthogonal(nn.Linear(4, 4)), "ParametrizedLinear is not a plain"),
    (spectral_norm(nn.Linear(4, 4)), "computed by a hook"),
    (nn.Linear(4, 4, dtype=torch.complex64), "floating-point"),
]


@pytest.mark.parametrize(("layer", "reason"), UNSUPPORTED)
def test_unsupported_layers_stay_dense(layer, reason):
    form = "linear" if isinstance(layer, nn.Linear) else "channel"
    assert supported(layer) is not None
    for call in (
        lambda: factorise(layer, form, 1),
        lambda: full_rank(layer, form),
        lambda: factorise(layer, "tucker2", (1, 1)),
        lambda: layers.parameters(layer, form, 1),
        lambda: layers.macs(layer, form, 1, (8, 8), (8, 8)),
    ):
        with pytest.raises(ValueError, match=reason):
            call()


def test_plain_layers_are_supported():
    assert supported(nn.Conv2d(3, 4, 3)) is None and supported(nn.Linear(3, 4)) is None


CONV, LINEAR, BROKEN = nn.Conv2d(3, 8, 3), nn.Linear(5, 4), nn.Conv2d(3, 8, 3)
nn.init.constant_(BROKEN.weight, float("nan"))
EYE = torch.eye(8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: factorise(CONV, "channel", 0), "rank=0 is too small: give an int from 1 to 8"),
        (lambda: factorise(CONV, "spatial", -1), "rank=-1 is too small: give an int from 1 to 9"),
        (lambda: factorise(CONV, "channel", 9), r"rank=9 exceeds 8, .* this \(8, 27\) matrix"),
        (lambda: factorise(CONV, "spatial", 10), r"rank=10 exceeds 9, .* this \(9, 24\) matrix"),
        (lambda: factorise(LINEAR, "linear", 5), r"rank=5 exceeds 4, .* this \(4, 5\) matrix"),
        (lambda: factorise(CONV, "channel", 2.5), "rank=2.5 is not a whole number"),
        (lambda: layers.channel(CONV, 9), "rank=9 exceeds 8"),
        (lambda: layers.spatial(CONV, 0), "rank=0 is too small"),
        (lambda: layers.linear(LINEAR, 2.5), "rank=2.5 is not a whole number"),
        (lambda: layers.parameters(CONV, "channel", 0), "rank=0 is too small"),
        (lambda: layers.macs(CONV, "channel", 9, (8, 8), (6, 6)), "rank=9 exceeds 8"),
        (lambda: factorise(CONV, "linear", 1), "form='linear' .* use 'channel', 'spatial' or 'tu"),
        (lambda: factorise(LINEAR, "channel", 1), "form='channel' .* Linear: use 'linear'"),
        (lambda: factorise(CONV, "tucker", 1), "form='tucker' does not fit a Conv2d"),
        (lambda: factorise(BROKEN, "channel", 1), "weight of Conv2d.* holds NaN or infinite"),
        (lambda: factorise(CONV, "tucker2", 2), r"rank=2: give two .* up to \(3, 8\)"),
        (lambda: factorise(CONV, "tucker2", (2,)), r"rank=\(2,\): give two for tucker2"),
        (lambda: factorise(CONV, "tucker2", (4, 8)), r"rank\[0\]=4 exceeds 3, .* kernel"),
        (lambda: factorise(CONV, "tucker2", (3, 9)), r"rank\[1\]=9 exceeds 8, .* kernel"),
        (lambda: factorise(CONV, "tucker2", (0, 8)), r"rank\[0\]=0 is too small"),
        (lambda: factorise(CONV, "tucker2", (1.5, 8)), r"rank\[0\]=1.5 is not a whole number"),
        (lambda: factorise(CONV, "channel", (1, 1)), r"rank=\(1, 1\) is not a whole number"),
        (lambda: factorise(LINEAR, "tucker2", (1, 1)), "form='tucker2' does not fit a Linear"),
        (lambda: layers.parameters(CONV, "tucker2", (4, 8)), r"rank\[0\]=4 exceeds 3"),
        (lambda: layers.macs(CONV, "tucker2", 1, (8, 8), (6, 6)), "rank=1: give two"),
        (lambda: layers.blank(CONV, "channel", 9, None), "rank=9 exceeds 8"),
        (lambda: layers.blank(CONV, "tucker2", 2, None), "rank=2: give two"),
        (lambda: factorise(BROKEN, "tucker2", (1, 1)), "weight of Conv2d.* holds NaN or inf"),
        (lambda: factorise(BROKEN, "spatial", 1), "weight of Conv2d.* holds NaN or infinite"),
        (lambda: channel_from_basis(BROKEN, EYE), "weight of Conv2d.* holds NaN or infinite"),
        (lambda: channel_from_basis(CONV, torch.eye(7)), r"U has shape \(7, 7\): give \(8, rank"),
        (lambda: channel_from_basis(CONV, EYE[:, :0]), r"U has shape \(8, 0\)"),
        (lambda: channel_from_basis(CONV, EYE[0]), r"U has shape \(8,\)"),
        (lambda: channel_from_basis(CONV, 2 * EYE), "not orthonormal"),
        (lambda: channel_from_basis(CONV, EYE * float("nan")), "U holds NaN or infinite"),
        (
            lambda: layers.from_factors(CONV, "channel", EYE[:, :2], torch.ones(2, 26), None),
            r"left \(8, 2\) and right \(2, 26\) do not make \(8, 27\)",
        ),
        (lambda: channel_from_basis(CONV, EYE, torch.ones(3)), r"scale of shape \(3,\)"),
        (lambda: channel_from_basis(CONV, EYE, None, EYE[0] / 0), "mean .* finite numbers"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
