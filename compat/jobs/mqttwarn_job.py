"""mqttwarn: hands messages of one topic to another, by its service for MQTT and a format of its own."""

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

sys.path.remove(str(Path(__file__).parent))
import paho.mqtt.client as mqtt

HOST, PORT = sys.argv[1], int(sys.argv[2])
Path("mqttwarn.ini").write_text(f"""
[defaults]
hostname = '{HOST}'
port = {PORT}
clientid = 'mqttwarn-compat'
launch = file
functions = None
status_publish = True
status_topic = mqttwarn/$SYS

[config:file]
append_newline = True
targets = {{ 'log': ['{Path("out.log").absolute()}'] }}

[compat/mqttwarn]
targets = file:log
format = {{name}}: {{value}}
""")

with Path("mqttwarn.log").open("w") as log:
    program = subprocess.Popen([sys.executable, "-m", "mqttwarn", "--config-file=mqttwarn.ini"], stdout=log, stderr=log)
client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, "watcher")
up = threading.Event()
client.on_message = lambda *_: up.set()
client.on_connect = lambda client, *_: client.subscribe("mqttwarn/$SYS/#")
client.connect(HOST, PORT)
client.loop_start()
print("RESULT", up.wait(30))
wanted = [f"sensor: {number}" for number in range(20)]
for _ in range(30):
    # Its subscription comes behind its status.
    client.publish("compat/mqttwarn", '{"name": "first", "value": 0}', 1)
    time.sleep(0.5)
    if Path("out.log").exists():
        break
for number in range(20):
    client.publish("compat/mqttwarn", f'{{"name": "sensor", "value": {number}}}', number % 3).wait_for_publish(10)
lines = []
for _ in range(100):
    lines = sorted(line for line in Path("out.log").read_text().splitlines() if line.startswith("sensor"))
    if len(lines) >= 20:
        break
    time.sleep(0.1)
print("RESULT", lines == sorted(wanted))
program.send_signal(signal.SIGINT)
print("RESULT", program.wait(30))
client.disconnect()
client.loop_stop()
