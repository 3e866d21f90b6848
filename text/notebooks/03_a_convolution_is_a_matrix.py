# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 03 · A convolution is a matrix
#
# **The question:** Where are the matrices in a ResNet-18?
#
# **After this chapter you can**
#
# - write a convolution as one matrix product, with stride and padding;
# - lay a kernel out as a matrix in four ways, and say the full rank of each;
# - list the 20 convolutions of a ResNet-18, with parameters and MACs;
# - read filters and feature maps;
# - compare a trained kernel with a random one, by their singular values.
#
# **You need:** a picture of what a convolution does, rank and the noise edge ([chapter
# 01](01_rank_and_orthogonality.ipynb)), and the singular values of a matrix ([chapter
# 02](02_svd.ipynb)).
#
# **Time:** 35 minutes to read, under 1 minute to run.

# %%
import importlib.util

if importlib.util.find_spec("lowrank_course") is None:  # on Colab, in a copy of the course
    print("Installing the course's package")
    # %pip install --quiet --no-deps .. tensorly

# %%
from statistics import median

import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F
from torchvision.utils import make_grid

from lowrank_course import data, layers, linalg, load_resnet18, models, plots
from lowrank_course.measure import count_macs, count_parameters, layer_shapes

plots.style()
_ = torch.set_grad_enabled(False)                    # nothing is trained in this chapter
_ = torch.manual_seed(0)

# %% [markdown]
# ## 1. One patch, one column
#
# A convolution slides a small kernel over an image. At each place it multiplies the patch of the
# image under the kernel with the kernel's numbers, and adds up. The result is one number of the
# output.
#
# Start small: a handwritten 3 of 8 × 8 pixels, and a 3 × 3 kernel that finds edges.
#
# **Predict.** The kernel fits into the image at how many places?

# %%
digit = torch.tensor(load_digits().images[3]).float() / 16               # (8, 8), from 0 to 1
kernel = torch.tensor([[1.0, 2.0, 1.0], [0.0, 0.0, 0.0], [-1.0, -2.0, -1.0]])

output = F.conv2d(digit[None, None], kernel[None, None])[0, 0]
print("places:", tuple(output.shape))

# %% [markdown]
# **Explain.** 6 × 6: the kernel cannot stand over the border. Now take the nine pixels of each
# patch and write them as a column. 36 patches give a matrix of 9 × 36. Write the kernel as a row of
# nine numbers, in the same order.

# %% tags=["nbval-check-output"]
patches = torch.stack(
    [digit[i : i + 3, j : j + 3].flatten() for i in range(6) for j in range(6)], dim=1
)                                                    # (9, 36)
row = kernel.flatten()                               # (9,)
print("the row times the patches is the output:", torch.allclose(row @ patches, output.flatten()))


# %%
def tiles(axes, numbers, title, low, high, frame=None):
    axes.imshow(numbers, vmin=low, vmax=high)
    axes.set(title=title, xticks=[], yticks=[])
    if frame is not None:
        x, y, wide, tall = frame
        style = {"fill": False, "linewidth": 3, "edgecolor": plots.COLOURS[1]}
        axes.add_patch(Rectangle((x - 0.5, y - 0.5), wide, tall, **style))


# %%
def look(place):
    figure, (i, j) = Figure(figsize=(10, 4.2)), divmod(place, 6)
    grid = figure.subplots(2, 3, width_ratios=[1, 2, 2], height_ratios=[1.8, 1])
    tiles(grid[0, 0], kernel, "kernel", -2, 2)
    tiles(grid[0, 1], digit, "image", 0, 1, (j, i, 3, 3))
    tiles(grid[0, 2], output, "output", -4, 4, (j, i, 1, 1))
    tiles(grid[1, 0], row[None], "kernel: a row", -2, 2)
    tiles(grid[1, 1], patches, "patches: one in each column", 0, 1, (place, 0, 1, 9))
    tiles(grid[1, 2], output.reshape(1, 36), "output: a row", -4, 4, (place, 0, 1, 1))
    grid[1, 2].set_aspect(3)                         # 36 numbers in a row are easier to see
    alt = f"Above: kernel, image and output, patch {place} framed. Below the same as a product: "
    plots.show(figure, alt + f"the kernel, the patches with column {place} framed, the output.")


look(15)

# %% [markdown]
# Above is the convolution, below the same numbers as a matrix product. Move the slider from patch
# to patch. (It works only while the notebook runs. The picture above is one of its positions.) In
# the image and the patches black is 0 and white is 1. The kernel and the output have negative
# numbers as well. There a middle grey is 0, and what is darker is negative.

# %%
from ipywidgets import IntSlider, interact

_ = interact(look, place=IntSlider(15, 0, 35, continuous_update=False))

# %% [markdown]
# With $C$ input channels, a patch is $C k k$ numbers long: the patches of all channels stacked.
# With $O$ output channels, the kernel has one such row for each of them. So for $P$ places:
#
# $$\underbrace{W}_{O \times C k k} \quad \underbrace{X}_{C k k \times P} \; = \;
# \underbrace{Y}_{O \times P}$$
#
# **That is the matrix.** (In mathematics a convolution also flips the kernel. PyTorch does not.)

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert output.shape == (6, 6) and patches.shape == (9, 36)
assert torch.allclose(patches, F.unfold(digit[None, None], 3)[0])
assert 0 <= digit.min() and digit.max() <= 1 and output.abs().max() <= 4

# %% [markdown]
# ## 2. Unfold, with stride and padding
#
# A loop over all patches is slow. Turn it round, and loop over the $k^2$ numbers of the kernel:
# number $(i, j)$ meets the image shifted by $(i, j)$. Before that, **padding** adds zeros around
# the image. **Stride** then keeps only some pixels of each shifted image: with stride 2, every
# second row and column.

# %%
def unfold(x, k, stride=1, padding=0):               # x (N, C, H, W)
    x = F.pad(x, [padding] * 4)
    high, wide = ((side - k) // stride + 1 for side in x.shape[2:])
    views = []
    for i in range(k):
        for j in range(k):                           # what the kernel's number (i, j) meets
            rows, columns = slice(i, i + stride * high, stride), slice(j, j + stride * wide, stride)
            views.append(x[:, :, rows, columns])     # (N, C, high, wide)
    patches = torch.stack(views, dim=2)              # (N, C, k*k, high, wide)
    return patches.flatten(1, 2).flatten(2)          # (N, C*k*k, places)


def convolve(conv, x):
    X = unfold(x, conv.kernel_size[0], conv.stride[0], conv.padding[0])
    return conv.weight.flatten(1) @ X                # (O, C*k*k) @ (N, C*k*k, P) -> (N, O, P)


# %% [markdown]
# Try it on a real network. The course ships a trained ResNet-18 for photographs and one for digits.
# The outputs on this page were made with the first, for Imagenette, ten kinds of photographs. If
# these photographs are not available, `find_data` chooses the one for handwritten digits. That has
# a quarter of the channels in every layer, so your numbers differ. The text says where that
# matters.
#
# **Predict.** The network has strides of 1 and 2, paddings of 0, 1 and 3, kernels of 1, 3 and 7. On
# how many of its convolutions do these few lines agree with PyTorch?

# %%
name = data.find_data()
trained = load_resnet18(name)
convs = {n: layer for n, layer in trained.named_modules() if isinstance(layer, nn.Conv2d)}

agree = []
for conv in convs.values():
    x = torch.randn(2, conv.in_channels, 16, 16)     # even: with stride 2 one row is left over
    wanted = conv(x).flatten(2)                      # (2, O, places)
    agree.append(torch.allclose(convolve(conv, x), wanted, rtol=1e-3, atol=1e-4))
print(f"{name}: {sum(agree)} of {len(convs)} convolutions agree")

# %% tags=["nbval-check-output"]
x = torch.randn(1, 3, 16, 16)
X = unfold(x, 7, stride=2, padding=3)
print("same as PyTorch's unfold:", torch.equal(X, F.unfold(x, 7, stride=2, padding=3)))
print(f"image {x.numel()} numbers, patches {X.numel()}: {X.numel() / x.numel():.1f} times as many")

# %% [markdown]
# **Explain.** All of them. Patches overlap, so the matrix of patches repeats each pixel many times:
# with stride 1 about $k^2$ times. (Here the stride of 2 keeps every fourth patch only: 49 / 4 is
# about 12.) Many fast libraries do the same product, but build the patches piece by piece, in the
# small, fast memory of the processor.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert len(convs) == 20 and all(agree)
assert {conv.stride[0] for conv in convs.values()} == {1, 2}
assert {conv.padding[0] for conv in convs.values()} == {0, 1, 3}
assert {conv.kernel_size[0] for conv in convs.values()} == {1, 3, 7}
assert all(conv.bias is None and conv.kernel_size[0] == conv.kernel_size[1]
           for conv in convs.values())
ones = F.unfold(torch.ones(1, 1, 40, 40), 3, padding=1)
assert 8.9 < ones.numel() / 1600 <= 9
dense = nn.Conv2d(2, 3, 3, stride=2, padding=2).double()
far = torch.randn(1, 2, 10, 12).double()
assert torch.allclose(convolve(dense, far) + dense.bias[:, None], dense(far).flatten(2))

# %% [markdown]
# ## 3. Four ways to lay a kernel out
#
# The kernel has four axes: output channel $O$, input channel $C$, and $k$ rows by $k$ columns.
# A matrix has two sides. Which axes go to which side is your choice, and each choice is another
# matrix, often with another rank.

# %%
layouts = {
    "channel": lambda W: W.flatten(1),                                   # O × C k k
    "input": lambda W: W.transpose(0, 1).flatten(1),                     # C × O k k
    "spatial": lambda W: W.permute(1, 2, 0, 3).flatten(2).flatten(0, 1),     # C k × O k
    "position": lambda W: W.permute(2, 3, 0, 1).flatten(2).flatten(0, 1),    # k k × O C
}

# %% [markdown]
# Here is a tiny kernel with three output channels (colours), two input channels (strong and pale)
# and 3 × 3 positions (numbers).

# %%
numbers = torch.arange(3 * 2 * 3 * 3).reshape(3, 2, 3, 3)                # (O, C, k, k)


def lay_out(axes, layout):
    matrix = layouts[layout](numbers)
    m, n = matrix.shape
    for y in range(m):
        for x in range(n):
            o, c, i, j = torch.nonzero(numbers == matrix[y, x])[0].tolist()
            style = {"facecolor": plots.COLOURS[o], "alpha": (1, 0.4)[c], "edgecolor": "white"}
            axes.add_patch(Rectangle((x, y), 1, 1, linewidth=2, **style))
            place = {"color": ("white", "black")[c], "ha": "center", "va": "center"}
            axes.text(x + 0.5, y + 0.55, f"{3 * i + j + 1}", fontsize=10, **place)
    axes.set(xlim=(0, n), ylim=(m, 0), aspect="equal", title=f"{layout}: {m} × {n}")
    axes.axis("off")


# %%
figure = Figure(figsize=(11, 4.4))
for corner, layout in zip((221, 223, 222, 224), layouts, strict=True):
    lay_out(figure.add_subplot(corner), layout)
plots.show(
    figure,
    "The same 54 numbers as four matrices. Channel: 3 rows, one for each colour. Input: 2 rows, "
    "one strong and one pale. Spatial: 6 × 9, in which each 3 × 3 block is one pair of channels. "
    "Position: 9 rows, one for each number.",
)

# %% [markdown]
# - **channel**: one row for each output channel. This is the $W$ of section 1.
# - **input**: one row for each input channel.
# - **spatial**: each $k \times k$ block belongs to one input and one output channel, as you would
#   draw it.
# - **position**: one row for each place in the kernel.
#
# The package has the two that it needs later. Both agree:

# %% tags=["nbval-check-output"]
W = torch.randn(64, 32, 3, 3)
print("channel:", torch.equal(layouts["channel"](W), layers.channel_matrix(W)))
print("spatial:", torch.equal(layouts["spatial"](W), layers.spatial_matrix(W)))

# %% [markdown]
# The first 3 × 3 convolution of a ResNet-18, `layer1.0.conv1`, has 64 input and 64 output channels:
# 36,864 numbers.
#
# **Predict.** What is the largest rank that it can have, in each layout?

# %% tags=["nbval-check-output"]
W = models.resnet18().layer1[0].conv1.weight         # untrained, (64, 64, 3, 3)
for layout, lay in layouts.items():
    m, n = lay(W).shape
    print(f"{layout:8} {m:4d} × {n:<5d} full rank {min(m, n)}")

# %% [markdown]
# **Explain.** 64, 64, 192 and 9: the smaller side decides. So "rank 8" says nothing until you know
# the layout. Of 9 it is nearly all, of 192 very little.
#
# The popular recipe that this course starts from cuts this layer and the next to rank 8, in the
# channel layout. Its comment says: "half of the original rank".
#
# **Predict.** What share of the full rank is 8? And how much of a *random* matrix does it hold?
# (The recipe cuts before training. **Energy** is the share of the squared singular values that the
# first ones hold, see chapter 02.)

# %%
S = torch.linalg.svdvals(layouts["channel"](W))      # of the untrained kernel
held = linalg.energy(S)[7]
print(f"rank 8 is 1/{64 // 8} of the full rank, and holds {held:.0%} of the energy")

# %% [markdown]
# **Explain.** An eighth, and about a fifth of the energy. Wide random matrices leave nothing that
# could be dropped cheaply ([chapter 01](01_rank_and_orthogonality.ipynb)). [Chapter
# 04](04_the_popular_recipe.ipynb) looks at what became of the recipe.
#
# | layout | matrix | full rank, 64 → 64, 3 × 3 | its two factors are |
# |---|---|---|---|
# | channel | $O \times C k k$ | 64 | a $k \times k$ convolution, then $1 \times 1$ |
# | input | $C \times O k k$ | 64 | $1 \times 1$, then $k \times k$ |
# | spatial | $C k \times O k$ | 192 | $k \times 1$, then $1 \times k$ |
# | position | $k k \times O C$ | 9 | the same few filters on each channel, then $1 \times 1$ |
#
# Why the factors are convolutions again is the subject of [chapter 05](05_factorizing.ipynb).
#
# ### A fifth matrix, not to be mixed up
#
# A convolution takes a whole image to a whole output. That is linear, so it is a matrix, too: one
# column for each pixel. Feed it images with a single white pixel, and you see its columns.
#
# **Predict.** The 3 × 3 edge kernel in the channel layout is a single row, so it has rank 1. What
# is the rank of the whole map from 64 pixels to 36?

# %%
single = torch.eye(64).reshape(64, 1, 8, 8)          # 64 images, one white pixel each
whole = F.conv2d(single, kernel[None, None]).flatten(1).T                # (36, 64)
print("rank of the kernel, as a 1 × 9 matrix: ", linalg.numerical_rank(row[None]))
print("rank of the whole map, a 36 × 64 matrix:", linalg.numerical_rank(whole))

# %%
figure = Figure(figsize=(6.6, 4))
axes = figure.subplots()
drawn = axes.pcolormesh(whole, cmap="RdBu_r", vmin=-2, vmax=2)
axes.set(xlabel="pixel of the image", ylabel="pixel of the output", aspect="equal")
axes.invert_yaxis()
axes.grid(False)
figure.colorbar(drawn, label="weight", shrink=0.7)
plots.show(
    figure,
    "The whole map as a picture of 36 × 64 numbers, nearly all 0. The same six weights appear in "
    "every row, each row shifted against the one above, so that they form slanted bands.",
)

# %% [markdown]
# **Explain.** 36, the full rank. The whole map repeats the same few weights again and again,
# shifted. **The rank of the kernel is not the rank of the whole map.** A kernel of low rank makes
# the output *channels* mixtures of a few, so the layer can be split into two thin ones. In this
# course "the matrix of a layer" is always the small one.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
for lay in layouts.values():
    assert torch.allclose(lay(W).norm(), W.norm())
assert [min(lay(W).shape) for lay in layouts.values()] == [64, 64, 192, 9] and W.numel() == 36_864
assert all(linalg.numerical_rank(lay(W)) == min(lay(W).shape) for lay in layouts.values())
assert 0.17 < held < 0.24                                        # "about a fifth"
assert linalg.numerical_rank(whole) == 36 and linalg.numerical_rank(row[None]) == 1
assert torch.allclose(whole @ digit.flatten(), output.flatten())
assert ((whole != 0).sum(1) == 6).all() and (whole == 0).double().mean() > 0.9   # "nearly all 0"
tiny = torch.arange(54).reshape(3, 2, 3, 3)
assert layouts["spatial"](tiny)[:3, :3].tolist() == tiny[0, 0].tolist()          # a filter as it is

# %% [markdown]
# ## 4. Where the matrices are
#
# Now all 20 convolutions. For the costs you need the size of each layer's output. A **hook** is a
# function that PyTorch calls whenever a layer has run.

# %%
def output_sizes(model, image):
    found, hooks = {}, []
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d):

            def note(module, given, output, name=name):
                found[name] = tuple(output.shape[2:])            # (high, wide)

            hooks.append(layer.register_forward_hook(note))
    model(image)
    for hook in hooks:
        hook.remove()
    return found


# %%
image = torch.zeros(1, 3, trained.evaluation_size, trained.evaluation_size)
sizes = output_sizes(trained, image)
known = layer_shapes(trained, image)         # the package's own, (input, output) of each call
print("both agree:", all(known[n][0][1][2:] == size for n, size in sizes.items()))

# %% [markdown]
# Each weight is used once at every place of the output. One use is a multiplication and an
# addition, a **MAC**. So the MACs of a layer are its weights times its places.
#
# The names: `conv1` is the first convolution, the **stem**. `layer1` to `layer4` are four
# **stages** of four 3 × 3 convolutions each. A **shortcut** leads around every two of them: what
# went in is added to what comes out. Where the channels and the size change on the way, the
# shortcut has a 1 × 1 convolution, a `downsample`, that changes them, too.
#
# **Predict.** Which part of the network has most of the parameters: the early or the late layers?
# And most of the MACs?

# %%
parameters = {n: conv.weight.numel() for n, conv in convs.items()}
macs = {n: parameters[n] * sizes[n][0] * sizes[n][1] for n in convs}
print("convolution           kernel (O, C, k, k)    output      parameters         MACs")
for n, conv in convs.items():
    shape, (high, wide) = str(tuple(conv.weight.shape)), sizes[n]
    print(f"{n:21} {shape:19} {high:6d} × {wide:<4d} {parameters[n]:11,} {macs[n]:12,}")

# %%
stages = ["stem", "layer1", "layer2", "layer3", "layer4"]
stage_of = {n: n.split(".")[0].replace("conv1", "stem") for n in convs}
members = {s: [i for i, n in enumerate(convs) if stage_of[n] == s] for s in stages}
middles = [sum(places) / len(places) for places in members.values()]     # where its name stands

costs = {"million parameters": parameters, "million MACs": macs}
share = {
    s: [sum(c[n] for n in convs if stage_of[n] == s) / sum(c.values()) for c in costs.values()]
    for s in stages
}

# %%
figure = Figure(figsize=(9, 4.6))
panels = figure.subplots(2, 1, sharex=True)
colours = [plots.COLOURS[stages.index(stage)] for stage in stage_of.values()]
for axes, (unit, cost) in zip(panels, costs.items(), strict=True):
    axes.bar(range(20), [value / 1e6 for value in cost.values()], color=colours)
    axes.set(ylabel=unit, xticks=middles, xticklabels=stages, axisbelow=True)
    axes.grid(visible=False, axis="x")
    axes.tick_params(axis="x", length=0)
plots.show(
    figure,
    "Two rows of 20 bars. Parameters: almost nothing in the stem and layer1, and "
    f"{share['layer4'][0]:.0%} in layer4. MACs: most bars from layer1 to layer4 are equally high, "
    "the first of layer2, layer3 and layer4 is half as high, "
    f"the stem's {macs['conv1'] / macs['layer1.0.conv1']:.1f} times as high as those of layer1; "
    "the three smallest ones are 1 × 1 convolutions.",
)

# %%
for stage, (of_parameters, of_macs) in share.items():
    print(f"{stage:7} {of_parameters:6.1%} of the parameters, {of_macs:6.1%} of the MACs")

# %% [markdown]
# **Explain.** Late layers hold the parameters; the MACs are spread evenly. From stage to stage the
# channels double, on both sides, so a kernel has four times the numbers. The image halves in height
# and width, so they are used at a quarter of the places. The two cancel. (The first 3 × 3
# convolution of layer2, layer3 and layer4 has half of the MACs: its outputs have doubled, its
# inputs not yet. With the digits the stem stands out: it has a quarter of the filters, but still
# three input channels, so it costs four times as much as a layer of layer1.)
#
# **To save parameters, work on the last layers. To save MACs, work on all.**
#
# One matrix is still missing: the linear layer at the end, which is a matrix already, with one row
# for each of the ten classes. Is anything else forgotten? Compare with the totals of the whole
# network.

# %%
fc = trained.fc.weight.numel()                       # the linear layer at the end, used once
print(f"MACs, with the linear layer: {sum(macs.values()) + fc:,}")
print(f"MACs, the package's count:   {count_macs(trained, image):,}")
total = count_parameters(trained)
print(f"the convolutions hold {sum(parameters.values()) / total:.1%} of all parameters")

# %% [markdown]
# **Explain.** The MACs agree. The parameters that are missing are those of the linear layer and of
# the **batch norms**, which have two numbers for each channel. The work of the batch norms, of ReLU
# and of the additions at the shortcuts is not counted as MACs: it is the custom to count
# convolutions and matrix products only. The rest costs little arithmetic, but some time ([chapter
# 10](10_does_it_run_faster.ipynb)).

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert sum(macs.values()) + fc == count_macs(trained, image)
assert sum(parameters.values()) > 0.97 * total and trained.fc.out_features == 10
assert share["layer4"][0] > 0.7 and share["stem"][0] + share["layer1"][0] < 0.03
assert all(0.18 < share[stage][1] < 0.32 for stage in stages[1:])        # "spread evenly"
assert parameters["layer4.1.conv2"] == 4**3 * parameters["layer1.1.conv2"]
assert macs["layer4.1.conv2"] == macs["layer1.1.conv2"]                  # "The two cancel"
assert sum(conv.kernel_size == (1, 1) for conv in convs.values()) == 3

# %% [markdown]
# ## 5. The filters of the stem, as pictures
#
# The stem looks at the colours of the image. Each of its output channels has a filter of 7 × 7
# pixels with red, green and blue: a small picture. Beside it, the stem of a network that was never
# trained.

# %%
untrained = models.resnet18(width=trained.conv1.out_channels)


def mosaic(filters, columns):                        # (n, 3, 7, 7)
    return make_grid(filters, columns, padding=1, normalize=True, scale_each=True, pad_value=1)


# %%
columns = min(6, int(trained.conv1.out_channels**0.5))
figure = Figure(figsize=(5.6, 3.1))
for axes, (title, network) in zip(
    figure.subplots(1, 2), {"trained": trained, "random": untrained}.items(), strict=True
):
    first = network.conv1.weight[: columns**2]
    axes.imshow(mosaic(first, columns).permute(1, 2, 0), interpolation="nearest")
    axes.set_title(title)
    axes.axis("off")
plots.show(
    figure,
    "Two squares of small coloured filters. Random: coloured noise only. Trained: "
    + ("edges, stripes and spots of colour." if name == "imagenette" else
       "coloured noise, in some filters with a bright and a dark side."),
)

# %% [markdown]
# The trained filters show edges, stripes, spots of colour: these are the patterns that the network
# looks for first. In some filters you may still see noise. (With the digits, which are grey, you
# see less: in some filters one side is brighter than the other.)
#
# In the channel layout each filter is one row of a matrix. Cut this matrix to rank $r$: then all
# filters are mixtures of only $r$ patterns.
#
# **Predict.** At which rank will you recognise the filters? Here are the first 16.

# %%
stem = trained.conv1.weight                          # (O, 3, 7, 7)
M = layers.channel_matrix(stem)                      # (O, 147)


def at_rank(rank):
    copy = linalg.low_rank(M, rank).reshape(stem.shape)
    return mosaic(copy[:16], columns=4).permute(1, 2, 0)


full = min(M.shape)
chosen = [1, full // 16 + 1, full // 5, full]
plots.pictures(
    {f"rank {r}": at_rank(r) for r in chosen},
    alt=f"16 filters at ranks {', '.join(map(str, chosen))}. At rank 1 all show the same pattern "
    "or its negative. With each rank more patterns appear, and the last ones add mostly noise.",
)

# %% [markdown]
# Go through the ranks yourself. (The slider works only while the notebook runs. The row above shows
# four of its positions.)

# %%
def compare(rank):
    plots.pictures(
        {f"rank {rank}": at_rank(rank), "as they are": at_rank(full)},
        alt=f"16 filters of the stem at rank {rank}, beside the same filters as they are.",
    )


_ = interact(compare, rank=IntSlider(full // 5, 1, full, continuous_update=False))

# %% [markdown]
# **Explain.** At rank 1 there is one pattern and its negative. On Imagenette five are not
# enough yet; a dozen bring back most of what one sees. The many after those sharpen some edges, and
# add much that looks like noise, as with the cloth in chapter 01.
#
# So on Imagenette the stem is nearly a matrix of low rank. (With the digits it has 16 filters only,
# and three patterns do not yet bring them back.) Are the other 19 convolutions, too?

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
first = linalg.low_rank(M, 1)
cosines = F.normalize(first, dim=1) @ F.normalize(first, dim=1)[0]
assert torch.allclose(cosines.abs(), torch.ones(len(M)), atol=1e-3)      # "and its negative"
S_stem = torch.linalg.svdvals(M)
S_random = torch.linalg.svdvals(layers.channel_matrix(untrained.conv1.weight))
if full == 64:                                                           # that for photographs
    assert linalg.energy(S_stem)[4] < 0.5 < 0.8 < linalg.energy(S_stem)[11]    # "five", "a dozen"
assert linalg.energy(S_stem)[full // 5] > linalg.energy(S_random)[full // 5] + 0.15
assert linalg.rank_for_energy(S_stem, 0.9) < 0.85 * linalg.rank_for_energy(S_random, 0.9)

# %% [markdown]
# ## 6. The spectra of all 20
#
# The **spectrum** of a matrix is the list of its singular values. In chapter 01 you saw how far the
# spectrum of pure noise reaches: up to the **noise edge**, $\sigma(\sqrt{m} + \sqrt{n})$, for an
# $m \times n$ matrix of numbers with standard deviation $\sigma$. Divide by it, and all layers can
# be compared: the largest singular value of random numbers is then about 1.

# %%
def above_noise(W):
    matrix = layers.channel_matrix(W)                # (m, n)
    m, n = matrix.shape
    return torch.linalg.svdvals(matrix) / (matrix.std() * (m**0.5 + n**0.5))


spectra = {"random": {}, "trained": {}}
for key, network in {"random": untrained, "trained": trained}.items():
    for n in convs:
        spectra[key][n] = above_noise(network.get_submodule(n).weight)

# %% [markdown]
# **Predict.** Training starts from random numbers. What will it do to the spectra? Sketch one:
# where does it leave the curve of the random layer, at its upper end, at its lower end, or
# everywhere?

# %%
def place_of(n):                                     # its row and column in the picture
    if n == "conv1":
        return 0, 4                                  # the stem: layer1 has no downsample there
    stage, block, kind = n.split(".")[:3]
    return int(stage[-1]) - 1, 4 if kind == "downsample" else 2 * int(block) + int(kind[-1]) - 1


clear = {key: {n: int((S > 1.05).sum()) for n, S in of.items()} for key, of in spectra.items()}
above = sum(count > 0 for count in clear["trained"].values())
stem_S = spectra["trained"]["conv1"]
lines = {"random": {"color": plots.GREY, "linestyle": "--"},
         "trained": {"color": plots.COLOURS[0], "linestyle": "-"}}


# %%
figure = Figure(figsize=(11, 7.2))
grid = figure.subplots(4, 5, sharex=True, sharey=True)
for n in convs:
    axes = grid[place_of(n)]
    for key, line in lines.items():
        S = spectra[key][n]
        axes.plot([100 * (i + 1) / len(S) for i in range(len(S))], S, label=key, **line)
    axes.axhline(1, color=plots.COLOURS[1], linewidth=1.5, linestyle=":", label="noise edge")
    axes.set_title("conv1, the stem" if n == "conv1" else n.removesuffix(".0"), fontsize=11)
    axes.set(yscale="log", yticks=(0.1, 1, 10), yticklabels=("0.1", "1", "10"))
figure.legend(*grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
figure.supxlabel("index of the singular value (% of the full rank)")
figure.supylabel("singular value (noise edge = 1)")
plots.show(
    figure,
    f"Twenty small diagrams, one for each convolution. In {above} of them the trained curve starts "
    "clearly above the noise edge; then it runs below the random one in a long tail. The stem "
    f"differs most: it starts at {stem_S[0]:.1f} and falls to {stem_S[-1]:.2f}.",
)

# %%
print("singular values more than 5 % above the noise edge")
for key, counts in clear.items():
    touched = sum(count > 0 for count in counts.values())
    print(f"{key:8} {sum(counts.values()):4d}, in {touched} of 20 layers")

# %%
size = {key: [float(network.get_submodule(n).weight.norm()) for n in convs]
        for key, network in {"random": untrained, "trained": trained}.items()}
ratio = [t / r for t, r in zip(size["trained"], size["random"], strict=True)]
print("size (Frobenius norm) of the trained kernels, if the random one has size 1:")
print(f"stem {ratio[0]:.2f}, the others {min(ratio[1:]):.2f} to {max(ratio[1:]):.2f}")


# %% [markdown]
# **Explain.** The vertical axis is logarithmic, so equal steps are equal ratios. In *shape*, the
# trained curve leaves the random one at both ends. At the upper end some directions rise out of the
# noise, farthest in layer4. At the lower end the values sink. But outside the stem the second half
# of them on average keeps more than half of its random height. (Each matrix is divided by its own
# $\sigma$. So what the top gains, the tail must lose.) Only the stem has come close to a low rank.
# (With the digits, whose images are simple, fewer values stand out, and in fewer layers. The tail
# hardly sinks, and even the stem is only somewhat nearer to a low rank.)
#
# In *size*, something else happened. Every step of the training also makes the weights a little
# smaller (**weight decay**). That has shrunk the kernels (with the digits only a little). Only the
# stem has clearly grown. A kernel's size hardly matters here: the batch norm behind it divides by
# the size of the output. That is why you may compare shapes.
#
# Now in numbers: how much of its full rank does each layer need for 90 % of the energy?
#
# **Predict.** A random layer needs about 80 %, each of the three shortcuts somewhat less, and with
# photographs also the stem. And a trained one?

# %%
def needed(S):
    return 100 * linalg.rank_for_energy(S, 0.9) / len(S)


need = {key: [needed(S) for S in of.values()] for key, of in spectra.items()}
middle = median(need["trained"])

# %%
figure = Figure(figsize=(9, 3.8))
axes = figure.subplots()
axes.vlines(range(20), need["trained"], need["random"], "#C8C8C8", linewidth=4, zorder=2)
dots = {"s": 60, "zorder": 3}                        # before the grid
axes.scatter(range(20), need["random"], marker="s", color=plots.GREY, label="random", **dots)
axes.scatter(range(20), need["trained"], color=plots.COLOURS[0], label="trained", **dots)
axes.set(ylabel="rank for 90 % energy\n(% of the full rank)", ylim=(0, 100))
axes.set(xticks=middles, xticklabels=stages, xlabel="convolution, from first to last")
axes.grid(visible=False, axis="x")
axes.tick_params(axis="x", length=0)
for places in list(members.values())[1:]:            # a line between two stages
    axes.axvline(places[0] - 0.5, color="#C8C8C8", linewidth=1)
figure.legend(loc="outside upper center", ncols=2)
plots.show(
    figure,
    f"For each of 20 convolutions the rank that holds 90 % of the energy. The stem falls from "
    f"{need['random'][0]:.0f} to {need['trained'][0]:.0f} %. The others change less; the median "
    f"trained layer needs {middle:.0f} %.",
)

# %%
print(f"stem:   random {need['random'][0]:.0f} %, trained {need['trained'][0]:.0f} %")
print(f"median: random {median(need['random']):.0f} %, trained {middle:.0f} %")
ranks = [linalg.numerical_rank(conv.weight.flatten(1)) for conv in convs.values()]
fulls = [min(conv.weight.flatten(1).shape) for conv in convs.values()]
of_full_rank = sum(r == f for r, f in zip(ranks, fulls, strict=True))
print(f"numerical rank (default tolerance) is full in {of_full_rank} of 20 layers")

# %% [markdown]
# **Explain.** Less, but not little (with the digits hardly less, and a few layers even need more):
# apart from the stem, each layer still needs about half of its rank or more. **The kernels of this
# trained network are hardly low-rank.** Does another layout help? Ranks of different layouts cannot
# be compared, but costs can: the two factors have $r\,(m + n)$ numbers.

# %%
example = "layer1.1.conv1"
K = convs[example].weight                            # (O, C, k, k)
print(f"{example}: what 90 % of the energy costs, as a share of the kernel")
for layout, lay in layouts.items():
    (m, n), r = lay(K).shape, linalg.rank_for_energy(torch.linalg.svdvals(lay(K)), 0.9)
    print(f"{layout:8} rank {r:3d} of {min(m, n):3d}: {r * (m + n) / K.numel():4.0%}")

# %%
_ = torch.manual_seed(0)                             # the training began from this seed
start = models.resnet18(width=trained.conv1.out_channels)
left = []
for n in convs:
    W0, W1 = start.get_submodule(n).weight.flatten(), convs[n].weight.flatten()
    left.append(float(F.cosine_similarity(W0, W1, dim=0)) ** 2)
print("share of a kernel's energy that is still its own random start:")
print(f"stem {left[0]:.0%}, the others {min(left[1:]):.0%} to {max(left[1:]):.0%}")

# %% [markdown]
# **Explain.** In this layer every layout still needs more than half of the numbers, and 90 % of the
# energy would be an error of up to 32 % ([chapter 02](02_svd.ipynb)).
#
# Is the tail only noise that one can cut off? The second cell compares each kernel with the random
# numbers from which its training began. (It takes both as long vectors, and projects the kernel
# onto its start. The squared cosine of the angle between them is the share of the energy that is
# left.) Outside the stem, a part of it is still that start, in one layer a small one, in another
# more than half (with the digits most of it). So a part of the long tail was probably never
# learned. But the layers were trained together with it, so the network may still use it. [Chapter
# 05](05_factorizing.ipynb) cuts, and measures what is lost.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert of_full_rank == 20
assert sum(clear["random"].values()) <= 1 and sum(clear["trained"].values()) >= 4
assert max(float(S[0]) for S in spectra["random"].values()) < 1.06       # "end at 1"
assert need["trained"][0] < need["random"][0] - 10                       # the stem
assert min(need["trained"][1:]) > 42                                     # "about half of its rank"
others = list(zip(need["trained"][1:], need["random"][1:], strict=True))
assert all(0.6 * b < a for a, b in others) and middle > 55              # "more than half"
assert 75 < median(need["random"]) < 88                              # "about 80 %"
tails = [float(S[len(S) // 2 :].mean() / R[len(R) // 2 :].mean())
         for S, R in zip(list(spectra["trained"].values())[1:],
                         list(spectra["random"].values())[1:], strict=True)]
assert all(0.5 < t < 1.15 for t in tails)                                # "more than half"
if name == "imagenette":
    assert sum(c > 0 for c in clear["trained"].values()) > 15
    highest = sorted(convs, key=lambda n: spectra["trained"][n][0])[-3:]
    assert all(n.startswith("layer4") for n in highest)                  # "farthest in layer4"
    assert need["trained"][0] < 45 and float(spectra["trained"]["conv1"][-1]) < 0.15

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
for lay in layouts.values():
    m, n = lay(K).shape
    assert linalg.rank_for_energy(torch.linalg.svdvals(lay(K)), 0.9) * (m + n) > 0.5 * K.numel()
assert ratio[0] > 1.2 and max(ratio[1:]) < 1.1                           # "Only the stem has grown"
shortcuts = [value for n, value in zip(convs, need["random"], strict=True) if "downsample" in n]
assert len(shortcuts) == 3 and max(shortcuts) < 73                       # "somewhat less"
assert need["random"][0] < 73 or name == "digits"                        # "also the stem"

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert left[0] < min(left[1:]) and min(left[1:]) > 0.1 and max(left[1:]) > 0.5
assert min(left[1:]) < 0.25 if name == "imagenette" else median(left[1:]) > 0.5    # "a small one"

# %% [markdown]
# ## 7. What the layers give out
#
# A kernel is one half of the story. The other half is what comes out: one picture for each output
# channel, a **feature map**. Take one image of one of the ten classes, and put each map under its
# filter.

# %%
images = data.load_images("holdout", name)
position = [int(label) for label in images.labels].index(7)              # the first of class 7
batch, _ = next(iter(data.make_loader(images.select([position]), 1, trained.evaluation_size)))
print("class:", images.classes[7])


def brighten(numbers):                               # to the range 0 to 1
    low, high = numbers.min(), numbers.max()
    return (numbers - low) / (high - low).clamp(min=1e-9)


# %%
maps = trained.conv1(batch)[0]                       # (O, high, wide)
figure = Figure(figsize=(10, 3.8))
grid = figure.subplots(2, 7)
grid[0, 0].axis("off")
grid[1, 0].imshow(data.to_picture(batch[0]))
grid[1, 0].set_title("image")
for place, axes in enumerate(grid[:, 1:].T):
    axes[0].imshow(brighten(stem[place]).permute(1, 2, 0), interpolation="nearest")
    axes[1].imshow(brighten(maps[place]))
    axes[0].set_title("filter")
    axes[1].set_title("its map")
for axes in grid.flat:
    axes.axis("off")
plots.show(
    figure,
    f"One image ({images.classes[7]}), six filters of the stem, and under each its feature map: a "
    "grey picture of the image, bright where patch times filter is large.",
)

# %% [markdown]
# A map is bright where patch times filter is large: where the image resembles the filter, or is
# simply strong. (White is strong in all three colours, so a red filter can answer to it as well.
# And each picture of a filter is stretched from its smallest to its largest number, so it does not
# show which are negative.) From stage to stage, the maps get smaller, and from layer2 on there are
# more of them. Of each stage, the next cells show the map with the greatest contrast.
#
# **Predict.** After which stage can you no longer say what is in the image?

# %%
steps = {"stem": trained.conv1}
steps |= {stage: getattr(trained, stage) for stage in stages[1:]}
seen = {}
hooks = [
    layer.register_forward_hook(lambda _, given, out, key=key: seen.update({key: out[0]}))
    for key, layer in steps.items()
]
trained(batch)
for hook in hooks:
    hook.remove()
contrasts = {key: out.amax((1, 2)) - out.amin((1, 2)) for key, out in seen.items()}     # (O,)
liveliest = {key: out[contrasts[key].argmax()] for key, out in seen.items()}
shown = {"image": data.to_picture(batch[0])}
for key, one in liveliest.items():
    high, wide = one.shape
    shown[f"{key}\n{len(seen[key])} of {high} × {wide}"] = brighten(one)

# %%
plots.pictures(
    shown,
    alt="The image and one feature map of each stage. The stem's map still shows the image in "
    "detail; those of the later stages have fewer and larger pixels.",
)


# %% [markdown]
# **Explain.** There is no exact answer. But a late map has only a few pixels. It says roughly
# *where* its pattern is, and no longer shows what the image looks like. To see *what* is in the
# image, look at *which* of the many maps are bright. (With the digits, a map of layer4 is a single
# pixel. It is drawn black, and cannot say where.)
#
# Look at the six maps of the stem once more. How alike are they? The **correlation** measures that:
# 1 means the same picture up to brightness and contrast, −1 its negative, 0 nothing in common. (The
# sign is left out here.) Now take all maps of the stem. Find for each the one that is most like it,
# and take the average of these correlations. Do the same for the filters.
#
# **Predict.** Are the maps more alike than their filters? And with the *random* filters of section
# 5?

# %%
def likeness(rows):                                  # (n, numbers): with the nearest, on average
    alike = torch.corrcoef(rows).abs().fill_diagonal_(0)                 # (n, n)
    return float(alike.max(1).values.mean())


nearest = {}
for title, network in {"trained": trained, "random": untrained}.items():
    filters, given = network.conv1.weight.flatten(1), network.conv1(batch)[0].flatten(1)
    nearest[title] = likeness(filters), likeness(given)
    print("{:8} filters {:.2f}, maps {:.2f}".format(title, *nearest[title]))

# %% [markdown]
# **Explain.** The maps are more alike than their filters, and even random filters give maps that
# are alike. So in the stem the image does it: images are smooth, and show only a few of the
# patterns that a kernel could see. (Behind the stem it is more the work of the network than of the
# image: chapter 07.)
#
# This is one image, and maps that are alike in pairs are not yet of low rank. But it is a hint: the
# *outputs* of a layer may have nearly low rank even if its *kernel* has not. **Low rank of the
# weights is one thing, low rank of what a network does with images is another.** [Chapter
# 07](07_responses_not_weights.ipynb) measures all layers, and makes a method of it.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert nearest["trained"][1] > nearest["trained"][0] + 0.05 and nearest["trained"][1] > 0.6
assert nearest["random"][1] > nearest["random"][0] + 0.2                 # "even random filters"
areas = [seen[key].shape[1] * seen[key].shape[2] for key in steps]
counts = [len(seen[key]) for key in steps]
assert areas == sorted(areas, reverse=True) and counts == sorted(counts)
assert torch.equal(maps, seen["stem"])

# %% [markdown]
# ## Recap
#
# 1. A convolution is a matrix product: kernel, laid out as a matrix, times the matrix of patches.
# 2. This course lays a kernel out in four ways. In a 3 × 3 layer from 64 to 64 channels their full
#    ranks are 64, 64, 192 and 9; rank 8 of the first is an eighth.
# 3. A ResNet-18 has 20 convolutions. The last stage holds most parameters; the MACs are spread
#    evenly.
# 4. Training pulls some directions above the noise edge and leaves a long tail. Only the stem is
#    nearly of low rank (with the digits, not even the stem).
# 5. What a layer gives out may have nearly low rank even if its kernel has not.
#
# ## Check yourself
#
# **1.** The stem takes a 128 × 128 image, with 7 × 7 kernels from 3 to 64 channels, stride 2,
# padding 3. What are the shapes of the two matrices in its product?
#
# <details><summary>Answer</summary>
# The kernel is 64 × 147, because 3 × 7 × 7 = 147. The output has 64 × 64 places, so the patches are
# 147 × 4096.
# </details>
# <br>
#
# **2.** A 3 × 3 convolution has 256 input and 512 output channels. What are its full ranks in the
# four layouts?
#
# <details><summary>Answer</summary>
# Channel: 512 × 2304, so 512. Input: 256 × 4608, so 256. Spatial: 768 × 1536, so 768. Position: 9.
# </details>
# <br>
#
# **3.** A kernel has rank 8 in the channel layout, with 64 output channels. How many of the 64
# feature maps are independent?
#
# <details><summary>Answer</summary>
# At most 8. The output is a product with this matrix, and the rank of a product is at most that of
# each factor. The 64 maps are mixtures of 8 maps, so the layer could compute 8 and mix them.
# </details>
# <br>
#
# **4.** A tool says that all 20 kernels of a network have full numerical rank. Is nothing to be
# gained, then?
#
# <details><summary>Answer</summary>
# That does not follow. Full rank only says that no singular value is 0 up to the tolerance. Look at
# the spectrum, and at what the layers give out.
# </details>

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert F.unfold(torch.zeros(1, 3, 128, 128), 7, stride=2, padding=3).shape == (1, 147, 4096)
quiz = torch.randn(512, 256, 3, 3)
assert [min(lay(quiz).shape) for lay in layouts.values()] == [512, 256, 768, 9]
thin = nn.Conv2d(16, 64, 3, padding=1, bias=False)
thin.weight.data = linalg.low_rank(thin.weight.flatten(1), 8).reshape(thin.weight.shape)
given = thin(torch.randn(1, 16, 12, 12))[0].flatten(1)
assert linalg.numerical_rank(given, 1e-5) == 8
patterns = F.conv2d(digit[None, None], kernel.T[None, None])             # "Now you": it runs
assert patterns.shape == (1, 1, 6, 6)

# %% [markdown]
# ## Now you
#
# - In section 1, replace the kernel by its transpose. Which edges does it find now?
# - In section 6, shuffle the numbers of one trained kernel (`torch.randperm`), and draw its
#   spectrum beside the trained one. What becomes of the values above the noise edge? Why?
# - Which of the 20 layers has most values above the edge, as a share of its full rank?
#
# **The way on.** You know where the matrices are, and that they are hardly low-rank by themselves.
# [Chapter 04](04_the_popular_recipe.ipynb) examines the popular recipe, which cuts two of them
# before they are trained. [Chapter 05](05_factorizing.ipynb) turns two of the layouts into pairs of
# small convolutions.
#
# ## References
#
# - K. Chellapilla, S. Puri and P. Simard, *High performance convolutional neural networks for
#   document processing*, International Workshop on Frontiers in Handwriting Recognition, 2006.
#   (convolution as a matrix product)
# - K. He, X. Zhang, S. Ren and J. Sun, *Deep residual learning for image recognition*, CVPR, 2016.
# - H. Sedghi, V. Gupta and P. M. Long, *The singular values of convolutional layers*, ICLR, 2019.
#   (of the whole map)
# - C. H. Martin and M. W. Mahoney, *Implicit self-regularization in deep neural networks*, Journal
#   of Machine Learning Research, 2021. (spectra of trained weights against random ones)
# - *Low rank approximation implementation 1/4*, a tutorial on the web: the popular recipe.
