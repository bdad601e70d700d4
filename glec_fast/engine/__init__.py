"""What drives one connection: when to try again, what a refusal means.

Must not know of SQL, of topics, or of paho's private names.
"""
