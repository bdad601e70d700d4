"""robotframework-mqttlibrary: its keywords, in a suite that robot runs."""

import subprocess
import sys
from pathlib import Path

HOST, PORT = sys.argv[1:3]
Path("suite.robot").write_text(f"""*** Settings ***
Library    MQTTLibrary

*** Test Cases ***
Publish And Validate
    Connect    {HOST}    {PORT}    client_id=robot
    Subscribe    topic=compat/robot    qos=1    timeout=1    limit=0
    Publish    topic=compat/robot    message=hello    qos=1
    @{{messages}} =    Listen    topic=compat/robot    timeout=15    limit=1
    Should Be Equal    ${{messages}}[0]    hello
    Unsubscribe    compat/robot
    [Teardown]    Disconnect

Publish Single And Retained
    Publish Single    topic=compat/robot/retained    payload=kept    qos=1    retain=True    hostname={HOST}    port={PORT}
    Connect    {HOST}    {PORT}    client_id=robot2
    Subscribe And Validate    topic=compat/robot/retained    qos=1    payload=kept    timeout=15
    [Teardown]    Disconnect

No Broker
    Run Keyword And Expect Error    *    Connect    {HOST}    1    client_id=robot3
""")
ended = subprocess.run([sys.executable, "-m", "robot", "--console", "none", "suite.robot"], check=False)
import xml.etree.ElementTree as ElementTree

for test in ElementTree.parse("output.xml").iter("test"):
    status = test.find("status")
    print("RESULT", test.get("name"), status.get("status"), (status.text or "")[:80])
