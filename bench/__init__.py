"""Speed and memory reports; not installed."""
