"""The broker tool: real listeners, TLS, the same ports after a kill, state that survives it."""

from __future__ import annotations

import socket
import ssl

import pytest

from glec_fast.testbed import ToolError
from glec_fast.testbed import broker as broker_module
from glec_fast.testbed.broker import Broker, free_port
from glec_fast.testbed.subscriber import Subscriber

TIMEOUT_S = 10.0


def test_what_is_published_is_counted_by_identity_and_qos(broker, start_subscriber):
    subscriber = start_subscriber(broker, "a/#")
    with Subscriber(broker, "none", client_id="publisher") as publisher:
        for qos in (0, 1, 2):
            publisher._client.publish("a/b", f"payload {qos}", qos=qos)
        publisher._client.publish("a/b", "payload 2", qos=2)
        assert subscriber.wait_for(lambda arrivals: len(arrivals) == 4, TIMEOUT_S)
    assert subscriber.wait_for_end(TIMEOUT_S)
    assert subscriber.tally == {
        (("a/b", b"payload 0"), 0): 1,
        (("a/b", b"payload 1"), 1): 1,
        (("a/b", b"payload 2"), 2): 2,
    }


def test_a_broker_comes_back_on_its_port_after_stop_and_kill(broker):
    port, pid = broker.port, broker.pid
    broker.kill()
    assert not broker.is_running
    broker.start()
    assert (broker.port, broker.is_running) == (port, True)
    assert broker.pid != pid
    broker.restart()
    socket.create_connection((broker.host, port), TIMEOUT_S).close()
    assert broker.version().startswith("mosquitto ")


def test_a_saved_broker_keeps_a_retained_message_over_a_kill(persistent_broker, start_subscriber):
    with Subscriber(persistent_broker, "none", client_id="publisher") as publisher:
        publisher._client.publish("kept", "value", qos=1, retain=True).wait_for_publish(TIMEOUT_S)
        persistent_broker.kill(save_first=True)
    persistent_broker.start()
    subscriber = start_subscriber(persistent_broker, "kept")
    assert subscriber.wait_for_count(1, TIMEOUT_S)


def test_the_tls_listener_shows_a_certificate_of_the_authority(tls_broker, authority):
    context = ssl.create_default_context(cafile=str(authority.certificate_path))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    for name in ("localhost", "127.0.0.1"):
        with (
            socket.create_connection((tls_broker.host, tls_broker.tls_port), TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=name) as secured,
        ):
            assert secured.version() in ("TLSv1.2", "TLSv1.3")


def test_a_port_that_is_taken_meanwhile_is_given_up_for_another(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = iter([taken.getsockname()[1], free_port()])
        monkeypatch.setattr(broker_module, "free_port", lambda: next(ports))
        with Broker(tmp_path) as broker:
            assert broker.is_running
            assert broker.port != taken.getsockname()[1]


def test_what_mosquitto_refuses_is_said(tmp_path):
    with pytest.raises(ToolError, match=r"mosquitto did not start: .*no_such_setting"):
        Broker(tmp_path, settings=["no_such_setting true"]).start()


def test_without_mosquitto_the_error_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(broker_module.shutil, "which", lambda name: None)
    with pytest.raises(ToolError, match="sudo apt-get install mosquitto"):
        Broker(tmp_path)


def test_misuse_is_refused(tmp_path, broker):
    with pytest.raises(ToolError, match="needs a listener"):
        Broker(tmp_path, plain=False)
    with pytest.raises(ToolError, match="no TLS listener"):
        _ = broker.tls_port
    with pytest.raises(ToolError, match="running already"):
        broker.start()
    with pytest.raises(ToolError, match="saves nothing"):
        broker.kill(save_first=True)


def test_the_subscriber_says_why_it_cannot_subscribe(broker, start_broker):
    broker.stop()
    with pytest.raises(ToolError, match="cannot connect"):
        Subscriber(broker).start()
    closed = start_broker(settings=["allow_anonymous false"])
    with pytest.raises(ToolError, match="refused the connection: Not authorized"):
        Subscriber(closed).start()


def test_the_subscriber_misses_nothing_while_it_is_away(broker):
    with Subscriber(broker, "t") as subscriber, Subscriber(broker, "none", client_id="publisher") as publisher:
        publisher._client.publish("t", "before", qos=2)
        assert subscriber.wait_for_count(1)
        subscriber.leave()
        publisher._client.publish("t", "meanwhile", qos=1).wait_for_publish(TIMEOUT_S)
        subscriber.start()
        assert subscriber.wait_for_end(TIMEOUT_S)
        assert subscriber.wait_for_end(TIMEOUT_S)
        assert subscriber.payloads() == [b"before", b"meanwhile"]
