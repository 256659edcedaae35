"""What networks predict, and how good that is."""
