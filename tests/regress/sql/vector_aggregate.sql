-- Aggregates of vectors.

SELECT avg(v), sum(v), count(v) FROM unnest(ARRAY['[1,2,3]'::vector, '[3,5,7]']) v;
SELECT avg(v), sum(v), count(v) FROM unnest(ARRAY['[1,2,3]'::vector, '[3,5,7]', NULL]) v;
SELECT avg(v), sum(v) FROM unnest(ARRAY[]::vector[]) v;
SELECT avg(v), sum(v) FROM unnest(ARRAY[NULL]::vector[]) v;
SELECT avg(v), sum(v) FROM unnest(ARRAY['[1,-0]'::vector]) v;
SELECT avg(v) FROM unnest(ARRAY['[1,2]'::vector, '[3]']) v;
SELECT sum(v) FROM unnest(ARRAY['[1,2]'::vector, '[3]']) v;
-- a sum is in single precision, an average in double
SELECT avg(v) FROM unnest(ARRAY['[3e38]'::vector, '[3e38]']) v;
SELECT sum(v) FROM unnest(ARRAY['[3e38]'::vector, '[3e38]']) v;
SELECT avg(v), sum(v) FROM (SELECT '[16777216]'::vector AS v UNION ALL SELECT '[1]' FROM generate_series(1, 3)) s;

-- the functions behind avg
SELECT vector_accum('{0}', '[1,2,3]'), vector_accum('{0,0,0,0}', '[1,2,3]'), vector_accum('{2,1,1}', '[1,2]');
SELECT vector_accum('{}', '[1,2,3]');
SELECT vector_accum('{{0,0}}', '[1]');
SELECT vector_accum('{0,NULL}', '[1]');
SELECT vector_accum('{0,0}', '[1,2,3]');
SELECT vector_accum('{1,Infinity}', '[1]');
SELECT vector_combine('{1,2}', '{3,4}'), vector_combine('{0}', '{3,4}'), vector_combine('{1,2}', '{0}'), vector_combine('{0}', '{0}');
SELECT vector_combine('{{1,2}}', '{3,4}');
SELECT vector_combine('{1,2}', '{{3,4}}');
SELECT vector_combine('{}', '{0}');
SELECT vector_combine('{0}', '{}');
SELECT vector_combine('{1,2}', '{3,4,5}');
SELECT vector_combine('{1}', '{1}');
SELECT vector_combine('{1,1e308}', '{1,1e308}');
SELECT vector_combine('{0}', array_agg(n)) FROM generate_series(1, 16002) n;
SELECT vector_combine(array_agg(n), '{0}') FROM generate_series(1, 16002) n;
SELECT vector_combine(array_agg(n), array_agg(n)) FROM generate_series(1, 16002) n;
SELECT vector_avg('{0}') IS NULL AS nothing, vector_avg('{2,3,5}');
SELECT vector_avg('{}');
SELECT vector_avg('{1}');
SELECT vector_avg('{1,1e39}');
SELECT vector_avg('{1,NaN}');
SELECT vector_avg(array_agg(n)) FROM generate_series(1, 16002) n;

-- an argument is not changed by a call outside an aggregate
SELECT s, vector_accum(s, '[1]') AS next, s AS still FROM (VALUES ('{1,1}'::float8[])) v (s);

-- groups, filters, frames and distinct values
CREATE TABLE t (id int, k int, v vector(3));
INSERT INTO t SELECT i, i % 4, ARRAY[i, -i, i % 5]::vector FROM generate_series(1, 10000) i;
INSERT INTO t SELECT 0, k, NULL FROM generate_series(0, 4) k;
ANALYZE t;
SELECT k, avg(v), sum(v), avg(v) FILTER (WHERE id < 10) AS few, avg(DISTINCT subvector(v, 3, 1)) AS distinct_last
FROM t GROUP BY k ORDER BY k;
SELECT id, avg(v) OVER w AS moving, sum(v) OVER w FROM t WHERE id BETWEEN 1 AND 6
WINDOW w AS (ORDER BY id ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) ORDER BY id;
SELECT id, avg(v) OVER (ORDER BY id) AS so_far FROM t WHERE id BETWEEN 1 AND 4 ORDER BY id;

-- workers
SET max_parallel_workers_per_gather = 2;
SET parallel_setup_cost = 0;
SET parallel_tuple_cost = 0;
SET min_parallel_table_scan_size = 0;
ALTER TABLE t SET (parallel_workers = 2);
EXPLAIN (COSTS OFF) SELECT avg(v), sum(v) FROM t;
SELECT avg(v), sum(subvector(v, 3, 1)) FROM t;
SET enable_sort = off;
EXPLAIN (COSTS OFF) SELECT k, avg(v) FROM t GROUP BY k;
RESET enable_sort;
SELECT k, avg(v) FROM t GROUP BY k ORDER BY k;
-- workers that meet no row
EXPLAIN (COSTS OFF) SELECT avg(v), sum(v) FROM t WHERE abs(id) < 0;
SELECT avg(v), sum(v) FROM t WHERE abs(id) < 0;
SELECT avg(v), sum(v) FROM t WHERE abs(id) < 2;
DROP TABLE t;

SELECT aggfnoid::regprocedure, aggtransfn, aggfinalfn, aggcombinefn, aggtranstype::regtype, agginitval FROM pg_aggregate
WHERE aggtransfn IN ('vector_accum'::regproc, 'vector_add'::regproc) ORDER BY 1::text;
