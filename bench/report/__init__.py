"""Records of measurements, and the tables and figures made of them."""
