"""Packaging of turbotrain_plugin; the tools' settings are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$',
    (HERE / "turbotrain_plugin" / "__init__.py").read_text(encoding="utf-8"),
    re.MULTILINE,
)

# The lower bounds are the oldest releases whose features we use.
REQUIREMENTS = [
    "torch>=2.3",
    "numpy>=1.26",
    "pyyaml>=6.0",
    "matplotlib>=3.8",
    "shapely>=2.0",
    "scipy>=1.11",
    "tqdm>=4.66",
    "tensorboard>=2.15",
    "setuptools>=68",  # torch.utils.tensorboard and spconv still import it at run time
]

EXTRAS = {
    # The spconv wheels clash with one another, so none is a hard dependency.
    "cpu": ["spconv>=2.3.8"],
    "cu118": ["spconv-cu118>=2.3.6"],
    "cu120": ["spconv-cu120>=2.3.6"],
    "cu124": ["spconv-cu124>=2.3.8"],
    "cu126": ["spconv-cu126>=2.3.8"],
    "torchjd": ["torchjd>=0.18"],
    "vis3d": ["open3d>=0.18"],
    "dev": [
        "hypothesis>=6.100",
        "mypy>=1.11",
        "pytest>=8.0",
        "pytest-timeout>=2.3",
        "pytest-xdist>=3.5",
        "ruff>=0.9",
        "torchjd[cagrad,quadprog-projector]>=0.18",  # solvers of its CAGrad and UPGrad
        "types-PyYAML",
        "types-tqdm",
    ],
}

# The hypes files live beside the package (a fixed top level) and travel inside it.
PACKAGES = [*find_packages(include=["turbotrain_plugin", "turbotrain_plugin.*"])]
HYPES = {
    "turbotrain_plugin.hypes_yaml": "hypes_yaml",
    "turbotrain_plugin.hypes_yaml._base": "hypes_yaml/_base",
    "turbotrain_plugin.hypes_yaml.ablations": "hypes_yaml/ablations",
    "turbotrain_plugin.hypes_yaml.pillars": "hypes_yaml/pillars",
    "turbotrain_plugin.hypes_yaml.tiny": "hypes_yaml/tiny",
    "turbotrain_plugin.hypes_yaml.tiny_second": "hypes_yaml/tiny_second",
}
PATCHES = {"turbotrain_plugin.patches": "patches"}

setup(
    name="turbotrain_plugin",
    version=VERSION.group(1) if VERSION else "0",
    description=(
        "TurboTrain (ICCV 2025): masked multi-agent pretraining and balanced fine-tuning of "
        "V2X cooperative perception and prediction, for OpenCOOD models and on its own."
    ),
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=[*PACKAGES, *HYPES, *PATCHES],
    package_dir={"turbotrain_plugin": "turbotrain_plugin", **HYPES, **PATCHES},
    package_data={
        "turbotrain_plugin": ["py.typed"],
        **{name: ["*.yaml"] for name in HYPES},
        **{name: ["*.patch", "README.md"] for name in PATCHES},
    },
    install_requires=REQUIREMENTS,
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": [
            "turbotrain = turbotrain_plugin.cli:main",
            "opencood = turbotrain_plugin.cli:main",
        ]
    },
    classifiers=[
        "License :: OSI Approved :: Apache Software License",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
    ],
)
