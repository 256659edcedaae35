"""Everything that a GPU is asked, in one command."""
