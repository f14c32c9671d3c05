"""Threads as a whole: forked, rolled back, deleted, expired."""
