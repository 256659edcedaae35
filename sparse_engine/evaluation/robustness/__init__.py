"""What tickets are worth beyond the test split: corrupted, foreign and attacked images."""
