"""Low-rank compression of convolutional networks: the helper module of the course."""

from .compress import compress, load_compressed, save_compressed
from .measure import measure
from .models import load_resnet18
from .train import evaluate, fine_tune, train

__all__ = [
    "compress",
    "evaluate",
    "fine_tune",
    "load_compressed",
    "load_resnet18",
    "measure",
    "save_compressed",
    "train",
]
