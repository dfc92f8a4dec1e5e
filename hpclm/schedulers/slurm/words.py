"""Slurm's states and reasons in the words that users read."""

from __future__ import annotations

_STATES = {
    "PENDING": "pending",
    "CONFIGURING": "pending",
    "REQUEUED": "pending",
    "REQUEUE_FED": "pending",
    "REQUEUE_HOLD": "pending",
    "RESV_DEL_HOLD": "pending",
    "SPECIAL_EXIT": "pending",
    "RUNNING": "running",
    "COMPLETING": "running",
    "RESIZING": "running",
    "SIGNALING": "running",
    "STAGE_OUT": "running",
    "STOPPED": "running",
    "SUSPENDED": "running",
    "COMPLETED": "completed",
    "CANCELLED": "cancelled",
    "REVOKED": "cancelled",
    "FAILED": "failed",
    "LAUNCH_FAILED": "failed",
    "TIMEOUT": "timeout",
    "DEADLINE": "timeout",
    "NODE_FAIL": "node-fail",
    "BOOT_FAIL": "node-fail",
    "PREEMPTED": "preempted",
    "OUT_OF_MEMORY": "out-of-memory",
}

_PENDING = {
    "": "the scheduler has not looked at it yet",
    "Dependency": "waiting for the stage before it",
    "Priority": "jobs of higher priority come first",
    "Resources": "waiting for nodes to become free",
    "BeginTime": "its start time has not come",
    "JobHeldUser": "held by its user; `scontrol release` lets it go",
    "JobHeldAdmin": "held by an administrator",
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
    "BadConstraints": "no node has what it asks for",
}


def state_word(slurm_state: str) -> str:
    """One of `jobs.STATES` for a state of Slurm's (`CANCELLED by 1000`, `RUNNING+` too); `unknown` for a new one."""
    first = slurm_state.split()[0].rstrip("+").upper() if slurm_state.strip() else ""
    return _STATES.get(first, "unknown")


def pending_words(reason: str) -> str:
    """Why a job waits. Reasons of Slurm's that say it themselves are passed on as they are."""
    bare = reason.split(",")[0].strip("() ")
    if bare in ("None", "null"):
        bare = ""
    if bare in _PENDING:
        return _PENDING[bare]
    if bare.startswith(("QOS", "Assoc")):
        return f"a limit of the QOS or account is reached ({bare})"
    return bare
