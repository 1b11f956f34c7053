"""Simulated partners: they speak the real bytes over real sockets, each with a control port and a book of its own."""
