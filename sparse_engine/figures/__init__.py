"""The style of all figures, and a figure of a layer's blocks; with matplotlib, without torch."""
