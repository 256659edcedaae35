"""The operators: their definition, their gradients and their plain references."""
