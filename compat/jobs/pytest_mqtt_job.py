"""pytest-mqtt: tests that use its fixture `capmqtt`, which records what is published."""

import subprocess
import sys
from pathlib import Path

HOST, PORT = sys.argv[1:3]
Path("test_capmqtt.py").write_text("""
import pytest
from pytest_mqtt.model import MqttMessage

def test_messages(capmqtt):
    for number in range(20):
        capmqtt.publish(topic="compat/pytest", payload=str(number), qos=number % 3)
    assert [each.payload for each in sorted(capmqtt.messages, key=lambda each: int(each.payload))] == [
        str(number).encode() for number in range(20)]

@pytest.mark.capmqtt_decode_utf8
def test_text(capmqtt):
    capmqtt.publish(topic="compat/pytest", payload="grüße")
    assert capmqtt.messages == [MqttMessage(topic="compat/pytest", payload="grüße", userdata=None)]

def test_records(capmqtt):
    capmqtt.publish(topic="compat/pytest", payload="x")
    assert capmqtt.records == [("compat/pytest", b"x", None)]
""")
command = [sys.executable, "-m", "pytest", "-v", "--no-header", "-p", "no:cacheprovider", "test_capmqtt.py"]
ended = subprocess.run(
    [*command, f"--mqtt-host={HOST}", f"--mqtt-port={PORT}"], capture_output=True, text=True, check=False
)
for line in ended.stdout.splitlines():
    if line.startswith("test_capmqtt.py::"):
        print("RESULT", line.partition(" [")[0].strip())
sys.stderr.write(ended.stdout + ended.stderr)
sys.exit(ended.returncode)
