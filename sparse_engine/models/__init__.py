"""Networks by name, networks of several members, and what their layers compute."""
