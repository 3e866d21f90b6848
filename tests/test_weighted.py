"""Data-aware forms: their errors against what is measured, their factors against competitors."""

import pytest
import torch
from torch import nn

from lowrank_course.layers import channel_from_basis, full_rank
from lowrank_course.linalg import matrix_root
from lowrank_course.responses import covariances, input_covariances
from lowrank_course.weighted import RIDGE, Response, way

EYE = torch.eye(8, dtype=torch.float64)


def randn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def positive(n, seed=0):
    """A positive definite (n, n) whose directions weigh very differently."""
    return randn(n, n, seed=seed) @ torch.diag(0.5 ** torch.arange(n)).double() @ randn(n, n)


def sensitivity(n, seed=5):
    root = positive(n, seed)
    return root @ root.mT


def separable(channels=3, height=6, width=5):
    """Images of mean zero whose channels, rows and columns are mixed by one matrix each.

    They wrap around, so that all positions look alike: the covariance of patches is exactly the
    Kronecker product of those of channels, rows and columns.
    """

    def circulant(n, offset):
        distance = torch.arange(n).minimum(n - torch.arange(n))
        return torch.stack([(torch.exp(-distance) + offset).roll(i) for i in range(n)]).double()

    mixing = torch.kron(
        positive(channels, 7), torch.kron(circulant(height, 0), circulant(width, 0.2))
    )
    return torch.cat([mixing.mT, -mixing.mT]).reshape(-1, channels, height, width)


def known(layer, x, G):
    """Exactly what the statistics of `compress` would be, with the sensitivity given."""
    batches = [(x, x)]
    return Response(
        *covariances(layer, batches, [""])[""],
        G,
        input_covariances(layer, batches, [""], images=len(x)).get(""),
    )


def responses(layer, x):
    with torch.no_grad():
        y = layer(x)
    return y.movedim(1, -1).flatten(0, 2) if y.ndim == 4 else y.flatten(0, -2)


def felt(layer, other, x, G):
    """E[e^T G e] / 2 over positions, with the ridge that keeps G invertible."""
    e = responses(other, x) - responses(layer, x)
    G = G + RIDGE * G.diagonal().mean() * torch.eye(len(G), dtype=torch.float64)
    return float(torch.einsum("po,oq,pq->p", e, G, e).mean()) / 2


CONV = {
    "plain": lambda: nn.Conv2d(3, 8, 3, bias=False),
    "odd": lambda: nn.Conv2d(3, 8, (2, 3), stride=2, padding=(1, 2), padding_mode="circular"),
}
LINEAR = {"linear": lambda: nn.Linear(7, 8)}


def build(kind):
    torch.manual_seed(0)
    layer = {**CONV, **LINEAR}[kind]().double().eval()
    x = randn(40, 5, 7) if kind == "linear" else separable() + 0.5
    return layer, x


# ---- channel and linear: exact -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["plain", "odd", "linear"])
def test_error_of_a_basis_is_what_is_measured(kind):
    layer, x = build(kind)
    G, form = sensitivity(8), "linear" if kind == "linear" else "channel"
    found = way(layer, form, known(layer, x, G))
    assert list(found.errors) == list(range(1, full_rank(layer, form) + 1))
    for rank, error in found.errors.items():
        measured = felt(layer, found.build(rank), x, G)
        assert error == pytest.approx(measured, rel=1e-4, abs=1e-6 * found.error(1))
        assert error == found.error(rank)
    # Rank 0 would give the mean only.
    mean = responses(layer, x).mean(0)
    only = nn.Linear(1, 8).double()
    only.weight.data.zero_()
    only.bias.data = mean
    ones = responses(layer, x)[:, :1]
    e = responses(only, ones) - responses(layer, x)
    G = G + RIDGE * G.diagonal().mean() * EYE
    assert found.error(0) == pytest.approx(float((e @ G * e).sum(1).mean()) / 2, rel=1e-4)


@pytest.mark.parametrize("kind", ["plain", "odd"])
def test_without_sensitivity_it_is_the_pca_of_the_responses(kind):
    layer, x = build(kind)
    y = responses(layer, x)
    U = torch.linalg.eigh(torch.cov(y.mT, correction=0))[1].flip(1)
    for G in (torch.zeros(8, 8).double(), EYE, 1e-6 * EYE):
        found = way(layer, "channel", known(layer, x, G))
        for rank in (1, 3, 8):
            expected = channel_from_basis(layer, U[:, :rank], None, y.mean(0))
            torch.testing.assert_close(
                responses(found.build(rank), x), responses(expected, x), rtol=1e-5, atol=1e-5
            )


@pytest.mark.parametrize("form", ["channel", "spatial", "tucker2"])
def test_what_no_answer_feels_costs_no_error(form):
    layer, x = build("plain")
    found = way(layer, form, known(layer, x, torch.zeros(8, 8).double()))
    assert set(found.errors.values()) == {0.0}


def test_no_other_basis_is_felt_less():
    layer, x = build("plain")
    G = sensitivity(8)
    found = way(layer, "channel", known(layer, x, G))
    y = responses(layer, x)
    H, inverse = matrix_root(G, RIDGE)
    best = felt(layer, found.build(3), x, G)
    for seed in range(20):
        project = torch.linalg.qr(randn(8, 3, seed=seed))[0]
        other = y.mean(0) + (y - y.mean(0)) @ H @ project @ project.mT @ inverse
        e = other - y
        assert float((e @ (H @ H) * e).sum(1).mean()) / 2 > best


# ---- spatial and tucker2: exact where inputs are separable ---------------------------------------


def test_spatial_is_the_best_where_inputs_are_separable():
    layer, x = build("plain")
    x = x - 0.5  # of mean zero: the form has no bias of its own
    G = sensitivity(8)
    found = way(layer, "spatial", known(layer, x, G))
    assert list(found.errors) == list(range(1, 10))
    for rank in (1, 2, 4, 7):
        small = found.build(rank)
        error = felt(layer, small, x, G)
        # Inputs get a ridge, too: they are known to a thousandth.
        assert error == pytest.approx(found.error(rank), rel=0.02, abs=2e-3 * found.error(0))
        competitors = [way(layer, "spatial", None).build(rank)]
        for seed in range(20):
            other = found.build(rank)
            for i, part in enumerate(other):
                part.weight.data += (
                    0.03 * part.weight.std() * randn(*part.weight.shape, seed=i + seed)
                )
            competitors.append(other)
        for other in competitors:
            assert felt(layer, other, x, G) > error * (1 - 1e-6)


@pytest.mark.parametrize("rank", [(1, 2), (2, 3), (3, 5), (2, 8)])
def test_tucker2_beats_its_copy_by_weight_and_its_error_is_a_bound(rank):
    layer, x = build("plain")
    x, G = x - 0.5, sensitivity(8)
    found = way(layer, "tucker2", known(layer, x, G))
    error = felt(layer, found.build(rank), x, G)
    assert error <= found.error(rank) * 1.02 + 2e-3 * found.error((0, 8))
    assert error < felt(layer, way(layer, "tucker2", None).build(rank), x, G)


# ---- all forms -----------------------------------------------------------------------------------

FORMS = [("plain", form) for form in ("channel", "spatial", "tucker2")]
FORMS += [("odd", form) for form in ("channel", "spatial", "tucker2")] + [("linear", "linear")]


def worst_cases(layer, x):
    """Weights alone, then data that leave directions open."""
    G = sensitivity(8)
    yield None
    yield known(layer, x, G)
    yield known(layer, x[:1], G)
    yield known(layer, 0 * x, G)
    yield known(layer, x, torch.zeros(8, 8).double())
    yield known(layer, x, torch.diag(torch.tensor([1.0] + [0.0] * 7)).double())
    dead = x.clone()
    dead[:, 0] = 0
    yield known(layer, dead, G)


@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_full_rank_is_the_layer_itself(kind, form):
    layer, x = build(kind)
    for data in worst_cases(layer, x):
        found = way(layer, form, data)
        full = full_rank(layer, form)
        if form == "linear" and data is not None:
            continue  # rank 7 of 8 outputs: exact only on what the inputs span
        expected = responses(layer, x)
        error = (responses(found.build(full), x) - expected).norm() / expected.norm()
        assert float(error) < 1e-6


@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_errors_fall_with_rank(kind, form):
    layer, x = build(kind)
    for data in worst_cases(layer, x):
        errors = way(layer, form, data).errors
        assert all(0 <= e < float("inf") for e in errors.values())
        for one, error in errors.items():
            for other, lower in errors.items():
                larger = all(
                    a <= b
                    for a, b in zip(
                        *((r if isinstance(r, tuple) else (r,)) for r in (one, other)), strict=True
                    )
                )
                assert not larger or lower <= error + 1e-12


@pytest.mark.parametrize(("kind", "form"), FORMS)
def test_a_layer_of_zeros_loses_nothing(kind, form):
    layer, x = build(kind)
    layer.weight.data.zero_()
    for data in (None, known(layer, x, sensitivity(8))):
        found = way(layer, form, data)
        rank = min(found.errors)
        if data is not None:
            assert found.errors[rank] == 0
        assert torch.equal(responses(found.build(rank), x), responses(layer, x))


def test_a_wide_kernel_needs_no_wide_matrices():
    """A stem of 16 x 16 and 768 outputs: its Kronecker factor alone would take 1.2 GB."""
    torch.manual_seed(0)
    stem = nn.Conv2d(3, 768, 16, 16)
    inputs = torch.eye(3).double(), torch.eye(16).double(), torch.eye(16).double()
    G = torch.eye(768).double()
    found = way(stem, "spatial", Response(torch.zeros(768).double(), G, G, inputs))
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(found.build(48)(x), stem(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("size", [(3, 100), (100, 3), (64, 64), (1, 1)])
@pytest.mark.parametrize("kernel", [1, 3])
def test_pairs_of_ranks_are_worth_trying(size, kernel):
    """None leaves directions of the other factor unused."""
    conv = nn.Conv2d(*size, kernel)
    pairs = way(conv, "tucker2", None).errors
    area = kernel**2
    assert all(p <= q * area and q <= p * area for p, q in pairs)
