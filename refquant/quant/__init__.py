"""Floor 2: one tensor. Specs, granularity, ranges, the quantizer and sums of terms."""
