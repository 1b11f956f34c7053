"""The public HTTP interface and the operators' listener."""
