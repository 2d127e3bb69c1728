"""Videos of objects: one that is turned, objects that become one another, a walk through latent space.

A video is two independent things, an object for each frame and a camera for each frame. Frames do not depend on one
another, so they can be made in any order. A frame of an object that changes is a network of its own: mixing it takes
about a millisecond, and finding where it is empty a tenth of the picture's time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.priors.walks import closed_walk, eased_legs
from mnif_nerf.rendering.camera_path import CameraPath
from mnif_nerf.rendering.cameras import Intrinsics, orbit_pose

if TYPE_CHECKING:
    from PIL import Image

    from mnif_nerf.objects.base import NeuralObject
    from mnif_nerf.pipelines.editing import Editor

Objects = Callable[[int], "NeuralObject"]
Cameras = Callable[[int], tuple[Tensor, Intrinsics]]


@dataclass(frozen=True)
class Video:
    """Frames that are rendered as they are asked for.

    Attributes:
        count: how many.
        objects: the object of a frame.
        cameras: camera-to-world `[4, 4]` and intrinsics of a frame; None for pictures, which have no camera.
        resolution: pixels along an edge at which a picture's field is read; their own when None.
        edge: least edge of a picture in pixels; smaller ones are enlarged by a whole factor.
    """

    count: int
    objects: Objects
    cameras: Cameras | None
    resolution: int | None = None
    edge: int = 1

    def frame(self, index: int) -> Image.Image:
        """The picture of frame `index`, from 0 to `count` - 1.

        Raises:
            MNIFError: a picture too large for the memory.
        """
        from mnif_nerf.export.pictures import enlarge
        from mnif_nerf.objects.solid import require_solid

        item = self.objects(index)
        if self.cameras is not None:
            return require_solid(item).view(*self.cameras(index))
        return enlarge(item.own_picture(self.resolution), self.edge)


def standing(item: NeuralObject) -> Objects:
    """The same object in every frame."""
    return lambda _: item


def interpolation(pipe: Editor, stops: Sequence[Any], frames: int, loop: bool = False) -> Objects:
    """From each of several objects to the next, slow at each; with `loop` back to the first.

    Args:
        stops: at least 2 objects, latents, names or indices.
        frames: at least 2.

    Raises:
        MNIFError: too few of either, or an object of another model.
    """
    plan = eased_legs(len(stops), frames, loop)

    def at(frame: int) -> NeuralObject:
        start, end, share = plan[frame]
        return pipe.between(stops[start], stops[end], share, f"frame{frame:05d}")

    return at


def walk(pipe: Editor, stops: Tensor, frames: int) -> Objects:
    """A smooth closed walk through latents `[S, D]` that the prior drew: see `priors.walks.closed_walk`.

    Raises:
        MNIFError: no prior, fewer than 2 different stops, or no frames.
    """
    if pipe.prior is None:
        raise MNIFError("this model has no latent prior yet, so it cannot walk; train one with mnif-train-prior.")
    latents = closed_walk(pipe.prior.whitening, stops, frames)
    return lambda frame: pipe.decode(latents[frame], f"frame{frame:05d}")


def turning(
    frames: int, intrinsics: Intrinsics, radius: float, elevation: float, azimuth: float, turns: float
) -> Cameras:
    """A camera that looks at the centre and goes round it `turns` times, counter-clockwise as seen from above.

    The frame after the last would be the first again where `turns` is whole, so such a video loops.

    Args:
        frames: frames of the video.
        intrinsics: intrinsics of every frame.
        radius: distance from the centre, world units.
        elevation, azimuth: degrees, as in `NeuralObject.render`; the azimuth is that of the first frame.
        turns: 0 stands still.
    """
    return lambda frame: (orbit_pose(elevation, azimuth + 360.0 * turns * frame / frames, radius), intrinsics)


def along(path: CameraPath, width: int, height: int) -> Cameras:
    """The cameras of a path, for pictures of `width` x `height` pixels."""
    return lambda frame: (path.poses[frame], path.intrinsics(frame, width, height))


def whole_view(width: int, height: int, focal_over_width: float) -> Intrinsics:
    """A camera that has along the shorter edge of its picture the field of view of the training cameras."""
    return Intrinsics.centred(width, height, focal_over_width * min(width, height))


def fingerprint(pipe: Editor, objects: Sequence[NeuralObject], path: CameraPath | None = None) -> str:
    """A digest of what frames show: the objects' networks, the model that makes what lies between them, the cameras."""
    fields: list[torch.nn.Module] = [pipe.model.field, *(item.field for item in objects)]
    tensors = [value for field in fields for value in field.state_dict().values()]
    tensors += [] if pipe.model.cells is None else [pipe.model.cells]
    tensors += [] if path is None else [path.poses, torch.tensor(path.fovs)]
    digest = hashlib.sha256()
    for value in tensors:
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
