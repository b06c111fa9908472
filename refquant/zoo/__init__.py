"""Floor 4: small trained networks and their data, embedded."""
