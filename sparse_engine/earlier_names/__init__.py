"""Modules under the names they had before there were rooms; they go with the next release."""
