# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A · Beyond convolutions
#
# **The question:** Where else does this idea live?
#
# A convolution took some work before it was a matrix. Most of today's networks are matrices from
# the start. In this chapter you meet the SVD in a transformer, in its attention, and in LoRA, a
# common way to adapt large models. You also see where it is of no use.
#
# **After this chapter you can**
#
# - compress a small vision transformer with the call that compressed a ResNet-18;
# - show that two methods, found years apart, give the same layer;
# - say where attention is factorised already, and what that saves;
# - adapt a network with an update of low rank (LoRA), and count what you train;
# - name the cases where low rank does not help.
#
# **You need:** [chapter 02](02_svd.ipynb) (truncated SVD, energy, break-even rank). [Chapter
# 07](07_responses_not_weights.ipynb) looks at responses in depth. What you need of it is repeated
# here. MACs and `compress` are those of [chapter 00](00_start_here.ipynb).
#
# **Time:** 30 minutes to read, about 1 minute to run.

# %%
import importlib.util

if importlib.util.find_spec("lowrank_course") is None:  # on Colab, in a copy of the course
    print("Installing the course's package")
    # %pip install --quiet --no-deps .. tensorly

# %%
import copy
import math
import os

import torch
from matplotlib.figure import Figure
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from tqdm.auto import tqdm

from lowrank_course import compress, data, evaluate, layers, linalg, load_resnet18, plots, responses
from lowrank_course.measure import count_macs, count_parameters

plots.style()
quick = os.environ.get("LOWRANK_PROFILE") == "smoke"
_ = torch.manual_seed(0)

# %% [markdown]
# ## 1. A transformer is made of matrices
#
# A convolution had to be laid out as a matrix first. A **linear layer** is one: $y = W x + b$. A
# transformer consists of little else, so the SVD applies as it stands.
#
# You build a small vision transformer and train it here, in seconds. It reads the handwritten digits
# of scikit-learn. All of this chapter uses them, on every machine: nothing is downloaded.
#
# The image is cut into patches. Each becomes a **token**, a vector of numbers. A trained vector
# (`position`) is added to it, for attention alone could not tell where a patch was. In
# **attention** the tokens look at each other. Each token asks with its *query* $q$, and all answer
# with their *key* $k$. The better the two match, the more of the *value* $v$ is passed on.
# Several **heads** do so side by side, each with its own part of the numbers.

# %%
class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x):                                    # (N, tokens, width)
        q, k, v = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )                                                    # (N, heads, tokens, width / heads)
        match = q @ k.mT / math.sqrt(q.shape[-1])            # (N, heads, tokens, tokens)
        return self.out((match.softmax(-1) @ v).transpose(1, 2).flatten(2))


# %% [markdown]
# After attention comes an **MLP** (multilayer perceptron): two linear layers, to four times the
# width and back. `GELU`, a smooth ReLU, stands between them. Before each part, `LayerNorm` brings
# the numbers of each token to mean 0 and variance 1, then scales and shifts them. Each result is
# *added* to what came in. Remember this plus sign for section 6.

# %%
class Block(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        wide = 4 * width
        self.mlp = nn.Sequential(nn.Linear(width, wide), nn.GELU(), nn.Linear(wide, width))

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


# %%
class Transformer(nn.Module):
    def __init__(self, width=64, heads=4, depth=2, tokens=16, classes=10):
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, stride=8)      # 32 x 32 pixels: 4 x 4 patches
        self.position = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, images):
        x = self.patches(images).flatten(2).mT + self.position
        return self.head(self.norm(self.blocks(x)).mean(1))  # (N, classes)


# %% [markdown]
# One loop trains it. It trains whatever has `requires_grad`, so you can use it again in section 5.

# %%
def fit(model, images, labels, steps, peak):
    torch.manual_seed(0)                                     # of the batches
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, peak)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, steps + 1)
    for _ in tqdm(range(steps), "training", leave=False):
        some = torch.randint(len(images), (64,))
        loss = F.cross_entropy(model(images[some]), labels[some])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return sum(p.numel() for p in trained)


# %%
def all_digits(split):
    batches = data.make_loader(data.load_images(split, "digits"))
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


images, labels = all_digits("train")                         # (N, 3, 32, 32), (N,)
val = all_digits("val")                                      # nothing is chosen on them here
vit = Transformer()
fit(vit, images, labels, steps=200 if quick else 320, peak=2e-3)
dense_top1 = evaluate(vit.eval(), [val])
print(f"{len(val[1])} images, {dense_top1:.1f} % right, {count_parameters(vit):,} parameters")

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert dense_top1 > 85
inside = [m for m in vit.modules() if isinstance(m, nn.Linear)]
assert sum(m.weight.numel() for m in inside) > 0.85 * count_parameters(vit)   # "little else"

# %% [markdown]
# ## 2. The same SVD
#
# How many directions does a layer need? Look at its weights, and at its **responses**: what it
# gives out for real images. Put all responses into one large matrix $Y$, with one response in each
# row, and subtract their mean. Their **covariance** is $Y^\top Y$, divided by the number of rows.
# With $Y = U S V^\top$ (here $S$ is the diagonal matrix) this is $V S^2 V^\top$, divided by that
# number. So the directions $V$ are the **eigenvectors** of the covariance. The squared singular
# values, divided by the number of rows, are its **eigenvalues**.
#
# **Predict.** What share of the full rank holds 90 % of the energy: of the weights? Of the responses?

# %%
names = [name for name, m in vit.named_modules() if isinstance(m, nn.Linear) and name != "head"]
calibration = [(images[i : i + 128], labels[i : i + 128]) for i in range(0, 1024, 128)]
moments = responses.covariances(vit, calibration, names)
shares = {"weights": [], "responses": []}
for name in names:
    weight = vit.get_submodule(name).weight.detach().double()        # (O, I)
    full = min(weight.shape)
    variances = torch.linalg.eigvalsh(moments[name][1]).flip(0).clamp(min=0)
    spectra = torch.linalg.svdvals(weight), variances[:full].sqrt()
    for kind, values in zip(shares, spectra, strict=True):
        shares[kind].append(100 * linalg.rank_for_energy(values, 0.9) / full)
    now = ", ".join(f"{kind} {part[-1]:2.0f} %" for kind, part in shares.items())
    print(f"{name:22} {now}")

# %%
plots.curves(
    {kind: (range(1, len(names) + 1), values) for kind, values in shares.items()},
    xlabel="linear layer, from the first to the last",
    ylabel="rank for 90 % energy\n(% of the full rank)",
    alt=f"Rank that holds 90 % of the energy, for {len(names)} layers. Weights need "
    f"{min(shares['weights']):.0f} to {max(shares['weights']):.0f} % of the full rank, responses "
    f"{min(shares['responses']):.0f} to {max(shares['responses']):.0f} %.",
)

# %%
for shape in ((64, 64), (256, 64)):                          # of attention, of the MLPs
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).double()
    rank = linalg.rank_for_energy(torch.linalg.svdvals(noise), 0.9)
    print(f"random numbers, {shape[0]:3} × {shape[1]}: {100 * rank / min(shape):.0f} %")

# %% [markdown]
# **Explain.** As in a ResNet-18: the weights are hardly low-rank, the responses are. But there are
# simple reasons here. The network was trained for seconds only, so its weights need nearly as many
# directions as random numbers of the same shape. (That is why the MLPs lie higher: their matrices
# are longer.) And the digits are simple: a patch shows about 2 × 2 pixels of an 8 × 8 picture. So
# q, k and v of the first block, which see one patch at a time, have little to vary in. Later layers
# mix the patches, and need a few more directions. (Why so few is not tested here. In a ResNet-18
# even noise needs only few behind the first layer: [chapter 07](07_responses_not_weights.ipynb),
# section 1.) Large transformers, on real texts and photographs, show the same gap (Yu and Wu,
# 2023).
#
# **Predict.** `compress` cuts this transformer, once by its weights alone, once by its responses.
# About a third of the MACs may stay, and nothing is retrained. How much accuracy is left?

# %%
budgets = (0.7, 0.5, 0.35)
cuts, scores = {"weights": {}, "responses": {}}, {"weights": [], "responses": []}
for budget in budgets:
    for kind, seen in (("weights", None), ("responses", calibration)):
        cuts[kind][budget] = compress(vit, images[:1], budget, data=seen)
        scores[kind].append(evaluate(cuts[kind][budget], [val]))
    now = ", ".join(f"by {kind} {values[-1]:.1f} %" for kind, values in scores.items())
    print(f"{100 * budget:.0f} % of the MACs: {now}")

# %%
percent = [100 * budget for budget in (1, *budgets)]
plots.curves(
    {f"cut by {kind}": (percent, [dense_top1, *values]) for kind, values in scores.items()},
    levels={"guessing": 10},
    xlabel="MACs that are kept (%)",
    ylabel="top-1 (%)",
    alt=f"Accuracy of the transformer, not retrained. At 35 % of the MACs it is "
    f"{scores['weights'][-1]:.0f} % if cut by weights, and {scores['responses'][-1]:.0f} % if cut "
    "by responses.",
)

# %% [markdown]
# **Explain.** The same network, the same call, the same budget: the second cut was only shown some
# images. (With them, `compress` chooses other directions and other ranks. It weighs each error by
# how much the network's answer feels it, and refits what is left: [chapter
# 07](07_responses_not_weights.ipynb). So this gap is the work of all of these together.) And
# `compress` treats this transformer like any other network. (It replaces plain linear layers.
# PyTorch's own `nn.MultiheadAttention` reads its weights from outside the layers, so there the
# attention stays dense, and the plan says so.)

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
from scipy.stats import binomtest  # noqa: E402

from lowrank_course.plan import dense_reasons  # noqa: E402
from lowrank_course.train import answers  # noqa: E402

assert min(shares["weights"]) > 35 and max(shares["responses"]) < 35
assert all(w > 2 * r for w, r in zip(*shares.values(), strict=True))
for budget in budgets[1:]:
    a, b = (answers(cuts[kind][budget], [val]) for kind in cuts)
    only = int((b & ~a).sum()), int((a & ~b).sum())
    assert only[0] > only[1] and binomtest(only[1], sum(only)).pvalue < 0.01  # McNemar
    left = [count_macs(cuts[kind][budget], images) / count_macs(vit, images) for kind in cuts]
    assert all(budget - 0.06 < share <= budget for share in left)
assert scores["weights"][-1] < 60 < 80 < scores["responses"][-1]
torchs = nn.Sequential(nn.Flatten(2), nn.TransformerEncoderLayer(16, 2, 32, batch_first=True))
assert dense_reasons(torchs, torch.randn(1, 4, 4, 4))["1.self_attn.out_proj"]
assert not any(dense_reasons(vit, images).values())

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
for name, share in zip(names, shares["weights"], strict=True):
    shape = vit.get_submodule(name).weight.shape
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0)).double()
    least = linalg.rank_for_energy(torch.linalg.svdvals(noise), 0.9) / min(shape)
    assert 0.85 < share / (100 * least) < 1.05               # "nearly as many"
assert 8 // (images.shape[-1] // vit.patches.kernel_size[0]) == 2            # "2 × 2 pixels"


# %% [markdown]
# ## 3. Found more than once
#
# Language models are compressed by their responses, too. Let $A$ be the mean of $x x^\top$ over the
# inputs of a layer. **SVD-LLM** (Wang et al., 2025) splits it as $A = L L^\top$ with a triangular $L$
# (Cholesky), cuts $W L$ by the SVD, and takes $L$ away again. That is called *whitening*:
#
# $$W' = (W L)_r \, L^{-1}$$
#
# **Response PCA** (Zhang et al., 2016), on which `compress` builds, projects the responses on a few
# leading eigenvectors $U_r$. Leave their mean aside for now (it follows below). Then these are the
# eigenvectors of the second moments $W A W^\top$:
#
# $$W' = U_r U_r^\top W$$

# %%
def whitened(W, A, rank):                                    # SVD-LLM
    L = torch.linalg.cholesky(A)                             # (I, I)
    return linalg.low_rank(W @ L, rank) @ torch.linalg.inv(L)


def response_basis(W, A, rank):
    return torch.linalg.eigh(W @ A @ W.T).eigenvectors[:, -rank:]    # (O, rank)


def response_pca(W, A, rank):                                # Zhang et al., without the mean
    U = response_basis(W, A, rank)
    return U @ U.T @ W


# %% [markdown]
# **Predict.** How different are the two $W'$? Take a layer of the MLP. `inputs_of` collects what a
# layer gets for real images, at all tokens.

# %%
def inputs_of(layer, images):
    given = []
    hook = layer.register_forward_hook(lambda module, inputs, output: given.append(inputs[0]))
    with torch.no_grad():
        vit(images)
    hook.remove()
    return given[0].flatten(0, 1).double()                   # (positions, I)


def relative_error(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


# %%
down = copy.deepcopy(vit.blocks[0].mlp[2]).double().requires_grad_(False)
W = down.weight                                              # (64, 256)
x = inputs_of(vit.blocks[0].mlp[2], images)                  # (positions, 256)
A = x.T @ x / len(x)                                         # (256, 256)
apart = relative_error(whitened(W, A, 8), response_pca(W, A, 8))
print(f"W is {tuple(W.shape)}, cut to rank 8; the two differ by {apart:.0e}")

# %% [markdown]
# **Explain.** Not at all, up to rounding. Write $W L = U S V^\top$. Then $W A W^\top = W L (W
# L)^\top = U S^2 U^\top$: the same $U$. And cutting $W L$ to rank $r$ is projecting it, $U_r
# U_r^\top W L$. Taking $L$ away leaves $U_r U_r^\top W$. (It was found more than twice.
# Statisticians know it as *reduced-rank regression*, Izenman, 1975. DRONE, Chen et al., 2021,
# brought it to language models.)
#
# So choose by convenience. Response PCA needs no inverse, so it has no trouble where inputs depend
# on each other. Zhang et al. take one more step, which costs nothing: they keep the mean of the
# responses in a bias, and project only what varies around it.
#
# **Predict.** Order these by their error on *new* images: whitening; plain SVD; response PCA with
# the mean; the SVD after each input is scaled by the root of its typical size (the idea of ASVD,
# Yuan et al., 2023).

# %%
mean, covariance = moments["blocks.0.mlp.2"]                 # of its responses
U = torch.linalg.eigh(covariance).eigenvectors[:, -8:]
scale = x.abs().mean(0).sqrt()                               # (I,)
new = inputs_of(vit.blocks[0].mlp[2], val[0])                # (positions, I)
found = {
    "plain SVD": linalg.low_rank(W, 8),
    "scaled inputs": linalg.low_rank(W * scale, 8) / scale,
    "whitened": whitened(W, A, 8),
}
found = {way: new @ matrix.T + down.bias for way, matrix in found.items()}
found["with the mean"] = layers.channel_from_basis(down, U, mean=mean)(new).detach()
errors = {way: relative_error(y, down(new)) for way, y in found.items()}
for way, error in errors.items():
    print(f"{way:14} {error:.1%}")

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert apart < 1e-6
assert errors["plain SVD"] > errors["scaled inputs"] > errors["whitened"] > errors["with the mean"]
by_package = layers.channel_from_basis(down, response_basis(W, A, 8))
assert relative_error(by_package(new).detach(), found["whitened"]) < 1e-6

# %% [markdown]
# **Explain.** Plain SVD knows nothing of the inputs. The second way knows their typical sizes, the
# third how they vary together, and the last also keeps the mean of the responses. In this layer,
# each step makes the error smaller.
#
# ## 4. Attention is factorised already
#
# How well do two tokens $a$ and $b$ match? Let $W_q$ and $W_k$ be the weights of the query and key
# layers of one head. It computes $(W_q a)^\top (W_k b) = a^\top (W_q^\top W_k)\, b$. In between stands
# a 64 × 64 matrix.
#
# **Predict.** What is its rank?

# %% tags=["nbval-check-output"]
attention = vit.blocks[0].attention
head = 64 // attention.heads
W_q, W_k = (m.weight.detach().double()[:head] for m in (attention.q, attention.k))   # (16, 64)
between = W_q.T @ W_k                                        # (64, 64), of the first head
print("shape", tuple(between.shape), "rank", linalg.numerical_rank(between))

# %% [markdown]
# **Explain.** 16, the width of a head. $W_q$ and $W_k$ *are* the two thin factors, and nobody
# multiplies them out. That saves half: the two have 2,048 numbers, their product would have 4,096.
# Attention is factorised from the start. If a head is too narrow, this rank is too small for what
# it should express (Bhojanapalli et al., 2020).
#
# There is another place for a low rank. While a language model writes, it keeps $k$ and $v$ of
# all earlier tokens, the **key-value cache**. For long texts it can take more memory than the
# weights. But $k$ and $v$ come from the same $x$. Stack $W_k$ and $W_v$, now those of all heads,
# to one matrix $W$ (128 × 64). Cut it to $U_r (U_r^\top W)$, and keep only the $r$ numbers
# $U_r^\top W x$ of each token in place of 128: multiplied by $U_r$, they give nearly the same $k$
# and $v$. (At $r = 64$ exactly the same: the rank of $W$ is no higher.) (DeepSeek-V2 is built and
# trained like that. It merges $U_r$ into the query and output layers, so $k$ and $v$ are never
# built. It keeps a few more numbers for the position of each token.)
#
# Your transformer writes no text and keeps no cache. The cell only cuts the stack of each block to
# rank 16, to see what that would cost in accuracy.
#
# **Predict.** Keep an eighth: 16 numbers. What happens to the accuracy?

# %%
small_cache = copy.deepcopy(vit)
for block, cut in zip(vit.blocks, small_cache.blocks, strict=True):
    given = inputs_of(block.attention.k, images[:512])       # (positions, 64)
    k, v = cut.attention.k, cut.attention.v
    stack = torch.cat([k.weight, v.weight]).detach().double()        # (128, 64)
    thin = response_pca(stack, given.T @ given / len(given), 16)
    k.weight.data, v.weight.data = thin.float().chunk(2)
cached = evaluate(small_cache, [val])
print(f"128 numbers a token: {dense_top1:.1f} %")
print(f" 16 numbers a token: {cached:.1f} %")

# %% [markdown]
# **Explain.** Little or nothing is lost: the responses of the two layers together need few
# directions.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert linalg.numerical_rank(between) == 16 and between.shape == (64, 64)
assert cached > dense_top1 - 4
for block in small_cache.blocks:
    stack = torch.cat([block.attention.k.weight, block.attention.v.weight]).detach()
    assert linalg.numerical_rank(stack, 1e-4) == 16 and len(stack) == 128

# %% [markdown]
# ## 5. LoRA: an update of low rank
#
# A large model is trained once and adapted often, to many tasks. If every task changes all weights,
# every task stores a whole model. **LoRA** (Hu et al., 2022) leaves $W$ as it is and trains two thin
# factors beside it:
#
# $$W + B A, \qquad B: (m, r), \quad A: (r, n)$$
#
# (This $A$ is not that of section 3; the authors of LoRA use the letter.) $B$ starts at zero, so
# training starts from the old network. LoRA also saves memory: AdamW, which makes the steps, keeps
# two more numbers for every number that it trains. Here the network is the shipped ResNet-18 for
# digits, and the new task is to read digits that lie on their side.

# %%
def turned(images):
    return images.rot90(1, (2, 3))                           # by a quarter


network = load_resnet18("digits")
task, judge = turned(images), (turned(val[0]), val[1])
frozen = evaluate(network, [judge])
print(f"upright: {evaluate(network, [val]):.1f} %, turned: {frozen:.1f} %")

# %%
class LowRankUpdate(nn.Module):
    def __init__(self, weight, rank):
        super().__init__()
        m, n = weight.flatten(1).shape
        self.A = nn.Parameter(torch.randn(rank, n) / math.sqrt(n))
        self.B = nn.Parameter(torch.zeros(m, rank))

    def forward(self, W):
        return W + (self.B @ self.A).view_as(W)


# %%
def with_updates(network, rank):
    network = copy.deepcopy(network).requires_grad_(False)
    for layer in [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]:
        parametrize.register_parametrization(layer, "weight", LowRankUpdate(layer.weight, rank))
    return network


# %% [markdown]
# `parametrize` calls `forward` whenever the layer asks for its weight. Kernels are laid out as
# matrices, with one row for each output channel. The batch norms stay in `eval()` mode. The peak
# learning rates below were tried out on held-out images: one for all ranks, and one for each other
# way. (Libraries multiply $BA$ by a fixed $\alpha / r$, which acts much like another learning rate.
# It is 1 here.)
#
# **Predict.** The network has 700,000 parameters. How many must you train to come close to training
# all of them?

# %%
ranks, steps = ((1, 4), 60) if quick else ((1, 2, 4, 8), 100)
tuned = {f"rank {rank}": with_updates(network, rank) for rank in ranks}
for way in ("last layer", "batch norms", "all weights"):
    tuned[way] = copy.deepcopy(network).requires_grad_(way == "all weights")
tuned["last layer"].fc.requires_grad_(True)
for layer in tuned["batch norms"].modules():
    if isinstance(layer, nn.BatchNorm2d):
        layer.requires_grad_(True)                           # a scale and a shift for each channel

peaks = {"last layer": 3e-2, "batch norms": 3e-2, "all weights": 4e-3}   # and 2e-2 for updates
trained = {
    way: fit(model, task, labels, steps, peaks.get(way, 2e-2)) for way, model in tuned.items()
}

# %%
reached = {way: evaluate(model, [judge]) for way, model in tuned.items()}
print("trained      numbers    share    top-1")
print(f"{'nothing':11} {0:8,} {0:6.1f} % {frozen:6.1f} %")
for way, score in reached.items():
    share = 100 * trained[way] / count_parameters(network)
    print(f"{way:11} {trained[way]:8,} {share:6.1f} % {score:6.1f} %")

# %% [markdown]
# **Explain.** About one number in a hundred. Rank 1 adds a single direction to each layer, and
# comes close to training everything. (One run each: take two or three points for the same.)
# Training only the last layer, a usual shortcut, does not come near. The batch norms are a
# surprise. They have about a quarter as many numbers as the updates of rank 1, and yet they come
# far. (Frankle et al., 2021, trained nothing but batch norms, in random networks.)
#
# Now the other way round: train *all* weights, subtract the old ones, and cut this full update.
#
# **Predict.** At which rank does the cut update reach the trained one of rank 1?

# %%
def cut_update(old, new, rank):
    cut = copy.deepcopy(new)
    for name, layer in cut.named_modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            W = old.get_submodule(name).weight.detach()
            update = (layer.weight.detach() - W).flatten(1)  # (O, I) or (O, C*k*k)
            least = min(rank, *update.shape)
            layer.weight.data = W + linalg.low_rank(update, least).view_as(W)
    return cut


after = {r: cut_update(network, tuned["all weights"], r) for r in (1, 2, 4, 8, 16, 32)}
cut_reached = {r: evaluate(model, [judge]) for r, model in after.items()}

# %%
figure = Figure()
axes = figure.subplots()
axes.plot(ranks, [reached[f"rank {r}"] for r in ranks], "o-", label="trained at this rank")
axes.plot(list(after), list(cut_reached.values()), "s-", label="trained in full, then cut")
axes.axhline(reached["all weights"], color=plots.GREY, ls=":", lw=1.5, label="all weights trained")
axes.set_xscale("log", base=2)
axes.set_xticks(list(after), map(str, after))
axes.set(xlabel="rank of the update", ylabel="top-1 on turned digits (%)")
axes.legend(loc="lower right")
plots.show(
    figure,
    alt="Accuracy against the rank of the update. Trained at rank 1 it is "
    f"{reached['rank 1']:.0f} %. The full update, cut to rank 1, gives {cut_reached[1]:.0f} %, at "
    f"rank 8 {cut_reached[8]:.0f} %, at rank 16 {cut_reached[16]:.0f} %.",
)

# %% [markdown]
# **Explain.** One or two directions are far from enough. Rank 8 is still clearly lower, and at 16
# it is there, or nearly: but 16 is all that the first layers have, with their 16 channels. The
# update that free training finds is *not* of rank 1 or 2. (One run; and the batch norms keep their
# whole change here.) But updates of rank 1 that do nearly the same exist, and training finds them
# if nothing else is allowed. So if you want a thin update, set the rank first and then train.
# [Chapter 08](08_retraining.ipynb) does the same with a compressed network.
#
# Two more things to know. LoRA does not compress: $W$ is still there. But it costs nothing when the
# network runs, because $W + BA$ is one matrix. And it has limits: on large changes of task, full
# training still learns more (Biderman et al., 2024).

# %%
adapted = tuned["rank 1"]
with torch.no_grad():
    before = adapted(judge[0])
    for layer in [m for m in adapted.modules() if parametrize.is_parametrized(m)]:
        parametrize.remove_parametrizations(layer, "weight")     # W becomes W + B A
    change = relative_error(adapted(judge[0]), before)
print(f"merged: outputs change by {change:.1g}")
print(f"parameters {count_parameters(adapted):,}, as before: {count_parameters(network):,}")

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert 690_000 < count_parameters(network) < 710_000
assert frozen < 40 and change < 1e-4
assert trained["rank 1"] / count_parameters(network) < 0.015  # "one number in a hundred"
updates = [reached[f"rank {rank}"] for rank in ranks]
assert W_q.numel() + W_k.numel() == 2048 and between.numel() == 4096
assert min(updates) > 86
assert abs(reached["all weights"] - reached["rank 1"]) < 8    # "close"
assert reached["last layer"] < reached["rank 1"] - 10
assert reached["batch norms"] > frozen + 40 and trained["batch norms"] < trained["rank 1"] / 2
assert quick or cut_reached[8] < reached["rank 1"] - 3 < cut_reached[16]      # "clearly lower"
assert cut_reached[1] < 60 and cut_reached[2] < min(updates) - 10
lora, cut = (answers(model, [judge]) for model in (adapted, after[1]))
only = int((lora & ~cut).sum()), int((cut & ~lora).sum())
assert only[0] > only[1] and binomtest(only[1], sum(only)).pvalue < 1e-6
assert count_parameters(adapted) == count_parameters(network)
assert count_macs(adapted, images) == count_macs(network, images)

# %% [markdown]
# ## 6. Where it does not help
#
# **Where the multiplications are not in the weights.** Attention multiplies tokens with tokens: $2
# n^2 d$ MACs for $n$ tokens of width $d$. Its linear layers and the MLP take $12 n d^2$. Splitting
# the layers one by one does not make the first part cheaper. (Cutting $W_q^\top W_k$ to a smaller
# rank makes one half of it cheaper: $q$ and $k$ get shorter. For the other half the values must get
# shorter, too.) Some methods approximate the $n \times n$ table of matches itself by a product of
# low rank (Linformer, Wang et al., 2020). That is a cut of what a layer computes, not of its
# weights.
#
# **Predict.** A common vision transformer has width 768 and 197 tokens. On what share of a block's
# MACs can low rank work? And with 16,384 tokens, a long text?

# %% tags=["nbval-check-output"]
def block_macs(tokens, width):
    return 12 * tokens * width**2, 2 * tokens**2 * width     # linear layers, token with token


rest = vit.patches.weight.numel() * 16 + vit.head.weight.numel()
agree = len(vit.blocks) * sum(block_macs(16, 64)) + rest == count_macs(vit, images)
print("formula and count agree for your transformer:", agree)
linear_share = {n: block_macs(n, 768)[0] / sum(block_macs(n, 768)) for n in (197, 1024, 16384)}
for tokens, share in linear_share.items():
    print(f"width 768, {tokens:6,} tokens: {share:.0%} of a block's MACs are in linear layers")

# %% [markdown]
# **Explain.** At 197 tokens nearly all, at 16,384 about a fifth. First look where the MACs are.
#
# **Where the matrix has to pass everything on.** The identity is the clearest case.
#
# **Predict.** Cut the 64 × 64 identity to rank 32. What is the relative error? And what is the rank
# of $I + W$, where $W$ has rank 8?

# %% tags=["nbval-check-output"]
identity = torch.eye(64, dtype=torch.float64)
half = linalg.low_rank(identity, 32)
update = linalg.low_rank(torch.randn(64, 64, dtype=torch.float64), 8)
print(f"identity at rank 32: error {relative_error(half, identity):.0%}")
print(f"rank of W: {linalg.numerical_rank(update)}", end=", ")
print(f"of I + W: {linalg.numerical_rank(identity + update)}")

# %% [markdown]
# **Explain.** All directions of the identity count the same, so half of the rank loses half of the
# energy ($0.71^2 \approx 0.5$). Now look at the plus sign: $x + f(x)$ in a residual block, $W + BA$
# in LoRA. Both keep the part of full rank aside. Only the difference, $f$ or $BA$, has to be thin.
# This is one reason why $f$ can be cut, and $BA$ can be thin.
#
# **Where there is little to save.** A depthwise convolution has one small filter for each channel,
# so there is hardly anything to split. A square linear layer saves nothing from half of its full
# rank on. A table of word vectors is looked up, not multiplied: two factors make its file smaller,
# but each look-up needs more work.
#
# Whether a layer can be cut depends on its weights *and* its data. Measure it: section 2 takes seconds.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert agree and linear_share[197] > 0.93 and 0.18 < linear_share[16384] < 0.25
assert abs(relative_error(half, identity) - 0.5**0.5) < 1e-9
assert linalg.break_even_rank(64, 64) == 32

# %% [markdown]
# ## Recap
#
# 1. A linear layer is a matrix already; `compress` cuts a transformer as it cuts a ResNet.
# 2. Here, too, the weights are hardly low-rank, and the responses are.
# 3. Whitening and response PCA are one method: $U_r U_r^\top W$.
# 4. LoRA trains a thin update beside a frozen network: few numbers to store, no extra cost to run.
# 5. Low rank saves nothing where the cost is not in a matrix of weights, or where all directions count.
#
# ## Check yourself
#
# **1.** A linear layer has 768 inputs and 3,072 outputs. Below which rank do two factors save?
#
# <details><summary>Answer</summary>
# Below 768 × 3072 / (768 + 3072) = 614.4, four fifths of its full rank of 768.
# </details>
# <br>
#
# **2.** You adapt this layer with LoRA of rank 8. How many numbers do you train, and what share is
# that?
#
# <details><summary>Answer</summary>
# 8 × (768 + 3072) = 30,720 of 2,359,296, so 1.3 %.
# </details>
# <br>
#
# **3.** A colleague wants to make a network faster with LoRA. What do you say?
#
# <details><summary>Answer</summary>
# It does not get faster. The old weights stay, and the update is added to them. LoRA saves memory while
# training, and storage for each task.
# </details>
# <br>
#
# **4.** Whitening fails on a layer: the Cholesky decomposition stops with an error. What does that say
# about the inputs, and what can you do?
#
# <details><summary>Answer</summary>
# Some input is a combination of others, or always zero, or there are fewer samples than inputs. Use
# response PCA, which needs no inverse, or add a little to the diagonal.
# </details>

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert abs(linalg.break_even_rank(768, 3072) - 614.4) < 1e-9 and round(614.4 / 768, 3) == 0.8
assert 8 * (768 + 3072) == 30_720 and 768 * 3072 == 2_359_296
assert round(100 * 30_720 / 2_359_296, 1) == 1.3
dead = torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64))
assert torch.linalg.cholesky_ex(dead).info > 0
assert torch.isfinite(response_pca(torch.ones(2, 2).double(), dead, 1)).all()

# %% [markdown]
# ## Now you
#
# (A hidden test may stop the run: the text was written for the old numbers. Go on below it, with
# "Run Selected Cell and All Below".)
#
# Turn the digits upside down, or make them negatives. Which rank do you need? Then try another set of
# layers: updates in the last two stages only, or in the $1 \times 1$ convolutions.
#
# **The way on.** [Chapter 11](11_capstone.ipynb) asks for a network of your own. If you came here
# first: [chapter 05](05_factorizing.ipynb) factorises convolutions, and [chapter
# 08](08_retraining.ipynb) wins accuracy back.
#
# ## References
#
# - A. Vaswani, N. Shazeer, N. Parmar, J. Uszkoreit, L. Jones, A. N. Gomez, Ł. Kaiser and I.
#   Polosukhin, *Attention is all you need*, NIPS, 2017.
# - A. Dosovitskiy et al., *An image is worth 16x16 words: transformers for image recognition at scale*,
#   ICLR, 2021. (the vision transformer)
# - H. Yu and J. Wu, *Compressing transformers: features are low-rank, but weights are not!*,
#   AAAI, 2023.
# - X. Zhang, J. Zou, K. He and J. Sun, *Accelerating very deep convolutional networks for
#   classification and detection*, IEEE TPAMI, 2016. (response PCA)
# - Z. Yuan, Y. Shang, Y. Song, Q. Wu, Y. Yan and G. Sun, *ASVD: activation-aware singular value
#   decomposition for compressing large language models*, arXiv 2312.05821, 2023.
# - X. Wang, Y. Zheng, Z. Wan and M. Zhang, *SVD-LLM: truncation-aware singular value decomposition for
#   large language model compression*, ICLR, 2025 (arXiv 2403.07378, 2024). (whitening)
# - S. Bhojanapalli, C. Yun, A. S. Rawat, S. J. Reddi and S. Kumar, *Low-rank bottleneck in multi-head
#   attention models*, ICML, 2020.
# - DeepSeek-AI, *DeepSeek-V2: a strong, economical, and efficient mixture-of-experts language model*,
#   arXiv 2405.04434, 2024. (the cache)
# - E. J. Hu, Y. Shen, P. Wallis, Z. Allen-Zhu, Y. Li, S. Wang, L. Wang and W. Chen, *LoRA: low-rank
#   adaptation of large language models*, ICLR, 2022.
# - D. Biderman et al., *LoRA learns less and forgets less*, TMLR, 2024.
# - A. J. Izenman, *Reduced-rank regression for the multivariate linear model*, Journal of
#   Multivariate Analysis, 1975.
# - P. Chen, H.-F. Yu, I. Dhillon and C.-J. Hsieh, *DRONE: data-aware low-rank compression for large
#   NLP models*, NeurIPS, 2021.
# - J. Frankle, D. J. Schwab and A. S. Morcos, *Training BatchNorm and only BatchNorm: on the
#   expressive power of random features in CNNs*, ICLR, 2021.
# - S. Wang, B. Z. Li, M. Khabsa, H. Fang and H. Ma, *Linformer: self-attention with linear
#   complexity*, arXiv 2006.04768, 2020.
