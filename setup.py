"""Where the packages lie: everything else about the distribution stands in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    package_dir={"swinopt": "swinopt", "swinopt.passes": "passes", "swinopt.cuda_plugins": "cuda_plugins"},
    packages=[
        "swinopt",
        "swinopt.passes",
        "swinopt.cuda_plugins",
        *(f"swinopt.cuda_plugins.{name}" for name in find_packages("cuda_plugins")),
    ],
    package_data={"": ["*.cu", "*.cuh", "*.cpp", "*.h", "CMakeLists.txt", "*.map"], "swinopt": ["py.typed"]},
)
