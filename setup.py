"""Packages of the wheel: all below d2v, and conf as d2v.conf; everything else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(packages=[*find_packages(include=["d2v", "d2v.*"]), "d2v.conf"])
