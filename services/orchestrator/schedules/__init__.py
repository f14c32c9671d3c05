"""Schedules: runs that start by the clock, once a tick, whoever of the replicas is there."""
