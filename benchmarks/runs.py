"""The recorded runs on compressed networks, one record each.

    python benchmarks/runs.py trials             which learning rate? (held-out images only)
    python benchmarks/runs.py compressed         at most 1.15 M parameters and 25 % of the MACs
    python benchmarks/runs.py extreme            at most 0.5 M parameters
    python benchmarks/runs.py latency            at most half the time
    python benchmarks/runs.py controls           other networks, trained as the compressed one was
    python benchmarks/runs.py ablations          one thing changed at a time, shorter trainings
    python benchmarks/runs.py same_time          all in the time that the popular recipe takes

Several names run one after the other. A call goes on where the last one stopped. Choices are made
on held-out training images; each final network sees the validation images once. `compressed` also
writes the network that ships, with its record, into the folder --out.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ablations import ablations
from compressed import compressing, controls, trials
from jobs import Bench, Jobs, Run, bench, finish, started
from same_time import same_time

from lowrank_course.cli import check_writable
from lowrank_course.recipes import RECIPES

DENSE = 11_181_642  # parameters of ResNet-18 with ten classes

# Strengths, of `ablations`. In few epochs they take off as large a part of the singular values as
# those of chapter 09; so does the decay of what is trained from scratch.
PENALTIES = {"nuclear": 0.02, "sparse": 6e-3, "orthogonal": 0.02, "decay": 1.5e-3}
GROW = ("seeds", "rates", "lengths")  # of `ablations`: a record may get more of these later

# Limits are shares of the dense network's cost; rates are the peaks of the fine-tuning, from
# `trials`; sizes are pixels, one for each epoch.
SETTINGS: dict[str, dict[str, Any]] = {
    "imagenette": {
        "seeds": [0, 1, 2],
        "sizes": [96] * 12 + [128] * 4,  # of the fine-tuning, whatever is tuned
        "cutmix": 0.5,  # of every fine-tuning
        "compressed": {"params": 1.15e6 / DENSE, "macs": 0.25},
        "compressed rate": 0.0075,
        "extreme": {"params": 0.5e6 / DENSE},
        "extreme rate": 0.03,
        "latency": {"latency": 0.48},  # some margin: twice as fast is 0.5
        "latency batch": 1,  # images; who is twice as fast for one is faster still for 32
        "latency rate": 0.03,
        "recipe": {"size": 320, "epochs": 5},  # the popular one, of `same_time`
        "trials": {"sizes": [96] * 8 + [128] * 2, "rates": [0.0075, 0.03]},
        "ablations": {
            "budget": 0.15,  # of the MACs: at more, too little is lost for a difference to show
            "rate": 0.015,
            "epochs": 3,
            "size": 96,
            "seeds": [0, 1, 2],
            "rates": [0.0075, 0.03],  # others
            "lengths": [1, 8],  # other numbers of epochs
            "scratch": 8,  # epochs of thin factors
            "preparing": 5,  # epochs of the dense network before the cut: 8 in all
            **PENALTIES,
        },
    },
    "digits": {  # to try the runs
        "seeds": [0, 1],
        "sizes": [32] * 4,
        "cutmix": 0.5,
        "compressed": {"params": 0.18, "macs": 0.35},
        "compressed rate": 0.03,
        "extreme": {"params": 0.12},
        "extreme rate": 0.03,
        "latency": {"latency": 0.95},
        "latency batch": 32,
        "latency rate": 0.03,
        "recipe": {"size": 32, "epochs": 5},
        "trials": {"sizes": [32], "rates": [0.015, 0.06]},
        "ablations": {
            "budget": 0.4,
            "rate": 0.03,
            "epochs": 1,
            "size": 32,
            "seeds": [0, 1],
            "rates": [0.06],
            "lengths": [2],
            "scratch": 1,
            "preparing": 1,
            **PENALTIES,
        },
    },
}

# Each run, and the settings that its record must agree with.
RUNS: dict[str, tuple[Callable[[Run], Jobs], tuple[str, ...]]] = {
    "trials": (trials, ("compressed", "extreme", "trials", "cutmix")),
    "compressed": (compressing, ("compressed", "compressed rate", "sizes", "cutmix")),
    "extreme": (compressing, ("extreme", "extreme rate", "sizes", "cutmix")),
    "latency": (compressing, ("latency", "latency batch", "latency rate", "sizes", "cutmix")),
    "controls": (controls, ("compressed", "compressed rate", "extreme rate", "sizes", "cutmix")),
    "ablations": (ablations, ("ablations", "cutmix")),
    "same_time": (same_time, ("recipe", "compressed", "compressed rate", "sizes", "cutmix")),
}


def configuration(name: str, shared: Bench) -> dict[str, Any]:
    """What the record of a run must agree with. More seeds, or more ablations, may come later."""
    settings = SETTINGS[shared.name]
    found = {"run": name, "data": shared.about()} | {key: settings[key] for key in RUNS[name][1]}
    if name == "ablations":
        own = found["ablations"]
        found["ablations"] = {key: own[key] for key in own if key not in GROW}
    if name in ("controls", "same_time"):
        found["dense"] = RECIPES[shared.name]
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("names", nargs="+", choices=RUNS, metavar="NAME", help=", ".join(RUNS))
    parser.add_argument("--data", choices=SETTINGS, default="imagenette")
    parser.add_argument("--results", type=Path, default=Path("results"), help="for the records")
    parser.add_argument("--out", type=Path, default=Path("trained"), help="for the network")
    args = parser.parse_args(argv)
    shared, runs = bench(args.data), []
    for name in args.names:
        file = f"{name}.json" if args.data == "imagenette" else f"{name}-{args.data}.json"
        path = args.results / file
        check_writable(path)  # this and what follows is told before hours of work
        found = configuration(name, shared)
        started(path, found)
        runs.append(Run(name, shared, SETTINGS[args.data], found, path, args.out))
    failed = []
    for run in runs:
        failed += finish(run, RUNS[run.name][0](run))
    if failed:
        print(f"left for another call: {'; '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
