"""The packed store: one split of an SRN data set as memory-mapped uint8 arrays, built once and found again.

On disk (`<root>/.mnif/<split>/`, or under the folder that MNIF_CACHE names):

    manifest.json     format version, fingerprint of the source files, sizes, names, notes
    images.npy        uint8 [V, H, W, 3], composited on white
    silhouettes.npy   bits of [H, W] per view: the object
    touching.npy      bits of [H, W] per view: pixels whose ray meets the scene's visual hull
    hulls.npy         bits of [G, G, G] per scene, [x, y, z] order; cell i is centred at -0.5 + (i + 0.5) / G
    poses.npy, intrinsics.npy, view_offsets.npy

Bits are packed little-endian (`numpy.packbits(..., bitorder="little")`). Silhouettes, touching and hulls are
absent where the background is not white. A store is written beside its place and renamed, so it is whole or
absent.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mnif_nerf.data.geometry.hull import HALF_EXTENT, HULL_RESOLUTION
from mnif_nerf.data.readers.images import inspect_background
from mnif_nerf.data.readers.scene_reading import USUAL, Placement, SceneReading
from mnif_nerf.data.readers.splits import is_clutter
from mnif_nerf.data.readers.srn import SplitIndex, read_split
from mnif_nerf.data.readers.srn_layout import Layout, locate, strange_folders
from mnif_nerf.data.stores.cache import (
    PackedFormat,
    cache_place,
    files_fingerprint,
    open_or_build,
)
from mnif_nerf.data.stores.manifest import read_manifest
from mnif_nerf.data.stores.packing import PackReport, ScenePacking, bits_of_any, pack, unpack_bits
from mnif_nerf.data.stores.scene_survey import find_placement
from mnif_nerf.data.stores.shards import Rows, map_rows, shard_folder
from mnif_nerf.errors import MNIFError
from mnif_nerf.files import read_json, write_json
from mnif_nerf.progress import progress_bar

FORMAT = PackedFormat("mnif_nerf packed store", 2)


@dataclass(frozen=True)
class PackedStore:
    """One split, packed. V views in all, S scenes; scene s owns views view_offsets[s] to view_offsets[s + 1].

    poses float32 [V, 4, 4] camera-to-world, OpenCV; intrinsics float32 [V, 3] (f, cx, cy in pixels); images
    uint8 [V, H, W, 3]; silhouettes and touching uint8 [V, ceil(HW / 8)] and hulls uint8 [S, G^3 / 8], packed
    bits, or None where `white_background` is False. Arrays are private memory maps: writing to them does not
    reach the disk. Those of a large split lie in shards (`mnif_nerf.data.stores.shards`).
    """

    folder: Path
    root: Path
    category: str
    split: str
    names: tuple[str, ...]
    view_offsets: np.ndarray
    poses: np.ndarray
    intrinsics: np.ndarray
    height: int
    width: int
    images: Rows
    silhouettes: Rows | None
    touching: Rows | None
    hulls: Rows | None
    white_background: bool
    hull_resolution: int = HULL_RESOLUTION
    half_extent: float = HALF_EXTENT

    @property
    def num_scenes(self) -> int:
        return len(self.names)

    @property
    def num_views(self) -> int:
        return len(self.poses)

    def view_range(self, scene: int) -> tuple[int, int]:
        """(first, last) view of a scene; `last` is one past its end.

        Raises:
            MNIFError: no such scene.
        """
        if not 0 <= scene < self.num_scenes:
            raise MNIFError(f"scene {scene}: the {self.split} split has scenes 0 to {self.num_scenes - 1}.")
        return int(self.view_offsets[scene]), int(self.view_offsets[scene + 1])

    def hull(self, scene: int) -> np.ndarray:
        """bool [G, G, G], [x, y, z] order; all True where nothing was carved."""
        self.view_range(scene)
        shape = (self.hull_resolution,) * 3
        return np.ones(shape, dtype=bool) if self.hulls is None else unpack_bits(self.hulls[scene], shape)

    def hull_union(self) -> np.ndarray | None:
        """bool [G, G, G], cells in any scene's hull; None where nothing was carved."""
        if self.hulls is None:
            return None
        return unpack_bits(bits_of_any(self.hulls, self.num_scenes, self.folder), (self.hull_resolution,) * 3)


def open_store(
    root: Path | str,
    split: str,
    progress: bool = True,
    workers: int | None = None,
    reading: SceneReading = USUAL,
) -> PackedStore:
    """Open the packed store of a split, building it first where it is absent or older than the data.

    An up-to-date store opens after one pass over the directory entries (names, sizes, times), without
    reading a pose or a picture: a few seconds for the 245,800 files of SRN Cars in a warm cache.

    Args:
        root: the data set, as `mnif_nerf.data.readers.srn_layout.locate` takes it.
        split: "train", "val", "test" or "train_val" (held-out views of training scenes).
        progress: show a progress bar while packing.
        workers: decoding threads; None takes up to 8.
        reading: what the user says about the cameras' files.

    Raises:
        MNIFError: whatever `read_split` and `pack` refuse, an unreadable image, a full disk, a cache that cannot be
        written.
    """
    layout = locate(root)
    name, folder = layout.folder(split)
    target = cache_folder(layout, name, reading)
    placement = scene_placement(layout, reading)
    fingerprint = source_fingerprint(folder) + (f" {placement}" if reading.scale == "auto" else "")

    def build(temporary: Path) -> dict[str, Any]:
        index = read_split(root, split, reading)
        if reading.scale == "auto":
            index = replace(index, poses=placement.apply(index.poses))
        with progress_bar(f"packing {index.split}", index.num_views, "views", progress) as advance:
            report = pack(ScenePacking(index, target, fingerprint, workers, advance), temporary)
        return {**_describe(index, report), "placement": asdict(placement)}

    return open_or_build(
        target,
        FORMAT,
        fingerprint,
        f"the {name} split",
        lambda manifest: _open_arrays(layout, target, manifest),
        build,
    )


def cache_folder(layout: Layout, split: str, reading: SceneReading = USUAL) -> Path:
    """Where the store of a split lies: beside the data, or under MNIF_CACHE by the data's name and place."""
    return cache_place(layout.root, layout.cache) / "-".join((split, *_named(reading)))


def scene_placement(layout: Layout, reading: SceneReading) -> Placement:
    """Where a data set is put by `scale` auto, found from its training split and kept beside the stores.

    Raises:
        MNIFError: see `find_placement`.
    """
    if reading.scale != "auto":
        return Placement()
    split = "train" if "train" in layout.splits else next(iter(layout.splits))
    folder = layout.splits[split]
    source = source_fingerprint(folder)
    kept = cache_place(layout.root, layout.cache) / "-".join(("placement", *_named(reading))) / "placement.json"
    try:
        known = read_json(kept)
        if known["source"] == source:
            return Placement(tuple(known["centre"]), float(known["scale"]))
    except (MNIFError, KeyError, TypeError, ValueError):
        pass  # none yet, or damaged: it is found again
    index = read_split(layout.root, split, reading)
    background = inspect_background(index.image_paths, index.height, index.width)
    found = find_placement(index, background)
    place = ", ".join(f"{x:.3g}" for x in found.centre)
    print(
        f"{layout.root}: scale auto moves ({place}) to the origin; {found.scale:.4g} times as large.",
        flush=True,
    )
    write_json(kept, {"source": source, **asdict(found)})
    return found


def packed_names(root: Path | str, split: str, reading: SceneReading = USUAL) -> tuple[str, ...] | None:
    """Names of the instances in the packed store of a split; None where there is none yet."""
    layout = locate(root)
    try:
        manifest = read_manifest(cache_folder(layout, layout.folder(split)[0], reading))
        return tuple(manifest["names"]) if manifest["format_version"] == FORMAT.version else None
    except (MNIFError, KeyError, TypeError):
        return None


def _named(reading: SceneReading) -> list[str]:
    """Parts of a folder's name that tell how the cameras were read."""
    return [f"{name}_{value}" for name, value in reading.to_dict().items()]


def source_fingerprint(folder: Path) -> str:
    """Digest of relative names, sizes and modification times of all files below `folder`, but hidden ones."""
    return files_fingerprint(_files_below(folder))


def _files_below(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    waiting = [(folder, "")]
    while waiting:
        current, prefix = waiting.pop()
        with os.scandir(current) as entries:
            for entry in sorted(entries, key=lambda e: e.name):
                if is_clutter(entry.name):
                    continue
                if entry.is_dir():
                    if prefix.count("/") < 6:  # a link to a parent folder would never end
                        waiting.append((current / entry.name, f"{prefix}{entry.name}/"))
                    continue
                yield f"{prefix}{entry.name}", entry.stat()


def _open_arrays(layout: Layout, target: Path, manifest: dict[str, Any]) -> PackedStore:
    height, width = int(manifest["height"]), int(manifest["width"])
    names, views = tuple(manifest["names"]), int(manifest["num_views"])
    white, resolution = bool(manifest["white_background"]), int(manifest["hull_resolution"])
    bits = (views, -(-height * width // 8))
    cells = (len(names), resolution**3 // 8)
    sizes = manifest.get("shards")
    folders = [target] if sizes is None else [shard_folder(target, k) for k, size in enumerate(sizes) if size]
    small = {name: _joined(folders, name) for name in ("poses", "intrinsics")}
    counts = [np.diff(np.load(folder / "view_offsets.npy")) for folder in folders]
    small["view_offsets"] = np.cumsum([0, *np.concatenate(counts)], dtype=np.int64)
    ends = iter([int(part.sum()) for part in counts])
    shown = None if sizes is None else [next(ends) if size else 0 for size in sizes]
    expected = {"poses": (views, 4, 4), "intrinsics": (views, 3), "view_offsets": (len(names) + 1,)}
    if any(small[name].shape != shape for name, shape in expected.items()):
        raise ValueError("array sizes differ from the manifest")
    return PackedStore(
        folder=target,
        root=layout.root,
        category=str(manifest["category"]),
        split=str(manifest["split"]),
        names=names,
        height=height,
        width=width,
        images=map_rows(target, "images.npy", shown, (views, height, width, 3)),
        silhouettes=map_rows(target, "silhouettes.npy", shown, bits) if white else None,
        touching=map_rows(target, "touching.npy", shown, bits) if white else None,
        hulls=map_rows(target, "hulls.npy", sizes, cells) if white else None,
        white_background=white,
        hull_resolution=resolution,
        half_extent=float(manifest["half_extent"]),
        **small,
    )


def _joined(folders: list[Path], name: str) -> np.ndarray:
    return np.concatenate([np.load(folder / f"{name}.npy") for folder in folders])


def _describe(index: SplitIndex, report: PackReport) -> dict[str, Any]:
    others = ", ".join(path.name for path in strange_folders(index.folder)[:5])
    strange = [f"{others}: neither rgb/ nor pose/ in it, so it is no scene and is left out."] if others else []
    return {
        "category": index.category,
        "split": index.split,
        "num_views": int(np.diff(index.view_offsets)[report.kept].sum()),
        "height": index.height,
        "width": index.width,
        "white_background": report.background.white,
        "hull_resolution": HULL_RESOLUTION,
        "half_extent": HALF_EXTENT,
        "notes": [f"{index.folder}: {note}" for note in [*report.notes(), *strange]],
        "names": [index.names[scene] for scene in report.kept],
        **({"shards": report.shards} if report.shards else {}),
    }
