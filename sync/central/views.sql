-- The dashboard's contract. Columns are only ever added, at the end.
--
-- Views run as the owner, so a reader needs no right on a table; each filters its rows by the tenants of the login that asks,
-- and security_barrier keeps a reader's own functions from seeing a row before that filter does. A call is what its own node says:
-- another, perhaps of another fleet, may send rows with its id, and nobody sees them there.

-- Whether the login sees every tenant: the owner and its members, and readers without a tenant.
create or replace function recorder.sees_all() returns boolean
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select exists (select from recorder.readers r where r.role = session_user and r.tenant is null)
        or exists (select from pg_namespace s where s.nspname = 'recorder' and pg_has_role(session_user, s.nspowner, 'member'))
$$;

-- The tenants that the login sees.
create or replace function recorder.my_tenants() returns text[]
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$ select coalesce(array_agg(r.tenant), '{}') from recorder.readers r where r.role = session_user $$;

-- Each call from its first second, and what is still owed for it.
create or replace view recorder.call_list with (security_barrier) as
select
    c.call_id, c.external_id, c.tenant, c.node_id, n.label as node_label, n.fleet,
    c.direction, c.from_number, c.to_number, c.agent, c.tags,
    c.state, c.started_at, c.ended_at, c.end_reason, c.duration_s,
    c.recording, c.not_recording_reason, c.partial,
    a.segments_known,
    a.segments_stored,
    a.segments_known - a.segments_stored as audio_owed,  -- segments whose file the store does not hold, as far as we know
    a.seconds_recorded,                                  -- of the longest track
    g.gaps,
    c.received_at
from recorder.calls c
left join recorder.nodes n on n.node_id = c.node_id
cross join lateral (
    select
        coalesce(sum(t.known), 0)::bigint as segments_known,
        coalesce(sum(t.stored), 0)::bigint as segments_stored,
        coalesce(max(t.seconds), 0) as seconds_recorded
    from (
        select
            count(*) as known,
            count(*) filter (where o.state = 'stored') as stored,
            sum(s.frames / s.rate::double precision) as seconds
        from recorder.segments s
        left join recorder.objects o on o.call_id = s.call_id and o.object_id = s.segment_id and o.node_id = s.node_id
        where s.call_id = c.call_id and s.node_id = c.node_id
        group by s.track
    ) t
) a
cross join lateral (
    select count(*) as gaps from recorder.spans x
    where x.call_id = c.call_id and x.node_id = c.node_id and x.kind = 'gap'
) g
where (select recorder.sees_all()) or c.tenant = any ((select recorder.my_tenants())::text[]);

-- One call with everything that belongs to it, each kind as a JSON array in the order of the timeline.
create or replace view recorder.call_detail with (security_barrier) as
select
    c.call_id, c.external_id, c.tenant, c.node_id, n.label as node_label, n.fleet,
    c.direction, c.from_number, c.to_number, c.agent, c.tags, c.metadata, c.consent, c.tracks, c.pace,
    c.state, c.started_at, c.ended_at, c.end_reason, c.duration_s, c.recording, c.not_recording_reason, c.partial,
    (
        select coalesce(jsonb_agg(jsonb_build_object(
            'segment_id', s.segment_id, 'track', s.track, 'seq', s.seq,
            'first_sample', s.first_sample, 'frames', s.frames, 'rate', s.rate,
            'started_at', s.started_at, 'sealed_at', s.sealed_at, 'salvaged', s.salvaged, 'pcm_sha256', s.pcm_sha256,
            'peak_dbfs', s.peak_dbfs, 'rms_dbfs', s.rms_dbfs, 'clipped', s.clipped, 'waveform', s.waveform,
            'state', o.state, 'store_url', o.store_url, 'key', o.key, 'format', o.format,
            'file_bytes', o.file_bytes, 'file_sha256', o.file_sha256, 'stored_at', o.stored_at, 'last_error', o.last_error
        ) order by s.track, s.first_sample, s.seq), '[]')
        from recorder.segments s
        left join recorder.objects o on o.call_id = s.call_id and o.object_id = s.segment_id and o.node_id = s.node_id
        where s.call_id = c.call_id and s.node_id = c.node_id
    ) as segments,
    (
        select coalesce(jsonb_agg(jsonb_build_object(
            'n', x.n, 'track', x.track, 'kind', x.kind, 'start_s', x.start_s, 'end_s', x.end_s, 'reason', x.reason
        ) order by x.start_s, x.n), '[]')
        from recorder.spans x where x.call_id = c.call_id and x.node_id = c.node_id
    ) as spans,
    (
        select coalesce(jsonb_agg(jsonb_build_object(
            'n', m.n, 'role', m.role, 'text', m.text, 'start_s', m.start_s, 'end_s', m.end_s,
            'metadata', m.metadata, 'created_at', m.created_at
        ) order by coalesce(m.start_s, extract(epoch from m.created_at - c.started_at)), m.n), '[]')
        from recorder.messages m where m.call_id = c.call_id and m.node_id = c.node_id
    ) as messages,
    (
        select coalesce(jsonb_agg(jsonb_build_object(
            'n', u.n, 'kind', u.kind, 'quantity', u.quantity, 'unit', u.unit, 'provider', u.provider, 'model', u.model,
            'cost', u.cost, 'currency', u.currency, 'metadata', u.metadata, 'created_at', u.created_at
        ) order by u.n), '[]')
        from recorder.usage u where u.call_id = c.call_id and u.node_id = c.node_id
    ) as usage,
    (
        select coalesce(jsonb_agg(jsonb_build_object(
            'object_id', o.object_id, 'state', o.state, 'store_url', o.store_url, 'key', o.key, 'format', o.format,
            'file_bytes', o.file_bytes, 'file_sha256', o.file_sha256, 'pcm_sha256', o.pcm_sha256,
            'stored_at', o.stored_at, 'error_class', o.error_class, 'last_error', o.last_error
        ) order by o.key, o.object_id), '[]')
        from recorder.objects o where o.call_id = c.call_id and o.node_id = c.node_id
    ) as objects
from recorder.calls c
left join recorder.nodes n on n.node_id = c.node_id
where (select recorder.sees_all()) or c.tenant = any ((select recorder.my_tenants())::text[]);

-- How each node is. `oldest_unsynced_s` is what would be lost with its disk, and grows while it is silent.
create or replace view recorder.node_health with (security_barrier) as
select
    n.node_id, n.fleet, n.label, n.tenant, n.software, n.schema_version,
    n.enrolled_at, n.last_seen, n.next_within,
    now() > n.last_seen + 2 * n.next_within as stale,  -- two heartbeats missed
    n.live_calls, n.owed_changes, n.owed_objects, n.owed_bytes, n.quarantined,
    extract(epoch from now() - n.oldest_unsynced_at)::double precision as oldest_unsynced_s,
    n.disk_free_bytes, n.disk_total_bytes, n.skew_s,
    e.generation, e.cursor, e.started_at as epoch_started_at, e.reason as epoch_reason,
    (select max(old.refused_at) from recorder.epochs old where old.node_id = n.node_id) as clone_refused_at
from recorder.nodes n
left join recorder.epochs e on e.node_id = n.node_id and e.superseded_at is null
where (select recorder.sees_all()) or n.tenant = any ((select recorder.my_tenants())::text[]);

-- What needs a person, and what to do.
create or replace view recorder.problems with (security_barrier) as
select p.kind, p.node_id, n.label as node_label, n.fleet, p.tenant, p.call_id, p.item, p.at, p.problem, p.fix
from (
    select
        'object quarantined' as kind, o.node_id, c.tenant, o.call_id, o.object_id::text as item, o.received_at as at,
        coalesce(o.last_error, 'no error was given') as problem,
        'See `edge-recorder status` on the node; `edge-recorder retry` tries it again' as fix
    from recorder.objects o
    left join recorder.calls c on c.call_id = o.call_id and c.node_id = o.node_id
    where o.state = 'quarantined'
    union all
    select
        'row refused', q.node_id, m.tenant, null, q.epoch || '/' || q.seq, q.received_at, q.sqlstate || ': ' || q.error,
        'The row is kept in recorder.quarantine as it came; its audio stays on the node'
    from recorder.quarantine q
    left join recorder.nodes m on m.node_id = q.node_id
    union all
    select
        'node stale', m.node_id, m.tenant, null, m.node_id::text, m.last_seen, 'It missed two heartbeats',
        'See that the node runs, that `edge-recorder sync` runs on it, and that it reaches this database'
    from recorder.nodes m
    where now() > m.last_seen + 2 * m.next_within
    union all
    select
        'clone refused', m.node_id, m.tenant, null, e.epoch, e.refused_at,
        format('A superseded catalog of this node spoke again, %s times', e.refusals),
        'Two machines run one data_dir or a copy of it: stop one, and give it a data_dir of its own'
    from recorder.epochs e
    join recorder.nodes m on m.node_id = e.node_id
    where e.refused_at is not null
) p
left join recorder.nodes n on n.node_id = p.node_id
where (select recorder.sees_all()) or p.tenant = any ((select recorder.my_tenants())::text[]);

-- Audio that could not be recorded, with the reason.
create or replace view recorder.gaps with (security_barrier) as
select
    x.call_id, c.external_id, c.tenant, c.node_id, x.track, x.start_s, x.end_s, x.end_s - x.start_s as seconds, x.reason,
    c.started_at + make_interval(secs => x.start_s) as at
from recorder.spans x
join recorder.calls c on c.call_id = x.call_id and c.node_id = x.node_id
where x.kind = 'gap' and ((select recorder.sees_all()) or c.tenant = any ((select recorder.my_tenants())::text[]));

-- What bills are made of, by day (UTC).
create or replace view recorder.usage_by_day with (security_barrier) as
select
    (u.created_at at time zone 'UTC')::date as day, c.tenant, c.agent, u.kind, u.provider, u.model, u.unit, u.currency,
    sum(u.quantity) as quantity, sum(u.cost) as cost, count(distinct u.call_id) as calls
from recorder.usage u
join recorder.calls c on c.call_id = u.call_id and c.node_id = u.node_id
where (select recorder.sees_all()) or c.tenant = any ((select recorder.my_tenants())::text[])
group by 1, 2, 3, 4, 5, 6, 7, 8;
