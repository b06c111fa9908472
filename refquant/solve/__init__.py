"""Floor 3: solvers whose answer carries its proof."""
