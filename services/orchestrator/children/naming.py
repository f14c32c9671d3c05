"""Ids of child runs: the same call of the same step of the same run always means the same child."""

import hashlib

MOST_CHARS = 100


def child_run_id(run_id: str, step: int, number: int) -> str:
    """Id of the child run that call `number` of `step` asks for; within the bounds of ids at any depth."""
    named = f"{run_id}.{step}.{number}"
    return named if len(named) <= MOST_CHARS else f"child_{hashlib.sha256(named.encode()).hexdigest()}"


def child_thread_id(run_id: str) -> str:
    """Thread of a child run. Nobody else's turns stand in it."""
    return f"th_{run_id}"
