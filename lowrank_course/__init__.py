"""Low-rank compression of convolutional networks: the helper module of the course."""

try:
    from .compress import compress
    from .measure import measure
    from .models import load_resnet18
    from .plan import load_compressed, save_compressed
    from .train import evaluate, fine_tune, train
except (ImportError, OSError, RuntimeError) as error:  # doctor must start without torch, too
    _reason = f"{error}; run `python -m lowrank_course doctor`"

    def __getattr__(name: str) -> object:
        raise ImportError(_reason)


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
