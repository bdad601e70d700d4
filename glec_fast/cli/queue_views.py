"""`glec-fast queue stats|list|show|export|tail|purge PATH`: what waits in a queue file, also of one in use.

Reading disturbs nobody: each look takes a few hundred rows at most, so that the program that has the file never waits,
and its write-ahead log never grows for us.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from paho.mqtt.client import topic_matches_sub

from glec_fast.cli.arguments import count_of, id_of, topic_filter
from glec_fast.cli.in_doubt import run as run_in_doubt
from glec_fast.cli.listing import counted, moment, one_line, raw, shown, write_entries
from glec_fast.cli.queue_file import fetch
from glec_fast.cli.service_client import OF_THE_OWNER, add_socket_option, ask_owner_of
from glec_fast.durable.foreign_rows import as_number, as_time_ms
from glec_fast.errors import ConfigError, MessageError, QueueLockedError
from glec_fast.fleet.batches import decode_batch
from glec_fast.fleet.offline_queue import OfflineQueueManager

if TYPE_CHECKING:
    import argparse

    SubParsers = argparse._SubParsersAction[argparse.ArgumentParser]

_EXIT_NOT_DONE = 1
_PAGE_ROWS = 200
_COUNTED_ROWS = 5000
_FOLLOW_PERIOD_S = 1.0
_PAYLOAD = "CAST(payload AS BLOB)"
_SELECT = (
    f"SELECT id, CAST(topic AS BLOB), {raw('qos')}, {raw('timestamp')}, typeof(timestamp), {raw('ttl')},"
    f" {raw('retry_count')}, length({_PAYLOAD})"
)
_PLACE = "(timestamp, id) > (?, ?)"
_PLACE_IN_TEXT = "(timestamp, id) > (CAST(? AS TEXT), ?)"
_ORDER = f"FROM mqtt_offline_queue WHERE {_PLACE} ORDER BY timestamp, id LIMIT ?"
# Numbers compare below all text, so that no row is passed over.
_BEFORE_ALL = (float("-inf"), 0)


class Waiting(NamedTuple):
    """One message. Times are Unix milliseconds; payload_bytes as in the file; what is no number is as it stands."""

    id: int
    topic: str
    qos: int | float | str | None
    queued_ms: int
    expires_ms: int
    refusals: int | float | str | None
    payload_bytes: int
    payload: bytes | None = None


def add_views(subjects: SubParsers) -> None:
    """The subjects that read, and `purge`."""
    for name, run, text in (
        ("stats", run_stats, "how many messages wait, how old they are, what they take on the disk"),
        ("list", run_list, "the messages, the oldest first"),
        ("show", run_show, "one message with its payload"),
        ("export", run_export, "every message as a line of JSON"),
        ("tail", run_tail, "the messages that came last"),
        ("in-doubt", run_in_doubt, "QoS 2 messages that a broker may have lost, or have had twice"),
        ("purge", run_purge, "delete messages, also of the running service"),
    ):
        parser = subjects.add_parser(name, help=text, description=text)
        parser.add_argument("path", metavar="PATH", type=Path, help="the queue file")
        if name in ("list", "export", "tail", "purge"):
            parser.add_argument("--qos", type=int, choices=(0, 1, 2), help="of this QoS alone")
            parser.add_argument(
                "--topic", metavar="FILTER", type=topic_filter, help="of these topics alone; + and # as in MQTT"
            )
        if name in ("list", "tail"):
            default = 50 if name == "list" else 10
            parser.add_argument(
                "--limit", metavar="N", type=count_of, default=default, help="at most N (default: %(default)s)"
            )
        if name == "show":
            parser.add_argument("id", metavar="ID", type=id_of, help="as `list` shows it")
            parser.add_argument("--payload", action="store_true", help="write the payload alone, as it is")
        if name == "export":
            parser.add_argument("--jsonl", action="store_true", help="JSON Lines, as it is without it")
        if name == "tail":
            parser.add_argument("--follow", action="store_true", help="go on with what comes, until it is interrupted")
        if name == "purge":
            parser.add_argument("--yes", action="store_true", help="do not ask")
            add_socket_option(parser, OF_THE_OWNER)
        if name in ("stats", "list", "in-doubt"):
            parser.add_argument("--json", action="store_true", help="print JSON")
        parser.set_defaults(run=run)


def run_stats(arguments: argparse.Namespace) -> int:
    now_ms = time.time() * 1000
    by_qos = [
        {"qos": qos, "messages": count, "payload_bytes": total, "oldest_s": _age_s(first, now_ms)}
        for qos, (count, total, first) in sorted(_totals(arguments.path).items(), key=lambda each: str(each[0]))
    ]
    named = [arguments.path.with_name(arguments.path.name + suffix) for suffix in ("", "-wal", "-qos2")]
    disk_bytes = sum(path.stat().st_size for path in named if path.exists())
    messages, gathered = sum(row["messages"] for row in by_qos), _gathered(arguments.path)
    found = {"messages": messages, "gathered": gathered, "disk_bytes": disk_bytes, "by_qos": by_qos}
    if arguments.json:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return 0
    waiting = counted(found["messages"], "message waits", "messages wait")
    sys.stdout.write(f"{waiting}; the file and its logs take {disk_bytes:,} bytes\n")
    for row in by_qos:
        noun = "message " if row["messages"] == 1 else "messages"
        text = f"QoS {row['qos']}  {row['messages']:>9,} {noun}  {row['payload_bytes']:>12,} bytes of payload"
        sys.stdout.write(one_line(f"{text}  the oldest of {_span(row['oldest_s'])} ago") + "\n")
    if gathered:
        text = counted(
            gathered, "message is gathered for a batch, and is", "messages are gathered for a batch, and are"
        )
        sys.stdout.write(f"{text} sent as one, by the next start at the latest\n")
    return 0


def _gathered(path: Path) -> int:
    """So many messages wait for others, to be one with them: see `telemetry_batch_s`."""
    if not fetch(path, "SELECT 1 FROM sqlite_schema WHERE name = 'glec_gathered'"):
        # A file of another client.
        return 0
    payloads = fetch(path, "SELECT CAST(payload AS BLOB) FROM glec_gathered WHERE id = 1")
    try:
        return sum(len(decode_batch(payload)) for (payload,) in payloads)
    except MessageError:
        # What can be said of one that cannot be read.
        return 1


def _totals(path: Path) -> dict[Any, tuple[int, int, Any]]:
    """QoS -> messages, bytes of payload, the earliest time; a page at a time, so that no look is long."""
    # Without the payload itself, which is on other pages where it is large.
    query = (
        f"SELECT {raw('qos')}, count(*), total(size), {raw('min(timestamp)')}, max(id) FROM"  # noqa: S608
        " (SELECT id, qos, octet_length(payload) AS size, timestamp FROM mqtt_offline_queue WHERE id > ?1 ORDER BY id"
        " LIMIT ?2) GROUP BY qos"
    )
    found: dict[Any, tuple[int, int, Any]] = {}
    last_id = -(1 << 63)
    while rows := fetch(path, query, (last_id, _COUNTED_ROWS)):
        for stored, count, size, first, _ in rows:
            qos = _qos_of(stored)
            before = found.get(qos, (0, 0, first))
            found[qos] = (
                before[0] + count,
                before[1] + int(size),
                min(before[2], first, key=lambda at: as_time_ms(at, 0)),
            )
        last_id = max(row[4] for row in rows)
    return found


def run_list(arguments: argparse.Namespace) -> int:
    rows = islice(_matching(arguments), arguments.limit)
    is_all = arguments.qos is None and arguments.topic is None
    none = "no message waits" if is_all else "no such message waits"
    return write_entries(rows, _as_json, line_of, json_wanted=arguments.json, none=none)


def run_show(arguments: argparse.Namespace) -> int:
    query = f"{_SELECT}, {_PAYLOAD} FROM mqtt_offline_queue WHERE id = ?"
    rows = fetch(arguments.path, query, (arguments.id,))
    if not rows:
        sys.stderr.write(f"glec-fast: no message {arguments.id} waits: it was sent or dropped\n")
        return _EXIT_NOT_DONE
    row = _waiting(rows[0])
    if arguments.payload:
        sys.stdout.buffer.write(row.payload or b"")
        return 0
    for name, value in _as_json(row).items():
        text = value if name == "payload" else one_line(str(value))
        sys.stdout.write(f"{name:14} {text}\n")
    return 0


def run_export(arguments: argparse.Namespace) -> int:
    for row in _matching(arguments, with_payload=True):
        # JSON is UTF-8, whatever the terminal takes.
        sys.stdout.buffer.write(json.dumps(_as_json(row), ensure_ascii=False).encode() + b"\n")
    return 0


def run_tail(arguments: argparse.Namespace) -> int:
    last_id = 0
    newest = f"FROM mqtt_offline_queue ORDER BY id DESC LIMIT {_PAGE_ROWS}"
    rows = fetch(arguments.path, f"{_SELECT} {newest}", ())
    shown = [row for row in map(_waiting, reversed(rows)) if _is_wanted(row, arguments)]
    while True:
        sys.stdout.writelines(line_of(row) for row in shown[-arguments.limit :] if row.id > last_id)
        sys.stdout.flush()
        if not arguments.follow:
            return 0
        last_id = max([last_id, *(row[0] for row in rows)])
        time.sleep(_FOLLOW_PERIOD_S)
        query = f"{_SELECT} FROM mqtt_offline_queue WHERE id > ? ORDER BY id LIMIT ?"
        rows = fetch(arguments.path, query, (last_id, _PAGE_ROWS))
        shown = [row for row in map(_waiting, rows) if _is_wanted(row, arguments)]


def run_purge(arguments: argparse.Namespace) -> int:
    if arguments.qos is None and arguments.topic is None:
        raise ConfigError("say which messages: --topic FILTER, --qos N, or --topic '#' for all")
    ids = [row.id for row in _matching(arguments)]
    if not ids:
        sys.stdout.write("no such message waits\n")
        return 0
    if not arguments.yes:
        sys.stderr.write(f"delete {counted(len(ids), 'message', 'messages')} for good? [y/N] ")
        sys.stderr.flush()
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            sys.stderr.write("nothing was deleted\n")
            return _EXIT_NOT_DONE
    try:
        with OfflineQueueManager(arguments.path) as queue:
            deleted = sum(queue.delete(message_id) for message_id in ids)
    except QueueLockedError:
        count = sum(ask_owner_of(arguments.path, arguments.socket, "purge", ids, "asked"))
        text = f"the service deletes {counted(count, 'message', 'messages')}, but for what is on its way already"
        sys.stdout.write(text + "\n")
        return 0
    sys.stdout.write(f"{counted(deleted, 'message', 'messages')} deleted\n")
    return 0


def line_of(row: Waiting) -> str:
    refused = f", refused {'once' if row.refusals == 1 else f'{row.refusals} times'}" if row.refusals else ""
    text = f"{row.id:8} {moment(row.queued_ms)} QoS {row.qos} {row.payload_bytes:6} B {row.topic}{refused}"
    return one_line(text) + "\n"


def _matching(arguments: argparse.Namespace, *, with_payload: bool = False) -> Iterator[Waiting]:
    """The oldest first, a page at a time: between two, nothing of the file is held."""
    query = f"{_SELECT}{f', {_PAYLOAD}' if with_payload else ''} {_ORDER}"
    for row in map(_waiting, fetch(arguments.path, query.replace(_PLACE, "timestamp IS NULL"), (_PAGE_ROWS,))):
        if _is_wanted(row, arguments):
            yield row
    place: tuple[Any, Any] = _BEFORE_ALL
    while rows := fetch(arguments.path, query, (*place, _PAGE_ROWS)):
        yield from (row for row in map(_waiting, rows) if _is_wanted(row, arguments))
        message_id, _, _, queued, kind, *_ = rows[-1]
        place = queued, message_id
        query = query.replace(*((_PLACE, _PLACE_IN_TEXT) if kind == "text" else (_PLACE_IN_TEXT, _PLACE)))


def _is_wanted(row: Waiting, arguments: argparse.Namespace) -> bool:
    if arguments.qos is not None and row.qos != arguments.qos:
        return False
    return arguments.topic is None or topic_matches_sub(arguments.topic, row.topic)


def _waiting(row: tuple[Any, ...]) -> Waiting:
    message_id, topic, qos, queued, _, expires, refusals, size, *payload = row
    name = (topic or b"").decode("utf-8", "backslashreplace")
    times = as_time_ms(queued, 0), as_time_ms(expires, 0)
    return Waiting(message_id, name, _qos_of(qos), *times, shown(refusals), size or 0, *payload)


def _qos_of(stored: object) -> int | float | str | None:
    """As it is sent; what is no QoS as it stands."""
    level = as_number(stored)
    is_one = level in (0, 1, 2) and (level == stored or not isinstance(stored, float))
    return level if is_one else shown(stored)


def _as_json(row: Waiting) -> dict[str, Any]:
    content = row._asdict()
    payload = content.pop("payload")
    if payload is None:
        return content
    try:
        return {**content, "payload": payload.decode()}
    except UnicodeDecodeError:
        return {**content, "payload_hex": payload.hex()}


def _age_s(queued: object, now_ms: float) -> float:
    return round(max(now_ms - as_time_ms(queued, 0), 0) / 1000, 3)


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"
