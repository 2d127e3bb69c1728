"""What a viewer writes: the shown object as a latent, a mesh or a picture, into a folder of the run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mnif_nerf import modalities
from mnif_nerf.errors import MNIFError
from mnif_nerf.files import atomic_file
from mnif_nerf.names import file_name

if TYPE_CHECKING:
    from mnif_nerf.objects.base import NeuralObject

MESH_RESOLUTION = 128  # cells along an edge
_PICTURE_PIXELS = 512


def save_latent(item: NeuralObject, folder: Path) -> Path:
    """Write latent and network as .safetensors, as `mnif-export-mesh --source latent` and `NeuralObject.load` read it.

    Raises:
        MNIFError: the disk is full, or the folder cannot be written.
    """
    return item.save(free_path(folder, item.name, ".safetensors"))


def export_object(item: NeuralObject, folder: Path) -> Path:
    """Write the object as a mesh (.glb), or where it has no surface as a picture (.png).

    Raises:
        MNIFError: it has no surface, or the folder cannot be written.
    """
    if modalities.get(item.modality).has_surface:
        from mnif_nerf.export.mesh_files import write_mesh
        from mnif_nerf.objects.solid import require_solid

        return write_mesh(require_solid(item).mesh(MESH_RESOLUTION), free_path(folder, item.name, ".glb"))
    picture, path = item.own_picture(_PICTURE_PIXELS), free_path(folder, item.name, ".png")
    with atomic_file(path) as temporary:
        picture.save(temporary)
    return path


def free_path(folder: Path, name: str, suffix: str) -> Path:
    """A path in `folder` where nothing lies yet: `<name><suffix>`, or with -2, -3, ... before the suffix.

    Raises:
        MNIFError: `folder` is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise MNIFError(f"{folder}: is a file, so nothing can be saved in there; move it away.")
    stem = file_name(name)
    count, path = 1, folder / f"{stem}{suffix}"
    while path.exists():
        count += 1
        path = folder / f"{stem}-{count}{suffix}"
    return path
