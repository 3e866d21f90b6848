"""Images, from the server to the batch: a tiny Imagenette is served on loopback, well and badly."""

import errno
import hashlib
import io
import os
import re
import shutil
import signal
import socket
import tarfile
import threading
import time
import tracemalloc
import warnings
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torchvision.datasets import Imagenette

from lowrank_course import data
from lowrank_course.data import (
    ImageSet,
    balanced_subset,
    decode,
    find_data,
    load_images,
    make_loader,
    to_picture,
    written_beside,
)

WNIDS = sorted(Imagenette._WNID_TO_CLASS)
PER_CLASS = {"train": 4, "val": 2}
SIZE = (24, 16)  # wide, as the official images are not square


def colour(split: str, label: int, i: int) -> tuple[int, int, int]:
    """Every image has one colour of its own, so that a mix-up shows."""
    return 20 + 20 * label, 40 + 40 * i, 200 if split == "train" else 50


def jpeg(size=SIZE, colour=(200, 100, 50), mode="RGB") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).convert(mode).save(file, "JPEG", quality=95)
    return file.getvalue()


PICTURES = {
    f"imagenette2-160/{split}/{wnid}/{wnid}_{i}.JPEG": jpeg(colour=colour(split, label, i))
    for split, count in PER_CLASS.items()
    for label, wnid in enumerate(WNIDS)
    for i in range(count)
}


def archive(pictures: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, content in pictures.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return file.getvalue()


WHOLE = archive(PICTURES)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A machine without any data, and the small counts of the tiny Imagenette."""
    monkeypatch.setenv("LOWRANK_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("LOWRANK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("LOWRANK_PROFILE", "laptop")
    monkeypatch.setenv("no_proxy", "*")
    counts = {split: count * len(WNIDS) for split, count in PER_CLASS.items()}
    monkeypatch.setattr(data, "COUNTS", counts)
    monkeypatch.setitem(data.HOLDOUT_PER_CLASS, "imagenette", 1)
    return tmp_path


@pytest.fixture
def folder(place):
    """The same with the tiny Imagenette in its data folder."""
    for name, content in PICTURES.items():
        (place / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (place / "data" / name).write_bytes(content)
    return place / "data" / "imagenette2-160"


@pytest.fixture
def server(place, monkeypatch):
    """Serves `content`; after half of it, calls `trouble` if that is given."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.server.asked.append(self.path)
            content, trouble = self.server.content, self.server.trouble
            self.send_response(self.server.status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            half = content[: len(content) // 2]
            # torchvision asks twice: where the archive is, with this header, and for its content.
            torchvisions = self.headers["User-Agent"] == "pytorch/vision"
            try:
                self.wfile.write(half)
                if trouble is None:
                    self.wfile.write(content[len(half) :])
                elif torchvisions and "Method" not in self.headers:
                    trouble()
            except OSError:
                pass  # whoever asked has gone away

        def log_message(self, *args):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    httpd.content, httpd.trouble, httpd.status, httpd.asked = WHOLE, None, 200, []
    httpd.over = threading.Event()

    def announce(content=WHOLE, md5=None):
        """Serve `content`, under its own checksum if none is given."""
        httpd.content = content
        md5 = md5 or hashlib.md5(content).hexdigest()
        url = f"http://127.0.0.1:{httpd.server_port}/imagenette2-160.tgz"
        monkeypatch.setitem(Imagenette._ARCHIVES, "160px", (url, md5))

    httpd.announce = announce
    announce()
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield httpd
    httpd.over.set()
    httpd.shutdown()
    httpd.server_close()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def refused(error: type[Exception], *words: str):
    """Expect an error of one or two lines that holds all of `words`, in this order."""
    return pytest.raises(error, match=r"\A(?!(.*\n){2})[\s\S]*" + r"[\s\S]*".join(words))


def digits_and_one_sentence() -> str:
    """What `auto` warns when it takes the digits: a single sentence, within five seconds."""
    start = time.perf_counter()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert find_data("auto") == "digits"
    assert time.perf_counter() - start < 5
    (sentence,) = [str(w.message) for w in said if w.category is UserWarning]
    assert sentence.endswith("the offline digits stand in.")
    assert "\n" not in sentence and ". " not in sentence
    return sentence


# ---- download ----------------------------------------------------------------------------------


def test_a_good_download_ends_renamed_with_nothing_beside(server, place):
    images = load_images("train", "imagenette")
    assert names(place / "data") == ["imagenette2-160"]
    assert names(place / "data" / "imagenette2-160") == ["train", "val"]
    assert len(images) == 3 * len(WNIDS)
    server.asked.clear()
    assert find_data("auto") == find_data("imagenette") == "imagenette"
    assert server.asked == []  # what is there is not asked for


def less(pictures: dict[str, bytes], word: str) -> bytes:
    return archive({name: content for name, content in pictures.items() if word not in name})


def portal(server):
    server.content = b"<html>Please log in</html>" * 100


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        pytest.param(lambda s: s.announce(md5="0" * 32), "corrupted", id="checksum"),
        pytest.param(portal, "corrupted", id="login page"),
        pytest.param(lambda s: setattr(s, "trouble", lambda: None), "", id="broken"),
        pytest.param(
            lambda s: setattr(s, "trouble", lambda: s.over.wait(20)), "timed out", id="stalled"
        ),
        pytest.param(lambda s: setattr(s, "status", 404), "does not answer", id="gone"),
        pytest.param(lambda s: s.server_close(), "does not answer", id="closed"),
        pytest.param(lambda s: s.announce(less(PICTURES, "_3.J")), "train images", id="few"),
        pytest.param(lambda s: s.announce(less(PICTURES, f"val/{WNIDS[4]}")), "val", id="class"),
        pytest.param(lambda s: s.announce(less(PICTURES, "/")), "train", id="empty"),
        pytest.param(lambda s: s.announce(WHOLE[:-500]), "end", id="cut before upload"),
    ],
)
def test_a_failed_download_leaves_nothing_and_names_the_way_out(
    fault, reason, server, place, monkeypatch
):
    monkeypatch.setattr(data, "NETWORK_SECONDS", 1.0)
    monkeypatch.setattr(data, "STALL_SECONDS", 0.3)
    fault(server)
    with refused(RuntimeError, re.escape(str(place / "data")), reason, "run again", "LOWRANK_DATA"):
        load_images("val", "imagenette")
    assert names(place / "data") == names(place / "cache") == []
    assert socket.getdefaulttimeout() is None
    assert "LOWRANK_DATA" in digits_and_one_sentence()
    assert names(place / "data") == []


def test_after_a_failure_the_next_download_succeeds(server, place):
    server.trouble = lambda: None
    with refused(RuntimeError):
        find_data("imagenette")
    server.trouble = None
    assert find_data("imagenette") == "imagenette"
    assert names(place / "data") == ["imagenette2-160"]


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs POSIX signals")
def test_ctrl_c_during_a_download_leaves_nothing(server, place, request):
    usual = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, usual))

    def interrupt():
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        server.over.wait(20)

    server.trouble = interrupt
    with pytest.raises(KeyboardInterrupt):
        find_data("auto")
    assert names(place / "data") == []
    assert socket.getdefaulttimeout() is None


def test_a_full_disk_during_extraction(server, place, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tarfile, "copyfileobj", full)
    with refused(RuntimeError, "No space left", "disk"):
        find_data("imagenette")
    assert names(place / "data") == []


def test_a_data_folder_that_cannot_be_made(server, place, monkeypatch):
    (place / "file").write_text("in the way")
    monkeypatch.setenv("LOWRANK_DATA", str(place / "file" / "data"))
    with refused(RuntimeError, "file", "LOWRANK_DATA"):
        find_data("imagenette")


# ---- which images ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["auto", "imagenette"])
def test_a_name_lookup_that_hangs(name, server, place, monkeypatch):
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: server.over.wait(20) and [])
    if name == "auto":
        assert str(place / "data") in digits_and_one_sentence()
        return
    start = time.perf_counter()
    with refused(RuntimeError, "does not answer"):
        find_data("imagenette")
    assert time.perf_counter() - start < 5


def test_a_server_that_accepts_and_says_nothing(place, server, monkeypatch):
    monkeypatch.setattr(data, "NETWORK_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/imagenette2-160.tgz"
        monkeypatch.setitem(Imagenette._ARCHIVES, "160px", (url, ""))
        assert "does not answer" in digits_and_one_sentence()


def test_digits_and_smoke_ask_no_server(server, monkeypatch):
    assert load_images("val", "digits").name == "digits"
    with pytest.warns(UserWarning, match="smoke"):  # as `demo --profile smoke` asks for it
        assert find_data("auto", profile="smoke") == "digits"
    monkeypatch.setenv("LOWRANK_PROFILE", "smoke")
    assert "smoke" in digits_and_one_sentence()
    with pytest.warns(UserWarning, match="smoke"):
        assert find_data("auto", profile="laptop") == "digits"
    assert server.asked == []


@pytest.mark.parametrize("given", ["data", "data/", "data/imagenette2-160", "data/../data"])
def test_the_data_folder_may_be_named_one_level_too_deep_or_relative(
    given, folder, place, monkeypatch
):
    cached = load_images("val", "imagenette").pixels.filename
    monkeypatch.chdir(place)
    monkeypatch.setenv("LOWRANK_DATA", given)
    assert data.data_folder() == place / "data"
    assert find_data("auto") == "imagenette"
    assert load_images("val", "imagenette").pixels.filename == cached


def test_without_settings_all_lies_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("LOWRANK_DATA", raising=False)
    monkeypatch.delenv("LOWRANK_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert data.cache_folder() == tmp_path / "lowrank-course"
    assert data.data_folder() == tmp_path / "lowrank-course" / "data"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("test", "digits"), ["split='test'", '"holdout"']),
        (("val", "cifar"), ["data='cifar'", '"digits"']),
        (("val", "imagenette", "64px"), ["size='64px'", '"320px"']),
    ],
)
def test_unknown_arguments(arguments, words, place):
    with refused(ValueError, *words):
        load_images(*arguments)


# ---- a damaged data folder ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "lost", [f"train/{WNIDS[3]}", f"train/{WNIDS[0]}/{WNIDS[0]}_1.JPEG", "train"]
)
def test_missing_images_are_counted(lost, folder, place):
    shutil.rmtree(folder / lost) if (folder / lost).is_dir() else (folder / lost).unlink()
    with refused(ValueError, r"\d+ of 40 images in", "train", "delete", "LOWRANK_DATA"):
        load_images("holdout", "auto")
    assert names(place / "cache") == []
    assert len(load_images("val", "auto")) == 20


@pytest.mark.parametrize(
    "content", [jpeg((64, 64))[:-300], b"not an image", b""], ids=["truncated", "text", "empty"]
)
def test_an_unreadable_image_is_named_and_nothing_is_cached(content, folder, place):
    file = folder / "val" / WNIDS[9] / f"{WNIDS[9]}_1.JPEG"
    file.write_bytes(content)
    with refused(ValueError, file.name, "cannot be read as an image", "restore"):
        load_images("val", "imagenette")
    assert names(place / "cache" / "decoded") == []
    file.write_bytes(jpeg())
    assert len(load_images("val", "imagenette")) == 20


def test_a_read_only_data_folder_is_left_as_it_is(folder, place):
    def state():
        return {path: path.stat().st_mtime_ns for path in (place / "data").rglob("*")}

    before = state()
    for path in before:
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        assert len(load_images("val", "imagenette")) == 20
        assert state() == before
    finally:
        for path in before:
            path.chmod(0o755)


# ---- decoding and its cache --------------------------------------------------------------------


def test_pixels_labels_and_classes_belong_together(folder):
    for split, count in PER_CLASS.items():
        parts = (
            [load_images("val")]
            if split == "val"
            else [load_images("train"), load_images("holdout")]
        )
        found = []
        for images in parts:
            for image, label in images:
                assert image.shape == (3, 160, 160) and image.dtype == torch.uint8
                assert isinstance(label, int)
                found.append((label, tuple(image.float().mean((1, 2)).tolist())))
        expected = [
            (label, pytest.approx(colour(split, label, i), abs=4))
            for label in range(len(WNIDS))
            for i in range(count)
        ]
        assert sorted(found, key=lambda item: (item[0], item[1][1])) == expected
    assert images.classes == [Imagenette._WNID_TO_CLASS[wnid][0] for wnid in WNIDS]
    assert images.name == "imagenette"


@pytest.mark.parametrize("side", [20, 10, 30])
@pytest.mark.parametrize("turn", [False, True])
def test_the_centre_of_an_image_that_is_not_square(side, turn, tmp_path):
    stripes = np.zeros((20, 60, 3), np.uint8)  # red, green and blue, each a square
    for channel in range(3):
        stripes[:, 20 * channel : 20 * channel + 20, channel] = 255
    Image.fromarray(stripes.swapaxes(0, 1) if turn else stripes).save(tmp_path / "stripes.png")
    image = decode(tmp_path / "stripes.png", side)
    assert image.shape == (side, side, 3) and image.dtype == np.uint8
    inner = image[2:-2, 2:-2]  # resizing blurs the border between two stripes
    assert (inner == (0, 255, 0)).all()


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_colour_modes_become_rgb(mode, tmp_path):
    (tmp_path / "image.JPEG").write_bytes(jpeg(colour=(90, 90, 90), mode=mode))
    image = decode(tmp_path / "image.JPEG", 16)
    assert image.shape == (16, 16, 3)
    assert np.abs(image.astype(int) - 90).max() <= 4


def test_images_are_decoded_once_and_mapped(folder, place, monkeypatch):
    first = load_images("train")
    monkeypatch.setattr(data, "decode", lambda *_: pytest.fail("decodes again"))
    second = load_images("train")
    assert isinstance(second.pixels, np.memmap) and not second.pixels.flags.writeable
    assert second.pixels.dtype == np.uint8 and second.pixels.shape == (40, 160, 160, 3)
    assert first.pixels.filename == second.pixels.filename
    assert balanced_subset(second, 2).pixels is second.pixels
    assert len(names(place / "cache" / "decoded")) == 1


def test_memory_holds_single_images_not_all(folder):
    tracemalloc.start()
    images = load_images("train")
    for _ in make_loader(balanced_subset(images, 3), batch_size=2, size=32, augment=True):
        pass
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < images.pixels.nbytes / 3


def test_another_or_changed_data_folder_is_decoded_anew(folder, place, monkeypatch):
    load_images("val")
    shutil.copytree(place / "data", place / "copy")
    monkeypatch.setenv("LOWRANK_DATA", str(place / "copy"))
    load_images("val")
    assert len(names(place / "cache" / "decoded")) == 2
    file = place / "copy" / "imagenette2-160" / "val" / WNIDS[0] / f"{WNIDS[0]}_0.JPEG"
    file.write_bytes(jpeg((40, 40), (255, 255, 255)))
    assert load_images("val")[0][0].float().mean() == 255
    assert len(names(place / "cache" / "decoded")) == 3


def test_a_disk_too_small_is_told_before_decoding(folder, place, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 1_000_000))
    monkeypatch.setattr(data, "decode", lambda *_: pytest.fail("decodes"))
    with refused(OSError, "2 MB needed, 1 MB free", "free space", "LOWRANK_CACHE") as caught:
        load_images("val")
    assert caught.value.errno == errno.ENOSPC
    assert names(place / "cache" / "decoded") == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_disk_that_fills_up_while_decoding(folder, place, monkeypatch):
    monkeypatch.setattr(Path, "open", lambda *_: open("/dev/full", "wb"))
    with refused(OSError, "No space left", "free space", "LOWRANK_CACHE"):
        load_images("val")
    assert names(place / "cache" / "decoded") == []


def test_ctrl_c_while_decoding_leaves_nothing(folder, place, monkeypatch):
    decoded = iter([np.zeros((160, 160, 3), np.uint8)] * 5)

    def interrupted(*_):
        for image in decoded:
            return image
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "decode", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_images("val")
    assert names(place / "cache" / "decoded") == []


def test_a_cache_folder_that_cannot_be_written(folder, place, monkeypatch):
    (place / "file").write_text("in the way")
    monkeypatch.setenv("LOWRANK_CACHE", str(place / "file"))
    with refused(OSError, "cannot be written", "LOWRANK_CACHE"):
        load_images("val")


def test_a_failed_write_keeps_the_old_file_alone(tmp_path):
    target = tmp_path / "plan.json"
    target.write_text("old")
    for error in (OSError(errno.ENOSPC, "No space left on device"), ValueError("any")):
        with pytest.raises(type(error)), written_beside(target) as beside:
            beside.write_text("half")
            raise error
        assert names(tmp_path) == ["plan.json"] and target.read_text() == "old"
    data.write_text(target, "naïve")
    assert names(tmp_path) == ["plan.json"] and target.read_text(encoding="utf-8") == "naïve\n"


# ---- splits and subsets ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "total", "held_out"), [("imagenette", 40, 1), ("digits", 1437, 10)]
)
def test_held_out_images_are_balanced_and_never_trained_on(name, total, held_out, folder):
    train, holdout, val = (load_images(split, name) for split in ("train", "holdout", "val"))
    assert np.bincount(holdout.labels).tolist() == [held_out] * 10
    assert not set(train.index) & set(holdout.index)
    assert len(set(train.index) | set(holdout.index)) == len(train) + len(holdout) == total
    assert (np.bincount(train.labels, minlength=10) > 0).all()
    if name == "digits":  # one file holds all digits
        assert not set(val.index) & (set(train.index) | set(holdout.index))
        assert len(val) == 1797 - total
    else:
        assert val.pixels.filename != train.pixels.filename
        assert len(val) == len(val.pixels) == 20
    again = load_images("holdout", name)
    assert (again.index == holdout.index).all() and (again.labels == holdout.labels).all()


def test_digits_are_scikit_learns_and_always_the_same():
    bunch = load_digits()
    np.random.seed(1)  # noqa: NPY002
    torch.manual_seed(1)
    images = load_images("val", "digits")
    np.random.seed(2)  # noqa: NPY002
    torch.manual_seed(2)
    again = load_images("val", "digits")
    assert (images.pixels == again.pixels).all() and (images.index == again.index).all()
    assert images.pixels.shape == (1797, 32, 32, 3) and images.pixels.dtype == np.uint8
    assert (images.labels == bunch.target[images.index]).all()
    assert images.labels.dtype == np.int64 and images.classes == list("0123456789")
    image, label = images[7]
    assert image.shape == (3, 32, 32) and isinstance(label, int)
    assert (image == image[:1]).all()  # grey
    small = image[0].reshape(8, 4, 8, 4).float().mean((1, 3))  # (8, 8), back to the digit's size
    assert np.corrcoef(small.flatten(), bunch.images[images.index[7]].flatten())[0, 1] > 0.97


def test_subsets_are_balanced_and_drawn_by_their_seed():
    images = load_images("train", "digits")
    first, same, other = (balanced_subset(images, 7, seed) for seed in (0, 0, 1))
    assert np.bincount(first.labels).tolist() == [7] * 10
    assert (first.index == same.index).all() and (first.index != other.index).any()
    assert len(set(first.index)) == 70 and set(first.index) <= set(images.index)
    # Batches mix the classes, whatever the order of the images: batch norms need that.
    by_class = images.select(images.labels.argsort(kind="stable"))
    assert all(len(set(balanced_subset(by_class, 20).labels[i : i + 40])) > 5 for i in (0, 80, 160))
    truth = dict(zip(images.index, images.labels, strict=True))
    assert all(truth[i] == label for i, label in zip(first.index, first.labels, strict=True))
    smallest = np.bincount(images.labels).min()
    assert len(balanced_subset(images, smallest)) == 10 * smallest
    for wrong in (0, -1, smallest + 1):
        with refused(ValueError, f"per_class={wrong}", f"1 to {smallest}"):
            balanced_subset(images, wrong)


# ---- batches -----------------------------------------------------------------------------------


def half_white(count=24, name="imagenette") -> ImageSet:
    """Images whose left half is white; the label is the position."""
    pixels = np.zeros((count, 20, 20, 3), np.uint8)
    pixels[:, :, :10] = 255
    return ImageSet(pixels, np.arange(count), np.arange(count), ["any"], name)


def test_batches_are_whole_in_order_and_normalised():
    images = load_images("val", "digits")
    batches = list(make_loader(images, batch_size=50, seed=3))
    pixels, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    assert len(batches) == 8 and len(batches[-1][1]) == 10  # the last one is smaller, but there
    assert pixels.shape == (360, 3, 32, 32) and pixels.dtype == torch.float32
    assert labels.dtype == torch.int64 and (labels.numpy() == images.labels).all()
    raw = images.pixels[images.index] / 255  # (N, H, W, 3)
    expected = (raw - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(pixels.permute(0, 2, 3, 1), expected, atol=1e-5)
    np.testing.assert_allclose(to_picture(pixels[5]), raw[5], atol=1e-6)


def test_batches_of_another_size():
    pixels, _ = next(iter(make_loader(half_white(), batch_size=4, size=12)))
    assert pixels.shape == (4, 3, 12, 12)
    picture = to_picture(pixels[0])
    assert picture.shape == (12, 12, 3)
    assert (picture[:, :4] > 0.99).all() and (picture[:, 8:] < 0.01).all()


def order(seed: int) -> list[int]:
    loader = make_loader(half_white(), 8, augment=True, seed=seed)
    return torch.cat([labels for _, labels in loader]).tolist()


def test_training_order_follows_the_seed():
    assert order(0) == order(0) != order(1)
    assert sorted(order(0)) == list(range(24)) != order(0)


def test_training_drops_a_smaller_last_batch_but_never_the_only_one():
    assert [len(y) for _, y in make_loader(half_white(22), 8, augment=True)] == [8, 8]
    assert [len(y) for _, y in make_loader(half_white(5), 8, augment=True)] == [5]


@pytest.mark.parametrize(("name", "mirrored"), [("imagenette", True), ("digits", False)])
def test_crops_are_drawn_by_torchs_seed_and_digits_are_never_mirrored(name, mirrored):
    def crops():
        torch.manual_seed(0)
        return next(iter(make_loader(half_white(name=name), 24, 16, augment=True)))[0]

    batch = crops()
    assert batch.shape == (24, 3, 16, 16)
    assert torch.equal(batch, crops())
    assert len({image.mean().item() for image in batch}) > 10  # cut at many places
    left, right = batch[..., :8].mean((1, 2, 3)), batch[..., 8:].mean((1, 2, 3))
    assert (left < right).any() == mirrored
    assert (left > right).any()
