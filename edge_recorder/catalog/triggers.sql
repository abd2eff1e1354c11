-- Made from catalog/entities.py by `make generate`: do not edit.

CREATE TRIGGER calls_inserted AFTER INSERT ON calls
BEGIN
    INSERT INTO changes (entity, entity_id, call_id, op) VALUES ('calls', new.call_id, new.call_id, 'put');
END;

CREATE TRIGGER calls_updated AFTER UPDATE ON calls
WHEN new.call_id IS NOT old.call_id
    OR new.external_id IS NOT old.external_id
    OR new.tenant IS NOT old.tenant
    OR new.direction IS NOT old.direction
    OR new.from_number IS NOT old.from_number
    OR new.to_number IS NOT old.to_number
    OR new.agent IS NOT old.agent
    OR new.tags IS NOT old.tags
    OR new.metadata IS NOT old.metadata
    OR new.consent IS NOT old.consent
    OR new.recording IS NOT old.recording
    OR new.not_recording_reason IS NOT old.not_recording_reason
    OR new.pace IS NOT old.pace
    OR new.tracks IS NOT old.tracks
    OR new.state IS NOT old.state
    OR new.started_at IS NOT old.started_at
    OR new.ended_at IS NOT old.ended_at
    OR new.end_reason IS NOT old.end_reason
    OR new.duration_s IS NOT old.duration_s
    OR new.partial IS NOT old.partial
BEGIN
    INSERT INTO changes (entity, entity_id, call_id, op) VALUES ('calls', new.call_id, new.call_id, 'put');
END;

CREATE TRIGGER segments_inserted AFTER INSERT ON segments
BEGIN
    INSERT INTO changes (entity, entity_id, call_id, op) VALUES ('segments', new.segment_id, new.call_id, 'put');
END;

CREATE TRIGGER segments_updated AFTER UPDATE ON segments
WHEN new.segment_id IS NOT old.segment_id
    OR new.call_id IS NOT old.call_id
    OR new.track IS NOT old.track
    OR new.seq IS NOT old.seq
    OR new.first_sample IS NOT old.first_sample
    OR new.frames IS NOT old.frames
    OR new.rate IS NOT old.rate
    OR new.started_at IS NOT old.started_at
    OR new.sealed_at IS NOT old.sealed_at
    OR new.salvaged IS NOT old.salvaged
    OR new.pcm_sha256 IS NOT old.pcm_sha256
    OR new.peak_dbfs IS NOT old.peak_dbfs
    OR new.rms_dbfs IS NOT old.rms_dbfs
    OR new.clipped IS NOT old.clipped
    OR new.waveform IS NOT old.waveform
BEGIN
    INSERT INTO changes (entity, entity_id, call_id, op) VALUES ('segments', new.segment_id, new.call_id, 'put');
END;

CREATE TRIGGER spans_inserted AFTER INSERT ON spans
BEGIN
    INSERT INTO changes (entity, entity_id, call_id, op) VALUES ('spans', new.span_id, new.call_id, 'put');
END;

CREATE TRIGGER spans_updated AFTER UPDATE ON spans
WHEN new.span_id IS NOT old.span_id
    OR new.call_id IS NOT old.call_id
    OR new.n IS NOT old.n
    OR new.track IS NOT old.track
    OR new.kind IS NOT old.kind
    OR new.start_s IS NOT old.start_s
    OR new.end_s IS NOT old.end_s
    OR new.reason IS NOT old.reason
BEGIN
    INSERT INTO changes (entity, entity_id, call_id, op) VALUES ('spans', new.span_id, new.call_id, 'put');
END;

CREATE TRIGGER messages_inserted AFTER INSERT ON messages
BEGIN
    INSERT INTO changes (entity, entity_id, call_id, op) VALUES ('messages', new.message_id, new.call_id, 'put');
END;

CREATE TRIGGER messages_updated AFTER UPDATE ON messages
WHEN new.message_id IS NOT old.message_id
    OR new.call_id IS NOT old.call_id
    OR new.n IS NOT old.n
    OR new.role IS NOT old.role
    OR new.text IS NOT old.text
    OR new.start_s IS NOT old.start_s
    OR new.end_s IS NOT old.end_s
    OR new.metadata IS NOT old.metadata
    OR new.created_at IS NOT old.created_at
BEGIN
    INSERT INTO changes (entity, entity_id, call_id, op) VALUES ('messages', new.message_id, new.call_id, 'put');
END;

CREATE TRIGGER usage_inserted AFTER INSERT ON usage
BEGIN
    INSERT INTO changes (entity, entity_id, call_id, op) VALUES ('usage', new.usage_id, new.call_id, 'put');
END;

CREATE TRIGGER usage_updated AFTER UPDATE ON usage
WHEN new.usage_id IS NOT old.usage_id
    OR new.call_id IS NOT old.call_id
    OR new.n IS NOT old.n
    OR new.kind IS NOT old.kind
    OR new.quantity IS NOT old.quantity
    OR new.unit IS NOT old.unit
    OR new.provider IS NOT old.provider
    OR new.model IS NOT old.model
    OR new.cost IS NOT old.cost
    OR new.currency IS NOT old.currency
    OR new.metadata IS NOT old.metadata
    OR new.created_at IS NOT old.created_at
BEGIN
    INSERT INTO changes (entity, entity_id, call_id, op) VALUES ('usage', new.usage_id, new.call_id, 'put');
END;

CREATE TRIGGER objects_inserted AFTER INSERT ON objects
BEGIN
    INSERT INTO changes (entity, entity_id, call_id, op) VALUES ('objects', new.object_id, new.call_id, 'put');
END;

CREATE TRIGGER objects_updated AFTER UPDATE ON objects
WHEN new.object_id IS NOT old.object_id
    OR new.call_id IS NOT old.call_id
    OR new.state IS NOT old.state
    OR new.store_url IS NOT old.store_url
    OR new.key IS NOT old.key
    OR new.format IS NOT old.format
    OR new.file_bytes IS NOT old.file_bytes
    OR new.file_sha256 IS NOT old.file_sha256
    OR new.pcm_sha256 IS NOT old.pcm_sha256
    OR new.stored_at IS NOT old.stored_at
BEGIN
    INSERT INTO changes (entity, entity_id, call_id, op) VALUES ('objects', new.object_id, new.call_id, 'put');
END;
