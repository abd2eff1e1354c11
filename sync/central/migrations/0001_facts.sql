-- The centre's tables. Who may read or call what is in roles.sql; functions.sql and ingest.sql write, views.sql shows.

-- One login each; what its nodes may touch is told by their fleet.
create table recorder.fleets (
    name       text primary key,
    role       text not null unique,  -- the login of its nodes; identity is session_user
    created_at timestamptz not null default now()
);

-- Who may see which tenant's calls through the views; a login that is not named here sees nothing.
create table recorder.readers (
    role   text not null,
    tenant text,  -- null: every tenant
    unique (role, tenant)
);

-- What each node last said of itself.
create table recorder.nodes (
    node_id            uuid primary key,
    fleet              text not null references recorder.fleets,
    label              text not null default '',
    tenant             text,
    software           text,
    schema_version     integer,
    enrolled_at        timestamptz not null default now(),
    last_seen          timestamptz not null default now(),
    next_within        interval not null default '60 seconds',  -- when it promised to speak again
    skew_s             double precision,   -- its clock less ours
    live_calls         bigint,
    owed_changes       bigint,             -- rows that we do not have yet
    owed_objects       bigint,             -- files that the store does not have yet
    owed_bytes         bigint,
    quarantined        bigint,             -- items there that need a person
    oldest_unsynced_at timestamptz,        -- a point in time, so that its age grows while the node is silent
    disk_free_bytes    bigint,
    disk_total_bytes   bigint
);

-- The lives of each node's catalog. The newest is current; an older one that speaks again is a clone.
create table recorder.epochs (
    node_id       uuid not null references recorder.nodes,
    epoch         text not null,
    generation    bigint not null,            -- 1, 2, ...: we number what a node calls by a random id
    token         text,                       -- of the last batch applied
    cursor        bigint not null default 0,  -- the last change applied
    reason        text not null default '',   -- why the node began it
    started_at    timestamptz not null default now(),
    superseded_at timestamptz,
    refused_at    timestamptz,                -- when it last spoke after that
    refusals      bigint not null default 0,
    primary key (node_id, epoch),
    unique (node_id, generation)
);

-- Rows that Postgres refused, as they came.
create table recorder.quarantine (
    node_id     uuid not null,
    epoch       text not null,
    seq         bigint not null,
    raw         text not null,
    sqlstate    text not null,
    error       text not null,
    received_at timestamptz not null default now(),
    primary key (node_id, epoch, seq)
);

-- The facts. Columns up to the blank line are the entity's (edge_recorder/model.py); then who sent the row, in which
-- generation, at which change of it, when that came, and what a newer node knows that we do not. A month is a range of
-- UUIDv7 call ids (recorder.make_partitions), so no time is in a key. Nothing here refers to anything: rows may come in any order.

create table recorder.calls (
    call_id              uuid not null,
    external_id          text,
    tenant               text,
    direction            text,
    from_number          text,
    to_number            text,
    agent                text,
    tags                 jsonb not null,
    metadata             jsonb not null,
    consent              jsonb,
    recording            boolean not null,
    not_recording_reason text,
    pace                 text not null,
    tracks               jsonb not null,
    state                text not null,  -- live -> ended | interrupted
    started_at           timestamptz not null,
    ended_at             timestamptz,
    end_reason           text,
    duration_s           double precision,
    partial              boolean not null,

    node_id     uuid not null,
    generation  bigint not null,
    change_seq  bigint not null,
    received_at timestamptz not null default now(),
    extra       jsonb,
    primary key (call_id)
) partition by range (call_id);

create table recorder.segments (
    segment_id   uuid not null,
    call_id      uuid not null,
    track        text not null,
    seq          bigint not null,
    first_sample bigint not null,
    frames       bigint not null,
    rate         bigint not null,
    started_at   timestamptz not null,
    sealed_at    timestamptz not null,
    salvaged     boolean not null,
    pcm_sha256   text not null,
    peak_dbfs    double precision,
    rms_dbfs     double precision,
    clipped      bigint not null,
    waveform     text not null,

    node_id     uuid not null,
    generation  bigint not null,
    change_seq  bigint not null,
    received_at timestamptz not null default now(),
    extra       jsonb,
    primary key (call_id, segment_id)
) partition by range (call_id);

create table recorder.spans (
    span_id uuid not null,
    call_id uuid not null,
    n       bigint not null,
    track   text,
    kind    text not null,
    start_s double precision not null,
    end_s   double precision not null,
    reason  text not null,

    node_id     uuid not null,
    generation  bigint not null,
    change_seq  bigint not null,
    received_at timestamptz not null default now(),
    extra       jsonb,
    primary key (call_id, span_id)
) partition by range (call_id);

create table recorder.messages (
    message_id uuid not null,
    call_id    uuid not null,
    n          bigint not null,
    role       text not null,
    text       text not null,
    start_s    double precision,
    end_s      double precision,
    metadata   jsonb not null,
    created_at timestamptz not null,

    node_id     uuid not null,
    generation  bigint not null,
    change_seq  bigint not null,
    received_at timestamptz not null default now(),
    extra       jsonb,
    primary key (call_id, message_id)
) partition by range (call_id);

create table recorder.usage (
    usage_id   uuid not null,
    call_id    uuid not null,
    n          bigint not null,
    kind       text not null,
    quantity   numeric not null,
    unit       text not null,
    provider   text,
    model      text,
    cost       numeric,
    currency   text,
    metadata   jsonb not null,
    created_at timestamptz not null,

    node_id     uuid not null,
    generation  bigint not null,
    change_seq  bigint not null,
    received_at timestamptz not null default now(),
    extra       jsonb,
    primary key (call_id, usage_id)
) partition by range (call_id);

create table recorder.objects (
    object_id   uuid not null,
    call_id     uuid not null,
    state       text not null,  -- pending | unknown -> stored | quarantined
    store_url   text,
    key         text,
    format      text,
    file_bytes  bigint,
    file_sha256 text,
    pcm_sha256  text,
    stored_at   timestamptz,
    error_class text,
    last_error  text,

    node_id     uuid not null,
    generation  bigint not null,
    change_seq  bigint not null,
    received_at timestamptz not null default now(),
    extra       jsonb,
    primary key (call_id, object_id)
) partition by range (call_id);

-- Where a row goes whose month has no partition.
create table recorder.calls_default    partition of recorder.calls    default;
create table recorder.segments_default partition of recorder.segments default;
create table recorder.spans_default    partition of recorder.spans    default;
create table recorder.messages_default partition of recorder.messages default;
create table recorder.usage_default    partition of recorder.usage    default;
create table recorder.objects_default  partition of recorder.objects  default;

create index calls_by_start       on recorder.calls (started_at desc);
create index calls_by_external_id on recorder.calls (external_id);
create index objects_by_id        on recorder.objects (object_id);               -- recorder.holds
create index objects_in_trouble   on recorder.objects (call_id) where state = 'quarantined';
create index gaps_by_call         on recorder.spans (call_id) where kind = 'gap';
create index usage_by_time        on recorder.usage (created_at);
