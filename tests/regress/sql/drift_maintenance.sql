-- in exact mode the index gives the distances a sequential scan gives, whatever was done before
CREATE TABLE t (id integer PRIMARY KEY, e vector(5));
CREATE FUNCTION wave(i integer) RETURNS vector LANGUAGE sql IMMUTABLE AS
	$$ SELECT array_agg(sin(i * 0.37 + d * d * 1.7) * (1 + i % 5) ORDER BY d)::vector FROM generate_series(1, 5) d $$;
INSERT INTO t SELECT i, wave(i) FROM generate_series(1, 3000) i;
CREATE INDEX t_l2 ON t USING drift (e vector_l2_ops);
CREATE INDEX t_ip ON t USING drift (e vector_ip_ops);
CREATE INDEX t_cos ON t USING drift (e vector_cosine_ops);
CREATE INDEX t_l1 ON t USING drift (e vector_l1_ops);

-- compares the nearest `n` rows of some queries; true for each operator
CREATE FUNCTION agrees(n integer, OUT operator text, OUT by_index boolean, OUT agree boolean)
	RETURNS SETOF record LANGUAGE plpgsql AS $$
DECLARE
	query text;
	line text;
	indexed float8[];
	sequential float8[];
	i integer;
BEGIN
	PERFORM set_config('drift.target_recall', '1', true);
	PERFORM set_config('enable_bitmapscan', 'off', true);
	FOREACH operator IN ARRAY ARRAY['<->', '<#>', '<=>', '<+>'] LOOP
		by_index := true;
		agree := true;
		FOR i IN 1..5 LOOP
			query := format('SELECT e %1$s %2$L::vector AS d FROM t ORDER BY e %1$s %2$L::vector LIMIT %3$s',
				operator, wave(i * 411 + 7), n);
			PERFORM set_config('enable_seqscan', 'off', true);
			PERFORM set_config('enable_sort', 'off', true);
			PERFORM set_config('enable_indexscan', 'on', true);
			EXECUTE 'EXPLAIN (FORMAT JSON) ' || query INTO line;
			by_index := by_index AND line LIKE '%"Index Scan"%';
			EXECUTE format('SELECT array_agg(d) FROM (%s) x', query) INTO indexed;
			PERFORM set_config('enable_seqscan', 'on', true);
			PERFORM set_config('enable_sort', 'on', true);
			PERFORM set_config('enable_indexscan', 'off', true);
			EXECUTE format('SELECT array_agg(d) FROM (%s) x', query) INTO sequential;
			agree := agree AND indexed IS NOT DISTINCT FROM sequential;
		END LOOP;
		RETURN NEXT;
	END LOOP;
END $$;

SELECT * FROM agrees(100);
SELECT * FROM agrees(5000);

INSERT INTO t SELECT i, wave(i) FROM generate_series(3001, 4000) i;
SELECT segments, rows, log_rows FROM drift_index_info('t_l2');
SELECT * FROM agrees(100);

UPDATE t SET e = wave(id + 17) WHERE id % 4 = 0;
SELECT * FROM agrees(100);

DELETE FROM t WHERE id % 2 = 0;
SELECT * FROM agrees(100);

VACUUM t;
SELECT segments, arenas, rows, log_rows FROM drift_index_info('t_l2');
SELECT * FROM agrees(100);
SELECT * FROM agrees(5000);

-- new rows take the places of the dead ones
INSERT INTO t SELECT i, wave(i) FROM generate_series(5001, 7000) i;
SELECT * FROM agrees(100);
SELECT drift_flush('t_l2'), drift_flush('t_ip'), drift_flush('t_cos'), drift_flush('t_l1');
SELECT * FROM agrees(100);
SELECT drift_flush('t_l2');

-- a log that fills is flushed by the insert that fills it
SET drift.log_limit = '64kB';
INSERT INTO t SELECT i, wave(i) FROM generate_series(8001, 12000) i;
SELECT log_pages < 20 AS log_is_short, rows + log_rows AS rows FROM drift_index_info('t_l2');
SELECT * FROM agrees(100);

-- what was rolled back is not found
BEGIN;
SAVEPOINT a;
INSERT INTO t SELECT i, wave(i) FROM generate_series(12001, 13000) i;
ROLLBACK TO a;
DELETE FROM t WHERE id % 3 = 0;
SELECT * FROM agrees(100);
ROLLBACK;
SELECT * FROM agrees(100);

REINDEX TABLE t;
SELECT segments, arenas, rows, log_rows FROM drift_index_info('t_l2');
SELECT * FROM agrees(100);

-- emptied and filled again
DELETE FROM t;
VACUUM t;
SELECT segments, rows, log_rows FROM drift_index_info('t_l2');
SELECT * FROM agrees(100);
INSERT INTO t SELECT i, wave(i) FROM generate_series(1, 3000) i;
VACUUM t;
SELECT * FROM agrees(100);
