"""Which callbacks of `message_callback_add` a message is for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from paho.mqtt.matcher import MQTTMatcher

_SHARED = "$share/"


class Filters(MQTTMatcher):
    """paho's, in which a shared subscription's filter, `$share/group/filter`, matches what its `filter` does.

    That is what its messages have as topic (MQTT 5, 4.8.2). paho compares the topic with all of it.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        # group -> its filters. Several groups may have the same.
        self._of_groups: dict[str, MQTTMatcher] = {}

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(key, value)  # type: ignore[no-untyped-call]
        group, topic_filter = _shared(key)
        if topic_filter:
            self._of_groups.setdefault(group, MQTTMatcher())[topic_filter] = value

    def __delitem__(self, key: str) -> None:
        super().__delitem__(key)  # type: ignore[no-untyped-call]
        group, topic_filter = _shared(key)
        if topic_filter:
            del self._of_groups[group][topic_filter]

    def iter_match(self, topic: str) -> Iterator[Any]:
        """The values of all filters that match."""
        yield from super().iter_match(topic)  # type: ignore[no-untyped-call]
        for matcher in list(self._of_groups.values()):
            yield from matcher.iter_match(topic)


def _shared(key: str) -> tuple[str, str]:
    """(group, filter) of a shared subscription; ("", "") of any other."""
    if not key.startswith(_SHARED):
        return "", ""
    group, _, topic_filter = key[len(_SHARED) :].partition("/")
    return group, topic_filter


def topic_matches_sub(sub: str, topic: str) -> bool:
    """As paho's: whether `topic` matches the filter `sub`, which may be that of a shared subscription."""
    filters = Filters()
    filters[sub] = True
    return any(filters.iter_match(topic))
