"""Ray for a run: joining a cluster, the actors that a run lives on, and how many of them there are."""
