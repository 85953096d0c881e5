"""Real servers that the tests start in temporary folders and end by pid."""
