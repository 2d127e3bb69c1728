"""One HTML file that shows objects as live neural fields: no server, no network, no other people's code.

The page holds the weights of every object's collapsed network and draws it with a fragment shader (WebGL2), which
`export/web_page/` writes out for the network's shape. Each object also brings a strip of small pictures, for its
thumbnail and for browsers without WebGL2.
"""

from __future__ import annotations

import dataclasses
import hashlib
import html
import io
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mnif_nerf.errors import MNIFError
from mnif_nerf.export.density import level_of
from mnif_nerf.export.web_numbers import Precision, base64_of, base64_size, encoded
from mnif_nerf.fields import distance, heads
from mnif_nerf.fields.compact import CompactField
from mnif_nerf.fields.network import num_parameters
from mnif_nerf.fields.solid import surface_thickness
from mnif_nerf.files import atomic_file
from mnif_nerf.rendering import surface
from mnif_nerf.rendering.sphere_tracing import LEAST_STEP
from mnif_nerf.rendering.views import DEFAULT_STEP

if TYPE_CHECKING:
    from PIL import Image

__all__ = [
    "DISTANCE", "PICTURE", "RADIANCE", "SOLID", "Drawing", "Precision", "WebObject", "WebScene", "WebText",
    "estimate_bytes", "write_web_page",
]  # fmt: skip

FORMAT = "mnif_nerf.web"
FRAME_EDGE = 192  # pixels of a picture in the strips
_PARTS = Path(__file__).parent / "web_page"
# What the page and its worker run, and what the page takes of it; then what only the page runs.
_SHARED = ("codec.js", "random.js", "prior.js", "field.js", "surface.js", "glb.js", "picture.js", "tasks.js")
_TAKEN = ("weightsIn", "layoutOf", "packed", "cellsAt", "tasks")
_SCRIPTS = (
    "shaders.js", "renderer.js", "stage.js", "state.js", "hands.js", "gallery.js", "helper.js", "draw.js",
    "download.js", "compare.js", "link.js", "page.js",
)  # fmt: skip
_MOST_FRAMES = 16383 // FRAME_EDGE  # WebP is at most 16,383 pixels wide
_BYTES_PER_FRAME = 1800  # what a picture in a strip takes; only for the estimate
_QUALITY = 72


@dataclass(frozen=True)
class Drawing:
    """How the shader draws the objects of a page.

    Attributes:
        name: name of the way, as the shader knows it.
        heads: heads of the fields that it can draw.
        what: what the page calls one of them.
        nouns: what the page calls several.
        grid_cells: along an edge of the grid that lets rays skip empty space; 0 for none.
        samples: rays along each edge of a pixel.
        constants: numbers that the Python renderers have too, so that the two cannot drift apart.
        box_constants: the same, in half extents of the scene box.
    """

    name: str
    heads: tuple[str, ...]
    what: str
    nouns: str
    grid_cells: int
    samples: int
    constants: Mapping[str, float | tuple[float, ...]] = dataclasses.field(default_factory=dict)
    box_constants: Mapping[str, float] = dataclasses.field(default_factory=dict)


# Grids as `OccupancyGrid.from_field` and `SurfaceGrid` have them, rays as `NeuralShape` has them (a picture's border
# is as hard as a solid's).
RADIANCE = Drawing(
    "radiance",
    ("radiance", "radiance-authors"),
    "a radiance field",
    "objects",
    48,
    1,
    {
        "STEP": DEFAULT_STEP,
        "DENSITY_SCALE": heads.DENSITY_SCALE,
        "DENSITY_GAIN": heads.DENSITY_GAIN,
        "DENSITY_SHIFT": heads.DENSITY_SHIFT,
        "OCCUPIED_ABOVE": 1.0,
    },
)
_SHADING: dict[str, float | tuple[float, ...]] = {
    "AMBIENT": surface._AMBIENT,
    "SKY": surface._SKY,
    "KEY": surface._KEY,
    "GLOSS": surface._GLOSS,
    "PAINT": tuple(surface._PAINT),
}
_NUDGE = 1.0 / 1024  # on either side of a point, for the gradient
SOLID = Drawing(
    "voxel",
    ("signed", "logit", "distance"),
    "a solid",
    "objects",
    surface.GRID_RESOLUTION,
    2,
    {"OCCUPIED_ABOVE": surface._EMPTY_BELOW, **_SHADING},
    {"NUDGE": _NUDGE},
)
DISTANCE = Drawing(
    "distance",
    ("sdf",),
    "a coloured surface",
    "objects",
    surface.GRID_RESOLUTION,
    2,
    {"DISTANCE_SCALE": heads.DISTANCE_SCALE, "TRUNCATION": distance.TRUNCATION, "TRUST": distance.TRUST, **_SHADING},
    {"NUDGE": _NUDGE, "LEAST_STEP": 2 * LEAST_STEP},
)
PICTURE = Drawing("image", ("signed", "logit"), "a picture", "pictures", 0, 2)


@dataclass(frozen=True)
class WebObject:
    """One object of the page.

    Attributes:
        name: shown under its thumbnail; any text.
        field: its collapsed network; all objects of a page have the same shape.
        frames: pictures of one turn around it, all of one size, the first as the thumbnail; one for a still.
        label: what it is, by attribute; shown beside the name, and what the page filters by.
    """

    name: str
    field: CompactField
    frames: Sequence[Image.Image]
    label: Mapping[str, str | float] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class WebScene:
    """What all objects of the page share.

    Attributes:
        drawing: how they are drawn.
        camera: "focal_over_width" and "radius", world units; the page opens with it.
        half_extent: half the edge of the scene box, world units.
        bounds: bool `[g, g, g]` outside which nothing exists, or None.
        first_azimuth: degrees, of the first frame; the others follow evenly.
        shape: of pictures (H, W), for their proportions.
    """

    drawing: Drawing
    camera: dict[str, float]
    half_extent: float = 0.5
    bounds: Tensor | None = None
    first_azimuth: float = 45.0
    shape: Sequence[int] = (1, 1)


@dataclass(frozen=True)
class WebText:
    """What the page says, as plain text: markup in it is shown, not obeyed.

    Attributes:
        title: heading and title of the page.
        origin: a sentence on which model the objects are from and how they were chosen.
        generator: program and version that wrote the page.
    """

    title: str
    origin: str
    generator: str


def estimate_bytes(parameters: int, objects: int, frames: int, precision: Precision) -> int:
    """About how large the page will be, before any object is made.

    Args:
        parameters: weights and biases of one collapsed network.
        objects: how many.
        frames: pictures in each object's strip.
        precision: precision of the weights.
    """
    numbers = parameters * (2 if precision == "float16" else 4)
    own = sum((_PARTS / name).stat().st_size for name in (*_SHARED, *_SCRIPTS, "page.css", "page.html"))
    return own + objects * (base64_size(numbers) + base64_size(frames * _BYTES_PER_FRAME) + 100)


def write_web_page(
    path: Path | str,
    objects: Sequence[WebObject],
    scene: WebScene,
    text: WebText,
    precision: Precision = "float16",
    prior: Mapping[str, Any] | None = None,
) -> Path:
    """Write the page, atomically.

    Args:
        path: ends in .html.
        objects: at least one, of one model.
        scene: what they share.
        text: what the page says.
        precision: precision of the weights in the file. The shader computes in float32 either way.
        prior: what lets the page draw new objects (`mnif_nerf.export.web_prior.drawing_kit`), or None.

    Raises:
        MNIFError: no objects, networks of several shapes or with numbers that the precision cannot hold, a head
            that the drawing does not know, too many frames, or a folder that cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in (".html", ".htm"):
        raise MNIFError(f"{path}: a web page is written as HTML; use the suffix .html.")
    model = {**_model(objects, scene, precision), "generator": text.generator, "prior": prior}
    content = _page(model, scene.drawing, text)
    with atomic_file(path) as temporary:
        temporary.write_text(content, encoding="utf-8", errors="replace")
    return path


def _model(objects: Sequence[WebObject], scene: WebScene, precision: Precision) -> dict[str, Any]:
    """What the page's script reads."""
    if not objects:
        raise MNIFError("a web page needs at least one object.")
    first = objects[0].field
    sizes = _sizes(first)
    head = first.head
    drawing = scene.drawing
    if head not in drawing.heads:
        raise MNIFError(f"a web page cannot draw {drawing.what} with the head {head!r}.")
    for item in objects:
        if (item.field.form, item.field.head) != (first.form, head):
            raise MNIFError(
                f"{item.name}: its network has another shape than that of {objects[0].name}; a page shows one model."
            )
    frames = len(objects[0].frames)
    if not 1 <= frames <= _MOST_FRAMES or any(len(item.frames) != frames for item in objects):
        raise MNIFError(f"a strip holds 1 to {_MOST_FRAMES} pictures, as many for each object; change `frames`.")
    return {
        "format": FORMAT,
        "modality": drawing.name,
        "nouns": drawing.nouns,
        "head": head,
        "family": first.form.family,
        "w0": first.form.w0,
        "finalSine": first.final_sine,
        "sizes": sizes,
        "precision": precision,
        "halfExtent": scene.half_extent,
        "focal": scene.camera["focal_over_width"],
        "radius": scene.camera["radius"],
        "constants": _constants(scene),
        "level": level_of(first, scene.half_extent),
        "thickness": surface_thickness(scene.half_extent),
        "gridCells": drawing.grid_cells,
        "samples": drawing.samples,
        "bounds": None if scene.bounds is None else _bits(scene.bounds),
        "turntable": {"frames": frames, "firstAzimuth": scene.first_azimuth, "edge": FRAME_EDGE},
        "objects": [
            {
                "name": item.name,
                **({"label": dict(item.label)} if item.label else {}),
                "weights": _numbers(item, precision),
                "strip": _strip(item.frames),
            }
            for item in objects
        ],
    }


def _sizes(field: CompactField) -> list[int]:
    return [field.weights[0].shape[1], *(weight.shape[0] for weight in field.weights)]


def _constants(scene: WebScene) -> dict[str, float | Sequence[float]]:
    in_boxes = {name: scene.half_extent * value for name, value in scene.drawing.box_constants.items()}
    height, width = (count / max(scene.shape) for count in scene.shape)
    return {**scene.drawing.constants, **in_boxes, "REACH": (height, width, 0.0)}


def _numbers(item: WebObject, precision: Precision) -> str:
    """All weights and biases, layer by layer, as base64 of little-endian numbers."""
    layers = zip(item.field.weights, item.field.biases)
    parts = [part.detach().cpu().float().flatten() for weight, bias in layers for part in (weight, bias)]
    return encoded(torch.cat(parts).numpy(), precision, item.name)


def _bits(cells: Tensor) -> dict[str, Any]:
    packed = np.packbits(cells.cpu().numpy().astype(bool).flatten())
    return {"resolution": len(cells), "bits": base64_of(packed.tobytes())}


def _strip(frames: Sequence[Image.Image]) -> str:
    """Pictures side by side, as a data URI: WebP, which every browser of the last years reads, else JPEG."""
    from PIL import Image, features

    width, height = frames[0].size
    strip = Image.new("RGB", (width * len(frames), height), "white")
    for index, frame in enumerate(frames):
        strip.paste(frame.convert("RGB"), (index * width, 0))
    kind = "webp" if features.check("webp") else "jpeg"
    file = io.BytesIO()
    strip.save(file, format=kind, quality=_QUALITY, **({"method": 6} if kind == "webp" else {"optimize": True}))
    return f"data:image/{kind};base64,{base64_of(file.getvalue())}"


def _page(model: dict[str, Any], drawing: Drawing, text: WebText) -> str:
    style = _part("page.css")
    shared = _script(_SHARED, "const shared = ", f"return {{ {', '.join((*_TAKEN, 'serve'))} }};\n")
    script = _script(_SCRIPTS, "", "", f"const {{ {', '.join(_TAKEN)} }} = shared;\n")
    # The policy lets the page do nothing but run these very scripts, the first of them in a worker too: neither names
    # nor a later hand can add another, and nothing can be fetched.
    policy = (
        f"default-src 'none'; img-src data:; style-src {_digest(style)}; "
        f"script-src {_digest(shared)} {_digest(script)}; worker-src blob:; base-uri 'none'; form-action 'none'"
    )
    count, nouns = len(model["objects"]), drawing.nouns.capitalize()
    values = {
        "POLICY": policy,
        "GENERATOR": html.escape(text.generator),
        "TITLE": html.escape(text.title),
        "LEAD": _lead(nouns, count),
        "OBJECTS": nouns if count > 1 else nouns[:-1],
        "KEYS": _keys(count),
        "CAPTION": _caption(model, drawing.what, text),
        "STYLE": style,
        "MODEL": _embedded_json(model),
        "SHARED": shared,
        "SCRIPT": script,
    }
    return re.sub(r"\{\{([A-Z]+)\}\}", lambda match: values[match[1]], _part("page.html"))


def _script(parts: Sequence[str], before: str, after: str, first: str = "") -> str:
    """Files as one script that leaves no names behind but those in `before`."""
    return f'{before}(() => {{\n"use strict";\n{first}' + "\n".join(map(_part, parts)) + f"{after}}})();\n"


def _lead(nouns: str, count: int) -> str:
    ways = "Drag to turn, scroll or pinch to zoom" + (", pick another or blend two." if count > 1 else ".")
    return f"{nouns} drawn live by their neural fields. {ways}"


def _keys(count: int) -> str:
    others = ", N and P go to the next and the previous object" if count > 1 else ""
    return (
        "Keys, with the view in focus: arrows turn, + and - zoom"
        f"{others}, the space bar turns by itself, Home resets the view."
    )


def _caption(model: dict[str, Any], what: str, text: WebText) -> str:
    sizes = model["sizes"]
    parameters = num_parameters(list(zip(sizes[1:], sizes)))
    kilobytes = len(model["objects"][0]["weights"]) / 1000
    return (
        f"Each is {what} held by one small network of {parameters:,} numbers "
        f"({kilobytes:.0f} KB of this file, {model['precision']}), which your browser evaluates for every sample of "
        f"every picture; nothing comes from the network. {html.escape(text.origin)} Method: Generative Neural Fields "
        f"by Mixtures of Neural Implicit Functions (arXiv 2310.19464). Written by {html.escape(text.generator)}."
    )


def _embedded_json(content: Any) -> str:
    """JSON that no HTML parser can take for anything else: without <, > and &, in ASCII."""
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _part(name: str) -> str:
    return (_PARTS / name).read_text(encoding="utf-8")


def _digest(content: str) -> str:
    return f"'sha256-{base64_of(hashlib.sha256(content.encode()).digest())}'"
