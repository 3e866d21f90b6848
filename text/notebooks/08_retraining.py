# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 08 · Retraining on Imagenette
#
# **The question:** How is the accuracy won back?
#
# A cut network answers worse. A part of the lost accuracy, often most of it, comes back in seconds,
# without any training. Training may win back some of the rest. And at each step it is easy to
# deceive yourself: this chapter shows three ways.
#
# **After this chapter you can**
#
# - repair a truncated network without training any weight;
# - fine-tune it, and choose the learning rate on images that are not the final test;
# - avoid three traps: a forgotten `eval()`, lagging statistics, choices made on the test images;
# - judge whether a difference between two networks is real;
# - (optional) let the dense network teach the small one.
#
# **You need:** one PyTorch training loop. [Chapter 05](05_factorizing.ipynb) explains the layers
# that are trained here; you can do without it for now.
#
# **Time:** 60 minutes to read, about 2 minutes to run.

# %%
import importlib.util

if importlib.util.find_spec("lowrank_course") is None:  # on Colab, in a copy of the course
    print("Installing the course's package")
    # %pip install --quiet --no-deps .. tensorly

# %%
import copy
import json
import math
import os
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from lowrank_course import compress, data, evaluate, load_resnet18, plots, responses
from lowrank_course.measure import count_macs, count_parameters

plots.style()
quick = os.environ.get("LOWRANK_PROFILE") == "smoke"

# %% [markdown]
# ## 1. What the cut costs
#
# You compress the trained ResNet-18 by its weights alone, as in [chapter 05](05_factorizing.ipynb),
# and so much that the loss is easy to see: a fifth of the MACs (multiply-accumulates) may stay. You
# work with the photographs of Imagenette. Without them the handwritten digits take their place: the
# numbers change, and where the text says *may*, so may the verdict. The outputs that you see before
# you run anything were made on Imagenette.
#
# Only small samples are used, so that each cell takes seconds. The next cell says how many images
# of each class serve to `calibrate`, to `tune`, to `judge` and for the `final` figure. The words
# are explained below.

# %%
name = data.find_data()
dense = load_resnet18(name)
size = dense.evaluation_size                         # pixels

per_class = {"calibrate": 10, "tune": 20, "judge": 15, "final": 20}
if name == "digits":
    per_class = {"calibrate": 20, "tune": 20 if quick else 100, "judge": 10, "final": 30}
elif quick:
    per_class = {"calibrate": 10, "tune": 8, "judge": 5, "final": 10}
print(f"{name}, {size} px, images of each class: {per_class}")

# %%
train_images = data.load_images("train", name)
held_out = data.balanced_subset(data.load_images("holdout", name), per_class["judge"])
tune_images = data.balanced_subset(train_images, per_class["tune"])
calibration = data.make_loader(
    data.balanced_subset(train_images, per_class["calibrate"], seed=1), size=size
)
judge = data.make_loader(held_out, size=size)        # for every choice that is made here
example = next(iter(judge))[0]                       # (N, 3, H, W)

# %% [markdown]
# There are three kinds of images. Never mix them up:
#
# - **train**: what the network is fitted to, its weights (`tune`) and the statistics that section 2
#   explains (`calibrate`);
# - **holdout**: taken out of the published training images. You look at it as often as you like, to
#   choose ranks, learning rates and epochs (`judge`);
# - **val**: the published validation split. You look at it once, at the end (`final`). (The digits
#   come without splits: there the course has set a fixed fifth aside.)
#
# Whatever you choose on a set of images fits that set a little too well. If you choose on **val**,
# no honest test is left.
#
# **Predict.** Four fifths of the multiplications go. How much accuracy is left?

# %%
truncated = compress(dense, example, budget=0.2)     # no data: by the weights alone

kept = count_macs(truncated, example) / count_macs(dense, example)
print(f"MACs kept:       {kept:.0%}")
print(f"parameters kept: {count_parameters(truncated) / count_parameters(dense):.0%}")
top1 = {"dense": evaluate(dense, judge), "truncated": evaluate(truncated, judge)}
print(f"dense:     {top1['dense']:5.1f} %")
print(f"truncated: {top1['truncated']:5.1f} %")

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert 0.15 < kept <= 0.2                                     # "a fifth"
if name == "digits" or not quick:
    assert top1["truncated"] < top1["dense"] - 3

# %% [markdown]
# **Explain.** Much is lost. (With ten classes, guessing gives 10 %.) But a part of it comes back
# without training.
#
# ## 2. Recalibrate: a repair without training
#
# Behind each convolution stands a **batch norm**. In each channel it subtracts a mean and divides
# by a standard deviation; then it multiplies by a weight and adds a bias. Weight and bias are
# trained. The mean and the deviation are not: they were measured on the dense network, and stored;
# they are its **statistics**. What a truncated layer gives out usually varies less than before,
# because some directions are gone. So the stored numbers no longer fit. Every layer adds its own
# misfit to those before it.
#
# The repair is simple: show the network some training images, and store the new means and
# variances.
#
# **Predict.** No weight changes. How much accuracy can come back?

# %%
def recalibrate_by_hand(model, batches):
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None                         # None: the average of all batches
        norm.train()                                 # measure, instead of using what is stored
    with torch.no_grad():
        for images, _ in batches:
            model(images)
    for norm in norms:
        norm.momentum = 0.1                          # PyTorch's default, for later training
    model.eval()


# %%
by_hand, recalibrated = copy.deepcopy(truncated), copy.deepcopy(truncated)
recalibrate_by_hand(by_hand, calibration)
responses.recalibrate(recalibrated, calibration)     # the course's own

same = all(
    torch.allclose(a.float(), b.float(), rtol=1e-4, atol=1e-5)
    for a, b in zip(by_hand.buffers(), recalibrated.buffers(), strict=True)
)
print("both agree:  ", same)
start = evaluate(recalibrated, judge)
print(f"truncated:    {top1['truncated']:5.1f} %")
print(f"recalibrated: {start:5.1f} %")

# %% [markdown]
# **Explain.** A part of the accuracy comes back, in seconds. What was wrong? The next cell divides
# the variance that each batch norm now expects by the one that it expected before.

# %%
def variances(model):
    return {n: m.running_var for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)}


before, after = variances(truncated), variances(recalibrated)
ratios = [float((after[n] / before[n]).median()) for n in before]
lowest = min(ratios)
plots.curves(
    {"recalibrated": (range(1, len(ratios) + 1), ratios)},
    levels={"truncated": 1.0},
    xlabel="batch norm, from the first to the last",
    ylabel="variance, after / before\n(median channel)",
    alt="For each batch norm, the new variance as a share of the old one: "
    f"{sum(r < 1 for r in ratios)} of {len(ratios)} lie below 1, the lowest at {lowest:.2f}.",
)

# %% [markdown]
# Most lie below 1: what the truncated layers give out varies less than their batch norms expected.
# On the photographs the first falls furthest. It follows the stem, the first convolution, which
# keeps 8 of its 64 directions. Its kernel lost a third of its energy (the sum of its squared
# numbers), but its median channel lost over four fifths of its variance: real images used the
# directions that went ([chapter 07](07_responses_not_weights.ipynb)). A value above 1 says that the
# layer receives more than before, or that the cut mixes the channels so that the median channel
# varies more.
#
# ### A repair, not a gift
#
# A sceptic asks: would this help *any* network? So recalibrate the dense one too. And compare with
# the cut of [chapter 07](07_responses_not_weights.ipynb): `compress` with `data` looks at what the
# layers give out, and fits each layer to what the same layer of the dense network gives.
#
# **Predict.** Nothing is trained, and the two cuts have the same budget. Order these four networks:
# dense; dense and recalibrated; cut by weights and recalibrated; cut by responses.

# %%
dense_too = copy.deepcopy(dense)
responses.recalibrate(dense_too, calibration)
by_responses = compress(dense, example, budget=0.2, data=calibration)

untrained = {
    "dense": top1["dense"],
    "dense, recalibrated": evaluate(dense_too, judge),
    "cut by weights, recalibrated": start,
    "cut by responses": evaluate(by_responses, judge),
}
for key, value in untrained.items():
    print(f"{key:29} {value:5.1f} %")

# %% [markdown]
# **Explain.** Recalibration changes the stored statistics of the dense one too, although it was not
# broken. Its accuracy may move by a few images, up or down, or not at all (section 5 says how much
# is chance; chapter 07 measures it more finely). That is little beside what the cut network wins.
# And `compress` with images is better still: it chooses ranks and directions by what the layers
# give out, and it refits (chapter 07). So where you have images, use them. This chapter goes on
# with the network that was cut by its weights, since there is more to win back.
#
# ### Trap 1: a forgotten `eval()`
#
# In `train()` mode a batch norm ignores what it has stored. It uses the mean and variance of the
# batch at hand, so the answer for one image depends on its neighbours. And it *changes* what is
# stored, even if you only look.
#
# **Predict.** Give the network one class at a time, first in `eval()` mode, then in `train()` mode.
# Then go back to `eval()` mode and do it again. What are the three accuracies?

# %%
by_class = torch.tensor(held_out.labels).argsort(stable=True).numpy()
one_class = data.make_loader(held_out.select(by_class), per_class["judge"], size)
careless = copy.deepcopy(recalibrated)
three = {}
for step, training in {"eval": False, "train": True, "eval again": False}.items():
    careless.train(training)
    with torch.no_grad():
        right = [careless(images).argmax(1) == labels for images, labels in one_class]
    three[step] = 100 * float(torch.cat(right).float().mean())
    print(f"{step:10} {three[step]:5.1f} %")

# %% [markdown]
# **Explain.** In `train()` mode the batch norm takes away what the images of a batch have in
# common. If that is their class, the answers are worth little. And the third figure need not be the
# first, although nothing was trained: the stored numbers have changed. No error is raised.
# `evaluate` of the course's package switches to `eval()` by itself, and back.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert same
assert start > top1["truncated"]                                       # "comes back"
stored = zip(dense.buffers(), dense_too.buffers(), strict=True)
assert not all(torch.equal(a, b) for a, b in stored)                   # "changes the dense one too"
assert start - top1["truncated"] > abs(untrained["dense, recalibrated"] - top1["dense"])
if name == "digits" or not quick:
    assert untrained["cut by responses"] > start                       # "is better"
assert sorted(ratios)[len(ratios) // 2] < 1                            # "Most lie below 1"
assert sorted(ratios)[int(0.85 * len(ratios))] < 1.05                  # "Most lie below 1"
assert three["train"] < three["eval"] - 10                             # "worth little"
stored = zip(careless.buffers(), recalibrated.buffers(), strict=True)
assert not all(torch.equal(a, b) for a, b in stored)                   # "have changed"
assert abs(three["eval"] - start) < 1.5
if name == "imagenette":
    stem = next(iter(truncated.plan))
    assert stem.rank == 8 and 0.3 < stem.error < 0.37 and ratios[0] == lowest < 0.2

# %% [markdown]
# ## 3. Fine-tune
#
# Now train the weights: each thin layer can learn to make up for what others lost. The network is
# already good, so the steps should be small. The **one-cycle** schedule starts with a low learning
# rate, rises to a peak, and ends near zero.
#
# **Predict.** First a question: does it matter whether you start the training from the truncated or
# from the recalibrated network?

# %%
images, labels = next(iter(data.make_loader(tune_images, 32, size, augment=True)))
outputs = []
for network in (truncated, recalibrated):
    model = copy.deepcopy(network).train()
    outputs.append(model(images))
print("same outputs in train() mode:", torch.equal(*outputs))

# %% [markdown]
# **Explain.** For the weights, not at all: training never uses the stored statistics. But the
# stored ones change slowly, a tenth at each step. After a short training, a part of them is still
# from before. So recalibration matters wherever `eval()` is used: before training, to see how good
# the cut was, and sometimes *after* it (trap 2).
#
# Here is the training loop. `loss_of` turns the network's outputs into a loss. After each epoch the
# loop notes the accuracy on held-out images twice: as training leaves the statistics, and
# recalibrated, on a copy.

# %%
def both(model):                                     # as training leaves it, and recalibrated
    mended = copy.deepcopy(model)
    responses.recalibrate(mended, calibration)
    return {"as trained": evaluate(model, judge), "recalibrated": evaluate(mended, judge)}


# %%
def tune(model, images, epochs, peak, loss_of, seed=0):
    torch.manual_seed(seed)                          # of the random crops
    loader = data.make_loader(images, 32, size, augment=True, seed=seed)
    optimizer = torch.optim.SGD(model.parameters(), peak, momentum=0.9, weight_decay=5e-4)
    steps = epochs * len(loader) + 1
    # It moves the momentum as well: 0.95, down to 0.85 at the peak, and back.
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, steps)
    curve = {"as trained": [], "recalibrated": []}
    for _ in range(epochs):
        model.train()
        for batch, labels in tqdm(loader, "training", leave=False):
            loss = loss_of(model(batch), labels, batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        for key, value in both(model).items():
            curve[key].append(value)
    responses.recalibrate(model, calibration)
    return curve


# %% [markdown]
# **Predict.** Two short epochs at a peak rate of 0.01. Where will the two curves end?

# %%
def from_labels(logits, labels, batch):
    return F.cross_entropy(logits, labels)


epochs = 2
tuned = {0.01: copy.deepcopy(recalibrated)}
curves = {0.01: tune(tuned[0.01], tune_images, epochs, 0.01, from_labels)}

# %%
x = range(epochs + 1)
plots.curves(
    {key: (x, [start, *values]) for key, values in curves[0.01].items()},
    levels=top1,
    xlabel="epochs of fine-tuning",
    ylabel="top-1 on held-out images (%)",
    alt=f"Recovery: from {start:.0f} % to {curves[0.01]['as trained'][-1]:.0f} % as training "
    f"leaves it, and {curves[0.01]['recalibrated'][-1]:.0f} % recalibrated after training; "
    f"dotted lines show the dense network at {top1['dense']:.0f} % and the truncated one at "
    f"{top1['truncated']:.0f} %.",
)

# %% [markdown]
# ### Trap 2: lagging statistics
#
# **Explain.** How much such a short training wins back is partly luck; section 6 has longer ones.
# Look at the gap between the two curves instead. A gap of a few images, up or down, may be chance.
# A wide one can have two causes. First, the stored statistics are an average over about the last
# ten steps. While the rate is high, they lag behind weights that move fast. At the end of the
# schedule the weights hardly move, and there is less to catch up with. (In a training as short as
# this one, a part is even from before.) Second, training measures the statistics on random crops,
# recalibration on whole images, as in the test (chapter 07, section 6). That difference stays,
# however long you train. So try it, and look on held-out images: it takes seconds.
#
# ### Trap 3: choices made on the test images
#
# How high should the peak rate be? Try two more, and choose on the held-out images. (How long to
# train is a choice too: Liebenwein et al., 2021, replay the learning rates of the dense training.)
#
# **Predict.** What will 0.001 do, and what 1.0?

# %%
for peak in (0.001, 1.0):
    tuned[peak] = copy.deepcopy(recalibrated)
    curves[peak] = tune(tuned[peak], tune_images, epochs, peak, from_labels)

# %%
ends = {peak: curves[peak]["recalibrated"][-1] for peak in sorted(curves)}
plots.curves(
    {f"peak rate {p}": (x, [start, *curves[p]["recalibrated"]]) for p in ends},
    levels={"dense": top1["dense"]},
    xlabel="epochs of fine-tuning",
    ylabel="top-1 on held-out images (%)",
    alt="Recovery curves at three learning rates. They end at "
    + ", ".join(f"{end:.0f} % for {peak}" for peak, end in ends.items()) + ".",
)

# %%
best = max(ends, key=ends.get)
retrained = tuned[best]
print("ends on held-out images:", {peak: f"{end:.1f} %" for peak, end in ends.items()})
print("chosen peak rate:", best)
print(f"cut by responses, not trained: {untrained['cut by responses']:.1f} %")

# %% [markdown]
# **Explain.** The highest rate destroys what the network had learned. The two lower ones need not
# differ by more than chance: section 5 shows how to tell. (Where two tie, `max` takes the first,
# here the lower rate.) If you had chosen on **val**, its figure would now look a little better than
# it is.
#
# And look at the last line: on the photographs, the network that was cut and refitted with images,
# but not trained, is several points ahead of the one that was cut by its weights and trained.
# (Section 5 shows how to test such a difference.) So use your images for cut and refit first, and
# train then.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert torch.equal(*outputs)
assert ends[1.0] < start - 15 or ends[1.0] < 30               # "destroys"
assert best in (0.001, 0.01)
if name == "digits":
    assert ends[best] > start
if name == "imagenette" and not quick:
    assert untrained["cut by responses"] > max(ends.values()) + 3     # "several points ahead"

# %% [markdown]
# The course's `train` is this loop with a few additions: half precision where a measurement shows
# that it is faster, an average over the last weights, label smoothing (section 7), and a file from
# which an interrupted training goes on. Give it the same task:

# %%
from lowrank_course import train

packaged = copy.deepcopy(recalibrated)
train(packaged, tune_images, epochs, size, learning_rate=best, batch_size=32)
responses.recalibrate(packaged, calibration)
end = evaluate(packaged, judge)
print(f"by hand: {ends[best]:.1f} %, by the package: {end:.1f} %")

# %% [markdown]
# The two draw other crops and differ in details, and only a few images are judged. Do not read
# anything into the difference; section 5 says why.
#
# ## 4. One look at the validation images
#
# All choices are made. Now, and only now, look at images of **val**.

# %%
from lowrank_course.train import answers

final = data.balanced_subset(data.load_images("val", name), per_class["final"])
final_loader = data.make_loader(final, size=size)
stages = {
    "dense": dense, "truncated": truncated, "recalibrated": recalibrated, "retrained": retrained,
}  # fmt: skip
right = {stage: answers(network, final_loader) for stage, network in stages.items()}

# %%
print(f"{f'{len(final)} validation images':21} {'parameters':>12} {'MACs':>13}")
for stage, network in stages.items():
    accuracy = 100 * float(right[stage].float().mean())
    costs = f"{count_parameters(network):12,} {count_macs(network, example):13,}"
    print(f"{stage:13} {accuracy:5.1f} % {costs}")

# %% [markdown]
# ## 5. Is the difference real?
#
# Another sample of images would have given other figures. If a network is right on a share $p$ of
# all images, then on a sample of $n$ the measured share scatters around $p$ with the **standard
# error**
#
# $$\sqrt{p\,(1 - p) / n}$$
#
# **Predict.** Suppose that a network is right on 93 % of all images. How large is the standard
# error for 100 images? And for all 3,925 validation images of Imagenette?

# %%
for n in (100, len(final), data.COUNTS["val"]):
    error = 100 * math.sqrt(0.93 * 0.07 / n)
    print(f"{n:5} images: one standard error at 93 % is {error:.1f} points")

# %% [markdown]
# **Explain.** To halve it, you need four times the images. The difference of two such figures, each
# from images of its own, scatters 1.4 times as much ($\sqrt{2}$). If it is below two of *these*
# errors, it may well be chance.
#
# There is a sharper way when both networks see the *same* images. Most images are easy for both, or
# hard for both, and say nothing about which is better. Count only those on which exactly one is
# right. If both networks were equally good, each of these would be the toss of a fair coin. That is
# **McNemar's test**; its **p-value** is how often fair coins fall at least as unevenly.

# %%
def mcnemar(a, b):
    """Which of two networks is better, from their right answers (N,) on the same images."""
    only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
    n, fewer = only_a + only_b, min(only_a, only_b)
    tail = sum(math.comb(n, k) for k in range(fewer + 1)) / 2**n
    return only_a, only_b, min(1.0, 2 * tail)


# %%
from scipy.stats import binomtest

pairs = [("dense", "retrained"), ("recalibrated", "retrained"), ("truncated", "recalibrated")]
for a, b in pairs:
    only_a, only_b, p = mcnemar(right[a], right[b])
    print(f"only {a}: {only_a}, only {b}: {only_b}, p-value {p:.2g}")
    scipys = binomtest(min(only_a, only_b), max(1, only_a + only_b)).pvalue
    print(f"   SciPy's exact test agrees: {math.isclose(p, scipys)}")

# %% [markdown]
# **Explain.** A p-value above 0.05 means: these images show no difference. It does not prove that
# there is none; more images might show one. Do not say "slightly better". This course then says
# **the same**, for short. Below 0.05, chance alone would rarely make a difference this large. (But
# test twenty pairs of equal networks, and one of them may fall below.)
#
# Read the first pair: if its p-value is below 0.05, the accuracy is not won back in full. Then the
# second: if it is above 0.05, the test does not even show that training helped, with few images to
# learn from and few to judge by. Then the honest sentence is: "this run does not show it".
#
# This judges two *networks*. To judge two *ways of training*, the luck of the training counts too:
# order of images, random crops. Repeat each way with at least three seeds, and compare the
# difference with the scatter. If you have only one run of each, claim nothing.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert round(100 * math.sqrt(0.93 * 0.07 / 3925), 1) == 0.4
assert data.COUNTS["val"] == 3925 and abs(math.sqrt(2) - 1.4) < 0.05 and 20 * 0.05 == 1
for a, b in pairs:
    only_a, only_b, p = mcnemar(right[a], right[b])
    scipys = binomtest(min(only_a, only_b), max(1, only_a + only_b)).pvalue
    assert math.isclose(p, scipys)
assert mcnemar(right["dense"], right["dense"])[2] == 1.0
if name == "digits" or not quick:
    assert right["retrained"].sum() > right["truncated"].sum()
assert abs(end - ends[best]) < 30       # the same task, not the same network

# %% [markdown]
# ## 6. The recorded runs
#
# Your live run used few images. `lowrank-course demo` takes more, cuts by responses to the same
# fifth of the MACs, and with `--json FILE` writes a record. There, *recalibrated* means more than
# in section 2: the **refit** of [chapter 07](07_responses_not_weights.ipynb) computes weights anew,
# so that each layer gives out what the dense one does, as nearly as it can. Still nothing is
# trained.
#
# Profile `laptop` takes minutes, `full` trains on every training image and judges on every
# validation image. The records are part of the repository. (*File* is the size on disk; *batch 1*
# and *batch 32* are times for one image and for 32.)
#
# **Predict.** Two steps bring accuracy back: the refit, which trains nothing, and the training.
# Which brings back more?

# %%
from lowrank_course.demo import table

records = {}
for run in ("laptop", "full"):
    path = Path(f"../results/demo-{run}.json")
    if path.exists():
        records[run] = json.loads(path.read_text())
        about = records[run]["data"]
        print(f"{run}: {about['name']}, {about['evaluated']} validation images")
        print(table(records[run]) + "\n")
    else:
        print(f"{path} is missing; `lowrank-course demo --profile {run} --json FILE` makes it\n")

# %%
live = {stage: 100 * float(values.float().mean()) for stage, values in right.items()}
columns = {"here": live}
for run, record in records.items():
    columns[run] = {row["network"]: row["accuracy"] for row in record["rows"]}
print(f"{'top-1 (%)':13}" + "".join(f"{column:>9}" for column in columns))
for stage in stages:
    print(f"{stage:13}" + "".join(f"{column[stage]:9.1f}" for column in columns.values()))

# %% [markdown]
# The columns differ in the cut, in the images that are judged, in the amount of training, and, if
# yours is of the digits, in the network and the task. Read them downwards, not across.
#
# In both records most of the lost accuracy comes back without training, in the refit. (Much of
# that, recalibration would mend as well: see the five cuts below.) What training adds (0.7 and 0.5
# points) is less than two standard errors of a difference (section 5). That rule is for two
# networks that saw different images. Here both saw the same ones, so a paired test could show more;
# but the records do not hold the answers image by image. So these two records alone do not show
# that training helped.
#
# Now compare the recorded network with the popular recipe of [chapter 00](00_start_here.ipynb). The
# recipe cuts two layers to rank 8 and writes them back in their old shape. The next cell holds the
# accuracy that it reports. The costs are shares of each one's own dense network.

# %%
recipe = {"top-1 (%)": 64.79, "parameters kept (%)": 100, "MACs kept (%)": 100}
if "full" in records:
    rows = {row["network"]: row for row in records["full"]["rows"]}
    won = rows["retrained"]["accuracy"]
    shown = {"top-1 (%)": {"dense": rows["dense"]["accuracy"], "retrained": won}}
    for key, title in (("parameters", "parameters kept (%)"), ("macs", "MACs kept (%)")):
        part = 100 * rows["retrained"][key] / rows["dense"][key]
        shown[title] = {"dense": 100, "retrained": part}
    for title, value in recipe.items():
        shown[title]["recipe"] = value
    plots.bars(
        shown,
        alt=f"Bars. The recipe reports {recipe['top-1 (%)']} % and keeps all parameters and MACs. "
        f"The retrained network has {won:.1f} % with "
        f"{shown['parameters kept (%)']['retrained']:.0f} % of the parameters and "
        f"{shown['MACs kept (%)']['retrained']:.0f} % of the MACs.",
    )

# %%
print(f"recipe:    {recipe['top-1 (%)']} %, nothing gets smaller")
if "full" in records:
    gap = won - rows["dense"]["accuracy"]
    share, n = won / 100, records["full"]["data"]["evaluated"]
    error = 100 * math.sqrt(share * (1 - share) / n)
    print(f"retrained: {won:.2f} %, {gap:+.2f} points against the dense network")
    print(f"two standard errors of a difference, on {n:,} images: {2 * 2**0.5 * error:.2f} points")

# %% [markdown]
# **Explain.** Is the gap to the dense network real? Both saw the same images, so McNemar's test
# would judge it best, but this record holds no answers image by image. (The next record does.) By
# the rougher rule of section 5, the gap should be larger than two standard errors of a
# *difference*, the last printed line. If it is smaller, it may well be chance.
#
# The picture does not say that one method beats the other by so many points: the recipe trains an
# untrained network for five epochs, the course starts from a trained one. [Chapter
# 04](04_the_popular_recipe.ipynb) runs the recipe again. What the picture does say: the recipe
# makes nothing smaller, and here most of the network is gone.
#
# ### Longer, and more than once
#
# The compressed network that ships with the course had two limits at once: about a tenth of the
# parameters and a quarter of the MACs. It was fine-tuned on all training images for 16 epochs, with
# the dense network as its teacher, and so were two more with other seeds: this is
# `python benchmarks/runs.py compressed`. (The two others ran on another processor, with bfloat16
# products. So their scatter holds more than the seed.)
#
# **Predict.** How far apart are the three? And how far below the dense network?

# %%
def answers_of(job):                                 # kept as bits, packed into hex digits
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(job["right"]["val"]), np.uint8))
    return torch.tensor(bits[: data.COUNTS["val"]] == 1)


if (path := Path("../results/compressed.json")).exists():
    jobs = json.loads(path.read_text())["jobs"]
    first, base = jobs["tuned, seed 0"], jobs["dense"]
    parts = {cost: first[cost] / base[cost] for cost in ("parameters", "macs")}
    print(", ".join(f"{part:.1%} of the {cost}" for cost, part in parts.items()))
    print(f"dense        {base['accuracy']['val']:.2f} %")
    runs = {key: job for key, job in jobs.items() if key.startswith("tuned")}
    for key, job in runs.items():
        only_dense, only_it, p = mcnemar(answers_of(base), answers_of(job))
        differ, n = only_it + only_dense, data.COUNTS["val"]
        print(f"{key}  {job['accuracy']['val']:.2f} %, only it is right: {only_it}, only dense: "
              f"{only_dense}, p-value {p:.2f}, difference {100 * (only_it - only_dense) / n:+.2f} "
              f"± {200 * differ**0.5 / n:.2f} points")
else:
    print(f"{path} is missing; `python benchmarks/runs.py compressed` makes it")


# %% [markdown]
# **Explain.** The three lie within half a point of the dense network: that much is in the luck of a
# training, or in the machine. No test shows a difference to the dense network, on nearly four
# thousand images.
#
# The number after ± is two standard errors of a *paired* difference. One of them is the root of the
# number of images on which exactly one network is right, divided by the number of all images. So
# these images do not rule out a loss of up to 0.8 points for seed 0, the network that ships. They
# do rule out one of several points. Nine tenths of the parameters went, and the accuracy stayed, as
# far as these images can tell.
#
# ### What did the training add?
#
# The compressed network was refitted before it was trained, as is every network that `compress`
# cuts with images. A second run cut deeper, to less than a twentieth of the parameters
# (`python benchmarks/runs.py extreme`). Each was trained at the rate that had done better for it in
# a trial, 0.0075 for the first, 0.03 for the second. What the training has added is counted on the
# 500 held-out images, for the cut alone was never judged on the validation images. (The rate was
# chosen on the same 500, so the gain may look a little better than it is.) The line below each test
# compares the trained network with the dense one, on all validation images.
#
# **Predict.** How much did 16 epochs add to the first? And to the second?

# %%
def held_out_answers(record, key):
    packed = bytes.fromhex(record["jobs"][key]["right"]["holdout"])
    bits = np.unpackbits(np.frombuffer(packed, np.uint8))
    return torch.tensor(bits[: record["configuration"]["data"]["holdout"]] == 1)


# %%
gains = {}
for run in ("compressed", "extreme"):
    if (file := Path(f"../results/{run}.json")).exists():
        record = json.loads(file.read_text())
        found, untuned = record["jobs"], held_out_answers(record, "cut")
        part = found["cut"]["parameters"] / found["dense"]["parameters"]
        print(f"{run}, {part:.1%} of the parameters, held-out images: "
              f"{100 * untuned.float().mean():.1f} % before")
        for key in [key for key in found if key.startswith("tuned")]:
            longer = held_out_answers(record, key)
            lost, gained, p = gains[run, key] = mcnemar(untuned, longer)
            print(f"  {key}: {100 * longer.float().mean():.1f} %, {gained} won, {lost} lost, "
                  f"p-value {p:.2g}")
            only = mcnemar(answers_of(found["dense"]), answers_of(found[key]))
            print(f"     validation {found[key]['accuracy']['val']:.2f} %, only dense is right: "
                  f"{only[0]}, only it: {only[1]}, p-value {only[2]:.2g}")

# %% [markdown]
# **Explain.** At a tenth of the parameters, no training shows a gain on these 500 images: the refit
# had left little to win. Where less than a twentieth is left, the refit had left more. (The
# learning rate was another as well.) There the first training won about twice as many images as it
# lost, and with a p-value of 0.1 that may be chance. The second won six times as many as it lost:
# chance hardly does that. The third won nearly three times as many.
#
# And the validation images? There even the deeper cut shows no difference from the dense network.
# That does not prove that there is none: all three lie a little below it, the last by 0.7 points
# with a p-value of 0.07.
#
# **Predict.** The three trainings of the deeper cut differ in the seed alone. (The first used one
# thread, the others two, which moves the last digits.) On the held-out images the second is ahead
# of the first by nearly three points. And on the validation images?

# %%
if (file := Path("../results/extreme.json")).exists():
    deeper = json.loads(file.read_text())
    two = [f"tuned, seed {seed}" for seed in (0, 1)]
    pair = {
        "500 held-out images": mcnemar(*(held_out_answers(deeper, key) for key in two)),
        "all validation images": mcnemar(*(answers_of(deeper["jobs"][key]) for key in two)),
    }
    for images, (only_first, only_second, p) in pair.items():
        print(f"{images}: only the first is right {only_first}, only the second {only_second}, "
              f"p-value {p:.2g}")

# %% [markdown]
# **Explain.** There the first one is ahead, by a third of a point, which may be chance. So most of
# the lead on the held-out images was luck, in spite of its p-value below 0.01. Nobody had planned
# this comparison: it was picked because it stood out. Whoever looks at many pairs will meet one
# like it. A p-value means what it says for a question that was asked before.
#
# ### Does a careful cut still matter?
#
# If training mends a cut, is a quick one good enough? Short trainings give an answer
# (`python benchmarks/runs.py ablations`). Five cuts have the same budget, 15 % of the MACs:
#
# - *weights* is a cut by the weights alone, recalibrated;
# - *weight directions* has the forms and ranks of *ours*, but keeps directions by the weights. It
#   is recalibrated, or, in a row of its own, refitted;
# - *not refitted* chooses ranks and directions by the responses, and is recalibrated;
# - *ours* is what `compress` makes with images: the same, but refitted.
#
# Each then gets three epochs at 96 pixels, with three seeds, with the dense network as teacher and
# with CutMix (both in section 7). All are judged at 128 pixels.
#
# **Predict.** Before the training they differ. How much of that is left after three epochs?

# %%
short = {}
if (file := Path("../results/ablations.json")).exists():
    short = json.loads(file.read_text())["jobs"]


def three_of(way):                                   # its recorded trainings, one for each seed
    return [short[key] for seed in range(3) if (key := f"{way}, seed {seed}") in short]


def tops_of(way):                                    # their accuracies (3,), validation images
    return torch.tensor([job["accuracy"]["val"] for job in three_of(way)], dtype=torch.float64)


CUTS = ("weights", "weight directions", "weight directions, refitted", "not refitted", "ours")
for way in CUTS if short else ():
    tried = three_of(way)[0]
    print(f"{way:27} {tried['parameters'] / base['parameters']:.1%} of the parameters: "
          f"{tried['before']['accuracy']['val']:.1f} % before, then "
          f"{[round(top, 1) for top in tops_of(way).tolist()]}, mean {tops_of(way).mean():.1f} %")

# %%
def tests_of(way):                                   # one for each seed, beside ours
    pairs_of = zip(three_of(way), three_of("ours"), strict=True)
    return [mcnemar(answers_of(its), answers_of(mine)) for its, mine in pairs_of]


def mean_lead(some, others):                         # points, standard errors by seeds, by images
    right = [torch.stack([answers_of(job) for job in side]).double() for side in (some, others)]
    apart = right[0].mean(0) - right[1].mean(0)                           # (N,)
    by_seeds = sum(side.mean(1).var() / len(side) for side in right).sqrt()
    return [float(100 * each) for each in (apart.mean(), by_seeds, apart.std() / len(apart) ** 0.5)]


# %%
def beside_ours(way):                                # leads of ours (3,), standard error: points
    lead, by_seeds, by_images = mean_lead(three_of("ours"), three_of(way))
    print(f"ours minus {way}: {lead:+.2f} points; standard errors {by_seeds:.2f} (seeds), "
          f"{by_images:.2f} (images)")
    for seed, (only_it, only_ours, p) in enumerate(tests_of(way)):
        print(f"   seed {seed}: only {way} is right {only_it}, only ours {only_ours}, "
              f"p-value {p:.2g}")
    return tops_of("ours") - tops_of(way), max(by_seeds, by_images)


ahead = {way: beside_ours(way) for way in CUTS[:-1] if short}

# %% [markdown]
# **Explain.** *Weights* lay 22 points behind *ours*; less than one is left. Three epochs close
# nearly the whole gap. *Ours* is still 0.6 points higher in the mean, with fewer parameters, and
# higher with every seed. But that is less than three standard errors, whether you take them from
# the seeds or from the images. (With three seeds a standard error is itself rough, so this course
# asks for three of them.) None of the three tests shows it, but each of them alone is too weak for
# so small a lead. So a small lead is likely, and not shown. Do not claim it.
#
# *Weight directions* splits the 22 points. With the forms and ranks of *ours*, 16 of them are back
# before any training: what the weights alone judge badly is which layers may be thin. The better
# directions add four more, the refit 1.5. In another order each gets another share: a refit of the
# *weight directions* brings them within a point of *ours*, so the refit makes up for most of what
# poor directions lose. After the training no difference to *ours* can be seen, neither without the
# better directions nor without the refit. *Ours* gained little from the three epochs: it had almost
# the same accuracy before. So a careful cut is worth most if you cannot train, or for no longer
# than this. In the mean, all five end two points or more below the dense network (90.0 %). (All
# this is said of one learning rate. The section after the next one tries others.)
#
# ### How many epochs?
#
# *Ours*, with seed 0, was also trained for one epoch, and for eight. Each time the learning rate
# went all the way up and down. So the rows below are three trainings, not one that was stopped
# early. The first row is the network before them, the last one the dense network.
#
# **Predict.** Draw the accuracy against the number of epochs: 0, 1, 3, 8.

# %%
LENGTHS = {"1 epoch": "ours, 1 epochs", "3 epochs": "ours, seed 0", "8 epochs": "ours, 8 epochs",
           "dense": "dense"}
lengths, steps = {}, {}
if short:
    lengths = {"0 epochs": short["ours, seed 0"]["before"]}
    lengths |= {title: short[key] for title, key in LENGTHS.items()}
above = None
for title, job in lengths.items():
    print(f"{title:9} {job['accuracy']['val']:.1f} %", end="")
    if above is not None:
        worse, better, p = steps[title] = mcnemar(answers_of(above), answers_of(job))
        print(f"; beside the row above {better} won, {worse} lost, p-value {p:.2g}", end="")
    print()
    above = job
if lengths:
    again = lengths["1 epoch"]["recalibrated"]
    print(f"1 epoch, recalibrated: {again['accuracy']['val']:.1f} %")
    mended = mcnemar(answers_of(lengths["0 epochs"]), answers_of(lengths["3 epochs"]))
    print(f"3 epochs beside 0: {mended[1]} won, {mended[0]} lost, p-value {mended[2]:.2g}")

# %% [markdown]
# **Explain.** After one epoch this network is *worse*, by 1.9 points, with a p-value below 0.001.
# After three that is won back; what they add to the start, 0.6 points, may be chance. Eight end
# another 1.5 points higher. There the test no longer shows a difference to the dense network, with
# 15 % of the MACs. (The dense network did not get those epochs.)
#
# Why worse at first? It is not the batch norms (trap 2): recalibrated, the network of one epoch
# gains little. It is the training itself. A likely reason: a refitted network stands near the best
# that can be had without training, large steps throw it off that place, and one epoch is too short
# to come to a better one. Perhaps a lower learning rate would harm less. (The next section tries
# that, for three epochs. And it is one seed.) So if you have time for one epoch only, a good refit
# without training may be the better choice. Look at held-out images before and after.
#
# ### Was the learning rate right?
#
# All the short trainings above, of one, three and eight epochs, had the same learning rate, 0.015
# at its highest. But a comparison at one rate may only show whom that rate suits. So three of the
# five cuts were trained again for three epochs (seed 0), with half of the rate and with twice the
# rate.
#
# **Predict.** Which rate is best here? And who is ahead at each?

# %%
RATES = {0.0075: "rate 0.0075", 0.015: "seed 0", 0.03: "rate 0.03"}
at_rate = {}
if short:
    at_rate = {rate: {way: short[f"{way}, {key}"] for way in ("weights", "not refitted", "ours")}
               for rate, key in RATES.items()}
for rate, trio in at_rate.items():
    print(f"learning rate {rate}")
    for way, job in trio.items():
        only_it, only_ours, p = mcnemar(answers_of(job), answers_of(trio["ours"]))
        beside = f", only it is right {only_it}, only ours {only_ours}, p-value {p:.2g}"
        print(f"   {way:13} {job['accuracy']['val']:.1f} % (held-out "
              f"{job['accuracy']['holdout']:.1f} %){'' if way == 'ours' else beside}")
if at_rate:
    sides = {way: (at_rate[0.015][way], job) for way, job in at_rate[0.0075].items()}
    sides["ours, beside its 8 epochs"] = (lengths["8 epochs"], at_rate[0.0075]["ours"])
    sides["ours, beside its start"] = (lengths["0 epochs"], at_rate[0.0075]["ours"])
    sides["ours, beside dense"] = (short["dense"], at_rate[0.0075]["ours"])
    halved = {key: mcnemar(*map(answers_of, each)) for key, each in sides.items()}
    for key, (worse, better, p) in halved.items():
        print(f"the lower rate, {key}: {better} won, {worse} lost, p-value {p:.2g}")

# %% [markdown]
# **Explain.** *Ours* has the highest figure at each rate, at 0.015 by a single image. But the rate
# counts for more than the choice among the three: from the lowest rate to the highest each of them
# loses 2.3 to 3.1 points, and at one rate they lie at most 1.3 apart. With half of the middle rate
# they end 0.8 to 1.3 points higher than with it, each time with a p-value below 0.05. With twice
# that rate they end 1.1 to 1.8 points lower, and *ours* no higher than before its training.
#
# Three epochs of *ours* at the lower rate gain 1.8 points on its start. They end 0.3 points below
# its eight epochs at the middle rate, which may be chance. (Beside the dense network the test still
# shows a gap.) So what looked like too few epochs may have been, in part, too high a rate. By the
# rule of section 5 this is a hint, not a claim: it is one seed, although all three cuts moved the
# same way. Choose the rate first, and on held-out images (section 3). Here they would have chosen
# the lowest rate for two of the three. The network that ships has that rate. In its trial of ten
# epochs it was eight held-out images ahead of 0.03, which may be chance (`results/trials.json`).
# Nobody has tried a lower one.
#
# And the careful cut? In all five trainings, of three seeds and three rates, it is ahead of
# *weights*. At the two lower rates no single test shows the lead (0.6 and 0.7 points). At the
# highest rate it is 1.3 points, with a p-value below 0.001. Beware of one step here: "shown at this
# rate and not at those" does not mean that the leads differ. The distance between them, 0.6 points,
# is little more than one standard error.
#
# ### Three controls
#
# A sceptic will ask for three **controls**:
#
# - the *dense* network, given the same extra epochs. Perhaps it would improve as well;
# - a *smaller ResNet-18* with as many parameters, trained from scratch for as long in total.
#   Perhaps it would do just as well, and no compression is needed;
# - the *compressed architecture* itself, from random factors. Perhaps the trained weights are not
#   needed, only the shape.
#
# `python benchmarks/runs.py controls` trains all three. It takes many hours. The record holds the
# dense one with three seeds, and once with another learning rate, *scratch* with two seeds,
# *narrow* with one:
#
# - *dense* is the dense network after the 16 epochs of the compressed one, at the same rate, with a
#   copy of its old self as the teacher. *Dense, rate 0.03* is the same with four times the learning
#   rate, in case that rate was too low for a whole network;
# - *narrow* is a ResNet-18 with 20 channels where the usual one has 64. It was trained from scratch
#   in the same 120 epochs as the dense one, and then in the same 16 as the compressed one, with the
#   dense network as the teacher;
# - *scratch* has the layers and ranks of the compressed network. But its factors come from an
#   untrained ResNet-18. It was then trained like *narrow*.
#
# **Predict.** Does the dense network improve as well? How far does it then lead the compressed one?
# And where do the two others end?

# %%
controls = {}
if (file := Path("../results/controls.json")).exists():
    control_jobs = json.loads(file.read_text())["jobs"]
    controls = {key: job for key, job in sorted(control_jobs.items()) if "right" in job}
earlier = {"dense": base} | {key.replace("tuned", "compressed"): job for key, job in runs.items()}
for key, job in (earlier | controls).items() if controls else ():
    print(f"{key:18} {job['parameters'] / 1e6:5.2f} M parameters, {job['macs'] / 1e6:3.0f} M MACs, "
          f"{job['accuracy']['val']:.2f} % (held-out {job['accuracy']['holdout']:.1f} %)")

# %%
def lead_of(job, other):                             # points, and the p-value
    only_other, only_it, p = mcnemar(answers_of(other), answers_of(job))
    return f"{100 * (only_it - only_other) / data.COUNTS['val']:+.2f} ({p:.1g})"


if controls:
    print(f"{'lead (p-value) on':18}" + "".join(f"{title:>20}" for title in earlier))
for key, job in controls.items():
    print(f"{key:18}" + "".join(f"{lead_of(job, other):>20}" for other in earlier.values()))
    for other, its in controls.items() if key.startswith("scratch") else ():
        if not other.startswith("scratch"):
            print(f"   on {other}: {lead_of(job, its)}")

# %%
kinds = {kind: [job for key, job in controls.items() if key.startswith(f"{kind}, seed")]
         for kind in ("dense", "narrow", "scratch")}
on_compressed = {kind: mean_lead(of_kind, list(runs.values()))
                 for kind, of_kind in kinds.items() if len(of_kind) > 1}
for kind, (points, by_seeds, by_images) in on_compressed.items():
    mean = sum(job["accuracy"]["val"] for job in kinds[kind]) / len(kinds[kind])
    print(f"{kind}, mean of {len(kinds[kind])}: {mean:.2f} %, on compressed {points:+.2f} points; "
          f"standard errors {by_seeds:.2f} (seeds), {by_images:.2f} (images)")

# %% [markdown]
# **Explain.** Take the dense controls first. All four end above the dense network as it was, by 0.4
# to 0.8 points; the test shows that for three of them. So with such a training the dense network
# goes further. Beside the compressed network of seed 0, the one that ships, each of the four is
# ahead (0.6 to 1.0 points, p-values below 0.02). Beside the two other seeds, no test shows a lead.
#
# So "the accuracy stayed" is said of the dense network as it was. A fairer price of nine tenths of
# the parameters is the mean of three trainings beside the mean of three, all with the same 16
# epochs at the same rate: 0.4 points. That is less than three standard errors (0.16, by the seeds
# and by the images), so it may still be smaller, or nothing. But it is hardly more than a point.
# (*Dense, seed 0*, *narrow* and compressed seed 0 ran in float32, the others with bfloat16
# products.)
#
# And which of the two rates is the right control? On the 500 held-out images, the three at the
# lower rate have 90.1 % in the mean, *dense, rate 0.03* 89.6 %. So the rule of section 3 takes the
# lower rate, though that may be chance. To take the higher one because it did better on the
# validation images would be trap 3. That is why both stand here.
#
# The narrow network stays behind all three compressed ones, by 1.1 to 1.6 points, each time with a
# p-value below 0.01. So with about as many parameters, and as long a training, the large network
# that was compressed did better here than the one that is thinner everywhere. Three limits remain.
# It is one training of the narrow network. Its recipe is that of the dense network, and was not
# tuned for a narrow one. And it is cheaper than the compressed one: it needs less than half of the
# MACs, and about half of the time for one image (both networks with folded batch norms, chapter
# 10).
#
# *Scratch* is the surprise. It has the parameters *and* the MACs of the compressed network, and
# both its trainings end higher than any of the three. The first is ahead of seed 0 by a point, with
# a p-value of 0.01. No other test shows a difference: not beside a compressed network, and not
# beside a dense one. (With more than thirty tests, one p-value of 0.01 may be chance.) In the mean
# the two lie half a point above the three, which is less than three standard errors. So these
# trainings do not show that the trained weights were needed. **In these runs the shape was
# enough:** which layer stays wide, and which may be thin. Liu et al. (2019) saw the same when they
# pruned channels. And the number of parameters alone was *not* enough: *narrow* has about as many,
# in another shape and with fewer MACs, and *scratch* is ahead of it by two points, both times.
#
# Is compression useless, then? No, but it is worth something else than one may think. It *found*
# this shape, with the help of a trained network. And where a trained network is at hand, it is the
# short way: *scratch* took 136 epochs to get there, the compressed network 16, and before the first
# of them its held-out accuracy was nearly that of the end (section "What did the training add?").
# So if you have a trained network and little time, compress it. If you can train for long, train
# the compressed shape from random factors as well. (Again these are two trainings. And their last
# 16 epochs had the dense network as the teacher.)
#
# One more lesson stands in the first lines. The held-out images would have chosen the compressed
# network of seed 0, which is the lowest of these five on the validation images. Five hundred images
# are too few to choose among networks that lie this close together.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
for record in records.values():
    assert [row["network"] for row in record["rows"]] == list(stages)
if path.exists():
    tops = [job["accuracy"]["val"] for job in runs.values()]
    assert len(tops) == 3 and all(abs(top - base["accuracy"]["val"]) < 0.5 for top in tops)
    assert max(tops) - min(tops) < 1
    assert all(mcnemar(answers_of(base), answers_of(job))[2] > 0.05 for job in runs.values())
    assert parts["parameters"] < 0.104 and parts["macs"] <= 0.25
    a, b, _ = mcnemar(answers_of(base), answers_of(first))
    assert round(100 * (b - a - 2 * (a + b) ** 0.5) / 3925, 1) == -0.8
for (run, key), (lost, gained, p) in gains.items():
    if run == "compressed":
        assert p > 0.05                                       # "no training shows a gain"
    elif key == "tuned, seed 0":
        assert 1.7 < gained / lost < 2.2 and round(p, 1) == 0.1           # "about twice"
    elif key == "tuned, seed 1":
        assert gained == 6 * lost and p < 0.001                           # "six times"
    else:
        assert 2.7 < gained / lost < 3 and p < 0.05                       # "nearly three times"

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
from lowrank_course.models import resnet18  # noqa: E402

for key, job in controls.items():
    others = (base, *runs.values())
    (a, b, p), *against = [mcnemar(answers_of(other), answers_of(job)) for other in others]
    behind = [100 * (a - b) / 3925 for a, b, _ in against]        # points
    if key.startswith("dense"):
        assert 0.4 <= round(100 * (b - a) / 3925, 1) <= 0.8               # beside dense
        assert (p < 0.05) == (key != "dense, seed 0")                     # "for three of them"
        assert 0.6 <= round(-behind[0], 1) <= 1.0 and against[0][2] < 0.02
        assert all(p > 0.05 for _, _, p in against[1:])
    elif key == "narrow, seed 0":
        assert round(min(behind), 1) == 1.1 and round(max(behind), 1) == 1.6
        assert max(p for _, _, p in against) < 0.01
        assert 0.95 < job["parameters"] / first["parameters"] <= 1        # "as many parameters"
        assert job["macs"] < 0.5 * first["macs"] and len(job["log"]) == 120 + 16
        ms = control_jobs["times"]["latency_ms"]["1"]
        assert 0.4 < ms["narrow"] / ms["compressed"] < 0.6                # "about half"
        assert job["parameters"] == count_parameters(resnet18(20, 10))

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
if controls:
    assert [len(of_kind) for of_kind in kinds.values()] == [3, 1, 2]      # "three seeds", "two"
    trained_on, (narrow,), shapes = kinds.values()
    higher = controls["dense, rate 0.03"]
    tops = {key: job["accuracy"]["val"] for key, job in runs.items()}
    assert shapes[0]["accuracy"]["val"] - tops["tuned, seed 0"] > 0.95    # "by a point"
    to = (base, *runs.values(), *trained_on, higher)
    seen = [mcnemar(answers_of(other), answers_of(shape))[2] for shape in shapes for other in to]
    assert round(seen.pop(1), 2) == 0.01 and min(seen) > 0.05             # "No other test"
    some = (trained_on[0], narrow, *runs.values(), *trained_on[1:], *shapes, higher)
    assert [job["bf16"] for job in some] == [False] * 3 + [True] * 7
    for shape in shapes:
        assert shape["accuracy"]["val"] > max(tops.values())              # "higher than any"
        assert shape["macs"] == first["macs"] and len(shape["log"]) == 120 + 16
        assert abs(shape["parameters"] / first["parameters"] - 1) < 0.002

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
if controls:
    points, by_seeds, by_images = on_compressed["dense"]
    assert round(points, 1) == 0.4 and points < 3 * min(by_seeds, by_images)
    assert round(by_seeds, 2) == round(by_images, 2) == 0.16 and 0.8 < points + 3 * by_seeds < 1
    rates = json.loads(Path("../results/controls.json").read_text())["configuration"]
    assert rates["extreme rate"] == 0.03 == 4 * rates["compressed rate"]  # "four times"
    assert round(sum(job["accuracy"]["holdout"] for job in trained_on) / 3, 1) == 90.1
    assert round(higher["accuracy"]["holdout"], 1) == 89.6
    assert {len(job["log"]) for job in (*trained_on, higher)} == {16}
    for shape in shapes:
        assert round(shape["accuracy"]["val"] - narrow["accuracy"]["val"]) == 2    # "two points"
        assert mcnemar(answers_of(narrow), answers_of(shape))[2] < 1e-4
    points, *errors_of = on_compressed["scratch"]
    assert 0.45 < points < 0.6 and points < 3 * min(errors_of)            # "half a point"
    tried = [*runs.values(), *shapes]
    assert max(tried, key=lambda job: job["accuracy"]["holdout"]) is tried[0]
    assert min(tried, key=lambda job: job["accuracy"]["val"]) is tried[0]     # "the lowest"
    cut_only = jobs["cut"]["accuracy"]["holdout"]                         # "nearly that of the end"
    assert all(abs(job["accuracy"]["holdout"] - cut_only) < 2 for job in runs.values())

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
if short:
    uncut, firsts = short["dense"]["accuracy"]["val"], [three_of(way)[0] for way in CUTS]
    was = [job["before"]["accuracy"]["val"] for job in firsts]
    lead, spread = ahead["weights"]
    assert round(was[4] - was[0]) == 22 and round(float(lead.mean()), 1) == 0.6
    assert (lead > 0).all() and lead.mean() < 3 * spread
    assert [round(was[j] - was[i], 1) for i, j in ((0, 1), (1, 3), (3, 4))] == [16.2, 4.3, 1.5]
    assert 0 < was[4] - was[2] < 1                                        # "within a point"
    chosen = [[(row["form"], row["rank"]) for row in job["plan"]] for job in firsts]
    assert all(each == chosen[4] for each in chosen[1:]) and chosen[0] != chosen[4]
    for way in CUTS[1:4]:
        lead, spread = ahead[way]
        assert abs(lead.mean()) < 2 * spread                              # "no difference"
    assert float((tops_of("ours") - was[4]).abs().max()) < 0.6            # "almost the same"
    assert firsts[4]["parameters"] < 0.8 * firsts[0]["parameters"]
    assert all(job["macs"] <= 0.15 * base["macs"] for job in firsts)
    assert all(p > 0.05 for way in ahead for _, _, p in tests_of(way))    # "none of the ... tests"
    assert all(tops_of(way).mean() < uncut - 2 for way in CUTS)           # "more than two"

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
if lengths:
    heights = [job["accuracy"]["val"] for job in lengths.values()]
    leads = [later - sooner for sooner, later in zip(heights, heights[1:], strict=False)]
    assert round(leads[0], 1) == -1.9 and steps["1 epoch"][2] < 0.001     # "sure of it"
    assert round(heights[2] - heights[0], 1) == 0.6 and mended[2] > 0.05
    assert abs(again["accuracy"]["val"] - heights[1]) < 0.4               # "gains little"
    assert round(leads[2], 1) == 1.5 and steps["8 epochs"][2] < 0.001
    assert leads[3] > 0 and steps["dense"][2] > 0.05                      # "no longer"
    assert [len(lengths[title]["log"]) for title in list(LENGTHS)[:3]] == [1, 3, 8]

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
if at_rate:
    tops_at = {rate: [job["accuracy"]["val"] for job in trio.values()]
               for rate, trio in at_rate.items()}
    assert all(max(three) == three[2] for three in tops_at.values())      # "at each rate"
    low, middle, high = (np.array(three) for three in tops_at.values())
    assert [round(float(f(low - middle)), 1) for f in (min, max)] == [0.8, 1.3]
    assert [round(float(f(middle - high)), 1) for f in (min, max)] == [1.1, 1.8]
    assert all(p < 0.05 for key, (_, _, p) in halved.items() if "beside" not in key)
    assert [round(float(f(low - high)), 1) for f in (min, max)] == [2.3, 3.1]
    assert max(round(float(np.ptp(three)), 1) for three in (low, middle, high)) == 1.3

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
if at_rate:
    a, b, p = halved["ours, beside its 8 epochs"]
    assert p > 0.05 and round(100 * (a - b) / 3925, 1) == 0.3             # "may be chance"
    a, b, p = halved["ours, beside its start"]
    assert p < 0.001 and round(100 * (b - a) / 3925, 1) == 1.8
    a, b, p = halved["ours, beside dense"]
    assert a > b and p < 0.05                                             # "still shows a gap"
    assert high[2] <= lengths["0 epochs"]["accuracy"]["val"]              # "no higher"
    held = np.array([[job["accuracy"]["holdout"] for job in trio.values()]
                     for trio in at_rate.values()])                       # (rates, cuts)
    assert (held.argmax(0) == 0).sum() == 2                               # "two of the three"

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
if at_rate:
    leads = [mcnemar(answers_of(trio["weights"]), answers_of(trio["ours"]))
             for trio in at_rate.values()]
    assert leads[0][2] > 0.05 and leads[1][2] > 0.05 and leads[2][2] < 0.001
    points = [round(100 * (b - a) / 3925, 1) for a, b, _ in leads]
    assert points == [0.6, 0.7, 1.3] and (ahead["weights"][0] > 0).all()  # "in all five"
    usual, doubled = ({way: answers_of(job).double() for way, job in at_rate[rate].items()}
                   for rate in (0.015, 0.03))
    apart = doubled["ours"] - doubled["weights"] - usual["ours"] + usual["weights"]      # (N,)
    assert round(100 * float(apart.mean()), 1) == 0.6
    assert 1 < float(apart.mean() * len(apart) ** 0.5 / apart.std()) < 1.6
    assert (usual["ours"] - usual["not refitted"]).sum() == 1             # "a single image"

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
if (file := Path("../results/trials.json")).exists():
    in_trials = json.loads(file.read_text())["jobs"]
    lower, upper = (in_trials[f"compressed, rate {rate}"] for rate in (0.0075, 0.03))
    assert round(5 * (lower["accuracy"]["holdout"] - upper["accuracy"]["holdout"])) == 8
    shipped = json.loads(Path("../results/compressed.json").read_text())["configuration"]
    assert shipped["compressed rate"] == 0.0075

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
if ("extreme", "tuned, seed 2") in gains:
    found = deeper["jobs"]
    assert found["cut"]["parameters"] < 0.05 * found["dense"]["parameters"]
    whole, tuned = found["dense"], [found[f"tuned, seed {seed}"] for seed in range(3)]
    p_values = [mcnemar(answers_of(whole), answers_of(job))[2] for job in tuned]
    assert min(p_values) > 0.05 and round(p_values[2], 2) == 0.07
    leads = [job["accuracy"]["val"] - whole["accuracy"]["val"] for job in tuned]
    assert max(leads) < 0 and round(leads[2], 1) == -0.7                  # "a little below"
    (only_0, only_1, p), on_val = pair.values()
    assert 2.5 < (only_1 - only_0) / 5 < 3 and p < 0.01                   # "nearly three points"
    assert 0.28 < 100 * (on_val[0] - on_val[1]) / 3925 < 0.38 and on_val[2] > 0.05  # "a third"

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
added = []
for record in records.values():
    by_stage = {row["network"]: row["accuracy"] for row in record["rows"]}
    share, n = by_stage["retrained"] / 100, record["data"]["evaluated"]
    added.append(by_stage["retrained"] - by_stage["recalibrated"])
    assert 0 < added[-1] < 200 * (2 * share * (1 - share) / n) ** 0.5          # "less than two"
    back = by_stage["recalibrated"] - by_stage["truncated"]
    assert back > 0.5 * (by_stage["dense"] - by_stage["truncated"])            # "most of the loss"
if len(added) == 2:
    assert [round(value, 1) for value in added] == [0.7, 0.5]
if "full" in records and records["full"]["data"]["name"] == "imagenette":
    assert rows["retrained"]["macs"] <= 0.2 * rows["dense"]["macs"]
    assert rows["retrained"]["parameters"] <= 0.3 * rows["dense"]["parameters"]    # "most"
    assert won > recipe["top-1 (%)"] and won > rows["truncated"]["accuracy"]

# %% [markdown]
# ## 7. Optional: the dense network as a teacher
#
# A label says "church". A network can say more: "church, a little like a gas pump, not at all like
# a fish". (With the digits: "8, a little like a 3".) Such answers can train the small network. This
# is **distillation**: the dense network is the teacher, the small one its student.
#
# Next to the first answer, the other classes hardly count. Divide the teacher's outputs by a
# **temperature** $T$ before the softmax, and their shares become visible. Here is one image; the
# network is surer on about half of the others, and less sure on the rest:

# %%
with torch.inference_mode():
    logits = dense(example)                          # (N, 10)
doubtful = int(logits.softmax(1).max(1).values.argsort()[len(logits) // 2])
for T in (1, 4):
    shares = (logits[doubtful] / T).softmax(0)
    top = shares.topk(4).indices
    print(f"T = {T}: " + ", ".join(f"{held_out.classes[i]} {shares[i]:.1%}" for i in top))

# %% [markdown]
# **Explain.** With the photographs the other classes are nearly alike. That comes from the dense
# network's own training: on whole images, *label smoothing* asked for 91 % in the right class and 1
# % in each other one. It helps the network itself, but it wipes out which classes resemble each
# other, and students learn less from such a teacher (Müller et al., 2019).
#
# Let $p$ be the teacher's shares and $q$ the student's, both at temperature $T$. How far $q$ is
# from $p$ is measured by the Kullback-Leibler divergence, KL. Its slope with respect to the
# student's outputs $z$ is simple ($i$ counts the classes):
#
# $$\mathrm{KL}(p, q) = \sum_i p_i \log\frac{p_i}{q_i}, \qquad
# \frac{\partial\,\mathrm{KL}}{\partial z_i} = \frac{q_i - p_i}{T}$$
#
# With a large $T$, the difference $q_i - p_i$ itself shrinks like $1/T$. So the slope shrinks like
# $1/T^2$. A factor $T^2$ makes up for it, and the loss becomes
#
# $$\text{cross entropy with the labels} \; + \; T^2\, \mathrm{KL}(p, q)$$

# %%
def distillation(student, teacher, T=4.0):
    p, q = (teacher / T).softmax(1), (student / T).softmax(1)        # (N, classes)
    return T**2 * (p * (p.log() - q.log())).sum(1).mean()


# %%
from lowrank_course.train import TEMPERATURE
from lowrank_course.train import distillation_loss as of_the_package

with torch.no_grad():
    student, teacher = recalibrated(example), dense(example)
ours = distillation(student, teacher, TEMPERATURE)
theirs = of_the_package(student, dense, example)
print(f"by hand {ours:.4f}, by the package {theirs:.4f} at T = {TEMPERATURE:.0f}")

# %%
for T in (1, 4, 16):
    z = student.clone().requires_grad_()
    (distillation(z, teacher, T) / T**2).backward()  # the divergence alone
    formula = ((z / T).softmax(1) - (teacher / T).softmax(1)) / T / len(z)
    agree, slope = torch.allclose(z.grad, formula, atol=1e-6), float(z.grad.norm())
    print(f"T = {T:2}: slope {slope:.5f}, times T² {slope * T**2:.3f}; formula holds: {agree}")

# %% [markdown]
# **Explain.** From T = 4 to 16 the slope falls steeply; times $T^2$ it stays at about the same
# size. So you can change $T$ without changing the learning rate. (Adding the term is another
# matter: the sum has a larger slope than the cross entropy alone.)
#
# **Predict.** Does a teacher help? Train with labels alone and with the teacher, three seeds each,
# and compare the difference with the scatter.

# %%
def with_teacher(logits, labels, batch):
    with torch.no_grad():
        target = dense(batch)
    return F.cross_entropy(logits, labels) + distillation(logits, target)


few = data.balanced_subset(tune_images, max(4, per_class["tune"] // 2))
results = {}
for way, loss_of in {"labels": from_labels, "teacher": with_teacher}.items():
    results[way] = []
    for seed in range(3):
        model = copy.deepcopy(recalibrated)
        curve = tune(model, few, 1, 0.01, loss_of, seed)
        results[way].append(curve["recalibrated"][-1])

# %%
by_way = {way: torch.tensor(values) for way, values in results.items()}
for way, values in by_way.items():
    print(f"{way:8} {[round(v, 1) for v in values.tolist()]}  mean {values.mean():.1f}")
difference = float(by_way["teacher"].mean() - by_way["labels"].mean())
error = float(sum(values.var() / 3 for values in by_way.values()).sqrt())
verdict = "the same" if abs(difference) < 3 * error else "a difference"
print(f"teacher minus labels: {difference:+.1f} ± {error:.1f} points: {verdict}")

# %% [markdown]
# **Explain.** The number after ± is the standard error of the difference over the seeds. With three
# seeds it is itself rough, so the cell asks for three times as much before it speaks of a
# difference. Whatever it says: with the photographs each of these trainings had three steps. That
# shows how to compare, and next to nothing about teachers.
#
# The recorded short trainings of section 6 (15 % of the MACs, three epochs) use all training
# images. They were made with and without the teacher.
#
# **Predict.** More images, more steps. Does the teacher help now?

# %%
for way in ("no distillation", "ours") if short else ():
    print(f"{way:15} {[round(top, 1) for top in tops_of(way).tolist()]}")
helped = beside_ours("no distillation") if short else None               # ours: with the teacher

# %% [markdown]
# **Explain.** The mean with the teacher is higher by 0.3 points, about one standard error. It wins
# with two seeds and loses with one, and no test shows a difference. So these trainings do not show
# that it helps. (They cannot rule out a gain of a point, either. The teacher's term makes the steps
# larger, and for *ours* this rate was too high already: at a lower one the answer may be another.
# And another teacher, trained without label smoothing, may teach better.) The recorded runs use the
# teacher, because it is there anyway:
#
# `fine_tune(small, teacher=dense, images=..., epochs=..., size=..., cutmix=0.5)`
#
# About images that it knows by heart, a teacher has little to say but their label. The option
# `cutmix` gives it others: on half of the batches, a rectangle of every image comes from another
# image, and the label is shared by area between the two classes (CutMix, Yun et al., 2019).
#
# **Predict.** *Ours* was trained with CutMix, too. What do three epochs without it give?

# %%
for way in ("no CutMix", "ours") if short else ():
    print(f"{way:9} {[round(top, 1) for top in tops_of(way).tolist()]}")
mixing = beside_ours("no CutMix") if short else None

# %% [markdown]
# **Explain.** No difference can be seen, in the mean or in any test. Why, these three pairs do not
# say. Three epochs may be too short. Nor do they say whether CutMix pays in a longer training.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
import inspect  # noqa: E402

from lowrank_course import fine_tune  # noqa: E402

assert torch.allclose(ours, theirs, rtol=1e-4) and TEMPERATURE == 4
assert {"teacher", "images", "epochs", "size"} <= set(inspect.signature(fine_tune).parameters)
slopes = {}
for T in (1, 4, 16):
    z = student.clone().requires_grad_()
    distillation(z, teacher, T).backward()
    slopes[T] = float(z.grad.norm())
assert 0.5 < slopes[16] / slopes[4] < 2                       # "about the same size"
assert slopes[16] / 256 < 0.2 * slopes[4] / 16                # "falls steeply"
if name == "imagenette" and not quick:
    assert len(data.make_loader(few, 32, size, augment=True)) == 3

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
if short:
    lead, spread = helped
    assert 0 < lead.mean() < spread and lead.mean() + 2 * spread > 1      # "a gain of a point"
    assert int((lead > 0).sum()) == 2
    lead, spread = mixing
    assert abs(lead.mean()) < 1.5 * spread                                # "in the mean"
    for way in ("no distillation", "no CutMix"):
        assert all(p > 0.05 for _, _, p in tests_of(way))                 # "no test", "any test"
    assert all(len(job["log"]) == 3 for job in three_of("no CutMix"))

# %% [markdown]
# ## Recap
#
# 1. Repair first. In the recorded main jobs a repair without training won back most. Where one
#    budget was cut in five ways, the choice of ranks counted most before the training; after three
#    epochs no test showed a difference. At a tenth of the parameters, what training added was too
#    little for these images to show. At less than a twentieth, two of three trainings showed a
#    gain.
# 2. Recalibrate a network that was cut by its weights: the cut changes what the batch norms should
#    expect, and you repair it in seconds. It is no gift for a healthy network.
# 3. Fine-tune with a low one-cycle rate, chosen on held-out images, and for several epochs. At
#    0.015, one epoch made a refitted network worse, and three brought no gain that a test shows;
#    three at half that rate did (one seed). After a short training, see on held-out images whether
#    recalibrating once more helps.
# 4. Call `eval()` before you read an accuracy.
# 5. Choose on held-out training images; look at the validation images once.
# 6. Claim a difference only with paired answers and, for a way of training, at least three seeds.
# 7. Run the controls. Here the dense network, trained on, ended above the compressed network that
#    ships. And the compressed shape, trained for long from random factors, did no worse than the
#    compressed network. With a trained network at hand, compression was the short way there.
#
# ## Check yourself
#
# **1.** You compress a network and its accuracy falls to that of guessing. Was the budget too
# small?
#
# <details><summary>Answer</summary>
# Perhaps not. Recalibrate before you judge: the statistics of the batch norms may be all that is
# wrong.
# </details>
# <br>
#
# **2.** A colleague measures the same network twice on the same images and gets two accuracies.
# What do you suspect?
#
# <details><summary>Answer</summary>
# A forgotten <code>eval()</code>. In training mode the answers depend on the batches, and the
# stored statistics change with every pass.
# </details>
# <br>
#
# **3.** You try ten learning rates, and report the best validation accuracy. What is wrong?
#
# <details><summary>Answer</summary>
# The best of ten figures looks better than it is: part of its lead is luck on these images. Choose
# on held-out training images, then report one figure.
# </details>
# <br>
#
# **4.** Two networks are tested on the same 500 images. On 12 of them only the first is right, on 8
# only the second. Which one is better?
#
# <details><summary>Answer</summary>
# You cannot tell: fair coins fall 12 to 8 or more unevenly in about half of all cases.
# </details>
#
# ## Now you
#
# Start from `recalibrated` and train only the batch norms (set `requires_grad` of everything else
# to `False`). How much of the accuracy comes back, and with how many numbers trained? Compare
# `answers(yours, judge)` with `answers(retrained, judge)` by `mcnemar`: on held-out images, for
# **val** has had its one look.
#
# **The way on.** [Chapter 09](09_training_with_rank_in_mind.ipynb) asks whether training can prepare
# the cut, [chapter 10](10_does_it_run_faster.ipynb) when MACs become milliseconds. How the layers
# themselves work is in [05, factorizing for real](05_factorizing.ipynb); why the truncated SVD is
# the best copy of a matrix, in [02, the SVD](02_svd.ipynb).
#
# ## References
#
# - S. Ioffe and C. Szegedy, *Batch normalization: accelerating deep network training by reducing
#   internal covariate shift*, ICML, 2015.
# - L. N. Smith and N. Topin, *Super-convergence: very fast training of neural networks using large
#   learning rates*, SPIE Artificial Intelligence and Machine Learning for Multi-Domain Operations
#   Applications, 2019.
# - G. Hinton, O. Vinyals and J. Dean, *Distilling the knowledge in a neural network*, NIPS Deep
#   Learning Workshop, 2014 (arXiv 1503.02531, 2015).
# - L. Liebenwein, A. Maalouf, O. Gal, D. Feldman and D. Rus, *Compressing neural networks: towards
#   determining the optimal layer-wise decomposition*, NeurIPS, 2021.
# - S. Yun, D. Han, S. J. Oh, S. Chun, J. Choe and Y. Yoo, *CutMix: regularization strategy to train
#   strong classifiers with localizable features*, ICCV, 2019.
# - Q. McNemar, *Note on the sampling error of the difference between correlated proportions or
#   percentages*, Psychometrika, 1947.
# - *Low rank approximation implementation 1/4*, a tutorial on the web: the popular recipe.
# - Z. Liu, M. Sun, T. Zhou, G. Huang and T. Darrell, *Rethinking the value of network pruning*,
#   ICLR, 2019.
# - R. Müller, S. Kornblith and G. Hinton, *When does label smoothing help?*, NeurIPS, 2019.
# - Y. Wu and J. Johnson, *Rethinking "batch" in BatchNorm*, arXiv 2105.07576, 2021. (recalibration)
# - B. Li, B. Wu, J. Su, G. Wang and L. Lin, *EagleEye: fast sub-net evaluation for efficient neural
#   network pruning*, ECCV, 2020. (recalibration of pruned networks)

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert 0.4 < binomtest(8, 20).pvalue < 0.6                    # "about half of all cases"
