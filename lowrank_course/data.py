"""Images in: Imagenette through torchvision, or scikit-learn's digits without a network.

Images are decoded once, kept as uint8 in the cache folder and memory-mapped from there, so that
later epochs decode no JPEGs and a small laptop has room.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import socket
import tempfile
import threading
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets import Imagenette
from torchvision.transforms import v2
from tqdm.auto import tqdm

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, per RGB channel
COUNTS = {"train": 9469, "val": 3925}  # images in Imagenette, version 2
HOLDOUT_PER_CLASS = {"imagenette": 50, "digits": 10}  # cut from the training images
DIGITS_SIZE = 32  # pixels; the digits are 8 x 8, enlarged
NETWORK_SECONDS = 3.0  # how long "auto" waits for the server of the data


def cache_folder() -> Path:
    """Folder for decoded images and measured tables: LOWRANK_CACHE or the user's own cache."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lowrank-course"
    return Path(os.environ.get("LOWRANK_CACHE") or default).expanduser()


def data_folder() -> Path:
    """Folder that holds `imagenette2-160`: LOWRANK_DATA, else `data` in the cache folder."""
    return Path(os.environ.get("LOWRANK_DATA") or cache_folder() / "data").expanduser()


def pixels(size: str) -> int:
    """Shorter side in pixels of a published size, "160px" or "320px"."""
    if size not in ("160px", "320px"):
        raise ValueError(f'size={size!r} is not published; use "160px" or "320px"')
    return int(size.removesuffix("px"))


def _imagenette_root(size: str) -> Path:
    return data_folder() / f"imagenette2-{pixels(size)}"


def _reachable(host: str) -> bool:
    """Whether a connection opens within NETWORK_SECONDS; name look-ups can hang, so in a thread."""
    answer: list[bool] = []

    def knock() -> None:
        try:
            socket.create_connection((host, 443), timeout=NETWORK_SECONDS).close()
            answer.append(True)
        except OSError:
            answer.append(False)

    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(NETWORK_SECONDS)
    return bool(answer and answer[0])


def find_data(name: str = "auto", size: str = "160px") -> str:
    """Decide which images to use, and download Imagenette if that is what it takes.

    Parameters
    ----------
    name : "auto", "imagenette" or "digits"
        "auto" takes the folder of Imagenette, else downloads it, else (no network) the digits.
    size : "160px" or "320px"

    Returns
    -------
    "imagenette" or "digits"
    """
    if name not in ("auto", "imagenette", "digits"):
        raise ValueError(f'data={name!r} is unknown; use "auto", "imagenette" or "digits"')
    if name == "digits":
        return "digits"
    if _imagenette_root(size).is_dir():
        return "imagenette"
    host = urlparse(Imagenette._ARCHIVES[size][0]).hostname or ""
    if name == "auto" and not _reachable(host):
        warnings.warn(
            f"No Imagenette in {data_folder()} and no network: the offline digits stand in.",
            stacklevel=2,
        )
        return "digits"
    download(size)
    return "imagenette"


def download(size: str = "160px") -> Path:
    """Download Imagenette into the data folder: checksum, extract beside, count, then rename.

    Raises
    ------
    RuntimeError
        When the connection breaks, the checksum is wrong, images are missing or the disk is full.
        Nothing is left behind; call again to retry.
    """
    target = _imagenette_root(size)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=".download-", dir=target.parent))
    way_out = "check the network and the free disk, and run again, or use the offline digits"
    try:
        Imagenette(beside, split="train", size=size, download=True)
        for split, expected in COUNTS.items():
            found = sum(1 for _ in (beside / target.name / split).glob("*/*.JPEG"))
            if found != expected:
                raise RuntimeError(f"{found} of {expected} {split} images arrived")
        (beside / target.name).rename(target)
    except (OSError, EOFError, RuntimeError) as error:
        raise RuntimeError(f"Imagenette {size} was not downloaded: {error}; {way_out}") from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return target


class ImageSet(Dataset):
    """Labelled images of one split, read from memory-mapped uint8 pixels.

    Attributes
    ----------
    pixels : uint8 array (M, H, W, 3), perhaps memory-mapped; all images that the file holds
    index : int64 array (N,), which of them belong to this set
    labels : int64 array (N,)
    classes : names of the classes
    name : "imagenette" or "digits"
    """

    def __init__(
        self,
        pixels: np.ndarray,
        index: np.ndarray,
        labels: np.ndarray,
        classes: list[str],
        name: str,
    ) -> None:
        self.pixels, self.index, self.labels = pixels, index, labels
        self.classes, self.name = classes, name

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        image = torch.from_numpy(np.array(self.pixels[self.index[i]]))  # (H, W, 3) uint8
        return image.permute(2, 0, 1), int(self.labels[i])

    def select(self, positions: np.ndarray) -> ImageSet:
        """The images at `positions` (int array), sharing the same pixels."""
        return ImageSet(
            self.pixels, self.index[positions], self.labels[positions], self.classes, self.name
        )


def load_images(split: str, data: str = "auto", size: str = "160px") -> ImageSet:
    """Load one split.

    Parameters
    ----------
    split : "train", "holdout" or "val"
        "val" is the published validation split: look at it once, for the final figure. "holdout"
        is cut from the published training images, for every choice that is made; "train" is the
        rest.
    data : "auto", "imagenette" or "digits"
    size : "160px" or "320px"
        Size of Imagenette. Images are cut to squares of that side; the digits have 32 pixels.
    """
    if split not in ("train", "holdout", "val"):
        raise ValueError(f'split={split!r} is unknown; use "train", "holdout" or "val"')
    name = find_data(data, size)
    published = "val" if split == "val" else "train"
    images = _digits(published) if name == "digits" else _imagenette(published, size)
    if split == "val":
        return images
    held_out = _balanced_positions(images.labels, HOLDOUT_PER_CLASS[name], seed=0)
    if split == "holdout":
        return images.select(held_out)
    return images.select(np.setdiff1d(np.arange(len(images)), held_out))


def balanced_subset(images: ImageSet, per_class: int, seed: int = 0) -> ImageSet:
    """`per_class` randomly drawn images of every class."""
    smallest = int(np.bincount(images.labels, minlength=len(images.classes)).min())
    if not 1 <= per_class <= smallest:
        raise ValueError(f"per_class={per_class} is not in 1 to {smallest}, the smallest class")
    return images.select(_balanced_positions(images.labels, per_class, seed))


def _balanced_positions(labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    random = np.random.default_rng(seed)
    drawn = [random.permutation(np.flatnonzero(labels == c))[:per_class] for c in np.unique(labels)]
    return np.sort(np.concatenate(drawn))


def _digits(split: str) -> ImageSet:
    bunch = load_digits()
    grey = torch.from_numpy(bunch.images).float()[:, None] * (255 / 16)  # (N, 1, 8, 8), 0 to 255
    enlarged = v2.functional.resize(grey, [DIGITS_SIZE, DIGITS_SIZE], antialias=True)
    rgb = enlarged.round().clamp(0, 255).byte().expand(-1, 3, -1, -1)  # (N, 3, s, s)
    pixels = rgb.permute(0, 2, 3, 1).contiguous().numpy()
    train, val = train_test_split(
        np.arange(len(pixels)), test_size=0.2, random_state=0, stratify=bunch.target
    )
    index = np.sort(train if split == "train" else val)
    classes = [str(name) for name in bunch.target_names]
    return ImageSet(pixels, index, bunch.target[index].astype(np.int64), classes, "digits")


def _imagenette(split: str, size: str) -> ImageSet:
    root = _imagenette_root(size)
    way_out = f"delete {root} and download again, or point LOWRANK_DATA at a whole copy"
    try:
        published = Imagenette(root.parent, split=split, size=size)
    except (FileNotFoundError, RuntimeError, KeyError) as error:
        raise ValueError(f"{root} is not a whole Imagenette: {error}; {way_out}") from error
    files = [(Path(path), label) for path, label in published._samples]
    if len(files) != COUNTS[split]:
        raise ValueError(f"{root / split} holds {len(files)} of {COUNTS[split]} images; {way_out}")
    labels = np.array([label for _, label in files], dtype=np.int64)
    classes = [names[0] for names in published.classes]
    pixels_ = _decoded([path for path, _ in files], pixels(size), f"{root.name}-{split}")
    return ImageSet(pixels_, np.arange(len(files)), labels, classes, "imagenette")


def _decoded(files: list[Path], side: int, name: str) -> np.ndarray:
    """Memory map of all files as uint8 (N, side, side, 3), decoded on the first call only."""
    listing = "".join(f"{path} {path.stat().st_size}\n" for path in files)
    key = hashlib.sha256(listing.encode()).hexdigest()[:12]  # another folder, another cache file
    target = cache_folder() / "decoded" / f"{name}-{key}.npy"
    if not target.exists():
        shape = (len(files), side, side, 3)
        with written_beside(target, int(np.prod(shape))) as beside:
            out = np.lib.format.open_memmap(beside, mode="w+", dtype=np.uint8, shape=shape)
            with ThreadPoolExecutor() as pool:
                decoded = pool.map(lambda path: decode(path, side), files)
                for i, image in enumerate(tqdm(decoded, f"decoding {name}", len(files))):
                    out[i] = image
            out.flush()
            del out
    return np.load(target, mmap_mode="r")


def decode(path: Path, side: int) -> np.ndarray:
    """One image file as uint8 (side, side, 3): shorter side resized, the centre cut out."""
    try:
        with Image.open(path) as image:
            rgb = image.convert("RGB")  # Imagenette holds some greyscale files
    except (OSError, SyntaxError) as error:
        raise ValueError(
            f"{path} cannot be read as an image ({error}); restore that file or download again"
        ) from error
    scale = side / min(rgb.size)
    if scale != 1:
        rgb = rgb.resize(
            (round(rgb.width * scale), round(rgb.height * scale)), Image.Resampling.BILINEAR
        )
    left, top = (rgb.width - side) // 2, (rgb.height - side) // 2
    return np.asarray(rgb.crop((left, top, left + side, top + side)))


@contextmanager
def written_beside(target: Path, size: int = 0) -> Iterator[Path]:
    """Write to a neighbour of `target`, renamed when the block ends well: all of it or nothing.

    Raises OSError with the way out when fewer than `size` bytes are free or the disk fills up.
    """
    where = "free some, or point LOWRANK_CACHE elsewhere"
    target.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(target.parent).free
    if free < size:
        raise OSError(
            errno.ENOSPC,
            f"{target.parent} has {free / 1e6:.0f} MB free, needs {size / 1e6:.0f} MB; {where}",
        )
    beside = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        yield beside
        beside.replace(target)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise OSError(errno.ENOSPC, f"the disk of {target.parent} is full; {where}") from error
        raise
    finally:
        beside.unlink(missing_ok=True)


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

    Parameters
    ----------
    size : pixels; None keeps the images' own size
    augment : shuffled, cropped and flipped at random for training, else in order and whole
    seed : of the shuffling
    """
    side = size or images.pixels.shape[1]
    steps: list[torch.nn.Module] = [v2.Resize([side, side], antialias=True)]
    if augment:
        steps = [v2.RandomResizedCrop(side, scale=(0.35, 1.0), antialias=True)]
        if images.name != "digits":  # a mirrored 2 is no digit
            steps.append(v2.RandomHorizontalFlip())
    transform = v2.Compose(steps)
    normalise = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])

    def collate(items: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
        batch = torch.stack([transform(image) for image, _ in items])  # (N, 3, s, s) uint8
        return normalise(batch), torch.tensor([label for _, label in items])

    generator = torch.Generator().manual_seed(seed)
    return DataLoader(
        images,
        batch_size,
        shuffle=augment,
        collate_fn=collate,
        generator=generator,
        drop_last=augment and len(images) > batch_size,
    )


def to_picture(image: Tensor) -> np.ndarray:
    """A normalised image (3, H, W) as floats (H, W, 3) from 0 to 1, to be shown."""
    picture = image.cpu() * torch.tensor(STD)[:, None, None] + torch.tensor(MEAN)[:, None, None]
    return picture.clamp(0, 1).permute(1, 2, 0).numpy()
