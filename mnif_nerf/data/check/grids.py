"""What `mnif-data check` says about voxels and pictures."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mnif_nerf.data.readers.images import IMAGE_SUFFIXES, image_size
from mnif_nerf.data.readers.mesh_files import MESH_SUFFIXES
from mnif_nerf.data.readers.voxel_files import VOXEL_SUFFIXES
from mnif_nerf.data.stores.grid_layout import HDF5_SUFFIXES, GridLayout, GridSource, find_files, locate_grids
from mnif_nerf.data.stores.grid_pack import MESH_RESOLUTION, ShapeReader, resolve_size, surface_cells, unequal_size
from mnif_nerf.data.stores.packing import ordered_results
from mnif_nerf.errors import MNIFError
from mnif_nerf.progress import progress_bar


def grid_modality(root: Path) -> str | None:
    """ "voxel" or "image", by the files below `root`; None where there are none.

    Meshes are voxels to be (pictures beside them are their textures); else the more frequent kind counts.
    """
    if root.suffix.lower() in HDF5_SUFFIXES and root.is_file():
        return "voxel"
    if not root.is_dir():
        return None
    grids = len(find_files(root, VOXEL_SUFFIXES + HDF5_SUFFIXES))
    meshes, pictures = (len(find_files(root, suffixes)) for suffixes in (MESH_SUFFIXES, IMAGE_SUFFIXES))
    if meshes or (grids and grids >= pictures):
        return "voxel"
    return "image" if pictures else None


def check_grids(root: Path | str, modality: str, progress: bool = True) -> tuple[list[str], list[str]]:
    """Read all voxels or pictures of a data set.

    Returns: lines that describe it, and the problems found, each by its path.

    Raises:
        MNIFError: nothing there, or nothing readable.
    """
    layout = locate_grids(root, modality)
    kind = "shapes" if modality == "voxel" else "pictures"
    lines = [f"{layout.root}: {kind}, {len(layout.splits)} split(s)"]
    problems: list[str] = []
    readable: list[tuple[GridSource, _Found]] = []
    for split, sources in layout.splits.items():
        found = _measure_all(layout, split, progress)
        sound = [(source, result) for source, result in zip(sources, found) if isinstance(result, _Found)]
        problems += [result for result in found if isinstance(result, str)]
        readable += sound
        lines.append(f"{split}: {_describe([result for _, result in sound], modality)}")
    if not readable:
        raise MNIFError(problems[0])
    return lines, problems + _disagreements(readable, modality)


@dataclass(frozen=True)
class _Found:
    """One readable instance: cells or pixels along its (shorter) edge; of a shape, the shares of its cells that are
    filled and near the surface, and whether it touches the border of its grid."""

    size: int
    filled: float = 0.0
    near: float = 0.0
    touches: bool = False


def _measure_all(layout: GridLayout, split: str, progress: bool) -> list[_Found | str]:
    """What is found in every instance of a split, or what is wrong with it."""
    sources = layout.sources(split)
    kind = "shapes" if layout.modality == "voxel" else "pictures"
    results = []
    size = _size_of_meshes(layout)
    with ShapeReader() as reader, progress_bar(f"reading {split}", len(sources), kind, progress) as advance:
        for result in ordered_results((_measure, layout.modality, reader, source, size) for source in sources):
            results.append(result)
            advance(1)
    return results


def _size_of_meshes(layout: GridLayout) -> int:
    """Cells along an edge of a voxelised mesh: as many as the grids beside it have."""
    if layout.modality == "image":  # no meshes, and finding a size there reads the head of every picture
        return MESH_RESOLUTION
    try:
        return resolve_size(layout, None, None)[0]
    except MNIFError:  # which will be told of the file it comes from
        return MESH_RESOLUTION


def _measure(modality: str, reader: ShapeReader, source: GridSource, size: int) -> _Found | str:
    try:
        if modality == "voxel":
            cells = reader.read(source, size)
            border = cells.sum() > cells[1:-1, 1:-1, 1:-1].sum()
            return _Found(len(cells), cells.mean(), len(surface_cells(cells)) / cells.size, bool(border))
        from mnif_nerf.data.readers.picture_files import read_picture

        size = min(image_size(source.path))
        read_picture(source.path, size, 3)
        return _Found(size)
    except MNIFError as error:
        return str(error)


def _describe(found: list[_Found], modality: str) -> str:
    if not found:
        return "nothing readable"
    low, high = min(one.size for one in found), max(one.size for one in found)
    sizes = f"{low}" if low == high else f"{low} to {high}"
    if modality == "image":
        return f"{len(found)} pictures, shorter edge {sizes} pixels"
    filled = [100 * one.filled for one in found]
    near = 100 * sum(one.near for one in found) / len(found)
    touching = sum(one.touches for one in found)
    border = f"; {touching} touch the border of their grid and may be cut off there" if touching else ""
    return (
        f"{len(found)} shapes, {sizes} cells along an edge; filled {sum(filled) / len(filled):.1f} % of the cells"
        f" ({min(filled):.1f} to {max(filled):.1f}), near the surface {near:.1f} %{border}"
    )


def _disagreements(readable: list[tuple[GridSource, _Found]], modality: str) -> list[str]:
    """What keeps readable files from being trained on together."""
    if modality == "image":
        from mnif_nerf.data.readers.picture_files import inspect_pictures

        try:
            inspect_pictures([source.path for source, _ in readable])
        except MNIFError as error:
            return [str(error)]
        return []
    reference = readable[0][1]
    return [unequal_size(source, one.size, reference.size) for source, one in readable if one.size != reference.size]
