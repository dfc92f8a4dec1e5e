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
export ENROOT_LOGIN_SHELL=n
export ENROOT_MOUNT_HOME=n
export ENROOT_ROOTFS_WRITABLE=n
export HPCLM_IN_HF_HOME='=/data/hf, shared'
export NCCL_SOCKET_IFNAME=ib0
export NVIDIA_DRIVER_CAPABILITIES=compute,utility
export NVIDIA_VISIBLE_DEVICES=all
export ODD='it'"'"'s $HOME `x` #1'
export OMP_NUM_THREADS=8
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
hpclm_ranks=(enroot start --mount /scratch/me:/scratch/me:none:x-create=auto,rbind --mount /data:/data:none:x-create=auto,rbind,ro --env NVIDIA_VISIBLE_DEVICES --env NVIDIA_DRIVER_CAPABILITIES --env HPCLM_IN_HF_HOME --env CUDA_VISIBLE_DEVICES --env HPCLM_LOCAL_RANK --env HPCLM_NODE_RANK --env HPCLM_RANK --env HPCLM_RANK_VARIABLES --env HPCLM_RESTART --env HPCLM_WORLD_SIZE --env SLURMD_NODENAME --env SLURM_ARRAY_JOB_ID --env SLURM_ARRAY_TASK_ID --env SLURM_JOB_ID --env SLURM_JOB_NODELIST --env SLURM_JOB_NUM_NODES --env SLURM_LOCALID --env SLURM_NNODES --env SLURM_NODEID --env SLURM_NTASKS --env SLURM_PROCID --env SLURM_RESTART_COUNT --env SLURM_STEP_ID /images/nemo.sqsh sh -c '[ -n "${CUDA_VISIBLE_DEVICES}" ] || unset CUDA_VISIBLE_DEVICES; [ -n "${HPCLM_LOCAL_RANK}" ] || unset HPCLM_LOCAL_RANK; [ -n "${HPCLM_NODE_RANK}" ] || unset HPCLM_NODE_RANK; [ -n "${HPCLM_RANK}" ] || unset HPCLM_RANK; [ -n "${HPCLM_RANK_VARIABLES}" ] || unset HPCLM_RANK_VARIABLES; [ -n "${HPCLM_RESTART}" ] || unset HPCLM_RESTART; [ -n "${HPCLM_WORLD_SIZE}" ] || unset HPCLM_WORLD_SIZE; [ -n "${SLURMD_NODENAME}" ] || unset SLURMD_NODENAME; [ -n "${SLURM_ARRAY_JOB_ID}" ] || unset SLURM_ARRAY_JOB_ID; [ -n "${SLURM_ARRAY_TASK_ID}" ] || unset SLURM_ARRAY_TASK_ID; [ -n "${SLURM_JOB_ID}" ] || unset SLURM_JOB_ID; [ -n "${SLURM_JOB_NODELIST}" ] || unset SLURM_JOB_NODELIST; [ -n "${SLURM_JOB_NUM_NODES}" ] || unset SLURM_JOB_NUM_NODES; [ -n "${SLURM_LOCALID}" ] || unset SLURM_LOCALID; [ -n "${SLURM_NNODES}" ] || unset SLURM_NNODES; [ -n "${SLURM_NODEID}" ] || unset SLURM_NODEID; [ -n "${SLURM_NTASKS}" ] || unset SLURM_NTASKS; [ -n "${SLURM_PROCID}" ] || unset SLURM_PROCID; [ -n "${SLURM_RESTART_COUNT}" ] || unset SLURM_RESTART_COUNT; [ -n "${SLURM_STEP_ID}" ] || unset SLURM_STEP_ID; cd "$1" || exit; shift; exec env HF_HOME="${HPCLM_IN_HF_HOME#=}" "$@"' sh /scratch/me python3 -u -m hpclm.worker /scratch/me/runs/gpt-20261120-120000-ab12/stages/ptune 002)
hpclm_python=(enroot start --mount /scratch/me:/scratch/me:none:x-create=auto,rbind --mount /data:/data:none:x-create=auto,rbind,ro --env NVIDIA_VISIBLE_DEVICES --env NVIDIA_DRIVER_CAPABILITIES --env HPCLM_IN_HF_HOME --env CUDA_VISIBLE_DEVICES --env HPCLM_LOCAL_RANK --env HPCLM_NODE_RANK --env HPCLM_RANK --env HPCLM_RANK_VARIABLES --env HPCLM_RESTART --env HPCLM_WORLD_SIZE --env SLURMD_NODENAME --env SLURM_ARRAY_JOB_ID --env SLURM_ARRAY_TASK_ID --env SLURM_JOB_ID --env SLURM_JOB_NODELIST --env SLURM_JOB_NUM_NODES --env SLURM_LOCALID --env SLURM_NNODES --env SLURM_NODEID --env SLURM_NTASKS --env SLURM_PROCID --env SLURM_RESTART_COUNT --env SLURM_STEP_ID /images/nemo.sqsh sh -c '[ -n "${CUDA_VISIBLE_DEVICES}" ] || unset CUDA_VISIBLE_DEVICES; [ -n "${HPCLM_LOCAL_RANK}" ] || unset HPCLM_LOCAL_RANK; [ -n "${HPCLM_NODE_RANK}" ] || unset HPCLM_NODE_RANK; [ -n "${HPCLM_RANK}" ] || unset HPCLM_RANK; [ -n "${HPCLM_RANK_VARIABLES}" ] || unset HPCLM_RANK_VARIABLES; [ -n "${HPCLM_RESTART}" ] || unset HPCLM_RESTART; [ -n "${HPCLM_WORLD_SIZE}" ] || unset HPCLM_WORLD_SIZE; [ -n "${SLURMD_NODENAME}" ] || unset SLURMD_NODENAME; [ -n "${SLURM_ARRAY_JOB_ID}" ] || unset SLURM_ARRAY_JOB_ID; [ -n "${SLURM_ARRAY_TASK_ID}" ] || unset SLURM_ARRAY_TASK_ID; [ -n "${SLURM_JOB_ID}" ] || unset SLURM_JOB_ID; [ -n "${SLURM_JOB_NODELIST}" ] || unset SLURM_JOB_NODELIST; [ -n "${SLURM_JOB_NUM_NODES}" ] || unset SLURM_JOB_NUM_NODES; [ -n "${SLURM_LOCALID}" ] || unset SLURM_LOCALID; [ -n "${SLURM_NNODES}" ] || unset SLURM_NNODES; [ -n "${SLURM_NODEID}" ] || unset SLURM_NODEID; [ -n "${SLURM_NTASKS}" ] || unset SLURM_NTASKS; [ -n "${SLURM_PROCID}" ] || unset SLURM_PROCID; [ -n "${SLURM_RESTART_COUNT}" ] || unset SLURM_RESTART_COUNT; [ -n "${SLURM_STEP_ID}" ] || unset SLURM_STEP_ID; cd "$1" || exit; shift; exec env HF_HOME="${HPCLM_IN_HF_HOME#=}" "$@"' sh /scratch/me python3 -u)

. /scratch/me/runs/gpt-20261120-120000-ab12/payload/launch/supervise.sh
