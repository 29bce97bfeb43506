-- ordered scans: filters, cursors, joins, snapshots
CREATE TABLE t (id integer PRIMARY KEY, kind integer, e vector(2));
INSERT INTO t SELECT i, i % 1000, ARRAY[i, i % 7]::vector FROM generate_series(1, 20000) i;
CREATE INDEX t_e ON t USING drift (e);
ANALYZE t;

-- chosen for ORDER BY ... LIMIT; a selective filter on another index is cheaper
EXPLAIN (COSTS OFF) SELECT id FROM t ORDER BY e <-> '[777,0]' LIMIT 5;
EXPLAIN (COSTS OFF) SELECT id FROM t WHERE id < 5 ORDER BY e <-> '[777,0]' LIMIT 5;
EXPLAIN (COSTS OFF) SELECT id FROM t WHERE e IS NOT NULL;
SELECT id FROM t ORDER BY e <-> '[777,0]' LIMIT 5;

-- goes on until the executor has enough
SET enable_seqscan = off;
SET enable_bitmapscan = off;
SET enable_sort = off;
EXPLAIN (COSTS OFF) SELECT id FROM t WHERE kind = 500 ORDER BY e <-> '[777,0]' LIMIT 10;
SELECT id FROM t WHERE kind = 500 ORDER BY e <-> '[777,0]' LIMIT 10;
SELECT count(*) FROM (SELECT id FROM t WHERE kind = 500 ORDER BY e <-> '[777,0]' LIMIT 100) x;
SELECT count(*), count(DISTINCT id) FROM (SELECT id FROM t ORDER BY e <-> '[777,0]') x;
SET drift.iterative_scan = relaxed_order;
SELECT count(*), count(DISTINCT id) FROM (SELECT id FROM t ORDER BY e <-> '[777,0]') x;
SET drift.iterative_scan = off;
SELECT count(*) < 20000 AS stops, count(*) >= 1000 AS after_its_first_rows
	FROM (SELECT id FROM t ORDER BY e <-> '[777,0]') x;
RESET drift.iterative_scan;
SET drift.max_scan_tuples = 5000;
SELECT count(*) < 20000 AS stops, count(*) >= 5000 AS after_the_brake
	FROM (SELECT id FROM t ORDER BY e <-> '[777,0]') x;
RESET drift.max_scan_tuples;

-- exact
SET drift.target_recall = 1;
SELECT count(*), count(DISTINCT id) FROM (SELECT id FROM t ORDER BY e <-> '[777,0]') x;
RESET drift.target_recall;

-- a NULL query gives every indexed row
SELECT count(*), count(DISTINCT id) FROM (SELECT id FROM t ORDER BY e <-> NULL) x;

-- a cursor, forwards and back
BEGIN;
DECLARE c SCROLL CURSOR FOR SELECT id FROM t ORDER BY e <-> '[777,0]';
FETCH 3 FROM c;
FETCH BACKWARD 2 FROM c;
FETCH 2 FROM c;
COMMIT;

-- a scan for each outer row
EXPLAIN (COSTS OFF) SELECT q.id, n.id FROM (VALUES (1, '[10,0]'::vector), (2, '[500,0]'), (3, NULL)) q (id, e),
	LATERAL (SELECT t.id FROM t ORDER BY t.e <-> q.e LIMIT 2) n;
SELECT q.id, n.id FROM (VALUES (1, '[10,0]'::vector), (2, '[500,0]')) q (id, e),
	LATERAL (SELECT t.id FROM t ORDER BY t.e <-> q.e LIMIT 2) n
	ORDER BY q.id, n.id;

-- a snapshot keeps seeing what was deleted after it
BEGIN ISOLATION LEVEL REPEATABLE READ;
DECLARE c CURSOR FOR SELECT id FROM t ORDER BY e <-> '[777,0]';
FETCH 2 FROM c;
DELETE FROM t WHERE id BETWEEN 770 AND 785;
FETCH 3 FROM c;
SELECT id FROM t ORDER BY e <-> '[777,0]' LIMIT 3;
ROLLBACK;
SELECT id FROM t ORDER BY e <-> '[777,0]' LIMIT 3;

-- an index's own recall stands in for the default
ALTER INDEX t_e SET (target_recall = 1);
EXPLAIN (COSTS OFF) SELECT id FROM t ORDER BY e <-> '[777,0]' LIMIT 5;
SELECT id FROM t ORDER BY e <-> '[777,0]' LIMIT 5;
