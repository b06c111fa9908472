"""Floor 7: plots and the self-contained page."""
