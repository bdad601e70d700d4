"""What a program does in the middle of our own work: in signal handlers and finalisers."""

from __future__ import annotations

import json

import pytest

from support import forked

# A signal's handler runs between two steps of Python, whichever they are. So does a trace function, at each of them.
HANDLER = """
import faulthandler, json, os, sys, tempfile
from pathlib import Path
import glec_fast
from paho.mqtt.enums import CallbackAPIVersion
from support.wire_reference import PUBLISH
from support.peer import Peer

faulthandler.dump_traceback_later(90, exit=True)
qos, with_acks, is_stored = json.loads(sys.argv[1])
peer = Peer()
stored = {"client_id": "c", "store": tempfile.mkdtemp() + "/queue.db"} if is_stored else {}
client = glec_fast.Client(CallbackAPIVersion.VERSION2, **stored)
client.max_inflight_messages_set(65_535)
client.connect("127.0.0.1", peer.port)
while not client.is_connected():
    client.loop(1)
ours = str(Path(glec_fast.__file__).parent)
handles = []
seen = set()
is_handling = False

def trace(frame, event, argument):
    global is_handling
    if not frame.f_code.co_filename.startswith(ours):
        return None
    frame.f_trace_opcodes = True
    step = frame.f_code, frame.f_lasti
    if not is_handling and step not in seen:
        seen.add(step)
        is_handling = True
        handles.append(client.publish("handler", b"%d" % len(handles), qos))
        is_handling = False
    return trace

first = client.publish("t", b"x", 1)
if with_acks:
    peer.sock.sendall(b"\\x40\\x02\\x00\\x01" + b"\\xd0\\x00")
sys.settrace(trace)
client.publish("t", b"x")
client.loop(1)
sys.settrace(None)
while client.want_write():
    client.loop(1)
if is_stored:
    # Its window is not that of the memory's: what is accepted is on disk.
    client.close()
    with glec_fast.OfflineQueueManager(stored["store"], 100_000) as queue:
        kept = [message for message in queue.dequeue_all() if message.payload != "x"]
    print(json.dumps([len(handles), len(kept), first.is_published()]), flush=True)
    os._exit(0)
client.disconnect()
peer.close()
sent = [packet for packet in peer.packets() if packet.kind == PUBLISH and b"handler" in packet.body]
print(json.dumps([len(handles), len(sent), first.is_published()]), flush=True)
os._exit(0)
"""


@pytest.mark.parametrize("with_acks", [False, True], ids=["writing", "reading"])
@pytest.mark.parametrize(("qos", "is_stored"), [(0, False), (1, False), (1, True), (2, True)])
def test_publishing_between_any_two_steps(qos: int, is_stored: bool, with_acks: bool) -> None:
    """No lock stands in the way, nor a wait for the disk, and each of them leaves once, or is in the queue."""
    ran = forked.run(["-c", HANDLER, json.dumps([qos, with_acks, is_stored])], 120)
    assert ran.returncode == 0, ran.stderr
    handled, sent, is_published = json.loads(ran.stdout)
    assert handled > 100
    assert sent == handled
    # What goes through the store is not sent yet, so that nothing acknowledges it.
    assert is_published == (with_acks and not is_stored)
