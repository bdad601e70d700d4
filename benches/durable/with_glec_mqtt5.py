"""glec-fast with MQTT 5, as docs/guarantees.md advises for mosquitto, which resumes a session at once then."""

from __future__ import annotations

import publisher
from with_glec import GlecPublisher

import glec_fast.mqtt as mqtt


class Mqtt5Publisher(GlecPublisher):
    protocol = mqtt.MQTTv5


if __name__ == "__main__":
    publisher.main(Mqtt5Publisher)
