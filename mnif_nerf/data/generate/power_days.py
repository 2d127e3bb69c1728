"""Days of electricity demand as a folder of signals: real data that a package of the registry carries.

sktime ships the data set ItalyPowerDemand (Keogh and others 2006): a year of demand in Italy, one day a series of 24
hours, each day brought to mean 0 and deviation 1.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from mnif_nerf.data.generate.writer import claim_output, write_manifest, write_splits
from mnif_nerf.errors import MNIFError

HOURS = 24
SPLIT_SIZES = {"train": 896, "val": 100, "test": 100}
_TABLES = ("ItalyPowerDemand_TRAIN.ts", "ItalyPowerDemand_TEST.ts")


def make_power_days(output: Path | str, seed: int = 0) -> Path:
    """Write the 1,096 days as float32 [24] .npy files into train/, val/ and test/.

    Files are named by their row and the half of the year: `0000-winter.npy` (October to March) or `summer`. A
    finished run is recognised and an interrupted one goes on.

    Args:
        output: the folder to fill.
        seed: which days go into which split.

    Returns:
        the folder.

    Raises:
        MNIFError: sktime is not installed, the folder holds something else or days of another seed, or the disk is
            full.
    """
    output = Path(output)
    days, seasons = _load()
    settings = {"seed": seed, "splits": SPLIT_SIZES}
    if claim_output(output, "power days", settings):
        return output

    def write(row: int, folder: Path) -> None:
        np.save(folder / f"{row:04d}-{seasons[row]}.npy", days[row])

    write_splits(output, SPLIT_SIZES, np.random.default_rng(seed).permutation(len(days)), write)
    source = "sktime's ItalyPowerDemand"
    write_manifest(output, "power days", settings, complete=True, modality="signal", shape=[HOURS], source=source)
    return output


def _load() -> tuple[np.ndarray, list[str]]:
    """Days float32 [1096, 24], and their half of the year."""
    found = find_spec("sktime")  # its files are read as they are: importing it takes seconds
    places = [] if found is None else list(found.submodule_search_locations or ())
    folder = next((Path(place, "datasets", "data", "ItalyPowerDemand") for place in places), None)
    if folder is None or not all((folder / name).is_file() for name in _TABLES):
        raise MNIFError('the days come with sktime, which is missing; pip install "mnif_nerf[signals]".')
    lines = [line for name in _TABLES for line in (folder / name).read_text(encoding="utf-8").splitlines()]
    rows = [line.rsplit(":", 1) for line in lines if line and line[0] not in "#@"]
    days = np.array([[float(number) for number in row[0].split(",")] for row in rows], dtype=np.float32)
    return days, ["winter" if row[1].strip() == "1" else "summer" for row in rows]
