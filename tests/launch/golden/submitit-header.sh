#!/bin/bash

# Parameters
#SBATCH --account='project 42'
#SBATCH --array=0-7%2
#SBATCH --chdir='/scratch/me/runs/a b'
#SBATCH --comment=hpclm:gpt-20261120-120000-ab12/ptune/002
#SBATCH --constraint='a100|h100&ib'
#SBATCH --cpus-per-task=8
#SBATCH --exclude='node[1-3],node7'
#SBATCH --exclusive
#SBATCH --gpus-per-node=a100:4
#SBATCH --gres=gpu:a100:4
#SBATCH --job-name=gpt.ptune
#SBATCH --mem=4096M
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output='/scratch/me/runs/a b/slurm/%j_batch.log'
#SBATCH --partition=gpu,gpu-long
#SBATCH --qos=high
#SBATCH --requeue
#SBATCH --reservation='it'"'"'s $HOME `x` #1'
#SBATCH --signal=USR2@120
#SBATCH --time=240

# command
export SUBMITIT_EXECUTOR=slurm
export A='x y'
. /scratch/me/runs/a/payload/launch/supervise.sh
