"""Packaging: two import packages, `sparse_engine` and `sparse_kernels` (in kernels/)."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["sparse_engine", "sparse_engine.*"]),
        *find_packages("kernels"),
    ],
    package_dir={"sparse_kernels": "kernels/sparse_kernels"},
    package_data={
        "sparse_engine": ["py.typed", "configs/*/*.json", "planning/*.csv"],
        "sparse_kernels": ["py.typed", "cpu/source/*"],
    },
)
