"""locust: a load of users that publish and subscribe over its MQTT client."""

import subprocess
import sys
from pathlib import Path

HOST, PORT = sys.argv[1:3]
Path("locustfile.py").write_text(f"""
from locust import task, events
from locust.contrib.mqtt import MqttUser
from locust.user.wait_time import constant

class User(MqttUser):
    host, port, transport, ws_path = "{HOST}", {PORT}, "tcp", "/mqtt"
    wait_time = constant(0.05)
    def on_start(self):
        for _ in range(100):
            if self.client.is_connected():
                break
            import time; time.sleep(0.1)
        self.client.subscribe("compat/locust")
    @task
    def say(self):
        self.client.publish("compat/locust", b"hello", qos=1)

@events.quitting.add_listener
def tell(environment, **_):
    print("RESULT failures", environment.stats.total.num_failures)
    names = sorted(each.name.split(":")[0] for each in environment.stats.entries.values())
    print("RESULT", names)
    print("RESULT", environment.stats.total.num_requests > 20)
""")
command = [
    sys.executable,
    "-m",
    "locust",
    "--headless",
    "-u",
    "3",
    "-r",
    "3",
    "-t",
    "5s",
    "-f",
    "locustfile.py",
    "--only-summary",
]
ended = subprocess.run(command, capture_output=True, text=True, check=False)
sys.stdout.write(ended.stdout)
sys.stderr.write(ended.stderr)
