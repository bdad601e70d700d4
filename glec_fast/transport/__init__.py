"""Ways to a broker: dialling its addresses, WebSocket frames, waiting for a socket.

Must not know of MQTT's packets or of messages.
"""
