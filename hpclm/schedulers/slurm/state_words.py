"""Slurm's states and reasons as users read them."""

from __future__ import annotations

from hpclm.core.states import StageState

_STATES = {
    "PENDING": StageState.PENDING,
    "CONFIGURING": StageState.PENDING,
    "REQUEUED": StageState.PENDING,
    "REQUEUE_FED": StageState.PENDING,
    "REQUEUE_HOLD": StageState.PENDING,
    "RESV_DEL_HOLD": StageState.PENDING,
    "SPECIAL_EXIT": StageState.PENDING,
    "RUNNING": StageState.RUNNING,
    "COMPLETING": StageState.RUNNING,
    "RESIZING": StageState.RUNNING,
    "SIGNALING": StageState.RUNNING,
    "STAGE_OUT": StageState.RUNNING,
    "STOPPED": StageState.RUNNING,
    "SUSPENDED": StageState.RUNNING,
    "COMPLETED": StageState.COMPLETED,
    "CANCELLED": StageState.CANCELLED,
    "REVOKED": StageState.CANCELLED,
    "FAILED": StageState.FAILED,
    "LAUNCH_FAILED": StageState.FAILED,
    "TIMEOUT": StageState.TIMEOUT,
    "DEADLINE": StageState.TIMEOUT,
    "NODE_FAIL": StageState.NODE_FAIL,
    "BOOT_FAIL": StageState.NODE_FAIL,
    "PREEMPTED": StageState.PREEMPTED,
    "OUT_OF_MEMORY": StageState.OUT_OF_MEMORY,
}

_PENDING = {
    "": "the scheduler has not looked at it yet",
    "Dependency": "waiting for the stage before it",
    "Priority": "jobs of higher priority come first",
    "Resources": "waiting for nodes to become free",
    "BeginTime": "its start time has not come",
    "JobHeldUser": "held by its user; `scontrol release` lets it go",
    "JobHeldAdmin": "held by an administrator",
    "launch failed requeued held": "held by Slurm, since a node could not start it: `scontrol release JOB` lets it go, "
    "`hpclm cancel` ends it",
    "JobHoldMaxRequeue": "held by Slurm, since it was requeued too often: `scontrol release JOB` lets it go",
    "Licenses": "waiting for a licence",
    "PartitionDown": "the partition is down",
    "PartitionInactive": "the partition is inactive",
    "PartitionNodeLimit": "asks for more nodes than the partition allows",
    "PartitionTimeLimit": "asks for more time than the partition allows",
    "ReqNodeNotAvail": "nodes it needs are down, drained or reserved",
    "ReservedForMaintenance": "nodes are reserved for maintenance",
    "Reservation": "waiting for its reservation",
    "AssociationJobLimit": "the account's limit of jobs is reached",
    "AssociationResourceLimit": "the account's limit of resources is reached",
    "QOSJobLimit": "the QOS's limit of jobs is reached",
    "QOSResourceLimit": "the QOS's limit of resources is reached",
    "InvalidAccount": "the account is not valid",
    "InvalidQOS": "the QOS is not valid",
    "NodeDown": "a node it needs is down",
    "BadConstraints": "no node meets its constraints",
}


def state_of(slurm_state: str) -> StageState:
    """hpclm's state for one of Slurm's (`CANCELLED by 1000`, `RUNNING+` too); `UNKNOWN` for a new one."""
    first = slurm_state.split()[0].rstrip("+").upper() if slurm_state.strip() else ""
    return _STATES.get(first, StageState.UNKNOWN)


def pending_reason(reason: str) -> str:
    """Why a job waits. Other Slurm reasons are shown unchanged."""
    bare = reason.split(",")[0].strip("() ")
    if bare in ("None", "null"):
        bare = ""
    if bare in _PENDING:
        return _PENDING[bare]
    if bare.startswith(("QOS", "Assoc")):
        return f"a limit of the QOS or account is reached ({bare})"
    return bare
