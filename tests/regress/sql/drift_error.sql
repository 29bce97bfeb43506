-- what cannot be done says so, and leaves everything as it was
CREATE FUNCTION fails(statement text) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
	detail text;
	hint text;
BEGIN
	EXECUTE statement;
	RETURN 'no error';
EXCEPTION WHEN OTHERS THEN
	GET STACKED DIAGNOSTICS detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
	RETURN concat_ws(' | ', SQLSTATE, SQLERRM, nullif(detail, ''), nullif(hint, ''));
END $$;
CREATE TABLE t (id integer, e vector(3), untyped vector);
INSERT INTO t VALUES (1, '[1,2,3]', '[1,2]');

-- building
SELECT fails('CREATE INDEX ON t USING drift (untyped)');
SELECT fails('CREATE INDEX ON t USING drift (id)');
SELECT fails('CREATE INDEX ON t USING drift (e, id)');
SELECT fails('CREATE INDEX ON t USING drift (e, e)');
SELECT fails('CREATE UNIQUE INDEX ON t USING drift (e)');
SELECT fails('CREATE INDEX ON t USING drift (e) INCLUDE (id)');
SELECT fails('CREATE INDEX ON t USING drift (e DESC)');
SELECT fails('CREATE INDEX ON t USING drift (e nosuch_ops)');
SELECT fails('CREATE INDEX ON t USING drift ((untyped::vector(3)))');
SELECT fails('ALTER TABLE t ADD EXCLUDE USING drift (e WITH =)');

-- storage parameters
SELECT fails('CREATE INDEX ON t USING drift (e) WITH (lists = 100)');
SELECT fails('CREATE INDEX ON t USING drift (e) WITH (target_recall = 1.5)');
SELECT fails('CREATE INDEX ON t USING drift (e) WITH (target_recall = -1)');
SELECT fails('CREATE INDEX ON t USING drift (e) WITH (target_recall = high)');
CREATE INDEX t_e ON t USING drift (e) WITH (target_recall = 0.99);
SELECT reloptions FROM pg_class WHERE relname = 't_e';
SELECT fails('ALTER INDEX t_e SET (target_recall = 2)');
ALTER INDEX t_e RESET (target_recall);
SELECT reloptions FROM pg_class WHERE relname = 't_e';

-- settings
SHOW drift.target_recall;
SHOW drift.iterative_scan;
SHOW drift.max_scan_tuples;
SELECT fails('SET drift.target_recall = 1.01');
SELECT fails('SET drift.target_recall = -0.1');
SELECT fails('SET drift.iterative_scan = always');
SELECT fails('SET drift.max_scan_tuples = -1');
SELECT fails('SET drift.log_limit = 0');
SELECT fails('SET drift.probes = 10');

-- rows and queries
SET enable_seqscan = off;
SELECT fails('INSERT INTO t VALUES (2, ''[1,2]'')');
SELECT fails('SELECT id FROM t ORDER BY e <-> ''[1,2]'' LIMIT 1');
CREATE INDEX ON t USING drift ((untyped::vector(2)));
SELECT fails('INSERT INTO t VALUES (2, ''[1,2,3]'', ''[1,2,3]'')');
SELECT id FROM t ORDER BY e <-> '[1,2,3]';

-- functions
SELECT fails('SELECT drift_flush(''t'')');
SELECT fails('SELECT drift_index_info(''t'')');
CREATE ROLE drift_regress_guest;
SET ROLE drift_regress_guest;
SELECT fails('SELECT drift_flush(''t_e'')');
RESET ROLE;
DROP ROLE drift_regress_guest;
SELECT fails('SELECT drift_flush(NULL)');
