"""Other people's formats, out of what conform/ holds."""
