"""Other people's optimizers: what wraps what, and what state begins with."""
