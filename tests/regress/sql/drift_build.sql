-- every kind of table and every way to build
SET enable_seqscan = off;
CREATE FUNCTION wave(i integer, dims integer) RETURNS vector LANGUAGE sql IMMUTABLE AS
	$$ SELECT array_agg(round(sin(i * 0.37 + d * d * 0.11)::numeric, 4) ORDER BY d)::vector FROM generate_series(1, dims) d $$;
CREATE TABLE t (id integer, kind integer, e vector(3));
INSERT INTO t SELECT i, i % 3, ARRAY[i, 0, 0]::vector FROM generate_series(1, 300) i;

-- plain, and the four operator classes
CREATE INDEX t_l2 ON t USING drift (e);
CREATE INDEX t_ip ON t USING drift (e vector_ip_ops);
CREATE INDEX t_cos ON t USING drift (e vector_cosine_ops);
CREATE INDEX t_l1 ON t USING drift (e vector_l1_ops);
SELECT indexrelid::regclass, pg_get_indexdef(indexrelid) FROM pg_index WHERE indrelid = 't'::regclass ORDER BY 1::text;
EXPLAIN (COSTS OFF) SELECT id FROM t ORDER BY e <-> '[7.2,0,0]' LIMIT 3;
SELECT id FROM t ORDER BY e <-> '[7.2,0,0]' LIMIT 3;
EXPLAIN (COSTS OFF) SELECT id FROM t ORDER BY e <#> '[1,0,0]' LIMIT 3;
SELECT id FROM t ORDER BY e <#> '[1,0,0]' LIMIT 3;
EXPLAIN (COSTS OFF) SELECT id FROM t ORDER BY e <=> '[1,0,0]' LIMIT 3;
SELECT count(*) FROM (SELECT id FROM t ORDER BY e <=> '[1,1,0]' LIMIT 3) x;
EXPLAIN (COSTS OFF) SELECT id FROM t ORDER BY e <+> '[7.2,0,0]' LIMIT 3;
SELECT id FROM t ORDER BY e <+> '[7.2,0,0]' LIMIT 3;
SELECT reltuples FROM pg_class WHERE relname = 't_l2';
SELECT opcname, amvalidate(oid) FROM pg_opclass
	WHERE opcmethod = (SELECT oid FROM pg_am WHERE amname = 'drift') ORDER BY 1;

-- not without ORDER BY, not for another operator, not backwards
EXPLAIN (COSTS OFF) SELECT count(*) FROM t;
EXPLAIN (COSTS OFF) SELECT id FROM t ORDER BY e <-> '[7.2,0,0]' DESC LIMIT 3;
DROP INDEX t_l2, t_ip, t_cos, t_l1;

-- rebuilds
CREATE INDEX t_e ON t USING drift (e);
REINDEX INDEX t_e;
REINDEX INDEX CONCURRENTLY t_e;
REINDEX TABLE t;
SELECT id FROM t ORDER BY e <-> '[7.2,0,0]' LIMIT 3;
TRUNCATE t;
SELECT id FROM t ORDER BY e <-> '[7.2,0,0]' LIMIT 3;
INSERT INTO t SELECT i, i % 3, ARRAY[i, 0, 0]::vector FROM generate_series(1, 300) i;
SELECT id FROM t ORDER BY e <-> '[7.2,0,0]' LIMIT 3;
VACUUM FULL t;
SELECT id FROM t ORDER BY e <-> '[7.2,0,0]' LIMIT 3;
DROP INDEX t_e;

-- concurrently, which validates through a bulk delete: each row once
CREATE INDEX CONCURRENTLY t_e ON t USING drift (e);
SELECT count(*), count(DISTINCT id) FROM (SELECT id FROM t ORDER BY e <-> '[7.2,0,0]') x;
DROP INDEX CONCURRENTLY t_e;

-- a build that is rolled back
BEGIN;
CREATE INDEX t_e ON t USING drift (e);
SELECT id FROM t ORDER BY e <-> '[7.2,0,0]' LIMIT 3;
ROLLBACK;

-- with a WHERE clause, and on an expression
CREATE INDEX t_e ON t USING drift (e) WHERE kind = 1;
EXPLAIN (COSTS OFF) SELECT id FROM t WHERE kind = 1 ORDER BY e <-> '[7.2,0,0]' LIMIT 3;
SELECT id FROM t WHERE kind = 1 ORDER BY e <-> '[7.2,0,0]' LIMIT 3;
DROP INDEX t_e;
CREATE TABLE untyped (e vector);
CREATE INDEX ON untyped USING drift ((e::vector(3)));
INSERT INTO untyped SELECT ARRAY[i, 0, 0]::vector FROM generate_series(1, 300) i;
EXPLAIN (COSTS OFF) SELECT e FROM untyped ORDER BY e::vector(3) <-> '[7.2,0,0]' LIMIT 3;
SELECT e FROM untyped ORDER BY e::vector(3) <-> '[7.2,0,0]' LIMIT 3;

-- unlogged, temporary, partitioned
CREATE UNLOGGED TABLE u (id integer, e vector(3));
CREATE INDEX ON u USING drift (e);
INSERT INTO u SELECT i, ARRAY[i, 0, 0]::vector FROM generate_series(1, 300) i;
SELECT id FROM u ORDER BY e <-> '[7.2,0,0]' LIMIT 3;
CREATE TEMPORARY TABLE tmp (id integer, e vector(3));
CREATE INDEX tmp_e ON tmp USING drift (e);
INSERT INTO tmp SELECT i, ARRAY[i, 0, 0]::vector FROM generate_series(1, 3000) i;
SELECT drift_flush('tmp_e');
SELECT id FROM tmp ORDER BY e <-> '[7.2,0,0]' LIMIT 3;
DELETE FROM tmp WHERE id < 10;
VACUUM tmp;
SELECT id FROM tmp ORDER BY e <-> '[7.2,0,0]' LIMIT 3;
CREATE TABLE p (id integer, e vector(3)) PARTITION BY RANGE (id);
CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (100);
CREATE TABLE p2 PARTITION OF p FOR VALUES FROM (100) TO (200);
INSERT INTO p SELECT i, ARRAY[i, 0, 0]::vector FROM generate_series(0, 199) i;
CREATE INDEX ON p USING drift (e);
SET enable_sort = off;
EXPLAIN (COSTS OFF) SELECT id FROM p ORDER BY e <-> '[99.7,0,0]' LIMIT 3;
SELECT id FROM p ORDER BY e <-> '[99.7,0,0]' LIMIT 3;
RESET enable_sort;

-- NULLs are not indexed, nor are vectors without a direction under cosine
CREATE TABLE n (id integer, e vector(3));
INSERT INTO n VALUES (1, '[1,2,3]'), (2, NULL), (3, '[0,0,0]'), (4, '[-1,0,1]');
CREATE INDEX n_e ON n USING drift (e vector_cosine_ops);
INSERT INTO n VALUES (5, '[1,1,3]'), (6, NULL), (7, '[0,0,0]');
SELECT id FROM n ORDER BY e <=> '[1,2,3]';
SELECT drift_flush('n_e');
SELECT id FROM n ORDER BY e <=> '[1,2,3]';
SELECT segments, rows, log_rows FROM drift_index_info('n_e');

-- any number of dimensions: one, two pages, the most there are
CREATE TABLE d (id integer, a vector(1), b vector(2100), c vector(16000));
INSERT INTO d SELECT i, wave(i, 1), wave(i, 2100), wave(i, 16000) FROM generate_series(1, 12) i;
CREATE INDEX d_a ON d USING drift (a);
CREATE INDEX d_b ON d USING drift (b);
CREATE INDEX d_c ON d USING drift (c);
INSERT INTO d SELECT i, wave(i, 1), wave(i, 2100), wave(i, 16000) FROM generate_series(13, 24) i;
SET drift.target_recall = 1;
SELECT id FROM d ORDER BY b <-> wave(5, 2100) LIMIT 4;
SELECT id FROM d ORDER BY c <-> wave(5, 16000) LIMIT 4;
SELECT id FROM d ORDER BY c <-> wave(20, 16000) LIMIT 4;
SELECT drift_flush('d_a'), drift_flush('d_b'), drift_flush('d_c');
SELECT id FROM d ORDER BY b <-> wave(5, 2100) LIMIT 4;
SELECT id FROM d ORDER BY c <-> wave(20, 16000) LIMIT 4;
SET enable_indexscan = off;
SELECT id FROM d ORDER BY b <-> wave(5, 2100) LIMIT 4;
SELECT id FROM d ORDER BY c <-> wave(20, 16000) LIMIT 4;
