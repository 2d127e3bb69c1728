"""A ball with paint that has edges, as a solid whose every colour is known."""

from __future__ import annotations

import numpy as np
from tiny_model import Ball

from mnif_nerf.export.mesh import MeshOptions, field_to_mesh
from mnif_nerf.export.mesh_files import ExportMesh, to_export_axes


def paint(direction: np.ndarray) -> np.ndarray:
    """sRGB colours [N, 3] in [0, 1] of directions [N, 3] from the centre (z up): waves, and a dark stripe around."""
    colors = 0.5 + 0.4 * np.sin(direction * [7.0, 5.0, 6.0] + [0.0, 1.0, 2.0])
    colors[np.abs(direction[:, 2] - 0.3) < 0.08] = (0.1, 0.15, 0.4)
    return colors


class PaintedBall:
    """A ball of radius 0.3 beside the middle of the scene."""

    name = "ball"
    has_color = True
    center = (0.1, -0.05, 0.08)

    def mesh(self, resolution: int = 128, level: object = None, *options: object, **named: object) -> ExportMesh:
        """Its surface, in glTF's axes."""
        return to_export_axes(field_to_mesh(Ball(0.3, self.center), resolution, options=MeshOptions(colors=False)))

    def surface_colors(self, points: np.ndarray, normals: np.ndarray) -> np.ndarray:
        """Its paint."""
        direction = points - np.array(self.center)
        return paint(direction / np.linalg.norm(direction, axis=1, keepdims=True))
