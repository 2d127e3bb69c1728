"""Builds the optional CPU kernels; everything else about the package is in pyproject.toml."""

import sys

from setuptools import Extension, setup

FOLDER = "mnif_nerf/fields/"

kernel = Extension(
    "mnif_nerf.fields._siren_kernel",
    sources=[FOLDER + "_siren_kernel.c"],
    depends=[FOLDER + f"_siren_{part}.h" for part in ("network", "rays", "simd", "sine", "exp")],
    libraries=["m"],
    # Not -ffast-math: the sine rounds by adding and subtracting a large number, and NaN must stay NaN.
    extra_compile_args=[
        "-std=gnu11",
        "-O3",
        "-ffp-contract=fast",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-pthread",
    ],
    extra_link_args=["-pthread"],
    # A box without a C compiler installs all the same; torch then computes what the kernel would.
    optional=True,
)

METRICS = "mnif_nerf/metrics/"

clouds = Extension(
    "mnif_nerf.metrics._cloud_kernel",
    sources=[METRICS + "_cloud_kernel.c"],
    # What a minimum of many numbers needs to be vectorised; all of them are finite there.
    extra_compile_args=[
        "-std=gnu11",
        "-O3",
        "-ffp-contract=fast",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-ffinite-math-only",
        "-fno-signed-zeros",
        "-fassociative-math",
    ],
    optional=True,
)

RENDERING = "mnif_nerf/rendering/"

tracing = Extension(
    "mnif_nerf.rendering._tracing_kernel",
    sources=[RENDERING + "_tracing_kernel.c"],
    libraries=["m"],
    extra_compile_args=["-std=gnu11", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"],
    optional=True,
)

SAMPLING = "mnif_nerf/data/sampling/"

draws = Extension(
    "mnif_nerf.data.sampling._draw_kernel",
    sources=[SAMPLING + "_draw_kernel.c"],
    libraries=["m"],
    # Every operation is rounded as torch rounds it.
    extra_compile_args=["-std=gnu11", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"],
    optional=True,
)

# Visual C++ knows neither pthreads nor vector extensions.
setup(ext_modules=[] if sys.platform == "win32" else [kernel, clouds, tracing, draws])
