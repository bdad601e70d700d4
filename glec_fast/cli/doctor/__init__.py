"""`glec-fast doctor` and `glec-fast pin`: what stands between this gateway and its broker, and what to do about it.

They send no password to a peer that a manager would not send it to, and change nothing: neither the queue file nor the
session that the broker keeps for the device.
"""
