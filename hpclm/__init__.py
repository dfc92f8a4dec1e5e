"""hpclm: a Slurm launcher and cluster toolkit for large language models."""

__version__ = "0.2.0"
