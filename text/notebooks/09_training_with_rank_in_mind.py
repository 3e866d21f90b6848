# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 09 · Training with rank in mind
#
# **The question:** Can training prepare the cut?
#
# So far you took a trained network as it was, and cut it. But you may also train it *for* the cut:
# with a penalty that pulls small singular values to zero, or with thin factors from the first step
# on. This chapter tries the well-known ways, and puts a plain training beside each of them.
#
# **After this chapter you can**
#
# - watch the effective rank of a layer while it trains;
# - say what weight decay, the nuclear norm and the Hoyer penalty do to singular values;
# - write Frobenius decay for factorised layers, and check it against `autograd`;
# - train a layer as an SVD, with a penalty that keeps its factors orthogonal;
# - judge whether such a preparation was worth it.
#
# **You need:** singular values and energy ([chapter 02](02_svd.ipynb)), a kernel as a matrix
# ([chapter 03](03_a_convolution_is_a_matrix.ipynb)), and how to judge a difference ([chapter
# 08](08_retraining.ipynb)).
#
# **Time:** 45 minutes to read, about 2 minutes to run.

# %%
import importlib.util

if importlib.util.find_spec("lowrank_course") is None:  # on Colab, in a copy of the course
    print("Installing the course's package")
    # %pip install --quiet --no-deps .. tensorly

# %%
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from tqdm.auto import tqdm

from lowrank_course import compress, data, evaluate, linalg, load_resnet18, plots, responses

plots.style()
torch.set_num_threads(1)                             # for images this small, two would only wait
quick = os.environ.get("LOWRANK_PROFILE") == "smoke"

# %% [markdown]
# ## 1. A network that you can train often
#
# One training proves nothing: chapter 08 asks for several seeds. Here you train some seventy times.
# So what you train in this chapter is a network of four convolutions, on handwritten digits of 8 ×
# 8 pixels, which it learns in seconds. You never see the digits of **val** before the end; all
# choices are made on held-out images (`judge`).

# %%
def tensors(images):                                 # all images as one batch, 8 px
    x, y = next(iter(data.make_loader(images, len(images), size=8)))
    return x.contiguous(memory_format=torch.channels_last), y            # faster on most CPUs


published = data.load_images("train", "digits")
few = data.balanced_subset(published, 60)
rest = published.select(~np.isin(published.index, few.index))
x, y = tensors(few)                                  # (600, 3, 8, 8), (600,)
calibration, judge = [(x, y)], [tensors(rest)]
print(f"{len(few)} images to train, {len(rest)} to judge")

# %%
def network(seed):
    torch.manual_seed(seed)
    parts, channels = [], 3
    for stride in (1, 2, 1, 1):
        parts += [nn.Conv2d(channels, 32, 3, stride, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
        channels = 32
    model = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))
    return model.to(memory_format=torch.channels_last)


def kernels(model):                                  # of the last three, which are to be cut
    convs = [m for m in model if isinstance(m, nn.Conv2d)]
    return [conv.weight.flatten(1) for conv in convs[1:]]                # each (32, 288)


print([tuple(W.shape) for W in kernels(network(0))])

# %% [markdown]
# ### The effective rank
#
# The numerical rank jumps: a singular value counts, or it does not. To watch a training you want a
# number that moves smoothly. Divide the singular values by their sum. Then they are shares $p_i$,
# and their entropy says over how many directions they are spread (Roy and Vetterli, 2007):
#
# $$\text{effective rank} = \exp\Big(-\sum_i p_i \log p_i\Big), \qquad
# p_i = \frac{\sigma_i}{\sum_j \sigma_j}$$
#
# **Predict.** What is it for the singular values 1, 1, 1, 1? For 1, 0, 0, 0? For 1, 0.5, 0.1, 0.1?

# %%
def effective_rank(S):                               # singular values (k,)
    p = S / S.sum()
    return float(torch.special.entr(p).sum().exp())  # entr: -p log p, and 0 at 0


for values in ([1, 1, 1, 1], [1, 0, 0, 0], [1, 0.5, 0.1, 0.1]):
    print(values, f"effective rank {effective_rank(torch.tensor(values, dtype=float)):.2f}")

# %% [markdown]
# **Explain.** Four equal values count as 4, a single one as 1. In the third case there are four
# directions, but two of them are weak: the effective rank lies between 2 and 3.
#
# ### The training loop
#
# A plain loop with two openings. `penalty(model)` is added to the loss. `decay(model)` adds to the
# gradients: that is how weight decay works. After each epoch the loop notes two numbers, each a
# mean over the three kernels: the effective rank, and the energy that the first four directions
# hold. Four is an eighth of the full rank: the cut to come. At the end the statistics of the
# batch norms are measured anew (chapter 08).

# %%
def on_weights(model, strength=5e-4):                # ordinary weight decay
    for name, weight in model.named_parameters():
        if weight.ndim > 1 and "parametrizations" not in name:           # those come later
            weight.grad += strength * weight.detach()


RANK = 4


def look(model):
    with torch.no_grad():
        spectra = [torch.linalg.svdvals(W) for W in kernels(model)]
    held = [100 * float(linalg.energy(S)[RANK - 1]) for S in spectra]    # %
    return np.mean([effective_rank(S) for S in spectra]), np.mean(held)


# %%
def fit(model, seed, epochs, penalty=None, decay=on_weights, peak=0.1, watch=look):
    torch.manual_seed(seed)                          # of order and shifts
    optimizer = torch.optim.SGD(model.parameters(), peak, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, 10 * epochs + 1)
    seen = [watch(model)]
    for _ in range(epochs):
        model.train()
        for batch in torch.randperm(len(x)).split(60):
            shift = torch.randint(-1, 2, (2,)).tolist()                  # pixels
            loss = F.cross_entropy(model(x[batch].roll(shift, dims=(2, 3))), y[batch])
            if penalty is not None:
                loss = loss + penalty(model)
            optimizer.zero_grad()
            loss.backward()
            decay(model)
            optimizer.step()
            schedule.step()
        seen.append(watch(model))
    responses.recalibrate(model, calibration)
    return seen


# %% [markdown]
# **Predict.** The kernels start as random numbers. Their rank is full, 32, and their effective rank
# is close to it. What does plain training do to the effective rank?

# %%
epochs = 16
plain = network(0)
seen = fit(plain, 0, epochs)
for when, (rank, held) in {"before": seen[0], "after": seen[-1]}.items():
    print(f"{when:6} training: effective rank {rank:.1f} of 32, energy at rank 4 {held:.0f} %")
print(f"top-1 on held-out images: {evaluate(plain, judge):.1f} %")

# %% [markdown]
# **Explain.** It hardly falls. A few directions grow, so the energy moves to the front. The other
# directions stay spread out. Is that only because the training was so short? The ResNet-18 that
# ships with the course was trained for many more epochs, on photographs.
#
# **Predict.** Is its effective rank low?

# %%
shipped, used = load_resnet18("imagenette"), {}
for name in ("layer1.0.conv1", "layer2.1.conv2", "layer3.0.conv2"):
    W = shipped.get_submodule(name).weight.detach().float().flatten(1)
    S, start = (torch.linalg.svdvals(M) for M in (W, torch.randn_like(W)))
    used[name] = effective_rank(S) / len(W), effective_rank(start) / len(W)
    k = len(W) // 8
    held, chance = (100 * float(linalg.energy(M)[k - 1]) for M in (S, start))
    print(f"{name}: effective rank {effective_rank(S):.1f} of {len(W)} (random "
          f"{effective_rank(start):.1f}), energy at rank {k} {held:.0f} % (random {chance:.0f} %)")

# %% [markdown]
# **Explain.** No. Training has concentrated the energy (compare with the random kernels), but
# nearly all directions stay in use. Nothing in the loss asks for few directions. So add a term that
# asks.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert abs(effective_rank(torch.ones(4)) - 4) < 1e-5
assert seen[0][0] > 31 and seen[-1][0] > 0.85 * seen[0][0]               # "hardly falls"
assert seen[-1][1] > seen[0][1] + 10 and RANK * 8 == 32                  # "a few directions grow"
assert evaluate(plain, judge) > 94
assert [tuple(W.shape) for W in kernels(plain)] == [(32, 288)] * 3
assert all(0.8 * random < share < random for share, random in used.values())     # "No."

# %% [markdown]
# ## 2. Three penalties, seen by a singular value
#
# | penalty | formula | in singular values |
# |---|---|---|
# | Frobenius (weight decay) | $\frac12 \lVert W \rVert_F^2$ | $\frac12 \sum \sigma_i^2$ |
# | nuclear norm | $\lVert W \rVert_*$ | $\sum \sigma_i$ |
# | Hoyer | $(\lVert W \rVert_* / \lVert W \rVert_F)^2$ | $(\sum \sigma_i)^2 / \sum \sigma_i^2$ |
#
# Hoyer (2004) measures sparseness by the ratio of two norms. Yang, Wen and Li (2020) square it, and
# train networks with it. Here it is taken of the singular values.
#
# With $W = U S V^\top$, their gradients are
#
# $$W = U S V^\top, \qquad U V^\top, \qquad
# \frac{2 N}{F^2} \Big( U V^\top - \frac{N}{F^2} W \Big)$$
#
# where $N = \lVert W \rVert_*$ and $F = \lVert W \rVert_F$. All three have the singular vectors of
# $W$. So a step along them moves only the singular values. PyTorch's `autograd` can tell
# whether this is right:

# %%
def nuclear(W):
    return torch.linalg.matrix_norm(W, "nuc")


def hoyer(W):
    return nuclear(W) ** 2 / W.square().sum()


W = torch.randn(12, 20, dtype=torch.float64, requires_grad=True)
U, S, Vh = torch.linalg.svd(W.detach(), full_matrices=False)
N, F2 = S.sum(), S.square().sum()
by_hand = {nuclear: U @ Vh, hoyer: 2 * N / F2 * (U @ Vh - N / F2 * W.detach())}
for penalty, gradient in by_hand.items():
    (by_autograd,) = torch.autograd.grad(penalty(W), W)
    print(penalty.__name__, torch.allclose(by_autograd, gradient))

# %% [markdown]
# **Predict.** Take 20 singular values, from 1 down to 0.05, and follow each gradient a little way.
# Which penalty makes the smallest values zero? Which leaves the shape as it is? Does one make a
# value *larger*?

# %%
S = torch.linspace(1, 0.05, 20, dtype=torch.float64)
N, F2 = S.sum(), S.square().sum()
slopes = {"Frobenius": S, "nuclear norm": torch.ones(20), "Hoyer": 2 * N / F2 * (1 - N / F2 * S)}
moved = {"start": S}
for name, slope in slopes.items():
    step = 0.2 / float(slope.abs().max())            # the fastest value moves by 0.2
    moved[name] = (S - step * slope).clamp(min=0)
plots.curves(
    {name: (range(1, 21), values) for name, values in moved.items()},
    xlabel="index of the singular value",
    ylabel="singular value",
    alt="Twenty falling singular values before and after a step. Frobenius lowers the large ones "
    "most. The nuclear norm lowers all by the same 0.2, and the last four reach zero. Hoyer lowers "
    "the small ones, the last three to zero, and raises the large ones.",
)

# %% [markdown]
# **Explain.**
#
# - *Frobenius* shrinks every value by the same factor. No shape changes, no value vanishes.
# - *Nuclear* takes the same amount off each. Small values arrive at zero first.
# - *Hoyer* takes from the small, here the last three arrive at zero, and *gives to the large*. It is
#   1 for a matrix of rank 1, and does not change when $W$ is multiplied by a number.
#
# The last point matters. Behind each of these kernels stands a batch norm, and it undoes any
# scaling. So a network can lower its nuclear norm for free: it makes $W$ smaller. It cannot cheat
# the Hoyer penalty in this way.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
for penalty, gradient in by_hand.items():
    assert torch.allclose(torch.autograd.grad(penalty(W), W)[0], gradient)
ratio = moved["Frobenius"] / S
assert torch.allclose(ratio, ratio[0].expand(20))
assert int((moved["nuclear norm"] == 0).sum()) == 4
assert moved["Hoyer"][0] > S[0] and int((moved["Hoyer"] == 0).sum()) == 3
assert torch.allclose(hoyer(3 * W), hoyer(W)) and not torch.allclose(nuclear(3 * W), nuclear(W))
assert abs(float(hoyer(torch.outer(torch.ones(3), torch.arange(1.0, 5)))) - 1) < 1e-5

# %% [markdown]
# ## 3. Weight decay on factors is not what you think
#
# Now let $W = A B$, with two factors that are trained. PyTorch's weight decay shrinks $A$ and
# $B$. What does that do to their *product*, which is what the network uses? Among all factors with
# product $W$, the smallest sum of squares belongs to the balanced ones, $A = U S^{1/2}$ and
# $B = S^{1/2} V^\top$. For them
#
# $$\tfrac12 \big( \lVert A \rVert_F^2 + \lVert B \rVert_F^2 \big) = \lVert W \rVert_*$$
#
# So where a training with weight decay on the factors comes to rest, it pays the nuclear norm of
# the product (Srebro and Shraibman, 2005). The dense network had something else: a Frobenius decay.
# To get that, decay the product (Khodak et al., 2021):
#
# $$\frac{\lambda}{2} \lVert A B \rVert_F^2 \qquad \text{has the gradients} \qquad
# \lambda\, A\, B B^\top \quad \text{and} \quad \lambda\, A^\top\! A\, B$$
#
# $B B^\top$ and $A^\top\! A$ are small, rank times rank. So this costs almost nothing, and the
# product is never built.

# %%
def frobenius_decay(A, B, strength):                 # A (m, r), B (r, n)
    a, b = A.detach(), B.detach()
    A.grad += strength * a @ (b @ b.mT)              # lambda A B B^T
    B.grad += strength * (a.mT @ a) @ b              # lambda A^T A B


A = torch.randn(12, 4, dtype=torch.float64, requires_grad=True)
B = torch.randn(4, 20, dtype=torch.float64, requires_grad=True)
wanted = torch.autograd.grad(0.5 * (A @ B).square().sum(), [A, B])
A.grad, B.grad = torch.zeros_like(A), torch.zeros_like(B)
frobenius_decay(A, B, strength=1.0)
print("same as autograd:", [torch.allclose(f.grad, g) for f, g in zip((A, B), wanted, strict=True)])

# %%
product = (A @ B).detach()
with torch.no_grad():
    balanced = linalg.balanced_factors(product, 4)
    for name, factors in {"as drawn": (A, B), "balanced": balanced}.items():
        half = sum(f.square().sum() for f in factors) / 2
        print(f"{name}: half the squared factors {half:.2f}, nuclear norm {nuclear(product):.2f}")

# %% [markdown]
# **Predict.** One step of weight decay multiplies $A$ and $B$ by 0.9. What happens to the singular
# values of $A B$? Is that what the nuclear norm does (section 2)? Then let a loss pull $A B$ to a
# matrix with the singular values 1, 0.8, 0.6, 0.4, 0.2. Which values are left at the end?

# %%
goal = torch.diag(torch.tensor([1.0, 0.8, 0.6, 0.4, 0.2], dtype=torch.float64))
settled = {}
for name in ("weight decay", "Frobenius decay"):
    torch.manual_seed(0)
    C, D = (0.5 * torch.randn(5, 5, dtype=torch.float64) for _ in range(2))
    for _ in range(2000):
        pull = goal - C @ D                          # minus the gradient of half the squared error
        dC, dD = (C, D) if name == "weight decay" else (C @ D @ D.mT, C.mT @ C @ D)
        C, D = C + 0.1 * (pull @ D.mT - 0.3 * dC), D + 0.1 * (C.mT @ pull - 0.3 * dD)
    settled[name] = torch.linalg.svdvals(C @ D)
    print(f"{name:16}", [round(float(s), 2) for s in settled[name]])

# %% [markdown]
# **Explain.** A single step takes the same *share* from every singular value: 0.9 times 0.9 is 0.81
# of it stays. That changes no shape. The difference shows at the end, where loss and decay balance.
# With weight decay on the factors, the loss must pull at a direction at least as hard as $\lambda$,
# however small its singular value is. A direction at which it pulls less fades away. Here $\lambda$
# is 0.3: each value above 0.3 ends 0.3 below its goal, and the last one, 0.2, is gone, as with the
# nuclear norm. Frobenius decay pulls back with $\lambda\sigma$, less and less as $\sigma$ falls. So
# every value ends at its goal divided by 1.3, and none is lost.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
wanted_values = goal.diagonal()
assert torch.allclose(settled["weight decay"], (wanted_values - 0.3).clamp(min=0), atol=1e-3)
assert torch.allclose(settled["Frobenius decay"], wanted_values / 1.3, atol=1e-3)


# %% [markdown]
# To train a kernel as a product you need no new layer. With `torch.nn.utils.parametrize`, PyTorch
# trains `A` and `B`, and computes `weight` from them before each use. `right_inverse` says how to
# start: here from the SVD of the weight as it was. `remove_parametrizations` makes it a plain
# convolution again.

# %%
class Product(nn.Module):
    def __init__(self, shape, rank):
        super().__init__()
        self.shape, self.rank = shape, rank

    def forward(self, A, B):
        return (A @ B).reshape(self.shape)

    def right_inverse(self, weight):
        return linalg.balanced_factors(weight.flatten(1), self.rank)


# %%
def parametrised(model, build):                      # build(shape) gives the parametrisation
    for conv in [m for m in model if isinstance(m, nn.Conv2d)][1:]:
        parametrize.register_parametrization(conv, "weight", build(conv.weight.shape))
    return model


def parts(model):                                    # the trained tensors of each kernel
    convs = [m for m in model if parametrize.is_parametrized(m)]
    return [tuple(conv.parametrizations.weight.parameters()) for conv in convs]


def merged(model):
    for conv in [m for m in model if parametrize.is_parametrized(m)]:
        parametrize.remove_parametrizations(conv, "weight")
    return model


# %%
def on_factors(model, strength=0.03):                # as PyTorch's own weight decay would
    on_weights(model)
    for factor in (factor for pair in parts(model) for factor in pair):
        factor.grad += strength * factor.detach()


def on_products(model, strength=0.03):
    on_weights(model)
    for A, B in parts(model):
        frobenius_decay(A, B, strength)


factors = parametrised(network(0), lambda shape: Product(shape, 32))
with torch.no_grad():
    same = torch.allclose(factors.eval()(x), network(0).eval()(x), atol=1e-4)
print("at full rank the same network:", same)
print("trained for the first kernel:", [tuple(p.shape) for p in parts(factors)[0]])

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
for factor, gradient in zip((A, B), wanted, strict=True):
    assert torch.allclose(factor.grad, gradient)
with torch.no_grad():
    half = sum(f.square().sum() for f in balanced) / 2
    assert torch.allclose(half, nuclear(product))
    assert (A.square().sum() + B.square().sum()) / 2 > half
assert same

# %% [markdown]
# ## 4. Train the SVD itself
#
# The nuclear norm needs an SVD in every step. Yang, Tang et al. (2020) avoid it: train $U$, $s$
# and $V$ as three tensors, and put the penalty on $s$. That only means what it should while the
# columns of $U$ and $V$ are orthonormal. So a second penalty pulls them back towards that:
#
# $$\frac{1}{r^2} \lVert U^\top U - I \rVert_F^2 + \frac{1}{r^2} \lVert V^\top V - I \rVert_F^2$$

# %%
class AsSVD(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape = shape

    def forward(self, U, s, V):                      # (m, r), (r,), (n, r)
        return (U * s @ V.mT).reshape(self.shape)

    def right_inverse(self, weight):
        U, s, Vh = torch.linalg.svd(weight.flatten(1), full_matrices=False)
        return U, s, Vh.mT


# %%
def not_orthogonal(U):
    r = U.shape[1]
    return (U.mT @ U - torch.eye(r)).square().sum() / r**2


def svd_penalty(model):
    total = 0
    for U, s, V in parts(model):
        sparse = s.abs().sum() ** 2 / s.square().sum()                   # Hoyer, without any SVD
        total = total + 3 * (not_orthogonal(U) + not_orthogonal(V)) + 0.02 * sparse
    return total


# %% [markdown]
# Is a penalty enough? PyTorch also has an exact way: `orthogonal` computes the factor from free
# numbers such that it *is* orthogonal, whatever they are.
#
# **Predict.** Take 100 steps that pull both towards some random target. How far from orthogonal do
# they end?

# %%
torch.manual_seed(0)
target = torch.randn(32, 8)
exact = nn.utils.parametrizations.orthogonal(nn.Linear(8, 32, bias=False))
penalised = nn.Linear(8, 32, bias=False)
nn.init.orthogonal_(penalised.weight)
for name, layer in {"exact": exact, "penalised": penalised}.items():
    optimizer = torch.optim.SGD(layer.parameters(), 0.05)
    for _ in range(100):
        loss = (layer.weight - target).square().mean()
        if layer is penalised:
            loss = loss + 3 * not_orthogonal(layer.weight)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    error = linalg.orthogonality_error(layer.weight.detach())
    print(f"{name:10} ||U^T U - I||_F = {error:.1e}")

# %% [markdown]
# **Explain.** The exact one stays orthogonal up to rounding. The one with the penalty is pulled
# away as far as the loss finds worth it. For a cut the penalty is enough: the SVD that cuts makes
# its own orthogonal factors. (Where the columns are not orthonormal, $s$ is not quite the singular
# values. Section 5 prints how far the columns are off there.) Use the exact way where something
# else relies on orthogonality.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert linalg.orthogonality_error(exact.weight.detach()) < 1e-5
assert linalg.orthogonality_error(penalised.weight.detach()) > 1e-2
as_svd = parametrised(network(0), AsSVD)
with torch.no_grad():
    assert torch.allclose(as_svd.eval()(x), network(0).eval()(x), atol=1e-4)
    total = 0.02 * sum(hoyer(W) for W in kernels(as_svd))
    assert torch.allclose(svd_penalty(as_svd), total, rtol=1e-3)         # orthonormal at the start

# %% [markdown]
# ## 5. The picture to remember
#
# Train all ways, each with several seeds. A seed fixes the start, the order of images and the
# shifts. So the ways can be compared in pairs, seed by seed. (The strengths were tried on held-out
# images. Change them and see.)
#
# **Predict.** Sketch the effective rank over the epochs for each way. Which one will stay near the
# plain training? Which will fall?

# %%
WAYS = {                                             # parametrisation, penalty, decay
    "plain": (None, None, on_weights),
    "nuclear norm": (None, lambda m: 0.05 * sum(map(nuclear, kernels(m))), on_weights),
    "Hoyer": (None, lambda m: 0.02 * sum(map(hoyer, kernels(m))), on_weights),
    "SVD, orthogonality": (AsSVD, svd_penalty, on_weights),
    "factors, weight decay": (lambda shape: Product(shape, 32), None, on_factors),
    "factors, Frobenius decay": (lambda shape: Product(shape, 32), None, on_products),
}
SEEDS = range(1 if quick else 5)

# %%
trained, history = {}, {}
for way, (build, penalty, decay) in WAYS.items():
    for seed in tqdm(SEEDS, way, leave=False):
        model = network(seed)
        if build is not None:
            parametrised(model, build)
        history[way, seed] = fit(model, seed, epochs, penalty, decay)
        if build is AsSVD:                           # how far off are U and V, each (m, r)?
            off = [float(linalg.orthogonality_error(part.detach()))
                   for U, _, V in parts(model) for part in (U, V)]
        trained[way, seed] = merged(model)
print(f"last network with U, s, V: ||U^T U - I||_F and ||V^T V - I||_F {min(off):.1f} to "
      f"{max(off):.1f}, where ||I||_F is {32**0.5:.1f}")

# %%
ends = {way: np.mean([history[way, seed][-1] for seed in SEEDS], axis=0) for way in WAYS}
figure = Figure(figsize=(11, 4))
panels = figure.subplots(1, 2)
for axes, i in zip(panels, (0, 1), strict=True):
    for way in WAYS:
        axes.plot(np.mean([history[way, seed] for seed in SEEDS], axis=0)[:, i], label=way)
    axes.set(xlabel="epoch (means of the seeds)", ylim=(0, (33, 100)[i]))
panels[0].set_ylabel("effective rank (of 32)")
panels[1].set_ylabel("energy at rank 4 (%)")
figure.legend(*axes.get_legend_handles_labels(), loc="outside right center")
plots.show(
    figure,
    "Effective rank (left) and energy at rank 4 (right) over the epochs. All start near 32, and "
    f"{history['plain', 0][0][1]:.0f} %. They end at "
    + ", ".join(f"{rank:.0f} and {held:.0f} % ({way})" for way, (rank, held) in ends.items()) + ".",
)

# %%
before = {way: [evaluate(trained[way, seed], judge) for seed in SEEDS] for way in WAYS}
size = {}
print("means over the seeds      effective rank   energy at 4   size ||W||_F   top-1, uncut")
for way, values in before.items():
    norms = [float(W.detach().norm()) for seed in SEEDS for W in kernels(trained[way, seed])]
    size[way], (rank, held) = np.mean(norms), ends[way]
    print(f"{way:25} {rank:14.1f} {held:11.0f} % {size[way]:14.1f} {np.mean(values):12.1f} %")

# %% [markdown]
# **Explain.** Four of the ways bring the effective rank down to less than half. Before anything is
# cut, their means of the accuracy lie about a point lower. With five seeds that may be chance.
# (`compare` of section 6 can test it.)
#
# Look at the last two: the same layers, the same strength. Weight decay on the factors ends like a
# nuclear norm. Frobenius decay leaves most of the rank alone. Why does the rank fall with it at
# all? Its strength, 0.03, is 60 times that of *plain*. So less of the random start may be left.
#
# The sizes show what the batch norms allow. The nuclear norm got a good part of its low value for
# free, from smaller kernels. Hoyer did not. There is a side effect: behind a batch norm, a small
# kernel turns further in each step. So the ways differ in more than the rank.
#
# Here are the spectra of the middle kernel, for the first seed:

# %%
spectra = {way: torch.linalg.svdvals(kernels(trained[way, 0])[1].detach()) for way in WAYS}
figure = Figure(figsize=(9, 4))
axes = figure.subplots()
for way, S in spectra.items():
    axes.semilogy(range(1, 33), S / S[0], label=way)
axes.set(xlabel="index of the singular value", ylabel="singular value / largest", ylim=(1e-4, 1.5))
figure.legend(loc="outside right center")
plots.show(
    figure,
    "Singular values of the middle kernel after training, relative to the largest. Plain falls "
    f"slowly, to {spectra['plain'][-1] / spectra['plain'][0]:.2f}. Frobenius decay lies somewhat "
    "lower. Three others fall steadily, and far. The SVD way drops suddenly behind "
    f"{linalg.numerical_rank(kernels(trained['SVD, orthogonality', 0])[1].detach())} values.",
)

# %%
for way in WAYS:
    numerical = linalg.numerical_rank(kernels(trained[way, 0])[1].detach())
    print(f"{way:25} numerical rank {numerical} (default tolerance)")

# %% [markdown]
# Small is not zero. Although the curves are steep, most numerical ranks stay full. In section 2,
# `clamp` stopped the values at zero. Gradient steps do not stop there: they step over zero, and
# every batch pushes a little in all directions. Weight decay on factors only multiplies, so it
# never quite arrives. Only where the singular values themselves are trained, as $s$, many end
# below the tolerance of the numerical rank. They are not zero either: they step to and fro over
# zero, in steps that get tiny as the learning rate falls. So the effective rank tells you more
# here.
#
# So the weights *can* be made nearly low-rank. Is the cut network better for it?

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
numerical = {way: linalg.numerical_rank(kernels(trained[way, 0])[1].detach()) for way in WAYS}
assert sum(rank == 32 for rank in numerical.values()) >= 4               # "most"
assert numerical["SVD, orthogonality"] == min(numerical.values()) < 25   # "many end"
low = [way for way in WAYS if ends[way][0] < 0.5 * ends["plain"][0]]
assert set(low) == set(WAYS) - {"plain", "factors, Frobenius decay"}     # "Four of the ways"
assert ends["factors, Frobenius decay"][0] > 1.5 * ends["factors, weight decay"][0]
assert ends["factors, Frobenius decay"][0] > 0.6 * ends["plain"][0]      # "most of the rank"
assert size["nuclear norm"] < 0.7 * size["plain"] < 0.9 * size["Hoyer"]
for way in WAYS:
    assert np.mean(before[way]) > np.mean(before["plain"]) - (4 if quick else 2)
assert round(0.03 / 5e-4) == 60 and min(off) > 0.1                      # "not orthonormal"

# %% [markdown]
# ## 6. After the cut
#
# Now cut all three kernels to the same rank, and recalibrate. (The uncut networks had their batch
# norms measured anew on the same images, at the end of `fit`. So none has an advantage.)
#
# `compress` would choose the ranks for you. Here they should be equal, so that only the training
# differs. Take the plan of a network that keeps everything, and write your ranks into it.
#
# There are two ways to cut. By **weights**: the truncated SVD of each kernel. By **responses**:
# keep what the layers give out over real images, and refit each layer to what the dense network
# gives. (`compress` does this when it gets `data`; [chapter 07](07_responses_not_weights.ipynb)
# explains it.)

# %%
from lowrank_course.compress import apply
from lowrank_course.plan import Plan

everything = compress(plain, x[:1], budget=1.0).plan
names = [name for name, m in plain.named_modules() if isinstance(m, nn.Conv2d)][1:]


def cut(model, rank, data=None):                     # data: cut by responses, with refit
    rows = [
        replace(row, form="channel", rank=rank) if row.name in names else row for row in everything
    ]
    small = apply(model, x[:1], Plan(tuple(rows), "macs"), data)
    responses.recalibrate(small, calibration)
    return small


# %% [markdown]
# **Predict.** Which network is best at rank 4, cut by weights? And what will the *plain* one reach,
# cut by responses? That is the control: it needs no preparation at all.

# %%
RANKS, BY = (4, 6, 8), {"weights": None, "responses": calibration}
after = {}
for way in tqdm(WAYS, "cutting", leave=False):
    for by, batches in BY.items():
        for rank in RANKS:
            small = [cut(trained[way, seed], rank, batches) for seed in SEEDS]
            after[way, by, rank] = [evaluate(model, judge) for model in small]
        after[way, by, "uncut"] = before[way]

# %%
figure = Figure(figsize=(10.5, 4))
for axes, by in zip(figure.subplots(1, 2, sharey=True), BY, strict=True):
    for way in WAYS:
        means = [np.mean(after[way, by, rank]) for rank in (*RANKS, "uncut")]
        axes.plot(["4", "6", "8", "uncut"], means, marker="o", label=way)
    axes.set(title=f"cut by {by}", xlabel="rank of the three kernels")
    axes.set_ylim(20, 100)
figure.axes[0].set_ylabel("top-1 on held-out images (%)")
figure.legend(*axes.get_legend_handles_labels(), loc="outside right center")
plots.show(
    figure,
    "Accuracy against rank, cut by weights (left) and by responses (right). Left, at rank 6: "
    + ", ".join(f"{way} {np.mean(after[way, 'weights', 6]):.0f} %" for way in WAYS)
    + ". Right all lines lie higher and closer together.",
)

# %% [markdown]
# Is this only the luck of the seeds? The **paired t-test** takes the differences, seed by seed. It
# asks how far their mean is from zero, measured in their own scatter. Take one of the two ways that
# are ahead at rank 6 on the left, the factors with weight decay, and compare it with the plain one.

# %%
from scipy.stats import ttest_rel


def compare(a, b):                                   # accuracies of two ways, seed by seed
    p = ttest_rel(a, b).pvalue if len(a) > 1 else 1.0
    verdict = "the same" if p > 0.05 else "higher" if np.mean(a) > np.mean(b) else "lower"
    value = "p < 0.0001" if p < 0.0001 else f"p = {p:.4f}"
    return f"{np.mean(a):.1f} % against {np.mean(b):.1f} %, {value}: {verdict}"


# %%
prepared, control = "factors, weight decay", "plain"
for rank in (4, 6):
    print(f"rank {rank}")
    for a, b in (
        ((prepared, "weights"), (control, "weights")),
        ((control, "responses"), (control, "weights")),
        ((prepared, "weights"), (control, "responses")),
        ((prepared, "responses"), (control, "responses")),
        ((prepared, "responses"), (prepared, "weights")),
        *([(("SVD, orthogonality", "weights"), (control, "weights"))] if rank == 4 else []),
    ):
        values = compare(after[*a, rank], after[*b, rank])
        print(f"  {', cut by '.join(a)}\n    against {', cut by '.join(b)}: {values}")

# %% [markdown]
# **Explain.**
#
# - Preparation helps. At rank 6, cut by weights, the network with decayed factors keeps far more
#   than the plain one.
# - The control helps, too. At rank 4, cutting by responses lifts the plain network by many points,
#   without any preparation. *Alone*, its mean there is as high as that of the preparation alone, or
#   higher. Whether the test shows it changes with the processor: read the third comparison. (At
#   rank 6 the preparation alone has the higher mean, by a few points.)
# - Both together have the highest mean of these four at rank 4. Whether the test tells it from
#   either alone, the fourth and the fifth comparison at that rank say. (They do not simply add up:
#   part of what they win is the same.)
# - A low effective rank is not enough. The SVD way has the lowest of all. Yet at rank 4, cut by
#   weights, it is no better than plain: its mean is far below (the last comparison at rank 4). Nor
#   does the energy warn you: at rank 4 it holds about as much of it as the two ways that do best
#   (table in section 5). A high energy still leaves a large error: 80 % of the energy is a relative
#   error of 45 % (chapter 02). And neither number says what the lost directions do for the answer.
#   Only the measured accuracy does.
#
# Eleven tests are many. Where there is no difference at all, chance still makes one in twenty fall
# below 0.05. So trust a very small p-value more than one just below the line. And five seeds are
# few: with other seeds, or on a processor that rounds differently, some verdicts cross the line.
# The text names only what does not hang on one of them.
#
# One more thing. Weight decay on factors lowers the rank. If the factors are thin already, that is
# not wanted, and Khodak et al. (2021) advise against it. If the cut comes later, it is just what you
# want.
#
# (You looked at six ways and two cuts, and the text names the best. The best of many looks a little
# better than it is. So there is a last look at **val**, below.)

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
def gain(a, b, rank):
    return np.mean(after[*a, rank]) - np.mean(after[*b, rank])


def ahead(a, b, rank):
    assert gain(a, b, rank) > 0, (a, b, rank)


# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
ahead((prepared, "weights"), (control, "weights"), 6)
ahead((control, "responses"), (control, "weights"), 4)
ahead((prepared, "responses"), (control, "responses"), 4)
ahead((prepared, "responses"), (prepared, "weights"), 4)
spread = {by: np.ptp([np.mean(after[way, by, 4]) for way in WAYS]) for by in BY}
assert spread["responses"] < spread["weights"]                           # "closer together"
if not quick:
    alone = (prepared, "weights"), (control, "responses")
    assert gain(*alone, 4) < 1 and gain(*alone, 6) > 0                   # "as high"
    assert gain((prepared, "weights"), (control, "weights"), 6) > 5      # "far more"
    assert gain((control, "responses"), (control, "weights"), 4) > 5     # "many points"

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
svd = "SVD, orthogonality"
if not quick:
    assert ends[svd][0] == min(rank for rank, _ in ends.values())
    best = [ends[way][1] for way in ("nuclear norm", "factors, weight decay")]
    assert abs(ends[svd][1] - np.mean(best)) < 8                         # "about as much"
    assert gain((svd, "weights"), ("plain", "weights"), 4) < -5          # "far below"
    assert gain((prepared, "weights"), (control, "responses"), 6) < 8    # "a few points"
assert ends[svd][1] < 85 and round((1 - 0.8) ** 0.5, 2) == 0.45

# %% [markdown]
# ## 7. And after fine-tuning?
#
# A cut network is trained on, as in chapter 08. So the accuracy right after the cut is not the end.
# Give each a few more epochs at rank 4, an eighth of the full rank.
#
# There is also a way without any cut: train **thin factors** from the first step, for as many
# epochs in all. How should they start? At random, as PyTorch's layers do? Or from the SVD of a
# random kernel, cut to the rank? Khodak et al. (2021) recommend this **spectral initialisation**,
# together with Frobenius decay. In their experiments both together beat either alone.
#
# **Predict.** Four combinations, several seeds. Will you see it here?

# %%
more = 4                                             # epochs of fine-tuning


def thin(seed, spectral):
    model = parametrised(network(seed), lambda shape: Product(shape, RANK))
    if not spectral:
        for factor in (factor for pair in parts(model) for factor in pair):
            nn.init.kaiming_uniform_(factor, 5**0.5)                     # as PyTorch's layers
    return model


dense_numbers = sum(W.numel() for W in kernels(plain))
thin_numbers = sum(f.numel() for pair in parts(thin(0, True)) for f in pair)
print(f"three kernels: {dense_numbers:,} numbers; at rank {RANK}: {thin_numbers:,}")

# %%
START = {"random": False, "spectral": True}
DECAY = {
    "weight decay": lambda model: on_factors(model, 0.005),
    "Frobenius decay": lambda model: on_products(model, 0.005),
}
final, scores = {}, {}
for start, spectral in START.items():
    for name, decay in DECAY.items():
        key = f"{start}, {name}"
        final[key] = [thin(seed, spectral) for seed in SEEDS]
        for seed, model in enumerate(tqdm(final[key], key, leave=False)):
            fit(model, seed, epochs + more, decay=decay)
        scores[key] = [evaluate(model, judge) for model in final[key]]

# %%
both = "spectral, Frobenius decay"
for key, values in scores.items():
    print(f"{key:26}", [round(value, 1) for value in values])
for key in scores:
    if key != both:
        print(f"both against {key:23} {compare(scores[both], scores[key])}")

# %% [markdown]
# **Explain.** The published effect does not show: the means lie close together, about as far apart
# as the seeds scatter. If one of the three tests should say *higher* or *lower*, be careful: with
# five other seeds the verdict may turn round. But none of this refutes the published effect. Khodak
# et al. (2021) trained deep networks for many epochs; here are four layers and few steps. The
# honest sentence is: "this setting does not show it". (Section 9 tries a deeper network.)
#
# **Predict.** Now fine-tune what you cut. Right after the cut the networks were far apart. How far
# will they be at the end? And where do the thin factors stand, which nobody cut? (In the picture they
# are those of *spectral, Frobenius decay*.)

# %%
CUT = [("plain", "weights"), ("plain", "responses"), (prepared, "weights"), (prepared, "responses")]
shown = {}
for way, by in CUT:
    key = f"{way}, cut by {by}"
    final[key] = [cut(trained[way, seed], RANK, BY[by]) for seed in SEEDS]
    for seed, model in enumerate(final[key]):
        fit(model, seed, more, peak=0.03, watch=lambda model: None)
    scores[key] = [evaluate(model, judge) for model in final[key]]
    shown[key] = (after[way, by, RANK], scores[key])
shown["thin from the start"] = ([], scores[both])

# %%
figure = Figure(figsize=(9.5, 3.6))
axes = figure.subplots()
for place, (cut_only, tuned) in enumerate(shown.values()):
    style = {"s": 70, "alpha": 0.7, "zorder": 3}
    axes.scatter(cut_only, [place] * len(cut_only), marker="s", color=plots.COLOURS[1], **style)
    axes.scatter(tuned, [place] * len(tuned), color=plots.COLOURS[0], **style)
axes.scatter([], [], s=70, marker="s", color=plots.COLOURS[1], label="right after the cut")
axes.scatter([], [], s=70, color=plots.COLOURS[0], label="after all epochs")
axes.set(yticks=range(len(shown)), yticklabels=shown, ylim=(len(shown) - 0.5, -0.5))
axes.set_xlabel("top-1 on held-out images (%), one dot a seed")
figure.legend(loc="outside upper center", ncols=2)
plots.show(
    figure,
    "Five rows of dots. Right after the cut the rows lie far apart: "
    + ", ".join(f"{np.mean(a):.0f} % ({key})" for key, (a, _) in shown.items() if len(a))
    + ". After fine-tuning all lie close together, between "
    f"{min(min(b) for _, b in shown.values()):.0f} and "
    f"{max(max(b) for _, b in shown.values()):.0f} %, with the thin factors among them.",
)

# %%
pairs = [(f"{prepared}, cut by responses", "plain, cut by responses"),
         ("plain, cut by responses", "plain, cut by weights")]
thinner = "thin from the start"
for a, b in pairs:
    first, last = (np.mean(shown[a][i]) - np.mean(shown[b][i]) for i in (0, 1))
    print(f"{a}\n  minus {b}: {first:+.1f} points after the cut, {last:+.1f} at the end")
    print(f"  at the end {compare(scores[a], scores[b])}")
print(f"{pairs[0][0]}\n  against {thinner}: {compare(scores[pairs[0][0]], scores[both])}")
spread = np.ptp([np.mean(b) for _, b in shown.values()])
print(f"all means at the end lie within {spread:.1f} points")

# %% [markdown]
# **Explain.** A few epochs of fine-tuning remove most of the difference. Between the two ways to
# cut the plain network little is left. The mean of the prepared network may still be a little ahead
# of the plain one. The cell above says whether five seeds can tell that from chance. If it says
# "the same", claim no lead. Thin factors from the start end about as high, without a cut.
#
# (Note one unfairness. The strengths of the decays were tried out, for the prepared network and for
# the thin factors. The control had nothing to try.)
#
# So what do training-aware methods still add today?
#
# - **If you cannot train after the cut**, some of them add a lot to a cut by weights. So do the
#   responses, and those ask nothing of the training. Whether both together add more differs: here
#   they did, on ResNet-18 they did not (section 9).
# - **If you can**, most of the lead is gone after a few epochs. What is left must be worth the
#   search for a good strength, and the accuracy that the uncut network may lose (in section 9 it
#   does).
# - **If you know the rank beforehand**, also try thin factors from the first step. Here they ended
#   about as high. Train them as a pair of convolutions ([chapter 05](05_factorizing.ipynb)):
#   `Product` builds the full kernel in every step, so here nothing ran faster.
#
# This was seen on a tiny network. It is no proof for large ones. But the *question* is the same
# there: is the prepared network still better when the plain one gets equally many epochs? Section 9
# asks it of ResNet-18.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert thin_numbers * 7 < dense_numbers
means = [np.mean(scores[f"{s}, {d}"]) for s in START for d in DECAY]
if not quick:
    assert np.ptp(means) < 4                                             # "close together"
gaps = [np.ptp([np.mean(pair[i]) for key, pair in shown.items() if len(pair[0])]) for i in (0, 1)]
assert gaps[1] < 0.4 * gaps[0]                                           # "level most of it"
assert np.mean(scores[both]) > np.mean(scores["plain, cut by responses"]) - 3
assert spread < 9
if not quick:
    first, last = pairs
    left, led = (np.mean(shown[first[0]][i]) - np.mean(shown[first[1]][i]) for i in (1, 0))
    assert 0 < left < 8 and led > 0                                      # "a little ahead"
    assert abs(np.mean(scores[last[0]]) - np.mean(scores[last[1]])) < 5  # "little is left"
    assert abs(np.mean(scores[first[0]]) - np.mean(scores[both])) < 3    # "as high"

# %% [markdown]
# ## 8. One look at the validation images
#
# All choices are made. Means over the seeds, on digits that served for no choice:

# %%
val = [tensors(data.load_images("val", "digits"))]
final |= {"plain, uncut": [trained["plain", seed] for seed in SEEDS]}
print(f"{len(val[0][1])} validation images, rank {RANK} unless uncut")
for key in ["plain, uncut", *(f"{way}, cut by {by}" for way, by in CUT), both]:
    values = [evaluate(model, val) for model in final[key]]
    print(f"{key:40} {np.mean(values):5.1f} ± {np.std(values):.1f} %")

# %% [markdown]
# The number after ± is the scatter between seeds. The means stand in about the same order as
# before. But they come from 360 images only, and no test was made here. So claim no lead from
# them. All lie below the uncut network. (*Spectral, Frobenius decay* is thin from the start.)
#
# ## 9. The recorded runs: ResNet-18, photographs
#
# The digits took seconds. The course's recorded ablations (`python benchmarks/runs.py ablations`)
# ask the same of ResNet-18 on Imagenette. They start from the dense network of chapter 08 and
# **prepare** it for five epochs, at 96 pixels and with CutMix (chapter 08): with *nothing* added,
# with the nuclear norm, or as an SVD with the two penalties of section 4 (here without the factor
# $1/r^2$). Then they cut it to 15 % of the MACs, in the channel form, by weights and by responses.
# What is cut by responses gets three epochs of fine-tuning, with the dense network as teacher.
#
# There are two controls. *Nothing* had the same eight epochs. *Not prepared* is the dense network
# itself, cut in the same two ways, with the three epochs of fine-tuning alone.
#
# **Predict.** Which is best cut by weights? Which by responses? And after the fine-tuning?

# %%
from lowrank_course.frontier import mcnemar

short = {}
if (path := Path("../results/ablations.json")).exists():
    short = json.loads(path.read_text())["jobs"]


def right_of(job):                                   # which validation images: bool (N,)
    packed = np.frombuffer(bytes.fromhex(job["right"]["val"]), np.uint8)
    return np.unpackbits(packed, count=data.COUNTS["val"]).astype(bool)


EXTRAS = {"nothing": "nothing", "nuclear norm": "nuclear norm", "SVD": "orthogonality"}
ranks = {}
for extra, key in EXTRAS.items() if short else ():
    recorded = [torch.tensor(S) for S in short[f"prepared, {key}"]["spectra"].values()]
    ranks[extra] = 100 * np.mean([effective_rank(S) / len(S) for S in recorded])
    print(f"prepared with {extra}: mean effective rank {ranks[extra]:.0f} % of the full one")

# %% [markdown]
# The p-values below are of McNemar's test (chapter 08). It compares two *networks*, image by image,
# and not two ways over several seeds.

# %%
networks = {}
if short:
    networks["not prepared", "uncut"] = short["dense"]
    networks["not prepared", "cut by weights"] = short["channel, weights"]
    networks["not prepared", "cut by responses"] = short["channel"]["before"]
    networks["not prepared", "after training"] = short["channel"]
for extra, key in EXTRAS.items() if short else ():
    job = short[f"prepared, {key}"]
    steps = {"uncut": job["prepared"], "cut by weights": job["cut by weights"],
             "cut by responses": job["before"], "after training": job}
    networks |= {(extra, step): its for step, its in steps.items()}
if networks:
    print(f"{'p-value beside':>58}{'nothing':>18}{'not prepared':>14}")
against = {}
for (extra, step), job in networks.items():
    p = [mcnemar(right_of(networks[other, step]), right_of(job))
         for other in ("nothing", "not prepared")]
    against[extra, step] = p[0]
    print(f"{extra:13} {step:17} {job['parameters'] / 1e6:5.2f} M parameters "
          f"{job['accuracy']['val']:5.1f} %{p[0]:18.2g}{p[1]:14.2g}")

# %% [markdown]
# **Explain.** Some of it is as with the digits, some is not.
#
# - Both preparations bring the effective rank down, and both pay for it before the cut: the nuclear
#   norm with six points, the SVD way with more than one.
# - Cut by weights, the prepared networks keep far more than both controls: about 30 points with the
#   nuclear norm, about 10 with the SVD way. (With the digits the SVD way was no help there, at the
#   smallest rank.)
# - Cut by responses, both are two to three points ahead of *nothing*. But the network that was *not
#   prepared at all* is ahead of *nothing* as well, by two points, and beside *it* no test shows a
#   gain of either. So this lead over *nothing* says little about the penalties. (In this one run,
#   five more epochs without a penalty made the cut worse. It may be the epochs, their 96 pixels, or
#   the learning rate.)
# - Only what was cut by responses was fine-tuned. After that, no lead over *nothing* is left. The
#   test shows no difference for the SVD way. The nuclear norm ends three points *lower*, half of
#   the gap that it had before the cut; it has a third fewer parameters, at about the same MACs. And
#   *not prepared* ends as high as *nothing*, with five epochs fewer.
#
# (Each was trained once, at one strength of each penalty, which nobody tuned on these images. A
# weaker nuclear norm would probably take less away, and give less. And all were fine-tuned at one
# learning rate, 0.015: chapter 08 found a lower one better for cut networks.)
#
# And the thin factors? The same record holds the layers of a network that `compress` cut to 15 % of
# the MACs, trained from scratch for eight epochs in the four ways of section 7.
#
# **Predict.** Does the spectral start help here? Does Frobenius decay?

# %%
from itertools import combinations

fours = {key: short[f"scratch, {key}"] for key in scores if f"scratch, {key}" in short}
for key, job in fours.items():
    print(f"{key:26} {job['accuracy']['val']:.1f} %")
unlike = {}
for one, other in combinations(fours, 2):
    unlike[one, other] = mcnemar(right_of(fours[one]), right_of(fours[other]))
    print(f"   p-value {unlike[one, other]:.2g}: {one} against {other}")

# %% [markdown]
# **Explain.** Here the order is the published one. The spectral start together with Frobenius decay
# ends highest, by one point or more, and each of its three tests falls below 0.05, one of them far
# below. (Six tests are many: trust that one most.) For either part *alone* no test shows a gain.
# But it is one training of each. So the tests speak of these four *networks*; whether the *ways*
# differ with every seed, they cannot say. If they do, depth may be a reason: Khodak et al. (2021)
# trained deep networks.
#
# Also look at the height. The best of the four ends eleven points below the same layers when they
# are cut from the dense network and trained for three epochs (*ours* in chapter 08). Those three
# had a teacher and CutMix, but without the one or without the other they end as high (chapter 08,
# section 7). So the likely reason is the dense network's long training, from which they start.
# (Chapter 08 also trains a compressed architecture from scratch for as long as that. There the gap
# is gone.)

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
if short:
    tops = {key: job["accuracy"]["val"] for key, job in networks.items()}
    lead = {key: top - tops["nothing", key[1]] for key, top in tops.items()}
    norm, usv, bare, end = "nuclear norm", "SVD", "not prepared", "after training"
    assert ranks["nothing"] > 80 and max(ranks[norm], ranks[usv]) < 30
    assert round(lead[norm, "uncut"]) == -6 and -2 < lead[usv, "uncut"] < -1
    for extra, about in ((norm, 30), (usv, 10)):                         # "than both controls"
        ahead = [tops[extra, "cut by weights"] - tops[other, "cut by weights"]
                 for other in ("nothing", bare)]
        assert about - 1.5 < min(ahead) and max(ahead) < about + 2
    cut_only = {extra: networks[extra, "cut by responses"] for extra in (bare, norm, usv)}
    assert all(2 < lead[extra, "cut by responses"] < 3 for extra in cut_only)
    for extra in (norm, usv):                                            # "no test shows a gain"
        assert mcnemar(right_of(cut_only[extra]), right_of(cut_only[bare])) > 0.05
    assert min(against[usv, end], against[bare, end]) > 0.05 > against[norm, end]
    assert round(lead[norm, end]) == -3 and 0.4 < lead[norm, end] / lead[norm, "uncut"] < 0.6

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
if short:
    part = networks[norm, end]["parameters"] / networks["nothing", end]["parameters"]
    assert 0.63 < part < 0.7                                             # "a third fewer"
    for (extra, step), job in networks.items():
        assert step == "uncut" or 0.135 < job["macs"] / short["dense"]["macs"] <= 0.15
        assert extra in ("nothing", bare) or step == end or against[extra, step] < 0.001

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
if fours:
    winner, same = fours[both], short["ours, seed 0"]
    for key, job in fours.items():
        assert key == both or winner["accuracy"]["val"] > job["accuracy"]["val"] + 1
    assert all((p < 0.05) == (both in pair) for pair, p in unlike.items())
    assert min(unlike.values()) < 0.002                                  # "far below"
    assert round(same["accuracy"]["val"] - winner["accuracy"]["val"]) == 11
    assert {job["macs"] for job in fours.values()} == {same["macs"]} and len(same["log"]) == 3
    assert all(len(job["log"]) == 8 for job in fours.values())
    for way in ("no distillation, seed 0", "no CutMix, seed 0"):         # "as high"
        assert mcnemar(right_of(short[way]), right_of(same)) > 0.05

# %% [markdown]
# ## Recap
#
# 1. Plain training hardly lowers the effective rank of most kernels. A penalty does.
# 2. The nuclear norm takes the same from every singular value, Hoyer gives to the large ones,
#    weight decay changes no shape.
# 3. Where training comes to rest, weight decay on two factors is a nuclear norm on their product.
#    Frobenius decay is the weight decay that the dense layer had.
# 4. Some preparations help much right after a cut by weights, others little or not at all. Cutting
#    by responses helps as well. At the smallest rank, both together had the highest mean of the
#    four that were compared. On ResNet-18, cut by responses, no test showed a gain over a network
#    that was not prepared.
# 5. Fine-tuning removes most of the difference. With ResNet-18 on photographs, one preparation
#    ended level with its control, the other below it. Thin factors from the start ended as high on
#    the digits; on photographs eight epochs were far too few for that. Always compare with a plain
#    training of the same number of epochs, and with the network as it was, cut and fine-tuned
#    without any preparation.
#
# ## Check yourself
#
# **1.** Why does a batch norm behind the layer spoil the nuclear norm as a penalty, but not Hoyer?
#
# <details><summary>Answer</summary>
# The batch norm undoes any scaling. The network can shrink the kernel, and with it the nuclear
# norm, without any change to what it computes. Hoyer does not change with the scale.
# </details>
# <br>
#
# **2.** Two factors <code>A</code> and <code>B</code> of rank 8 are trained with PyTorch's
# <code>weight_decay</code>. A colleague says: "the same decay as in the dense network". Is it?
#
# <details><summary>Answer</summary>
# No. Where training comes to rest, it has the effect of a nuclear norm on the product: directions
# that the loss pulls only weakly fade to zero. The dense network had a Frobenius decay. Its
# gradients are &lambda; A B B<sup>T</sup> and &lambda; A<sup>T</sup> A B.
# </details>
# <br>
#
# **3.** After training with a penalty, the effective rank is 7. Is rank 7 then a good cut?
#
# <details><summary>Answer</summary>
# Not necessarily. The effective rank is one number for the whole spectrum. It does not say what the
# directions that you leave out do for the answer. Measure the accuracy at several ranks.
# </details>
# <br>
#
# **4.** A paper reports: "prepared, cut and fine-tuned: 2 points better than the plain network,
# cut". Which control do you miss?
#
# <details><summary>Answer</summary>
# The plain network, cut and fine-tuned for the same number of epochs in all; the network as it was, cut and fine-tuned; and several seeds of each.
# </details>
#
# ## Now you
#
# (A hidden test may stop the run: the text was written for the old numbers. Go on below it, with
# "Run Selected Cell and All Below".)
#
# Find out whether "factors, weight decay" is good because of its factors or because of its nuclear
# norm. Train the nuclear norm with strengths 0.02, 0.03, 0.05 and 0.1 (by section 3, 0.03 is what
# the factors pay), and compare all of them at rank 4, on the held-out images. Then give *plain* a
# strong decay: add `"plain, decay 0.06": (None, None, lambda m: on_weights(m, 0.06))` to `WAYS` (a
# step on both factors shrinks the product twice). How much of the effect is the strength alone?
# (This also decays the first kernel and the last layer by 0.06. With the factors they kept 5e-4.
# For a fair answer, raise the decay of the three kernels only.)
#
# **The way on.** [Chapter 10](10_does_it_run_faster.ipynb) asks when fewer MACs become fewer
# milliseconds. How a cut network is trained on is in [08, retraining](08_retraining.ipynb). What its
# thin layers are is in [05, factorizing for real](05_factorizing.ipynb).
#
# ## References
#
# - M. Khodak, N. Tenenholtz, L. Mackey and N. Fusi, *Initialization and regularization of
#   factorized neural layers*, ICLR, 2021.
# - H. Yang, M. Tang, W. Wen, F. Yan, D. Hu, A. Li, H. Li and Y. Chen, *Learning low-rank deep
#   neural networks via singular vector orthogonality regularization and singular value
#   sparsification*, CVPR Workshops, 2020.
# - N. Srebro and A. Shraibman, *Rank, trace-norm and max-norm*, COLT, 2005.
# - O. Roy and M. Vetterli, *The effective rank: a measure of effective dimensionality*,
#   EUSIPCO, 2007.
# - P. O. Hoyer, *Non-negative matrix factorization with sparseness constraints*, Journal of Machine
#   Learning Research, 2004.
# - H. Yang, W. Wen and H. Li, *DeepHoyer: learning sparser neural network with differentiable
#   scale-invariant sparsity measures*, ICLR, 2020.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
thinned = [f"{way}, cut by {by}" for way, by in CUT] + [both]
values = {key: np.mean([evaluate(model, val) for model in final[key]]) for key in thinned}
assert min(values.values()) > 75
if not quick:
    lead = values[f"{prepared}, cut by responses"] - values["plain, cut by responses"]
    assert 0 < lead < 8 and abs(values[both] - values[f"{prepared}, cut by responses"]) < 3.5
assert np.mean([evaluate(trained["plain", seed], val) for seed in SEEDS]) > max(values.values()) - 1
