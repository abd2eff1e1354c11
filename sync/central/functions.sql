-- The five functions that nodes may call (hello, ingest, ingest_refused, heartbeat, holds), and what they are made of.
-- Each of the five runs as the owner, trusts session_user alone, and is one transaction by itself.
--
--   RE001  diverged: this centre and the node do not continue each other; the node reseeds under a new epoch
--   RE002  incompatible: this centre is older than the node that speaks
--   42501  the login has no fleet, or the node is of another fleet
--
-- A superseded epoch is not raised but answered, {"refused": "superseded"}: raising would forget that it spoke.

-- What this centre understands of the nodes; a node that needs more is told so by hello.
create or replace function recorder.schema_version() returns integer
language sql immutable set search_path = pg_catalog, pg_temp
as $$ select 1 $$;

-- The session's fleet.
create or replace function recorder.my_fleet() returns text
language plpgsql stable set search_path = pg_catalog, pg_temp
as $$
declare
    mine text := (select f.name from recorder.fleets f where f.role = session_user);
begin
    if mine is null then
        raise exception 'login % belongs to no fleet of this centre', session_user using errcode = '42501';
    end if;
    return mine;
end
$$;

-- Nothing is acknowledged that this server could still forget. A function's own SET ends before the commit does, so this
-- lasts until the end of the transaction; a stronger setting (remote_apply) stays.
create or replace function recorder.commit_durably() returns void
language sql set search_path = pg_catalog, pg_temp
as $$
    select set_config('synchronous_commit', 'on', true)
    where current_setting('synchronous_commit') in ('off', 'local')
$$;

-- The node, locked; it must be of the session's fleet.
create or replace function recorder.lock_node(node uuid) returns recorder.nodes
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    mine  text := recorder.my_fleet();
    known recorder.nodes;
begin
    select n.* into known from recorder.nodes n where n.node_id = lock_node.node for update;
    if known.fleet <> mine then
        raise exception 'node % belongs to another fleet than %', node, mine using errcode = '42501';
    end if;
    return known;
end
$$;

-- The epoch that speaks, locked. One that was superseded is noted as a clone.
create or replace function recorder.lock_epoch(node uuid, epoch text) returns recorder.epochs
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    speaking recorder.epochs;
begin
    perform recorder.lock_node(node);
    update recorder.epochs e
    set refused_at = case when e.superseded_at is null then e.refused_at else now() end,
        refusals   = case when e.superseded_at is null then e.refusals else e.refusals + 1 end
    where e.node_id = lock_epoch.node and e.epoch = lock_epoch.epoch
    returning e.* into speaking;
    return speaking;
end
$$;

-- The same, of an epoch that must be known here.
create or replace function recorder.speak(node uuid, epoch text) returns recorder.epochs
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    speaking recorder.epochs := recorder.lock_epoch(node, epoch);
begin
    if speaking.epoch is null then
        raise exception 'epoch % of node % is not known here', epoch, node using errcode = 'RE001';
    end if;
    return speaking;
end
$$;

-- Move the cursor over first_seq..last_seq: true when that is new, false when this very batch was applied before.
create or replace function recorder.advance(
    at recorder.epochs, previous text, token text, first_seq bigint, last_seq bigint
) returns boolean
language plpgsql set search_path = pg_catalog, pg_temp
as $$
begin
    if at.token = advance.token and at.cursor = last_seq then
        return false;
    end if;
    if at.token is distinct from previous or token is null or token = previous
       or first_seq <> at.cursor + 1 or last_seq < first_seq
    then
        raise exception 'changes % to % do not follow change %, or the token before them is not ours',
            first_seq, last_seq, at.cursor using errcode = 'RE001';
    end if;
    update recorder.epochs e
    set token = advance.token, cursor = last_seq
    where e.node_id = at.node_id and e.epoch = at.epoch;
    return true;
end
$$;

-- The stored objects among `rows` that we hold just so: only these may ever be evicted.
create or replace function recorder.receipts(rows jsonb) returns jsonb
language sql stable set search_path = pg_catalog, pg_temp
as $$
    select coalesce(jsonb_agg(held.object_id), '[]')
    from jsonb_to_recordset(rows) as sent(entity text, "row" jsonb)
    cross join lateral jsonb_to_record(sent."row") as it(
        object_id uuid, call_id uuid, state text, store_url text, key text, file_sha256 text, pcm_sha256 text, file_bytes bigint)
    join recorder.objects held on held.call_id = it.call_id and held.object_id = it.object_id
    where sent.entity = 'objects' and it.state = 'stored' and held.state = 'stored'
      and (held.store_url, held.key, held.file_sha256, held.pcm_sha256, held.file_bytes)
          is not distinct from (it.store_url, it.key, it.file_sha256, it.pcm_sha256, it.file_bytes)
$$;

-- 1. Enrol a node in the login's fleet, and open its epoch. Saying it again changes nothing.
create or replace function recorder.hello(
    node uuid, epoch text, label text, tenant text, schema_version integer, software text, reason text
) returns jsonb
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    speaking recorder.epochs;
begin
    if schema_version > recorder.schema_version() then
        raise exception 'this centre knows schema %, the node speaks %', recorder.schema_version(), schema_version
            using errcode = 'RE002';
    end if;
    perform recorder.commit_durably();
    insert into recorder.nodes (node_id, fleet) values (node, recorder.my_fleet()) on conflict do nothing;
    speaking := recorder.lock_epoch(node, epoch);
    if speaking.superseded_at is not null then
        return jsonb_build_object('refused', 'superseded', 'superseded_at', speaking.superseded_at);
    end if;
    if speaking.epoch is null then
        update recorder.epochs e set superseded_at = now() where e.node_id = node and e.superseded_at is null;
        insert into recorder.epochs (node_id, epoch, generation, reason)
        select node, hello.epoch, coalesce(max(e.generation), 0) + 1, hello.reason
        from recorder.epochs e where e.node_id = node
        returning * into speaking;
    end if;
    update recorder.nodes n
    set label = hello.label, tenant = hello.tenant, software = hello.software, schema_version = hello.schema_version,
        last_seen = now()
    where n.node_id = node;
    return jsonb_build_object(
        'generation', speaking.generation, 'cursor', speaking.cursor, 'token', speaking.token,
        'schema_version', recorder.schema_version());
end
$$;

-- 2. Take one batch of changes: rows is [{"seq": 12, "entity": "segments", "row": {...}}, ...].
create or replace function recorder.ingest(
    node uuid, epoch text, previous text, token text, first_seq bigint, last_seq bigint, rows jsonb
) returns jsonb
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    speaking recorder.epochs;
begin
    perform recorder.commit_durably();
    speaking := recorder.speak(node, epoch);
    if speaking.superseded_at is not null then
        return jsonb_build_object('refused', 'superseded', 'superseded_at', speaking.superseded_at);
    end if;
    if recorder.advance(speaking, previous, token, first_seq, last_seq) then
        perform recorder.take(node, speaking.generation, first_seq, last_seq, rows);
    end if;
    return jsonb_build_object('cursor', last_seq, 'receipts', recorder.receipts(rows), 'erased', '[]'::jsonb);
end
$$;

-- 3. Set one row aside that ingest refused, as text, and move on.
create or replace function recorder.ingest_refused(
    node uuid, epoch text, previous text, token text, first_seq bigint, last_seq bigint,
    raw text, sqlstate text, error text
) returns jsonb
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    speaking recorder.epochs;
begin
    perform recorder.commit_durably();
    speaking := recorder.speak(node, epoch);
    if speaking.superseded_at is not null then
        return jsonb_build_object('refused', 'superseded', 'superseded_at', speaking.superseded_at);
    end if;
    if recorder.advance(speaking, previous, token, first_seq, last_seq) then
        insert into recorder.quarantine (node_id, epoch, seq, raw, sqlstate, error)
        values (node, ingest_refused.epoch, first_seq, raw, ingest_refused.sqlstate, error);
    end if;
    return jsonb_build_object('cursor', last_seq, 'receipts', '[]'::jsonb, 'erased', '[]'::jsonb);
end
$$;

-- 4. Note how the node is; tell it where we stand, and (one day) what we ask of it.
create or replace function recorder.heartbeat(
    node uuid, epoch text, health jsonb, next_within double precision
) returns jsonb
language plpgsql security definer set search_path = pg_catalog, pg_temp
as $$
declare
    speaking recorder.epochs := recorder.speak(node, epoch);
    micros   bigint := (extract(epoch from clock_timestamp()) * 1000000)::bigint;
begin
    if speaking.superseded_at is not null then
        return jsonb_build_object('refused', 'superseded', 'superseded_at', speaking.superseded_at);
    end if;
    update recorder.nodes n
    set last_seen          = now(),
        next_within        = make_interval(secs => heartbeat.next_within),
        skew_s             = ((health ->> 'clock')::bigint - micros) / 1e6,
        live_calls         = (health ->> 'live_calls')::bigint,
        owed_changes       = (health ->> 'owed_changes')::bigint,
        owed_objects       = (health ->> 'owed_objects')::bigint,
        owed_bytes         = (health ->> 'owed_bytes')::bigint,
        quarantined        = (health ->> 'quarantined')::bigint,
        oldest_unsynced_at = now() - make_interval(secs => (health ->> 'oldest_unsynced_s')::double precision),
        disk_free_bytes    = (health ->> 'disk_free_bytes')::bigint,
        disk_total_bytes   = (health ->> 'disk_total_bytes')::bigint
    where n.node_id = node;
    return jsonb_build_object(
        'cursor', speaking.cursor, 'token', speaking.token, 'server_time', micros, 'orders', '[]'::jsonb);
end
$$;

-- 5. Which of these objects we hold as stored, and where: asked when a receipt may be lost, after a rebuild, before eviction.
create or replace function recorder.holds(node uuid, object_ids uuid[]) returns jsonb
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select coalesce(jsonb_agg(jsonb_build_object(
            'object_id', o.object_id, 'store_url', o.store_url, 'key', o.key,
            'file_sha256', o.file_sha256, 'pcm_sha256', o.pcm_sha256, 'file_bytes', o.file_bytes)), '[]')
        from recorder.objects o
        join recorder.nodes n on n.node_id = o.node_id and n.fleet = recorder.my_fleet()
        where o.object_id = any (object_ids) and o.node_id = holds.node and o.state = 'stored');
end
$$;

-- The least UUIDv7 of an instant.
create or replace function recorder.uuid_floor(at timestamptz) returns uuid
language sql immutable set search_path = pg_catalog, pg_temp
as $$ select rpad(lpad(to_hex((extract(epoch from at) * 1000)::bigint), 12, '0'), 32, '0')::uuid $$;

-- Give the month of `day` (UTC) a partition of each fact table. Rows that came before it did move there from the default.
create or replace function recorder.make_partitions(day date) returns void
language plpgsql set search_path = pg_catalog, pg_temp
as $$
declare
    month timestamp := date_trunc('month', day::timestamp);
    low   uuid := recorder.uuid_floor(month at time zone 'UTC');
    high  uuid := recorder.uuid_floor((month + interval '1 month') at time zone 'UTC');
    fact  text;
    part  text;
begin
    foreach fact in array array['calls', 'segments', 'spans', 'messages', 'usage', 'objects'] loop
        part := fact || to_char(month, '_YYYY_MM');
        continue when to_regclass(format('recorder.%I', part)) is not null;
        execute format('create table recorder.%I (like recorder.%I including all)', part, fact);
        execute format('lock table recorder.%I in access exclusive mode', fact || '_default');
        execute format(
            'with moved as (delete from recorder.%I where call_id >= %L and call_id < %L returning *)
             insert into recorder.%I select * from moved', fact || '_default', low, high, part);
        execute format(
            'alter table recorder.%I attach partition recorder.%I for values from (%L) to (%L)', fact, part, low, high);
    end loop;
end
$$;
