"""Images in: Imagenette through torchvision, or scikit-learn's digits without a network.

Images are decoded once, as uint8 into the cache folder, and memory-mapped from there: later epochs
decode no JPEGs, and a small laptop has room.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import socket
import tempfile
import threading
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import Imagenette
from torchvision.transforms import v2
from tqdm.auto import tqdm

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, per RGB channel
SIZES = {"160px": 160, "320px": 320}  # pixels of the shorter side, as published
WNIDS = sorted(Imagenette._WNID_TO_CLASS)  # the folders of its classes, in the order of labels
COUNTS = {"train": 9469, "val": 3925}  # images in Imagenette
HOLDOUT_PER_CLASS = {"imagenette": 50, "digits": 10}  # cut from the training images
NETWORK_SECONDS = 3.0  # how long the server of the data may take to answer at all
STALL_SECONDS = 30.0  # how long a download may stand still


def cache_folder() -> Path:
    """Folder for decoded images and measured tables: LOWRANK_CACHE or the user's own cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lowrank-course"
    return Path(os.environ.get("LOWRANK_CACHE") or default).expanduser()


def data_folder() -> Path:
    """Folder that holds `imagenette2-160`: LOWRANK_DATA, else `data` in the cache folder."""
    given = os.path.expanduser(os.environ.get("LOWRANK_DATA") or cache_folder() / "data")
    folder = Path(os.path.abspath(given))
    too_deep = folder.name.startswith("imagenette2-")  # an easy mistake: what is meant is plain
    return folder.parent if too_deep else folder


def _imagenette_root(size: str) -> Path:
    if size not in SIZES:
        raise ValueError(f'size={size!r} is not published; use "160px" or "320px"')
    return data_folder() / f"imagenette2-{SIZES[size]}"


def find_data(name: str = "auto", size: str = "160px", profile: str = "") -> str:
    """Decide on "imagenette" or "digits"; downloads Imagenette if that is what it takes.

    "auto" takes the folder of Imagenette, else downloads it, else warns and takes the digits. The
    `profile` "smoke" downloads nothing, nor does LOWRANK_PROFILE=smoke.
    """
    if name not in ("auto", "imagenette", "digits"):
        raise ValueError(f'data={name!r} is unknown; use "auto", "imagenette" or "digits"')
    if name == "digits" or _imagenette_root(size).is_dir():
        return "digits" if name == "digits" else "imagenette"
    try:
        if name == "auto" and "smoke" in (profile, os.environ.get("LOWRANK_PROFILE")):
            raise RuntimeError(f"no Imagenette in {data_folder()}, and smoke downloads nothing")
        download(size)
        return "imagenette"
    except RuntimeError as error:
        if name == "imagenette":
            raise
        warnings.warn(f"{error}; the offline digits stand in.", stacklevel=2)
        return "digits"


def _answers(url: str) -> bool:
    """Whether the server answers in time; name look-ups can hang, so it is asked in a thread."""
    answered = threading.Event()

    def ask() -> None:
        with suppress(OSError, HTTPException):
            urllib.request.urlopen(url, timeout=NETWORK_SECONDS).close()
            answered.set()

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(NETWORK_SECONDS)
    return answered.is_set()


def download(size: str = "160px") -> Path:
    """Download Imagenette into the data folder: checksum, extract beside, count, then rename.

    Raises RuntimeError when the server does not answer, the connection breaks or stalls, the
    checksum is wrong, images are missing, or the disk is full or read-only. Nothing is left behind.
    """
    target = _imagenette_root(size)
    usual_timeout = socket.getdefaulttimeout()  # torchvision sets none, and would wait for ever
    try:
        if not _answers(Imagenette._ARCHIVES[size][0]):
            raise OSError("the server does not answer")
        target.parent.mkdir(parents=True, exist_ok=True)
        socket.setdefaulttimeout(STALL_SECONDS)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=target.parent) as beside:
            Imagenette(beside, size=size, download=True)
            arrived = Path(beside) / target.name
            for split, count in COUNTS.items():
                if len(list(arrived.glob(f"{split}/*/*.JPEG"))) != count:
                    raise ValueError(f"{split} images are missing in the archive")
            arrived.rename(target)
    except (OSError, EOFError, HTTPException, RuntimeError, ValueError) as error:
        raise RuntimeError(
            f"no Imagenette in {target.parent}, and its download failed ({error}): check network "
            "and disk and run again, or point LOWRANK_DATA at a folder that holds it"
        ) from error
    finally:
        socket.setdefaulttimeout(usual_timeout)
    return target


@dataclass(eq=False, repr=False)
class ImageSet(Dataset):
    """Labelled images of one split; items are (uint8 tensor (3, H, W), int)."""

    pixels: np.ndarray  # uint8 (M, H, W, 3), perhaps memory-mapped: all images of the file
    index: np.ndarray  # int64 (N,), which of them belong to this set
    labels: np.ndarray  # int64 (N,)
    classes: list[str]
    name: str  # "imagenette" or "digits"

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        image = torch.from_numpy(np.array(self.pixels[self.index[i]]))  # (H, W, 3), a copy
        return image.permute(2, 0, 1), int(self.labels[i])

    def select(self, positions: np.ndarray) -> ImageSet:
        """The images at `positions` (int or bool array), sharing the same pixels."""
        return replace(self, index=self.index[positions], labels=self.labels[positions])


def load_images(split: str, data: str = "auto", size: str = "160px") -> ImageSet:
    """Load one split: "train", "holdout" or "val".

    "val" is the published validation split: look at it once, for the final figure. "holdout" is cut
    from the published training images, for every choice that is made; "train" is the rest.
    Images of Imagenette are cut to squares of `size`; the digits have 32 pixels.
    """
    if split not in ("train", "holdout", "val"):
        raise ValueError(f'split={split!r} is unknown; use "train", "holdout" or "val"')
    name = find_data(data, size)
    published = "val" if split == "val" else "train"
    images = _digits(published) if name == "digits" else _imagenette(published, size)
    if split == "val":
        return images
    holdout = balanced_subset(images, HOLDOUT_PER_CLASS[name])
    return holdout if split == "holdout" else images.select(~np.isin(images.index, holdout.index))


def balanced_subset(images: ImageSet, per_class: int, seed: int = 0) -> ImageSet:
    """`per_class` randomly drawn images of every class, the classes mixed."""
    smallest = int(np.bincount(images.labels, minlength=len(images.classes)).min())
    if not 1 <= per_class <= smallest:
        raise ValueError(f"per_class={per_class} is not in 1 to {smallest}, the smallest class")
    labels, random = images.labels, np.random.default_rng(seed)
    drawn = [random.permutation(np.flatnonzero(labels == c))[:per_class] for c in np.unique(labels)]
    return images.select(random.permutation(np.concatenate(drawn)))


def _digits(split: str) -> ImageSet:
    from sklearn.datasets import load_digits  # slow to import, and only the digits need it
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    grey = torch.from_numpy(digits.images).float()[:, None] * (255 / 16)  # (N, 1, 8, 8)
    enlarged = v2.functional.resize(grey, [32, 32], antialias=True)
    rgb = enlarged.round().clamp(0, 255).byte().expand(-1, 3, -1, -1)  # (N, 3, 32, 32)
    pixels = rgb.permute(0, 2, 3, 1).contiguous().numpy()
    labels = digits.target.astype(np.int64)
    parts = train_test_split(np.arange(len(labels)), test_size=0.2, random_state=0, stratify=labels)
    index = np.sort(parts[split == "val"])
    return ImageSet(pixels, index, labels[index], list("0123456789"), "digits")


def _imagenette(split: str, size: str) -> ImageSet:
    root = _imagenette_root(size)
    files = [path for wnid in WNIDS for path in sorted((root / split / wnid).glob("*.JPEG"))]
    if len(files) != COUNTS[split]:
        reason = f"{len(files)} of {COUNTS[split]} images in {root / split}"
        raise ValueError(f"{reason}; delete {root} to download it again, or change LOWRANK_DATA")
    labels = np.array([WNIDS.index(path.parent.name) for path in files])
    classes = [Imagenette._WNID_TO_CLASS[wnid][0] for wnid in WNIDS]
    decoded = _decoded(files, SIZES[size], f"{root.name}-{split}")
    return ImageSet(decoded, np.arange(len(files)), labels, classes, "imagenette")


def _decoded(files: list[Path], side: int, name: str) -> np.ndarray:
    """Memory map of all files as uint8 (N, side, side, 3), decoded on the first call only."""
    listing = "".join(f"{path} {path.stat().st_size}\n" for path in files)
    key = hashlib.sha256(listing.encode()).hexdigest()[:12]  # another folder, another cache file
    target = cache_folder() / "decoded" / f"{name}-{key}.npy"
    shape = (len(files), side, side, 3)
    if not target.exists():
        # Written, not mapped: then a full disk is an error and does not kill the process.
        with written_beside(target, 3 * side**2 * len(files)) as beside, beside.open("wb") as file:
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for path in tqdm(files, f"decoding {name}"):
                file.write(decode(path, side).tobytes())
    return np.load(target, mmap_mode="r")


def decode(path: Path, side: int) -> np.ndarray:
    """One image file as uint8 (side, side, 3): shorter side resized, the centre cut out."""
    try:
        with Image.open(path) as image:
            rgb = image.convert("RGB")  # Imagenette holds some greyscale files
    except (OSError, SyntaxError) as error:
        way_out = "restore that file or download again"
        raise ValueError(f"{path} cannot be read as an image ({error}); {way_out}") from error
    scale = side / min(rgb.size)
    if scale != 1:
        wide, high = round(rgb.width * scale), round(rgb.height * scale)
        rgb = rgb.resize((wide, high), Image.Resampling.BILINEAR)
    left, top = (rgb.width - side) // 2, (rgb.height - side) // 2
    return np.asarray(rgb.crop((left, top, left + side, top + side)))


@contextmanager
def written_beside(target: Path, size: int = 0) -> Iterator[Path]:
    """A neighbour of `target`, renamed when the block ends well: all is written or nothing.

    OSError with the way out where that fails, or fewer than `size` bytes are free.
    """
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if (free := shutil.disk_usage(target.parent).free) < size:
            raise OSError(errno.ENOSPC, f"{size / 1e6:.0f} MB needed, {free / 1e6:.0f} MB free")
        yield beside
        beside.replace(target)
    except OSError as error:
        reason = f"{target} cannot be written ({error.strerror or error})"
        way_out = "free space there or choose another place; LOWRANK_CACHE moves the cache"
        raise OSError(error.errno, f"{reason}: {way_out}") from error
    finally:
        with suppress(OSError):  # not there, or its folder is not
            beside.unlink()


def write_text(path: str | Path, text: str) -> None:
    """Write a text file, all of it or nothing."""
    with written_beside(Path(path)) as beside:
        beside.write_text(text + "\n", encoding="utf-8")


def make_loader(
    images: ImageSet,
    batch_size: int = 64,
    size: int | None = None,
    augment: bool = False,
    seed: int = 0,
) -> DataLoader:
    """Batches of (float32 (N, 3, size, size) normalised as for ImageNet, int64 (N,)).

    `size` in pixels, None for the images' own. `augment` shuffles (by `seed`), crops and flips at
    random (by torch's own seed) for training; else images come in order and whole.
    """
    side = size or images.pixels.shape[1]
    transform: torch.nn.Module = v2.Resize([side, side])
    if augment:
        transform = v2.RandomResizedCrop(side, scale=(0.35, 1.0))
        if images.name != "digits":  # a mirrored 2 is no digit
            transform = v2.Compose([transform, v2.RandomHorizontalFlip()])
    normalise = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])

    def pack(items: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        batch = normalise(torch.stack([transform(image) for image, _ in items]))  # (N, 3, s, s)
        batch = batch.contiguous(memory_format=torch.channels_last)  # which CPUs prefer
        return batch, torch.tensor([label for _, label in items])

    order = torch.Generator().manual_seed(seed)
    even = augment and len(images) > batch_size  # no last, smaller batch while training
    return DataLoader(images, batch_size, augment, collate_fn=pack, generator=order, drop_last=even)


def to_picture(image: Tensor) -> np.ndarray:
    """A normalised image (3, H, W) as floats (H, W, 3) from 0 to 1, to be shown."""
    picture = image.cpu() * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    return picture.clamp(0, 1).permute(1, 2, 0).numpy()
