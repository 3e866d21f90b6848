# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 05 · Factorizing for real
#
# **The question:** How do two small convolutions replace one?
#
# A matrix of low rank saves nothing until its two factors take its place. A convolution is a
# matrix, so its factors must be layers again. But which layers? You build them, catch two mistakes
# that raise no error, and then shrink a whole network.
#
# **After this chapter you can**
#
# - turn a convolution into two small ones, in two ways, and a linear layer likewise;
# - test the result at full rank, and so catch wrong layouts and strides;
# - compute parameters and MACs at any rank, and the rank below which you save;
# - say what Tucker-2 adds, and why CP is unstable;
# - compress a whole ResNet-18 and measure what it cost you.
#
# **You need:** [chapter 02](02_svd.ipynb) (truncated SVD, break-even rank), and a picture of what a
# convolution does. ([Chapter 03](03_a_convolution_is_a_matrix.ipynb) helps, but you can start
# here.)
#
# **Time:** 35 minutes to read, about 1 minute to run.

# %%
import importlib.util

if importlib.util.find_spec("lowrank_course") is None:  # on Colab, in a copy of the course
    print("Installing the course's package")
    # %pip install --quiet --no-deps .. tensorly

# %%
import copy
import os

import tensorly
import torch
from tensorly.decomposition import parafac, partial_tucker
from torch import nn

from lowrank_course import compress, evaluate, layers, linalg, load_resnet18, plots
from lowrank_course.data import balanced_subset, find_data, load_images, make_loader
from lowrank_course.measure import compare_latency, count_macs, count_parameters, layer_shapes
from lowrank_course.responses import recalibrate

plots.style()
tensorly.set_backend("pytorch")
_ = torch.set_grad_enabled(False)                            # nothing is trained in this chapter
_ = torch.manual_seed(0)

# %% [markdown]
# ## 1. A layer of a trained network
#
# The course ships a trained ResNet-18 for photographs and one for digits. The outputs on this page
# were made with the first, for Imagenette, ten kinds of photographs. If these photographs are not
# available, `find_data` chooses the one for handwritten digits. It has a quarter of the channels in
# every layer, so your numbers differ. The text holds for both.

# %%
name = find_data()
dense = load_resnet18(name)
layer = dense.layer2[1].conv2
outputs, inputs, k, _ = layer.weight.shape
print(f"{name}: {layer}")
print(f"kernel (O, C, k, k) = {tuple(layer.weight.shape)}, {layer.weight.numel():,} numbers")

# %% [markdown]
# The weights of a convolution are called its **kernel**. It has four axes: $O$ output channels, $C$
# input channels, and $k$ rows by $k$ columns. Work on a copy in double precision: rounding errors
# are then tiny, and real mistakes stand out. The input is random, because that uses every part of
# the kernel. (This layer has no bias: a batch norm follows.)

# %%
conv = copy.deepcopy(layer).double()
W = conv.weight.detach()                                     # (O, C, k, k)
x = torch.randn(4, inputs, 12, 12, dtype=torch.float64)      # 4 images of C channels


def relative_error(found, wanted):
    return float((found - wanted).norm() / wanted.norm())


# %% [markdown]
# ## 2. The channel form
#
# At each position, the convolution looks at the patch of the image under its kernel: $C k k$
# numbers. Each output channel multiplies them by its own $C k k$ weights and adds up. That is one
# row of a matrix times a vector. So lay the kernel out as a matrix $W$ with $O$ rows and $C k k$
# columns. `unfold` collects the patches. ([Chapter 03](03_a_convolution_is_a_matrix.ipynb) writes
# this out as `convolve`, in a few lines, and checks it on every convolution of the network.)

# %% tags=["nbval-check-output"]
patches = nn.functional.unfold(x, kernel_size=3, padding=1)  # (4, C*k*k, positions)
product = W.flatten(1) @ patches                             # (O, C*k*k) @ (4, C*k*k, positions)
print("the convolution is this matrix product:", torch.allclose(product, conv(x).flatten(2)))

# %% [markdown]
# You know what to do with a matrix: cut it to rank $r$ and keep two factors, $L$ (`left`) of shape
# $(O, r)$ and $R$ (`right`) of shape $(r, C k k)$. A patch $x$ then meets $R$ first:
#
# $$y = W x \approx L \, (R \, x)$$
#
# $R$ has $r$ rows of $C k k$ numbers: that is a $k \times k$ convolution with only $r$ outputs.
# $L$ mixes these $r$ numbers, at each position separately: that is a $1 \times 1$ convolution.
# Here are your two small convolutions, the **channel form**. (Each factor takes the square roots of
# the singular values, as in [chapter 02](02_svd.ipynb).)

# %%
def channel(conv, rank):
    W, has_bias = conv.weight.detach(), conv.bias is not None
    left, right = linalg.balanced_factors(W.flatten(1), rank)        # (O, r), (r, C*k*k)
    outputs, inputs, *kernel = W.shape
    first = nn.Conv2d(inputs, rank, kernel, conv.stride, conv.padding, bias=False)
    second = nn.Conv2d(rank, outputs, 1, bias=has_bias)
    first.weight.data = right.reshape(rank, inputs, *kernel)         # (r, C, k, k)
    second.weight.data = left[:, :, None, None]                      # (O, r, 1, 1)
    if has_bias:
        second.bias.data = conv.bias.detach().clone()
    return nn.Sequential(first, second)


# %% [markdown]
# Stride and padding stay with the layer that sees the image. The bias goes to the second layer,
# because only that one has the $O$ outputs.
#
# **Predict.** You build the pair at full rank, $r = O$, and at half of it. How far is its output
# from that of the layer? (`layers.channel` is the package's own version; the last column compares.)

# %%
print("rank   output error   kernel error   same as layers.channel")
for rank in (outputs, outputs // 2):
    pair = channel(conv, rank)
    in_output = relative_error(pair(x), conv(x))
    in_kernel = relative_error(linalg.low_rank(W.flatten(1), rank), W.flatten(1))
    same = torch.allclose(pair(x), layers.channel(conv, rank)(x))
    print(f"{rank:4d} {in_output:14.1e} {in_kernel:14.1e}   {same}")

# %% [markdown]
# **Explain.** At full rank nothing is lost: the error is rounding. At half the rank the output is
# about as wrong as the kernel is, because a random input uses all of the kernel alike. And that is
# a lot. Look at the energy, the share of the kernel's squared size that the rank holds:

# %%
S = torch.linalg.svdvals(W.flatten(1))
needed = linalg.rank_for_energy(S, 0.9)
print(f"half the rank holds {linalg.energy(S)[outputs // 2 - 1]:.0%} of the energy")
print(f"90 % of the energy needs rank {needed} of {outputs}")

# %% [markdown]
# This trained kernel is hardly low-rank: 90 % of its energy needs most of the rank, and even that
# leaves an error of up to 32 %. Keep this in mind for the end of the chapter.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert relative_error(channel(conv, outputs)(x), conv(x)) < 1e-10           # "nothing is lost"
assert abs(in_output / in_kernel - 1) < 0.1                           # "as wrong as the kernel is"
assert in_output > 0.4                                                # "a lot"
assert torch.allclose(channel(conv, 3)(x), layers.channel(conv, 3)(x)) and same
assert needed > 0.6 * outputs                                               # "hardly low-rank"
assert abs(0.1**0.5 - 0.32) < 0.005

# %% [markdown]
# ## 3. The spatial form
#
# There is another way to cut. Some image filters are a column times a row. This one, the Sobel
# filter, finds vertical edges:

# %% tags=["nbval-check-output"]
sobel = torch.outer(torch.tensor([1.0, 2.0, 1.0]), torch.tensor([-1.0, 0.0, 1.0]))
print(sobel)
print("rank:", linalg.numerical_rank(sobel))

# %% [markdown]
# So you may filter down the columns first, then along the rows: 3 + 3 numbers instead of 9. A
# kernel with many channels is not that simple, but the SVD writes it as a sum of such pieces. Which
# matrix must you cut? One side must hold everything vertical, the other everything horizontal:
#
# - rows: input channel and kernel row, $(c, i)$, so $C k$ of them;
# - columns: output channel and kernel column, $(o, j)$, so $O k$ of them.
#
# $$W_{o,c,i,j} \approx \sum_{q=1}^{r} L_{(c,i),\,q} \; R_{q,\,(o,j)}$$
#
# Each column of `left` becomes a $k \times 1$ filter over all input channels. Each row of `right`
# holds a $1 \times k$ filter for every output channel.

# %%
def spatial(conv, rank):
    (outputs, inputs, kh, kw), has_bias = conv.weight.shape, conv.bias is not None
    (sh, sw), (ph, pw) = conv.stride, conv.padding
    matrix = conv.weight.detach().permute(1, 2, 0, 3).reshape(inputs * kh, outputs * kw)
    left, right = linalg.balanced_factors(matrix, rank)              # (C*kh, r), (r, O*kw)
    first = nn.Conv2d(inputs, rank, (kh, 1), (sh, 1), (ph, 0), bias=False)
    second = nn.Conv2d(rank, outputs, (1, kw), (1, sw), (0, pw), bias=has_bias)
    first.weight.data = left.T.reshape(rank, inputs, kh, 1)          # (r, C, kh, 1)
    second.weight.data = right.reshape(rank, outputs, 1, kw).transpose(0, 1)    # (O, r, 1, kw)
    if has_bias:
        second.bias.data = conv.bias.detach().clone()
    return nn.Sequential(first, second)


# %% [markdown]
# Stride and padding are split: the vertical part belongs to the first layer, the horizontal part to
# the second.
#
# **Predict.** What is the full rank of this form? Compare with the channel form's $O$.

# %%
full = min(inputs * k, outputs * k)
print("rank   output error   same as layers.spatial")
for rank in (full, full // 2):
    pair = spatial(conv, rank)
    same = torch.allclose(pair(x), layers.spatial(conv, rank)(x))
    print(f"{rank:4d} {relative_error(pair(x), conv(x)):14.1e}   {same}")

# %% [markdown]
# **Explain.** With $C = O$ the matrix is square, $3C \times 3C$, so its full rank is three times as
# large. Do not compare a rank of this form with a rank of the other. Compare what they *cost*.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert full == 3 * outputs == layers.full_rank(conv, "spatial") and outputs == inputs
assert relative_error(spatial(conv, full)(x), conv(x)) < 1e-10 and same
assert torch.allclose(spatial(conv, 3)(x), layers.spatial(conv, 3)(x))

# %% [markdown]
# ## 4. Linear layers
#
# A linear layer is a matrix already, so it is the easiest case. The last layer of the network has
# one row for each of the ten classes.

# %%
def linear(layer, rank):
    left, right = linalg.balanced_factors(layer.weight.detach(), rank)    # (O, r), (r, I)
    first = nn.Linear(layer.in_features, rank, bias=False)
    second = nn.Linear(rank, layer.out_features, bias=layer.bias is not None)
    first.weight.data, second.weight.data = right, left
    if layer.bias is not None:
        second.bias.data = layer.bias.detach().clone()
    return nn.Sequential(first, second)


# %% tags=["nbval-check-output"]
fc = copy.deepcopy(dense.fc).double()
features = torch.randn(8, fc.in_features, dtype=torch.float64)
for rank in (10, 5):
    pair = linear(fc, rank)
    same = torch.allclose(pair(features), layers.linear(fc, rank)(features))
    exact = torch.allclose(pair(features), fc(features))
    print(f"rank {rank:2d}: exact {exact}, same as layers.linear {same}")

# %% [markdown]
# ## 5. What it costs
#
# Here is the layer redrawn, with each form at the largest rank that keeps at most half of the
# weights. The bars are the tensors before and after each layer; their heights show the channels.

# %%
half_cost = {
    form: int(0.5 * linalg.break_even_rank(*layers.layer_matrix(layer, form).shape))
    for form in ("channel", "spatial")
}
rows = {"dense": layer}
for form, rank in half_cost.items():
    rows[f"{form} form, rank {rank}"] = layers.factorise(layer, form, rank)
plots.layer_boxes(
    rows,
    alt=f"Three versions of one layer. Dense: a 3 x 3 convolution from {inputs} to {outputs} "
    f"channels. Channel form: 3 x 3 to {half_cost['channel']} channels, then 1 x 1 to {outputs}. "
    f"Spatial form: 3 x 1 to {half_cost['spatial']} channels, then 1 x 3 to {outputs}.",
)

# %% [markdown]
# Both forms store two factors of an $(m, n)$ matrix, $r (m + n)$ numbers. Chapter 02 gave the rank
# where that equals the $m n$ numbers of the matrix. With $C = O$, and $3 \times 3$ kernels in the
# first two rows:
#
# | form | matrix | numbers at rank r | full rank | break-even |
# |---|---|---|---|---|
# | channel | $O \times C k k$ | $r (C k k + O) = 10\,C r$ | $C$ | $0.9\,C$ |
# | spatial | $C k \times O k$ | $r k (C + O) = 6\,C r$ | $3\,C$ | $1.5\,C$ |
# | 1 × 1 or linear | $O \times C$ | $r (C + O) = 2\,C r$ | $C$ | $0.5\,C$ |
#
# **Predict.** You keep half of the full rank. What share of the weights do you keep, in each form?

# %%
ranks = {form: range(1, layers.full_rank(layer, form) + 1) for form in ("channel", "spatial")}
numbers = {form: [layers.parameters(layer, form, r) for r in rs] for form, rs in ranks.items()}
even = {f: linalg.break_even_rank(*layers.layer_matrix(layer, f).shape) for f in ranks}

# %%
plots.cost_against_rank(
    {form: [n / 1000 for n in cost] for form, cost in numbers.items()},
    dense=layer.weight.numel() / 1000,
    unit="thousand weights",
    alt="The weights of both forms rise in straight lines with the rank. They cross the dense "
    f"layer's number at rank {even['channel']:.1f} (channel) and {even['spatial']:.1f} (spatial).",
)

# %%
for form, cost in numbers.items():
    half = len(cost) // 2
    share = cost[half - 1] / layer.weight.numel()
    print(f"{form}: half the full rank is {half}, and keeps {share:.0%} of the weights")

# %% [markdown]
# **Explain.** In the channel form, half the rank keeps a little over half of the weights. In the
# spatial form it saves *nothing*: half of $3\,C$ is exactly the break-even. **Half the rank is not
# half the parameters.** Above the grey line, leave the layer dense.
#
# The same is true of a 1 × 1 convolution or a linear layer with $C = O$: it saves only below half
# of its full rank.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert abs(even["channel"] - 0.9 * inputs) < 1e-9 and abs(even["spatial"] - 1.5 * inputs) < 1e-9
assert linalg.break_even_rank(inputs, inputs) == inputs / 2
assert layers.parameters(layer, "channel", 1) == 10 * inputs
assert layers.parameters(layer, "spatial", 1) == 6 * inputs
assert numbers["spatial"][full // 2 - 1] == layer.weight.numel()      # "saves nothing"
assert 0.5 < numbers["channel"][outputs // 2 - 1] / layer.weight.numel() < 0.6
for form, rank in half_cost.items():
    assert 0.45 < numbers[form][rank - 1] / layer.weight.numel() <= 0.5
    pair = layers.factorise(layer, form, rank)
    assert count_parameters(pair) == numbers[form][rank - 1]

# %% [markdown]
# ### Multiplications
#
# Every weight of a convolution is used once at each output position. One use is a multiplication
# and an addition, a **MAC** (multiply-accumulate). Many tools count FLOPs, two for a MAC: ask
# before you compare. Suppose that both layers of a pair work at the same positions. Then its MACs
# are its weights times the positions, and the shares and the break-even stay those of the weights.
#
# **Predict.** With stride 2 the output has half the height and half the width. Is the break-even of
# the spatial form the same in MACs as in weights?

# %%
strided = dense.layer2[0].conv1
example = torch.zeros(1, 3, dense.evaluation_size, dense.evaluation_size)
((given, after),) = layer_shapes(dense, example)["layer2.0.conv1"]      # it is called once
dense_macs = strided.weight.numel() * after[2] * after[3]
costs = {form: [] for form in ("channel", "spatial")}
for form, cost in costs.items():
    for r in range(1, strided.out_channels + 1):
        cost.append(layers.macs(strided, form, r, given[2:], after[2:]))
crossing = {form: dense_macs / cost[0] for form, cost in costs.items()}
print(strided)
print(f"{given[2]} x {given[3]} pixels in, {after[2]} x {after[3]} out")

# %%
weights_even = linalg.break_even_rank(*layers.layer_matrix(strided, "spatial").shape)
plots.cost_against_rank(
    {form: [c / 1e6 for c in cost] for form, cost in costs.items()},
    dense=dense_macs / 1e6,
    unit="million MACs",
    alt="MACs of the strided layer against the rank. Channel form crosses the dense layer at rank "
    f"{crossing['channel']:.1f}, spatial form already at {crossing['spatial']:.1f}.",
)
print(f"spatial form: break-even in weights {weights_even:.0f}, in MACs {crossing['spatial']:.0f}")

# %% [markdown]
# **Explain.** No, it is lower. The first layer strides downwards only. Its output still has the
# full width, so it works at twice as many positions as the second. The channel form has no such
# loss: its $k \times k$ layer takes the whole stride at once.
#
# Formulas can be wrong, so count the real thing once. `count_macs` watches a forward pass.

# %% tags=["nbval-check-output"]
for form, cost in costs.items():
    pair = layers.factorise(strided, form, 8)
    counted = count_macs(pair, torch.zeros(given))
    print(f"{form}: formula and count agree: {counted == cost[7]}")

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert after[2] * 2 == given[2] and after[3] * 2 == given[3]
channel_even = linalg.break_even_rank(*layers.layer_matrix(strided, "channel").shape)
assert abs(crossing["channel"] - channel_even) < 1e-9
assert crossing["spatial"] < 0.8 * weights_even
first, second = layers.spatial(strided, 8)
one = first(torch.zeros(given))
assert one.shape[2] == after[2] and one.shape[3] == given[3]          # "still has the full width"

# %% [markdown]
# ## 6. Wrong, and hard to see
#
# At full rank every form must give the layer's own output. Make this your first test, because
# mistakes here raise no error. Two examples.
#
# ### The stride in one place
#
# **Predict.** Someone gives the whole stride, (2, 2), to the first layer of the spatial form, and
# none to the second. Is the shape of the output wrong? Are its numbers?

# %%
strided64 = copy.deepcopy(strided).double()
z = torch.randn(2, strided.in_channels, 12, 12, dtype=torch.float64)
right_pair = spatial(strided64, layers.full_rank(strided64, "spatial"))
wrong_pair = copy.deepcopy(right_pair)
wrong_pair[0].stride, wrong_pair[1].stride = (2, 2), (1, 1)
for title, pair in (("split", right_pair), ("in one place", wrong_pair)):
    error = relative_error(pair(z), strided64(z))
    print(f"stride {title:12}: output {tuple(pair(z).shape)}, error {error:.1e}")

# %% [markdown]
# **Explain.** The shape is right and the numbers are worthless (an error of 1.0 is as bad as an
# output of zeros). The first layer has thrown away every second column. The horizontal filter then
# meets neighbours that were two pixels apart.
#
# ### The wrong layout
#
# `spatial` permutes the kernel's axes before it reshapes. Leave that out, and you still get a
# matrix of the right size, with the same numbers in it.
#
# **Predict.** At full rank, is the matrix rebuilt? Is the layer?

# %%
careless = W.reshape(inputs * k, outputs * k)                # no permute
left, right = linalg.balanced_factors(careless, full)
pair = layers.from_factors(conv, "spatial", left, right, bias=None)
matrix_error = relative_error(left @ right, careless)
layer_error = relative_error(pair(x), conv(x))
print(f"matrix: error {matrix_error:.1e}")
print(f"layer:  error {layer_error:.1e}")

# %% [markdown]
# **Explain.** The SVD did its work: it rebuilt the matrix that it was given. But that matrix is not
# this layer. The kernel is stored as one long list of numbers, output channel by output channel.
# `reshape` only cuts this list into rows of the new length, so its rows are not the $(c, i)$ that
# you need. **A test of the matrix cannot find this. A test of the layer finds it at full rank, at
# once.**

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert wrong_pair(z).shape == right_pair(z).shape == strided64(z).shape
assert relative_error(right_pair(z), strided64(z)) < 1e-10
assert relative_error(wrong_pair(z), strided64(z)) > 0.5              # "worthless"
assert matrix_error < 1e-10 and layer_error > 0.9

# %% [markdown]
# ### The rest of the convolution's settings
#
# Your short functions handle stride, padding by a number of pixels, and a bias. Those of the
# package also take every other kind of padding, and **dilation** (a kernel with gaps between its
# weights). A **grouped** convolution, where each output channel sees only some of the input
# channels, stays dense. Here is the full-rank test on some odd layers:

# %% tags=["nbval-check-output"]
odd = {
    "stride, bias": nn.Conv2d(5, 7, 3, stride=2, padding=1),
    "reflect padding": nn.Conv2d(5, 7, (3, 5), padding="same", padding_mode="reflect"),
    "dilation": nn.Conv2d(6, 6, 3, dilation=2, padding=2),
}
for title, each in odd.items():
    each, v = each.double(), torch.randn(2, each.in_channels, 11, 13, dtype=torch.float64)
    for form in ("channel", "spatial"):
        pair = layers.factorise(each, form, layers.full_rank(each, form))
        print(f"{title:15} {form}: exact {torch.allclose(pair(v), each(v))}")
print("stays dense:", layers.supported(nn.Conv2d(8, 8, 3, groups=8)))

# %% [markdown]
# Nothing stands *between* the two layers: no batch norm and no ReLU. One convolution is linear, so
# the pair must be linear, too. A ReLU in the middle would make even the full-rank pair wrong.
#
# And the **batch norm** behind each convolution? It stays where it is, now behind the second layer.
# In use (`eval()` mode) it multiplies each channel by a stored number and adds another. At full
# rank its input is unchanged. Below full rank the stored numbers no longer fit: section 8 mends
# that.

# %% [markdown]
# ## 7. Three layers
#
# ### Tucker-2
#
# The channel form reduces the channels on the way out. You can reduce them on the way in as well: a
# $1 \times 1$ layer from $C$ to $r_1$ channels, a small $k \times k$ **core** from $r_1$ to $r_2$,
# a $1 \times 1$ layer from $r_2$ to $O$. The core has $k k\, r_1 r_2$ weights instead of
# $k k\, C O$, so it shrinks with both ranks.
#
# With two ranks, one SVD is not enough. **HOOI** (higher-order orthogonal iteration) takes turns:
# hold the channels on one side fixed, find the best ones on the other side with an SVD, and swap.
# The library tensorly does it.
#
# Together the three layers hold $C r_1 + k k\, r_1 r_2 + r_2 O$ weights. With stride $s$ the first
# layer works on the whole input, at $s^2$ times as many positions as the others. So there Tucker-2
# costs $s^2 C r_1 + k k\, r_1 r_2 + r_2 O$ MACs for each position of the output.

# %%
def tucker2(conv, rank_in, rank_out):
    W, has_bias = conv.weight.detach(), conv.bias is not None
    bases = partial_tucker(W, rank=[rank_out, rank_in], modes=[0, 1], n_iter_max=10)
    (core, (out, into)), _ = bases                           # (r2, r1, k, k), (O, r2), (C, r1)
    first = nn.Conv2d(W.shape[1], rank_in, 1, bias=False)
    middle = nn.Conv2d(rank_in, rank_out, W.shape[2:], conv.stride, conv.padding, bias=False)
    last = nn.Conv2d(rank_out, W.shape[0], 1, bias=has_bias)
    first.weight.data = into.T[:, :, None, None]             # (r1, C, 1, 1)
    middle.weight.data, last.weight.data = core, out[:, :, None, None]
    if has_bias:
        last.bias.data = conv.bias.detach().clone()
    return nn.Sequential(first, middle, last)


# %% [markdown]
# First the test at full rank. Then all three forms at half of the weights. For Tucker-2 with two
# equal ranks, that is about rank $0.6\,C$.
#
# **Predict.** Which of the three forms loses least?

# %%
whole = relative_error(tucker2(conv, inputs, outputs)(x), conv(x))
print(f"Tucker-2 at full rank: error {whole:.1e}")
forms = {form: layers.factorise(conv, form, rank) for form, rank in half_cost.items()}
forms["Tucker-2"] = tucker2(conv, int(0.6 * inputs), int(0.6 * outputs))
shares = {form: count_parameters(small) / W.numel() for form, small in forms.items()}
losses = {form: relative_error(small(x), conv(x)) for form, small in forms.items()}
for form in forms:
    print(f"{form:8}: {shares[form]:.0%} of the weights, output error {losses[form]:.0%}")

# %% [markdown]
# **Explain.** The spatial form loses least on this layer. (Tucker-2 was tried with two equal ranks
# only, and the input is random.) So on this layer the form matters. But even the best of the three
# is far from the layer: a better form alone does not solve the problem.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert whole < 1e-10
assert all(0.4 < share <= 0.51 for share in shares.values())
assert min(losses, key=losses.get) == "spatial"
assert max(losses.values()) - min(losses.values()) > 0.02             # "the form matters"
assert min(losses.values()) > 0.33                                    # "far from the layer"
assert abs((-1 + (1 + 9 * 9 * 0.5) ** 0.5) / 9 - 0.6) < 0.01          # r / C at half of the weights
r1, r2, hw, out = 8, 16, given[2] * given[3], after[2] * after[3]
each = strided.in_channels * r1 * hw + (9 * r1 * r2 + r2 * strided.out_channels) * out
assert count_macs(tucker2(strided, r1, r2), torch.zeros(given)) == each      # and with stride
assert hw == 4 * out

# %% [markdown]
# ### CP, a warning
#
# Why not go further? In a **CP** decomposition each piece is a product of *three* vectors: one over
# output channels, one over input channels, one over kernel positions. (As layers: 1 × 1, then a
# separate $k \times k$ filter for each channel, then 1 × 1.) A piece needs only $O + C + k k$
# numbers. But for three axes there is no Eckart-Young theorem.
#
# The tensor below is a sum of three pieces. The loop tries to come near with two.
#
# **Predict.** How near do they come? And how large are the two pieces?

# %% tags=["nbval-check-output"]
def piece(u, v, w):
    return torch.einsum("i,j,k->ijk", u, v, w)


a, b = torch.eye(2, dtype=torch.float64)
T = piece(a, a, b) + piece(a, b, a) + piece(b, a, a)         # (2, 2, 2)
for n in (1, 10, 100, 1000):
    plus, minus = n * piece(a + b / n, a + b / n, a + b / n), n * piece(a, a, a)
    error = relative_error(plus - minus, T)
    sizes = " and ".join(f"{float(p.norm() / T.norm()):6.1f}" for p in (plus, minus))
    print(f"n = {n:4d}: error {error:.4f}, pieces of {sizes} times the size of the tensor")

# %% [markdown]
# **Explain.** As near as you like, but never there (de Silva and Lim, 2008). **No best copy
# exists**: for every pair of pieces there is a nearer one. And the price: the two pieces grow
# without limit and cancel each other.
#
# Does that happen to a real kernel? tensorly's `parafac` finds CP pieces by alternating least
# squares. Follow it on a layer, with as many pieces as cost about half of the weights.
#
# **Predict.** The pieces of an SVD are at right angles, so their squared sizes add up to at most
# 1.0 times that of the matrix. To what do those of CP add up, as the search goes on?

# %%
kernel = dense.layer1[0].conv1.weight.detach().flatten(2)    # (O, C, k*k)
pieces = 2 * kernel.shape[0]
found = {}
for turns in (10, 40, 160):
    settings = {"n_iter_max": turns, "tol": 0, "init": "random", "random_state": 0}
    sizes, vectors = parafac(kernel, pieces, normalize_factors=True, **settings)
    error = relative_error(tensorly.cp_to_tensor((sizes, vectors)), kernel)
    found[turns] = error, float(sizes.square().sum() / kernel.square().sum())
    print(f"{turns:3d} turns: error {error:.0%}, squared sizes add up to {found[turns][1]:.1f}")

# %%
share = pieces * sum(kernel.shape) / kernel.numel()
print(f"CP with {pieces} pieces costs {share:.0%} of the weights. At the same cost:")
for form in ("channel", "spatial"):
    matrix = layers.layer_matrix(dense.layer1[0].conv1, form)
    copy_of = linalg.low_rank(matrix, int(share * linalg.break_even_rank(*matrix.shape)))
    print(f"{form:8} form: error {relative_error(copy_of, matrix):.0%}")

# %% [markdown]
# **Explain.** The error falls only slowly, but the pieces keep growing and cancel each other.
#
# Is that a problem? Disturb every number of the factors by about 1 %, as rounding to 8 bits does.
# (To 16 bits, with bfloat16, it would be about 0.2 %.)

# %%
def disturbed(numbers):
    return numbers * (1 + 0.01 * torch.randn_like(numbers))


cp = tensorly.cp_to_tensor((sizes, vectors))
cp_moved = tensorly.cp_to_tensor((sizes, [disturbed(v) for v in vectors]))
left, right = linalg.balanced_factors(kernel.flatten(1), len(kernel) // 2)
moved = {
    "CP": relative_error(cp_moved, cp),
    "channel form": relative_error(disturbed(left) @ disturbed(right), left @ right),
}
for form, change in moved.items():
    print(f"{form:12}: the kernel changes by {change:.1%}")

# %% [markdown]
# **Explain.** CP makes a small disturbance several times larger. At equal cost its error is below
# that of both SVD forms here, so it looks attractive on paper. But its users found it hard to
# fine-tune (Lebedev et al., 2015). Later work corrects the pieces: at the same error, it looks for
# those that react least to such a disturbance (Phan et al., 2020). This course leaves it here.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
cost = pieces * (sum(kernel.shape)) / kernel.numel()
assert 0.4 < cost < 0.6                                               # "about half of the weights"
assert found[10][1] < found[40][1] < found[160][1] and found[160][1] > 3
assert 0 < found[40][0] - found[160][0] < 0.05                        # "falls only slowly"
assert moved["CP"] > 2 * moved["channel form"]                        # "several times"
first_layer = dense.layer1[0].conv1
for form in ("channel", "spatial"):
    matrix = layers.layer_matrix(first_layer, form)
    rank = int(cost * linalg.break_even_rank(*matrix.shape))
    assert relative_error(linalg.low_rank(matrix, rank), matrix) > found[160][0]

# %% [markdown]
# ## 8. The whole network
#
# A ResNet-18 has 20 convolutions and a linear layer. Most convolutions cost about equally many
# MACs, but their numbers of weights differ widely. `compress` tries many ranks: in the channel and
# in the spatial form, for 1 × 1 convolutions in the channel form, and for the linear layer as two
# linear ones. (Tucker-2 only if you ask for it: `form="tucker2"`.) It chooses so that the total
# fits a budget, here a fifth of the MACs. [Chapter 06](06_choosing_ranks.ipynb) explains how it
# divides the budget among the layers.
#
# `data=None` means that it looks at the weights only, as you did so far.

# %%
small = compress(dense, example, budget=0.2, data=None)
lines = str(small.plan).splitlines()
print(*lines[:6], "...", *lines[-4:], sep="\n")

# %% [markdown]
# `before` and `after` are the layer's MACs. `error` is the squared relative error of its kernel, so
# 1 minus the energy. A dash means that the layer stays dense: there the saving was not worth its
# error.
#
# **Predict.** A fifth of the MACs are left. What share of the weights is left? What share of
# the milliseconds? (The next cell prints each cost of the dense network, of the compressed one, and
# their ratio.)

# %%
networks = {"dense": dense, "compressed": small}
spent = {
    "million MACs": {n: count_macs(net, example) / 1e6 for n, net in networks.items()},
    "million weights": {n: count_parameters(net) / 1e6 for n, net in networks.items()},
    "ms for one image": compare_latency(networks, example, batch_size=1),
}
for title, values in spent.items():
    share = values["compressed"] / values["dense"]
    print(f"{title:17}{values['dense']:8.2f}{values['compressed']:8.2f}   {share:.0%}")

# %% [markdown]
# **Explain.** Three measures, three answers. If every layer kept a fifth of its MACs, about a fifth
# of the weights would be left, too. But the layers are not cut alike (compare `before` and `after`
# in the plan). Early and late layers count about equally in MACs, but nearly all weights are in the
# late ones ([chapter 03](03_a_convolution_is_a_matrix.ipynb)). So the share of the weights says
# mostly how much the late layers were cut. Milliseconds differ again: each layer takes some time to
# start, and the tensor between the two must be written and read. [Chapter
# 10](10_does_it_run_faster.ipynb) is about that. (`measure` in the package returns all costs at
# once.)
#
# Now the accuracy, **top-1**: the share of images for which the network's first answer is right.
# You judge on held-out *training* images. The published validation images wait for the final
# figure: choices must not be made on them.

# %%
quick = os.environ.get("LOWRANK_PROFILE") == "smoke"
per_class = 10 if quick or name == "digits" else 20
loaders = {}
for split in ("train", "holdout"):
    images = balanced_subset(load_images(split, name), per_class)
    loaders[split] = make_loader(images, 50, dense.evaluation_size)

top1 = {"dense": evaluate(dense, loaders["holdout"])}
top1["truncated"] = evaluate(small, loaders["holdout"])
for stage, value in top1.items():
    print(f"{stage:12} {value:5.1f} %")

# %% [markdown]
# Much accuracy is lost. (With ten classes, 10 % is guessing.) One part of it can be mended in
# seconds. Each batch norm subtracts a stored mean and divides by a stored standard deviation, and
# both were measured behind the *old* layers. **Recalibration** measures them again: a forward pass
# over some training images, without labels. No weight changes.
#
# **Predict.** Does it bring back nothing, a good part, or all of what was lost?

# %%
recalibrated = copy.deepcopy(small)
recalibrate(recalibrated, loaders["train"])
top1["recalibrated"] = evaluate(recalibrated, loaders["holdout"])
for stage, value in top1.items():
    spread = (value * (100 - value) / (10 * per_class)) ** 0.5       # p (1 - p) / n, in percent
    print(f"{stage:12} {value:5.1f} %, one standard error (chance): {spread:.1f} points")

# %%
plots.bars(
    {"top-1 (%)": top1, **{key: spent[key] for key in ("million MACs", "million weights")}},
    alt=f"Bars. Top-1: dense {top1['dense']:.1f} %, truncated {top1['truncated']:.1f} %, "
    f"recalibrated {top1['recalibrated']:.1f} %. The compressed network has a fifth of the MACs "
    f"and {spent['million weights']['compressed']:.2f} million weights.",
)

# %% [markdown]
# **Explain.** It brings back a good part, without training. So after a cut like this one,
# recalibrate the batch norms, and judge in `eval()` mode. Otherwise you blame the SVD for what the
# batch norms do. But recalibration is not free: it also moves a network that needs no repair
# ([chapter 07](07_responses_not_weights.ipynb)). And a figure from so few images moves by chance.
# [Chapter 08](08_retraining.ipynb) says what it takes to claim a difference.
#
# Look at the plan again. On Imagenette some of the last kernels lost more than half of their
# energy, and still most answers are right. So the energy of a kernel does not say what the network
# loses.
#
# And yet a gap remains. You took the best copy of every kernel, and the network is truly smaller.
# **Why does it lose so much?** Two suspicions:
#
# - The ranks may be badly chosen. [Chapter 06](06_choosing_ranks.ipynb) asks how much each layer
#   deserves.
# - "Best" may mean the wrong thing. The SVD counts every number of the kernel alike, although real
#   images do not use all of it alike. [Chapter 07](07_responses_not_weights.ipynb) looks at what
#   the layers give out instead.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
from scipy.stats import binomtest  # noqa: E402

from lowrank_course.train import answers  # noqa: E402

assert [row.name for row in small.plan][-1] == "fc" and len(small.plan.rows) == 21
macs = spent["million MACs"]["compressed"] / spent["million MACs"]["dense"]
assert 0.17 < macs <= 0.2                                             # "a fifth of the MACs"
parameters = spent["million weights"]["compressed"] / spent["million weights"]["dense"]
assert abs(macs - parameters) > 0.01                                  # "three answers"
early = [row for row in small.plan if row.name.startswith("layer1")]
share = sum(row.before for row in early) / count_macs(dense, example)
assert share > 3 * count_parameters(dense.layer1) / count_parameters(dense)
lost = top1["dense"] - top1["truncated"]
assert lost > 5                                                       # "is lost"
assert 0.2 * lost < top1["recalibrated"] - top1["truncated"] < lost   # "a good part"
right = [answers(network, loaders["holdout"]) for network in (small, recalibrated)]
won, lost_again = int((right[1] & ~right[0]).sum()), int((right[0] & ~right[1]).sum())
assert binomtest(won, won + lost_again).pvalue < 0.05                 # the same images: McNemar
assert all(map(torch.equal, small.parameters(), recalibrated.parameters()))   # "No weight changes"

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
if name == "imagenette":
    late = [row.error for row in small.plan if row.name.startswith("layer4") and row.rank]
    assert sum(error > 0.5 for error in late) > 1                     # "some of the last kernels"
    assert top1["recalibrated"] > 50                                  # "most answers"

# %% [markdown]
# ## Recap
#
# 1. Lay the kernel out as a matrix, cut it into two factors: each factor is a small convolution.
# 2. The channel form is k × k then 1 × 1; the spatial form is k × 1 then 1 × k, stride and padding
#    split between them.
# 3. At full rank the pair must equal the layer. Test the layer, never only the matrix.
# 4. With C = O and 3 × 3 you save weights below rank 0.9 C (channel) or 1.5 C (spatial), and at
#    stride 1 MACs as well. At stride 2 the spatial form saves MACs only below C. Half the rank is
#    not half the parameters.
# 5. After a plain cut, recalibrate the batch norms. It costs seconds and brings back a good part.
#    The gap that remains is the next question.
#
# ## Check yourself
#
# **1.** A 3 × 3 layer has 256 input and 256 output channels. You cut its channel form to rank 128.
# What share of the weights is left?
#
# <details><summary>Answer</summary>
# 128 × (2304 + 256) = 327,680 of 589,824, so 56 %. For one half you need rank 115.
# </details>
# <br>
#
# **2.** Why has the first of the two layers no bias?
#
# <details><summary>Answer</summary>
# The layer's bias has O numbers and is added to the output. Only the second layer has O outputs. A
# bias in the first would be mixed by the second.
# </details>
# <br>
#
# **3.** A tool reports that its factorised matrix, multiplied out, equals the original to 15
# digits. Is that enough?
#
# <details><summary>Answer</summary>
# No. It may have rebuilt a matrix that is laid out wrongly, or put the stride in the wrong place.
# Compare the outputs of the layers, at full rank, on a random input.
# </details>
# <br>
#
# **4.** You cut a 1 × 1 convolution with 64 inputs and 64 outputs to rank 40. Is it smaller?
#
# <details><summary>Answer</summary>
# No, it is larger: 40 × 128 = 5,120 weights instead of 4,096. The break-even is rank 32.
# </details>
# <br>
#
# **5.** You replace a layer of stride 2 by pairs with equally many weights, one in the channel
# form, one in the spatial form. Which pair has fewer MACs?
#
# <details><summary>Answer</summary>
# The channel form. Its first layer strides down and across at once; the first layer of the spatial
# form still works on the full width.
# </details>

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
quiz = nn.Conv2d(256, 256, 3, bias=False)
assert layers.parameters(quiz, "channel", 128) == 128 * (2304 + 256) == 327_680
assert quiz.weight.numel() == 589_824 and round(100 * 327_680 / 589_824) == 56
assert int(0.5 * linalg.break_even_rank(256, 2304)) == 115
assert layers.parameters(nn.Conv2d(64, 64, 1, bias=False), "channel", 40) == 5120 > 64 * 64 == 4096
assert linalg.break_even_rank(64, 64) == 32

# %% [markdown]
# ## Now you
#
# (A hidden test may stop the run: the text was written for the old numbers. Go on below it, with
# "Run Selected Cell and All Below".)
#
# - Change the budget in section 8 to 0.5 and run it again. Then find the smallest budget at which
#   the recalibrated network stays within 5 points of the dense one, on the held-out images. (With
#   photographs, 5 points are ten images here: check the answer on others before you believe it.)
# - Build the form that chapter 03 calls *input*: first $1 \times 1$ from $C$ to $r$, then $k \times
#   k$ from $r$ to $O$. Which layer takes the stride? Test it at full rank.
# - In section 6, keep the layout right and swap the padding of the two layers instead, first for a
#   convolution of stride 1. Is the shape of the output still right? Does the full-rank test find
#   it? Which rows are wrong? Then try the pair of stride 2.
# - Put a ReLU between the two layers of `channel`, at full rank. How large is the error?
#
# **The way on.** [Chapter 06](06_choosing_ranks.ipynb) asks how much each layer deserves, [chapter
# 07](07_responses_not_weights.ipynb) why plain SVD loses so much. In [chapter
# 08](08_retraining.ipynb) you win the accuracy back.
#
# ## References
#
# - M. Jaderberg, A. Vedaldi and A. Zisserman, *Speeding up convolutional neural networks with low
#   rank expansions*, BMVC 2014. (the spatial form)
# - C. Tai, T. Xiao, Y. Zhang, X. Wang and W. E, *Convolutional neural networks with low-rank
#   regularization*, ICLR 2016. (its solution by the SVD)
# - X. Zhang, J. Zou, K. He and J. Sun, *Accelerating very deep convolutional networks for
#   classification and detection*, IEEE TPAMI, 2016. (the channel form)
# - Y.-D. Kim, E. Park, S. Yoo, T. Choi, L. Yang and D. Shin, *Compression of deep convolutional
#   neural networks for fast and low power mobile applications*, ICLR 2016. (Tucker-2)
# - V. Lebedev, Y. Ganin, M. Rakhuba, I. Oseledets and V. Lempitsky, *Speeding-up convolutional
#   neural networks using fine-tuned CP-decomposition*, ICLR 2015.
# - V. de Silva and L.-H. Lim, *Tensor rank and the ill-posedness of the best low-rank approximation
#   problem*, SIAM Journal on Matrix Analysis and Applications, 2008.
# - L. De Lathauwer, B. De Moor and J. Vandewalle, *On the best rank-1 and rank-(R1, R2, ..., RN)
#   approximation of higher-order tensors*, SIAM Journal on Matrix Analysis and Applications, 2000.
#   (HOOI)
# - A.-H. Phan, K. Sobolev, K. Sozykin, D. Ermilov, J. Gusak, P. Tichavský, V. Glukhov, I. Oseledets
#   and A. Cichocki, *Stable low-rank tensor decomposition for compression of convolutional neural
#   network*, ECCV 2020.
