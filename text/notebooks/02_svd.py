# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 02 · The SVD
#
# **The question:** What is the best small copy of a matrix?
#
# A photograph of 307,200 numbers is kept in 22,240, and you still recognise the person. This
# chapter shows how, and tests the claim that no other copy of that kind is closer.
#
# **After this chapter you can**
#
# - split any matrix into three simple factors, and say the shape of each;
# - cut the factors to a given rank, and predict the error before you cut;
# - test the claim that no other matrix of that rank is closer;
# - decide whether a rank saves anything;
# - avoid the usual traps: energy read as accuracy, `V` taken for `Vh`, signs and ties.
#
# **You need:** matrix products and a first look at PyTorch tensors. No data is downloaded.
# ([Chapter 01](01_rank_and_orthogonality.ipynb) helps, but you can start here.)
#
# **Time:** 30 minutes to read, under 1 minute to run.

# %%
import importlib.util

if importlib.util.find_spec("lowrank_course") is None:  # on Colab, in a copy of the course
    print("Installing the course's package")
    # %pip install --quiet --no-deps .. tensorly

# %%
import time

import matplotlib.pyplot as plt
import torch
from matplotlib.cbook import get_sample_data

from lowrank_course import linalg, plots

plots.style()

# %% [markdown]
# ## 1. Three factors
#
# In [chapter 01](01_rank_and_orthogonality.ipynb) every matrix turned out to rotate, stretch and
# rotate (some with a mirror besides). The **singular value decomposition** (SVD) says so in one
# formula. It writes any matrix $A$ of shape $(m, n)$, with $m$ rows and $n$ columns, as a
# product:
#
# $$A = U \, \mathrm{diag}(S) \, V^\top$$
#
# The columns of $U$ have length 1 and are at right angles to each other: multiply two of them
# number by number, add up, and you get 0. The same holds for the columns of $V$. Such columns are
# called **orthonormal**. The numbers in $S$, the **singular values**, are never negative and are
# sorted, largest first. $\mathrm{diag}(S)$ is the matrix with these numbers on its diagonal and 0
# elsewhere.
#
# **Predict.** $A$ has 6 rows and 4 columns. What shapes do `U`, `S` and `Vh` (which is $V^\top$)
# have? (For one of them there are two possible answers.)

# %% tags=["nbval-check-output"]
torch.manual_seed(0)
A = torch.randn(6, 4, dtype=torch.float64)

for full in (True, False):
    U, S, Vh = torch.linalg.svd(A, full_matrices=full)
    print("full" if full else "thin", [tuple(factor.shape) for factor in (U, S, Vh)])

# %% [markdown]
# **Explain.** There are only min(m, n) singular values, here 4. The full form adds two more columns
# to `U`, so that it is square. No singular value belongs to them, so they add nothing to the
# product. The **thin** form leaves them out. In this course you always want it:
# `full_matrices=False`.
#
# `S` is a vector. `U * S` multiplies each column of `U` by its singular value, so no diagonal
# matrix has to be built.

# %% tags=["nbval-check-output"]
rebuilt = (U * S) @ Vh                      # (6, 4) * (4,) @ (4, 4) -> (6, 4)
print("rebuilt equals A:", torch.allclose(rebuilt, A))
print("singular values: ", [f"{s:.2f}" for s in S])

# %% [markdown]
# There is a second way to read the same product. Take one column of $U$, one row of $V^\top$ and
# one singular value. Their product is a whole matrix, in which every row is a multiple of the same
# row. $A$ is the sum of these pieces, the strongest first:
#
# $$A = s_1 u_1 v_1^\top + s_2 u_2 v_2^\top + \dots$$
#
# The **rank** of a matrix is the number of pieces that it needs. That is the number of singular
# values that are not zero. Each piece has rank 1. The **full rank**, the most there can be, is
# min(m, n).

# %% tags=["nbval-check-output"]
pieces = [S[i] * torch.outer(U[:, i], Vh[i]) for i in range(4)]
print("the pieces add up to A:", torch.allclose(sum(pieces), A))
print("size of each piece:    ", [f"{piece.norm():.2f}" for piece in pieces])

# %% [markdown]
# The size of a piece (its Frobenius norm: the root of the sum of its squared numbers) is its
# singular value. That suggests a small copy: keep the first $r$ pieces and drop the rest. This is
# the **truncated** SVD. Here it is, in two lines.

# %%
def cut(matrix, rank):
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    return (U[:, :rank] * S[:rank]) @ Vh[:rank]      # (m, r) @ (r, n)


# %% [markdown]
# ## 2. A photograph is a matrix
#
# A grey picture is a matrix: one number for each pixel says how bright it is. This portrait of
# Grace Hopper, who wrote one of the first compilers, comes with matplotlib. Its colours are
# averaged to grey.

# %% tags=["nbval-check-output"]
with get_sample_data("grace_hopper.jpg") as file:
    colour = plt.imread(file, format="jpg")           # (600, 512, 3), whole numbers 0 to 255

photo = torch.tensor(colour / 255).mean(dim=2)        # (600, 512), float64 in [0, 1]
m, n = photo.shape
print(f"{m} rows, {n} columns, full rank {min(m, n)}")

# %% [markdown]
# **Predict.** At which of the ranks 1, 5, 20 and 100 will you first recognise the face? At which
# will you no longer see a difference from the original?

# %%
ranks = [1, 5, 20, 100]
copies = {f"rank {r}": cut(photo, r) for r in ranks}
plots.pictures(
    {"original": photo, **copies},
    alt="A portrait and four copies. Rank 1 shows only stripes; at rank 5 a person "
    "can be guessed, rank 20 is a blurred portrait, rank 100 looks almost like the original.",
)

# %% [markdown]
# **Explain.** At rank 1 every row is a multiple of one row, so you see only stripes, across and
# down. Each further piece adds another pattern of stripes. The face comes between rank 5, where you
# can guess a person, and rank 20. A hundred pieces, out of 512, nearly give back the portrait.
#
# Now put numbers on it. The **relative error** is the size of what is missing, divided by the size
# of the original.

# %% tags=["nbval-check-output"]
def relative_error(copy, original):
    return float((original - copy).norm() / original.norm())


for r in ranks:
    print(f"rank {r:3d}: relative error {relative_error(cut(photo, r), photo):5.1%}")

# %% [markdown]
# With the slider you can go through the ranks yourself. (It needs a running kernel; on a web page
# you only see its code. The row of pictures above shows four of its positions.)

# %%
from ipywidgets import IntSlider, interact

# Once for all ranks: moving the slider is then cheap.
U_photo, S_photo, Vh_photo = torch.linalg.svd(photo, full_matrices=False)


def look(rank):
    copy = (U_photo[:, :rank] * S_photo[:rank]) @ Vh_photo[:rank]
    error = relative_error(copy, photo)
    plots.pictures(
        {"original": photo, f"rank {rank}": copy},
        alt=f"The portrait beside its copy of rank {rank}, relative error {error:.1%}.",
    )


_ = interact(look, rank=IntSlider(20, 1, 200, continuous_update=False))

# %% [markdown]
# ## 3. The singular values know the error
#
# You do not have to build the copy to know how good it is. The pieces, too, are at right angles to
# each other, so their squared sizes add up, as in Pythagoras' theorem. Write $A_r$ for the copy of
# rank $r$, and $\|\cdot\|_F$ for the size of a matrix (F for Frobenius). The error comes from the
# pieces that you left out:
#
# $$\|A - A_r\|_F^2 = s_{r+1}^2 + s_{r+2}^2 + \dots$$
#
# **Predict.** How far apart are the two columns that the next cell prints?

# %% tags=["nbval-check-output"]
print("rank   measured   from the singular values")
for r in ranks:
    measured = (photo - cut(photo, r)).norm()
    predicted = S_photo[r:].square().sum().sqrt()
    print(f"{r:4d} {measured:10.4f} {predicted:10.4f}")

# %% [markdown]
# **Explain.** They agree: one SVD gives you the error at every rank. (Divide by the size of the
# whole portrait, and these are the relative errors from above.) Here is the whole curve, with the
# four copies as dots.

# %%
missing = S_photo.square().flip(0).cumsum(0).flip(0).sqrt()    # entry r: size of pieces r + 1, ...
curve = (missing / missing[0])[:301]
dots = [relative_error(copy, photo) for copy in copies.values()]
plots.curves(
    {"from the singular values": (range(301), curve), "measured": (ranks, dots)},
    xlabel="rank",
    ylabel="relative error",
    alt=f"The relative error falls steeply from 1 at rank 0 to {curve[20]:.2f} at rank 20, then "
    f"slowly to {curve[300]:.2f} at rank 300. The four measured copies lie on the curve.",
)

# %% [markdown]
# The share of the squared size that the first $r$ pieces hold is called the **energy**:
#
# $$\text{energy}(r) = \frac{s_1^2 + \dots + s_r^2}{s_1^2 + \dots + s_k^2}, \qquad k = \min(m, n)$$
#
# As code it is a running sum. The course's package has the same function, which also checks what
# you give it. It has your `cut`, too: there it is called `low_rank`. Both agree:

# %% tags=["nbval-check-output"]
def energy(S):
    return S.square().cumsum(0) / S.square().sum()


print("energy agrees:", torch.allclose(energy(S_photo), linalg.energy(S_photo)))
print("cut agrees:", torch.allclose(cut(photo, 20), linalg.low_rank(photo, 20), atol=1e-5))

# %% [markdown]
# **Predict.** You keep 90 % of the energy of the portrait. Is that a good copy? And 99 %?

# %%
shares = [0.9, 0.99, 0.999]
found = {share: linalg.rank_for_energy(S_photo, share) for share in shares}
kept = {f"{share:.1%}: rank {r}": linalg.low_rank(photo, r) for share, r in found.items()}
plots.pictures(
    {"original": photo, **kept},
    alt="The portrait and its copies. With 90 % of the energy only a rough shape is left, "
    "with 99 % it is slightly blurred, with 99.9 % it looks like the original.",
)

# %% tags=["nbval-check-output"]
for share, r in found.items():
    error = relative_error(linalg.low_rank(photo, r), photo)
    limit = (1 - share) ** 0.5
    print(f"energy {share:.1%}: rank {r:3d}, relative error {error:.1%} (at most {limit:.1%})")

# %% [markdown]
# **Explain.** Energy counts *squares*. What is missing is
#
# $$\text{relative error} = \sqrt{1 - \text{energy}}$$
#
# and the root of a tenth is about a third. **90 % of the energy is still a relative error of up to
# 32 %.** Keep this in mind when a paper or a tool offers you "90 % of the energy" as a setting.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert abs((1 - 0.9) ** 0.5 - 0.32) < 0.005          # "32 %"
assert 0.3 < relative_error(linalg.low_rank(photo, found[0.9]), photo) < 0.32
assert photo.numel() == 307_200 and 20 * (m + n) == 22_240                # the opening
copy = linalg.low_rank(photo, 20)
assert torch.allclose(cut(photo, 20), copy)
left_out = S_photo[20:].square().sum().sqrt()
assert torch.allclose((photo - copy).norm(), left_out)               # "They agree"
assert abs(relative_error(copy, photo) - (1 - energy(S_photo)[19]).sqrt()) < 1e-9

# %% [markdown]
# ### Where does the low rank come from?
#
# **Predict.** Shuffle all pixels. The numbers stay the same, only their places change. Will each
# rank still hold the same energy?

# %% tags=["nbval-check-output"]
order = torch.randperm(m * n, generator=torch.Generator().manual_seed(0))
shuffled = photo.flatten()[order].reshape(m, n)
S_shuffled = torch.linalg.svdvals(shuffled)
print("rank for 90 % of the energy")
print("portrait:", linalg.rank_for_energy(S_photo, 0.9))
print("shuffled:", linalg.rank_for_energy(S_shuffled, 0.9))

# %%
held = [float(linalg.energy(values)[19]) for values in (S_photo, S_shuffled)]
plots.spectrum(
    {"portrait": S_photo, "shuffled": S_shuffled},
    share=0.9,
    alt="Left: the portrait's singular values keep falling, those of the shuffled pixels drop once "
    f"and then fall slowly. Right: at rank 20 the portrait holds {held[0]:.0%} of its energy, "
    f"the shuffled one {held[1]:.0%}. A dotted line marks 90 %.",
)

# %% [markdown]
# **Explain.** It changes completely (the dotted line marks 90 %). One piece still carries the
# average brightness; the rest is noise, in which no piece stands out. Low rank is not a property of
# the numbers, but of their places. In the portrait every row is nearly a mixture of the same few
# patterns; shuffling destroys them.
#
# This will matter for networks. The weights at the start of training are random, like the shuffled
# pixels. Does training make them like the portrait?
# [Chapter 03](03_a_convolution_is_a_matrix.ipynb) looks at all 20 convolutions of a ResNet-18.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert held[0] > 0.95 and held[1] < 0.7
assert S_shuffled[2] / S_shuffled[1] > 0.95           # "no piece stands out"
assert S_shuffled[1] / S_shuffled[0] < 0.1            # "drop once"

# %% [markdown]
# ## 4. Is there a better copy?
#
# You kept the first $r$ pieces because it was easy. Perhaps another matrix of rank $r$ is closer?
# In 1936 Eckart and Young proved that there is none. Test their claim: try to find one.
#
# **First try: luck.** Draw 20 random columns, and take the best copy whose columns are mixtures of
# them. (`qr` makes the columns orthonormal; the best copy is then one line.) Repeat 100 times and
# keep the best.
#
# **Predict.** The truncated SVD of rank 20 has an error of 18.5 %. How near does luck come?

# %%
def random_copy(matrix, rank, generator):
    random = torch.randn(len(matrix), rank, generator=generator, dtype=matrix.dtype)
    Q, _ = torch.linalg.qr(random)                    # (m, r), columns orthonormal
    return Q @ (Q.T @ matrix)                         # the best mixture of them


generator = torch.Generator().manual_seed(0)
luck = min(relative_error(random_copy(photo, 20, generator), photo) for _ in range(100))
best = relative_error(cut(photo, 20), photo)

# %% tags=["nbval-check-output"]
print(f"best of 100 random copies of rank 20: {luck:.0%} error")
print(f"truncated SVD of rank 20:             {best:.1%} error")

# %% [markdown]
# **Explain.** Not near at all. Twenty random columns catch little of the portrait.
#
# **Second try: work.** Write the copy as `left @ right`, with `left` of shape $(m, r)$ and `right`
# of shape $(r, n)$. Hold one of them fixed: the best other one is a least-squares problem, which
# `lstsq` solves. Take turns. This is called *alternating least squares*.
#
# **Predict.** It starts from random numbers and knows nothing of the SVD. Where is its error after
# ten turns: above the SVD's, at it, or below it?

# %%
right = torch.randn(20, n, generator=generator, dtype=photo.dtype)
errors = []
for _ in range(10):
    left = torch.linalg.lstsq(right.T, photo.T).solution.T    # (m, 20), the best for this right
    right = torch.linalg.lstsq(left, photo).solution          # (20, n), the best for this left
    errors.append(relative_error(left @ right, photo))

# %%
plots.curves(
    {"alternating least squares": (range(1, 11), errors)},
    levels={"truncated SVD": best},
    xlabel="turn",
    ylabel="relative error",
    alt=f"The error of alternating least squares falls from {errors[0]:.0%} to "
    f"{errors[-1]:.1%} in ten turns and comes down to the SVD's {best:.1%}, never below it.",
)

# %% [markdown]
# **Explain.** It comes down to the SVD's error and stops there. Two tries are no proof, but the
# **Eckart-Young theorem** has been proved: no matrix of rank $r$ is closer to $A$ than its
# truncated SVD. The answer to this chapter's question is two lines of code.
#
# <details><summary>Why is that so? (a short proof)</summary>
#
# Let $B$ have rank $r$, and let the orthonormal columns of $Q$, of shape $(m, r)$, build all
# columns of $B$. No such matrix is nearer to $A$ than $Q Q^\top A$, the "best mixture" of the first
# try. By Pythagoras, $\|A - B\|_F^2 \ge \|A\|_F^2 - \|Q^\top A\|_F^2$.
#
# Put in the SVD: $\|Q^\top A\|_F^2 = s_1^2 w_1 + s_2^2 w_2 + \dots$ with $w_i = \|Q^\top u_i\|^2$.
# Each $w_i$ is at most 1, and all together are at most $r$. So the sum is largest if the first $r$
# weights are 1, and the others 0. At least $s_{r+1}^2 + s_{r+2}^2 + \dots$ is then missing: the
# squared error of the truncated SVD.
# </details>
# <br>
#
# "Closer" means a smaller sum of squared differences, in which every number counts the same. If
# some numbers matter more than others, another copy may serve you better. [Chapter
# 07](07_responses_not_weights.ipynb) makes use of that.
#
# The truncated SVD is also the best copy if you measure the error by its largest stretch, which is
# then $s_{r+1}$ (the *spectral norm*; Mirsky, 1960).

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert luck > 0.9 > best                              # "Luck does not come near"
assert all(error >= best - 1e-9 for error in errors)  # never below
assert all(after <= before + 1e-9 for before, after in zip(errors, errors[1:], strict=False))
assert errors[-1] - best < 0.002                      # "comes down to"
Q = torch.linalg.qr(torch.randn(m, 20, dtype=photo.dtype)).Q          # of the folded proof
U_all, S_all, _ = torch.linalg.svd(photo, full_matrices=False)
w = (Q.T @ U_all).square().sum(0)
assert w.max() <= 1 + 1e-9 and w.sum() <= 20 + 1e-9
assert torch.allclose((Q.T @ photo).square().sum(), (S_all.square() * w).sum())

# %% [markdown]
# ## 5. Does it save anything?
#
# A copy of rank $r$ saves nothing as long as it is stored as an $(m, n)$ matrix: it has as many
# numbers as before. **Store two factors instead**, `left` of shape $(m, r)$ and `right` of shape
# $(r, n)$. They have $r \, (m + n)$ numbers. Where do the singular values go? Each factor takes
# their square roots: the product stays, and both factors have the same Frobenius norm.

# %% tags=["nbval-check-output"]
left, right = linalg.balanced_factors(photo, 20)      # (m, 20), (20, n)
print(f"photo:   {photo.numel():7,} numbers")
print(f"copy:    {(left @ right).numel():7,} numbers, the same")
print(f"factors: {left.numel() + right.numel():7,} numbers")

# %% [markdown]
# **Predict.** The full rank of the photo is 512. You keep half of it. What share of the numbers do
# you store: a quarter, a half, or nearly all?

# %% tags=["nbval-check-output"]
half = min(m, n) // 2
stored = half * (m + n) / (m * n)
print(f"rank {half}: {stored:.0%} of the numbers")
print(f"break-even: rank {linalg.break_even_rank(m, n):.1f} of {min(m, n)}")

# %%
numbers = torch.arange(1, 401) * (m + n)
plots.cost_against_rank(
    {"two factors": numbers},
    dense=m * n,
    alt="The numbers in two factors rise in a straight line with the rank and cross the photo's "
    f"own number at rank {linalg.break_even_rank(m, n):.1f}, its break-even.",
)

# %% [markdown]
# **Explain.** Nearly all: **half the rank is not half the numbers.** The line crosses the photo's
# own count (*dense*: stored whole) where $r\,(m + n) = m n$, so at
#
# $$r_\text{break-even} = \frac{m\,n}{m + n}$$
#
# A rank above it makes the "compressed" photo larger. For a square matrix the break-even is half
# the full rank. The longer and thinner the matrix, the nearer the break-even moves to the full
# rank:

# %% tags=["nbval-check-output"]
for shape in [(512, 512), (512, 1024), (512, 4608)]:
    even = linalg.break_even_rank(*shape)
    print(f"{shape}: break-even at rank {even:.1f}, {even / min(shape):.0%} of the full rank")

# %% [markdown]
# The last one, 512 × 4608, is the size of the largest layers in a ResNet-18: 512 outputs, each with
# 512 × 3 × 3 weights. [Chapter 05](05_factorizing.ipynb) splits such layers. (For photographs there
# are better formats: JPEG looks at small blocks.)
#
# A layer has to be *multiplied* with a vector $x$. The matrix takes $m n$ multiplications for that.
# Two factors take $r\,(m + n)$, so the break-even is the same. But mind the order: `left @ (right @
# x)`. With `(left @ right) @ x` you build the large matrix again.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
from torchvision.models import resnet18  # noqa: E402

assert 0.9 < stored < 1                               # "Nearly all"
kernels = [module for module in resnet18().modules() if isinstance(module, torch.nn.Conv2d)]
largest = max((kernel.weight.flatten(1) for kernel in kernels), key=torch.numel)
assert tuple(largest.shape) == (512, 4608)
assert linalg.break_even_rank(512, 512) == 256

# %% [markdown]
# ## 6. A faster way to the same copy
#
# The exact SVD computes all pieces, although you keep 20. On a large matrix that is a waste. The
# **randomized** SVD first looks where the matrix sends a few random vectors, and then works only
# there. `basis` makes columns orthonormal, so that their sizes do not grow without limit, and not
# all of them turn into the strongest direction. (In the literature, `spare` is the oversampling and
# `rounds` the number of power iterations.)

# %%
def basis(Y):
    return torch.linalg.qr(Y).Q


def quick_svd(matrix, rank, spare=10, rounds=4):
    fixed = torch.Generator().manual_seed(0)
    Y = torch.randn(matrix.shape[1], rank + spare, generator=fixed, dtype=matrix.dtype)
    for _ in range(rounds):
        Y = matrix.T @ basis(matrix @ basis(Y))       # (n, rank + spare)
    Q = basis(matrix @ Y)                             # (m, rank + spare)
    U, S, Vh = torch.linalg.svd(Q.T @ matrix, full_matrices=False)    # of a small matrix
    return Q @ U[:, :rank], S[:rank], Vh[:rank]


# %% [markdown]
# Why can random vectors help? Each product with the matrix stretches them most along the strong
# pieces and least along the weak ones. After a few rounds their mixtures hold the strong
# directions, and a few spare ones. What is left is a matrix of a few rows, cheap to split. (You
# have met this: each turn of the alternating least squares of section 4 takes the same two
# products, with $A$ and with $A^\top$.)
#
# **Predict.** The photo is enlarged to four times as many pixels. How much faster is the shortcut,
# and how much worse?

# %%
large = torch.nn.functional.interpolate(photo.float()[None, None], scale_factor=2, mode="bicubic")
large = large[0, 0]                                   # (1200, 1024), float32


def timed(function, *arguments):
    start = time.perf_counter()
    U, S, Vh = function(*arguments)
    seconds = time.perf_counter() - start
    return seconds, relative_error((U * S) @ Vh, large)


exact_seconds, exact_error = timed(linalg.truncated_svd, large, 20)
quick_seconds, quick_error = timed(quick_svd, large, 20)

# %%
print(f"exact:      {exact_seconds:6.2f} s, relative error {exact_error:.4f}")
print(f"randomized: {quick_seconds:6.2f} s, relative error {quick_error:.4f}")
print(f"{exact_seconds / quick_seconds:.0f} times as fast on this machine")

# %% [markdown]
# **Explain.** The two errors differ by less than 1 %, and the shortcut needs a small part of the
# time. The seconds differ from machine to machine. A photograph is an easy case: where the singular
# values fall slowly, you need more rounds. For daily work, take a tested version:
# `sklearn.utils.extmath.randomized_svd` or `torch.svd_lowrank` (which returns $V$, not $V^\top$:
# see section 8). Does ours agree with scikit-learn's?

# %% tags=["nbval-check-output"]
from sklearn.utils.extmath import randomized_svd

_, S_sklearn, _ = randomized_svd(photo.numpy(), 20, random_state=0)
_, S_quick, _ = quick_svd(photo, 20)
print("same 20 singular values as scikit-learn:", abs(S_quick.numpy() / S_sklearn - 1).max() < 1e-3)
print("same 20 singular values as the exact SVD:", torch.allclose(S_quick, S_photo[:20], rtol=1e-3))

# %% [markdown]
# The layers of a ResNet-18 are small enough for the exact SVD, so this course does not need the
# shortcut. It is meant for much larger matrices, such as those of language models.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert abs(quick_error / exact_error - 1) < 0.01      # "less than 1 %"
assert quick_seconds < exact_seconds / 2              # "a small part of the time"
U20, S20, Vh20 = quick_svd(photo, 20)
assert relative_error((U20 * S20) @ Vh20, photo) < 1.01 * best

# %% [markdown]
# ## 7. You may know it as PCA
#
# **Principal component analysis** (PCA) looks for the directions in which data varies most. It is
# the SVD of the data after the mean has been subtracted. Try it on scikit-learn's 8 × 8 digits:
# each row of the matrix is one picture. The directions are the rows of `Vh`. To compare two of
# them, take the cosine of the angle between them: 1 means the same direction.
#
# The variance along direction $i$ is $s_i^2 / (N - 1)$, for $N$ pictures. Write $X$ for the data
# with the mean taken away:
#
# $$X = U\,\mathrm{diag}(S)\,V^\top \quad \text{so} \quad X^\top X = V\,\mathrm{diag}(S)^2\,V^\top$$
#
# The matrix $X^\top X / (N - 1)$ is the **covariance** of the data. It only stretches the columns
# of $V$, by these variances. They are its **eigenvectors**, and the variances its **eigenvalues**.

# %% tags=["nbval-check-output"]
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA

data = torch.tensor(load_digits().data)               # (1797, 64)
centred = data - data.mean(dim=0)
_, S_data, Vh_data = torch.linalg.svd(centred, full_matrices=False)
pca = PCA(n_components=3, svd_solver="full").fit(data.numpy())

cosines = (Vh_data[:3] * torch.tensor(pca.components_)).sum(dim=1)
print("same directions (cosine, sign left out):", [f"{c:.6f}" for c in cosines.abs()])
variances = S_data[:3].square() / (len(data) - 1)
print("same variances:", torch.allclose(variances, torch.tensor(pca.explained_variance_)))

# %% [markdown]
# **Predict.** Forget to subtract the mean. What is the first direction then?

# %% tags=["nbval-check-output"]
_, _, Vh_raw = torch.linalg.svd(data, full_matrices=False)
mean = data.mean(dim=0)
cosine = abs(float(Vh_raw[0] @ mean / mean.norm()))
print(f"cosine between the first direction and the mean picture: {cosine:.3f}")

# %% [markdown]
# **Explain.** It is nearly the mean itself. You saw the same in the shuffled portrait: one piece
# for the average brightness. When you study how data *varies*, centre it first. [Chapter
# 07](07_responses_not_weights.ipynb) does so with the responses of a layer.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert cosine > 0.99                                  # "nearly the mean itself"
assert torch.allclose(cosines.abs(), torch.ones(3, dtype=torch.float64), atol=1e-6)

# %% [markdown]
# ## 8. Three traps
#
# ### `V` or `Vh`?
#
# `torch.linalg.svd` and NumPy return $V^\top$, named `Vh`. The old `torch.svd`, which you still
# find in many recipes, returned $V$. If all pieces are kept, PyTorch complains about the mix-up
# only if the matrix is wider than tall. Else `Vh` is square, and the wrong product runs as well.
# (`torch.svd_lowrank` gives $V$, and only some of its columns: there the wrong product stops with
# an error.)
#
# **Predict.** What happens if you transpose `Vh` once too often?

# %% tags=["nbval-check-output"]
square = photo[:512]                                  # (512, 512)
U_s, S_s, Vh_s = torch.linalg.svd(square, full_matrices=False)
print(f"(U * S) @ Vh:   error {relative_error((U_s * S_s) @ Vh_s, square):.0%}")
print(f"(U * S) @ Vh.T: error {relative_error((U_s * S_s) @ Vh_s.T, square):.0%}")

# %% [markdown]
# **Explain.** Nothing warns you, and the error is larger than the matrix itself. Make it a habit:
# after an SVD, rebuild the matrix once and look at the error.
#
# ### Which product is the identity?
#
# The columns of the cut $U_r$, of shape $(m, r)$, are still orthonormal. Its rows are not.
#
# **Predict.** The next cell prints four lines. Which one says False?

# %% tags=["nbval-check-output"]
U_r, _, _ = linalg.truncated_svd(photo, 20)           # (600, 20)
P = U_r @ U_r.T                                       # (600, 600)
print("U_r.T @ U_r is the identity:", torch.allclose(U_r.T @ U_r, torch.eye(20).double()))
print("U_r @ U_r.T is the identity:", torch.allclose(P, torch.eye(m).double()))
print("P @ P equals P:             ", torch.allclose(P @ P, P))
print("P @ photo is the best copy: ", torch.allclose(P @ photo, linalg.low_rank(photo, 20)))

# %% [markdown]
# **Explain.** The second one. $P = U_r U_r^\top$ is a **projector**. It keeps what lies in the 20
# strongest directions and removes the rest; doing it twice changes nothing more. So the best copy
# can also be written as $P A$. If $A$ is a layer with the output $A x$, then $P A x$ is this
# output, cut to a few directions. [Chapter 07](07_responses_not_weights.ipynb) uses this form.
#
# ### Signs and ties are not unique
#
# Change the sign of a column of $U$ and of its row in $V^\top$: the product stays. Two computers
# may return different signs.
#
# **Predict.** What are the singular values of the identity, and which directions belong to them?

# %% tags=["nbval-check-output"]
flip = torch.tensor([-1.0, 1.0, -1.0, 1.0]).double()
U_a, S_a, Vh_a = torch.linalg.svd(A, full_matrices=False)
flipped = (U_a * flip * S_a) @ (flip[:, None] * Vh_a)
print("two signs changed, same matrix:", torch.allclose(flipped, A))

R = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=generator))[0]
same = torch.allclose(R @ torch.eye(3).double() @ R.T, torch.eye(3).double())
print("identity = R @ I @ R.T for a random orthogonal R:", same)

# %% [markdown]
# **Explain.** The identity of size 3 has three equal singular values, a tie. Any three orthonormal
# directions are then a valid answer, if $U$ and $V$ take the same ones. So compare products, or,
# where there is no tie, directions up to sign. Never compare `U` with `U`.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert relative_error((U_s * S_s) @ Vh_s.T, square) > 1     # "larger than the matrix itself"
if hasattr(torch, "svd"):                                   # deprecated, may go one day
    assert torch.allclose(torch.svd(A).V.abs(), Vh.T.abs())
assert not torch.allclose(U_r.T[0], U_r.T[1])
assert abs(float(P.trace()) - 20) < 1e-8                    # a projector's trace is its rank
assert linalg.orthogonality_error(U_r) < 1e-10

# %% [markdown]
# ## Recap
#
# 1. Every matrix is a sum of rank-1 pieces, sorted by size; the sizes are the singular values.
# 2. The first $r$ pieces add up to the best copy of rank $r$ (Eckart-Young).
# 3. The squared error is the sum of the squared singular values that you left out.
# 4. Store the two factors: they save numbers only below rank $m n / (m + n)$.
# 5. Energy counts squares: 90 % of it leaves a relative error of up to 32 %.
#
# ## Check yourself
#
# **1.** A matrix has singular values 4, 2, 2, 1. You keep rank 1. What are the energy and the
# relative error?
#
# <details><summary>Answer</summary>
# The squares are 16, 4, 4, 1, together 25. The energy is 16/25 = 64 %. The relative error is the
# root of 9/25, so 60 %.
# </details>
# <br>
#
# **2.** A layer is a 300 × 600 matrix. Does rank 150, half the full rank, halve its numbers?
#
# <details><summary>Answer</summary>
# No. The factors have 150 × 900 = 135,000 numbers, 75 % of 180,000. The break-even rank is 200; for
# half the numbers you need rank 100.
# </details>
# <br>
#
# **3.** A colleague replaces a weight matrix by its rank-8 copy, of the same shape. How much
# smaller is the network?
#
# <details><summary>Answer</summary>
# Not at all. The copy has the same number of entries. It becomes smaller only when the two factors
# are stored and used in its place. <a href="04_the_popular_recipe.ipynb">Chapter 04</a>
# looks at a recipe that makes this mistake.
# </details>
# <br>
#
# **4.** Two programs give you different `U` for the same matrix. Is one of them wrong?
#
# <details><summary>Answer</summary>
# Not necessarily. Signs are free, and with equal singular values whole directions are. Compare
# <code>(U * S) @ Vh</code> instead.
# </details>

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
values = torch.tensor([4.0, 2.0, 2.0, 1.0])
assert abs(float(linalg.energy(values)[0]) - 0.64) < 1e-6
assert abs((1 - 0.64) ** 0.5 - 0.6) < 1e-9
assert 150 * 900 == 135_000 and 135_000 / (300 * 600) == 0.75
assert linalg.break_even_rank(300, 600) == 200 and 100 * 900 == 300 * 600 / 2

# %% [markdown]
# ## Now you
#
# The exercises of this chapter are in [exercises/02_svd](../exercises/02_svd/02_svd.ipynb). They
# check your answers as you go.
#
# **The way on.** [Chapter 03](03_a_convolution_is_a_matrix.ipynb) finds the matrices inside a
# network: a convolution is one, too. If you are in a hurry, go to [chapter
# 05](05_factorizing.ipynb), where one convolution becomes two small ones.
#
# ## References
#
# - C. Eckart and G. Young, *The approximation of one matrix by another of lower rank*,
#   Psychometrika, 1936. (E. Schmidt had the theorem, for integral equations, in 1907; see G. W.
#   Stewart, *On the early history of the singular value decomposition*, SIAM Review, 1993.)
# - G. H. Golub and C. Reinsch, *Singular value decomposition and least squares solutions*,
#   Numerische Mathematik, 1970.
# - N. Halko, P.-G. Martinsson and J. A. Tropp, *Finding structure with randomness: probabilistic
#   algorithms for constructing approximate matrix decompositions*, SIAM Review, 2011.
# - I. T. Jolliffe and J. Cadima, *Principal component analysis: a review and recent developments*,
#   Philosophical Transactions of the Royal Society A, 2016.
# - L. Mirsky, *Symmetric gauge functions and unitarily invariant norms*, Quarterly Journal of
#   Mathematics, 1960. (the spectral norm)
