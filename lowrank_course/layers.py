"""One layer to its factorised form, exactly.

A convolution has weight W of shape (O, C, kh, kw). At rank r one layer becomes two or three:

- channel (Zhang et al., TPAMI 2016): kh x kw, C to r; 1 x 1, r to O; r (C kh kw + O) weights
- spatial (Jaderberg et al., BMVC 2014; Tai et al., ICLR 2016): kh x 1, C to r; 1 x kw, r to O;
  r (C kh + O kw) weights
- tucker2 (Kim et al., ICLR 2016), with two ranks (r1, r2): 1 x 1, C to r1; kh x kw, r1 to r2;
  1 x 1, r2 to O; C r1 + r1 r2 kh kw + r2 O weights
- linear: I to r features, r to O features; r (I + O) weights

At full rank every form gives the layer's own output, up to rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .linalg import balanced_factors, check_rank, hooi, orthogonality_error

Rank = int | tuple[int, int]  # a pair in the tucker2 form

SCALE_FLOOR = 1e-3  # smallest batch-norm scale, relative to the largest of its layer


def channel_matrix(weight: Tensor) -> Tensor:
    """Lay a kernel (O, C, kh, kw) out as (O, C*kh*kw): one row an output channel."""
    return weight.flatten(1)


def spatial_matrix(weight: Tensor) -> Tensor:
    """Lay a kernel (O, C, kh, kw) out as (C*kh, O*kw): vertical against horizontal."""
    return weight.permute(1, 2, 0, 3).flatten(2).flatten(0, 1)


def supported(layer: nn.Module) -> str | None:
    """None if the layer can be factorised, else the reason why it stays dense."""
    if type(layer) not in (nn.Conv2d, nn.Linear):  # a subclass may use its weight in other ways
        return f"{type(layer).__name__} is not a plain Conv2d or Linear"
    if "weight" not in layer._parameters:
        return "its weight is computed by a hook (weight or spectral norm): remove that first"
    if getattr(layer, "groups", 1) != 1:
        return f"it is a grouped convolution (groups={layer.groups})"
    weight = layer._parameters["weight"]
    if weight is None or weight.numel() == 0 or not weight.is_floating_point():
        return "its weight is empty, or not of floating-point numbers"
    return None


def _matrix_shape(layer: nn.Module, form: str) -> tuple[int, int]:
    """Shape of the matrix that `form` factorises; ValueError if the two do not fit.

    tucker2 factorises a tensor; its matrix is that of the channel form.
    """
    reason = supported(layer)
    if reason is not None:
        raise ValueError(f"cannot factorise {layer}: {reason}; leave it dense")
    if isinstance(layer, nn.Linear) and form == "linear":
        return layer.out_features, layer.in_features
    if isinstance(layer, nn.Conv2d) and form in ("channel", "spatial", "tucker2"):
        (kh, kw), inputs, outputs = layer.kernel_size, layer.in_channels, layer.out_channels
        return (inputs * kh, outputs * kw) if form == "spatial" else (outputs, inputs * kh * kw)
    conv = "'channel', 'spatial' or 'tucker2'"
    fitting = "'linear'" if isinstance(layer, nn.Linear) else conv
    raise ValueError(f"form={form!r} does not fit a {type(layer).__name__}: use {fitting}")


def full_rank(layer: nn.Module, form: str) -> Rank:
    """Largest rank of the layer in this form, (C, O) for tucker2; there it is exact."""
    shape = _matrix_shape(layer, form)
    if form == "tucker2":
        return layer.in_channels, layer.out_channels  # type: ignore[return-value]
    return min(shape)


def _check(layer: nn.Module, form: str, rank: Rank) -> Rank:
    full, shape = full_rank(layer, form), _matrix_shape(layer, form)
    if isinstance(full, int):
        return check_rank(rank, full, shape)  # type: ignore[arg-type]
    if not isinstance(rank, tuple | list) or len(rank) != 2:
        raise ValueError(f"rank={rank!r}: give two for tucker2, (inputs, outputs), up to {full}")
    size = layer.get_parameter("weight").shape
    first, second = (check_rank(rank[i], full[i], size, f"rank[{i}]") for i in (0, 1))
    return first, second


def parameters(layer: nn.Module, form: str, rank: Rank) -> int:
    """Numbers the factorised layer holds: r (m + n) for an (m, n) matrix, and the layer's bias.

    `channel_from_basis` adds a bias (O,) where the layer had none.
    """
    rank = _check(layer, form, rank)
    bias = layer._parameters["bias"]
    extra = 0 if bias is None else bias.numel()
    if isinstance(rank, tuple):
        return sum(_tucker2_weights(layer, rank)) + extra
    return rank * sum(_matrix_shape(layer, form)) + extra


def _tucker2_weights(layer: nn.Module, rank: tuple[int, int]) -> tuple[int, int]:
    """Numbers in the first of the three layers, and in the two others."""
    (r1, r2), (outputs, inputs, kh, kw) = rank, layer.weight.shape  # type: ignore[misc]
    return inputs * r1, r2 * (r1 * kh * kw + outputs)


def macs(
    layer: nn.Module, form: str, rank: Rank, input_hw: Sequence[int], output_hw: Sequence[int]
) -> int:
    """Multiply-accumulates of the factorised layer for one image.

    `input_hw` and `output_hw` are (height, width) before and after the layer. For a linear layer
    `output_hw` is (tokens,), or () for one vector an image. The spatial form strides downwards
    first, so its first layer works on (output height, input width); the first layer of tucker2
    works on the whole input.
    """
    rank = _check(layer, form, rank)
    if isinstance(rank, tuple):
        first, others = _tucker2_weights(layer, rank)
        return first * math.prod(input_hw) + others * math.prod(output_hw)
    m, n = _matrix_shape(layer, form)
    if form == "spatial":
        return rank * output_hw[0] * (input_hw[1] * m + output_hw[1] * n)
    return rank * (m + n) * math.prod(output_hw)


def factorise(layer: nn.Module, form: str, rank: Rank) -> nn.Sequential:
    """Two or three layers in place of one: the best copy of its weight (tucker2: a good one).

    Any stride, padding, padding mode, dilation, kernel size and bias. The layer is left untouched.
    ValueError for a rank outside 1..full_rank(layer, form), NaN, or what `supported` refuses.
    """
    rank = _check(layer, form, rank)
    bias = layer._parameters["bias"]
    if isinstance(rank, tuple):
        core, P, Q = hooi(_weight(layer), rank[::-1])  # modes are O, C
        return tucker2_from_factors(layer, P, core, Q.mT, bias)
    left, right = balanced_factors(layer_matrix(layer, form), rank)  # (m, r), (r, n)
    return from_factors(layer, form, left, right, bias)


def channel(conv: nn.Conv2d, rank: int) -> nn.Sequential:
    """kh x kw from C to rank channels, then 1 x 1 to O; sqrt(S) in both, bias in the second."""
    return factorise(conv, "channel", rank)


def spatial(conv: nn.Conv2d, rank: int) -> nn.Sequential:
    """kh x 1 from C to rank channels, then 1 x kw to O; sqrt(S) in both, bias in the second."""
    return factorise(conv, "spatial", rank)


def linear(layer: nn.Linear, rank: int) -> nn.Sequential:
    """I to rank, then rank to O features; sqrt(S) in both, bias in the second."""
    return factorise(layer, "linear", rank)


def layer_matrix(layer: nn.Module, form: str) -> Tensor:
    """The matrix (m, n) that `form` factorises: float64, on the CPU, exact for every dtype."""
    _matrix_shape(layer, form)
    weight = _weight(layer)
    return spatial_matrix(weight) if form == "spatial" else channel_matrix(weight)


def from_factors(
    layer: nn.Module, form: str, left: Tensor, right: Tensor, bias: Tensor | None
) -> nn.Sequential:
    """The two layers of `form` whose weights are `left` (m, r) and `right` (r, n).

    (m, n) is the shape of `layer_matrix(layer, form)`. `bias` (O,) goes to the second layer.
    """
    shape, rank = _matrix_shape(layer, form), left.shape[1]
    if (left.shape[0], right.shape[1]) != shape or right.shape[0] != rank:
        raise ValueError(
            f"left {tuple(left.shape)} and right {tuple(right.shape)} do not make {shape}"
        )
    if isinstance(layer, nn.Linear):
        first = nn.Linear(layer.in_features, rank, bias=False, device="meta")
        second = nn.Linear(rank, layer.out_features, bias=False, device="meta")
        return nn.Sequential(_fill(first, layer, right, None), _fill(second, layer, left, bias))
    assert isinstance(layer, nn.Conv2d)  # _matrix_shape refused all else
    if form == "channel":
        first_weight = right.unflatten(1, layer.weight.shape[1:])  # (r, C, kh, kw)
        return nn.Sequential(
            _conv(layer, first_weight, None, layer.stride, layer.padding, layer.dilation),
            _conv(layer, left[:, :, None, None], bias, 1, 0, 1),
        )
    down = left.mT.unflatten(1, (layer.in_channels, -1)).unsqueeze(3)  # (r, C, kh, 1)
    across = right.unflatten(1, (layer.out_channels, -1)).mT  # (r, kw, O)
    across = across.permute(2, 0, 1).unsqueeze(2)  # (O, r, 1, kw)
    (sh, sw), (dh, dw), padding = layer.stride, layer.dilation, layer.padding
    ph, pw = (padding, padding) if isinstance(padding, str) else ((padding[0], 0), (0, padding[1]))
    return nn.Sequential(
        _conv(layer, down, None, (sh, 1), ph, (dh, 1)),
        _conv(layer, across, bias, (1, sw), pw, (1, dw)),
    )


def tucker2_from_factors(
    layer: nn.Module, left: Tensor, core: Tensor, right: Tensor, bias: Tensor | None
) -> nn.Sequential:
    """Three layers from `right` (r1, C), `core` (r2, r1, kh, kw) and `left` (O, r2)."""
    assert isinstance(layer, nn.Conv2d)
    return nn.Sequential(
        _conv(layer, right[:, :, None, None], None, 1, 0, 1),
        _conv(layer, core, None, layer.stride, layer.padding, layer.dilation),
        _conv(layer, left[:, :, None, None], bias, 1, 0, 1),
    )


def blank(layer: nn.Module, form: str, rank: Rank, bias: Tensor | None) -> nn.Sequential:
    """The layers of `form` with weights of zero, to be filled from a file."""
    rank = _check(layer, form, rank)
    m, n = _matrix_shape(layer, form)
    if isinstance(rank, tuple):
        (r1, r2), (outputs, inputs, kh, kw) = rank, layer.weight.shape  # type: ignore[misc]
        core, right = torch.zeros(r2, r1, kh, kw), torch.zeros(r1, inputs)
        return tucker2_from_factors(layer, torch.zeros(outputs, r2), core, right, bias)
    return from_factors(layer, form, torch.zeros(m, rank), torch.zeros(rank, n), bias)


def floored_scale(scale: Tensor) -> Tensor:
    """Scale (O,) in float64, entries near 0 raised to SCALE_FLOOR of the largest, sign kept.

    A channel that the batch norm multiplies by nearly 0 must not be divided by 0 below.
    """
    scale = scale.detach().to("cpu", torch.float64)
    floor = SCALE_FLOOR * scale.abs().max()
    if floor == 0:  # the batch norm hides every channel: all count the same
        return torch.ones_like(scale)
    return torch.where(scale.abs() < floor, torch.where(scale < 0, -floor, floor), scale)


def channel_from_basis(
    layer: nn.Module, U: Tensor, scale: Tensor | None = None, mean: Tensor | None = None
) -> nn.Sequential:
    """Two layers from a basis of the layer's *responses* y = W x + b (Zhang et al. 2016).

    With D = diag(scale), mu = `mean` and mu0 = mu - b, the first layer has weight U^T D W
    and no bias, the second weight D^-1 U and bias mu - D^-1 U U^T D mu0. Their output is
    mu + D^-1 U U^T D (y - mu): the mean is kept, the rest is projected in units of D.

    Parameters
    ----------
    U : (O, r), orthonormal columns. The leading eigenvectors of D Cov(y) D give the least error
        in units of D, where D holds `floored_scale(scale)`.
    scale : (O,), gamma / sqrt(var + eps) of the batch norm behind; floored here. None: D = I.
    mean : (O,), E[y], bias included. None: the bias, so that mu0 = 0.

    ValueError for a wrong shape, columns that are not orthonormal, NaN, or an unsupported layer.
    """
    form = "linear" if isinstance(layer, nn.Linear) else "channel"
    outputs, _ = _matrix_shape(layer, form)
    if U.ndim != 2 or not 1 <= U.shape[1] <= U.shape[0] == outputs:
        raise ValueError(f"U has shape {tuple(U.shape)}: give ({outputs}, rank), rank at least 1")
    U = U.detach().to("cpu", torch.float64)
    if orthogonality_error(U) > 1e-3:
        raise ValueError("the columns of U are not orthonormal: take them from torch.linalg.eigh")
    own = layer._parameters["bias"]
    bias = _vector(torch.zeros(outputs) if own is None else own, outputs, "bias")
    mu = bias if mean is None else _vector(mean, outputs, "mean")
    D = floored_scale(torch.ones(outputs) if scale is None else _vector(scale, outputs, "scale"))
    right = U.mT @ (D[:, None] * layer_matrix(layer, form))  # (r, C*kh*kw)
    left = U / D[:, None]  # (O, r)
    bias = mu - left @ (U.mT @ (D * (mu - bias)))
    return from_factors(layer, form, left, right, bias)


def _vector(values: Tensor, length: int, name: str) -> Tensor:
    if values.shape != (length,) or not torch.isfinite(values).all():
        raise ValueError(f"{name} of shape {tuple(values.shape)}: give ({length},) finite numbers")
    return values.detach().to("cpu", torch.float64)


def _weight(layer: nn.Module) -> Tensor:
    """The weight in float64 on the CPU: exact factors for every dtype and device."""
    weight = layer.get_parameter("weight")
    if not torch.isfinite(weight).all():
        raise ValueError(f"weight of {layer} holds NaN or infinite values: train or load it again")
    return weight.detach().to("cpu", torch.float64)


def _conv(conv, weight, bias, stride, padding, dilation):  # type: ignore
    outputs, inputs, *kernel = weight.shape
    # "meta": no time and no random numbers are spent on values that are replaced at once.
    mode = "zeros" if padding == 0 else conv.padding_mode
    new = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, 1, False, mode, "meta")
    return _fill(new, conv, weight, bias)


def _fill(new, layer, weight, bias):  # type: ignore
    """Give `new` these values, with the dtype, device and mode of the layer it stands in for."""
    for name, values in (("weight", weight), ("bias", bias)):
        if values is not None:
            values = values.detach().to(layer.weight.device, layer.weight.dtype, copy=True)
            setattr(new, name, nn.Parameter(values.contiguous()))
    return new.train(layer.training)
