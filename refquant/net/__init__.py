"""Floor 3: small networks, float and quantized."""
