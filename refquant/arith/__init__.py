"""Floor 1: numbers. Rounding, quotients and sums whose result is known exactly."""
