# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 01 · Rank and orthogonality
#
# **The question:** What can a matrix do to space?
#
# **After this chapter you can**
#
# - see a matrix as three moves: rotate, stretch, rotate;
# - say which matrices keep lengths and angles, and tell them from a projector;
# - count the rank of a matrix, and say why a computer needs a tolerance for it;
# - predict the singular values of a random matrix;
# - find a low rank that noise hides, and remove most of the noise.
#
# **You need:** matrix products and a first look at PyTorch tensors. No data is downloaded.
#
# **Time:** 35 minutes to read, under 1 minute to run.

# %%
import importlib.util

if importlib.util.find_spec("lowrank_course") is None:  # on Colab, in a copy of the course
    print("Installing the course's package")
    # %pip install --quiet --no-deps .. tensorly

# %%
import torch
from matplotlib.figure import Figure

from lowrank_course import linalg, plots

plots.style()
torch.set_default_dtype(torch.float64)               # 16 digits, so that rounding stays small
generator = torch.Generator().manual_seed(0)

# %% [markdown]
# ## 1. A matrix moves every point
#
# A matrix $A$ with two rows and two columns takes a point $x$ of the plane to another point, $A x$.
# To see what it does to *all* points, watch a grid and the unit circle, which holds all points at
# distance 1 from the middle.
#
# This matrix is a *shear*. It slides each horizontal line of the grid sideways. The higher the
# line, the further to the right it goes.

# %%
A = torch.tensor([[1.0, 1.0],
                  [0.0, 1.0]])  # fmt: skip

turn = torch.linspace(0, 2 * torch.pi, 361)
circle = torch.stack([turn.cos(), turn.sin()])       # (2, 361), one point a column
ends = torch.tensor([[-1.0, 1.0], [0.0, 0.0]])       # (2, 2), the ends of a line


# %%
def draw(axes, M, arrows, title):
    for height in torch.linspace(-1, 1, 5):
        line = ends + torch.tensor([[0.0], [height]])
        for points in (M @ line, M @ line.flip(0)):  # across, and upright
            axes.plot(*points, color="#C8C8C8", linewidth=1, linestyle="-")
    axes.plot(*(M @ circle), color=plots.GREY, linestyle="-")
    for tip, colour in zip((M @ arrows).T, plots.COLOURS, strict=False):
        shape = {"arrowstyle": "-|>", "color": colour, "linewidth": 3, "mutation_scale": 18}
        axes.annotate("", tip.tolist(), (0, 0), arrowprops={**shape, "shrinkA": 0, "shrinkB": 0})
    axes.set(title=title, aspect="equal", xlim=(-2.3, 2.3), ylim=(-1.7, 1.7))
    axes.grid(False)


# %% [markdown]
# **Predict.** What does the circle become? And where do the two arrows (1, 0) and (0, 1) point
# afterwards?

# %%
figure = Figure(figsize=(8, 3.3))
before, after = figure.subplots(1, 2, sharey=True)
draw(before, torch.eye(2), torch.eye(2), "x")
draw(after, A, torch.eye(2), "A x")
plots.show(
    figure,
    "Left a square grid with the unit circle and two arrows of length 1. Right, after the shear: "
    "the grid leans to the right, the circle is a slanted ellipse, the upright arrow leans too.",
)

# %% [markdown]
# **Explain.** The circle becomes an **ellipse**, a stretched circle. The arrow (1, 0) lands on the
# first column of $A$, the arrow (0, 1) on the second. Every other point is a mixture of the two, so
# **the columns say everything about a matrix.** Lines stay lines, and the middle stays where it is.
#
# Some directions get longer, others shorter. Try them all: 1,800 directions, in steps of a tenth of
# a degree. (Half a turn is enough; the other half gives the same lengths.)
#
# **Predict.** What is the angle between the direction that is stretched most and the one that is
# stretched least?

# %%
degrees = torch.arange(0, 180, 0.1)
x = torch.stack([degrees.deg2rad().cos(), degrees.deg2rad().sin()])    # (2, 1800)
lengths = (A @ x).norm(dim=0)                                          # (1800,)
most, least = int(lengths.argmax()), int(lengths.argmin())

# %%
plots.curves(
    {
        "all directions": (degrees, lengths),
        "most and least": (degrees[[most, least]], lengths[[most, least]]),
    },
    levels={"unchanged": 1.0},
    xlabel="direction before (degrees)",
    ylabel="length after",
    alt=f"The length after the shear, against the direction before: a wave with its highest point "
    f"{lengths[most]:.2f} at {degrees[most]:.0f} degrees and its lowest point "
    f"{lengths[least]:.2f} at {degrees[least]:.0f} degrees.",
)


# %% tags=["nbval-check-output"]
def angle(a, b):
    return float((a @ b / (a.norm() * b.norm())).acos().rad2deg())


u, v = x[:, most], x[:, least]
print(f"most:  {lengths[most]:.3f} at {degrees[most]:.1f} degrees")
print(f"least: {lengths[least]:.3f} at {degrees[least]:.1f} degrees")
print(f"angle between them, before: {angle(u, v):.1f}")
print(f"angle between them, after:  {angle(A @ u, A @ v):.1f}")

# %% [markdown]
# **Explain.** They stand at right angles. And, which is less obvious, they *still* do after the
# shear, although it has bent almost all other right angles: look at the two arrows above.
#
# This is no accident of the shear. Change the four numbers of $A$ and run the cells again. There
# are two exceptions: if all directions get the same length, every direction is as good as any
# other, and the angle that the cell prints means nothing; and if the least length is 0, the angle
# afterwards means nothing either. (If one length is much larger than the other, the angle
# afterwards may be some degrees off: the steps of a tenth of a degree are then too coarse.) When
# you are done, set the numbers back: the next section goes on with the shear.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert torch.equal(A @ torch.tensor([0.0, 1.0]), A[:, 1])
assert abs(angle(u, v) - 90) < 0.2 and abs(angle(A @ u, A @ v) - 90) < 0.2
assert abs(angle(A[:, 0], A[:, 1]) - 45) < 1e-6                  # "bent almost every other"
for _ in range(20):
    M = torch.randn(2, 2, generator=generator)                   # "no accident"
    sizes = (M @ x).norm(dim=0)
    a, b = x[:, int(sizes.argmax())], x[:, int(sizes.argmin())]
    assert abs(angle(a, b) - 90) < 0.2

# %% [markdown]
# ## 2. Rotate, stretch, rotate
#
# With such a pair of directions you can take any matrix apart:
#
# 1. **rotate**, until the pair lies along the two axes;
# 2. **stretch** along the axes, each by its own factor;
# 3. **rotate** again, to where the pair has to end.
#
# In symbols: $A = U \, \mathrm{diag}(S) \, V^\top$, read from the right. ($\mathrm{diag}(S)$ has
# the numbers of $S$ on its diagonal and 0 elsewhere. $V^\top$ is $V$ transposed: its rows are the
# columns of $V$.) This is the **singular value decomposition**, the SVD. The two factors in $S$ are
# the **singular values**.
#
# **Predict.** The next cell lets PyTorch compute them. Which two numbers do you expect?

# %% tags=["nbval-check-output"]
U, S, Vh = torch.linalg.svd(A)                       # Vh is V transposed
U[:, 1] *= torch.det(U).sign()                       # of the possible signs, take those for which
Vh[1] *= torch.det(Vh).sign()                        # both are rotations, without a mirror

print(f"singular values: {S[0]:.3f} and {S[1]:.3f}")
print("the three moves give A:", torch.allclose(U @ torch.diag(S) @ Vh, A))

# %% [markdown]
# **Explain.** They are the largest and the smallest length that you found by trying. The rows of
# `Vh` are the two directions before, the columns of `U` the same two after. Here are the moves, one
# by one.

# %%
figure = Figure(figsize=(11.5, 3))
moves = {
    "start": torch.eye(2),
    "1. rotate": Vh,
    "2. stretch": torch.diag(S) @ Vh,
    "3. rotate": U @ torch.diag(S) @ Vh,
}
for axes, (title, M) in zip(figure.subplots(1, 4, sharey=True), moves.items(), strict=True):
    draw(axes, M, Vh.T, title)
plots.show(
    figure,
    "Four pictures. The circle with two arrows at right angles; rotated, so that the arrows lie "
    "along the axes; stretched to a flat ellipse; rotated to the slanted ellipse of the shear.",
)

# %% [markdown]
# **A shear looks nothing like a rotation, and yet it is two rotations and a stretch.** So is every
# matrix. (Some need a mirror besides.) Matrices with more rows and columns do the same in more
# dimensions: they turn a ball into an ellipsoid.
#
# Move the first slider to play the three moves. Then pull the second one down to 0: what is left of
# the plane? (Sliders need a running kernel. The four pictures above are the stops of the first one.
# With the second at 0, the plane becomes a line.)

# %%
def rotation(angle):
    c, s = angle.cos(), angle.sin()
    return torch.stack([torch.stack([c, -s]), torch.stack([s, c])])


# %%
def look(move, smaller):
    first, second, third = (min(max(move - done, 0), 1) for done in range(3))
    begin = rotation(first * torch.atan2(Vh[1, 0], Vh[0, 0]))
    stretch = torch.diag(torch.tensor([S[0], smaller]) ** second)
    finish = rotation(third * torch.atan2(U[1, 0], U[0, 0]))
    figure = Figure(figsize=(5, 3.6))
    draw(figure.subplots(), finish @ stretch @ begin, Vh.T, f"after move {move:.1f}")
    plots.show(figure, f"The circle after {move:.1f} of three moves, smaller stretch {smaller}.")


# %%
from ipywidgets import FloatSlider, interact

_ = interact(
    look,
    move=FloatSlider(3, min=0, max=3, step=0.1, continuous_update=False),
    smaller=FloatSlider(0.6, min=0, max=1, step=0.1, continuous_update=False),
)

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert abs(float(S[0] - lengths[most])) < 1e-4 and abs(float(S[1] - lengths[least])) < 1e-4
assert torch.allclose((Vh[0] @ u).abs(), torch.tensor(1.0), atol=1e-5)
assert torch.allclose(rotation(torch.atan2(Vh[1, 0], Vh[0, 0])), Vh)
assert torch.allclose(rotation(torch.atan2(U[1, 0], U[0, 0])), U)

# %% [markdown]
# ## 3. Orthogonal: lengths and angles stay
#
# The first and the third move change no length and no angle. A square matrix that does this is
# called **orthogonal**. Its columns have length 1 and stand at right angles to each other: they are
# **orthonormal**.
#
# Test it where you cannot see it, in 64 dimensions. `qr` makes the columns of a random matrix
# orthonormal.
#
# **Predict.** 1,000 random vectors go through the orthogonal matrix, and through the random one it
# was made from. How much do their lengths change?

# %%
G = torch.randn(64, 64, generator=generator) / 8     # each column about 1 long
Q = torch.linalg.qr(G).Q                             # (64, 64), columns orthonormal
many = torch.randn(64, 1000, generator=generator)    # 1,000 vectors, one a column

for name, M in {"orthogonal": Q, "random": G}.items():
    change = (M @ many).norm(dim=0) / many.norm(dim=0)
    print(f"{name:11} lengths change by factors from {change.min():.2f} to {change.max():.2f}")

# %% tags=["nbval-check-output"]
a, b = many[:, 0], many[:, 1]
print(f"angle between two of them: {angle(a, b):.2f} degrees")
print(f"after the orthogonal one:  {angle(Q @ a, Q @ b):.2f} degrees")

# %% [markdown]
# **Explain.** The orthogonal matrix changes no length and no angle. Here is why. The products of
# all columns with all columns are the entries of $Q^\top Q$. A column with itself gives its squared
# length, 1; two columns at right angles give 0. So
#
# $$Q^\top Q = I$$
#
# where $I$ is the **identity**: 1 on the diagonal, 0 elsewhere, the matrix that changes nothing.
# Write $\|x\|$ for the length of $x$. Because $(Q x)^\top = x^\top Q^\top$, all products survive:
#
# $$(Q x)^\top (Q y) = x^\top Q^\top Q \, y = x^\top y$$
#
# With $y = x$ this is $\|Q x\|^2 = \|x\|^2$: lengths survive. An angle is computed from products
# and lengths only (look at the function `angle`), so angles survive, too.
#
# How far a matrix is from orthonormal columns is then one line: the size of $Q^\top Q - I$. (The
# size of a matrix is the root of the sum of its squared numbers.) The package has the same
# function. Both agree:

# %% tags=["nbval-check-output"]
def orthogonality_error(Q):
    return float((Q.T @ Q - torch.eye(Q.shape[1])).norm())


for name, M in {"orthogonal": Q, "random": G}.items():
    ours, theirs = orthogonality_error(M), linalg.orthogonality_error(M)
    print(f"{name:11} error {ours:.4f}, both agree: {abs(ours - theirs) < 1e-9}")

# %% [markdown]
# ### Thin matrices, and a trap
#
# Now keep only the first 8 of the 64 columns. They are still orthonormal.
#
# **Predict.** For the square $Q$, both $Q^\top Q$ and $Q Q^\top$ are the identity. $Q_8^\top Q_8$
# is, too. Is $Q_8 Q_8^\top$?

# %% tags=["nbval-check-output"]
Q8 = Q[:, :8]                                        # (64, 8)
P = Q8 @ Q8.T                                        # (64, 64)
print("Q @ Q.T, square, is the identity:", torch.allclose(Q @ Q.T, torch.eye(64)))
print("Q8.T @ Q8 is the identity:", torch.allclose(Q8.T @ Q8, torch.eye(8)))
print("Q8 @ Q8.T is the identity:", torch.allclose(P, torch.eye(64)))
print("doing P twice is doing it once:", torch.allclose(P @ P, P))
print("a mixture of the 8 columns stays:", torch.allclose(P @ Q8, Q8))

# %% [markdown]
# **Explain.** No. $P = Q_8 Q_8^\top$ is a **projector**. Of every vector it keeps the part that the
# 8 columns can build, and drops the rest. It is easiest to see with one column in the plane: every
# point drops to its nearest place on a line, like a shadow at noon.

# %%
column = torch.tensor([[0.8], [0.6]])                # (2, 1), length 1
points = 3 * torch.rand(2, 12, generator=generator) - 1.5    # between -1.5 and 1.5
shadows = column @ column.T @ points                 # (2, 2) @ (2, 12)

# %%
figure = Figure(figsize=(6, 3.4))
axes = figure.subplots()
axes.plot(*(column @ torch.tensor([[-3.0, 3.0]])), color=plots.GREY, linewidth=1.5, linestyle=":")
for point, shadow in zip(points.T, shadows.T, strict=True):
    axes.plot(*torch.stack([point, shadow], 1), color="#C8C8C8", linewidth=1.5, linestyle="-")
axes.scatter(*points, s=60, label="x", zorder=3)
axes.scatter(*shadows, s=60, marker="D", label="P x", zorder=3)
axes.set(aspect="equal", xlim=(-2.5, 2.5), ylim=(-1.7, 1.7))
figure.legend(loc="outside right center")
plots.show(
    figure,
    "Twelve points in the plane, each joined to its shadow on a slanted line. Every joining line "
    "meets the slanted line at a right angle.",
)

# %% [markdown]
# The line from each point to its shadow stands at a right angle to the line of shadows. No other
# place on that line is nearer. So a projector gives the *best* copy of a vector that a few columns
# can build. This is what the course is built on.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
change = (Q @ many).norm(dim=0) / many.norm(dim=0)
assert torch.allclose(change, torch.ones(1000)) and torch.allclose(Q.T @ Q, torch.eye(64))
change = (G @ many).norm(dim=0) / many.norm(dim=0)
assert change.min() < 0.85 and change.max() > 1.15               # the random one does change them
assert not torch.allclose(P, torch.eye(64)) and abs(float(P.trace()) - 8) < 1e-9
assert float((points - shadows).T.mul(shadows.T).sum(1).abs().max()) < 1e-12     # right angles
assert all(abs(float(column.T @ (p - s))) < 1e-12 for p, s in zip(points.T, shadows.T, strict=True))

# %% [markdown]
# ## 4. Rank: the dimensions that survive
#
# The second move can also stretch by 0. Then a dimension is gone, and no later matrix brings it
# back: points that were different are now the same point. How many dimensions are left is the
# **rank** of the matrix.
#
# **Predict.** A 3 × 3 matrix has three stretches. Let all three be larger than 0, then two of them,
# then only one. What does the ball become each time?

# %%
along, down = torch.linspace(0, 2 * torch.pi, 31)[:, None], torch.linspace(0, torch.pi, 16)
flat = [along.cos() * down.sin(), along.sin() * down.sin()]
ball = torch.stack([*flat, down.cos().expand(31, 16)])                   # (3, 31, 16)
begin = torch.linalg.qr(torch.randn(3, 3, generator=generator)).Q        # the first rotation

figure = Figure(figsize=(9, 3.2))
for place, stretch in enumerate([(1.6, 1.1, 0.7), (1.6, 1.1, 0.0), (1.6, 0.0, 0.0)], start=1):
    M = torch.diag(torch.tensor(stretch)) @ begin                        # (3, 3), two moves
    moved = torch.einsum("ij,jkl->ikl", M, ball)                         # (3, 31, 16)
    axes = figure.add_subplot(1, 3, place, projection="3d", elev=20)
    axes.plot_wireframe(*moved.numpy(), color=plots.COLOURS[0], linewidth=0.8, linestyle="-")
    axes.set(xlim=(-1.2, 1.2), ylim=(-1.2, 1.2), zlim=(-1.2, 1.2), aspect="equal")
    axes.set(xticklabels=[], yticklabels=[], zticklabels=[])
    axes.set_title(f"rank {torch.linalg.matrix_rank(M)}", y=1.0)
plots.show(
    figure,
    "A ball after three matrices: of rank 3, an ellipsoid; of rank 2, a disc that lies flat; "
    "of rank 1, a piece of a line.",
)

# %% [markdown]
# **Explain.** An ellipsoid, a flat disc, a piece of a line.
#
# ### Counting independent columns
#
# Another way to count needs no picture. A column that the others can build adds no new dimension:
# it is **linearly dependent** on them. Go through the columns, and remove from each what those
# before it can build. (The projector does this.) If something is left, the column is independent.

# %%
def independent_columns(A):
    Q = torch.zeros(len(A), 0)                       # orthonormal, one column for each one found
    for column in A.T:
        rest = column - Q @ (Q.T @ column)           # what the earlier columns cannot build
        if rest.norm() > 1e-9 * A.norm():
            Q = torch.cat([Q, (rest / rest.norm())[:, None]], dim=1)
    return Q.shape[1]


# %% [markdown]
# **Predict.** The matrix below has 8 rows and 5 columns. The fourth and fifth columns are mixtures
# of the first three. How many columns are independent? And how many of its 8 *rows*?

# %% tags=["nbval-check-output"]
B = torch.randn(8, 5, generator=generator)
B[:, 3] = 2 * B[:, 0] - B[:, 1]
B[:, 4] = B[:, 1] + B[:, 2] + B[:, 3]
print("independent columns:", independent_columns(B))
print("independent rows:   ", independent_columns(B.T))
print("singular values:    ", [f"{s:.2f}" for s in torch.linalg.svdvals(B)])

# %% [markdown]
# **Explain.** 3, 3, and 3 that are not zero. Columns, rows and singular values always give the same
# count: that is the rank. It is at most the smaller side of the matrix, here 5, the **full rank**.
#
# ### Guess the rank
#
# Each picture below is a 16 × 16 matrix, black is 0 and white is 1.
#
# **Predict.** Sort them by their rank, before you run the second cell.

# %%
row, col = torch.arange(16.0)[:, None], torch.arange(16.0)
shapes = {
    "diagonal": row == col,
    "chess": (row // 2 + col // 2) % 2 == 0,
    "noise": torch.rand(16, 16, generator=generator),
    "stripes": (col % 4 < 2).expand(16, 16),
    "disc": (row - 7.5) ** 2 + (col - 7.5) ** 2 < 45,
    "cross": ((row - 7.5).abs() < 2) | ((col - 7.5).abs() < 2),
}
shapes = {name: picture.double() for name, picture in shapes.items()}
plots.pictures(
    shapes,
    alt="Six small pictures: a white diagonal line on black, a chess board, random grey values, "
    "upright stripes, a white disc, a white cross.",
)

# %% tags=["nbval-check-output"]
for name, picture in shapes.items():
    rank, filled = independent_columns(picture), (picture != 0).double().mean()
    print(f"{name:8} rank {rank:2d}, numbers that are not zero: {filled:4.0%}")

# %% [markdown]
# **Explain.** Go down the rows. Rank counts the *new* ones, which the rows above cannot build. In
# the stripes all rows are the same. The chess board has two kinds of rows, the cross has two, the
# disc a few. The diagonal is nearly empty, and yet each of its rows is new. **Many zeros do not
# make a low rank, and a low rank does not make zeros.**
#
# ### A narrow door
#
# **Predict.** A random 8 × 2 matrix times a random 2 × 8 matrix is an 8 × 8 matrix, in which no
# number is 0. What is its rank? Take two such products: what is the rank of their sum, and of the
# one times the other?

# %% tags=["nbval-check-output"]
def narrow():
    left, right = torch.randn(8, 2, generator=generator), torch.randn(2, 8, generator=generator)
    return left @ right                              # (8, 8)


one, other = narrow(), narrow()
print("one product:       rank", independent_columns(one))
print("two, added:        rank", independent_columns(one + other))
print("two, multiplied:   rank", independent_columns(one @ other))

# %% [markdown]
# **Explain.** All vectors must pass through two numbers in the middle, so at most two dimensions
# come out. The rank of a product is at most that of each factor. The rank of a sum is at most the
# sum of the ranks.
#
# Read it backwards and you have the idea of this course: **a matrix of low rank is a product of two
# thin ones**, and the thin ones have fewer numbers. ([Chapter 02](02_svd.ipynb) shows how to find
# the two.)

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert independent_columns(B) == independent_columns(B.T) == 3
assert int((torch.linalg.svdvals(B) > 1e-9).sum()) == 3
found = {name: independent_columns(picture) for name, picture in shapes.items()}
assert found["stripes"] == 1 and found["chess"] == found["cross"] == 2
assert 2 < found["disc"] < 8 and found["diagonal"] == found["noise"] == 16
assert all(found[name] == linalg.numerical_rank(picture) for name, picture in shapes.items())
assert independent_columns(one) == independent_columns(one @ other) == 2
assert independent_columns(one + other) == 4 and (one != 0).all()

# %% [markdown]
# ## 5. On a computer, rank needs a tolerance
#
# A computer rounds. Multiply two thin matrices in `float32`, the format in which networks are
# trained, which keeps about 7 digits. In `float64` it is about 16.
#
# **Predict.** The product has rank 5. How many of its 100 singular values are larger than 0?

# %%
left, right = torch.randn(200, 5, generator=generator), torch.randn(5, 100, generator=generator)
products = {"float64": left @ right, "float32": left.float() @ right.float()}    # (200, 100)
spectra = {name: torch.linalg.svdvals(product) for name, product in products.items()}
for name, values in spectra.items():
    print(f"{name}: {int((values > 0).sum())} values above 0; number 5 and 6 are "
          f"{values[4]:.1f} and {values[5]:.0e}")

# %%
figure = Figure(figsize=(7.5, 3.6))
axes = figure.subplots()
for name, values in spectra.items():
    (line,) = axes.semilogy(range(1, 101), values, label=name)
    limit = 200 * torch.finfo(products[name].dtype).eps * values[0]
    axes.axhline(limit, color=line.get_color(), linewidth=1.5, linestyle=":")
axes.set(xlabel="index of the singular value", ylabel="singular value")
axes.legend()
plots.show(
    figure,
    "Singular values on a logarithmic scale. Five are large. From the fifth to the sixth they drop "
    "by more than six powers of ten in float32 and by fifteen in float64. A dotted line above each "
    "tail is the default tolerance.",
)

# %% [markdown]
# **Explain.** All of them, or nearly all on another machine. Strictly counted, rank 5 becomes full
# rank by rounding alone. So count only what stands out from rounding errors: singular values above
# a **tolerance** (the dotted lines), a small share of the largest one. The usual choice is max(m,
# n) times the rounding error of the number format, which PyTorch calls `eps`.

# %%
def numerical_rank(matrix, share=None):
    if share is None:
        share = max(matrix.shape) * torch.finfo(matrix.dtype).eps
    S = torch.linalg.svdvals(matrix)
    return int((S > share * S[0]).sum())


# %% tags=["nbval-check-output"]
for name, product in products.items():
    ranks = [f(product) for f in (numerical_rank, linalg.numerical_rank, torch.linalg.matrix_rank)]
    print(f"{name}: ours {ranks[0]}, the package's {ranks[1]}, PyTorch's {ranks[2]}")

# %% [markdown]
# Here every sensible tolerance gives the same answer, because the values fall so far from number 5
# to number 6. Often there is no such cliff. In the *Hilbert matrix*, the number in row $i$ and
# column $j$ is $1 / (i + j - 1)$. Its first row is 1/1, 1/2, 1/3 and so on, the second starts with
# 1/2. All of its columns are independent, in mathematics.
#
# **Predict.** What will a computer say about its rank, for a matrix of size 12 × 12?

# %%
index = torch.arange(1, 13)
hilbert = 1 / (index[:, None] + index - 1.0)         # (12, 12)
for share in (1e-2, 1e-4, 1e-8):
    print(f"tolerance {share:.0e}:     rank {numerical_rank(hilbert, share)}")
print(f"float32's default:   rank {numerical_rank(hilbert.float())}")
print(f"float64's default:   rank {numerical_rank(hilbert)}")

# %% [markdown]
# **Explain.** On a computer, such a matrix has no single rank. Its singular values fall without a
# gap, and the tolerance decides where the count ends. **Whoever reports a rank must state the
# tolerance.** [Chapter 04](04_the_popular_recipe.ipynb) looks at a training where this matters.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
for name, values in spectra.items():
    assert int((values > 0).sum()) > 90                          # "Nearly all"
    assert values[4] > 50 and values[5] / values[4] < 1e-5       # a cliff
    assert numerical_rank(products[name]) == linalg.numerical_rank(products[name]) == 5
ranks = [numerical_rank(hilbert, share) for share in (1e-2, 1e-4, 1e-8)]
assert ranks == sorted(ranks) and ranks[0] < ranks[1] < ranks[2] < 12
assert numerical_rank(hilbert.float()) < numerical_rank(hilbert)
assert torch.finfo(torch.float32).eps < 2e-7                     # "about 7 digits"

# %% [markdown]
# ## 6. Random matrices have full rank
#
# **Predict.** You draw 10,000 random 8 × 8 matrices. How many have a rank below 8?

# %% tags=["nbval-check-output"]
draws = torch.randn(10_000, 8, 8, generator=generator)
print("rank below 8, at the default tolerance:", int((torch.linalg.matrix_rank(draws) < 8).sum()))

# %% [markdown]
# **Explain.** None. To lose rank, one column would have to be *exactly* a mixture of the others.
# These mixtures form a flat space, like a plane in a room. A random point lies beside the plane,
# perhaps near it, but not exactly on it.
#
# So full rank says little. How large are the singular values? The first layer of a ResNet-18 can be
# laid out as a 64 × 147 matrix, the next ones as 64 × 576 ([chapter
# 03](03_a_convolution_is_a_matrix.ipynb) shows how). Training starts from random numbers.
#
# **Predict.** In a random 64 × 576 matrix, how small is the smallest singular value, as a share of
# the largest? Near 0, about a tenth, about a half?

# %%
sizes = {f"64 × {n}": torch.randn(64, n, generator=generator) for n in (64, 147, 576)}
values = {name: torch.linalg.svdvals(matrix) for name, matrix in sizes.items()}
plots.curves(
    {name: (range(1, 65), s / s[0]) for name, s in values.items()},
    xlabel="index of the singular value",
    ylabel="share of the largest",
    alt="Singular values of three random matrices, as shares of the largest. For 64 × 64 they fall "
    f"from 1 nearly to 0; for 64 × 147 to {values['64 × 147'][-1] / values['64 × 147'][0]:.2f}; "
    f"for 64 × 576 they stay above {values['64 × 576'][-1] / values['64 × 576'][0]:.2f}.",
)

# %%
print("            largest          smallest")
for name, matrix in sizes.items():
    (m, n), s = matrix.shape, values[name]
    low, high = n**0.5 - m**0.5, n**0.5 + m**0.5
    print(f"{name:9} {s[0]:6.1f} ({high:4.1f}) {s[-1]:10.1f} ({low:4.1f})")

# %% [markdown]
# **Explain.** About a half. The wide random matrix takes 576 dimensions to 64. The 64 directions
# that survive are stretched by similar factors, so there is none that one could drop cheaply. The
# numbers in brackets are a famous prediction (Marchenko and Pastur, 1967). Take a large
# $m \times n$ matrix, with $m \le n$, of independent entries with mean 0 and standard deviation
# $\sigma$. Its singular values fill the range
#
# $$\sigma\,(\sqrt{n} - \sqrt{m}) \quad \text{to} \quad \sigma\,(\sqrt{n} + \sqrt{m})$$
#
# The upper end is the **noise edge**. Pure noise hardly ever passes it by more than a few percent.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert int((torch.linalg.matrix_rank(draws) < 8).sum()) == 0
for name, matrix in sizes.items():
    (m, n), s = matrix.shape, values[name]
    assert abs(float(s[0]) / (n**0.5 + m**0.5) - 1) < 0.06
    assert abs(float(s[-1]) - (n**0.5 - m**0.5)) < 0.06 * (n**0.5 + m**0.5)
assert 0.4 < values["64 × 576"][-1] / values["64 × 576"][0] < 0.6        # "About a half"
assert values["64 × 64"][-1] / values["64 × 64"][0] < 0.05               # "nearly to 0"

# %% [markdown]
# ## 7. Noise hides low rank
#
# The next cell makes a picture of a woven cloth, as a sum of three patterns. In each of them all
# rows are multiples of one row, so it has rank 1. (The chess board of section 4 had rank 2. It is
# such a pattern of +½ and −½, plus an even grey of ½: two pieces.) Then comes noise, four times as
# strong as each of the two woven patterns.

# %%
def weave(length, thread):
    return (torch.arange(length) // thread % 2) * 2.0 - 1            # -1, ..., -1, +1, ..., +1, ...


grey = 0.5 * torch.outer(torch.ones(120), torch.ones(180))
fine, wide = (torch.outer(weave(120, t), weave(180, t)) for t in (5, 20))
cloth = grey + 0.25 * fine + 0.25 * wide                             # (120, 180), in [0, 1]
noisy = cloth + torch.randn(120, 180, generator=generator)           # sigma = 1

# %% [markdown]
# **Predict.** The cloth has rank 3. What is the rank of the noisy picture? And can you still see
# the cloth?

# %% tags=["nbval-check-output"]
print("cloth: rank", numerical_rank(cloth))
print("noisy: rank", numerical_rank(noisy))
plots.pictures(
    {"cloth": cloth, "noisy": noisy},
    alt="Left a cloth of a fine and a wide chess pattern. Right the same with noise: hardly "
    "anything of it can be seen.",
)

# %% [markdown]
# **Explain.** Full rank, and the eye sees hardly anything. The noise alone has full rank, and
# adding three patterns does not change that. But look at the singular values, with the noise edge
# as a line.

# %%
S_noisy = torch.linalg.svdvals(noisy)
edge = 120**0.5 + 180**0.5                           # sigma is 1
plots.curves(
    {
        "noisy": (range(1, 19), S_noisy[:18]),
        "noise alone": (range(1, 19), torch.linalg.svdvals(noisy - cloth)[:18]),
    },
    levels={"noise edge": edge},
    xlabel="index of the singular value",
    ylabel="singular value",
    alt=f"The first three singular values of the noisy picture stand above the noise edge of "
    f"{edge:.1f}; all others follow those of the noise, below the edge.",
)

# %% [markdown]
# Three values stand above the edge: the cloth is still there. And the SVD also knows the three
# directions that belong to them, the first columns of $U$. Project onto these, and drop all the
# rest.
#
# **Predict.** How much of the noise will be left?

# %%
U_noisy = torch.linalg.svd(noisy, full_matrices=False).U             # (120, 120)
U3 = U_noisy[:, :3]                                                  # (120, 3)
cleaned = U3 @ U3.T @ noisy                                          # the projector of section 3
plots.pictures(
    {"cloth": cloth, "noisy": noisy, "cleaned": cleaned},
    alt="Three pictures. The cloth: a fine and a wide chess pattern. With noise hardly anything of "
    "it can be seen. Cleaned, both patterns are back, slightly mottled.",
)

# %% tags=["nbval-check-output"]
left_over = (cleaned - cloth).square().sum() / (noisy - cloth).square().sum()
print(f"squared error that is left: {left_over:.0%}")
print(f"3 (m + n) / (m n):          {3 * (120 + 180) / (120 * 180):.0%}")
print("same as linalg.low_rank:", torch.allclose(cleaned, linalg.low_rank(noisy, 3)))

# %% [markdown]
# **Explain.** Nearly all of the squared noise is gone, although nobody said what a cloth looks
# like. Noise spreads evenly over all 120 directions. Three directions known beforehand would hold
# 3/120 of it. But yours were found in the noisy picture, so the noise has turned them a little, and
# that costs some more. Together it is about $3\,(m + n)$ of $m n$: a matrix of rank 3 is made of
# about $3\,(m + n)$ numbers. (The noise was large: its sum of squares was more than twice that of
# the cloth. So the error that is left still has about a third of the size of the cloth.)
#
# The package's `low_rank` does the same. [Chapter 02](02_svd.ipynb) shows that no matrix of rank 3
# is closer to the noisy picture.
#
# **Predict.** What if you keep fewer than three directions, or many more? The next cell draws the
# **relative error**: the size of the difference from the cloth, divided by the size of the cloth.

# %%
kept = range(1, 31)
errors = []
for r in kept:
    copy = linalg.low_rank(noisy, r)
    errors.append(float((copy - cloth).norm() / cloth.norm()))
best = kept[errors.index(min(errors))]
plots.curves(
    {"cleaned": (kept, errors)},
    levels={"best": min(errors)},
    xlabel="rank that is kept",
    ylabel="relative error to the cloth",
    alt=f"The error is smallest at rank {best}. With fewer directions it is larger, and with more "
    "it rises steadily.",
)

# %% [markdown]
# **Explain.** Fewer than three lose a pattern. More than three let noise back in, step by step.
# Here the best rank is where the singular values fall below the noise edge. (Values only just above
# it are mostly noise, too. Gavish and Donoho, 2014, say where exactly to cut. If σ is not known,
# they estimate it from the median of the singular values.)
#
# There is a limit. With the slider, make the noise stronger, and watch how many values stand out.
# (If the notebook does not run, see the table below.)

# %%
def try_noise(sigma):
    drawn = torch.Generator().manual_seed(1)
    loud = cloth + sigma * torch.randn(120, 180, generator=drawn)
    above = int((torch.linalg.svdvals(loud) > 1.05 * sigma * edge).sum())    # clearly above
    clean = linalg.low_rank(loud, 3)
    return loud, above, clean


def look_at_noise(sigma):
    loud, above, clean = try_noise(sigma)
    plots.pictures(
        {f"sigma {sigma}": loud, f"rank 3, {above} stand out": clean},
        alt=f"The cloth with noise {sigma}, and cleaned. {above} values stand out.",
    )


sigmas = FloatSlider(1, min=0.2, max=4, step=0.2, continuous_update=False)
_ = interact(look_at_noise, sigma=sigmas)

# %%
for sigma in (0.2, 1.0, 4.0):
    loud, above, clean = try_noise(sigma)
    error = float((clean - cloth).norm() / cloth.norm())
    print(f"sigma {sigma}: {above} clearly above the edge, relative error {error:4.0%}")

# %% [markdown]
# **Explain.** When a pattern is too weak against the noise, its value is lost among those of the
# noise. An error above 100 % is worse than a black picture.
#
# The pattern's own singular value need not reach the edge, because the noise enlarges it. The limit
# is $\sigma \sqrt[4]{m n}$, here about half the edge (Benaych-Georges and Nadakuditi, 2012). Below
# it, the singular values no longer show the pattern.
#
# Keep this picture in mind: *a few values above an edge, and a long tail like noise.* In [chapter
# 03](03_a_convolution_is_a_matrix.ipynb) you will meet it in the layers of a trained network.
# Whether the tail there is only noise is one of the questions of this course.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert numerical_rank(cloth) == 3 and numerical_rank(noisy) == 120
assert int((S_noisy > 1.05 * edge).sum()) == 3 == best
pure = [torch.linalg.svdvals(torch.randn(120, 180, generator=generator))[0] for _ in range(50)]
assert max(pure) < 1.05 * edge                                       # "hardly ever"
assert 2 < (noisy - cloth).square().sum() / cloth.square().sum() < 3  # "more than twice"
assert 0.03 < left_over < 0.06 and 0.3 < errors[2] < 0.37            # "a third of the cloth"
assert errors == errors[:3] + sorted(errors[3:])
assert errors[0] > errors[1] > errors[2]
assert 0 <= float(cloth.min()) and float(cloth.max()) <= 1
outcomes = {sigma: try_noise(sigma)[1] for sigma in (0.2, 1.0, 4.0)}
assert outcomes[0.2] == outcomes[1.0] == 3 and outcomes[4.0] < 3
assert abs(edge / (120 * 180) ** 0.25 - 2) < 0.02                    # "about half the edge"

# %% [markdown]
# ## Recap
#
# 1. Every matrix rotates, stretches and rotates again; the stretches are its singular values.
# 2. Orthogonal matrices keep lengths and angles. If columns are orthonormal, $Q^\top Q$ is the
#    identity and $QQ^\top$ a projector.
# 3. The rank is the number of dimensions that survive: of independent columns, of independent rows,
#    of singular values that are not zero.
# 4. On a computer the rank depends on a tolerance. State it.
# 5. Random matrices have full rank, and wide ones stretch all directions that survive by similar
#    factors. Noise hides a low rank, and what stands clearly above the noise edge can be recovered
#    in good part.
#
# ## Check yourself
#
# **1.** A 3 × 3 matrix turns the unit ball into a flat disc. What are its rank and its smallest
# singular value?
#
# <details><summary>Answer</summary>
# Rank 2: two dimensions survive. The smallest singular value is 0.
# </details>
# <br>
#
# **2.** All entries of a 100 × 100 matrix are 7. What is its rank? And if you set the diagonal to
# 0?
#
# <details><summary>Answer</summary>
# Rank 1, because all rows are the same. With the zeros on the diagonal, add up all 100 rows: every
# entry is 99 × 7. So the row of 100 sevens is a mixture of the rows. Take one row away from it, and
# a single 7 is left. Such rows can build everything: rank 100. More zeros do not mean a lower rank.
# </details>
# <br>
#
# **3.** The columns of $U$, of shape (600, 20), are orthonormal. Which of $U^\top U$ and $U U^\top$
# is an identity, and what is the rank of the other one?
#
# <details><summary>Answer</summary>
# $U^\top U$ is the identity, 20 × 20. $U U^\top$ is 600 × 600 and has rank 20: it is the projector
# on the 20 columns.
# </details>
# <br>
#
# **4.** A colleague trains a layer whose matrix had rank 8, and measures rank 64 after one step.
# Has the layer learned 56 new directions?
#
# <details><summary>Answer</summary>
# Not necessarily. A tiny change in every number is enough for full rank. Ask for the tolerance, and
# look at the singular values themselves.
# </details>

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
sevens = torch.full((100, 100), 7.0)
assert numerical_rank(sevens) == 1
assert numerical_rank(sevens - torch.diag(sevens.diag())) == 100
eight = linalg.low_rank(sizes["64 × 576"], 8)
nudged = eight + 1e-4 * torch.randn(64, 576, generator=generator)
assert numerical_rank(eight) == 8 and numerical_rank(nudged) == 64
assert S.shape == (2,) and U.shape == Vh.shape == (2, 2)         # the slider of section 2 lives on

# %% [markdown]
# ## Now you
#
# - In section 1, find a matrix $A$ that turns the circle into a piece of a line. What do its two
#   columns have in common?
# - In section 3, multiply two orthogonal matrices. Is the product orthogonal? Check it with
#   `orthogonality_error`, then say why.
# - In section 7, weave a fourth pattern into the cloth, with the factor 0.05 instead of 0.25. Its
#   own singular value is $0.05 \sqrt{m n}$. At which noise should you lose it, and at which do you?
#
# **The way on.** You have seen that a few directions can hold a whole picture. [Chapter
# 02](02_svd.ipynb) asks for the best of all such small copies. [Chapter
# 03](03_a_convolution_is_a_matrix.ipynb) looks for matrices in a network, and finds the noise edge
# again.
#
# ## References
#
# - G. W. Stewart, *On the early history of the singular value decomposition*, SIAM Review, 1993.
# - G. H. Golub and C. F. Van Loan, *Matrix computations*, 4th edition, Johns Hopkins University
#   Press, 2013. (numerical rank)
# - V. A. Marchenko and L. A. Pastur, *Distribution of eigenvalues for some sets of random
#   matrices*, Mathematics of the USSR-Sbornik, 1967.
# - M. Gavish and D. L. Donoho, *The optimal hard threshold for singular values is 4/√3*, IEEE
#   Transactions on Information Theory, 2014. (how to clean a noisy matrix)
# - F. Benaych-Georges and R. R. Nadakuditi, *The singular values and vectors of low rank
#   perturbations of large rectangular random matrices*, Journal of Multivariate Analysis, 2012.
#   (which patterns noise hides)
