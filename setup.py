"""Package metadata. Tool settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

URL = "https://github.com/OWNER/highway-jax"  # the one place for it; docs/conf.py reads it too
here = Path(__file__).parent
(version,) = re.findall(r'^__version__ = "(.+)"$', (here / "highway_jax/__init__.py").read_text(), re.MULTILINE)


def absolute(link):
    """A link of the README as a URL: PyPI shows the README without the files that it links to."""
    target = f"README.md{link[1]}" if link[1].startswith("#") else link[1]
    return f"]({URL}/{'raw' if target.endswith('.png') else 'blob'}/v{version}/{target})"


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
    long_description=re.sub(r"\]\((?!https?:)(\S+?)\)", absolute, (here / "README.md").read_text()),
    long_description_content_type="text/markdown",
    author="The highway-jax authors",
    license="Apache-2.0",
    license_files=["LICENSE"],
    project_urls={
        "Source": URL,
        "Documentation": f"{URL}/tree/main/docs",
        "Changelog": f"{URL}/blob/main/CHANGELOG.md",
        "Issues": f"{URL}/issues",
        "Paper": "https://arxiv.org/abs/1507.06228",
    },
    keywords=["highway networks", "deep learning", "JAX", "Flax", "hyperparameter search", "vectorized training"],
    python_requires=">=3.11",
    # The programs are installed too, under a name as general as `experiments`, because `python -m experiments.NAME` is
    # their command line.
    packages=find_packages(include=["highway_jax", "highway_jax.*", "experiments", "experiments.*"]),
    package_data={
        "highway_jax": ["py.typed", "native/*.h", "functional/direct.cc", "stack/fused.cc", "stack/fused.cu"],
        "experiments": ["pages/*.jinja", "pages/*.js", "reproduction/*.jinja"],
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
        "docs": ["sphinx>=9.0.4", "furo>=2025.12.19", "myst-nb>=1.4", "sphinx-copybutton>=0.5.2"],
        "cuda12": [jax.format("[cuda12]")],
        "cuda13": [jax.format("[cuda13]")],
        "tpu": [jax.format("[tpu]")],
    },
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Education",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Typing :: Typed",
    ],
)
