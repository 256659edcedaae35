"""Layers put in the place of others: everywhere they are held, with all that hangs on them."""
