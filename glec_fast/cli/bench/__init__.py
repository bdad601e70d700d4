"""`glec-fast bench`: what this client, and paho, reach on a broker of the user's own."""
