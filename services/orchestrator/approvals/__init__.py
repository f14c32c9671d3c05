"""Interrupts: what a run asks of people before it goes on, and what they decide."""
