# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 11 · Capstone
#
# **The question:** What can you do with your own network?
#
# You choose a network and a budget. One function measures what you made of it, and a picture shows
# it among the course's own results. First a worked example takes you all the way; then one cell is
# yours.
#
# **After this chapter you can**
#
# - compress a network of your choice under a budget, and score it;
# - read the plan, change it, and apply it again;
# - save, load and export the result;
# - write a report whose claims hold.
#
# **You need:** [chapter 05](05_factorizing.ipynb) and [chapter 08](08_retraining.ipynb). [Chapter
# 10](10_does_it_run_faster.ipynb) explains the times.
#
# **Time:** 25 minutes to read, about 2 minutes to run.

# %%
import importlib.util

if importlib.util.find_spec("lowrank_course") is None:  # on Colab, in a copy of the course
    print("Installing the course's package")
    # %pip install --quiet --no-deps .. tensorly

# %%
import copy
import json
import os
import tempfile
from pathlib import Path

import torch
import torchvision
from matplotlib.figure import Figure
from scipy.stats import binomtest
from torch import nn

from lowrank_course import compress, data, fine_tune, load_resnet18, plots
from lowrank_course.compress import apply, fold_batch_norms
from lowrank_course.measure import compare_latency, count_macs, count_parameters, file_mb
from lowrank_course.plan import load_compressed, save_compressed
from lowrank_course.train import answers, distillation_loss

# %%
plots.style()
quick = os.environ.get("LOWRANK_PROFILE") == "smoke"
_ = torch.manual_seed(0)

# %% [markdown]
# ## 1. Choose a budget card
#
# A card says what your network may cost, as shares of its own dense network. MACs
# (multiply-accumulates) and parameters are counted, so they are limits. Speed is measured, and
# depends on the machine: it is a goal.

# %%
CARDS = {
    "light": {"MACs": 0.50, "parameters": 0.45, "speed": 1.3},
    "standard": {"MACs": 0.25, "parameters": 0.12, "speed": 1.8},
    "extreme": {"MACs": 0.17, "parameters": 0.05, "speed": 2.5},
}
card = CARDS["light"]
print(card)

# %% [markdown]
# The worked example takes the light card: its limits can be kept without long training. (Its speed
# is out of reach for the tiny network for the digits: [chapter 10](10_does_it_run_faster.ipynb),
# section 11.) The standard card is the real task. There both limits count: a network cut to 25 % of
# its MACs can still have too many parameters (section 7: *compress, 25%*). You will probably want
# to train on.
#
# ## 2. The judge
#
# Three kinds of images, as in [chapter 08](08_retraining.ipynb): **train** to calibrate and to
# fine-tune, **holdout** for every choice, **val**, the test images of this course, once at the end.
# Without the photographs of Imagenette, the handwritten digits take their place. The numbers
# change, the text holds.

# %%
name = data.find_data()
dense = load_resnet18(name)
size = dense.evaluation_size                         # pixels
each = 10 if quick else 15                           # images of each class, to judge by
most = data.HOLDOUT_PER_CLASS[name]                  # so many were held out
sets = {
    "train": data.balanced_subset(data.load_images("train", name), 10),
    "holdout": data.balanced_subset(data.load_images("holdout", name), min(each, most)),
    "val": data.balanced_subset(data.load_images("val", name), each),
}
loaders = {split: data.make_loader(images, size=size) for split, images in sets.items()}
example = next(iter(loaders["holdout"]))[0][:8]      # (8, 3, H, W)
print(name, size, "px,", {split: len(images) for split, images in sets.items()}, "images")

# %% [markdown]
# The score is one function. It measures both networks in the same way and on the same images:
# accuracy, cost, and time in turns (chapter 10).
#
# **The score is the accuracy in percent if every limit is kept, else 0.** So nobody can trade a
# missed limit for a point of accuracy.

# %%
def score(small, dense, card, loader, example):
    """Accuracy, and costs as shares of the dense network's; `score` is 0 if a limit is missed."""
    right = {"dense": answers(dense, loader), "small": answers(small, loader)}        # (N,) bool
    ms = compare_latency({"dense": dense, "small": small}, example, len(example), runs=5)
    result = {
        "top-1": 100 * float(right["small"].float().mean()),
        "dense top-1": 100 * float(right["dense"].float().mean()),
        "images": len(right["small"]),
        "MACs": count_macs(small, example) / count_macs(dense, example),
        "parameters": count_parameters(small) / count_parameters(dense),
        "speed": ms["dense"] / ms["small"],
        "lost": int((right["dense"] & ~right["small"]).sum()),       # only dense is right
        "won": int((~right["dense"] & right["small"]).sum()),        # only small is right
    }
    kept = all(result[limit] <= card[limit] for limit in ("MACs", "parameters"))
    return {**result, "score": result["top-1"] if kept else 0.0}

# %%
def show(title, result, card):
    print(f"{title}: score {result['score']:.1f}  (top-1 {result['top-1']:.1f} % on "
          f"{result['images']} images, dense {result['dense top-1']:.1f} %)")
    for limit in ("MACs", "parameters"):
        verdict = "kept" if result[limit] <= card[limit] else "MISSED"
        print(f"   {limit:10} {result[limit]:6.1%}, limit {card[limit]:.0%}: {verdict}")
    reached = "reached" if result["speed"] >= card["speed"] else "not reached"
    print(f"   {'speed':10} {result['speed']:5.1f}x, goal {card['speed']}x: {reached} here")

# %% [markdown]
# A score function must itself be tested, on networks whose scores you can work out. Take the dense
# network itself, and a lazy one that gives the same answer to every image (ten classes, equally
# many images of each).
#
# **Predict.** What are their scores on this card?

# %%
lazy = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 10))
nn.init.zeros_(lazy[2].weight)
known = {
    "dense": score(dense, dense, card, loaders["holdout"], example),
    "lazy": score(lazy, dense, card, loaders["holdout"], example),
}
for title, result in known.items():
    show(title, result, card)

# %% [markdown]
# **Explain.** The dense network misses every limit: 0. (Its speed against itself should read 1.0x.
# A deviation is noise.) The lazy one keeps them all, and is right for one image in ten: 10. So a
# score means something only if it is far above 10. And the lazy network is many times as fast:
# speed alone proves nothing.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert known["dense"]["score"] == 0 and known["dense"]["MACs"] == 1
assert known["dense"]["lost"] == known["dense"]["won"] == 0
assert abs(known["lazy"]["score"] - 10) < 1e-3                # "one image in ten"

# %% [markdown]
# ## 3. A worked example
#
# **Compress.** `compress` takes one budget, a card has several. Ask for the MACs first and look at
# what that does to the parameters. If the network misses a limit, ask for that one instead
# (`cost="params"`), or for fewer MACs.

# %%
first = compress(dense, example, budget=card["MACs"], data=loaders["train"])
results = {"first plan": score(first, dense, card, loaders["holdout"], example)}
show("first plan", results["first plan"], card)

# %% [markdown]
# **Read the plan.** `error` is the harm that `compress` expects from a cut: with images, in nats
# ([chapter 06](06_choosing_ranks.ipynb)); without them, the squared relative error ([chapter
# 05](05_factorizing.ipynb)). Divide it by the MACs that the cut saves: that is the *average* harm
# of a saved MAC. (The price of chapter 06 is the slope at the chosen rank, about the same for every
# cut layer.) The layer with the highest average is the first that you might try to spare.

# %%
def average_harm(row):
    return row.error / (row.before - row.after)      # expected harm for each MAC saved


cut = sorted((row for row in first.plan if row.rank), key=average_harm)
print("layer               form     rank   error   MACs saved   harm per billion MACs")
for i, row in enumerate([*cut[:2], *cut[-2:]]):
    print("..." if i == 2 else "", end="\n" if i == 2 else "")
    print(f"{row.name:19} {row.form:8} {row.rank!s:>4} {row.error:7.1e} "
          f"{row.before - row.after:12,.0f} {1e9 * average_harm(row):12.1e}")

# %% [markdown]
# **Edit it.** Give the layer with the highest average (`dearest` in the code) its dense form back.
# To pay for it, lower the rank of the layers with the lowest average by about a quarter, down to a
# multiple of 8, one after the other, until the MACs are saved elsewhere. `plan.edit` changes one
# line of the plan, `apply` builds the network anew.
#
# **Predict.** Is the edited plan better than that of `compress`?

# %%
dearest = cut[-1]
plan, owed = first.plan.edit(dearest.name, "dense"), dearest.before - dearest.after
for row in cut[:-1]:
    if owed > 0 and row.rank >= 4:
        fewer = row.rank * 3 // 32 * 8 or row.rank * 3 // 4           # a multiple of 8
        plan = plan.edit(row.name, row.form, fewer)
        owed -= row.after * (1 - fewer / row.rank)
        print(f"{row.name}: rank {row.rank} to {fewer}")

edited = apply(dense, example, plan, data=loaders["train"])
results["edited plan"] = score(edited, dense, card, loaders["holdout"], example)
show(f"edited plan, {dearest.name} dense", results["edited plan"], card)

# %% [markdown]
# **Compare.** Both were judged on the same held-out images. McNemar's test ([chapter
# 08](08_retraining.ipynb)) counts only the images that exactly one of the two gets right. The
# p-value is how often fair coins fall at least as unevenly.

# %%
def p_value(a, b, loader):
    """McNemar's exact test of two networks on the same images."""
    a, b = answers(a, loader), answers(b, loader)
    only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
    return binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0


p = p_value(first, edited, loaders["holdout"])
print(f"p-value {p:.2f}:", "a difference" if p < 0.05 else "the same, as far as these images show")
expected = {n: sum(r.error for r in m.plan) for n, m in (("first", first), ("edited", edited))}
print("harm that the plans expect (nats):", {n: f"{value:.1e}" for n, value in expected.items()})

# %% [markdown]
# **Explain.** With so few images you can seldom tell. Then keep the plan that expects less harm. In
# general that is the first one: the search has weighed all layers against each other by this harm.
# Edit by hand when you know something that `compress` does not: a layer that another program needs,
# a rank that your hardware likes, a layer that did not get faster.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
for result in results.values():
    assert result["MACs"] <= card["MACs"] + 1e-9
assert results["first plan"]["score"] > 0                      # the light card "can be reached"
assert all(value >= 0 for value in expected.values()) and 0 <= p <= 1
assert {row.name: row.form for row in edited.plan}[dearest.name] == "dense"

# %% [markdown]
# **Train on.** And give the dense network the same: the same images, the same epochs, the same
# teacher. Otherwise you cannot say what the training did and what the compression did.
#
# This live training is very short; [chapter 08](08_retraining.ipynb) shows what a longer one
# brings.

# %%
chosen = min((first, edited), key=lambda m: sum(row.error for row in m.plan))
tuned, control = copy.deepcopy(chosen), copy.deepcopy(dense)
for network in (tuned, control):
    fine_tune(network, dense, sets["train"], 1, size, learning_rate=0.003, batch_size=32)
    network.eval()

# %%
holdout = loaders["holdout"]
results["tuned"] = score(tuned, dense, card, holdout, example)
control_top1 = 100 * float(answers(control, holdout).float().mean())
show("tuned", results["tuned"], card)
print(f"control, the dense network trained on: {control_top1:.1f} %")
before = results["first plan" if chosen is first else "edited plan"]
final = tuned if results["tuned"]["top-1"] >= before["top-1"] else chosen
print("kept:", "the tuned network" if final is tuned else "the network before the training")

# %% [markdown]
# **Explain.** With so few images, a single one moves the accuracy by most of a point. Claim nothing
# from one or two points, and nothing from one run (question 3 at the end).
#
# ## 4. Save, load, export
#
# `save_compressed` writes tensors and plan into one file. It does not use pickle, Python's own
# format for objects, because loading a pickle can run foreign code. `load_compressed` needs a dense
# network of the same kind, with any weights.

# %%
folder = Path(tempfile.mkdtemp())
save_compressed(final, folder / "mine.safetensors")
fresh = copy.deepcopy(dense)
nn.init.zeros_(fresh.fc.weight)                # any weights will do
loaded = load_compressed(folder / "mine.safetensors", fresh)
with torch.no_grad():
    same = torch.allclose(loaded(example), final(example), rtol=1e-4, atol=1e-4)
print("same answers after loading:", same)
print(f"file: {(folder / 'mine.safetensors').stat().st_size / 1e6:.2f} MB, dense "
      f"{file_mb(dense):.2f} MB")

# %% [markdown]
# To run without this course's package, fold the batch norms (chapter 10) and export. `torch.export`
# records the network as one graph of operations, here for batches of 1 to 1024 images.

# %%
ready = fold_batch_norms(loaded, example)
batches = {0: torch.export.Dim("batch", min=1, max=1024)}
program = torch.export.export(ready, (example,), dynamic_shapes=(batches,))
torch.export.save(program, folder / "mine.pt2")
again = torch.export.load(folder / "mine.pt2").module()
with torch.no_grad():
    difference = (again(example[:3]) - final(example[:3])).abs().max()
    scale = final(example[:3]).abs().max()
print(f"largest difference after export: {float(difference / scale):.1e} of the largest output")

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert same
assert float(difference / scale) < 1e-3
assert (folder / "mine.safetensors").stat().st_size < 1e6 * file_mb(dense)
assert results["tuned"]["MACs"] <= card["MACs"] + 1e-9

# %% [markdown]
# ## 5. Any network
#
# `compress` takes other networks as well. Here is a MobileNetV2 of `torchvision`, a network that
# was designed to be small. Its weights are random, so its accuracy would mean nothing; but costs,
# plan and errors work as ever.
#
# **Predict.** Can it go to half of its MACs? To a twentieth?

# %%
mobile = torchvision.models.mobilenet_v2(weights=None, num_classes=10).eval()
picture = torch.randn(1, 3, 64, 64)
half = compress(mobile, picture, budget=0.5)
print(f"half: {count_macs(half, picture) / count_macs(mobile, picture):.0%} of the MACs are left")
try:
    compress(mobile, picture, budget=0.05)
except ValueError as error:
    print("a twentieth:", error)

# %%
reasons = {}
for row in half.plan:
    why = row.reason.split("(")[0].strip() or ("cut" if row.rank else "dense, not worth it")
    reasons[why] = reasons.get(why, 0) + 1
for why, number in sorted(reasons.items(), key=lambda item: -item[1]):
    print(f"{number:3} layers: {why}")

# %% [markdown]
# **Explain.** A budget that cannot be reached raises an error, and its message names the smallest
# one that can. The plan says why a layer stays dense: in a grouped convolution each output sees
# only some of the input channels, and `compress` does not cut it. About a third of the layers of
# MobileNetV2 are of that kind. And a network that was designed to be small usually has little
# accuracy to spare (random weights cannot show that): start with a larger one if you can choose.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert count_macs(half, picture) <= 0.5 * count_macs(mobile, picture)
grouped = sum(number for why, number in reasons.items() if "grouped" in why)
assert 0.28 < grouped / sum(reasons.values()) < 0.38                # "a third of its layers"
assert any("grouped" in why for why in reasons) and reasons["cut"] > 10


# %% [markdown]
# ## 6. Your turn
#
# **The second cell below is yours.** Put your network and your images in, and your choices into
# `my_way`. Loaders give pairs (images, labels), scaled as your network expects; `my_train` needs
# about a thousand images (the worked example takes fewer, to be quick), `my_holdout` and `my_test`
# as many as you have. If you leave `None` everywhere, the worked example takes their place.
#
# `fine_tune` needs the course's own image sets. For any other loader, here is a plain loop with the
# distillation loss of [chapter 08](08_retraining.ipynb). For the training, make a second loader
# over the same images, `my_augmented`, that shuffles, crops and flips. (`my_train`, for `compress`,
# should show whole images, classes mixed.) Give the dense network the same:
# `train_on(copy.deepcopy(my_dense), my_dense, my_augmented, epochs)`.

# %%
def train_on(network, teacher, loader, epochs, peak=0.01):
    """Train `network` in place on the answers of `teacher`; choose epochs and peak on holdout."""
    optimizer = torch.optim.SGD(network.parameters(), peak, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, peak, epochs * len(loader) + 1)
    network.train()
    for _ in range(epochs):
        for images, _ in loader:
            loss = distillation_loss(network(images), teacher, images)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return network.eval()


# %%
my_name = "worked example"                           # a name for the picture
my_dense = None                                      # your trained network, an nn.Module
my_train = my_augmented = my_holdout = my_test = None                    # your loaders
my_card = CARDS["light"]                             # "light", "standard" or "extreme"


def my_way(network, pictures):
    """Compress it your way. Choices only on my_holdout; my_test is looked at once, below."""
    small = compress(network, pictures, budget=my_card["MACs"], data=my_train)
    return small                                     # or: train_on(small, network, my_augmented, 5)

# %%
if my_dense is None:
    my_dense, (my_train, my_holdout, my_test) = dense, loaders.values()
    my_augmented = my_train                          # yours should shuffle, crop and flip
    mine = final
else:
    my_dense = my_dense.eval()
    mine = my_way(my_dense, next(iter(my_holdout))[0][:8])
my_example = next(iter(my_holdout))[0][:8]
my_result = score(mine, my_dense, my_card, my_holdout, my_example)
show(my_name, my_result, my_card)

# %% [markdown]
# Are you content? Then no more choices, and look at the test images. **Once.** (The speed of one
# and the same network differs from cell to cell. That is why the card makes it a goal and not a
# limit.)

# %%
my_final = score(mine, my_dense, my_card, my_test, my_example)
my_p = p_value(mine, my_dense, my_test)
show(f"{my_name}, final", my_final, my_card)
print(f"only dense right {my_final['lost']}, only small right {my_final['won']}, p {my_p:.3f}")


# %%
def interval(result):
    """95 % interval of top-1 minus dense top-1, in points (Agresti and Min, 2005)."""
    n, lost, won = result["images"], result["lost"], result["won"]
    middle = (won - lost) / (n + 2)
    half = 1.96 * (lost + won + 1 - (won - lost) ** 2 / (n + 2)) ** 0.5 / (n + 2)
    return 100 * (middle - half), 100 * (middle + half)


low, high = interval(my_final)
print(f"against dense: from {low:+.1f} to {high:+.1f} points (95 % interval)")

# %% [markdown]
# McNemar's test asks whether there is *any* difference. The interval says how large it may be. With
# few images it is wide, even if no image tells the two networks apart. Then "no difference was
# shown" means little: use more images.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert interval({"images": 150, "lost": 0, "won": 0})[1] > 1               # "it is wide"
again = copy.deepcopy(dense)
some = [(torch.randn(4, 3, 32, 32), torch.zeros(4, dtype=torch.long))] * 4
assert train_on(again, dense, some, 1) is again and not again.training
assert not torch.equal(again.conv1.weight, dense.conv1.weight)

# %% [markdown]
# ## 7. Your point among the others
#
# The reference points come from the course's recorded runs on all validation images of Imagenette,
# and from the popular recipe: it reports 64.79 % and keeps all MACs and parameters (chapter 00).
# *compress* means cut and refitted, without training. *trained* means that 16 epochs followed, with
# the dense network as the teacher; the table says how many such trainings a figure is the mean of.
# The first of the networks of *trained: compressed* ships with the course:
# `load_resnet18("imagenette-compressed")`. *course: ...* are the stages of `lowrank-course demo`
# (chapter 00), all but *dense* at a fifth of the MACs. Their *recalibrated* includes the refit of
# chapter 07; *retrained* was trained for three epochs. Your own two networks were judged on your
# test images: compare them with each other, not with the rows above.
#
# **Predict.** How far does *course: retrained* lie below its own dense network? And did yours lose
# more or less than *compress, 50%*, at about the same MACs?

# %%
points = {"popular recipe": (100, 100, 64.79)}       # MACs %, parameters %, top-1 %
if (path := Path("../results/demo-full.json")).exists():
    record = json.loads(path.read_text())
    base = record["rows"][0]
    for row in record["rows"]:
        shares = [100 * row[key] / base[key] for key in ("macs", "parameters")]
        points[f"course: {row['network']}"] = (*shares, row["accuracy"])
if (path := Path("../results/frontier.json")).exists():
    for point in json.loads(path.read_text())["points"]:
        if point["method"] == "auto" and point["budget"] in (0.5, 0.35, 0.25):
            shares = [100 * point[key] for key in ("macs", "parameters")]
            points[f"compress, {point['budget']:.0%}"] = (*shares, point["accuracy"])

# %%
seeds = {}
for run in ("compressed", "extreme", "latency"):     # of benchmarks/runs.py
    path = Path(f"../results/{run}.json")
    record = json.loads(path.read_text()) if path.exists() else {"summary": {}}
    if "tuned" in record["summary"]:                 # at least one training has ended
        small, base = (record["jobs"][key] for key in ("tuned, seed 0", "dense"))
        shares = [100 * small[key] / base[key] for key in ("macs", "parameters")]
        tuned_runs = record["summary"]["tuned"]
        points[f"trained: {run}"] = (*shares, tuned_runs["val"]["mean"])
        seeds[f"trained: {run}"] = len(tuned_runs["seeds"])

# %%
points["your dense network"] = (100, 100, my_final["dense top-1"])
mine_at = (100 * my_final["MACs"], 100 * my_final["parameters"], my_final["top-1"])
points[f"yours: {my_name}"] = mine_at
for title, (macs, parameters, top1) in points.items():
    many = f"  (trainings: {seeds[title]})" if title in seeds else ""
    print(f"{title:24} {macs:5.0f} % MACs {parameters:5.0f} % parameters {top1:6.1f} % top-1{many}")


# %%
def look(title):
    """Marker and colour of a point; the course's stages keep their colour everywhere."""
    stage = title.removeprefix("course: ")
    if stage in plots.STAGE:
        return "sDo^"[list(plots.STAGE).index(stage)], plots.STAGE[stage], 9
    if title == "popular recipe":
        return "v", plots.PALETTE["purple"], 9
    if title.startswith("compress"):
        return "P", plots.PALETTE["green"], 9
    if title.startswith("trained"):
        marks = {"compressed": "H", "extreme": "X", "latency": "d"}
        return marks[title.removeprefix("trained: ")], plots.PALETTE["sky"], 10
    return ("p", "black", 9) if title == "your dense network" else ("*", "black", 19)



# %%
def gap(title):                                      # points above its own dense network
    own = points["your dense network" if title.startswith("your") else "course: dense"]
    return points[title][2] - own[2]


without = ("popular recipe", "course: dense", "your dense network")      # nothing to compare
known_dense = "course: dense" in points                                  # the record is there
drawn = [title for title in points if title not in without
         and (known_dense or title.startswith("your"))]

# %%
figure = Figure(figsize=(9.5, 4.4))
panels = figure.subplots(1, 2, sharey=True)
for i, (axes, cost) in enumerate(zip(panels, ("MACs", "parameters"), strict=True)):
    for title in drawn:
        mark, colour, large = look(title)
        label = title.replace("compress, 50%", "compress, 50, 35, 25%")
        label = "_" if title in ("compress, 35%", "compress, 25%") else label    # one for all three
        hollow = {"fillstyle": "none", "markeredgewidth": 2} if mark == "*" else {}
        above = 4 if title.startswith("compress") else 3                 # not under the star
        axes.plot(points[title][i], gap(title), mark, color=colour, markersize=large, label=label,
                  zorder=above, **hollow)
    bar = {"color": "black", "markersize": 12, "linewidth": 1.2}
    axes.plot([mine_at[i]] * 2, [low, high], "_-", **bar)            # the interval
    axes.axhline(0, color=plots.GREY, linestyle="--", linewidth=1.5, label="its dense network")
    axes.axvline(100 * my_card[cost], color=plots.GREY, linestyle=":", linewidth=1.5,
                 label="the limit of your card")
    axes.set(xlabel=f"{cost} kept (%)", xlim=(0, 105))

# %%
panels[0].set_ylabel("top-1 minus dense (points)")
figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
alt = "Points of accuracy above each one's own dense network, against MACs and parameters. Yours: "
alt += f"{gap(drawn[-1]):+.1f} points at {mine_at[0]:.0f} % of the MACs, dotted the card's limits."
plots.show(figure, alt=alt)

# %% [markdown]
# **Explain.** The height is what a network gained or lost against its own dense network, on the
# same images. So networks of other data sets can stand in the same picture. (A point is not equally
# hard to win on each of them.) The star is your network. The line through it is the interval of
# section 6. The dotted vertical line is the limit of your card. Further up and further left is
# better. *course: retrained* lies less than a point below its dense network. If *compress, 50%*
# lies within your interval, so few images cannot tell which of the two lost more. (The recipe is
# not in the picture: it starts from random weights, so there is no trained dense network to compare
# it with.)
#
# The *trained* points lie near their dense network, or above it. That is no proof that compression
# helps: the dense network drawn here did not get these 16 epochs (question 3). [Chapter
# 08](08_retraining.ipynb) has a control that did. The points of *compress* were not trained after
# the cut.

# %% jupyter={"source_hidden": true} tags=["test", "remove-cell"]
# Guards the numbers in the text; you can skip it.
assert points["popular recipe"] == (100, 100, 64.79)
assert 0 <= my_final["top-1"] <= 100 and 0 <= my_p <= 1
if (record_path := Path("../results/demo-full.json")).exists():
    assert json.loads(record_path.read_text())["data"]["evaluated"] == data.COUNTS["val"]
    at = {stage: points[f"course: {stage}"][2] for stage in ("dense", "retrained")}
    assert 0 < at["dense"] - at["retrained"] < 1                   # "less than a point below"
    assert points["course: retrained"][0] <= 20                    # "a fifth of the MACs"
    assert len(json.loads(record_path.read_text())["log"]) == 3    # "three epochs"
if (record_path := Path("../results/compressed.json")).exists():
    macs, parameters, _ = points["trained: compressed"]
    assert macs <= 100 * CARDS["standard"]["MACs"]                 # "keeps the limits", below
    assert parameters <= 100 * CARDS["standard"]["parameters"]
if mine is final:
    assert my_final["MACs"] <= CARDS["light"]["MACs"] + 1e-9
    assert my_final["top-1"] > 0.6 * my_final["dense top-1"]
for run in [title.removeprefix("trained: ") for title in seeds]:
    record = json.loads(Path(f"../results/{run}.json").read_text())
    assert len(record["configuration"]["sizes"]) == 16             # "16 epochs"
    assert not known_dense or gap(f"trained: {run}") > -1          # "near", "or above it"

# %% [markdown]
# ## 8. The report
#
# A claim is honest if a sceptic can check it. Answer each line with yes before you publish:
#
# - the two networks answered the **same** images, and you tested the difference (McNemar), and the
#   interval stands beside the p-value;
# - ranks, epochs and learning rates were chosen on **held-out training** images;
# - the test images were looked at **once**;
# - the **dense** network got the same extra training and the same treatment for speed;
# - three seeds, if you claim something about a *way of training*;
# - batch size, threads, precision and processor stand beside each time.

# %%
def report(title, result, p, card):
    (low, high), change = interval(result), result["top-1"] - result["dense top-1"]
    verdict = "It differs from the dense one" if p < 0.05 else "No difference was shown"
    threads, version = torch.get_num_threads(), torch.__version__.split("+")[0]
    kept = {limit: "kept" if result[limit] <= card[limit] else "MISSED" for limit in card
            if limit != "speed"}
    return "\n\n".join([
        f"# {title}",
        f"**Claim.** With {result['MACs']:.0%} of the MACs and {result['parameters']:.0%} of the "
        f"parameters\nit has {result['top-1']:.2f} % top-1, the dense network "
        f"{result['dense top-1']:.2f} %.\n{change:+.2f} points on {result['images']} images "
        f"(95 %: {low:+.1f} to {high:+.1f}).\n{verdict} (McNemar, p = {p:.3f}).",
        "**Card.** " + ", ".join(f"{key} at most {card[key]:.0%}: {kept[key]}" for key in kept),
        f"**Speed.** {result['speed']:.2f} times the dense network (batch {len(my_example)}, "
        f"float32,\n{threads} thread(s), torch {version}, processor: ...; medians, in turns).",
        *(f"**{todo}.** ..." for todo in ("Chosen on held-out training images", "Seeds",
          "The dense network with the same extra training", "What did not work")),
    ])

# %%
print(report(my_name, my_final, my_p, my_card))

# %% [markdown]
# Fill in the dots. Do not leave out the last line: what did not work saves the next reader time.
#
# ## Recap
#
# 1. Fix the budget and the judge before you start; a missed limit scores nothing.
# 2. The plan is a table: read it, edit one line, apply it.
# 3. Train the dense network on as well, or do not speak of what training won.
# 4. Save without pickle, fold for inference, export to run elsewhere.
# 5. Choose on held-out images, look at the test images once, and report what failed.
#
# ## Check yourself
#
# **1.** Why does the score give nothing to a network that misses its limit by a little?
#
# <details><summary>Answer</summary>
# Otherwise a little more cost always buys a little more accuracy, and two scores could not be
# compared.
# </details>
# <br>
#
# **2.** You try six plans on the holdout images and take the best, 91 %. On the test images it has
# 89 %. What happened?
#
# <details><summary>Answer</summary>
# Perhaps nothing that you could change. You chose the highest of six figures, and the highest is in part luck. Figures from few images scatter as well. So the 91 % was probably too high, not the 89 % too low. Report 89 %.
# </details>
# <br>
#
# **3.** Your compressed network, trained on, beats the dense one by a point. Is compression good
# for accuracy?
#
# <details><summary>Answer</summary>
# You do not know until the dense network gets the same extra training, with three seeds each.
# </details>
# <br>
#
# **4.** A colleague sends you a network as a pickle file. What speaks against opening it?
#
# <details><summary>Answer</summary>
# Loading a pickle can run any code. A <code>safetensors</code> file holds numbers and text only.
# </details>
#
# ## Now you
#
# - Take the standard card with the dense network of this chapter. `cost="params"` helps with its
#   parameters (`benchmarks/two_limits.py` shows how to keep to both limits at once); then fine-tune
#   for as long as you can. With the photographs, the one to beat is *trained: compressed* of section
#   7: it keeps the limits.
# - Bring a network of your own, and show somebody your report: what you chose, what it scored, and
#   what did not work.
#
# **The way on.** You have reached the end of the story. The [appendix](A_beyond_convolutions.ipynb)
# asks where else the idea lives; [chapter 00](00_start_here.ipynb) shows where it began.
#
# ## References
#
# - M. Mitchell et al., *Model cards for model reporting*, FAT\*, 2019. (what a report should hold;
#   the conference is FAccT today)
# - M. Sandler, A. Howard, M. Zhu, A. Zhmoginov and L.-C. Chen, *MobileNetV2: inverted residuals and
#   linear bottlenecks*, CVPR, 2018.
# - Q. McNemar, *Note on the sampling error of the difference between correlated proportions or
#   percentages*, Psychometrika, 1947.
# - D. Blalock, J. J. Gonzalez Ortiz, J. Frankle and J. Guttag, *What is the state of neural network
#   pruning?*, MLSys, 2020. (why results so often cannot be compared)
# - A. Agresti and Y. Min, *Simple improved confidence intervals for comparing matched proportions*,
#   Statistics in Medicine, 2005.
