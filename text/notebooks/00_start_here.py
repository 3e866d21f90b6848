# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 00 · Start here
#
# **The question:** What will I be able to do?
#
# **After this chapter you can**
#
# - say what this course is about, and whether it is for you;
# - load a trained network and look at its answers;
# - compress it with one call, and measure what has changed;
# - find your way through the chapters and the exercises.
#
# **You need:** nothing but this notebook. Later: matrix products and one PyTorch training loop.
#
# **Time:** 20 minutes to read, under 1 minute to run.
#
# Press Shift + Enter to run a cell and go on to the next one. The first run takes longer if it has
# to fetch the images.

# %%
import importlib.util

if importlib.util.find_spec("lowrank_course") is None:  # on Colab, in a copy of the course
    print("Installing the course's package")
    # %pip install --quiet --no-deps .. tensorly

# %%
import json
import os
from pathlib import Path

import torch

from lowrank_course import compress, data, evaluate, linalg, load_resnet18, models, plots
from lowrank_course.demo import table
from lowrank_course.measure import compare_latency, count_macs, count_parameters

plots.style()
profile = os.environ.get("LOWRANK_PROFILE") or "laptop"

# %% [markdown]
# ## 1. The story
#
# A popular recipe on the web promises to compress a ResNet-18 with the singular value decomposition,
# the SVD. It cuts two of the network's weight matrices to rank 8, writes them back, trains for five
# epochs, and reports the accuracy that the next cell quotes. Nothing got smaller. Yet the idea
# behind it is sound, and it can make a network several times smaller. In this course you find the
# recipe's flaws, build one that works, and measure both.
#
# The next cell repeats the recipe's main step. It counts **parameters**, the numbers that training
# can change, and **MACs**, the multiply-accumulates that one image costs.
#
# **Predict.** Two weight matrices are cut to rank 8. How many parameters and MACs does that save?

# %%
REPORTED = 64.79                                     # top-1 accuracy in percent, from the recipe

network = models.resnet18()                          # untrained, as in the recipe
picture = torch.randn(1, 3, 320, 320)
before = count_parameters(network), count_macs(network, picture)
for layer in (network.layer1[0].conv1, network.layer1[0].conv2):
    matrix = layer.weight.data.flatten(1)            # (64, 576)
    layer.weight.data = linalg.low_rank(matrix, 8).reshape(layer.weight.shape)
after = count_parameters(network), count_macs(network, picture)

# %%
print(f"accuracy that the recipe reports: {REPORTED} %")
print(f"parameters: {before[0]:,} before, {after[0]:,} after")
print(f"MACs:       {before[1]:,} before, {after[1]:,} after")

# %% [markdown]
# **Explain.** It saves none. A matrix of rank 8 that is stored as a 64 × 576 matrix still has
# 64 × 576 numbers, and each of them is still multiplied. To save something, the layer must really
# become two thin ones. The rest of this notebook shows you what that can do.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
assert before == after
assert tuple(matrix.shape) == (64, 576)
assert linalg.numerical_rank(layer.weight.data.flatten(1)) == 8

# %% [markdown]
# ## 2. Where the images come from
#
# The course uses **Imagenette**: photographs of ten easy classes from ImageNet. `find_data` looks in
# your data folder first. Is nothing there, it downloads them, about 100 MB. Without internet, the
# handwritten **digits** of scikit-learn stand in.

# %%
name = data.find_data()
held_out = data.load_images("holdout", name)         # photographs kept aside, never trained on
print("images: ", name)
print("folder: ", "imagenette2-160" if name == "imagenette" else "none, part of scikit-learn")
print("classes:", ", ".join(held_out.classes))

# %% [markdown]
# Everything below works with either of them. With the digits, the network is smaller, the pictures
# are 8 × 8 and enlarged, and the numbers differ. The outputs that you see before you run anything
# were made on Imagenette.
#
# Here is one image each of four classes.

# %%
def show(positions, titles, alt):
    pictures = {}
    for place, title in zip(positions, titles, strict=True):
        image, _ = judged[place]                     # (3, H, W), whole numbers 0 to 255
        pictures[title] = image.permute(1, 2, 0) / 255
    plots.pictures(pictures, alt=alt)


few = 10 if name == "digits" else {"smoke": 5}.get(profile, 15)
judged = data.balanced_subset(held_out, few)         # so many of each class
labels = torch.tensor(judged.labels)
firsts = [int((labels == c).nonzero()[0]) for c in range(4)]
names = [judged.classes[c] for c in range(4)]
show(firsts, names, alt="Four images, one of each class: " + ", ".join(names) + ".")

# %% [markdown]
# ## 3. A trained network
#
# The course ships a trained ResNet-18, so you can learn first and train later. For each image it
# gives ten numbers, one a class. The largest is its answer.

# %%
dense = load_resnet18(name)
loader = data.make_loader(judged, size=dense.evaluation_size)


def read(model):
    with torch.inference_mode():
        return torch.cat([model(images).argmax(1) for images, _ in loader])      # (N,)


def top1(share):
    return 100 * float((answers[share] == labels).float().mean())


answers = {1.0: read(dense)}                         # by the share of the MACs that is kept
right = int((answers[1.0] == labels).sum())
print(f"{right} of {len(labels)} images are read correctly: {top1(1.0):.1f} %")
checked = evaluate(dense, loader)                    # the course's own
print(f"evaluate() says the same: {checked:.1f} %")

# %%
def titles_for(positions, share):
    shown = [judged.classes[labels[p]] for p in positions]
    said = [judged.classes[answers[share][p]] for p in positions]
    return [f"({x}) {a}\n→ {b}" for x, a, b in zip("abcd", shown, said, strict=True)]


seen = sum(int(answers[1.0][p] == labels[p]) for p in firsts)
show(firsts, titles_for(firsts, 1.0), alt=f"The same images with answers, {seen} of 4 right.")

# %% [markdown]
# The first line is what the image shows, the arrow is the network's answer. "Correctly" here means
# **top-1**: the largest number belongs to the right class. Guessing would get one in ten.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
assert len(judged.classes) == 10                     # "one in ten", "ten numbers"
assert abs(top1(1.0) - checked) < 1e-3
assert right > 0.5 * len(labels)

# %% [markdown]
# ## 4. Compress it, in one call
#
# `compress` replaces layers by pairs of thinner ones, so that a given share of the MACs remains. It
# needs an example (for the image size) and some training images, on which it watches what each layer
# gives out.
#
# **Predict.** About a third of the MACs may stay. What happens to the number of parameters, to the
# time for 32 images, and to the accuracy? Nothing is trained afterwards.

# %%
example = next(iter(loader))[0]                      # (N, 3, H, W)
some = 20 if name == "digits" else 10                # of each class
train_images = data.balanced_subset(data.load_images("train", name), some)
calibration = data.make_loader(train_images, size=dense.evaluation_size)

small = compress(dense, example, budget=0.35, data=calibration)

# %%
networks = {"dense": dense, "compressed": small}
answers[0.35] = read(small)
accuracy = {"dense": top1(1.0), "compressed": top1(0.35)}
parameters = {key: count_parameters(network) for key, network in networks.items()}
macs = {key: count_macs(network, example) for key, network in networks.items()}
ms = compare_latency(networks, example, batch_size=32, runs=3)

print("network      top-1    parameters          MACs   32 images")
for key in networks:
    numbers = f"{accuracy[key]:5.1f} %  {parameters[key]:11,}  {macs[key]:12,}  {ms[key]:7.0f} ms"
    print(f"{key:11} {numbers}")

# %%
plots.bars(
    {"top-1 (%)": accuracy, "parameters": parameters, "MACs": macs, "32 images (ms)": ms},
    alt=f"Bars, dense beside compressed. Accuracy {accuracy['dense']:.0f} and "
    f"{accuracy['compressed']:.0f} %; parameters fall to "
    f"{parameters['compressed'] / parameters['dense']:.0%}, MACs to "
    f"{macs['compressed'] / macs['dense']:.0%}, and the time to "
    f"{ms['compressed'] / ms['dense']:.0%} of the dense network's.",
)

# %% [markdown]
# **Explain.** This picture is what the course is about. The parameters fall even further than the
# MACs, and most of the accuracy is still there.
#
# The milliseconds follow the MACs only roughly, and differ from machine to machine. On a small network, as for the digits, they may
# even rise: each layer has become two, and every layer takes its own time. Chapter 10 looks into
# that.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
assert 0.28 < macs["compressed"] / macs["dense"] <= 0.35      # "about a third"
assert parameters["compressed"] / parameters["dense"] < macs["compressed"] / macs["dense"]
assert accuracy["compressed"] > 0.75 * accuracy["dense"]      # "most of the accuracy"
assert not any(module is other for module in dense.modules() for other in small.modules())

# %% [markdown]
# What has `compress` done? Its plan says so, layer by layer. Compare the first layers of the plan.

# %%
for line in str(small.plan).splitlines()[:6]:
    print(line)

# %% [markdown]
# The **rank** says how thin the two new layers are. It is found for each layer, and so is whether
# the layer is replaced at all. What a rank is, you learn in chapters 01 and 02; how one convolution
# becomes two, in [chapter 05](05_factorizing.ipynb); how ranks are chosen, in chapter 06.
#
# ## 5. How far can you go?
#
# **Predict.** Go from half of the MACs down to 15 %. Does the accuracy fall evenly?

# %%
size = {1.0: parameters["dense"], 0.35: parameters["compressed"]}
for budget in (0.5, 0.25, 0.15):
    network = compress(dense, example, budget, data=calibration)
    answers[budget], size[budget] = read(network), count_parameters(network)

shares = sorted(answers, reverse=True)

# %%
for share in shares:
    print(f"{share:4.0%} of the MACs: {size[share]:10,} parameters, top-1 {top1(share):5.1f} %")

# %%
plots.curves(
    {"not retrained": ([100 * share for share in shares], [top1(share) for share in shares])},
    levels={"guessing": 10},
    xlabel="MACs that are kept (%)",
    ylabel="top-1 (%)",
    alt=f"Accuracy against the share of the MACs: {top1(1.0):.0f} % for the dense network; it "
    f"falls to {top1(0.15):.0f} % where 15 % of the MACs are left.",
)

# %% [markdown]
# **Explain.** No. Half of the multiplications cost little accuracy; below a third, each further
# step costs more. The measurement is coarse, because few images are used here: a difference of one
# or two points means nothing. Chapter 08 shows how to judge that.
#
# Move the slider to see the answers. The images are those that the dense network reads correctly and
# the smaller ones lose first. (The slider needs a running kernel. The curve above holds the same
# accuracies.)

# %%
from ipywidgets import SelectionSlider, interact

wrong = sum((answers[share] != labels).int() for share in shares)    # (N,), by how many networks
wrong *= answers[1.0] == labels
lost = wrong.argsort(descending=True, stable=True)[:4].tolist()


def look(share):
    good = sum(int(answers[share][p] == labels[p]) for p in lost)
    print(f"{size[share]:,} parameters, top-1 {top1(share):.1f} %; right of these 4: {good}")
    alt = f"Four images; at {share:.0%} of the MACs {good} answers are right."
    show(lost, titles_for(lost, share), alt)


positions = [(f"{share:.0%}", share) for share in shares]
_ = interact(look, share=SelectionSlider(options=positions, description="MACs kept"))

# %% [markdown]
# The two ends of the slider, for readers without a kernel:

# %%
look(1.0)

# %%
look(0.15)

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
assert top1(0.5) > top1(1.0) - 12                             # "cost little accuracy"
assert top1(0.5) - top1(0.15) > top1(1.0) - top1(0.5)         # "each further step costs more"
assert all(answers[1.0][p] == labels[p] for p in lost)

# %% [markdown]
# ## 6. What training wins back
#
# So far nothing was trained. In [chapter 08](08_retraining.ipynb) the compressed network is trained
# on, and wins back most of what it lost. The course's own full run did this on all of Imagenette.
# Its record is part of the repository:

# %%
path = Path("../results/demo-full.json")
if path.exists():
    record = json.loads(path.read_text())
    accuracies = {row["network"]: row["accuracy"] for row in record["rows"]}
    print(table(record))
    print(f"\nretrained minus dense: {accuracies['retrained'] - accuracies['dense']:+.2f} points")
else:
    print("No record here. Make one: lowrank-course demo --profile full --json demo-full.json")

# %% [markdown]
# *Truncated* is the network right after the cut, *recalibrated* after a repair that trains no
# weight, *retrained* after training. To see the last row come about on your machine, in minutes, type
# `make demo` in a terminal, or `lowrank-course demo`.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
if path.exists():
    stages = [row["network"] for row in record["rows"]]
    assert stages == ["dense", "truncated", "recalibrated", "retrained"]
    assert record["data"]["name"] == "imagenette"
    assert accuracies["retrained"] > accuracies["truncated"]

# %% [markdown]
# ## 7. How this course works
#
# **It is for you** if you can read a PyTorch training loop and want to understand, not only call, a
# compression method. No SVD is needed, and no GPU.
#
# - *On your own:* take the chapters in order, or enter anywhere. Each one stands on its own.
# - *In a workshop:* no cell that runs live takes longer than a minute on a two-core laptop.
# - *In a graded course:* each chapter from 01 to 10 gets a unit of exercises with instant checks,
#   which an instructor can grade with nbgrader.
#
# **A chapter has a rhythm.** *Predict* what comes out: say it aloud or write it down, before you run
# the cell. *Run* it. *Explain* the difference. A wrong prediction is where you learn most. Then
# change a number, and run it again: nothing can break.
#
# Every chapter ends with a recap, a few questions whose answers you unfold, and exercises. Work in a
# copy of an exercise (File, then Duplicate), so that you can always start afresh. The first unit is
# there: [the SVD](../exercises/02_svd/02_svd.ipynb).
#
# ## 8. The map
#
# | # | chapter | its question |
# |---|---|---|
# | 00 | start here | What will I be able to do? |
# | 01 | rank and orthogonality *(coming)* | What can a matrix do to space? |
# | 02 | [the SVD](02_svd.ipynb) | What is the best small copy of a matrix? |
# | 03 | a convolution is a matrix *(coming)* | Where are the matrices in a ResNet-18? |
# | 04 | the popular recipe, examined *(coming)* | Does truncating in place compress? |
# | 05 | [factorizing for real](05_factorizing.ipynb) | How do two small convolutions replace one? |
# | 06 | choosing ranks *(coming)* | How much does each layer deserve? |
# | 07 | responses, not weights *(coming)* | Why does plain SVD lose so much? |
# | 08 | [retraining on Imagenette](08_retraining.ipynb) | How is the accuracy won back? |
# | 09 | training with rank in mind *(coming)* | Can training prepare the cut? |
# | 10 | does it run faster? *(coming)* | When do MACs become milliseconds? |
# | 11 | capstone *(coming)* | What can you do with your own network? |
# | A | beyond convolutions *(coming)* | Where else does this idea live? |
#
# ## 9. Settings, and trouble
#
# Three environment variables change what happens. Set them before you start Jupyter.
#
# | setting | what it says | without it |
# |---|---|---|
# | `LOWRANK_DATA` | the folder that holds `imagenette2-160`; it may be read-only | a folder in the cache |
# | `LOWRANK_CACHE` | the folder for decoded images, about 1 GB | `.cache/lowrank-course` in your home |
# | `LOWRANK_PROFILE` | how long runs take: `smoke`, `laptop` or `full` | `laptop` |
#
# Is something wrong? In a terminal, type `lowrank-course doctor`. It checks your machine in seconds
# and says how to mend what it finds. (In a notebook: `%run -m lowrank_course doctor`.)
#
# A cell that seems to hang is marked `[*]`: stop it with the square button above. Do results look
# strange after you changed things? Use Kernel, then Restart Kernel and Run All Cells.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
decoded = (data.COUNTS["train"] + data.COUNTS["val"]) * 160 * 160 * 3
assert 0.8e9 < decoded < 1.2e9                                # "about 1 GB"

# %% [markdown]
# ## Recap
#
# 1. The popular recipe cuts the rank but keeps the matrix: nothing gets smaller.
# 2. Replace a layer by two thin ones, and parameters and MACs fall for real.
# 3. `compress` does this for a whole network, under a budget.
# 4. Much can go at little loss; then the accuracy falls fast, and training wins part of it back.
# 5. MACs are counted, milliseconds are measured, and the two need not keep step.
#
# ## Check yourself
#
# **1.** Why does the recipe of section 1 save nothing?
#
# <details><summary>Answer</summary>
# It writes the cut matrix back in its old shape. The shape decides how many numbers are stored and
# multiplied, not the rank.
# </details>
#
# **2.** A network needs a third of the MACs. Does it run three times as fast?
#
# <details><summary>Answer</summary>
# Not necessarily. MACs do not count what it takes to read, write and start each layer. Measure it.
# </details>
#
# **3.** Two networks are tested on 100 images. One reads 91 correctly, the other 90. Which one is
# better?
#
# <details><summary>Answer</summary>
# You cannot tell. One image more or less is chance. Chapter 08 says how many you need.
# </details>
#
# ## Now you
#
# Change `budget` in section 4, or try `cost="params"`: then the budget counts parameters. What
# becomes of the MACs?
#
# **The way on.** Go to [02, the SVD](02_svd.ipynb), the tool on which everything here rests. (01,
# rank and orthogonality, is coming.) In a hurry? [05](05_factorizing.ipynb) splits one
# convolution, [08](08_retraining.ipynb) wins the accuracy back.
#
# ## References
#
# - K. He, X. Zhang, S. Ren and J. Sun, *Deep residual learning for image recognition*, CVPR, 2016:
#   the ResNet-18.
# - X. Zhang, J. Zou, K. He and J. Sun, *Accelerating very deep convolutional networks for
#   classification and detection*, IEEE TPAMI, 2016: the method behind `compress`.
# - J. Howard, *Imagenette*, github.com/fastai/imagenette, 2019: the images.
# - *Low rank approximation implementation 1/4*, a tutorial on the web: the popular recipe.
