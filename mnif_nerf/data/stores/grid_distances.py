"""Signed distances of a store's solids: computed once, kept beside its cells.

distances.npy: int8 [N, cells], positive inside, cut at `CUT` cells; 127 stands for that.
"""

from __future__ import annotations

import numpy as np

from mnif_nerf.data.stores.cache import map_array
from mnif_nerf.data.stores.grid_store import GridStore
from mnif_nerf.data.stores.packing import ordered_results, require_space
from mnif_nerf.errors import MNIFError
from mnif_nerf.files import atomic_file
from mnif_nerf.progress import progress_bar
from mnif_nerf.rendering.cell_distances import cell_distances

CUT = 4.0
"""Cells from the surface up to which distances are known."""


class GridDistances:
    """Distances of the solids of a store; see the module.

    Args:
        store: voxels.
        progress: show a progress bar where they have to be computed.

    Raises:
        MNIFError: the store holds no solids, or the disk has no room.
    """

    def __init__(self, store: GridStore, progress: bool = True) -> None:
        if store.values_kind != "bits":
            raise MNIFError(f"{store.root}: {store.modality} data have no distances from a surface; only voxels do.")
        self.store = store
        shape = (store.num_instances, store.num_cells)
        path = store.folder / "distances.npy"
        if not (store.folder / "manifest.json").exists():  # in memory
            self.packed = np.stack([_packed(store.values(index)) for index in range(store.num_instances)])
            return
        try:
            self.packed = map_array(path, shape, np.int8)
        except (OSError, ValueError, EOFError):
            require_space(store.folder, shape[0] * shape[1], f"distances of {shape[0]} shapes")
            with atomic_file(path) as temporary:
                _write(store, temporary, shape, progress)
            self.packed = map_array(path, shape, np.int8)

    def at(self, instances: np.ndarray, cells: np.ndarray) -> np.ndarray:
        """Distances in cells, positive inside: float32 [B, 1, N].

        Args:
            instances: int64 [B].
            cells: int64 [B, N], numbers of cells.
        """
        return self.packed[instances[:, None], cells][:, None].astype(np.float32) * np.float32(CUT / 127)

    def everywhere(self, instances: np.ndarray) -> np.ndarray:
        """`at` every cell in order."""
        return self.packed[instances][:, None].astype(np.float32) * np.float32(CUT / 127)


def _write(store: GridStore, path: object, shape: tuple[int, int], progress: bool) -> None:
    packed = np.lib.format.open_memmap(path, "w+", np.int8, shape)
    jobs = ((_row, store, index) for index in range(shape[0]))
    with progress_bar(f"distances {store.split}", shape[0], "shapes", progress) as advance:
        for index, row in enumerate(ordered_results(jobs)):
            packed[index] = row
            advance(1)
    packed.flush()


def _row(store: GridStore, index: int) -> np.ndarray:
    return _packed(store.values(index))


def _packed(cells: np.ndarray) -> np.ndarray:
    return np.rint(np.clip(-cell_distances(cells), -CUT, CUT) * (127 / CUT)).astype(np.int8).ravel()
