-- Casts between vectors and arrays.

SELECT ARRAY[1,2,3]::vector, ARRAY[1.5,2.25]::vector AS numeric, ARRAY[1,2]::float4[]::vector AS float4,
       ARRAY[1,2]::float8[]::vector AS float8, '{1.1,2.2}'::numeric[]::vector AS numeric_text;
SELECT '[1,2.5,-3]'::vector::real[], '[1,2.5]'::vector::real[]::vector AS there_and_back;
SELECT '{1,2,3}'::real[]::vector(3), ARRAY[1,2,3]::vector(3);
SELECT '{1,2,3}'::real[]::vector(2);
SELECT ARRAY[1,2,3]::vector(2);
SELECT ARRAY[1.5,2.5,3.5]::vector(2);
SELECT '{}'::real[]::vector;
SELECT '{NULL}'::real[]::vector;
SELECT ARRAY[1,NULL]::vector;
SELECT ARRAY[1.5,NULL]::vector;
SELECT '{{1}}'::real[]::vector;
SELECT ARRAY[[1,2],[3,4]]::vector;
SELECT '{{NULL}}'::real[]::vector;
SELECT '{NaN}'::real[]::vector;
SELECT '{NaN}'::numeric[]::vector;
SELECT '{Infinity}'::float8[]::vector;
SELECT '{-Infinity}'::real[]::vector;
SELECT '{Infinity}'::numeric[]::vector;
SELECT '{4e38,-4e38}'::float8[]::vector;
SELECT '{1e-46,-1e-46}'::float8[]::vector;
SELECT '{4e38}'::numeric[]::vector;
SELECT '{1e-46}'::numeric[]::vector;

-- rounding to single precision
SELECT ARRAY[16777217, 2147483647, -2147483648]::vector, ARRAY[0.1::float8, 1::float8 / 3]::vector,
       ARRAY[0.1::numeric, 3.14159265358979323846]::vector;

-- arrays with other bounds, sliced, with a bitmap of nulls but no null, and stored
SELECT '[5:7]={1,2,3}'::int[]::vector, ('{1,2,3,4}'::real[])[2:3]::vector AS slice,
       ('{1,2,NULL}'::real[])[1:2]::vector AS without_the_null, array_remove('{1,NULL,2}'::real[], NULL)::vector AS removed;
CREATE TABLE t (i int[], r real[], d float8[], n numeric[]);
INSERT INTO t VALUES ('{1}', '{1}', '{1}', '{1}'), ('{1,2,3}', '{1,2,3}', '{1,2,3}', '{1,2,3}');
INSERT INTO t SELECT array_agg(g), array_agg(g), array_agg(g), array_agg(g) FROM generate_series(1, 5000) g;
SELECT array_length(i, 1), i::vector = r::vector AS r, i::vector = d::vector AS d, i::vector = n::vector AS n,
       i::vector::real[] = r AS back FROM t ORDER BY 1;
DROP TABLE t;

-- explicit, in assignments, and implicit
CREATE TABLE t (v vector(2));
INSERT INTO t VALUES (ARRAY[1,2]), (ARRAY[1.5,2.5]), ('{3,4}'::real[]), ('{5,6}'::float8[]);
INSERT INTO t VALUES (ARRAY[1,2,3]);
CREATE FUNCTION total(real[]) RETURNS real AS 'SELECT sum(x) FROM unnest($1) x' LANGUAGE sql;
SELECT v, total(v) FROM t;
DROP FUNCTION total;
SELECT v FROM t WHERE v = ARRAY[1,2]::vector;
SELECT v FROM t WHERE v <-> ARRAY[1,2] < 1;
DROP TABLE t;
SELECT ARRAY[1,2,3] = ARRAY[1,2,3] AS arrays_compare_as_before;
SELECT '[1,2,3]'::vector::text, '[1,2,3]'::text::vector, '[1,2,3]'::varchar::vector;
SELECT '[1]'::vector::int[];

-- too long
SELECT array_agg(n)::vector FROM generate_series(1, 16001) n;
SELECT array_to_vector(array_agg(n), 16001, false) FROM generate_series(1, 16001) n;
SELECT vector_dims(array_agg(n)::vector) FROM generate_series(1, 16000) n;

SELECT castsource::regtype, casttarget::regtype, castfunc::regprocedure, castcontext, castmethod FROM pg_cast
WHERE castsource = 'vector'::regtype OR casttarget = 'vector'::regtype ORDER BY 1::text, 2::text;
