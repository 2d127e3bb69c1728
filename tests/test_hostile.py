"""What must not happen, whoever made the model folder, whatever the options, and wherever a command is stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_model import tiny_model
from tiny_runs import DISTANCES, tiny_settings, write_tiny_shapes

from mnif_nerf.cli import data as data_command
from mnif_nerf.cli import diagnose, export_mesh, publish, render, sample, train_prior
from mnif_nerf.data.generate.digits import make_digits
from mnif_nerf.errors import MNIFError
from mnif_nerf.limits import require_count, require_disk, require_memory, require_number, require_options
from mnif_nerf.names import file_name, file_names, shown
from mnif_nerf.pipelines import run_folder
from mnif_nerf.pipelines.model_folder import check_replaceable, read_model, write_model
from mnif_nerf.pipelines.run import TrainingRun
from mnif_nerf.pipelines.run_checks import check_run, finished_steps

# ------------------------------------------------------------------------------------------------------- names


def test_names_become_names_of_one_file() -> None:
    for name in (
        "../../victim",
        "/etc/passwd",
        "..",
        ".",
        "",
        ".hidden",
        "a/b",
        "a\\b",
        "é" * 200,
        "x" * 300,
        "\udcff",
    ):
        safe = file_name(name)
        assert safe
        assert Path(safe).name == safe
        assert not safe.startswith(".")
        assert len(safe.encode()) <= 100
    assert file_name("my car-1.5") == "my_car-1.5"
    assert file_name("x" * 300 + ".mp4").endswith(".mp4")
    assert file_name("x" * 300) != file_name("x" * 301), "what was cut off still counts"
    assert file_names(["a/b", "a_b", "A_B", "c"]) == ["a_b", "a_b-2", "A_B-3", "c"]
    assert shown("a\nb\x1b[2J\udcff") == "a\\nb\\x1b[2J\\udcff"
    assert shown("x" * 999).count("x") < 120


def test_a_model_writes_nothing_outside_its_run(trained: Path, tmp_path: Path) -> None:
    victim = write_model(tiny_model(seed=1), tmp_path / "victim" / "model")
    before = {path: path.read_bytes() for path in victim.rglob("*") if path.is_file()}
    for data in ("../../victim/model", str(victim), "..", "a/../..", "x" * 300):
        model = read_model(trained)
        model.training = {**model.training, "data": data}
        stranger = write_model(model, tmp_path / "stranger" / "model")
        folder = publish.main(publish.PublishOptions(str(stranger), num_pictures=0))
        assert folder.parent == tmp_path / "stranger" / "published"
    assert {path: path.read_bytes() for path in victim.rglob("*") if path.is_file()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["stranger", "victim"]


def test_a_model_is_not_published_into_itself(folder: Path) -> None:
    for place in (folder, folder / "more", folder / ".." / folder.name):
        with pytest.raises(MNIFError, match=r"is the model itself|(lies in|is) a model folder"):
            publish.main(publish.PublishOptions(str(folder), num_pictures=0, output=place))


def test_nothing_is_written_into_a_model_folder(folder: Path) -> None:
    """Not even latents.safetensors, which mnif-sample writes too."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    for place in (folder, folder / "prior", folder / "prior" / "new", folder / ".." / folder.name):
        for command in (
            lambda place=place: sample.main(sample.SampleOptions(str(folder), num_samples=1, output=place)),
            lambda place=place: export_mesh.main(export_mesh.ExportOptions(str(folder), output=place)),
            lambda place=place: render.main(render.RenderOptions(str(folder), frames=2, output=place)),
            lambda place=place: render.main(render.RenderOptions(str(folder), frames=2, output=place / "a.mp4")),
            lambda place=place: check_replaceable(place / "published"),
        ):
            with pytest.raises(MNIFError, match=r"(is|lies in) a model folder.*; choose another place\.$"):
                command()
    (folder / "integrity.json").unlink()  # the yardstick, which belongs there
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_leftovers_of_a_killed_process_are_no_strangers(folder: Path) -> None:
    (folder / ".prior.0123abcd-1-0123456789ab.tmp").mkdir()
    check_replaceable(folder)
    (folder / ".mine").touch()
    with pytest.raises(MNIFError, match=r"something else than a model \(\.mine\)"):
        check_replaceable(folder)


# ----------------------------------------------------------------------------------------------------- numbers


def test_limits() -> None:
    for value in (0, -1, 1.0, True, "1", None, 11):
        with pytest.raises(MNIFError, match=r"^`n` .*(at least 1|at most 10)\.$"):
            require_count("`n`", value, 1, 10)
    for value in (float("nan"), float("inf"), "1", True, 0.0, 2.0, 10**400):
        with pytest.raises(MNIFError, match=r"^`x` .*: expected a finite number above 0 and at most 1\.$"):
            require_number("`x`", value, 0.0, 1.0, above=True)
    require_memory(1, "a byte", "use none")
    with pytest.raises(MNIFError, match=r"^a field needs about .* GiB of memory, and .* GiB are free; use less\.$"):
        require_memory(1e18, "a field", "use less")
    with pytest.raises(MNIFError, match="GiB of disk"):
        require_disk(1e30, Path("/nowhere/at/all"), "cars", "ask for fewer")


@pytest.mark.parametrize(
    ("command", "options", "words"),
    [
        (sample, {"num_samples": 10**9}, "`num_samples` 1,000,000,000"),
        (sample, {"elevation": float("nan")}, "`elevation` nan: expected a finite number"),
        (sample, {"elevation": float("inf")}, "`elevation` inf"),
        (sample, {"seed": -1}, "`seed` -1"),
        (sample, {"temperature": float("nan")}, "`temperature` nan"),
        (sample, {"num_samples": 90_000, "resolution": 4096}, "needs about .* GiB of memory"),
        (sample, {"device": "meta"}, "`device` meta cannot be computed on here"),
        (sample, {"sampler": "gaussian", "steps": 5}, "the sampler gaussian has none"),
        (sample, {"temperature": 1e12}, "`temperature` .*at most 100"),
        (sample, {"steps": 0}, "`steps` 0"),
        (export_mesh, {"scale": 1e-300}, "`scale` 1e-300: expected"),
        (export_mesh, {"lods": "9" * 5000}, "--lods 9.* is no number of triangles"),
        (export_mesh, {"smooth": 10**9}, "`smooth` 1,000,000,000"),
        (export_mesh, {"num_samples": 10**9}, "`num_samples` 1,000,000,000"),
        (export_mesh, {"seed": -3}, "`seed` -3"),
        (render, {"frames": 10**12}, "`frames` 1,000,000,000,000"),
        (render, {"seconds": 1e11}, "use at most 100,000, by `seconds`"),
        (render, {"seconds": 1e15}, "`seconds` 1000000000000000"),
        (render, {"path": "walk", "stops": 10**9}, "`stops` 1,000,000,000"),
        (diagnose, {"points": 10**11}, "`points` 100,000,000,000"),
        (diagnose, {"num_pairs": 10**9}, "`num_pairs` 1,000,000,000"),
        (train_prior, {"width": 10**7}, "`width` 10,000,000"),
        (train_prior, {"blocks": 1000, "width": 10**6}, "GiB of memory"),
        (train_prior, {"batch_size": 10**12}, "`batch_size` 1,000,000,000,000"),
        (train_prior, {"latent_noise": float("inf")}, "`latent_noise` inf"),
        (train_prior, {"latent_noise": 1e30}, r"`latent_noise` 1e\+30: expected .* at most 1\."),
        (publish, {"metrics": Path("/")}, "/: cannot be read"),
    ],
)
def test_options_without_bounds_are_a_sentence(
    command: Any, options: dict[str, Any], words: str, folder: Path, tmp_path: Path
) -> None:
    kinds = [kind for name, kind in vars(command).items() if name.endswith("Options") and name != "AssetOptions"]
    kind = next(kind for kind in kinds if kind.__module__ == command.__name__)
    more = {} if command is train_prior else {"output": tmp_path / "out"}
    start = time.process_time()
    with pytest.raises(MNIFError, match=words):
        command.main(kind(folder, **more, **options))
    assert time.process_time() - start < 20
    if command is not publish:
        require_options(kind(folder))  # its own defaults are in range


@pytest.mark.parametrize("kind", [data_command.ProceduralCars, data_command.Digits, data_command.PowerDays])
def test_data_of_a_seed_that_no_generator_takes(kind: Any, tmp_path: Path) -> None:
    for seed in (-1, 2**64):
        with pytest.raises(MNIFError, match="`seed` "):
            data_command.main(kind(output=tmp_path / "out", seed=seed))
    with pytest.raises(MNIFError, match="`seed` -1"):
        make_digits(tmp_path / "out", -1)
    assert not (tmp_path / "out").exists()


# -------------------------------------------------------------------------------------- nothing worse than before


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_shapes(tmp_path_factory.mktemp("shapes"), {"train": 4})


def settings_of(shapes: Path, output: Path, steps: int, **changes: Any) -> Any:
    return tiny_settings(shapes, output, steps, method="mnif-voxel-lite", **{**DISTANCES, **changes})


def train(settings: Any) -> Path:
    return TrainingRun(settings, lambda text: None).train()


def kept(run: Path) -> dict[str, bytes]:
    """What a run has written, but for its logs."""
    paths = (path for part in ("model", "nerfstudio_models") for path in (run / part).glob("*.*"))
    return {str(path): path.read_bytes() for path in (*paths, run / "config.yml")}


def test_a_shorter_or_diverged_run_does_not_replace_a_better_one(shapes: Path, tmp_path: Path) -> None:
    run = train(settings_of(shapes, tmp_path, 12))
    assert finished_steps(run) == 12
    before = kept(run)
    with pytest.raises(MNIFError, match=r"holds a finished model of 12 steps, .* by one of 5; choose another"):
        train(settings_of(shapes, tmp_path, 5))
    for steps, rate, words in (
        (12, 1e30, r"diverged at step 11 .*so nothing is written"),
        (12, 40.0, r"so nothing is written|is kept as it was"),
    ):
        settings = settings_of(shapes, tmp_path, steps)
        for group in settings.optimizers.values():
            group["optimizer"].lr = rate
        with pytest.raises(MNIFError, match=words):
            train(settings)
    assert kept(run) == before
    again = train(settings_of(shapes, tmp_path, 13))  # a longer one may
    assert finished_steps(again) == 13


def test_settings_that_no_run_can_have(shapes: Path, tmp_path: Path) -> None:
    for path, value, words in (
        ("machine.num_devices", 0, "`num_devices` 0"),
        ("machine.num_devices", 2, "nerfstudio starts several processes on CUDA devices alone; use mnif-train"),
        ("machine.num_machines", 0, "`num_machines` 0"),
        ("machine.seed", -1, "`seed` -1"),
        ("machine.seed", 2**32, "`seed` 4,294,967,296"),
        ("max_num_iterations", 0, "`max_num_iterations` 0"),
        ("max_num_iterations", -5, "`max_num_iterations` -5"),
        ("logging.steps_per_log", 0, "`steps_per_log` 0"),
        ("pipeline.threads", -1, "`pipeline.threads` -1"),
        ("pipeline.threads", 10**9, "`pipeline.threads` 1,000,000,000"),
        ("machine.device_type", "mps", "`device_type` mps cannot be trained on; use cpu or cuda"),
        ("pipeline.model.latent_weight", float("nan"), "`model.latent_weight` nan"),
        ("pipeline.datamanager.points_per_instance", 10**12, "`datamanager.points_per_instance` 1,000,000,000,000"),
        ("pipeline.model.num_bases", 10**12, "num_bases"),
        ("pipeline.fit_steps", 10**9, "`fit_steps` of training 1,000,000,000"),
        ("pipeline.fit_points", 10**9, "`fit_points` of training 1,000,000,000"),
        ("pipeline.datamanager.surface_share", 1e30, r"`surface_share` of training 1e\+30"),
    ):
        settings = settings_of(shapes, tmp_path, 5)
        *parents, last = path.split(".")
        target = settings
        for parent in parents:
            target = getattr(target, parent)
        setattr(target, last, value)  # num_machines is of nerfstudio's settings alone
        with pytest.raises(MNIFError, match=words):
            check_run(settings, tmp_path / "run")
    settings = settings_of(shapes, tmp_path, 5)
    settings.optimizers["fields"]["optimizer"].lr = float("inf")
    with pytest.raises(MNIFError, match=r"`optimizer\.lr` inf"):
        check_run(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_full_disk_while_the_prior_is_written(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise MNIFError("x/prior: the disk is full; free some space and run the command again.")

    monkeypatch.setattr(run_folder, "write_prior", full)
    settings = settings_of(shapes, tmp_path, 5, **{"pipeline.train_prior": True, "pipeline.prior_steps": 2})
    with pytest.raises(MNIFError, match=r"no prior was trained: .*disk is full.* mnif-train-prior --load-config"):
        train(settings)
    assert (settings.run_folder() / "model" / "config.json").is_file()


def test_a_diverged_prior_leaves_the_old_one(folder: Path) -> None:
    before = (folder / "prior" / "prior.safetensors").read_bytes()
    with pytest.raises(MNIFError, match="the training of the prior has diverged"):
        train_prior.main(train_prior.TrainPriorOptions(folder, steps=5, learning_rate=1e30))
    assert (folder / "prior" / "prior.safetensors").read_bytes() == before
    assert json.loads((folder / "config.json").read_text())["format"] == "mnif_nerf"


# ------------------------------------------------------------------------------------------- stopped from outside

COMMAND = """
import sys, time
from pathlib import Path
from mnif_nerf.errors import run_command
from mnif_nerf.files import atomic_file

def main():
    if sys.argv[1] == "much":
        for number in range(100_000):
            print(number)
    if sys.argv[1] == "rich":
        from rich.console import Console
        for number in range(100_000):
            Console().print(number)
    if sys.argv[1] == "help":
        print("help")
        raise SystemExit(0)
    if sys.argv[1] == "name":
        Path("x" * 300).mkdir()
    if sys.argv[1] == "below":
        Path(sys.executable, "x").mkdir()
    if sys.argv[1] in ("write", "swallow"):
        with atomic_file(sys.argv[2] + "/film.mp4") as temporary:
            temporary.write_text("half")
            try:
                print("half", flush=True)
                time.sleep(600)
            except BaseException:
                if sys.argv[1] == "write":
                    raise
            try:
                time.sleep(600)
            finally:
                time.sleep(2.5)  # putting things in order takes longer than the end is waited for
                print("in order", flush=True)

run_command(main)
"""


def command(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def test_how_commands_end(tmp_path: Path) -> None:
    for what in ("much", "rich", "help"):
        reader, writer = os.pipe()
        os.close(reader)  # as `| head -1` when it has had enough
        with subprocess.Popen(
            [sys.executable, "-c", COMMAND, what], stdout=writer, stderr=subprocess.PIPE, text=True
        ) as process:
            os.close(writer)
            assert process.communicate()[1] == ""
            assert process.returncode == 141
    for what, words in (
        ("name", "the name is longer than the file system takes"),
        ("below", "part of this path is a file"),
    ):
        with command(what) as process:
            said = process.communicate()[1]
            assert said.startswith("error: ")
            assert words in said
            assert said.count("\n") == 1
            assert process.returncode == 1
    for what, said in (("write", ""), ("swallow", "in order\n")):  # as trimesh does, which catches everything
        with command(what, str(tmp_path)) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "half\n"
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 143
            assert process.stdout.read() == said
        assert list(tmp_path.iterdir()) == []


WORKERS = """
import os, sys, time
from pathlib import Path
from mnif_nerf.data.generate.scene_jobs import run_jobs

def job(folder):
    (Path(folder) / str(os.getpid())).touch()
    time.sleep(600)

if __name__ == "__main__":
    import workers
    run_jobs(workers.job, [sys.argv[1]] * 2, 2, False, "jobs")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="processes are looked up in /proc")
def test_workers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    (tmp_path / "workers.py").write_text(WORKERS)
    (tmp_path / "pids").mkdir()
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, tmp_path / "workers.py", str(tmp_path / "pids")], env=environment
    ) as process:
        wait_until(lambda: len(list((tmp_path / "pids").iterdir())) == 2, 240)
        process.kill()
    workers = [Path("/proc", path.name) for path in (tmp_path / "pids").iterdir()]
    wait_until(lambda: not any(is_alive(worker) for worker in workers), 30)


def is_alive(process: Path) -> bool:
    try:
        return process.joinpath("stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def wait_until(true: Any, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.1)
