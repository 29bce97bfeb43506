-- Order, distinct values and btree indexes of vectors.

CREATE TABLE t (id int, v vector);
INSERT INTO t VALUES (1, '[0,0,0]'), (2, '[1,2,3]'), (3, '[1,1,1]'), (4, NULL), (5, '[1,2]'), (6, '[1,2,3,0]'), (7, '[-1]'),
    (8, '[1,2,3]'), (9, '[-0,0,0]'), (10, '[1e38]');
SELECT v, array_agg(id ORDER BY id) FROM t WHERE id <> 9 GROUP BY v ORDER BY v;
SELECT v FROM t WHERE id > 1 ORDER BY v DESC NULLS LAST, id;
SELECT count(DISTINCT v) FROM t;
SELECT count(*) FROM (SELECT DISTINCT v FROM t) s;
SELECT id FROM t WHERE v IN ('[1,2]', '[1,1,1]') ORDER BY id;

CREATE INDEX i ON t (v);
SET enable_seqscan = off;
EXPLAIN (COSTS OFF) SELECT id FROM t WHERE v = '[1,2,3]';
SELECT id FROM t WHERE v = '[1,2,3]' ORDER BY id;
SELECT id FROM t WHERE v = '[0,0,0]' ORDER BY id;
EXPLAIN (COSTS OFF) SELECT v FROM t WHERE v >= '[1,1,1]' AND v < '[1,2,3]' ORDER BY v;
SELECT v FROM t WHERE v >= '[1,1,1]' AND v < '[1,2,3]' ORDER BY v;
SELECT v FROM t WHERE v > '[1,2,3]' ORDER BY v;
SELECT v FROM t WHERE v <= '[0,0,0]' ORDER BY v DESC;
EXPLAIN (COSTS OFF) SELECT v FROM t ORDER BY v LIMIT 1;
SELECT v FROM t ORDER BY v LIMIT 1;
SELECT id FROM t WHERE v IS NULL;
RESET enable_seqscan;

-- unique
DROP INDEX i;
CREATE UNIQUE INDEX u ON t (v);
DELETE FROM t WHERE id IN (8, 9);
CREATE UNIQUE INDEX u ON t (v);
INSERT INTO t VALUES (11, '[1, 2, 3]');
INSERT INTO t VALUES (11, '[1,2,3,1]') ON CONFLICT (v) DO NOTHING;
INSERT INTO t VALUES (12, '[1,2,3,1]') ON CONFLICT (v) DO UPDATE SET id = excluded.id;
SELECT id FROM t WHERE v = '[1,2,3,1]';

-- longer than a btree's entry can be
INSERT INTO t VALUES (13, array_fill(1, ARRAY[2000])::vector);
DROP INDEX u;

-- many, in an index of several levels
CREATE TABLE many AS SELECT i AS id, ARRAY[i % 100, i % 7, i]::vector AS v FROM generate_series(1, 20000) i;
CREATE INDEX ON many (v);
ANALYZE many;
SET enable_seqscan = off;
SET enable_bitmapscan = off;
SELECT count(*), bool_and(ordered) FROM (SELECT v >= lag(v) OVER (ORDER BY v) AS ordered FROM many) s;
SELECT count(*) FROM many WHERE v BETWEEN '[10]' AND '[11]';
SELECT count(*) FROM many WHERE ARRAY[10]::vector <= v AND v < '[11]';
SELECT id FROM many WHERE v = '[42,0,42]';
RESET enable_seqscan;
RESET enable_bitmapscan;

-- joins
SET enable_nestloop = off;
EXPLAIN (COSTS OFF) SELECT count(*) FROM many a JOIN many b ON a.v = b.v;
SELECT count(*) FROM many a JOIN many b ON a.v = b.v;
RESET enable_nestloop;
DROP TABLE t, many;
