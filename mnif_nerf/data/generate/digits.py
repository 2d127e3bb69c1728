"""scikit-learn's handwritten digits as a folder of pictures: real data that an installed package carries."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from mnif_nerf.data.generate.writer import claim_output, write_manifest, write_splits
from mnif_nerf.data.readers.labels import FILE, write_labels
from mnif_nerf.errors import MNIFError
from mnif_nerf.labels import Labels

SPLIT_SIZES = {"train": 1500, "val": 97, "test": 200}


def make_digits(output: Path | str, seed: int = 0) -> Path:
    """Write the 1,797 digits of scikit-learn's `load_digits` as grey 8x8 PNGs into train/, val/ and test/.

    Files are named by their row in scikit-learn's table and the digit they show: `0000-0.png`. The table's 16
    steps of ink become 0 to 255: white ink on black. A finished run is recognised and an interrupted one goes on.

    Args:
        output: the folder to fill.
        seed: which digits go into which split.

    Returns:
        the folder.

    Raises:
        MNIFError: scikit-learn is not installed, the folder holds something else or digits of another seed, or
            the disk is full.
    """
    output = Path(output)
    images, labels = _load()
    settings = {"seed": seed, "splits": SPLIT_SIZES}
    if claim_output(output, "digits", settings):
        return output
    levels = np.rint(images * (255.0 / 16.0)).astype(np.uint8)

    def write(row: int, folder: Path) -> None:
        Image.fromarray(levels[row]).save(folder / f"{row:04d}-{labels[row]}.png")

    order = np.random.default_rng(seed).permutation(len(levels))
    write_splits(output, SPLIT_SIZES, order, write)
    written = sorted(order[: sum(SPLIT_SIZES.values())])
    names = [f"{row:04d}-{labels[row]}" for row in written]
    write_labels(output / FILE, names, Labels({"digit": tuple(str(labels[row]) for row in written)}))
    source = "scikit-learn's load_digits (UCI, optical recognition of handwritten digits)"
    write_manifest(output, "digits", settings, complete=True, modality="image", resolution=8, channels=1, source=source)
    return output


def _load() -> tuple[np.ndarray, np.ndarray]:
    """Ink [1797, 8, 8] from 0 to 16, and labels [1797]."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise MNIFError("the digits come with scikit-learn, which is missing; pip install scikit-learn.") from None
    table = load_digits()
    return table.images, table.target
