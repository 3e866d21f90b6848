# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Exercises 02 · The SVD: compress a photograph
#
# **The question:** How few numbers can you keep of a photograph, and how much of it is left?
#
# You write five short functions. The last one puts them together into a compressor that meets a
# storage budget.
#
# **After this unit you can**
#
# - cut an SVD to a rank, with the right shapes;
# - say how large the error is without computing the small matrix;
# - choose a rank for an error, or for a storage budget;
# - say which matrices have no good small copy.
#
# **You need:** [chapter 02](../../notebooks/02_svd.ipynb).
#
# **Time:** about 60 minutes; the cells run in seconds. **Points:** 15, of which 3 are marked by
# hand.

# %% [markdown]
# **How it works.** Work in a copy (in JupyterLab: File, Duplicate Notebook), so that you can start
# again; hand it in as `02_svd.ipynb`. Replace each `raise NotImplementedError` by your code, then
# run the check below it. It shows the call, what it expected and what it got. Run it as often as
# you like.
#
# You can answer the questions in any order; only the last function needs two of the others. For the
# grade, further cases are drawn, so a table of the right answers does not help.

# %%
import importlib.util

if importlib.util.find_spec("lowrank_course") is None:  # on Colab, in a copy of the course
    print("Installing the course's package")
    # %pip install --quiet --no-deps ../.. tensorly

# %%
import matplotlib.pyplot as plt
import torch
from matplotlib.cbook import get_sample_data

from lowrank_course import plots
from lowrank_course.checks import u02_svd as check

plots.style()

# %% [markdown]
# The photograph comes with matplotlib: Grace Hopper, who wrote one of the first compilers. You take
# every second pixel, so that everything is quick. Numbers lie between 0 (black) and 1 (white).

# %%
file = get_sample_data("grace_hopper.jpg", asfileobj=False)
photo = torch.tensor(plt.imread(file)[::2, ::2]).double() / 255  # (300, 256, 3)
grey = photo.mean(dim=2)  # (300, 256)
print("photo", tuple(photo.shape), "grey", tuple(grey.shape))

# %%
plots.pictures(
    {"photo": photo, "grey": grey},
    alt="The portrait of Grace Hopper in uniform before a flag, in colour and in grey.",
)

# %% [markdown]
# ## Question 1: cut an SVD to a rank
#
# *Difficulty ●○○ · 10 minutes · 2 points*
#
# Write `truncate(matrix, rank)`. For a matrix of shape (m, n) and a rank r it returns the three
# tensors `U` (m, r), `S` (r,) and `Vh` (r, n) of the best approximation of rank r, which is then
# `U @ torch.diag(S) @ Vh`.
#
# <details><summary>Hint</summary>
#
# `torch.linalg.svd` gives `Vh`, not `V`: its **rows** are the right singular vectors. With
# `full_matrices=False` you get the thin SVD, which is all you need. The singular values come
# largest first.
#
# </details>

# %% nbgrader={"grade": false, "grade_id": "truncate", "locked": false, "schema_version": 3, "solution": true, "task": false}
def truncate(matrix, rank):
    """The leading `rank` parts of the SVD: U (m, r), S (r,), Vh (r, n)."""
    ### BEGIN SOLUTION
    U, S, Vh = torch.linalg.svd(matrix, full_matrices=False)
    return U[:, :rank], S[:rank], Vh[:rank]
    ### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "q1", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
print(check.truncate(truncate))
### BEGIN HIDDEN TESTS
from lowrank_course.checks import grading_seed

print(check.truncate(truncate, seed=grading_seed()))
### END HIDDEN TESTS

# %% [markdown]
# Look at what you have made. At which rank do you recognise the face? At which rank do you stop
# seeing a difference?

# %% tags=["uses-answer"]
copies = {}
for rank in (1, 5, 20, 100):
    U, S, Vh = truncate(grey, rank)
    copies[f"rank {rank}"] = U @ torch.diag(S) @ Vh
plots.pictures(
    copies,
    alt="The grey portrait at rank 1, 5, 20 and 100: bars, a shadow, a blurred face, the face.",
)

# %% [markdown]
# ## Question 2: the error, from the singular values alone
#
# *Difficulty ●●○ · 10 minutes · 2 points*
#
# Write `relative_errors(singular_values)`. From the k singular values of a matrix A, largest first,
# it returns a tensor of k + 1 numbers. Entry r is the relative error ‖A − A_r‖ / ‖A‖ of the best
# approximation of rank r, in the Frobenius norm. Entry 0 is 1, because rank 0 keeps nothing; entry
# k is 0.
#
# **Expect** for the grey photograph: 49.9 % at rank 1, 18.5 % at rank 20, 5.3 % at rank 100.
#
# <details><summary>Hint</summary>
#
# The square of ‖A‖ is the sum of the squared singular values. The error consists of those that are
# cut off. Adding them up from the small end (`flip`, `cumsum`, `flip`) is exact; subtracting from 1
# can leave a number just below zero, which has no square root.
#
# </details>

# %% nbgrader={"grade": false, "grade_id": "relative_errors", "locked": false, "schema_version": 3, "solution": true, "task": false}
def relative_errors(singular_values):
    """Relative error of the best approximation at rank 0, 1, ..., k; shape (k + 1,)."""
    ### BEGIN SOLUTION
    squares = singular_values.square()
    lost = squares.flip(0).cumsum(0).flip(0)  # lost[r]: everything from index r on
    lost = torch.cat([lost, torch.zeros_like(lost[:1])])
    return (lost / lost[0]).sqrt()
    ### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "q2", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
print(check.relative_errors(relative_errors))
### BEGIN HIDDEN TESTS
from lowrank_course.checks import grading_seed

print(check.relative_errors(relative_errors, seed=grading_seed()))
### END HIDDEN TESTS

# %% tags=["uses-answer"]
errors = relative_errors(torch.linalg.svdvals(grey))
for rank in (1, 20, 100):
    print(f"rank {rank:3d}: error {errors[rank]:.1%}")

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert [f"{errors[rank]:.1%}" for rank in (1, 20, 100)] == ["49.9%", "18.5%", "5.3%"]

# %% [markdown]
# **Energy** is the share of the squared singular values that is kept. 90 % sounds like nearly
# everything. Compare it with the error:

# %% tags=["uses-answer"]
energy = 1 - errors**2
rank = int((energy >= 0.9).nonzero()[0])
print(f"rank {rank}: energy {energy[rank]:.1%}, error {errors[rank]:.1%}")

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert energy[rank] >= 0.9 > energy[rank - 1] and 0.25 < errors[rank] < 0.32

# %% [markdown]
# ## Question 3: the rank for an error
#
# *Difficulty ●○○ · 5 minutes · 2 points*
#
# Write `rank_for_error(errors, target)`. `errors` is a curve as in question 2: entry r is the error
# at rank r, and the numbers fall. Return the smallest rank whose error is at most `target`, as an
# int.
#
# **Expect** for the grey photograph: rank 53 for an error of 10 %, rank 104 for 5 %.
#
# <details><summary>Hint</summary>
#
# "At most" includes "equal". `nonzero()` tells you where a condition holds. Rank 0 is a possible
# answer.
#
# </details>

# %% nbgrader={"grade": false, "grade_id": "rank_for_error", "locked": false, "schema_version": 3, "solution": true, "task": false}
def rank_for_error(errors, target):
    """The smallest rank whose error is at most `target`."""
    ### BEGIN SOLUTION
    return int((errors <= target).nonzero()[0])
    ### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "q3", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
print(check.rank_for_error(rank_for_error))
### BEGIN HIDDEN TESTS
from lowrank_course.checks import grading_seed

print(check.rank_for_error(rank_for_error, seed=grading_seed()))
### END HIDDEN TESTS

# %% tags=["uses-answer"]
for target in (0.10, 0.05):
    print(f"error {target:.0%}: rank {rank_for_error(errors, target)}")

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert (rank_for_error(errors, 0.10), rank_for_error(errors, 0.05)) == (53, 104)

# %% [markdown]
# ## Question 4: the rank for a budget
#
# *Difficulty ●●○ · 10 minutes · 2 points*
#
# An approximation of rank r is stored as two factors, (m, r) and (r, n). Write
# `largest_rank(m, n, share)`: the largest rank at which both factors together hold at most `share`
# times the m·n numbers of the matrix. Return an int, and 0 if not even rank 1 fits.
#
# **Expect** for the grey photograph (300 × 256): rank 34 at a quarter of the storage. The full rank
# is 256, but at rank 139 the factors already need more room than the matrix.
#
# <details><summary>Hint</summary>
#
# How many numbers does **one** rank cost? Half the rank is not half the storage. `int()` rounds a
# positive number down.
#
# </details>

# %% nbgrader={"grade": false, "grade_id": "largest_rank", "locked": false, "schema_version": 3, "solution": true, "task": false}
def largest_rank(m, n, share):
    """The largest rank whose factors hold at most `share` of the m * n numbers."""
    ### BEGIN SOLUTION
    return int(share * m * n / (m + n))
    ### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "q4", "locked": true, "points": 2, "schema_version": 3, "solution": false, "task": false}
print(check.largest_rank(largest_rank))
### BEGIN HIDDEN TESTS
from lowrank_course.checks import grading_seed

print(check.largest_rank(largest_rank, seed=grading_seed()))
### END HIDDEN TESTS

# %% tags=["uses-answer"]
m, n = grey.shape
for share in (0.25, 0.5, 1.0):
    print(f"{share:.0%} of the numbers: rank {largest_rank(m, n, share)} of {min(m, n)}")

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert (largest_rank(m, n, 0.25), largest_rank(m, n, 1.0) + 1, min(m, n)) == (34, 139, 256)

# %% [markdown]
# ## Question 5: put it together
#
# *Difficulty ●●● · 15 minutes · 4 points*
#
# Write `compress_photo(photo, share)` for a **colour** photograph (H, W, 3). Lay it out as a matrix
# (H, 3·W) with `reshape`, take the largest rank that fits the budget, and return two factors,
# `left` (H, r) and `right` (r, 3·W), whose product is the best approximation. Give **each** factor
# the square root of the singular values. Chapter 05 does exactly this to a convolution.
#
# **Expect** at a quarter of the storage: rank 53, error 10.4 %.
#
# <details><summary>Hint</summary>
#
# Use `truncate` and `largest_rank`. Multiplying the columns of `U` by a vector is `U * vector`;
# multiplying the rows of `Vh` is `vector[:, None] * Vh`.
#
# </details>

# %% nbgrader={"grade": false, "grade_id": "compress_photo", "locked": false, "schema_version": 3, "solution": true, "task": false}
def compress_photo(photo, share):
    """Two factors, (H, r) and (r, 3 W), that hold at most `share` of the numbers of the photo."""
    ### BEGIN SOLUTION
    matrix = photo.reshape(len(photo), -1)  # (H, 3 W)
    U, S, Vh = truncate(matrix, largest_rank(*matrix.shape, share))
    return U * S.sqrt(), S.sqrt()[:, None] * Vh
    ### END SOLUTION

# %% nbgrader={"grade": true, "grade_id": "q5", "locked": true, "points": 4, "schema_version": 3, "solution": false, "task": false}
print(check.compress_photo(compress_photo))
### BEGIN HIDDEN TESTS
from lowrank_course.checks import grading_seed

print(check.compress_photo(compress_photo, seed=grading_seed()))
### END HIDDEN TESTS

# %% [markdown]
# Your compressor at work. `restore` is the way back from the factors to a picture.

# %% tags=["uses-answer"]
def restore(left, right):
    return (left @ right).reshape(len(left), -1, 3)  # (H, W, 3)


small = {share: compress_photo(photo, share) for share in (0.05, 0.25, 0.5)}
for share, (left, right) in small.items():
    error = (restore(left, right) - photo).norm() / photo.norm()
    print(f"{share:.0%} of the numbers: rank {left.shape[1]}, error {error:.1%}")

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
left, right = small[0.25]
assert left.shape[1] == 53
assert f"{(restore(left, right) - photo).norm() / photo.norm():.1%}" == "10.4%"

# %% tags=["uses-answer"]
views = {f"{share:.0%} stored": restore(*factors) for share, factors in small.items()}
plots.pictures(
    views | {"all stored": photo},
    alt="The portrait from 5, 25 and 50 percent of the numbers, beside the whole photograph.",
)

# %% [markdown]
# ## Question 6: what can be compressed?
#
# *Difficulty ●●○ · 10 minutes · 3 points, marked by hand*
#
# Three pictures of the same size: the grey photograph, random noise, and a thin diagonal line. The
# next cells draw them and their errors, with your function from question 2.

# %%
noise = torch.rand(300, 256, generator=torch.Generator().manual_seed(0)).double()
rows, columns = torch.arange(300)[:, None], torch.arange(256)
line = ((rows - columns).abs() < 2).double()
plots.pictures(
    {"photograph": grey, "noise": noise, "line": line},
    alt="The portrait, a field of random dots, and a thin white diagonal line on black.",
)

# %% tags=["uses-answer"]
ranks = torch.arange(257)
plots.curves(
    {
        name: (ranks, 100 * relative_errors(torch.linalg.svdvals(picture)))
        for name, picture in {"photograph": grey, "noise": noise, "line": line}.items()
    },
    alt="Error against rank: the photograph falls fast; noise (after rank 1) and line fall slowly.",
    xlabel="rank",
    ylabel="relative error (%)",
)

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert all(torch.linalg.matrix_rank(picture) == 256 for picture in (grey, noise, line))
assert relative_errors(torch.linalg.svdvals(line))[138] > 4 * errors[138]  # at break-even
assert 0.45 < relative_errors(torch.linalg.svdvals(noise))[1] < 0.55  # rank 1 holds the mean grey

# %% [markdown]
# Answer in four to six sentences. Which of the three would you compress with the SVD, and which
# not? The line looks simplest to you: why is it not simple for the SVD? What would you measure
# before you compress the weights of a network in this way?

# %% [markdown] nbgrader={"grade": true, "grade_id": "q6", "locked": false, "points": 3, "schema_version": 3, "solution": true, "task": false}
# <!-- BEGIN SOLUTION -->
# **Model answer.** The photograph: its singular values fall quickly, because neighbouring rows and
# columns are alike, so a few of them hold most of the energy, far below the break-even rank. Noise
# has no such likeness: its singular values fall slowly (apart from the first, which holds the mean
# grey), so every rank removes only a little of the error. The line is simple to describe, but each
# column is shifted against the next, so columns are not mixtures of a few others: the singular
# values fall slowly, and every small rank leaves a large error. (All three pictures have full rank;
# how fast the values fall is what counts.) The SVD sees linear dependence of rows and columns, and
# nothing else. Before compressing weights I would compute their singular values, read off the rank
# that the wanted error needs, and compare it with the break-even rank; then I would measure the
# accuracy, because a small error of the weights is not yet a small error of the answers.
#
# **Marks.** One point each: the fall of the singular values decides, with noise and photograph told
# apart; the line's singular values fall slowly, because its rows and columns are shifted and not
# mixtures of a few others; a measurement on the weights is named, compared with the break-even rank
# or with the accuracy.
# <!-- END SOLUTION -->

# %% [markdown]
# ## Where it goes on
#
# The package holds the same ideas in `lowrank_course.linalg`: `truncated_svd`, `energy`,
# `rank_for_energy`, `break_even_rank` and `balanced_factors`. Chapter 03 asks where the matrices in
# a ResNet-18 are.
