"""From the features of a probe to curves: heads, how they are fitted, and how good they are."""
