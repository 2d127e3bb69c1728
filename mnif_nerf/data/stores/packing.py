"""Turning one split of an SRN data set into a folder of arrays: decode, composite, mask, carve, write.

Every array is appended to its file scene by scene, so memory holds a few scenes at a time, and a full disk
is an exception (writing through a memory map would end the process with a bus error instead).
"""

from __future__ import annotations

import contextlib
import shutil
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mnif_nerf.data.geometry.hull import HULL_RESOLUTION, SceneHull
from mnif_nerf.data.readers.images import Background, composite_white, inspect_background
from mnif_nerf.data.readers.srn import SplitIndex
from mnif_nerf.data.stores.cache import map_array
from mnif_nerf.data.stores.scene_survey import Survey, carve_pictures, read_pictures, survey_split
from mnif_nerf.data.stores.shards import Rows, move_shards, pack_shards, shard_ranges
from mnif_nerf.errors import MNIFError
from mnif_nerf.files import atomic_file
from mnif_nerf.machine import num_cores
from mnif_nerf.names import listed

T = TypeVar("T")
_ROWS_READ = 256  # at a time
_FOUND = ("blank", "part_blank", "contradicting", "loose", "outside")  # lists of a survey


@dataclass
class PackReport:
    """What packing found: the background, what is wrong with scenes (by name), the numbers of those packed, and how
    many of them lie in each shard (none where there are no shards)."""

    background: Background
    survey: Survey
    kept: list[int] = field(default_factory=list)
    shards: list[int] = field(default_factory=list)

    def record(self) -> dict[str, Any]:
        """What was found, JSON-ready."""
        return {"kept": self.kept, **{name: getattr(self.survey, name) for name in _FOUND}}

    def add(self, record: dict[str, Any]) -> None:
        """Add what was found in a shard."""
        self.kept += record["kept"]
        self.shards.append(len(record["kept"]))
        for name in _FOUND:
            getattr(self.survey, name).extend(record[name])

    def notes(self) -> list[str]:
        """Sentences for the user, empty where all is well."""
        notes, survey = [], self.survey
        if not self.background.white:
            notes.append("the background is not white: no silhouettes, no carving; every ray is drawn.")
        if survey.blank:
            notes.append(f"blank in all their pictures, and left out: {listed(survey.blank)}.")
        if survey.part_blank:
            names = [f"{name} ({count} of {views})" for name, count, views in survey.part_blank]
            notes.append(f"pictures that show nothing: {listed(names)}; training draws no rays of them.")
        if survey.contradicting:
            notes.append(
                f"no hull explains the silhouettes of {listed(survey.contradicting)}: the whole cube is used there;"
                " check masks and poses."
            )
        if survey.loose:
            notes.append(f"masks and poses disagree in a few views of {listed(survey.loose)}: looser hulls there.")
        if survey.outside:
            notes.append(
                f"{listed(survey.outside)}: the object reaches outside the scene box and will be cut off there; "
                "mnif-data check tells how to scale the data set."
            )
        return notes


@dataclass(frozen=True)
class _PackedScene:
    images: np.ndarray
    blank_views: int = 0
    silhouettes: np.ndarray | None = None
    touching: np.ndarray | None = None
    cells: np.ndarray | None = None
    hull: SceneHull | None = None


@dataclass(frozen=True)
class ScenePacking:
    """What is packed, and how.

    Attributes:
        index: the split.
        store: where the store will be. Shards that are finished wait beside it, also for another run.
        fingerprint: of all that decides what is packed.
        workers: decoding threads; None takes up to 8.
        advance: told the number of views done since the last call.
    """

    index: SplitIndex
    store: Path
    fingerprint: str
    workers: int | None = None
    advance: Callable[[int], None] = lambda views: None


def pack(how: ScenePacking, folder: Path) -> PackReport:
    """Write the arrays of a store into `folder` (see `mnif_nerf.data.stores.scene_store` for the format); many scenes
    shard by shard.

    Instances that are blank in all their pictures are left out.

    Raises:
        MNIFError: an image cannot be read or differs in size, half of the scenes contradict their cameras or reach
            beyond the scene box, all are blank, or the disk cannot hold the store.
        OSError: the disk fills up on the way (the caller turns it into one sentence).
    """
    index = how.index
    background = inspect_background(index.image_paths, index.height, index.width)
    survey_split(index, background).refuse(index.kind_is_given)
    shapes = array_shapes(index, background.white)
    size = sum(int(np.prod(shape)) for shape in shapes.values())
    require_space(folder, size, f"{index.num_views} views")
    report = PackReport(background, Survey(index.folder))
    ranges = shard_ranges(index.num_scenes, size // index.num_scenes)
    if len(ranges) == 1:
        _pack_scenes(how, ranges[0], folder, report)
    else:

        def pack_shard(number: int, place: Path) -> dict[str, Any]:
            found = PackReport(background, Survey(index.folder))
            _pack_scenes(how, ranges[number], place, found)
            return {"names": [index.names[scene] for scene in found.kept], **found.record()}

        for found in pack_shards(how.store, [f"{how.fingerprint} {each}" for each in ranges], pack_shard):
            report.add(found)
        move_shards(how.store, len(ranges), folder)
    if not report.kept:
        raise MNIFError(f"{index.folder}: all {index.num_scenes} instances are blank; render them again.")
    return report


def _pack_scenes(how: ScenePacking, scenes: range, folder: Path, report: PackReport) -> None:
    """Write the arrays of some scenes, and tell the report of them."""
    index, background = how.index, report.background
    shapes = array_shapes(index, background.white)
    files = {name: GrowingArray(folder / f"{name}.npy", shape[1:]) for name, shape in shapes.items()}
    counts = np.diff(index.view_offsets)
    try:
        jobs = ((_pack_scene, index, scene, background) for scene in scenes)
        for scene, packed in zip(scenes, ordered_results(jobs, how.workers)):
            if _note(report.survey, index.names[scene], packed):
                report.kept.append(scene)
                files["images"].append(packed.images)
                if background.white:
                    files["silhouettes"].append(packed.silhouettes)
                    files["touching"].append(packed.touching)
                    files["hulls"].append(packed.cells)
            how.advance(int(counts[scene]))
    finally:
        for file in files.values():
            file.close()
    views = np.repeat(np.isin(np.arange(index.num_scenes), report.kept), counts)
    np.save(folder / "poses.npy", index.poses[views])
    np.save(folder / "intrinsics.npy", index.intrinsics[views])
    np.save(folder / "view_offsets.npy", np.cumsum([0, *counts[report.kept]], dtype=np.int64))


def _note(survey: Survey, name: str, packed: _PackedScene) -> bool:
    """Tell the survey of a scene; returns whether it is kept."""
    views = len(packed.images)
    if packed.blank_views == views:
        survey.blank.append(name)
        return False
    if packed.blank_views:
        survey.part_blank.append((name, packed.blank_views, views))
    if packed.hull is not None:
        survey.note_hull(name, packed.hull)
    return True


def array_shapes(index: SplitIndex, white: bool) -> dict[str, tuple[int, ...]]:
    """Shapes of the uint8 arrays of a store."""
    shapes: dict[str, tuple[int, ...]] = {"images": (index.num_views, index.height, index.width, 3)}
    if white:
        bits = (index.num_views, -(-index.height * index.width // 8))
        shapes |= {
            "silhouettes": bits,
            "touching": bits,
            "hulls": (index.num_scenes, HULL_RESOLUTION**3 // 8),
        }
    return shapes


def pack_bits(mask: np.ndarray) -> np.ndarray:
    """bool [B, ...] to uint8 [B, ceil(n / 8)], bit i % 8 of byte i // 8 being element i."""
    return np.packbits(mask.reshape(len(mask), -1), axis=1, bitorder="little")


def bits_of_any(rows: Rows, count: int, folder: Path) -> np.ndarray:
    """Bits that at least one row has: uint8 [n].

    Args:
        rows: uint8 [N, n], packed bits.
        count: how many of them, from the first on.
        folder: of the packed store, which keeps the result for all of them, as all data is read for it; another folder
            keeps nothing.
    """
    path = folder / "any.npy" if count == len(rows) and (folder / "manifest.json").is_file() else None
    with contextlib.suppress(OSError, ValueError, EOFError):
        if path is not None:
            return np.array(map_array(path, rows.shape[1:]))
    found = np.zeros(rows.shape[1:], np.uint8)
    for first in range(0, count, _ROWS_READ):
        found |= np.bitwise_or.reduce(rows[first : min(first + _ROWS_READ, count)], axis=0)
    if path is not None:
        with contextlib.suppress(MNIFError), atomic_file(path) as temporary:  # of a cache that only can be read
            np.save(temporary, found)
    return found


def unpack_bits(packed: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Inverse of `pack_bits` for one row or many: bool [..., *shape]."""
    count = int(np.prod(shape))
    bits = np.unpackbits(packed, axis=-1, count=count, bitorder="little")
    return bits.reshape(*packed.shape[:-1], *shape).astype(bool)


def ordered_results(jobs: Iterator[tuple[Any, ...]], workers: int | None = None) -> Iterator[Any]:
    """Results of `(function, *arguments)` jobs in order, from threads, with at most two jobs per thread in
    flight.

    A job that raises ends the iteration with its error; jobs that have not begun are then dropped.
    """
    count = workers or min(8, num_cores())
    pool = ThreadPoolExecutor(count)
    pending: deque[Future] = deque()
    try:
        for job in jobs:
            pending.append(pool.submit(*job))
            if len(pending) >= 2 * count:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _pack_scene(index: SplitIndex, scene: int, background: Background) -> _PackedScene:
    pictures = read_pictures(index, scene, background)
    images = np.stack([composite_white(picture) for picture in pictures.pixels])
    hull = carve_pictures(index, scene, pictures)
    if hull is None or pictures.masks is None:
        return _PackedScene(images, pictures.blank_views)
    bits = (pack_bits(pictures.masks), pack_bits(hull.touching), pack_bits(hull.cells[None]))
    return _PackedScene(images, pictures.blank_views, *bits, hull)


def require_space(folder: Path, data: int, what: str) -> None:
    """Refuse before the work begins where a store of about `data` bytes cannot fit.

    Raises:
        MNIFError: with what is needed and what is free.
    """
    needed, free = int(1.02 * data) + 2**20, shutil.disk_usage(folder).free
    if needed > free:
        raise MNIFError(
            f"{folder.parent}: packing {what} needs {needed / 1e6:.0f} MB and {free / 1e6:.0f} MB are free;"
            " free some space, or set MNIF_CACHE to a folder on another disk."
        )


class GrowingArray:
    """An .npy file whose rows are appended; its header tells how many there are once it is closed.

    Args:
        path: the file.
        row: shape of one row.
        dtype: dtype of the elements.
    """

    def __init__(self, path: Path, row: tuple[int, ...] = (), dtype: type = np.uint8) -> None:
        self._row, self._bytes = row, 0
        self._dtype: np.dtype = np.dtype(dtype)
        self._file = open(path, "wb")  # noqa: SIM115 (closed by close)
        self._write_header(0)

    def append(self, rows: np.ndarray | None) -> None:
        assert rows is not None
        assert rows.dtype == self._dtype
        self._bytes += self._file.write(np.ascontiguousarray(rows).data)

    def close(self) -> None:
        self._file.seek(0)
        self._write_header(self._bytes // (self._dtype.itemsize * int(np.prod(self._row, dtype=np.int64))))
        self._file.close()

    def _write_header(self, count: int) -> None:
        # numpy leaves room in the header for the first axis to grow, so that its length does not change.
        header = {"descr": self._dtype.str, "fortran_order": False, "shape": (count, *self._row)}
        np.lib.format.write_array_header_1_0(self._file, header)
