"""What a pipeline returns: a list of objects that a notebook shows as one sheet of pictures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mnif_nerf.objects.base import NOTEBOOK_PIXELS, NeuralObject

if TYPE_CHECKING:
    from PIL import Image

_MOST_SHOWN = 24


class ObjectList(list[NeuralObject]):
    """A list of objects; as the last line of a notebook's cell it is a sheet of their pictures."""

    def __getitem__(self, index: Any) -> Any:
        """One object, or of a slice a list that a notebook shows as well."""
        found = super().__getitem__(index)
        return ObjectList(found) if isinstance(index, slice) else found

    def sheet(self, resolution: int = NOTEBOOK_PIXELS, most: int = _MOST_SHOWN) -> Image.Image:
        """The first `most` objects side by side, each under `resolution` pixels of picture, with their names.

        Raises:
            MNIFError: an empty list, or a resolution out of range.
        """
        from mnif_nerf.export.pictures import contact_sheet, grid_columns

        shown, columns = self[:most], grid_columns(min(len(self), most))
        rows = [shown[k : k + columns] for k in range(0, len(shown), columns)]
        pictures = [[item.picture(resolution) for item in row] for row in rows]
        captions = [[item.name for item in row] for row in rows]
        title = f"the first {most} of {len(self)}" if len(self) > most else ""
        return contact_sheet(pictures, captions=captions, title=title)

    def _repr_png_(self) -> bytes | None:
        """What Jupyter shows; nothing of an empty list."""
        from mnif_nerf.export.pictures import png_bytes

        return png_bytes(self.sheet()) if self else None
