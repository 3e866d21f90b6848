"""Other people's compressors and published recipes, as methods for `frontier`.

Each method takes (dense network, example, budget, calibration batches) and gives a network within
that budget of MACs. The packages (`pip install -e ".[peers]"`) work as they come, with one kindness
where they know no better: the first layer, which sees three channels, stays dense. The recipes are
in published.py. None of them mends the network afterwards. So `peers` gives each a second time,
with the batch norms recalibrated on the calibration images.
"""

from __future__ import annotations

import contextlib
import copy
import importlib
import logging
import tempfile
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import published
import torch
from published import by_rule, convolutions, highest, keep_last, swapped
from torch import Tensor, nn

from lowrank_course import evaluate, responses
from lowrank_course.frontier import Method
from lowrank_course.measure import count_macs
from lowrank_course.responses import Batches


def peers(held_out: Batches) -> dict[str, Method]:
    """All methods, each without and with recalibration.

    `held_out` is a tuple of batches of training images that the network has not seen, for the two
    methods that try ranks and look.
    """
    methods: dict[str, Method] = {
        "fasterai SVD": partial(fasterai, method="svd"),
        "fasterai Tucker": partial(fasterai, method="tucker"),
        "tensorly-torch": tensorly_torch,
        "aimet": aimet(held_out),
        "uniform": partial(by_rule, form="channel", make=published.uniform),
        "energy": partial(by_rule, form="channel", make=published.energy),
        "ALDS": partial(by_rule, form="channel", make=published.alds),
        "Tucker + EVBMF": partial(by_rule, form="tucker2", make=published.evbmf_tucker2),
        "measured": partial(published.sensitivity, held_out=held_out),
        "PCA": published.response_pca,
        "PCA, asymmetric": partial(published.response_pca, asymmetric=True),
    }
    both: dict[str, Method] = {}
    for name, method in methods.items():
        # The last network is kept: it is measured as it comes, then recalibrated, not built again.
        once = keep_last(partial(checked, method))
        both[name] = once
        both[f"{name}, recalibrated"] = partial(recalibrated, once)
    return both


def checked(
    method: Method, dense: nn.Module, example: Tensor, budget: float, data: Batches
) -> nn.Module:
    """What `method` gives, if it runs and keeps within the budget; else a one-line RuntimeError."""
    try:
        small = method(dense, example, budget, data).eval()
        with torch.inference_mode():
            answers = small(example[:2])
    except Exception as error:  # whatever breaks in a peer is a row, not the end of hours of work
        kind = "" if isinstance(error, RuntimeError | ValueError) else f"{type(error).__name__}: "
        raise RuntimeError(kind + (str(error).splitlines() or ["no reason given"])[0]) from error
    with torch.inference_mode():
        if answers.shape != dense(example[:2]).shape or not torch.isfinite(answers).all():
            raise RuntimeError("its network gives no scores, or infinite ones")
    share = count_macs(small, example) / count_macs(dense, example)
    if share > budget:
        raise RuntimeError(f"its network keeps {share:.4f} of the MACs, over the budget")
    return small


def recalibrated(
    method: Method, dense: nn.Module, example: Tensor, budget: float, data: Batches
) -> nn.Module:
    """What `method` gives, with its batch norms' statistics estimated anew."""
    small = copy.deepcopy(method(dense, example, budget, data))
    responses.recalibrate(small, data)
    return small


# ---- Packages ----------------------------------------------------------------------------------


def imported(module: str) -> Any:
    """A module of a peer; a RuntimeError that says how to get it where it is absent or broken."""
    try:
        return importlib.import_module(module)
    except Exception as error:  # a peer may break in any way with a newer torch
        way_out = "python -m pip install -e '.[peers]'"
        raise RuntimeError(f"cannot be imported ({error}); to install it: {way_out}") from error


def fasterai(
    dense: nn.Module, example: Tensor, budget: float, data: Batches, method: str
) -> nn.Module:
    """fasterai's Conv_Decomposer at the percentage that meets the budget.

    Its "spatial" and "cp" are left out: without any truncation they do not give the layer back.
    """
    decompose = imported("fasterai.misc.conv_decomposer").Conv_Decomposer().decompose
    first = next(iter(convolutions(dense)))  # else its rank would be 3 at most, of 64
    room = budget * count_macs(dense, example)
    shapes_only, pixels = copy.deepcopy(dense).to("meta"), example.to("meta")  # takes no time
    no_sweeps = {"n_iter": 0} if method == "tucker" else {}

    def fits(kept: float) -> bool:
        with torch.device("meta"):
            small = decompose(shapes_only, 1 - kept, method, exclude=[first], **no_sweeps)
        return count_macs(small, pixels) <= room

    return decompose(dense, 1 - highest(fits), method, exclude=[first])


def tensorly_torch(dense: nn.Module, example: Tensor, budget: float, data: Batches) -> nn.Module:
    """tensorly-torch's Tucker convolutions, all with the ratio of parameters that meets the budget.

    Ranks of the kernel's height and width stay full, which makes it Tucker-2; "factorized" because
    its default rebuilds the full kernel in every call, and saves nothing.
    """
    from_conv = imported("tltorch.factorized_layers").FactorizedConv.from_conv
    _, *rest = [(n, c) for n, c in convolutions(dense).items() if max(c.kernel_size) > 1]
    room = budget * count_macs(dense, example)
    how = {"factorization": "tucker", "fixed_rank_modes": "spatial"}
    how["implementation"] = "factorized"

    def at(ratio: float, decompose: bool) -> nn.Module:
        new = {n: from_conv(c, ratio, decompose_weights=decompose, **how) for n, c in rest}
        return swapped(dense, new)

    ratio = highest(lambda ratio: count_macs(at(ratio, decompose=False), example) <= room)
    return at(ratio, decompose=True)


def aimet(held_out: Batches) -> Method:
    """AIMET's spatial SVD with its greedy search, as its manual shows it.

    It cuts every layer to nine ratios, one at a time, and scores each network on `held_out`; the
    scores are kept for the next budget. It may end a thousandth above its target, so aim below.
    """
    place = tempfile.TemporaryDirectory()  # it writes its scores to ./data
    scores = Path(place.name) / "data" / "greedy_selection_eval_scores_dict.pkl"

    def score(model: nn.Module, iterations: int | None, use_cuda: bool = False) -> float:
        return 0.0 if iterations is None else evaluate(model, held_out)  # None: for a report only

    def method(dense: nn.Module, example: Tensor, budget: float, data: Batches) -> nn.Module:
        compressor = imported("aimet_torch.compress").ModelCompressor
        common = imported("aimet_torch.common.defs")
        Spatial = imported("aimet_torch.defs").SpatialSvdParameters
        imported("aimet_torch.common.utils").AimetLogger.set_level_for_all_areas(logging.ERROR)
        room = budget * count_macs(dense, example)
        for step in range(10):
            target = Decimal(f"{budget - 0.001 - 0.002 * step:.4f}")
            saved = str(scores) if scores.exists() else None
            greedy = common.GreedySelectionParameters(target, 10, True, saved)
            mode = Spatial.AutoModeParams(greedy)
            with contextlib.chdir(place.name):
                small, _ = compressor.compress_model(
                    copy.deepcopy(dense),
                    score,
                    1,
                    (1, *example.shape[1:]),
                    common.CompressionScheme.spatial_svd,
                    common.CostMetric.mac,
                    Spatial(Spatial.Mode.auto, mode),
                )
            if count_macs(small, example) <= room:
                break
        return small

    return method
