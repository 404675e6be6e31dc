"""Maps along one tensor axis, and how they run."""
