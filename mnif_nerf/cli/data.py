"""`mnif-data`: make, fetch and check data sets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from mnif_nerf.data.readers.scene_reading import IntrinsicsKind, PoseKind, SceneReading
from mnif_nerf.errors import MNIFError, flag_paths, run_command, with_flags
from mnif_nerf.limits import require_disk, require_options
from mnif_nerf.names import quoted

if TYPE_CHECKING:
    from mnif_nerf.data.generate.settings import ViewCounts

_BLOCK = 4096  # bytes that the smallest file takes
Axis = Literal["auto", "x", "y", "z"]
Direction = Literal["auto", "+x", "-x", "+y", "-y", "+z", "-z"]


@dataclass(frozen=True)
class ProceduralCars:
    """Make coloured cars of seven body types and render them in the SRN layout, with 64^3 occupancy.

    With --voxels there are no pictures, only the voxels of each car, for mnif-voxel; with --sdf only points with signed
    distance and colour, for mnif-sdf. A folder that an earlier run with the same settings left unfinished is completed.

    Attributes:
        output: the folder to write.
        num_train: training cars.
        num_val: validation cars, none of them in the training set.
        num_test: test cars, likewise.
        train_views: pictures of each training car, from all around.
        heldout_views: pictures of each training car kept for evaluation (cars_train_val), from a spiral.
        test_views: pictures of each validation and test car, from a spiral above.
        resolution: height and width of a picture in pixels.
        seed: random seed of everything.
        occupancy: write occupancy/<split>/<car>.npz.
        voxels: write <split>/<car>.npz with so many cells along an edge, and nothing else; 0 makes pictures.
        sdf: write points/<split>, points with signed distance and colour, and nothing else.
        points: points of each car with --sdf; a tenth more lie on the surface.
        workers: processes; one per core by default.
    """

    output: Path = Path("data/procedural_cars")
    num_train: int = 128
    num_val: int = 8
    num_test: int = 16
    train_views: int = 16
    heldout_views: int = 4
    test_views: int = 24
    resolution: int = 64
    seed: int = 0
    occupancy: bool = True
    voxels: int = 0
    sdf: bool = False
    points: int = 100_000
    workers: int | None = None


@dataclass(frozen=True)
class FromMeshes:
    """Render a folder of .glb, .gltf, .obj, .ply, .off or .stl files in the SRN layout, or fill them with voxels.

    Meshes are centred and scaled to a bounding-box diagonal of 1. What cannot be read is skipped and named; a table at
    the end says what else of the folder was not used. With
    --voxels there are no pictures: solids are written for mnif-voxel, also of meshes that are not closed. With --sdf
    there are points with signed distance and colour for mnif-sdf, likewise.

    Attributes:
        input: folder that holds the meshes, at any depth.
        output: the folder to write.
        category: names the split folders; the input folder's name by default.
        up: the files' up axis; auto is y for .glb, .gltf and .obj, z for .ply, .off and .stl.
        forward: the files' axis that points to an object's front; auto is +z where y is up, else +x.
        train_views: pictures of each training mesh, from all around.
        heldout_views: pictures of each training mesh kept for evaluation, from a spiral above.
        test_views: pictures of each validation and test mesh, from a spiral above.
        resolution: height and width of a picture in pixels.
        voxels: write <split>/<mesh>.npz with so many cells along an edge, and nothing else; 0 makes pictures.
        sdf: write points/<split>, points with signed distance and colour, and nothing else.
        points: points of each mesh with --sdf; a tenth more lie on the surface.
        val_fraction: share of the meshes for validation; at least one from 4 meshes on.
        test_fraction: share of the meshes for testing; at least one from 4 meshes on.
        seed: random seed of the split and the cameras.
        labels: a .csv of labels (name,species,...) for labels.csv in the output; by default labels.csv in the input,
            else the folders there that hold classes.
        copies: varied copies of each training mesh, for folders of few.
        vary: what is varied in them: mirror, stretch, bend, hue (all colours), paint (the main colour becomes that of
            another mesh).
        workers: processes; one per core by default.
    """

    input: tyro.conf.Positional[Path]
    output: Path
    category: str | None = None
    up: Axis = "auto"
    forward: Direction = "auto"
    train_views: int = 50
    heldout_views: int = 8
    test_views: int = 24
    resolution: int = 128
    voxels: int = 0
    sdf: bool = False
    points: int = 100_000
    val_fraction: float = 0.1
    test_fraction: float = 0.1
    seed: int = 0
    labels: Path | None = None
    copies: int = 0
    vary: tuple[Literal["mirror", "stretch", "bend", "hue", "paint"], ...] = ("mirror", "stretch", "paint")
    workers: int | None = None


@dataclass(frozen=True)
class Digits:
    """Write scikit-learn's 1,797 handwritten digits as 8 x 8 pictures: real images that need no download.

    Attributes:
        output: the folder to write.
        seed: which digits go into which split.
    """

    output: Path = Path("data/digits")
    seed: int = 0


@dataclass(frozen=True)
class PowerDays:
    """Write 1,096 days of electricity demand (sktime) as series of 24 hours: real signals that need no download.

    Attributes:
        output: the folder to write.
        seed: which days go into which split.
    """

    output: Path = Path("data/power_days")
    seed: int = 0


@dataclass(frozen=True)
class Download:
    """Fetch a published data set (srn-cars, srn-chairs), check it and unpack it; an interrupted run goes on.

    Attributes:
        name: name of the data set, or any name together with --url.
        output: the folder to put it in.
        url: address or local path of the archive; the environment variable MNIF_URL_SRN_CARS serves as well.
        sha256: the checksum that the archive must have.
    """

    name: tyro.conf.Positional[str]
    output: Path = Path("data")
    url: str | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Check:
    """Read a whole data set, say what it holds and what is wrong with it.

    Attributes:
        root: the folder that holds <category>_train and so on, or voxels, meshes or pictures.
        poses: of pictures with cameras, what the pose files hold: camera-to-world (c2w) or world-to-camera (w2c)
            matrices, with OpenCV's axes, or with OpenGL's (c2w-gl, w2c-gl).
        intrinsics: whether their intrinsics are in pixels (as auto takes them), or normalised by the picture's size.
        scale: what camera positions are multiplied by; auto moves and scales the data set so that its objects fill the
            scene box.
    """

    root: tyro.conf.Positional[Path]
    poses: PoseKind = "auto"
    intrinsics: IntrinsicsKind = "auto"
    scale: Literal["auto"] | float = 1.0


Command = (
    Annotated[ProceduralCars, tyro.conf.subcommand("procedural-cars")]
    | Annotated[FromMeshes, tyro.conf.subcommand("from-meshes")]
    | Annotated[Digits, tyro.conf.subcommand("digits")]
    | Annotated[PowerDays, tyro.conf.subcommand("power-days")]
    | Annotated[Download, tyro.conf.subcommand("download")]
    | Annotated[Check, tyro.conf.subcommand("check")]
)


def main(command: ProceduralCars | FromMeshes | Digits | PowerDays | Download | Check) -> None:
    """Run one subcommand and say what to do next."""
    require_options(command)
    if isinstance(command, ProceduralCars):
        _procedural_cars(command)
    elif isinstance(command, FromMeshes):
        _from_meshes(command)
    elif isinstance(command, Digits):
        from mnif_nerf.data.generate.digits import SPLIT_SIZES, make_digits

        folder = make_digits(command.output, command.seed)
        print(f"{folder}: {', '.join(f'{count} {split}' for split, count in SPLIT_SIZES.items())} digits, 8 x 8, grey")
        print(f"Next: ns-train mnif-image-lite --data {quoted(folder)}")
    elif isinstance(command, PowerDays):
        from mnif_nerf.data.generate.power_days import HOURS, SPLIT_SIZES, make_power_days

        folder = make_power_days(command.output, command.seed)
        print(
            f"{folder}: {', '.join(f'{count} {split}' for split, count in SPLIT_SIZES.items())} days of {HOURS} hours"
        )
        print(f"Next: mnif-train mnif-signal-lite --data {quoted(folder)}")
    elif isinstance(command, Download):
        from mnif_nerf.data.download.download import download

        folder = download(command.name, command.output, url=command.url, sha256=command.sha256)
        print(f"Next: mnif-data check {quoted(folder)}")
    else:
        from mnif_nerf.modalities.data_report import check

        reading = SceneReading(command.poses, command.intrinsics, command.scale)
        report = check(command.root, reading=reading)
        print(with_flags(str(report), flag_paths(Check)))
        if report.problems:
            raise SystemExit(1)
        method = report.modality.method
        repairs = "".join(f" --{name} {value}" for name, value in reading.to_dict().items())
        print(f"Next: ns-train {method}-lite --data {quoted(command.root)}{repairs} (on a GPU: ns-train {method})")


def _procedural_cars(command: ProceduralCars) -> None:
    from mnif_nerf.data.generate.procedural import make_procedural_cars, make_procedural_voxels
    from mnif_nerf.data.generate.settings import CarCounts

    _check_choice(command)
    voxels = command.voxels
    counts = CarCounts(command.num_train, command.num_val, command.num_test, command.seed)
    _check_room(command, counts.total)
    if command.sdf:
        from mnif_nerf.data.generate.points import make_procedural_points

        folder = make_procedural_points(command.output, counts, command.points, command.workers)
    elif voxels:
        folder = make_procedural_voxels(command.output, counts, voxels, command.workers)
    else:
        folder = make_procedural_cars(command.output, counts, _views(command), command.occupancy, command.workers)
    cars = command.num_train + command.num_val + command.num_test
    print(f"{folder}: {cars} cars ({command.num_train} train, {command.num_val} val, {command.num_test} test)")
    method = "mnif-sdf-lite" if command.sdf else "mnif-voxel-lite" if voxels else "mnif-lite"
    print(f"Next: ns-train {method} --data {quoted(folder)}")


def _check_room(command: ProceduralCars, cars: int) -> None:
    """Refuse more files than the disk has room for.

    Raises:
        MNIFError: with both sizes.
    """
    if command.sdf:
        each = 24.0 * command.points
    elif command.voxels:
        each = _BLOCK + command.voxels**3 / 20
    else:
        views = max(command.train_views + command.heldout_views, command.test_views)
        each = views * (2 * _BLOCK + 0.2 * command.resolution**2) + 4 * _BLOCK
    require_disk(cars * each, command.output, f"{cars:,} cars", "ask for fewer, smaller or with fewer views")


def _check_choice(command: ProceduralCars | FromMeshes) -> None:
    """Refuse two kinds of output at once.

    Raises:
        MNIFError: with the two.
    """
    if command.sdf and command.voxels:
        raise MNIFError("`sdf` and `voxels` are different data; choose one of the two.")


def _views(command: ProceduralCars | FromMeshes) -> ViewCounts:
    from mnif_nerf.data.generate.settings import ViewCounts

    return ViewCounts(command.train_views, command.heldout_views, command.test_views, command.resolution)


def _from_meshes(command: FromMeshes) -> None:
    from mnif_nerf.data.generate.meshes import render_mesh_folder, voxelise_mesh_folder
    from mnif_nerf.data.generate.settings import MeshFolderOptions

    _check_choice(command)
    voxels = command.voxels
    names = ("up", "forward", "val_fraction", "test_fraction", "seed", "labels", "copies", "vary")
    options = MeshFolderOptions(
        None if voxels or command.sdf else command.category, **{name: getattr(command, name) for name in names}
    )
    if command.sdf:
        from mnif_nerf.data.generate.mesh_points import sample_mesh_folder

        summary = sample_mesh_folder(command.input, command.output, command.points, options, command.workers)
    elif voxels:
        summary = voxelise_mesh_folder(command.input, command.output, voxels, options, command.workers)
    else:
        summary = render_mesh_folder(command.input, command.output, options, _views(command), command.workers)
    print("\n".join(summary.told(command.input)))
    shares = ", ".join(f"{len(names)} {split}" for split, names in summary.splits.items())
    print(f"{summary.output}: category {summary.category}, {shares}; skipped {len(summary.skipped)}")
    method = "mnif-sdf-lite" if command.sdf else "mnif-voxel-lite" if voxels else "mnif-lite"
    print(f"Next: ns-train {method} --data {quoted(summary.output)}")


def entrypoint() -> None:
    """Console script `mnif-data`."""
    run_command(lambda: main(tyro.cli(Command, prog="mnif-data", description=__doc__)), [Command])  # type: ignore[arg-type]


if __name__ == "__main__":
    entrypoint()
