"""A host of our own, with the contract of OpenCOOD and none of its code; for tests only."""
