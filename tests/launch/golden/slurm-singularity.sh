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
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --open-mode=append
#SBATCH --output=/scratch/me/runs/gpt-20261120-120000-ab12/stages/ptune/slurm/%j_batch.log
#SBATCH --partition=gpu
#SBATCH --requeue
#SBATCH --reservation=course
#SBATCH --signal=USR2@120
#SBATCH --time=240

# command
export SUBMITIT_EXECUTOR=slurm
module load cuda/12.4
export HPCLM_IN_HF_HOME='=/data/hf, shared'
export NCCL_SOCKET_IFNAME=ib0
export ODD='it'"'"'s $HOME `x` #1'
export OMP_NUM_THREADS=8
export SINGULARITYENV_PREPEND_LD_LIBRARY_PATH=/.singularity.d/libs
export SINGULARITY_CLEANENV=false
export PYTHONPATH=/scratch/me/runs/gpt-20261120-120000-ab12/payload
export PYTHONNOUSERSITE=1
export HPCLM_RANK_VARIABLES='SLURM_PROCID SLURM_NTASKS SLURM_LOCALID SLURM_NODEID SLURMD_NODENAME'
unset SLURM_GPU_BIND

hpclm_stage=/scratch/me/runs/gpt-20261120-120000-ab12/stages/ptune
hpclm_submit=002
hpclm_limit_s=14400
hpclm_total_s=14400
hpclm_least_s=300
hpclm_preflight_s=0
hpclm_decision_s=300
hpclm_bad_node_list=/dev/null
hpclm_srun=(srun --unbuffered --cpus-per-task=8 --mpi=none)
hpclm_ranks=(singularity exec --nv --no-home --bind /scratch/me:/scratch/me --bind /data:/data:ro --pwd /scratch/me docker://nvcr.io/nvidia/nemo:24.07 sh -c 'exec env HF_HOME="${HPCLM_IN_HF_HOME#=}" "$@"' sh python3 -u -m hpclm.worker /scratch/me/runs/gpt-20261120-120000-ab12/stages/ptune 002)
hpclm_python=(singularity exec --nv --no-home --bind /scratch/me:/scratch/me --bind /data:/data:ro --pwd /scratch/me docker://nvcr.io/nvidia/nemo:24.07 sh -c 'exec env HF_HOME="${HPCLM_IN_HF_HOME#=}" "$@"' sh python3 -u)

. /scratch/me/runs/gpt-20261120-120000-ab12/payload/launch/supervise.sh
