"""What every request passes before a surface sees it."""
