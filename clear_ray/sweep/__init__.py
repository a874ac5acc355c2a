"""What other policies would have done with recorded rollouts: every policy over a range of budgets, on the same answers."""
