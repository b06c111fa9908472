"""Floor 4: what quantization errors are, how they pile up, and what can be said of them before and after."""
