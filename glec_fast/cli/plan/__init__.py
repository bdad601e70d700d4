"""`glec-fast plan`: how long a gateway may be offline, what its flash and its SIM go through, before it is built."""
