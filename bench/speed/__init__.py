"""What all speed benchmarks share: cases, steps, clocks and checks."""
