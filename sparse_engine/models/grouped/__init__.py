"""Several networks of one shape, computed as one."""
