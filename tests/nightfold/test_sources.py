"""What each kind of source gives, and what it says about input it cannot use."""

from __future__ import annotations

import gzip
import io
import json
import os
import struct
import threading
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from nightfold import sources
from nightfold.dataset import Dataset, Split
from nightfold.errors import DataRefused, NightfoldError, UsageError
from nightfold.sources import idx, npz, write_native


def refusal(uri: str, kind: type[NightfoldError] = DataRefused, **options: object) -> str:
    """The one sentence with which `uri` is refused."""
    with pytest.raises(NightfoldError) as caught:
        sources.read(uri, **options)
    message = str(caught.value)
    assert type(caught.value) is kind, message
    assert "\n" not in message
    assert message.endswith((".", ")."))
    return message


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels).save(file, "png")
    return file.getvalue()


@pytest.fixture
def other(tmp_path: Path, small_mnist: Dataset) -> Dataset:
    """The same images the other way round."""
    train = small_mnist.train
    return Dataset.write(
        tmp_path / "other",
        name="other",
        origin="test",
        class_names=small_mnist.class_names,
        train=Split(train.images[::-1], np.asarray(train.labels)[::-1]),
        test=small_mnist.test,
    )


def same(source: sources.Source, dataset: Dataset) -> None:
    for name in ("train", "test"):
        one, other = getattr(source, name), getattr(dataset, name)
        assert one.images.dtype == np.uint8
        assert one.labels.dtype == np.int64
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)
    assert source.class_names == dataset.class_names


# ---------------------------------------------------------------- names and paths


def test_two_arrays_of_one_name_are_refused(tmp_path: Path, mnist_train: Split) -> None:
    path = tmp_path / "two.npz"
    np.savez(path, x_train=mnist_train.images[:5], y_train=mnist_train.labels[:5])
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("x_train", archive.read("x_train.npy"))
    assert "two arrays of one name" in refusal(f"npz:{path}")


def test_an_array_larger_than_the_memory_is_refused_before_it_is_unpacked(
    tmp_path: Path, mnist_train: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.npz"
    np.savez_compressed(path, x_train=mnist_train.images[:500], y_train=mnist_train.labels[:500])
    monkeypatch.setattr(npz, "fits_in_memory", lambda n_bytes: n_bytes < 100_000)
    assert "x_train of" in (message := refusal(f"npz:{path}"))
    assert "unfolds to 392,128 bytes" in message


def test_a_hidden_folder_is_no_class(tmp_path: Path) -> None:
    for name in ("cat", "dog", ".ipynb_checkpoints"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(png(np.zeros((8, 8, 1), np.uint8)))
    assert ".ipynb_checkpoints is hidden" in refusal(f"folder:{tmp_path}", size=(8, 8))


def test_a_file_of_gigabytes_is_no_image(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(png(np.zeros((8, 8, 1), np.uint8)))
    os.truncate(tmp_path / "dog" / "1.png", 2**30 + 1)
    message = refusal(f"folder:{tmp_path}", size=(8, 8))
    assert "dog/1.png" in message
    assert "larger than 1,024 MiB" in message


def test_two_that_name_a_data_set_at_once_do_not_mix(
    tmp_path: Path, small_mnist: Dataset, other: Dataset
) -> None:
    barrier, said = threading.Barrier(2), []

    def name(dataset: Dataset) -> None:
        barrier.wait()
        try:
            said.append(write_native(tmp_path / "mine", dataset))
        except UsageError as error:
            said.append(str(error))

    threads = [threading.Thread(target=name, args=(d,)) for d in (small_mnist, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert True in said
    assert any("already holds another data set" in str(told) for told in said)


def test_an_unknown_source_is_told_the_valid_ones() -> None:
    message = refusal("fashion", UsageError)
    for word in ("mnist", "digits", "idx:PATH", "folder:PATH", "parquet:PATH", "npz:PATH"):
        assert word in message


def test_a_bare_path_is_told_to_name_its_kind(tmp_path: Path) -> None:
    assert f"folder:{tmp_path}" in refusal(str(tmp_path), UsageError)


@pytest.mark.parametrize("kind", sources.KINDS)
def test_a_path_that_does_not_exist_is_a_usage_error(kind: str, tmp_path: Path) -> None:
    assert "does not exist" in refusal(f"{kind}:{tmp_path / 'gone'}", UsageError)
    assert "lacks a path" in refusal(f"{kind}:", UsageError)


@pytest.mark.parametrize("kind", ["folder", "idx"])
def test_a_file_where_a_folder_belongs_is_a_usage_error(kind: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "is not a folder" in refusal(f"{kind}:{tmp_path / 'file'}", UsageError)


def test_a_name_means_the_data_folder_here_before_the_shipped_one(
    small_mnist: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sources.write_native(Path("data/mnist"), small_mnist)
    assert len(sources.read("mnist").train) == 600


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "idx", "digits", "a:b"])
def test_a_name_that_could_not_be_found_again_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be named"):
        sources.named(name)


@pytest.mark.parametrize("option", [{"size": (8, 8)}, {"channels": 3}])
def test_shape_options_without_effect_are_refused(
    option: dict[str, object], small_idx: Path
) -> None:
    for uri in ("digits", f"idx:{small_idx}"):
        assert "has no effect" in refusal(uri, UsageError, **option)


@pytest.mark.parametrize("size", [(0, 5), (5, -1), (5, 100_000)])
def test_a_size_out_of_bounds_is_refused(size: tuple[int, int], small_mnist: Dataset) -> None:
    assert "cannot be used" in refusal("mnist", UsageError, size=size)


# ---------------------------------------------------------------- held-out rows


def test_a_tenth_is_held_out_with_every_class_at_its_share() -> None:
    source = sources.read("digits")
    assert (len(source.train), len(source.test)) == (1797 - 179, 179)
    assert "held out: 0.1, seed 1" in source.origin
    shares = np.bincount(source.test.labels) / 179 - np.bincount(source.train.labels) / 1618
    assert np.abs(shares).max() < 0.005


def test_the_seed_decides_which_rows_are_held_out() -> None:
    one, again, other = (sources.read("digits", holdout_seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one.test.images, again.test.images)
    assert not np.array_equal(one.test.images, other.test.images)


def test_held_out_and_kept_rows_are_all_rows_once_in_the_order_of_the_source() -> None:
    from sklearn.datasets import load_digits

    source = sources.read("digits", holdout=0.25)
    assert len(source.test) == int(1797 * 0.25)
    rows = [image.tobytes() for image in sources.digits.read().train.images]
    assert sorted(
        image.tobytes() for split in (source.train, source.test) for image in split.images
    ) == sorted(rows)
    positions = [rows.index(image.tobytes()) for image in source.train.images]
    assert positions == sorted(positions)
    assert len(load_digits().images) == len(rows)


def test_a_holdout_has_no_effect_where_there_is_a_test_split(small_idx: Path) -> None:
    assert "has a test split of its own" in refusal(f"idx:{small_idx}", UsageError, holdout=0.2)


def test_too_few_rows_to_hold_one_out_are_refused(tmp_path: Path, mnist_train: Split) -> None:
    np.savez(tmp_path / "few.npz", x_train=mnist_train.images[:5], y_train=mnist_train.labels[:5])
    assert "not one row" in refusal(f"npz:{tmp_path / 'few.npz'}")


def test_a_class_of_one_row_does_not_stop_the_holdout(tmp_path: Path, mnist_train: Split) -> None:
    labels = np.zeros(50, np.int64)
    labels[7] = 1
    np.savez(tmp_path / "x.npz", x_train=mnist_train.images[:50], y_train=labels)
    source = sources.read(f"npz:{tmp_path / 'x.npz'}")
    assert (len(source.train), len(source.test)) == (45, 5)


# ---------------------------------------------------------------- digits


def test_digits_reach_both_ends_of_eight_bits_and_can_be_taken_back() -> None:
    from sklearn.datasets import load_digits

    images = sources.digits.read().train.images
    assert (images.dtype, images.shape) == (np.uint8, (1797, 8, 8, 1))
    assert (images.min(), images.max()) == (0, 255)
    np.testing.assert_array_equal(np.rint(images[..., 0] * (16 / 255)), load_digits().images)


# ---------------------------------------------------------------- labels without names


@pytest.mark.parametrize(
    ("labels", "names", "become"),
    [
        ([0, 1, 2, 1], "012", [0, 1, 2, 1]),
        ([1, 2, 3, 1], "123", [0, 1, 2, 0]),
        ([0, 1, 2, 99], "012", [0, 1, 2, 99]),
        ([1, 2, 3, 99], "0123", [1, 2, 3, 99]),
        ([1, 2, -1, 2], "12", [0, 1, -1, 1]),
        ([0, 1, -1, 1], "01", [0, 1, -1, 1]),
        ([0, 1, np.nan, 1], "01", [0, 1, np.nan, 1]),
        ([0, 1, 0.5, 1], "01", [0, 1, 0.5, 1]),
        ([0, 1, np.inf, 1], "01", [0, 1, np.inf, 1]),
        ([False, True, True, False], "01", [0, 1, 1, 0]),
        ([0.0, 1.0, 2.0, 1.0], "012", [0, 1, 2, 1]),
    ],
)
def test_labels_that_could_be_wrong_stay_as_they_came(
    labels: list[float], names: str, become: list[float], tmp_path: Path, mnist: Dataset
) -> None:
    path = tmp_path / "x.npz"
    images = mnist.train.images[:4]
    np.savez(path, x_train=images, y_train=labels, x_test=images[:2], y_test=labels[:2])
    source = sources.read(f"npz:{path}")
    assert source.class_names == tuple(names)
    np.testing.assert_array_equal(source.train.labels, become)
    sound = all(float(label).is_integer() for label in labels)
    assert source.train.labels.dtype == (np.int64 if sound else np.float64)
    assert source.test.labels.dtype == np.int64


def test_a_single_class_is_refused(tmp_path: Path, mnist_train: Split) -> None:
    np.savez(tmp_path / "x.npz", x_train=mnist_train.images[:50], y_train=np.zeros(50, int))
    assert "only the class 0" in refusal(f"npz:{tmp_path / 'x.npz'}")


# ---------------------------------------------------------------- idx


def test_idx_gives_the_rows(small_idx: Path, small_mnist: Dataset) -> None:
    same(sources.read(f"idx:{small_idx}"), small_mnist)


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name.replace("-idx", ".idx"),
        lambda name: f"emnist-digits-{name.replace('t10k', 'test')}",
        lambda name: name.upper(),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_idx_files_are_found_under_their_usual_names(
    rename: object, packed: bool, small_idx: Path, small_mnist: Dataset
) -> None:
    for path in list(small_idx.iterdir()):
        content = path.read_bytes()
        path.unlink()
        target = small_idx / (rename(path.name) + (".gz" if packed else ""))  # type: ignore[operator]
        target.write_bytes(gzip.compress(content, 1) if packed else content)
    same(sources.read(f"idx:{small_idx}"), small_mnist)


def test_idx_without_test_files_has_a_part_held_out(small_idx: Path) -> None:
    for path in small_idx.glob("t10k*"):
        path.unlink()
    source = sources.read(f"idx:{small_idx}", holdout=0.5)
    assert (len(source.train), len(source.test)) == (300, 300)


def test_idx_of_four_dimensions_has_channels(small_idx: Path, small_mnist: Dataset) -> None:
    for prefix, split in (("train", small_mnist.train), ("t10k", small_mnist.test)):
        colour = np.repeat(split.images, 3, axis=3)
        header = struct.pack(">4B4I", 0, 0, 8, 4, *colour.shape)
        (small_idx / f"{prefix}-images-idx3-ubyte").write_bytes(header + colour.tobytes())
    source = sources.read(f"idx:{small_idx}")
    assert source.train.images.shape == (600, 28, 28, 3)
    np.testing.assert_array_equal(source.test.images[..., :1], small_mnist.test.images)


@pytest.mark.parametrize(
    ("code", "dtype"),
    [(0x08, "u1"), (0x09, "i1"), (0x0B, ">i2"), (0x0C, ">i4"), (0x0D, ">f4"), (0x0E, ">f8")],
)
def test_every_idx_type_is_read(code: int, dtype: str, tmp_path: Path) -> None:
    values = np.array([[1, 2, 3], [4, 5, 6]], dtype)
    (tmp_path / "x").write_bytes(struct.pack(">4B2I", 0, 0, code, 2, 2, 3) + values.tobytes())
    np.testing.assert_array_equal(idx.read_array(tmp_path / "x"), values)


def test_idx_pixels_that_are_not_bytes_are_kept_for_validation_to_name(small_idx: Path) -> None:
    header = struct.pack(">4B3I", 0, 0, 0x0D, 3, 600, 2, 2)
    (small_idx / "train-images-idx3-ubyte").write_bytes(header + bytes(600 * 4 * 4))
    for path in small_idx.glob("t10k*"):
        path.unlink()
    dtype = sources.read(f"idx:{small_idx}").train.images.dtype
    assert dtype == np.float32
    assert dtype.isnative


WHOLE = 16 + 600 * 784


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda b: b"", r"not IDX \(byte 0\)"),
        (lambda b: b"\0\0", r"not IDX \(byte 0\)"),
        (lambda b: b"\x89PNG" + b[4:], r"0x89504e47, which is not IDX \(byte 0\)"),
        (lambda b: b[:2] + b"\x0a" + b[3:], r"not IDX \(byte 0\)"),
        (lambda b: b[:9], r"ends within its header \(byte 9\)"),
        (lambda b: b[:-100], r"more than it can hold \(byte 4\)"),
        (lambda b: b + b"!!", rf"goes on after its .* \(byte {WHOLE:,}\)"),
        (lambda b: b[:4] + b"\xff" * 12 + b[16:], r"more than it can hold \(byte 4\)"),
        (lambda b: gzip.compress(b[:-100]), rf"ends 100 bytes early \(byte {WHOLE - 100:,}\)"),
        (lambda b: gzip.compress(b)[:5000], r"damaged gzip content .*\(byte [\d,]+\)"),
        (lambda b: gzip.compress(b)[:-6], rf"damaged gzip content .*\(byte {WHOLE:,}\)"),
        (lambda b: gzip.compress(b)[:-8] + bytes(8), r"CRC check failed.*\(byte [\d,]+\)"),
        (lambda b: gzip.compress(b) + b"junk", r"gzip"),
        (lambda b: b"\x1f\x8b" + b[2:], r"gzip"),
        (lambda b: gzip.compress(b[:4] + b"\xff" * 12 + b[16:]), r"can hold \(byte 4\)"),
    ],
    ids=[
        "empty",
        "two bytes",
        "png",
        "unknown type",
        "half header",
        "short",
        "trailing",
        "huge sizes",
        "gzip of a short file",
        "half gzip",
        "gzip without its end",
        "gzip with a wrong sum",
        "gzip with junk behind",
        "gzip in its first bytes only",
        "gzip with huge sizes",
    ],
)
def test_damaged_idx_is_refused_with_file_and_byte(
    damage: object, words: str, small_idx: Path
) -> None:
    path = small_idx / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    message = refusal(f"idx:{small_idx}")
    assert str(path) in message
    with pytest.raises(DataRefused, match=words):
        sources.read(f"idx:{small_idx}")


def test_images_and_labels_of_different_number_are_refused(small_idx: Path) -> None:
    labels = (small_idx / "t10k-labels-idx1-ubyte").read_bytes()
    (small_idx / "train-labels-idx1-ubyte").write_bytes(labels)
    message = refusal(f"idx:{small_idx}")
    assert "600 images" in message
    assert "200 labels" in message


def test_images_in_place_of_labels_are_refused(small_idx: Path) -> None:
    images = (small_idx / "train-images-idx3-ubyte").read_bytes()
    (small_idx / "train-labels-idx1-ubyte").write_bytes(images)
    assert "labels of shape (600, 28, 28)" in refusal(f"idx:{small_idx}")


def test_idx_files_that_are_missing_or_double_are_named(small_idx: Path) -> None:
    path = small_idx / "train-labels-idx1-ubyte"
    (small_idx / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
    assert f"{path.name}, {path.name}.gz" in refusal(f"idx:{small_idx}")
    path.unlink()
    (small_idx / f"{path.name}.gz").unlink()
    assert "no file of train labels" in refusal(f"idx:{small_idx}")


def test_train_and_test_of_different_shape_are_refused(small_idx: Path) -> None:
    header = struct.pack(">4B3I", 0, 0, 8, 3, 200, 2, 2)
    (small_idx / "t10k-images-idx3-ubyte").write_bytes(header + bytes(800))
    assert "28x28x1 in train but 2x2x1 in test" in refusal(f"idx:{small_idx}")


def test_idx_of_no_rows_is_refused(small_idx: Path) -> None:
    (small_idx / "train-images-idx3-ubyte").write_bytes(struct.pack(">4B3I", 0, 0, 8, 3, 0, 28, 28))
    (small_idx / "train-labels-idx1-ubyte").write_bytes(struct.pack(">4BI", 0, 0, 8, 1, 0))
    assert "no train pixels" in refusal(f"idx:{small_idx}")


# ---------------------------------------------------------------- npz


def save_npz(path: Path, dataset: Dataset, **other: object) -> Path:
    arrays = {
        "x_train": dataset.train.images[..., 0],
        "y_train": dataset.train.labels.astype(np.uint8)[:, np.newaxis],
        "x_test": dataset.test.images,
        "y_test": dataset.test.labels,
        **other,
    }
    np.savez_compressed(path, **{k: v for k, v in arrays.items() if v is not None})
    return path


def test_npz_gives_the_rows(tmp_path: Path, small_mnist: Dataset) -> None:
    same(sources.read(f"npz:{save_npz(tmp_path / 'x.npz', small_mnist)}"), small_mnist)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"y_train": None}, "no array 'y_train'"),
        ({"y_test": None}, "no array 'y_test'"),
        ({"x_train": np.array([{"a": 1}] * 600)}, "NumPy archive of plain arrays"),
        ({"x_train": np.zeros((600, 784))}, r"shape \(600, 784\)"),
        ({"x_train": np.zeros((600, 9, 9, 4))}, "1 or 3 channels"),
        ({"x_train": np.zeros((600, 9, 9), "U1")}, "dtype <U1"),
        ({"y_train": np.zeros((600, 10))}, "one integer per image"),
        ({"y_train": np.zeros(599)}, "600 images in x_train but 599 labels"),
    ],
)
def test_npz_of_another_form_is_refused(
    other: dict[str, object], words: str, tmp_path: Path, small_mnist: Dataset
) -> None:
    path = save_npz(tmp_path / "x.npz", small_mnist, **other)
    assert str(path) in refusal(f"npz:{path}")
    with pytest.raises(DataRefused, match=words):
        sources.read(f"npz:{path}")


def test_what_is_not_an_npz_is_refused(tmp_path: Path, small_mnist: Dataset) -> None:
    path = save_npz(tmp_path / "x.npz", small_mnist)
    whole = path.read_bytes()
    for content in (b"", b"text", whole[: len(whole) // 2], b"\x80\x04N."):
        path.write_bytes(content)
        assert str(path) in refusal(f"npz:{path}")
    np.save(tmp_path / "x.npy", np.zeros(3))
    assert "plain arrays" in refusal(f"npz:{tmp_path / 'x.npy'}")


# ---------------------------------------------------------------- folder


@pytest.fixture
def folder(small_mnist: Dataset, tmp_path: Path) -> Path:
    """PATH/<class>/*.png of the first 60 rows."""
    root = tmp_path / "photos"
    for row in range(60):
        place = root / f"digit {small_mnist.train.labels[row]}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{row:03}.png").write_bytes(png(small_mnist.train.images[row]))
    return root


def test_a_folder_gives_classes_and_rows_in_the_order_of_names(
    folder: Path, small_mnist: Dataset
) -> None:
    contents = sources.folder.read(folder, None, None)
    order = np.argsort(small_mnist.train.labels[:60], kind="stable")
    np.testing.assert_array_equal(contents.train.images, small_mnist.train.images[order])
    np.testing.assert_array_equal(contents.train.labels, small_mnist.train.labels[order])
    source = sources.read(f"folder:{folder}")
    assert source.class_names == tuple(f"digit {i}" for i in range(10))
    assert source.name == "photos"
    assert (len(source.train), len(source.test)) == (54, 6)


def test_a_folder_of_splits_gives_both(folder: Path, tmp_path: Path) -> None:
    root = tmp_path / "split"
    root.mkdir()
    (folder / ".DS_Store").write_bytes(b"litter")
    folder.rename(root / "train")
    (root / "test" / "digit 3").mkdir(parents=True)
    (root / "test" / "digit 3" / "x.bmp").write_bytes(png(np.zeros((28, 28, 1), np.uint8)))
    source = sources.read(f"folder:{root}")
    assert (len(source.train), len(source.test)) == (60, 1)
    assert source.test.labels.tolist() == [3]


def test_a_folder_is_brought_to_size_and_channels(folder: Path) -> None:
    source = sources.read(f"folder:{folder}", size=(10, 12), channels=3)
    assert source.train.images.shape == (54, 10, 12, 3)


def test_one_colour_image_makes_all_of_them_rgb(folder: Path) -> None:
    (folder / "digit 9" / "z.png").write_bytes(png(np.full((28, 28, 3), (9, 8, 7), np.uint8)))
    assert sources.read(f"folder:{folder}").train.images.shape[3] == 3


def test_images_of_different_size_need_a_size(folder: Path) -> None:
    odd = folder / "digit 9" / "z.png"
    odd.write_bytes(png(np.zeros((5, 6, 1), np.uint8)))
    message = refusal(f"folder:{folder}")
    assert f"{odd} is 5x6" in message
    assert "--size HxW" in message


@pytest.mark.parametrize(
    ("place", "content", "words"),
    [
        ("digit 1/notes.txt", b"x", "not an image by its name"),
        ("digit 1/.hidden.png", b"x", "not an image by its name"),
        ("digit 1/fake.png", b"some text", "not an image file"),
        ("digit 1/empty.png", b"", "0 bytes"),
        ("digit 1/deeper/x.png", b"x", "folder inside a class folder"),
        ("labels.csv", b"x", "beside the class folders"),
        (".git/config.png", b"x", "is hidden"),
    ],
)
def test_what_is_not_an_image_is_named_and_never_passed_over(
    place: str, content: bytes, words: str, folder: Path
) -> None:
    path = folder / place
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    message = refusal(f"folder:{folder}")
    assert words in message
    assert str(folder) in message


def test_empty_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "is empty" in refusal(f"folder:{tmp_path / 'empty'}")
    (folder / "digit 10").mkdir()
    assert "digit 10 holds no images" in refusal(f"folder:{folder}")


def test_a_link_that_leads_nowhere_is_named(folder: Path) -> None:
    (folder / "digit 1" / "link.png").symlink_to(folder / "gone.png")
    assert "link.png" in refusal(f"folder:{folder}")


# ---------------------------------------------------------------- parquet


IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def save_parquet(
    path: Path,
    split: Split,
    *,
    names: list[str] | None = None,
    columns: tuple[str, str] = ("image", "label"),
    labels: pa.Array | None = None,
    contents: list[bytes | None] | None = None,
) -> Path:
    contents = [png(pixels) for pixels in split.images] if contents is None else contents
    table = pa.table(
        {
            columns[0]: pa.array([{"bytes": c, "path": None} for c in contents], IMAGE),
            columns[1]: pa.array(split.labels) if labels is None else labels,
        }
    )
    if names is not None:
        features = {
            columns[0]: {"_type": "Image"},
            columns[1]: {"names": names, "_type": "ClassLabel"},
        }
        text = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": text})
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)
    return path


def part(split: Split, start: int, stop: int) -> Split:
    return Split(split.images[start:stop], split.labels[start:stop])


@pytest.mark.parametrize("place", ["", "data"])
def test_a_data_set_of_the_hub_is_read_as_it_is(
    place: str, tmp_path: Path, small_mnist: Dataset
) -> None:
    root, train = tmp_path / place, small_mnist.train
    names = list("0123456789")
    columns = ("img", "digit")
    for number, rows in enumerate([(0, 250), (250, 600)]):
        save_parquet(
            root / f"train-0000{number}-of-00002.parquet",
            part(train, *rows),
            names=names,
            columns=columns,
        )
    save_parquet(
        root / "test-00000-of-00001.parquet", small_mnist.test, names=names, columns=columns
    )
    same(sources.read(f"parquet:{tmp_path}"), small_mnist)


def test_a_single_file_has_a_part_held_out(tmp_path: Path, small_mnist: Dataset) -> None:
    path = save_parquet(tmp_path / "photos.parquet", small_mnist.train)
    source = sources.read(f"parquet:{path}")
    assert (source.name, len(source.train), len(source.test)) == ("photos", 540, 60)
    assert source.class_names == small_mnist.class_names


def test_missing_and_unknown_labels_of_named_classes_are_kept(
    tmp_path: Path, small_mnist: Dataset
) -> None:
    labels = small_mnist.train.labels.astype(object)
    labels[5], labels[6], labels[7] = None, 10, -1
    save_parquet(
        tmp_path / "train.parquet",
        small_mnist.train,
        names=list("abcdefghij"),
        labels=pa.array(labels, pa.int64()),
    )
    save_parquet(tmp_path / "test.parquet", small_mnist.test, names=list("abcdefghij"))
    source = sources.read(f"parquet:{tmp_path}")
    np.testing.assert_array_equal(source.train.labels[5:8], [np.nan, 10, -1])
    assert source.train.labels.dtype == np.float64
    assert source.test.labels.dtype == np.int64
    assert source.class_names == tuple("abcdefghij")


def test_a_row_that_is_no_image_is_named(tmp_path: Path, small_mnist: Dataset) -> None:
    rows = part(small_mnist.train, 0, 3)
    whole = png(rows.images[0])
    small = png(np.zeros((3, 3, 1), np.uint8))
    for content, words in (
        (b"text", "not an image file"),
        (None, "no image bytes"),
        (small, "3x3"),
    ):
        path = save_parquet(tmp_path / "x.parquet", rows, contents=[whole, whole, content])
        message = refusal(f"parquet:{path}")
        assert f"row 2 of {path}" in message
        assert words in message


def test_parquet_of_another_layout_is_refused(tmp_path: Path, small_mnist: Dataset) -> None:
    rows = part(small_mnist.train, 0, 3)
    path = tmp_path / "x.parquet"
    save_parquet(path, rows, columns=("picture", "label"))
    assert "no column 'image': its columns are picture, label" in refusal(f"parquet:{path}")
    save_parquet(path, rows, labels=pa.array(["a", "b", "c"]))
    assert "type string" in refusal(f"parquet:{path}")
    pq.write_table(pa.table({"image": [b"x"], "label": [1]}), path)
    assert "must be a struct" in refusal(f"parquet:{path}")
    pq.write_table(pa.table({}), path)
    assert "no column 'image'" in refusal(f"parquet:{path}")
    save_parquet(path, part(rows, 0, 0))
    assert "holds no rows" in refusal(f"parquet:{path}")
    table = pa.table({"image": [b"x"]}).replace_schema_metadata({"huggingface": "{"})
    pq.write_table(table, path)
    assert "not the hub's JSON" in refusal(f"parquet:{path}")


def test_damaged_parquet_is_refused(tmp_path: Path, small_mnist: Dataset) -> None:
    path = save_parquet(tmp_path / "x.parquet", small_mnist.train)
    whole = path.read_bytes()
    middle = len(whole) // 2
    wrong = whole[:middle] + bytes(2000) + whole[middle + 2000 :]
    for content in (b"", b"text", whole[:-100], whole[:4] + bytes(5000) + whole[5004:], wrong):
        path.write_bytes(content)
        assert str(path) in refusal(f"parquet:{path}")


def test_shards_that_do_not_fit_together_are_refused(tmp_path: Path, small_mnist: Dataset) -> None:
    rows = part(small_mnist.train, 0, 30)
    save_parquet(tmp_path / "train-00000-of-00002.parquet", rows, names=list("0123456789"))
    assert "not all are there" in refusal(f"parquet:{tmp_path}")
    save_parquet(tmp_path / "train-00001-of-00002.parquet", rows, names=list("9876543210"))
    assert "names other columns or classes" in refusal(f"parquet:{tmp_path}")
    save_parquet(tmp_path / "validation.parquet", rows)
    assert "validation.parquet is neither of train nor of test" in refusal(f"parquet:{tmp_path}")


def test_a_folder_without_training_rows_is_refused(tmp_path: Path, small_mnist: Dataset) -> None:
    assert "no train.parquet" in refusal(f"parquet:{tmp_path}")
    save_parquet(tmp_path / "test.parquet", small_mnist.test)
    assert "no train.parquet" in refusal(f"parquet:{tmp_path}")


# ---------------------------------------------------------------- the native form


def test_the_native_form_gives_back_what_was_written(tmp_path: Path, small_mnist: Dataset) -> None:
    assert sources.write_native(tmp_path, small_mnist)
    same(sources.read(f"parquet:{tmp_path}"), small_mnist)


def test_equal_data_gives_equal_bytes_and_is_written_once(
    tmp_path: Path, small_mnist: Dataset
) -> None:
    for name in ("a", "b"):
        sources.write_native(tmp_path / name, small_mnist)
    for name in ("train.parquet", "test.parquet"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "a").iterdir()}
    assert not sources.write_native(tmp_path / "a", small_mnist)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "a").iterdir()}


def changed(dataset: Dataset, tmp_path: Path, train: Split) -> Dataset:
    return Dataset.write(
        tmp_path / "snapshots",
        name="changed",
        origin="test",
        class_names=dataset.class_names,
        train=train,
        test=dataset.test,
    )


def test_another_data_set_of_that_name_is_never_overwritten(
    tmp_path: Path, small_mnist: Dataset
) -> None:
    sources.write_native(tmp_path / "x", small_mnist)
    before = (tmp_path / "x" / "train.parquet").read_bytes()
    other = changed(small_mnist, tmp_path, part(small_mnist.train, 0, 599))
    with pytest.raises(UsageError, match="already holds another data set"):
        sources.write_native(tmp_path / "x", other)
    assert (tmp_path / "x" / "train.parquet").read_bytes() == before


def test_missing_labels_and_colour_survive_the_native_form(
    tmp_path: Path, small_mnist: Dataset
) -> None:
    labels = small_mnist.train.labels.astype(float)
    labels[3] = np.nan
    dataset = changed(small_mnist, tmp_path, Split(small_mnist.train.images, labels))
    sources.write_native(tmp_path / "x", dataset)
    source = sources.read(f"parquet:{tmp_path / 'x'}")
    np.testing.assert_array_equal(source.train.labels, labels)


@pytest.mark.parametrize("what", ["pixels", "labels"])
def test_what_the_native_form_cannot_hold_is_refused_and_nothing_is_written(
    what: str, tmp_path: Path, small_mnist: Dataset
) -> None:
    images, labels = small_mnist.train.images, small_mnist.train.labels
    if what == "pixels":
        images = images / 255
    else:
        labels = labels + 0.5
    dataset = changed(small_mnist, tmp_path, Split(images, labels))
    with pytest.raises(DataRefused, match="uint8 pixels and integer"):
        sources.write_native(tmp_path / "x", dataset)
    assert not (tmp_path / "x").exists()


def test_an_exact_copy_is_never_held_out_from_its_twin(small_mnist, tmp_path):
    images = np.concatenate([small_mnist.train.images[:60]] * 2)
    labels = np.concatenate([small_mnist.train.labels[:60]] * 2)
    for row, (image, label) in enumerate(zip(images, labels, strict=True)):
        folder = tmp_path / "photos" / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(folder / f"{row}.png")
    for row, image in enumerate(small_mnist.test.images[:40]):
        folder = tmp_path / "photos" / str(small_mnist.test.labels[row])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(folder / f"single-{row}.png")
    source = sources.read(f"folder:{tmp_path / 'photos'}", holdout=0.3)
    assert len(source.test)
    assert not set(source.test.row_digests) & set(source.train.row_digests)
