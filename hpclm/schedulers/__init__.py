"""Who starts a run: Slurm through submitit, or a supervisor on this machine; and the client that asks Slurm."""
