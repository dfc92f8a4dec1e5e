"""Schedulers that start a run: Slurm through submitit, or a supervisor on this machine; and the Slurm client."""
