"""The ablations: one network and short trainings, with one thing changed at a time.

"ours" is the course's way: directions and ranks by the responses, refitted, then fine-tuned with
the dense network as teacher. All others differ from it, or from the job that their name says, in
one thing. Every job holds the network before its training, too (`before`, which is 0 epochs).
"""

from __future__ import annotations

import copy
import io
import json
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import published
import torch
from jobs import Bench, Jobs, Run, graded, judged, kept, times, trained
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lowrank_course import responses
from lowrank_course.compress import apply, compress, fold_batch_norms
from lowrank_course.linalg import gram_svd
from lowrank_course.measure import file_mb
from lowrank_course.models import resnet18
from lowrank_course.plan import Plan, Row, all_layers
from lowrank_course.recipes import RECIPES
from lowrank_course.refit import refit

RULES = {  # for ranks, of chapter 06
    "uniform": published.uniform,
    "EVBMF": published.evbmf_channel,
    "ALDS": published.alds,
}


def ablations(run: Run) -> Jobs:
    """The most important first; later ones may be left out."""
    b, s = run.bench, run.settings["ablations"]

    def cut(name: str, dense: nn.Module = b.dense, **options: Any) -> nn.Module:
        def make() -> nn.Module:
            given = {"data": b.calibration, **options}
            return compress(dense, b.example, s["budget"], **given)

        return kept(f"{run.label}-{name}", b, make)

    def tuned(
        name: str,
        build: Callable[[], nn.Module],
        *,
        epochs: int = s["epochs"],
        rate: float = s["rate"],
        taught: bool = True,
        mixed: bool = True,
        seed: int = 0,
    ) -> tuple[nn.Module, dict[str, Any]]:
        small = build()
        found = {"before": judged(b, small), "plan": plan_of(small)}
        options = {"learning_rate": rate, "teacher": b.dense if taught else None}
        options["cutmix"] = run.settings["cutmix"] if mixed else 0.0
        label = f"{run.label}-{name}-{epochs}-{rate}-{taught}-{mixed}-{seed}"
        log = trained(b, label, small, [s["size"]] * epochs, seed, **options)
        return small, {**found, **log, **judged(b, small)}

    def job(*args: Any, **options: Any) -> Callable[[], dict[str, Any]]:
        return lambda: tuned(*args, **options)[1]

    def recalibrated(small: nn.Module) -> nn.Module:
        responses.recalibrate(small, b.calibration)
        return small

    def weights() -> nn.Module:
        """Ranks and directions by the weights alone."""
        return recalibrated(cut("weights", data=None))

    def weight_directions() -> nn.Module:
        """Forms and ranks of "ours", directions by the weights alone."""
        make = partial(apply, b.dense, b.example, ours().plan)  # type: ignore[arg-type]
        return recalibrated(kept(f"{run.label}-weight-directions", b, make))

    def weights_refitted() -> nn.Module:
        """Likewise, but with the refit of "ours": does it make up for such directions?"""
        small = weight_directions()
        names = [row.name for row in small.plan if not row.reason]  # type: ignore[union-attr]
        refit(small, b.dense, b.calibration, names)
        return small

    def not_refitted() -> nn.Module:
        return recalibrated(cut("not-refitted", recalibrate=False))

    def by_rank_rule(name: str) -> nn.Module:
        make = partial(by_rule, name, b.dense, b.example, s["budget"], b.calibration)
        return kept(f"{run.label}-{name}", b, make)

    ours = partial(cut, "ours")
    jobs: Jobs = {"dense": lambda: judged(b, b.dense)}
    jobs["weights, not recalibrated"] = lambda: judged(b, cut("weights", data=None))
    jobs["not refitted, not recalibrated"] = lambda: judged(
        b, cut("not-refitted", recalibrate=False)
    )
    jobs["ours, recalibrated"] = lambda: judged(b, recalibrated(ours()))
    changes: dict[str, tuple[str, Callable[[], nn.Module], dict[str, Any]]] = {
        "ours": ("ours", ours, {}),
        "weights": ("weights", weights, {}),
        "weight directions": ("weight-directions", weight_directions, {}),
        "weight directions, refitted": ("weights-refitted", weights_refitted, {}),
        "not refitted": ("not-refitted", not_refitted, {}),
        "no distillation": ("ours", ours, {"taught": False}),
        "no CutMix": ("ours", ours, {"mixed": False}),
    }
    for seed in s["seeds"]:
        for name, (label, build, options) in changes.items():
            jobs[f"{name}, seed {seed}"] = job(label, build, seed=seed, **options)
    for rate in s["rates"]:  # does another one change who is ahead?
        for name in ("ours", "weights", "not refitted"):
            label, build, _ = changes[name]
            jobs[f"{name}, rate {rate}"] = job(label, build, rate=rate)

    def of_length(n: int) -> dict[str, Any]:
        """Is it the training, or the statistics that it leaves?"""
        small, found = tuned("ours", ours, epochs=n)
        return {**found, "recalibrated": judged(b, recalibrated(small))}

    for n in s["lengths"]:
        jobs[f"ours, {n} epochs"] = partial(of_length, n)
    for form in ("channel", "spatial", "tucker2"):
        jobs[form] = job(form, partial(cut, form, form=form))
    by_weights = partial(cut, "channel-weights", data=None, form="channel")
    jobs["channel, weights"] = lambda: judged(b, recalibrated(by_weights()))
    for name in RULES:
        jobs[f"channel, {name}"] = job(name, partial(by_rank_rule, name))
    jobs["int8"] = lambda: graded_int8(b, tuned("ours", ours)[0])
    jobs["dense, int8"] = lambda: graded_int8(b, b.dense)

    def prepared(name: str, prepare: Callable[[nn.Module], None]) -> dict[str, Any]:
        """In the channel form, whose matrix the penalties see."""
        dense = copy.deepcopy(b.dense)
        prepare(dense)
        label = f"{run.label}-{name}"
        options = {"learning_rate": s["rate"], "cutmix": run.settings["cutmix"]}
        first = trained(b, f"{label}-first", dense, [s["size"]] * s["preparing"], 0, **options)
        dense = recalibrated(without_svd(dense))
        found = {"prepared": judged(b, dense), "spectra": spectra(dense), "first": first["log"]}
        by_weights = recalibrated(cut(f"{name}-weights", dense, data=None, form="channel"))
        found["cut by weights"] = judged(b, by_weights)
        _, last = tuned(name, partial(cut, f"{name}-cut", dense, form="channel"))
        return {**found, **last}

    for name, prepare in {
        "nothing": lambda model: None,
        "nuclear norm": lambda model: nuclear_norm(model, s["nuclear"]),
        "orthogonality": lambda model: as_svd(model, s["sparse"], s["orthogonal"]),
    }.items():
        jobs[f"prepared, {name}"] = partial(prepared, f"prepared-{name.split()[0]}", prepare)

    def factors(spectral: bool, frobenius: bool) -> dict[str, Any]:
        """The architecture of "ours" from scratch, as chapter 09 trains its small network."""
        torch.manual_seed(0)
        model = resnet18(RECIPES[b.name]["width"], len(b.train.classes))
        model = apply(model, b.example, ours().plan)  # type: ignore[arg-type]
        if not spectral:
            reset_factors(model)
        if frobenius:
            frobenius_decay(model, s["decay"])
        label = f"{run.label}-scratch-{spectral}-{frobenius}"
        decay = 0.0 if frobenius else s["decay"]
        log = trained(b, label, model, [s["size"]] * s["scratch"], 0, weight_decay=decay)
        return {**log, **judged(b, model)}

    for spectral in (False, True):
        for frobenius in (False, True):
            start = "spectral" if spectral else "random"
            kind = "Frobenius decay" if frobenius else "weight decay"
            jobs[f"scratch, {start}, {kind}"] = partial(factors, spectral, frobenius)

    def timed() -> dict[str, Any]:
        """All folded: what makes the int8 networks folds them, too."""
        plain = {"dense": b.dense, "ours": ours()}
        nets = {n: fold_batch_norms(m, b.example) for n, m in plain.items()}
        return times(
            nets | {f"{n}, int8": int8(m, b.example, b.calibration) for n, m in plain.items()},
            b.example,
        )

    return {**jobs, "times": timed}


def plan_of(small: Any) -> list[dict[str, Any]]:
    """The rows of its plan, for a record."""
    return json.loads(small.plan.to_json())["rows"]


def spectra(model: nn.Module) -> dict[str, list[float]]:
    """Singular values of every kernel that is no 1 x 1, as a matrix (O, C*k*k)."""
    found = {}
    for name, m in model.named_modules():
        if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1):
            values = gram_svd(m.weight.detach().flatten(1))[1]
            found[name] = [round(float(value), 4) for value in values]
    return found


def by_rule(
    name: str, dense: nn.Module, example: Tensor, budget: float, data: responses.Batches
) -> nn.Module:
    """The channel form at the ranks of a rule, built as `compress` builds it from `data`."""
    ranks = published.ranks_by_rule(dense, example, budget, "channel", RULES[name])
    forms = {n: ("channel", ranks[n]) if n in ranks else ("dense", 0) for n in all_layers(dense)}
    rows = (Row(n, form, rank, 0.0, 0.0, 0.0) for n, (form, rank) in forms.items())
    return apply(dense, example, Plan(tuple(rows), "macs"), data)  # counts errors and costs anew


# ---- what training does to singular values -----------------------------------------------------
# Each adds its gradient when that of the loss has arrived, so that `train` needs no other loss.


def _when_ready(parameter: Any, gradient: Callable[[Any], Tensor]) -> None:
    def add(p: Any) -> None:
        with torch.no_grad():
            p.grad += gradient(p)

    parameter.register_post_accumulate_grad_hook(add)


def _convs(model: nn.Module) -> list[nn.Conv2d]:
    return [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.kernel_size != (1, 1)]


def _pairs(model: Any) -> list[tuple[Any, Any]]:
    """The two layers of every factorised one, as `compress` builds them."""
    parts = [model.get_submodule(row.name) for row in model.plan if row.form != "dense"]
    return [(part[0], part[1]) for part in parts]


def reset_factors(model: nn.Module) -> None:
    """New random factors, as PyTorch starts its layers."""
    for pair in _pairs(model):
        for layer in pair:
            layer.reset_parameters()


def frobenius_decay(model: nn.Module, strength: float) -> None:
    """Decay of the product of both factors, and of all other weights as usual (Khodak 2021).

    The first layer has the weight B (r, ...), the second A (O, r, ...): strength A^T A B and
    strength A B B^T, where A^T A and B B^T are (r, r).
    """
    paired: set[int] = set()
    for first, second in _pairs(model):
        B, A = first.weight, second.weight
        paired |= {id(A), id(B)}

        def for_first(p: nn.Parameter, A: Any = A) -> Tensor:
            rows = A.transpose(0, 1).flatten(1)  # (r, ...)
            return strength * torch.tensordot(rows @ rows.mT, p, 1)

        def for_second(p: nn.Parameter, B: Any = B) -> Tensor:
            rows = B.flatten(1)
            product = torch.tensordot(rows @ rows.mT, p.transpose(0, 1), 1)
            return strength * product.transpose(0, 1)

        _when_ready(B, for_first)
        _when_ready(A, for_second)
    for p in model.parameters():
        if p.ndim > 1 and id(p) not in paired:
            _when_ready(p, lambda p: strength * p)


def nuclear_norm(model: nn.Module, strength: float) -> None:
    """The nuclear norm of every kernel that is no 1 x 1: its gradient is U V^T."""

    def gradient(p: nn.Parameter) -> Tensor:
        W = p.flatten(1)  # (O, C*k*k)
        values, U = torch.linalg.eigh((W @ W.mT).double())
        root = values.clamp(min=1e-6 * float(values[-1])).rsqrt()
        return strength * ((U * root) @ U.mT @ W.double()).to(p.dtype).reshape(p.shape)

    for conv in _convs(model):
        _when_ready(conv.weight, gradient)


class AsSVD(nn.Module):
    """A kernel as U diag(s) V^T, three tensors that are trained (Yang 2020)."""

    def __init__(self, shape: torch.Size) -> None:
        super().__init__()
        self.shape = shape

    def forward(self, U: Tensor, s: Tensor, V: Tensor) -> Tensor:  # (O, r), (r,), (n, r)
        return ((U * s) @ V.mT).reshape(self.shape)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        U, s, Vh = torch.linalg.svd(weight.flatten(1), full_matrices=False)
        return U, s, Vh.mT.contiguous()


def as_svd(model: nn.Module, sparse: float, orthogonal: float) -> None:
    """Train every kernel that is no 1 x 1 as an SVD.

    With two penalties: sparse (sum s)^2 / sum s^2 (Hoyer) and orthogonal ||U^T U - I||^2.
    """

    def hoyer(s: nn.Parameter) -> Tensor:
        total, square = s.abs().sum(), s.square().sum()
        return sparse * 2 * total / square * (s.sign() - total / square * s)

    def apart(U: nn.Parameter) -> Tensor:
        return 4 * orthogonal * U @ (U.mT @ U - torch.eye(U.shape[1], device=U.device))

    for conv in _convs(model):
        parametrize.register_parametrization(conv, "weight", AsSVD(conv.weight.shape))
        U, s, V = conv.parametrizations.weight.parameters()  # type: ignore[union-attr]
        for parameter, gradient in ((U, apart), (s, hoyer), (V, apart)):
            _when_ready(parameter, gradient)


def without_svd(model: nn.Module) -> nn.Module:
    """The kernels as plain weights again."""
    for conv in _convs(model):
        if parametrize.is_parametrized(conv):
            parametrize.remove_parametrizations(conv, "weight")
    return model


# ---- int8 --------------------------------------------------------------------------------------


def int8(model: nn.Module, example: Tensor, batches: responses.Batches) -> nn.Module:
    """Weights and activations in int8 by torch's own quantisation, ranges from `batches`."""
    with warnings.catch_warnings():  # torch.ao moves to a package of its own
        warnings.simplefilter("ignore")
        from torch.ao.quantization import get_default_qconfig_mapping
        from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

        model = copy.deepcopy(model).cpu().eval()
        ready = prepare_fx(model, get_default_qconfig_mapping("x86"), (example,))
        with torch.no_grad():
            for images, _ in batches:
                ready(images)
        small = convert_fx(ready)
    small.device_of = nn.Parameter(torch.zeros(1), requires_grad=False)  # `answers` asks for one
    return small


def graded_int8(b: Bench, model: nn.Module) -> dict[str, Any]:
    """Accuracy in int8 and, before that, in `float32`; the sizes of both files in MB."""
    small, content = int8(model, b.example, b.calibration), io.BytesIO()
    torch.save(small.state_dict(), content)
    size = {"file_mb": len(content.getvalue()) / 1e6, "float32_mb": file_mb(model)}
    return {**size, "float32": judged(b, model), **graded(b, small)}
