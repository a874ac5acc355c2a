"""What runs on the workers of a cluster: the probe, generation, and the rows between them."""
