-- Every statement on the catalog but the upserts, by name: `put.<table>` is made from the entities.

-- name: identity
-- Which node and which life of its catalog this is.
SELECT node_id, epoch FROM identity

-- name: check
PRAGMA quick_check(1)

-- name: objects.owe
-- A sealed segment's file is owed to the store. A rebuilt one is `unknown`.
INSERT INTO objects (object_id, call_id, state, pcm_sha256)
VALUES (:object_id, :call_id, :state, :pcm_sha256)
ON CONFLICT (object_id) DO NOTHING

-- name: objects.due
-- Owed objects of one store, or of none yet, whose time has come, with what is needed to name and describe their files.
-- Those put back last come last; rowid is the order in which they were sealed. A time too far ahead is of a clock that was set back.
SELECT s.*, o.object_id, o.state, o.store_url, o.key, o.format, o.attempts, c.started_at AS call_started_at
FROM objects AS o
JOIN segments AS s ON s.segment_id = o.object_id
JOIN calls AS c ON c.call_id = o.call_id
WHERE o.state IN ('unknown', 'pending') AND NOT o.next_attempt_at BETWEEN :now + 1 AND :latest
  AND (o.store_url IS NULL OR o.store_url = :store_url)
ORDER BY o.next_attempt_at, o.rowid
LIMIT :limit

-- name: objects.place
-- Where the object goes is fixed before its first request, so that a changed setting never stores it twice.
UPDATE objects SET store_url = :store_url, key = :key, format = :format
WHERE object_id = :id AND state IN ('unknown', 'pending') AND store_url IS NULL

-- name: objects.unplace
-- Undoes `objects.place` where the store's refusal of the first request proves that nothing was stored; `state` is as before.
UPDATE objects SET state = :state, store_url = NULL, key = NULL, format = NULL
WHERE object_id = :id AND state = 'pending' AND (store_url, key, format) IS (:store_url, :key, :format)

-- name: objects.mark_missing
-- unknown --> pending: the store does not have it.
UPDATE objects SET state = 'pending' WHERE object_id = :id AND state = 'unknown'

-- name: objects.mark_stored
-- unknown, pending --> stored: the store holds the file with these hashes.
UPDATE objects
SET state = 'stored', file_bytes = :file_bytes, file_sha256 = :file_sha256, stored_at = :now,
    attempts = 0, error_class = NULL, last_error = NULL
WHERE object_id = :id AND state IN ('unknown', 'pending') AND store_url IS NOT NULL

-- name: objects.defer
-- unknown, pending: tried again at `next_attempt_at`, for its own failure (counted) or its destination's (not).
UPDATE objects
SET attempts = :attempts, next_attempt_at = :next_attempt_at, error_class = :error_class, last_error = :last_error
WHERE object_id = :id AND state IN ('unknown', 'pending') AND attempts = :tried

-- name: objects.quarantine
-- unknown, pending --> quarantined: kept, shown, and no longer tried.
UPDATE objects
SET state = 'quarantined', attempts = :tried + 1, error_class = :error_class, last_error = :last_error
WHERE object_id = :id AND state IN ('unknown', 'pending') AND attempts = :tried

-- name: objects.take_receipt
-- The centre holds the row that says that the object is stored.
UPDATE objects SET receipt_at = :now WHERE object_id = :object_id AND state = 'stored' AND receipt_at IS NULL

-- name: objects.take_held
-- The same, where the centre was asked what it holds: only if that is what we stored.
UPDATE objects SET receipt_at = :now
WHERE object_id = :object_id AND state = 'stored' AND receipt_at IS NULL
  AND (store_url, key, file_sha256, pcm_sha256, file_bytes) IS (:store_url, :key, :file_sha256, :pcm_sha256, :file_bytes)

-- name: objects.without_receipt
-- Stored objects for which no receipt came back; the centre is asked about them.
SELECT object_id FROM objects WHERE state = 'stored' AND receipt_at IS NULL AND object_id > :after
ORDER BY object_id LIMIT :limit

-- name: objects.counts
SELECT state, count(*) AS count, count(receipt_at) AS receipts FROM objects GROUP BY state

-- name: objects.problems
-- What waits for a person, or was refused last time.
SELECT object_id, call_id, state, attempts, error_class, last_error FROM objects
WHERE last_error IS NOT NULL ORDER BY state DESC, object_id LIMIT :limit

-- name: changes.pending
-- The next changes that the centre has not taken.
SELECT seq, entity, entity_id FROM changes WHERE seq > :cursor AND seq <= :last ORDER BY seq LIMIT :limit

-- name: changes.last
SELECT coalesce(max(seq), 0) AS seq FROM changes

-- name: changes.calls
-- The rows that changes speak of, in their current state; one statement for each entity.
SELECT * FROM calls WHERE call_id IN (SELECT value FROM json_each(:ids))

-- name: changes.segments
SELECT * FROM segments WHERE segment_id IN (SELECT value FROM json_each(:ids))

-- name: changes.spans
SELECT * FROM spans WHERE span_id IN (SELECT value FROM json_each(:ids))

-- name: changes.messages
SELECT * FROM messages WHERE message_id IN (SELECT value FROM json_each(:ids))

-- name: changes.usage
SELECT * FROM usage WHERE usage_id IN (SELECT value FROM json_each(:ids))

-- name: changes.objects
SELECT * FROM objects WHERE object_id IN (SELECT value FROM json_each(:ids))

-- name: backlog
-- What is still owed, and what of it would be lost with this disk. Where the push leg stands is its own row of agent_state,
-- unless that is of the epoch before this one.
WITH
    push AS (
        SELECT coalesce(max(value ->> '$.cursor'), 0) AS cursor FROM agent_state JOIN identity
        WHERE name = 'push' AND value ->> '$.epoch' = epoch
    ),
    owed AS (
        SELECT count(*) AS objects, coalesce(sum(2 * s.frames), 0) AS bytes, min(s.started_at) AS oldest,
               count(*) FILTER (WHERE o.store_url <> :store_url) AS elsewhere,
               group_concat(DISTINCT o.store_url) FILTER (WHERE o.store_url <> :store_url) AS elsewhere_urls
        FROM objects AS o LEFT JOIN segments AS s ON s.segment_id = o.object_id
        WHERE o.state IN ('unknown', 'pending')
    ),
    aside AS (
        SELECT count(*) AS objects, min(s.started_at) AS oldest
        FROM objects AS o LEFT JOIN segments AS s ON s.segment_id = o.object_id
        WHERE o.state = 'quarantined'
    ),
    next AS (
        SELECT c.started_at FROM changes AS x JOIN calls AS c ON c.call_id = x.call_id
        WHERE x.seq > (SELECT cursor FROM push) ORDER BY x.seq LIMIT 1
    )
SELECT (SELECT count(*) FROM calls WHERE state = 'live') AS live_calls,
       (SELECT coalesce(max(seq), 0) FROM changes) - push.cursor AS changes,
       owed.objects, owed.bytes, owed.elsewhere, owed.elsewhere_urls, aside.objects AS quarantined,
       (SELECT count(*) FROM objects WHERE state = 'stored' AND receipt_at IS NULL) AS without_receipt,
       min(coalesce(owed.oldest, aside.oldest), coalesce(aside.oldest, owed.oldest)) AS oldest_audio,
       (SELECT started_at FROM next) AS oldest_fact
FROM push, owed, aside

-- name: agent_state.get
SELECT value FROM agent_state WHERE name = :name

-- name: agent_state.put
INSERT INTO agent_state (name, value) VALUES (:name, :value) ON CONFLICT (name) DO UPDATE SET value = excluded.value

-- name: calls.list
-- Calls, latest first, with what of their audio is still owed.
SELECT c.*,
       (SELECT count(*) FROM segments AS s WHERE s.call_id = c.call_id) AS segments,
       (SELECT count(*) FROM objects AS o WHERE o.call_id = c.call_id AND o.state <> 'stored') AS audio_owed
FROM calls AS c
WHERE :external_id IS NULL OR c.external_id = :external_id
ORDER BY c.started_at DESC LIMIT :limit

-- name: calls.get
SELECT * FROM calls WHERE call_id = :call_id

-- name: calls.find
-- A call by its own id, four or more characters that it begins with, or the provider's id; latest first.
SELECT * FROM calls
WHERE call_id = :ref OR external_id = :ref OR (length(:ref) >= 4 AND substr(call_id, 1, length(:ref)) = :ref)
ORDER BY started_at DESC LIMIT 10

-- name: calls.live
SELECT call_id, started_at FROM calls WHERE state = 'live'

-- name: calls.all
SELECT call_id, started_at FROM calls ORDER BY call_id

-- name: segments.of_call
-- The segments of a call, in the order they are played, with their custody.
SELECT s.*, o.state, o.store_url, o.key, o.format, o.file_bytes, o.file_sha256, o.receipt_at
FROM segments AS s LEFT JOIN objects AS o ON o.object_id = s.segment_id
WHERE s.call_id = :call_id ORDER BY s.track, s.first_sample, s.seq

-- name: segments.keys
SELECT track, seq FROM segments WHERE call_id = :call_id

-- name: segments.counts
SELECT track, count(*) AS count FROM segments GROUP BY track

-- name: spans.of_call
SELECT * FROM spans WHERE call_id = :call_id ORDER BY start_s, n

-- name: messages.of_call
SELECT * FROM messages WHERE call_id = :call_id ORDER BY n

-- name: usage.of_call
SELECT * FROM usage WHERE call_id = :call_id ORDER BY n

-- name: counts
-- Rows of each entity.
SELECT 'calls' AS entity, count(*) AS count FROM calls
UNION ALL SELECT 'segments', count(*) FROM segments
UNION ALL SELECT 'spans', count(*) FROM spans
UNION ALL SELECT 'messages', count(*) FROM messages
UNION ALL SELECT 'usage', count(*) FROM usage
UNION ALL SELECT 'objects', count(*) FROM objects
