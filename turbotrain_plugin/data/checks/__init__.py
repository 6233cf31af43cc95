"""What can be wrong with a scene on disk; one subject per file, none changes anything."""
