"""Floor 5: post-training quantization of a whole network."""
