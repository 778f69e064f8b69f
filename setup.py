"""Package metadata. Tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

here = Path(__file__).parent
(version,) = re.findall(r'^__version__ = "(.+)"$', (here / "highway_jax/__init__.py").read_text(), re.MULTILINE)
# The tests pass with the lower bounds: `make test-lowest` installs exactly these versions. `make lint` passes with the
# lowest mypy and ruff.
jax = "jax{}>=0.10.2,<0.12"
tensorboard = ["tensorboard>=2.20", "tensorboardX>=2.6.2.2"]
parquet = ["pyarrow>=17"]
optuna = ["optuna>=5"]
test = [
    "hypothesis>=6.100",
    "ipykernel>=6.29",
    "nbclient>=0.10",
    "nbformat>=5.10",
    "pytest>=8",
    "pytest-xdist>=3.5",
    *tensorboard,
    *parquet,
    *optuna,
]

setup(
    name="highway-jax",
    version=version,
    description='Highway networks in JAX and Flax: "Training Very Deep Networks", hundreds of runs at once',
    long_description=(here / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["highway_jax", "highway_jax.*"]),
    package_data={
        "highway_jax": ["py.typed", "native/*.h", "functional/direct.cc", "stack/fused.cc", "stack/fused.cu"]
    },
    install_requires=[
        jax.format(""),
        "flax>=0.12.6",  # nnx.capture
        "optax>=0.2.5",
        "orbax-checkpoint>=0.11.26",
        "ml-collections>=1.0",
        "absl-py>=2.0",
        "numpy>=2.0",
        "tensorflow-datasets>=4.9.10",  # reads its metadata with Protobuf 7
        "array_record>=0.6; sys_platform == 'darwin'",  # tensorflow-datasets asks for it on Linux only
        "importlib_resources>=6.0",  # tensorflow-datasets imports it without declaring it
        "pandas>=2.2.2",  # Result.table
        "scikit-learn>=1.5",
        "matplotlib>=3.10.7",
        "bokeh>=3.8",  # the report's interactive figures; HoverTool.limit
        "pillow>=10.1",
        "rich>=13.8",  # lets a program go on when nobody reads its output
        "filelock>=3.20.3",  # follows no link that stands where its file should
        "jinja2>=3.1",
    ],
    extras_require={
        "test": test,
        "dev": [*test, "mypy>=2.4", "ruff>=0.13"],
        "prepare": [
            "tensorflow-cpu>=2.20; platform_machine == 'x86_64'",
            "tensorflow>=2.20; platform_machine != 'x86_64'",
        ],
        "tensorboard": tensorboard,
        "parquet": parquet,
        "optuna": [*optuna, "optuna-dashboard>=0.20"],
        "bench": ["torch==2.13.0"],
        "cuda12": [jax.format("[cuda12]")],
        "cuda13": [jax.format("[cuda13]")],
        "tpu": [jax.format("[tpu]")],
    },
    classifiers=[
        "Programming Language :: Python :: 3",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
