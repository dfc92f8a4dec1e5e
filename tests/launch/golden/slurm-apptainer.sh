#!/bin/bash

# Parameters
#SBATCH --account=project-42
#SBATCH --chdir=/scratch/me/runs/gpt-20261120-120000-ab12/stages/ptune
#SBATCH --comment=hpclm:gpt-20261120-120000-ab12/ptune/002
#SBATCH --cpus-per-task=8
#SBATCH --exclusive
#SBATCH --gres=gpu:a100:4
#SBATCH --job-name=gpt.ptune
#SBATCH --mem=0
#SBATCH --no-requeue
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output=/scratch/me/runs/gpt-20261120-120000-ab12/stages/ptune/submitit/%j_batch.log
#SBATCH --partition=gpu
#SBATCH --reservation=course
#SBATCH --signal=USR2@120
#SBATCH --time=240

# setup
module load cuda/12.4
export APPTAINERENV_HF_HOME='/data/hf, shared'
export NCCL_SOCKET_IFNAME=ib0
export ODD='it'"'"'s $HOME `x` #1'
export OMP_NUM_THREADS=8
export PYTHONPATH=/scratch/me/runs/gpt-20261120-120000-ab12/payload
export PYTHONNOUSERSITE=1
hpclm_signal=-; trap 'hpclm_signal=TERM' TERM

# command
export SUBMITIT_EXECUTOR=slurm
srun --unbuffered --output /scratch/me/runs/gpt-20261120-120000-ab12/stages/ptune/submitit/%j_%t_log.out --cpus-per-task=8 --kill-on-bad-exit=1 --mpi=none apptainer exec --nv --no-home --bind /scratch/me:/scratch/me --bind /data:/data:ro --pwd /scratch/me docker://nvcr.io/nvidia/nemo:24.07 python3 -u -m submitit.core._submit /scratch/me/runs/gpt-20261120-120000-ab12/stages/ptune/submitit


# teardown
hpclm_code=$?
printf '%s %s %s\n' "$hpclm_code" "$(date +%s)" "$hpclm_signal" > /scratch/me/runs/gpt-20261120-120000-ab12/stages/ptune/submitit/"$SLURM_JOB_ID"_exit
exit "$hpclm_code"