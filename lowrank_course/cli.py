"""The command line: `lowrank-course`, or `python -m lowrank_course`.

Only the standard library is imported up here, so that `doctor` can say what is missing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

PROFILES = ("smoke", "laptop", "full")
REINSTALL = "run `python -m pip install -e .` in the folder of the course"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit status is 1 where something is wrong."""
    args = parser().parse_args(argv)
    try:
        return args.run(args)
    except (OSError, RuntimeError, ValueError) as error:  # these messages name the way out
        print(f"lowrank-course {args.command}: {error}", file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    """All commands and their options."""
    top = argparse.ArgumentParser(prog="lowrank-course", description=__doc__.splitlines()[0])
    commands = top.add_subparsers(dest="command", required=True, metavar="command")

    command = commands.add_parser("doctor", help="check this machine, and say how to mend it")
    command.set_defaults(run=doctor)

    for name, run, text in (
        ("demo", demo, "compress the shipped ResNet-18, and measure it"),
        ("frontier", frontier, "accuracy against cost, method by method, or go on"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("--data", choices=("auto", "imagenette", "digits"), default="auto")
        command.add_argument(
            "--profile", choices=PROFILES, default=os.environ.get("LOWRANK_PROFILE") or "laptop"
        )
        command.add_argument("--json", metavar="FILE", help="write what was measured, and how")
        command.set_defaults(run=run)

    command = commands.add_parser("train", help="train a shipped network from scratch, or go on")
    command.add_argument("--data", choices=("imagenette", "digits"), default="imagenette")
    command.add_argument("--seed", type=int, default=0)
    command.add_argument("--out", metavar="FOLDER", default="trained", help="default: trained")
    command.set_defaults(run=train)

    return top


def demo(args: argparse.Namespace) -> int:
    """The whole story in the terminal, ending in the table; its record as JSON on request."""
    from .data import write_text
    from .demo import demo, table

    if args.json:
        check_writable(Path(args.json))  # told before the work
    record = demo(args.data, args.profile, say=lambda line: print(line, flush=True))
    if args.json:
        write_text(args.json, json.dumps(record, indent=1))
    about = record["data"]
    print(
        f"\n{about['name']}, {about['size']} px, {about['evaluated']} validation images, "
        f"{record['machine']['threads']} threads\n\n{table(record)}\n\n"
        f"{record['seconds']:.0f} seconds, {record['peak_memory_mb'] / 1000:.1f} GB of memory"
    )
    return 0


def check_writable(path: Path) -> None:
    """OSError unless a file can be written at `path`; a missing folder is made."""
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file in it")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=path.parent):
        pass


def train(args: argparse.Namespace) -> int:
    """Rebuild a shipped network: weights and record; a second call goes on where one stopped."""
    from .recipes import train_shipped

    record = train_shipped(args.data, Path(args.out), args.seed)
    print(
        f"top-1 on held-out training images {record['accuracy']['holdout']:.2f} %, "
        f"on the validation images {record['accuracy']['val']:.2f} %; written to {args.out}"
    )
    return 0


def frontier(args: argparse.Namespace) -> int:
    """Every method at every budget; a second call goes on where one stopped."""
    from .frontier import frontier

    path = Path(args.json or "frontier.json")
    check_writable(path)
    for p in frontier(args.data, args.profile, path)["points"]:
        found = p.get("failed") or (
            f"{p['accuracy']:6.2f} %, {p['parameters']:6.1%} of the parameters, "
            f"{p['time']['1']:.2f} and {p['time']['32']:.2f} of the time (batch 1 and 32)"
        )
        print(f"{p['budget']:5.0%} of the MACs  {p['method']:20}  {found}")
    return 0


# ---- doctor ------------------------------------------------------------------------------------

Finding = tuple[str, str, str]  # "ok", "note" or "wrong"; what was found; the mend, "" where ok


def doctor(args: argparse.Namespace) -> int:
    """Check this machine, one line each; downloads nothing. 1 where something is wrong."""
    checks: dict[str, Callable[[], Finding]] = {
        "python": check_python,
        "packages": check_packages,
        "memory": check_memory,
        "threads": check_threads,
        "gpu": check_gpu,
        "profile": check_profile,
        "data": check_data,
        "cache": check_cache,
        "disk": check_disk,
        "kernel": check_kernel,
        "model": check_model,
    }
    wrong = 0
    for name, check in checks.items():
        try:
            state, found, mend = check()
        except Exception as error:  # a doctor that crashes helps nobody
            state, found, mend = "wrong", f"{type(error).__name__}: {error}", REINSTALL
        print(f"{name:9} {state:6} {found}", flush=True)
        if mend:
            print(f"{'':9} {'':6} -> {mend}", flush=True)
        wrong += state == "wrong"
        if name == "packages" and wrong:
            print("The other checks need these packages.")
            break
    print("Everything the course needs is here." if not wrong else f"{wrong} to mend, see above.")
    return 1 if wrong else 0


def check_python() -> Finding:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return "ok", f"{found}, {sys.executable}", ""


def check_packages() -> Finding:
    """What pyproject.toml asks for is installed, and torch and torchvision fit together."""
    from packaging.requirements import Requirement

    problems, count = [], 0
    for line in importlib.metadata.requires("lowrank-course") or []:
        needed = Requirement(line)
        if needed.marker and not needed.marker.evaluate({"extra": ""}):
            continue
        count += 1
        try:
            version = importlib.metadata.version(needed.name)
        except importlib.metadata.PackageNotFoundError:
            problems.append(f"{needed.name} is missing")
            continue
        if not needed.specifier.contains(version, prereleases=True):
            problems.append(f"{needed.name} {version} is not {needed.specifier}")
    if problems:
        return "wrong", ", ".join(problems), REINSTALL
    try:
        import torch
        import torchvision
    except (ImportError, OSError, RuntimeError) as error:
        mend = "run `python -m pip install --force-reinstall torch torchvision`, both in one go"
        return "wrong", f"torch and torchvision do not load: {error}", mend
    found = f"torch {torch.__version__}, torchvision {torchvision.__version__}"
    return "ok", f"{found}, and the other {count - 2}", ""


def check_memory() -> Finding:
    import psutil

    memory = psutil.virtual_memory()
    found = f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free"
    if memory.available < 3e9:  # what the demo needs at its peak
        return "note", found, "close other programs before you train; 3 GB are enough"
    return "ok", found, ""


def check_threads() -> Finding:
    import torch

    return "ok", f"torch uses {torch.get_num_threads()} on {os.cpu_count()} cores", ""


def check_gpu() -> Finding:
    import torch

    if torch.cuda.is_available():
        return "ok", torch.cuda.get_device_name(), ""
    if torch.backends.mps.is_available():
        return "ok", "Apple GPU (mps)", ""
    return "ok", "none, and none is needed", ""


def check_profile() -> Finding:
    profile = os.environ.get("LOWRANK_PROFILE") or "laptop"
    if profile not in PROFILES:
        choices = ", ".join(PROFILES)
        return "wrong", f"LOWRANK_PROFILE={profile} is unknown", f"set it to one of {choices}"
    return "ok", profile, ""


def check_data() -> Finding:
    """Imagenette is whole, or can still be downloaded to its place."""
    from .data import COUNTS, data_folder

    folder, given = data_folder(), bool(os.environ.get("LOWRANK_DATA"))
    root = folder / "imagenette2-160"
    setting = "set LOWRANK_DATA to the folder that holds imagenette2-160, or unset it"
    if given and not folder.is_dir():
        return "wrong", f"LOWRANK_DATA={folder} is no folder", setting
    if not root.is_dir():
        if given and not os.access(folder, os.W_OK):
            return "wrong", f"no imagenette2-160 in {folder}, which is read-only", setting
        plan = "the first run downloads it; without internet, the offline digits stand in"
        return "note", f"no Imagenette in {folder}", plan
    for split, expected in COUNTS.items():
        count = sum(1 for _ in (root / split).glob("*/*.JPEG"))
        if count != expected:
            mend = "delete that folder to download it again, or point LOWRANK_DATA at a whole copy"
            return "wrong", f"{count} of {expected} images in {root / split}", mend
    return "ok", f"Imagenette, {sum(COUNTS.values())} images in {root}", ""


def check_cache() -> Finding:
    from .data import cache_folder

    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        mend = "set LOWRANK_CACHE to a folder that you may write to"
        return "wrong", f"{folder} cannot be written: {error.strerror}", mend
    return "ok", f"{folder} can be written", ""


def check_disk() -> Finding:
    """Decoded, Imagenette takes one gigabyte; its download needs a little more for a while."""
    from .data import cache_folder

    place = cache_folder()
    while not place.is_dir():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < 1.5e9:
        mend = "free 1.5 GB, or set LOWRANK_CACHE to a folder on another disk"
        return "wrong", f"{free / 1e9:.1f} GB free for {place}", mend
    return "ok", f"{free / 1e9:.0f} GB free for {place}", ""


def check_kernel() -> Finding:
    """Notebooks start the Python that holds the course, not another one of the same name."""
    from jupyter_client.kernelspec import KernelSpecManager

    mend = "run `python -m ipykernel install --sys-prefix`"
    try:
        command = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except LookupError:
        return "wrong", "Jupyter knows no kernel named python3", mend
    plain = command in ("python", "python3", f"python3.{sys.version_info.minor}")
    if not plain and os.path.abspath(command) != os.path.abspath(sys.executable):
        return "wrong", f"notebooks would run in {command}, not in {sys.executable}", mend
    return "ok", "notebooks run in this Python", ""


def check_model() -> Finding:
    """The small network that ships with the course reads digits that it has not seen."""
    import numpy as np
    import torch

    from .data import load_images, make_loader
    from .models import load_resnet18

    some = load_images("val", "digits").select(np.arange(64))
    images, labels = next(iter(make_loader(some, batch_size=len(some))))
    with torch.inference_mode():
        right = int((load_resnet18("digits")(images).argmax(1) == labels).sum())
    found = f"the small network reads {right} of {len(some)} digits"
    return ("ok", found, "") if 2 * right > len(some) else ("wrong", found, REINSTALL)
