"""Channels put into an order in which whole blocks hold what matters."""
