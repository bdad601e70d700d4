"""What a TLS peer must show, and the files that say so: settings, contexts, pins, certificates, keys, causes.

Must not know of MQTT or of messages.
"""
