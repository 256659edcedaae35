"""Which blocks a layer has, as buffers that other code may copy, send, average or load."""
