"""Modules under the names they had before there were rooms; importing one warns."""
