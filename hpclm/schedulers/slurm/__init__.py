"""Slurm: its commands, and job scripts through submitit."""
