"""What a run leaves on disk, and what is loaded from it."""
