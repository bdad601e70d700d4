# The statements on the queue table, and on the extras beside it. Part of `_table.pyx`.

# A statement gives the interpreter to other threads, and may wait long for it: so many rows of a burst share one, but
# where a payload is larger than this, as what they are bound to is a copy.
cdef Py_ssize_t ROWS_A_STATEMENT = 16
cdef Py_ssize_t BURST_PAYLOAD_MAX = 4096
cdef str INSERT = (
    "INSERT INTO mqtt_offline_queue (id, topic, payload, qos, timestamp, ttl, retry_count)"
    " VALUES (?, ?, ?, ?, ?, ?, 0)")
cdef str INSERT_BURST = INSERT + ", (?, ?, ?, ?, ?, ?, 0)" * (ROWS_A_STATEMENT - 1)
# Between two tables of one declaration SQLite fills a page of an index before it begins another. Else it spreads each
# that is full over its neighbours, which a few rows at a time write again and again.
cdef str STAGE = "INSERT INTO temp.glec_staged VALUES (?, ?, ?, ?, ?, ?, 0)"
cdef str INSERT_STAGED = "INSERT INTO mqtt_offline_queue SELECT * FROM temp.glec_staged"
cdef str DELETE_STAGED = "DELETE FROM temp.glec_staged"
# Without a condition SQLite drops the pages as they are: a tenth of the cost, in time and in bytes written.
cdef str DELETE_ALL = "DELETE FROM mqtt_offline_queue"
cdef str IS_ANY_BETWEEN = "SELECT EXISTS (SELECT 1 FROM mqtt_offline_queue WHERE id BETWEEN ? AND ?)"
cdef str DELETE_RANGE = "DELETE FROM mqtt_offline_queue WHERE id BETWEEN ? AND ?"
# Two halves, each an index search, merged: a row value comparison would walk all rows that share the first timestamp.
# What is no time is behind all of them, or in front, and not looked at. What was refused so often that it is given up
# is of a type to be noticed by. What is passed over costs no look at the table.
cdef str NOT_GIVEN_UP = "iif(retry_count < ?4, {1}, NULL)"
cdef str NOT_PASSED = "id NOT BETWEEN ?5 AND ?6"
cdef str READ_AFTER = (
    f"SELECT id, {{0}}, timestamp, {NOT_GIVEN_UP} FROM mqtt_offline_queue WHERE timestamp = ?1 AND id > ?2"
    f" AND {NOT_PASSED}{{5}}"
    " UNION ALL"
    f" SELECT id, {{0}}, timestamp, {NOT_GIVEN_UP} FROM mqtt_offline_queue"
    f" WHERE timestamp > ?1 AND timestamp <= {TIME_MAX_MS} AND {NOT_PASSED}{{5}}"
    " ORDER BY timestamp, id LIMIT ?3")
cdef str READ_WITH_EXTRAS = (
    "SELECT q.*, {2} FROM (" + READ_AFTER + ") AS q LEFT JOIN glec_extras ON message_id = q.id"
    " ORDER BY q.timestamp, q.id")
# By `Lane`: all rows, those that are no alerts, alerts.
cdef tuple OF_LANE = ("", " AND qos <> 2", " AND qos = 2")
cdef str READ_ROW = "SELECT id, {0}, {3}, {1} FROM mqtt_offline_queue WHERE id = ?"
cdef str READ_ROW_WITH_EXTRAS = (
    "SELECT q.*, {2} FROM (" + READ_ROW + ") AS q LEFT JOIN glec_extras ON message_id = q.id")
cdef str INSERT_EXTRAS = (
    "INSERT INTO glec_extras (message_id, retain, expiry_interval, properties) VALUES (?, ?, ?, ?)")
cdef str DELETE_ALL_EXTRAS = "DELETE FROM glec_extras"
cdef str DELETE_EXTRAS = "DELETE FROM glec_extras WHERE message_id BETWEEN ? AND ?"
cdef str DELETE_ORPHANS = "DELETE FROM glec_extras WHERE message_id NOT IN (SELECT id FROM mqtt_offline_queue)"
cdef str IS_ANY_EXTRA = "SELECT EXISTS (SELECT 1 FROM glec_extras)"
# A head is a row without its payload: what it takes to drop it and to tell of it.
cdef str HEADS = (
    "SELECT id, coalesce(CAST(topic AS BLOB), x''), iif(typeof(qos) = 'integer' AND qos IN (1, 2), qos, 0),"
    " iif(typeof(timestamp) IN ('integer', 'real'), timestamp, 0) FROM mqtt_offline_queue")
cdef str HEADS_BESIDE = HEADS + " WHERE timestamp = ? AND id > ? ORDER BY id"
cdef str HEADS_AFTER = HEADS + " WHERE timestamp > ? ORDER BY timestamp, id"
# By QoS; a QoS that is none counts as 0.
cdef tuple OF_QOS = ("qos NOT IN (1, 2)", "qos = 1", "qos = 2")
cdef str HEADS_OF_BESIDE = HEADS + " WHERE timestamp = ? AND id > ? AND {} ORDER BY id"
cdef str HEADS_OF_AFTER = HEADS + " WHERE timestamp > ? AND {} ORDER BY timestamp, id"
cdef str TELEMETRY_BETWEEN = HEADS + " WHERE id > ? AND id <= ? AND qos NOT IN (1, 2) ORDER BY id"
cdef str COUNT_OF_TELEMETRY = "SELECT count(*), coalesce(min(id), 0) FROM mqtt_offline_queue WHERE qos NOT IN (1, 2)"
cdef str ID_OF_TELEMETRY = "SELECT id FROM mqtt_offline_queue WHERE qos NOT IN (1, 2) ORDER BY id LIMIT 1 OFFSET ?"
# What no PUBLISH can be made of.
cdef str HEADS_EXPIRED = HEADS + " WHERE ttl < ?"
cdef str HEADS_GIVEN_UP = (
    HEADS + " WHERE retry_count >= ? AND typeof(retry_count) IN ('integer', 'real')")
cdef str READ_ALL = "SELECT id, {0}, {3}, {1}, {4} FROM mqtt_offline_queue ORDER BY timestamp, id"
# The columns of these statements as they are; and as they can be read where a TEXT is none, of types to be noticed by.
cdef tuple AS_STORED = (
    "topic, payload, qos", "ttl", "retain, expiry_interval, properties", "timestamp", "coalesce(retry_count, 0)")
cdef tuple AS_ODD = (
    "NULL, NULL, NULL", "NULL", ", ".join(
        [f"iif(typeof({name}) = 'text', x'', {name})" for name in ("retain", "expiry_interval", "properties")]),
    "NULL", "NULL")
cdef tuple READ_AFTER_STORED = tuple([READ_AFTER.format(*AS_STORED, lane) for lane in OF_LANE])
cdef tuple READ_WITH_EXTRAS_STORED = tuple([READ_WITH_EXTRAS.format(*AS_STORED, lane) for lane in OF_LANE])
# With a bound it goes along the index, and ends at the first; without, all rows are sorted for it.
cdef tuple FIRST_OF_LANE = tuple([
    "SELECT timestamp, id FROM mqtt_offline_queue"
    f" WHERE timestamp <= {TIME_MAX_MS}{lane} ORDER BY timestamp, id LIMIT 1" for lane in OF_LANE])
# Where a TEXT need not be one, and a number need not be one either.
cdef str ODD_NUMBER = "iif(typeof({0}) = 'text', CAST({0} AS BLOB), {0})"
cdef str READ_ODD = (
    "SELECT CAST(topic AS BLOB), CAST(payload AS BLOB), typeof(payload), "
    + ", ".join([ODD_NUMBER.format(name) for name in ("qos", "timestamp", "ttl", "retry_count")])
    + " FROM mqtt_offline_queue WHERE id = ?")
cdef str MOVE_TIMES = (
    "UPDATE mqtt_offline_queue"
    " SET timestamp = iif(timestamp BETWEEN -?3 AND ?3, timestamp + ?1, timestamp),"
    " ttl = iif(ttl BETWEEN -?3 AND ?3, ttl + ?1, ttl)"
    " WHERE id >= ?2")

cdef str OLDEST = (
    f"SELECT min(timestamp) FROM mqtt_offline_queue WHERE timestamp BETWEEN 0 AND {TIME_MAX_MS}"
    " AND id NOT BETWEEN ? AND ?")
cdef str STRANGERS = "SELECT id FROM mqtt_offline_queue WHERE id > ? ORDER BY timestamp, id"
cdef str ADOPT = (
    "UPDATE mqtt_offline_queue SET id = ?2, timestamp = ?3,"
    " ttl = CASE WHEN typeof(ttl) IN ('integer', 'real') THEN CAST(ttl AS INTEGER) ELSE ?4 END WHERE id = ?1")
cdef str ADOPT_EXTRAS = "UPDATE OR REPLACE glec_extras SET message_id = ?2 WHERE message_id = ?1"
cdef str HAS_ROW = (
    "SELECT EXISTS (SELECT 1 FROM mqtt_offline_queue WHERE id = ? AND topic = ? AND payload IS ? AND timestamp = ?)")
cdef str SET_LAST_ID = "UPDATE sqlite_sequence SET seq = ? WHERE name = 'mqtt_offline_queue'"
