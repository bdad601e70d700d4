"""Ways to a broker: dialling its addresses, WebSocket frames, waiting for a socket, what came by the packet.

Must not know of messages, nor more of MQTT's packets than `protocol` says: where one ends, and whether it acknowledges.
"""
