"""The account of one budget: its law, its journal on disk, and the market that callers ask for tokens."""
