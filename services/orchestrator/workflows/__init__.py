"""Workflows as they are declared: steps, conditions and templates, checked when they are loaded."""
