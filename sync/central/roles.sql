-- Roles and what each may touch. Roles belong to the whole cluster: another database's centre may have made them already,
-- or be making them now.
do $$
declare
    wanted text;
begin
    foreach wanted in array array['recorder_node', 'recorder_reader', 'recorder_eraser'] loop
        continue when exists (select from pg_roles where rolname = wanted);
        begin
            execute format('create role %I nologin', wanted);
        exception when duplicate_object or unique_violation then
            null;
        end;
    end loop;
end
$$;

revoke all on schema recorder from public;
revoke all on all tables in schema recorder from public;
revoke all on all functions in schema recorder from public;

-- Nodes: five functions, and no table.
grant usage on schema recorder to recorder_node;
grant execute on function
    recorder.hello(uuid, text, text, text, integer, text, text),
    recorder.ingest(uuid, text, text, text, bigint, bigint, jsonb),
    recorder.ingest_refused(uuid, text, text, text, bigint, bigint, text, text, text),
    recorder.heartbeat(uuid, text, jsonb, double precision),
    recorder.holds(uuid, uuid[])
to recorder_node;

-- Readers: the views, which show a login the tenants that recorder.readers gives it.
grant usage on schema recorder to recorder_reader;
grant select on
    recorder.call_list, recorder.call_detail, recorder.node_health, recorder.problems, recorder.gaps, recorder.usage_by_day
to recorder_reader;
grant execute on function recorder.sees_all(), recorder.my_tenants() to recorder_reader;

-- The eraser gets its rights with the orders.
grant usage on schema recorder to recorder_eraser;
