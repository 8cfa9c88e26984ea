"""Training jobs: work that outlives requests, replicas and nodes. The ledger is the one truth about them."""
