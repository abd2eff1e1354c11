-- The catalog on one page. Rows are what `edge_recorder/model.py` describes; times are microseconds since 1970, UTC.
-- The triggers that fill `changes` are made from the entities: see triggers.sql.

-- Which node this is, and which life of its catalog: a new file is a new epoch.
CREATE TABLE identity (
    node_id    TEXT NOT NULL,
    epoch      TEXT NOT NULL,
    created_at INTEGER NOT NULL
) STRICT;

CREATE TABLE calls (
    call_id              TEXT PRIMARY KEY,
    external_id          TEXT,
    tenant               TEXT,
    direction            TEXT,
    from_number          TEXT,
    to_number            TEXT,
    agent                TEXT,
    tags                 TEXT NOT NULL,
    metadata             TEXT NOT NULL,
    consent              TEXT,
    recording            INTEGER NOT NULL,
    not_recording_reason TEXT,
    pace                 TEXT NOT NULL,
    tracks               TEXT NOT NULL,
    state                TEXT NOT NULL CHECK (state IN ('live', 'ended', 'interrupted')),
    started_at           INTEGER NOT NULL,
    ended_at             INTEGER,
    end_reason           TEXT,
    duration_s           REAL,
    partial              INTEGER NOT NULL
) STRICT;
CREATE INDEX calls_live ON calls (call_id) WHERE state = 'live';
CREATE INDEX calls_by_start ON calls (started_at);
CREATE INDEX calls_by_external_id ON calls (external_id) WHERE external_id IS NOT NULL;

CREATE TABLE segments (
    segment_id   TEXT PRIMARY KEY,
    call_id      TEXT NOT NULL,
    track        TEXT NOT NULL,
    seq          INTEGER NOT NULL,
    first_sample INTEGER NOT NULL,
    frames       INTEGER NOT NULL,
    rate         INTEGER NOT NULL,
    started_at   INTEGER NOT NULL,
    sealed_at    INTEGER NOT NULL,
    salvaged     INTEGER NOT NULL,
    pcm_sha256   TEXT NOT NULL,
    peak_dbfs    REAL,
    rms_dbfs     REAL,
    clipped      INTEGER NOT NULL,
    waveform     TEXT NOT NULL,
    UNIQUE (call_id, track, seq)
) STRICT;

CREATE TABLE spans (
    span_id TEXT PRIMARY KEY,
    call_id TEXT NOT NULL,
    n       INTEGER NOT NULL,
    track   TEXT,
    kind    TEXT NOT NULL,
    start_s REAL NOT NULL,
    end_s   REAL NOT NULL,
    reason  TEXT NOT NULL,
    UNIQUE (call_id, n)
) STRICT;

CREATE TABLE messages (
    message_id TEXT PRIMARY KEY,
    call_id    TEXT NOT NULL,
    n          INTEGER NOT NULL,
    role       TEXT NOT NULL,
    text       TEXT NOT NULL,
    start_s    REAL,
    end_s      REAL,
    metadata   TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    UNIQUE (call_id, n)
) STRICT;

CREATE TABLE usage (
    usage_id   TEXT PRIMARY KEY,
    call_id    TEXT NOT NULL,
    n          INTEGER NOT NULL,
    kind       TEXT NOT NULL,
    quantity   TEXT NOT NULL,
    unit       TEXT NOT NULL,
    provider   TEXT,
    model      TEXT,
    cost       TEXT,
    currency   TEXT,
    metadata   TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    UNIQUE (call_id, n)
) STRICT;

-- Custody: what the object store is owed, and so also the queue of the upload leg.
--     unknown --> stored        HEAD found it (after a rebuild)
--     unknown --> pending       HEAD did not
--     pending --> stored        the store accepted our checksums
--     pending --> quarantined   its tries are used up, or it can never succeed
--     quarantined --> pending   by a person
CREATE TABLE objects (
    object_id       TEXT PRIMARY KEY,
    call_id         TEXT NOT NULL,
    state           TEXT NOT NULL CHECK (state IN ('unknown', 'pending', 'stored', 'quarantined')),
    store_url       TEXT,               -- this and key, format: fixed before the first request
    key             TEXT,
    format          TEXT,
    file_bytes      INTEGER,
    file_sha256     TEXT,
    pcm_sha256      TEXT,
    stored_at       INTEGER,
    error_class     TEXT,
    last_error      TEXT,
    -- the agent's own; no change of these is told to the centre
    attempts        INTEGER NOT NULL DEFAULT 0,
    next_attempt_at INTEGER NOT NULL DEFAULT 0,
    receipt_at      INTEGER             -- when the centre said that it holds the stored row
) STRICT;
CREATE INDEX objects_owed ON objects (next_attempt_at) WHERE state IN ('unknown', 'pending');
CREATE INDEX objects_set_aside ON objects (object_id) WHERE state = 'quarantined';
CREATE INDEX objects_by_call ON objects (call_id);
CREATE INDEX objects_without_receipt ON objects (object_id) WHERE state = 'stored' AND receipt_at IS NULL;

-- What the centre is owed, in commit order without holes. Filled by triggers alone, in the transaction of the row itself.
CREATE TABLE changes (
    seq       INTEGER PRIMARY KEY AUTOINCREMENT,
    entity    TEXT NOT NULL,
    entity_id TEXT NOT NULL,
    call_id   TEXT NOT NULL,
    op        TEXT NOT NULL
) STRICT;

-- What the agent must remember between passes: cursor, batch token, breakers, last heartbeat. Values are JSON.
CREATE TABLE agent_state (
    name  TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;
