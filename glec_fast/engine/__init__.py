"""What drives one connection: how it is made and when again, whose session the server keeps, what a refusal means.

Must not know of SQL, of topics, or of paho's private names.
"""
