"""Services to compare the gateway with."""
