"""Load tests: they speak HTTP to the gateway and share no code with it."""
