"""glec-fast with MQTT 3.1.1, as most of the others speak it."""

from __future__ import annotations

import publisher
from with_glec import GlecPublisher

import glec_fast.mqtt as mqtt


class OlderPublisher(GlecPublisher):
    protocol = mqtt.MQTTv311


if __name__ == "__main__":
    publisher.main(OlderPublisher)
