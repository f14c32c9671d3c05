"""Runs that other runs have made."""
