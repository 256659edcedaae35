"""Which blocks of which layer are active: at the start, and after every update."""
