"""A mesh file and how it is read: its axes, the folder that it may take pictures from, and what is varied in a copy."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mnif_nerf.data.geometry.variations import Variation, varied
from mnif_nerf.data.readers.mesh_files import MeshContent, read_mesh


@dataclass(frozen=True)
class MeshInput:
    """What worker processes get of a mesh.

    Attributes:
        path: the file.
        up, forward, root: its axes and the folder that it may take pictures from, see `read_surface`.
        variation: what is varied in this copy; None: nothing, it is the mesh itself.
        donor: a file whose main colour a varied copy may take.
    """

    path: Path
    up: str = "auto"
    forward: str = "auto"
    root: Path | None = None
    variation: Variation | None = None
    donor: Path | None = None

    def read(self) -> MeshContent:
        """The mesh, varied if it is a copy.

        Raises:
            MNIFError: see `read_mesh`.
        """
        content = self._of(self.path)
        if self.variation is not None:
            # Only paint looks at another mesh.
            other = self.donor if "paint" in self.variation.kinds else None
            donor = None if other is None else self._of(other).surface
            content.surface = varied(content.surface, self.variation, donor)
        return content

    def _of(self, path: Path) -> MeshContent:
        return read_mesh(path, self.up, self.forward, self.root)
