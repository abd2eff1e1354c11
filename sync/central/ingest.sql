-- Made by sync/central/generate.py from edge_recorder/catalog/entities.py; `make generate` writes it anew.

-- Take the rows of one batch, each entity with one statement.
create or replace function recorder.take(
    node uuid, generation bigint, first_seq bigint, last_seq bigint, rows jsonb
) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    sent     text[];
    in_range boolean;
begin
    select
        array_agg(distinct coalesce(r.entity, '')),
        count(*) = count(*) filter (where r.seq between first_seq and last_seq)
    into sent, in_range
    from jsonb_to_recordset(rows) as r(seq bigint, entity text);
    if not in_range then
        raise exception 'a row of this batch is not of its changes % to %', first_seq, last_seq using errcode = '22023';
    end if;
    if not sent <@ array['calls', 'segments', 'spans', 'messages', 'usage', 'objects'] then
        raise exception 'this centre does not know all of: %', array_to_string(sent, ', ') using errcode = 'RE002';
    end if;
    if 'calls' = any (sent) then
        perform recorder.take_calls(node, generation, rows);
    end if;
    if 'segments' = any (sent) then
        perform recorder.take_segments(node, generation, rows);
    end if;
    if 'spans' = any (sent) then
        perform recorder.take_spans(node, generation, rows);
    end if;
    if 'messages' = any (sent) then
        perform recorder.take_messages(node, generation, rows);
    end if;
    if 'usage' = any (sent) then
        perform recorder.take_usage(node, generation, rows);
    end if;
    if 'objects' = any (sent) then
        perform recorder.take_objects(node, generation, rows);
    end if;
end
$$;

-- calls: a row with partial only fills what is null.
create or replace function recorder.take_calls(node uuid, generation bigint, rows jsonb) returns void
language sql set search_path = pg_catalog, pg_temp
as $$
    insert into recorder.calls as held (
        call_id, external_id, tenant, direction, from_number, to_number, agent, tags, metadata, consent,
        recording, not_recording_reason, pace, tracks, state, started_at, ended_at, end_reason, duration_s,
        partial,
        node_id, generation, change_seq, extra
    )
    select distinct on (it.call_id)
        it.call_id, it.external_id, it.tenant, it.direction, it.from_number, it.to_number, it.agent,
        it.tags::jsonb, it.metadata::jsonb, it.consent::jsonb, it.recording, it.not_recording_reason,
        it.pace, it.tracks::jsonb, it.state, timestamptz 'epoch' + it.started_at * interval '1 microsecond',
        timestamptz 'epoch' + it.ended_at * interval '1 microsecond', it.end_reason, it.duration_s,
        it.partial,
        take_calls.node, take_calls.generation, sent.seq,
        nullif(sent."row" - array[
        'call_id', 'external_id', 'tenant', 'direction', 'from_number', 'to_number', 'agent', 'tags',
        'metadata', 'consent', 'recording', 'not_recording_reason', 'pace', 'tracks', 'state', 'started_at',
        'ended_at', 'end_reason', 'duration_s', 'partial'
        ], '{}')
    from jsonb_to_recordset(rows) as sent(seq bigint, entity text, "row" jsonb)
    cross join lateral jsonb_to_record(sent."row") as it(
        call_id uuid, external_id text, tenant text, direction text, from_number text, to_number text,
        agent text, tags text, metadata text, consent text, recording boolean, not_recording_reason text,
        pace text, tracks text, state text, started_at bigint, ended_at bigint, end_reason text,
        duration_s double precision, partial boolean
    )
    where sent.entity = 'calls'
    order by it.call_id, sent.seq desc
    on conflict (call_id) do update set
        external_id = case when excluded.partial then coalesce(held.external_id, excluded.external_id) else excluded.external_id end,
        tenant = case when excluded.partial then coalesce(held.tenant, excluded.tenant) else excluded.tenant end,
        direction = case when excluded.partial then coalesce(held.direction, excluded.direction) else excluded.direction end,
        from_number = case when excluded.partial then coalesce(held.from_number, excluded.from_number) else excluded.from_number end,
        to_number = case when excluded.partial then coalesce(held.to_number, excluded.to_number) else excluded.to_number end,
        agent = case when excluded.partial then coalesce(held.agent, excluded.agent) else excluded.agent end,
        tags = case when excluded.partial then held.tags else excluded.tags end,
        metadata = case when excluded.partial then held.metadata else excluded.metadata end,
        consent = case when excluded.partial then coalesce(held.consent, excluded.consent) else excluded.consent end,
        recording = case when excluded.partial then held.recording else excluded.recording end,
        not_recording_reason = case when excluded.partial then coalesce(held.not_recording_reason, excluded.not_recording_reason) else excluded.not_recording_reason end,
        pace = case when excluded.partial then held.pace else excluded.pace end,
        tracks = case when excluded.partial then held.tracks else excluded.tracks end,
        state = case when held.state in ('ended', 'interrupted') and (not held.partial or excluded.partial or excluded.state = 'live') then held.state else excluded.state end,
        started_at = case when excluded.partial then held.started_at else excluded.started_at end,
        ended_at = case
            when excluded.partial then coalesce(held.ended_at, excluded.ended_at)
            when held.state in ('ended', 'interrupted') and (not held.partial or excluded.partial or excluded.state = 'live') then held.ended_at
            else excluded.ended_at
            end,
        end_reason = case
            when excluded.partial then coalesce(held.end_reason, excluded.end_reason)
            when held.state in ('ended', 'interrupted') and (not held.partial or excluded.partial or excluded.state = 'live') then held.end_reason
            else excluded.end_reason
            end,
        duration_s = case
            when excluded.partial then coalesce(held.duration_s, excluded.duration_s)
            when held.state in ('ended', 'interrupted') and (not held.partial or excluded.partial or excluded.state = 'live') then held.duration_s
            else excluded.duration_s
            end,
        partial = held.partial and excluded.partial,
        extra = case when excluded.partial then coalesce(held.extra, excluded.extra) else excluded.extra end,
        generation = excluded.generation, change_seq = excluded.change_seq, received_at = excluded.received_at
    where held.node_id = excluded.node_id
      and (held.generation, held.change_seq) < (excluded.generation, excluded.change_seq)
$$;

-- segments: the later change wins.
create or replace function recorder.take_segments(node uuid, generation bigint, rows jsonb) returns void
language sql set search_path = pg_catalog, pg_temp
as $$
    insert into recorder.segments as held (
        segment_id, call_id, track, seq, first_sample, frames, rate, started_at, sealed_at, salvaged,
        pcm_sha256, peak_dbfs, rms_dbfs, clipped, waveform,
        node_id, generation, change_seq, extra
    )
    select distinct on (it.call_id, it.segment_id)
        it.segment_id, it.call_id, it.track, it.seq, it.first_sample, it.frames, it.rate,
        timestamptz 'epoch' + it.started_at * interval '1 microsecond',
        timestamptz 'epoch' + it.sealed_at * interval '1 microsecond', it.salvaged, it.pcm_sha256,
        it.peak_dbfs, it.rms_dbfs, it.clipped, it.waveform,
        take_segments.node, take_segments.generation, sent.seq,
        nullif(sent."row" - array[
        'segment_id', 'call_id', 'track', 'seq', 'first_sample', 'frames', 'rate', 'started_at', 'sealed_at',
        'salvaged', 'pcm_sha256', 'peak_dbfs', 'rms_dbfs', 'clipped', 'waveform'
        ], '{}')
    from jsonb_to_recordset(rows) as sent(seq bigint, entity text, "row" jsonb)
    cross join lateral jsonb_to_record(sent."row") as it(
        segment_id uuid, call_id uuid, track text, seq bigint, first_sample bigint, frames bigint,
        rate bigint, started_at bigint, sealed_at bigint, salvaged boolean, pcm_sha256 text,
        peak_dbfs double precision, rms_dbfs double precision, clipped bigint, waveform text
    )
    where sent.entity = 'segments'
    order by it.call_id, it.segment_id, sent.seq desc
    on conflict (call_id, segment_id) do update set
        track = excluded.track,
        seq = excluded.seq,
        first_sample = excluded.first_sample,
        frames = excluded.frames,
        rate = excluded.rate,
        started_at = excluded.started_at,
        sealed_at = excluded.sealed_at,
        salvaged = excluded.salvaged,
        pcm_sha256 = excluded.pcm_sha256,
        peak_dbfs = excluded.peak_dbfs,
        rms_dbfs = excluded.rms_dbfs,
        clipped = excluded.clipped,
        waveform = excluded.waveform,
        extra = excluded.extra,
        generation = excluded.generation, change_seq = excluded.change_seq, received_at = excluded.received_at
    where held.node_id = excluded.node_id
      and (held.generation, held.change_seq) < (excluded.generation, excluded.change_seq)
$$;

-- spans: the later change wins.
create or replace function recorder.take_spans(node uuid, generation bigint, rows jsonb) returns void
language sql set search_path = pg_catalog, pg_temp
as $$
    insert into recorder.spans as held (
        span_id, call_id, n, track, kind, start_s, end_s, reason,
        node_id, generation, change_seq, extra
    )
    select distinct on (it.call_id, it.span_id)
        it.span_id, it.call_id, it.n, it.track, it.kind, it.start_s, it.end_s, it.reason,
        take_spans.node, take_spans.generation, sent.seq,
        nullif(sent."row" - array[
        'span_id', 'call_id', 'n', 'track', 'kind', 'start_s', 'end_s', 'reason'
        ], '{}')
    from jsonb_to_recordset(rows) as sent(seq bigint, entity text, "row" jsonb)
    cross join lateral jsonb_to_record(sent."row") as it(
        span_id uuid, call_id uuid, n bigint, track text, kind text, start_s double precision,
        end_s double precision, reason text
    )
    where sent.entity = 'spans'
    order by it.call_id, it.span_id, sent.seq desc
    on conflict (call_id, span_id) do update set
        n = excluded.n,
        track = excluded.track,
        kind = excluded.kind,
        start_s = excluded.start_s,
        end_s = excluded.end_s,
        reason = excluded.reason,
        extra = excluded.extra,
        generation = excluded.generation, change_seq = excluded.change_seq, received_at = excluded.received_at
    where held.node_id = excluded.node_id
      and (held.generation, held.change_seq) < (excluded.generation, excluded.change_seq)
$$;

-- messages: the later change wins.
create or replace function recorder.take_messages(node uuid, generation bigint, rows jsonb) returns void
language sql set search_path = pg_catalog, pg_temp
as $$
    insert into recorder.messages as held (
        message_id, call_id, n, role, text, start_s, end_s, metadata, created_at,
        node_id, generation, change_seq, extra
    )
    select distinct on (it.call_id, it.message_id)
        it.message_id, it.call_id, it.n, it.role, it.text, it.start_s, it.end_s, it.metadata::jsonb,
        timestamptz 'epoch' + it.created_at * interval '1 microsecond',
        take_messages.node, take_messages.generation, sent.seq,
        nullif(sent."row" - array[
        'message_id', 'call_id', 'n', 'role', 'text', 'start_s', 'end_s', 'metadata', 'created_at'
        ], '{}')
    from jsonb_to_recordset(rows) as sent(seq bigint, entity text, "row" jsonb)
    cross join lateral jsonb_to_record(sent."row") as it(
        message_id uuid, call_id uuid, n bigint, role text, text text, start_s double precision,
        end_s double precision, metadata text, created_at bigint
    )
    where sent.entity = 'messages'
    order by it.call_id, it.message_id, sent.seq desc
    on conflict (call_id, message_id) do update set
        n = excluded.n,
        role = excluded.role,
        text = excluded.text,
        start_s = excluded.start_s,
        end_s = excluded.end_s,
        metadata = excluded.metadata,
        created_at = excluded.created_at,
        extra = excluded.extra,
        generation = excluded.generation, change_seq = excluded.change_seq, received_at = excluded.received_at
    where held.node_id = excluded.node_id
      and (held.generation, held.change_seq) < (excluded.generation, excluded.change_seq)
$$;

-- usage: the later change wins.
create or replace function recorder.take_usage(node uuid, generation bigint, rows jsonb) returns void
language sql set search_path = pg_catalog, pg_temp
as $$
    insert into recorder.usage as held (
        usage_id, call_id, n, kind, quantity, unit, provider, model, cost, currency, metadata, created_at,
        node_id, generation, change_seq, extra
    )
    select distinct on (it.call_id, it.usage_id)
        it.usage_id, it.call_id, it.n, it.kind, it.quantity, it.unit, it.provider, it.model, it.cost,
        it.currency, it.metadata::jsonb, timestamptz 'epoch' + it.created_at * interval '1 microsecond',
        take_usage.node, take_usage.generation, sent.seq,
        nullif(sent."row" - array[
        'usage_id', 'call_id', 'n', 'kind', 'quantity', 'unit', 'provider', 'model', 'cost', 'currency',
        'metadata', 'created_at'
        ], '{}')
    from jsonb_to_recordset(rows) as sent(seq bigint, entity text, "row" jsonb)
    cross join lateral jsonb_to_record(sent."row") as it(
        usage_id uuid, call_id uuid, n bigint, kind text, quantity numeric, unit text, provider text,
        model text, cost numeric, currency text, metadata text, created_at bigint
    )
    where sent.entity = 'usage'
    order by it.call_id, it.usage_id, sent.seq desc
    on conflict (call_id, usage_id) do update set
        n = excluded.n,
        kind = excluded.kind,
        quantity = excluded.quantity,
        unit = excluded.unit,
        provider = excluded.provider,
        model = excluded.model,
        cost = excluded.cost,
        currency = excluded.currency,
        metadata = excluded.metadata,
        created_at = excluded.created_at,
        extra = excluded.extra,
        generation = excluded.generation, change_seq = excluded.change_seq, received_at = excluded.received_at
    where held.node_id = excluded.node_id
      and (held.generation, held.change_seq) < (excluded.generation, excluded.change_seq)
$$;

-- objects: a row with state = 'unknown' only fills what is null.
create or replace function recorder.take_objects(node uuid, generation bigint, rows jsonb) returns void
language sql set search_path = pg_catalog, pg_temp
as $$
    insert into recorder.objects as held (
        object_id, call_id, state, store_url, key, format, file_bytes, file_sha256, pcm_sha256, stored_at,
        error_class, last_error,
        node_id, generation, change_seq, extra
    )
    select distinct on (it.call_id, it.object_id)
        it.object_id, it.call_id, it.state, it.store_url, it.key, it.format, it.file_bytes, it.file_sha256,
        it.pcm_sha256, timestamptz 'epoch' + it.stored_at * interval '1 microsecond', it.error_class,
        it.last_error,
        take_objects.node, take_objects.generation, sent.seq,
        nullif(sent."row" - array[
        'object_id', 'call_id', 'state', 'store_url', 'key', 'format', 'file_bytes', 'file_sha256',
        'pcm_sha256', 'stored_at', 'error_class', 'last_error'
        ], '{}')
    from jsonb_to_recordset(rows) as sent(seq bigint, entity text, "row" jsonb)
    cross join lateral jsonb_to_record(sent."row") as it(
        object_id uuid, call_id uuid, state text, store_url text, key text, format text, file_bytes bigint,
        file_sha256 text, pcm_sha256 text, stored_at bigint, error_class text, last_error text
    )
    where sent.entity = 'objects'
    order by it.call_id, it.object_id, sent.seq desc
    on conflict (call_id, object_id) do update set
        state = case when excluded.state = 'unknown' then held.state else excluded.state end,
        store_url = case when excluded.state = 'unknown' then coalesce(held.store_url, excluded.store_url) else excluded.store_url end,
        key = case when excluded.state = 'unknown' then coalesce(held.key, excluded.key) else excluded.key end,
        format = case when excluded.state = 'unknown' then coalesce(held.format, excluded.format) else excluded.format end,
        file_bytes = case when excluded.state = 'unknown' then coalesce(held.file_bytes, excluded.file_bytes) else excluded.file_bytes end,
        file_sha256 = case when excluded.state = 'unknown' then coalesce(held.file_sha256, excluded.file_sha256) else excluded.file_sha256 end,
        pcm_sha256 = case when excluded.state = 'unknown' then coalesce(held.pcm_sha256, excluded.pcm_sha256) else excluded.pcm_sha256 end,
        stored_at = case when excluded.state = 'unknown' then coalesce(held.stored_at, excluded.stored_at) else excluded.stored_at end,
        error_class = case when excluded.state = 'unknown' then coalesce(held.error_class, excluded.error_class) else excluded.error_class end,
        last_error = case when excluded.state = 'unknown' then coalesce(held.last_error, excluded.last_error) else excluded.last_error end,
        extra = case when excluded.state = 'unknown' then coalesce(held.extra, excluded.extra) else excluded.extra end,
        generation = excluded.generation, change_seq = excluded.change_seq, received_at = excluded.received_at
    where held.node_id = excluded.node_id
      and (held.generation, held.change_seq) < (excluded.generation, excluded.change_seq)
$$;
