"""What `mnif-data check` says about data on grids: voxels, pictures and signals."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mnif_nerf.data.readers.arrays import load_arrays
from mnif_nerf.data.readers.grid_reader import cells_text
from mnif_nerf.data.readers.images import IMAGE_SUFFIXES, image_size
from mnif_nerf.data.readers.imnet import HDF5_SUFFIXES
from mnif_nerf.data.readers.mesh_files import MESH_SUFFIXES
from mnif_nerf.data.readers.picture_files import read_picture
from mnif_nerf.data.readers.signals import read_signal
from mnif_nerf.data.readers.splits import GridSource, find_files
from mnif_nerf.data.readers.voxel_files import VOXEL_SUFFIXES
from mnif_nerf.data.readers.voxel_values import all_corners_inside, corners_note
from mnif_nerf.data.readers.voxels import MESH_RESOLUTION, ShapeReader, unequal_shape
from mnif_nerf.data.stores.grid_layout import GridLayout, locate_grids
from mnif_nerf.data.stores.grid_pack import surface_cells
from mnif_nerf.data.stores.packing import ordered_results
from mnif_nerf.errors import MNIFError
from mnif_nerf.progress import progress_bar
from mnif_nerf.rendering.alpha import CHANNELS as WITH_ALPHA

_ARRAYS = (".npy", ".npz")
_CHANNELS = {1: "grey", 3: "in colour", WITH_ALPHA: "in colour with alpha"}


def grid_modality(root: Path) -> str | None:
    """The name of the reader for the files below `root`; None where there are none.

    Meshes are voxels to be (pictures beside them are their textures); else the most frequent kind counts. Arrays are
    voxels where the first one has three axes and says only whether a cell is inside, and signals otherwise.
    """
    if root.suffix.lower() in HDF5_SUFFIXES and root.is_file():
        return "voxel"
    if not root.is_dir():
        return None
    if find_files(root, MESH_SUFFIXES):
        return "voxel"
    shown = find_files(root, IMAGE_SUFFIXES)
    posed = any(path.parent.name == "rgb" and path.parent.with_name("pose").is_dir() for path in shown[:100])
    if posed or next(root.glob("transforms*.json"), None) or (shown and (root / "sparse").is_dir()):
        return None  # pictures with cameras, whose layout is wrong: their reader has the sentence
    pictures = len(shown)
    arrays, sounds = find_files(root, _ARRAYS), len(find_files(root, (".wav",)))
    solids = len(find_files(root, (*(s for s in VOXEL_SUFFIXES if s not in _ARRAYS), *HDF5_SUFFIXES)))
    if arrays and _is_solid(arrays[0]):
        solids += len(arrays)
    else:
        sounds += len(arrays)
    most = max(solids, sounds, pictures)
    if not most:
        return None
    return "voxel" if solids == most else "signal" if sounds == most else "image"


def _is_solid(path: Path) -> bool:
    """Whether an array is a grid of cells that are inside or not; what cannot be read counts as one."""
    try:
        found = load_arrays(path)
        if not isinstance(found, np.ndarray):
            with found:
                if len(found.files) != 1:  # the layouts of mnif-data and mnif-export-mesh
                    return True
                found = found[found.files[0]]
    except (OSError, ValueError, KeyError, EOFError):
        return True
    if found.ndim < 3 or np.squeeze(found).ndim != 3:
        return False
    return found.dtype == bool or bool(np.isin(found, (0, 1)).all())


def check_grids(root: Path | str, modality: str, progress: bool = True) -> tuple[list[str], list[str]]:
    """Read all instances of a data set.

    Returns: lines that describe it, and the problems found, each by its path.

    Raises:
        MNIFError: nothing there, or nothing readable.
    """
    layout = locate_grids(root, modality)
    lines = [f"{layout.root}: {layout.reader.nouns}, {len(layout.splits)} split(s)"]
    lines += [f"  {note}" for note in layout.notes]
    problems: list[str] = []
    readable: list[tuple[GridSource, _Found]] = []
    for split, sources in layout.splits.items():
        found = _measure_all(layout, split, progress)
        sound = [(source, result) for source, result in zip(sources, found) if isinstance(result, _Found)]
        problems += [result for result in found if isinstance(result, str)]
        readable += sound
        lines.append(f"{split}: {_describe(layout, [result for _, result in sound])}")
    if not readable:
        raise MNIFError(problems[0])
    taken, disagreements = _settled(layout, readable)
    return lines + taken, problems + disagreements


@dataclass(frozen=True)
class _Found:
    """One readable instance: its shape; of a solid, the shares of its cells that are filled and near the surface, and
    whether it touches the border of its grid, and all its corners; of a signal, the range of its values."""

    shape: tuple[int, ...]
    filled: float = 0.0
    near: float = 0.0
    touches: bool = False
    corners: bool = False
    low: float = 0.0
    high: float = 0.0


def _measure_all(layout: GridLayout, split: str, progress: bool) -> list[_Found | str]:
    """What is found in every instance of a split, or what is wrong with it."""
    sources, results = layout.sources(split), []
    size = _size_of_meshes(layout)
    with ShapeReader() as reader, progress_bar(f"reading {split}", len(sources), layout.reader.nouns, progress) as bar:
        for result in ordered_results((_measure, layout, reader, source, size) for source in sources):
            results.append(result)
            bar(1)
    return results


def _size_of_meshes(layout: GridLayout) -> int:
    """Cells along an edge of a voxelised mesh: as many as the grids beside it have."""
    if layout.reader.values != "bits":  # no meshes, and finding a size there may read every file
        return MESH_RESOLUTION
    try:
        return layout.reader.settle(layout.every(), None, None).resolution
    except MNIFError:  # which will be told of the file it comes from
        return MESH_RESOLUTION


def _measure(layout: GridLayout, reader: ShapeReader, source: GridSource, size: int) -> _Found | str:
    kind = layout.reader.values
    try:
        if kind == "bits":
            cells = reader.read(source, size)
            border = cells.sum() > cells[1:-1, 1:-1, 1:-1].sum()
            return _Found(
                cells.shape,
                cells.mean(),
                len(surface_cells(cells)) / cells.size,
                bool(border),
                all_corners_inside(cells),
            )
        if kind == "floats":
            signal = read_signal(source.path)
            return _Found(signal.shape, low=float(signal.values.min()), high=float(signal.values.max()))
        shape = image_size(source.path)
        read_picture(source.path, min(shape), 3)
        return _Found(shape)
    except MNIFError as error:
        return str(error)


def _describe(layout: GridLayout, found: list[_Found]) -> str:
    if not found:
        return "nothing readable"
    kind, nouns = layout.reader.values, layout.reader.nouns
    if kind == "floats":
        low, high = min(one.low for one in found), max(one.high for one in found)
        return f"{len(found)} {nouns} of {cells_text(found[0].shape)} values, from {low:g} to {high:g}"
    sizes = _range([min(one.shape) if kind == "bytes" else max(one.shape) for one in found])
    if kind == "bytes":
        return f"{len(found)} {nouns}, shorter edge {sizes} pixels"
    filled = [100 * one.filled for one in found]
    near = 100 * sum(one.near for one in found) / len(found)
    touching = sum(one.touches for one in found)
    border = f"; {touching} touch the border of their grid and may be cut off there" if touching else ""
    return (
        f"{len(found)} {nouns}, {sizes} cells along an edge; filled {sum(filled) / len(filled):.1f} % of the cells"
        f" ({min(filled):.1f} to {max(filled):.1f}), near the surface {near:.1f} %{border}"
    )


def _range(numbers: list[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}" if low == high else f"{low} to {high}"


def _settled(layout: GridLayout, readable: list[tuple[GridSource, _Found]]) -> tuple[list[str], list[str]]:
    """What training takes of pictures, and what keeps readable files from being trained on together."""
    if layout.reader.values == "bits":
        first = readable[0][1].shape
        unequal = [unequal_shape(source, one.shape, first) for source, one in readable if one.shape != first]
        full = [source.name for source, one in readable if one.corners]
        return [], unequal + ([f"{layout.root}: {corners_note(full, len(readable))}"] if full else [])
    sources = [source for source, _ in readable]
    try:
        facts = layout.reader.settle(sources, None, None)
        notes = layout.reader.notes(sources, None, facts)
    except MNIFError as error:
        return [], [str(error)]
    if layout.reader.values == "floats":
        if facts.dims == 3 and facts.low < 0 < facts.high and facts.channels == 1:
            notes = [
                *notes,
                "where these are signed distances of shapes, mnif-voxel learns which cells are inside: grid < 0",
            ]
        return notes, []
    rows, columns = facts.shape
    return [f"training takes {columns} x {rows} pixels, {_CHANNELS[facts.channels]}", *notes], []
