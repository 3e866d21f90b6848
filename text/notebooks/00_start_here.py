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
# In a few minutes you compress a trained network to about a third of its work, with one line of
# code, and see images on which smaller networks fail. The rest of the course explains that line.
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
# **Time:** 20 minutes to read, under 2 minutes to run.
#
# Press Shift + Enter to run a cell and go on to the next one. The first run takes longer if it has
# to download the images.

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
# A ResNet-18 is a small network that names what a picture shows. A popular recipe on the web
# promises to compress it with the singular value decomposition, the SVD. It lays the weights of two
# layers out as matrices and cuts each to **rank 8**. Roughly: every row becomes a mixture of the
# same 8 rows. Then it writes the matrices back, trains for five epochs, and reports 64.79 % of the
# validation images right (images on which it was not trained).
#
# The next cell repeats the cut. It counts **parameters**, the numbers that training can change, and
# **MACs** (multiply-accumulates), the multiplications that one image costs, each with an addition.
#
# **Predict.** Each of the two matrices has 64 rows and rank 64: no row is a mixture of the others.
# Both are cut to rank 8. How many parameters and MACs does that save?

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
# **Explain.** It saves none. A matrix of rank 8 that is stored as a 64 × 576 matrix still has 64 ×
# 576 numbers, and each of them is still multiplied. The idea behind the recipe is sound, though. To
# save something, the layer must really become two thin ones. The rest of this notebook shows what
# that can do; in the course you find the recipe's other flaws, and build one that works.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert before == after
assert tuple(matrix.shape) == (64, 576)
assert linalg.numerical_rank(layer.weight.data.flatten(1)) == 8
assert linalg.numerical_rank(models.resnet18().layer1[0].conv1.weight.data.flatten(1)) == 64
assert REPORTED == 64.79

# %% [markdown]
# ## 2. Where the images come from
#
# The course uses **Imagenette**: photographs of ten easy classes from ImageNet, a large collection
# of labelled images. `find_data` looks in your data folder first. If nothing is there, it downloads
# them, about 100 MB. Without internet, the course uses the handwritten **digits** of scikit-learn
# in their place.

# %%
name = data.find_data()
held_out = data.load_images("holdout", name)         # images kept aside, never trained on
print("images: ", name)
print("folder: ", "imagenette2-160" if name == "imagenette" else "none, part of scikit-learn")
print("classes:", ", ".join(held_out.classes[:5]) + ",")
print("        ", ", ".join(held_out.classes[5:]))

# %% [markdown]
# Everything below works with either of them. With the digits, the network is smaller, the pictures
# are 8 × 8 and enlarged, and the numbers differ. The outputs that you see before you run anything
# were made on Imagenette.
#
# Here is one image of each of four classes. (In Imagenette, a tench is a fish and an English
# springer is a dog.)

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
# gives ten numbers, one for each class. The class with the largest number is its answer.
#
# None of these images was used to train it.

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
# Above each picture, the first line says what the image shows, and the arrow points to the
# network's answer. The accuracy that you saw is called **top-1**: the share of images for which the
# largest number belongs to the right class. Blind guessing would be right for one image in ten.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert len(judged.classes) == 10                     # "one in ten", "ten numbers"
assert abs(top1(1.0) - checked) < 1e-3
assert right > 0.5 * len(labels)

# %% [markdown]
# ## 4. Compress it, in one call
#
# `compress` replaces layers by pairs of thinner ones, so that a given share of the MACs remains:
# the **budget**. It needs an example (for the image size) and some training images, on which it
# watches what each layer gives out. At the end it repairs the new layers with the same images,
# without training: section 6 shows what that does. The network as it was is called **dense**.
#
# **Predict.** About a third of the MACs may stay. What happens to the number of parameters, to the
# time for 32 images, and to the accuracy? Nothing is trained afterwards.

# %%
example = next(iter(loader))[0]                      # (N, 3, H, W)
some = 20 if name == "digits" else {"smoke": 5}.get(profile, 10)     # of each class
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
# MACs, and the accuracy changes little. It may even rise a little. That does not make the small
# network better: only a few images are judged here, and a difference of one or two points can be
# chance. (Section 1 counted more MACs because its picture was larger, 320 × 320 pixels. The digits'
# network is smaller as well.)
#
# The milliseconds follow the MACs only roughly, and differ from machine to machine. On a small
# network, as for the digits, they may even rise: each layer has become two, and every layer takes
# its own time. Chapter 10 looks into that.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert 0.28 < macs["compressed"] / macs["dense"] <= 0.35      # "about a third"
assert parameters["compressed"] / parameters["dense"] < macs["compressed"] / macs["dense"]
change = accuracy["compressed"] - accuracy["dense"]
assert abs(change) < (12 if profile == "smoke" else 5)        # "changes little"
assert not any(module is other for module in dense.modules() for other in small.modules())

# %% [markdown]
# What has `compress` done? Its plan says so, layer by layer. Here are the first lines.

# %%
for line in str(small.plan).splitlines()[:6]:
    print(line)

# %% [markdown]
# `before` and `after` are the MACs of the layer, `form` is the way in which it was split, and
# `error` is the harm that this does, as `compress` estimates it: use it only to compare layers,
# smaller is better (`1e-05` is 0.00001). The **rank** says how thin the new layers are. `compress`
# finds it for each layer, and it also decides whether to replace the layer at all.
#
# Chapters 01 and 02 explain the rank, [chapter 05](05_factorizing.ipynb) how one convolution
# becomes two, and [chapter 06](06_choosing_ranks.ipynb) how ranks are chosen.
#
# ## 5. How far can you go?
#
# **Predict.** Go down to a twentieth of the MACs (to a tenth for the digits, whose network is
# small). Does the accuracy fall evenly?

# %%
size = {1.0: parameters["dense"], 0.35: parameters["compressed"]}
for budget in (0.5, 0.1) if name == "digits" else (0.1, 0.05):
    network = compress(dense, example, budget, data=calibration)
    answers[budget], size[budget] = read(network), count_parameters(network)

shares = sorted(answers, reverse=True)
least = shares[-1]

# %%
for share in shares:
    print(f"{100 * share:3.0f} % of the MACs: {size[share]:10,} parameters, "
          f"top-1 {top1(share):5.1f} %")

# %%
plots.curves(
    {"not retrained": ([100 * share for share in shares], [top1(share) for share in shares])},
    levels={"guessing": 10},
    xlabel="MACs that are kept (%)",
    ylabel="top-1 (%)",
    alt=f"Accuracy against the share of the MACs: {top1(1.0):.0f} % for the dense network; it "
    f"falls to {top1(least):.0f} % where {least:.0%} of the MACs are left.",
)

# %% [markdown]
# **Explain.** No. The first two thirds of the multiplications go at little cost; towards the end,
# each further step costs more. (With the digits, only the last step costs anything.) Chapter 08
# shows how to tell a real difference from chance.
#
# Move the slider to see the answers to four images. The dense network is right on all four; they
# are four of those on which the smaller networks fail most often. (The slider needs a running
# kernel. The curve above holds the same accuracies.)

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
look(least)

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert top1(0.35) > top1(1.0) - 12
if profile != "smoke":                                        # few images there
    assert top1(0.35) > top1(1.0) - 5                         # "at little cost"
    assert top1(shares[-2]) - top1(least) > 2 * (top1(1.0) - top1(0.35))      # "costs more"
    assert all(answers[1.0][p] == labels[p] for p in lost)

# %% [markdown]
# ## 6. How the accuracy is won back
#
# So far nothing was trained, but `compress` has repaired each network after the cut. In the next
# table the cut and the repair stand apart. In [chapter 08](08_retraining.ipynb) you train the
# compressed network further. The course's own full run did this on all of Imagenette, at about a
# fifth of the MACs. Its record is part of the repository.
#
# **Predict.** The cut costs some accuracy. How much comes back by a repair without training, and
# how much by training?

# %%
path = Path("../results/demo-full.json")
if path.exists():
    record = json.loads(path.read_text())
    accuracies = {row["network"]: row["accuracy"] for row in record["rows"]}
    print(table(record))
    print(f"\nretrained minus dense: {accuracies['retrained'] - accuracies['dense']:+.2f} points")
else:
    print(f"No {path} here. `lowrank-course demo --profile full --json FILE` makes it")

# %% [markdown]
# All 3,925 validation images were judged. The few above were others: Imagenette offers them for
# training, but the course keeps them aside. So the dense network has another accuracy here.
#
# *Truncated* is the network right after the cut, which was planned on 100 training images of each
# class. *Recalibrated* is after a repair without training: layer by layer, from the first to the
# last, the weights are fitted to what the dense layer gives, for 256 of these images. (Chapter 08
# begins with a simpler repair, of the batch norms alone.) *Retrained* is after a few epochs of
# training. *File* is the size on disk; *batch 1* and *batch 32* are the times for one image and for
# 32 at once, of this run: do not compare them with those of section 4.
#
# **Explain.** Most of what the cut had cost comes back without training, by the repair. Training
# adds about half a point. This is one training, and a difference of that size may be chance:
# [chapter 08](08_retraining.ipynb) says what you may claim. The last line compares with the dense
# network. That is not quite fair either: it did not get these extra epochs.
#
# To make such a table on your own machine, in minutes, type `make demo` in a terminal in the
# course's folder. (Without make, type `python -m lowrank_course demo` in the environment where you
# installed the course.)

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
import inspect

from lowrank_course.refit import refit  # noqa: E402

if path.exists():
    stages = [row["network"] for row in record["rows"]]
    assert stages == ["dense", "truncated", "recalibrated", "retrained"]
    assert record["data"]["name"] == "imagenette"
    gap = accuracies["dense"] - accuracies["truncated"]
    assert accuracies["recalibrated"] - accuracies["truncated"] > 0.5 * gap > 0   # "most"
    gain = accuracies["retrained"] - accuracies["recalibrated"]
    assert 0.4 < gain < 0.6 and accuracies["retrained"] < accuracies["dense"]     # "half a point"
    assert inspect.signature(refit).parameters["images"].default == 256
    assert record["data"]["calibrate"] == 100 and record["data"]["evaluated"] == 3925
    macs_kept = record["rows"][-1]["macs"] / record["rows"][0]["macs"]
    assert 0.17 < macs_kept < 0.23                            # "about a fifth"

# %% [markdown]
# How near can a compressed network come? One ships with the course:
# `load_resnet18("imagenette-compressed")`. It was cut, repaired in the same way, and then trained
# for 16 epochs. So were two more.

# %%
longer = Path("../results/compressed.json")
if longer.exists():
    jobs = json.loads(longer.read_text())["jobs"]
    tuned = [job for key, job in jobs.items() if key.startswith("tuned")]
    for key in ("parameters", "macs"):
        share = 100 * tuned[0][key] / jobs["dense"][key]
        print(f"{key:11} {share:.0f} % of the dense network's")
    print("top-1 on the validation images:")
    print(f"dense       {jobs['dense']['accuracy']['val']:.1f} %")
    print("compressed ", ", ".join(f"{job['accuracy']['val']:.1f} %" for job in tuned))
else:
    print(f"No {longer} here. `python benchmarks/runs.py compressed` makes it")

# %% [markdown]
# A tenth of the parameters and a quarter of the MACs are left. In none of the three trainings is
# the distance to the dense network more than chance explains: [chapter 08](08_retraining.ipynb) has
# the test, and asks what the training has added to the repair. (The dense network did not get these
# epochs here. Chapter 08 shows where it ends with them.)

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
if longer.exists():
    assert len(tuned) == 3 and all(len(job["log"]) == 16 for job in tuned)
    assert all(job["parameters"] < 0.104 * jobs["dense"]["parameters"] for job in tuned)
    assert all(0.24 < job["macs"] / jobs["dense"]["macs"] <= 0.25 for job in tuned)
    tops = [job["accuracy"]["val"] - jobs["dense"]["accuracy"]["val"] for job in tuned]
    assert max(map(abs, tops)) < 0.5                          # "no difference": chapter 08 tests it

# %% [markdown]
# ## 7. How this course works
#
# **It is for you** if you can read a PyTorch training loop, and want to understand a compression
# method before you call it. You need not know the SVD, and you need no GPU.
#
# - *On your own:* take the chapters in order, or enter anywhere: each one says at its top what it
#   needs.
# - *In a workshop:* no cell that runs live takes longer than a minute on a two-core laptop.
# - *In a graded course:* each chapter from 01 to 10 will get a unit of exercises with instant
#   checks, which an instructor can grade with nbgrader.
#
# **A chapter has a rhythm.** *Predict* what comes out: say it aloud or write it down, before you
# run the cell. *Run* it. *Explain* the difference. You learn most from a wrong prediction. Then
# change a number, and run it again. (If a hidden test cell then stops, it only says that the text
# was written for the old number.)
#
# Every chapter ends with a recap and a few questions whose answers you unfold. The first unit of
# exercises is ready, [the SVD](../exercises/02_svd/02_svd.ipynb); more follow. Work in a copy of an
# exercise (menu File, Duplicate Notebook), so that you can always start again.
#
# A cell that is folded to one grey line is a hidden test. It guards the numbers in the text. You
# can skip it.
#
# ## 8. The map
#
# | # | chapter | its question |
# |---|---|---|
# | 00 | start here | What will I be able to do? |
# | 01 | [rank and orthogonality](01_rank_and_orthogonality.ipynb) | What can a matrix do to space? |
# | 02 | [the SVD](02_svd.ipynb) | What is the best small copy of a matrix? |
# | 03 | [a convolution is a matrix](03_a_convolution_is_a_matrix.ipynb) | Where are the matrices in a ResNet-18? |
# | 04 | [the popular recipe, examined](04_the_popular_recipe.ipynb) | Does truncating in place compress? |
# | 05 | [factorizing for real](05_factorizing.ipynb) | How do two small convolutions replace one? |
# | 06 | [choosing ranks](06_choosing_ranks.ipynb) | How much does each layer deserve? |
# | 07 | [responses, not weights](07_responses_not_weights.ipynb) | Why does plain SVD lose so much? |
# | 08 | [retraining on Imagenette](08_retraining.ipynb) | How is the accuracy won back? |
# | 09 | [training with rank in mind](09_training_with_rank_in_mind.ipynb) | Can training prepare the cut? |
# | 10 | [does it run faster?](10_does_it_run_faster.ipynb) | When do MACs become milliseconds? |
# | 11 | [capstone](11_capstone.ipynb) | What can you do with your own network? |
# | A | [beyond convolutions](A_beyond_convolutions.ipynb) | Where else does this idea live? |
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
# If something is wrong, run `%run -m lowrank_course doctor` in a cell. It checks your machine in
# seconds and says how to mend what it finds. (In a terminal, in the course's folder, type
# `.venv/bin/lowrank-course doctor` if you started with `make`, else `lowrank-course doctor`.)
#
# A running cell is marked `[*]`. If it takes too long, stop it with the square button above. If
# results look strange after you changed things, use the menu Kernel, Restart Kernel and Run All
# Cells.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
decoded = (data.COUNTS["train"] + data.COUNTS["val"]) * 160 * 160 * 3
assert 0.8e9 < decoded < 1.2e9                                # "about 1 GB"

# %% [markdown]
# ## Recap
#
# 1. The popular recipe cuts the rank but keeps the matrix: nothing gets smaller.
# 2. Replace a layer by two thin ones, and parameters and MACs fall for real.
# 3. `compress` does this for a whole network, under a budget.
# 4. Much can go at little loss; then the accuracy falls fast. At about a fifth of the MACs, a
#    repair without training wins most of the loss back.
# 5. MACs are counted, milliseconds are measured, and half the MACs need not be half the time.
#
# ## Check yourself
#
# **1.** Why does the recipe of section 1 save nothing?
#
# <details><summary>Answer</summary>
# It writes the cut matrix back in its old shape. Not the rank, but the shape decides how many
# numbers are stored and multiplied.
# </details>
# <br>
#
# **2.** A network needs a third of the MACs. Does it run three times as fast?
#
# <details><summary>Answer</summary>
# Not necessarily. MACs do not count what it takes to read, write and start each layer. Measure it.
# </details>
# <br>
#
# **3.** Two networks are tested on 100 images. One is right on 91, the other on 90. Which one is
# better?
#
# <details><summary>Answer</summary>
# You cannot tell. One image more or less may be chance. Chapter 08 says how many you need.
# </details>
#
# ## Now you
#
# Add a cell: `other = compress(dense, example, budget=0.35, cost="params", data=calibration)`. Now
# the budget counts parameters. What has become of the MACs, `count_macs(other, example)`?
#
# **The way on.** Go to [02, the SVD](02_svd.ipynb), the tool on which everything here rests. If
# orthogonality and rank are new to you, begin with [01](01_rank_and_orthogonality.ipynb). In a
# hurry? [05](05_factorizing.ipynb) splits one convolution, [08](08_retraining.ipynb) wins the
# accuracy back.
#
# ## References
#
# - K. He, X. Zhang, S. Ren and J. Sun, *Deep residual learning for image recognition*, CVPR, 2016:
#   the ResNet-18.
# - X. Zhang, J. Zou, K. He and J. Sun, *Accelerating very deep convolutional networks for
#   classification and detection*, IEEE TPAMI, 2016: the method on which `compress` builds.
# - J. Howard, *Imagenette*, github.com/fastai/imagenette, 2019: the images.
# - *Low rank approximation implementation 1/4*, a tutorial on the web: the popular recipe.
