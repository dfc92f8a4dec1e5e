#!/bin/bash
# What the local supervisor runs for this stage; it also enforces the time limit and writes the logs.

cd /scratch/me/runs/gpt-20261120-120000-ab12/stages/ptune || exit 1
export OMP_NUM_THREADS=8
export PYTHONNOUSERSITE=1
export PYTHONPATH=/scratch/me/runs/gpt-20261120-120000-ab12/payload

export HPCLM_WORLD_SIZE=4
for rank in $(seq 0 3); do
  HPCLM_RANK=$rank HPCLM_LOCAL_RANK=$((rank % 4)) HPCLM_NODE_RANK=$((rank / 4)) \
    /opt/env/bin/python -u -m hpclm.worker /scratch/me/runs/gpt-20261120-120000-ab12/stages/ptune 002 &
done
wait
