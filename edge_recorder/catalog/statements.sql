-- Every statement on the catalog but the upserts, by name: `put.<table>` is made from the entities.

-- name: identity
-- Which node and which life of its catalog this is.
SELECT node_id, epoch FROM identity

-- name: objects.owe
-- A sealed segment's file is owed to the store. A rebuilt one is `unknown`.
INSERT INTO objects (object_id, call_id, state, pcm_sha256)
VALUES (:object_id, :call_id, :state, :pcm_sha256)
ON CONFLICT (object_id) DO NOTHING

-- name: objects.due
-- Owed objects whose time has come, oldest call first, with what is needed to name and describe their files.
SELECT o.object_id, o.call_id, o.state, o.store_url, o.key, o.format, o.attempts, o.pcm_sha256,
       s.track, s.seq, s.first_sample, s.frames, s.rate, s.started_at, c.started_at AS call_started_at
FROM objects AS o
JOIN segments AS s ON s.segment_id = o.object_id
JOIN calls AS c ON c.call_id = o.call_id
WHERE o.state IN ('unknown', 'pending') AND o.next_attempt_at <= :now
ORDER BY o.next_attempt_at, o.object_id
LIMIT :limit

-- name: objects.place
-- Where the object goes is fixed before its first request, so that a changed setting never stores it twice.
UPDATE objects SET store_url = :store_url, key = :key, format = :format
WHERE object_id = :object_id AND state IN ('unknown', 'pending') AND store_url IS NULL

-- name: objects.mark_missing
-- unknown --> pending: the store does not have it.
UPDATE objects SET state = 'pending' WHERE object_id = :object_id AND state = 'unknown'

-- name: objects.mark_stored
-- unknown, pending --> stored: the store holds the file with these hashes.
UPDATE objects
SET state = 'stored', file_bytes = :file_bytes, file_sha256 = :file_sha256, stored_at = :now,
    attempts = 0, error_class = NULL, last_error = NULL
WHERE object_id = :object_id AND state IN ('unknown', 'pending')

-- name: objects.defer
-- The object's own failure, or its destination's: tried again at `next_attempt_at`.
UPDATE objects
SET attempts = :attempts, next_attempt_at = :next_attempt_at, error_class = :error_class, last_error = :last_error
WHERE object_id = :object_id AND state IN ('unknown', 'pending')

-- name: objects.quarantine
-- unknown, pending --> quarantined: kept, shown, and no longer tried.
UPDATE objects
SET state = 'quarantined', attempts = :attempts, error_class = :error_class, last_error = :last_error
WHERE object_id = :object_id AND state IN ('unknown', 'pending')

-- name: objects.take_receipt
-- The centre holds the row that says that the object is stored.
UPDATE objects SET receipt_at = :now WHERE object_id = :object_id AND state = 'stored' AND receipt_at IS NULL

-- name: objects.without_receipt
-- Stored objects whose change was pushed, but for which no receipt came back.
SELECT object_id FROM objects WHERE state = 'stored' AND receipt_at IS NULL LIMIT :limit

-- name: objects.counts
SELECT state, count(*) AS count, count(receipt_at) AS receipts FROM objects GROUP BY state

-- name: objects.next_due
-- When the next owed object's time comes, or NULL.
SELECT min(next_attempt_at) AS at FROM objects WHERE state IN ('unknown', 'pending')

-- name: objects.oldest_owed
-- The start of the oldest audio that exists on this node alone, or NULL.
SELECT min(s.started_at) AS at FROM objects AS o JOIN segments AS s ON s.segment_id = o.object_id WHERE o.state <> 'stored'

-- name: objects.problems
-- What waits for a person, or was refused last time.
SELECT object_id, call_id, state, attempts, error_class, last_error FROM objects
WHERE last_error IS NOT NULL ORDER BY state DESC, object_id LIMIT :limit

-- name: changes.pending
-- The next changes that the centre has not taken.
SELECT seq, entity, entity_id, call_id, op FROM changes WHERE seq > :cursor ORDER BY seq LIMIT :limit

-- name: changes.last
SELECT coalesce(max(seq), 0) AS seq FROM changes

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
-- A call by its own id, the beginning of that, or the provider's id; latest first.
SELECT * FROM calls WHERE call_id = :ref OR external_id = :ref OR call_id LIKE :ref || '%' ORDER BY started_at DESC LIMIT 2

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
