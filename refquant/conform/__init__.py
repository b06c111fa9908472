"""Floor 6: conformance. Cases, packs, planted faults, diagnosis, and the ways in which a backend is asked."""
