"""Fixtures and options shared by all tests."""
