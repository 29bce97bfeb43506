-- The extension in a schema that is not on the search path, and moved.

CREATE TABLE t (v vector(2));
INSERT INTO t VALUES ('[1,2]'), ('[3,4]');
CREATE INDEX ON t (v);
CREATE SCHEMA "Other Place";
ALTER EXTENSION drift_pg SET SCHEMA "Other Place";
SELECT v, v OPERATOR("Other Place".<->) '[0,0]' AS distance, "Other Place".vector_dims(v) FROM t ORDER BY 2;
SELECT "Other Place".avg(v), "Other Place".sum(v) FROM t;
SELECT '[1,2]'::vector;
SET search_path = "Other Place", public;
SELECT '[1,2]'::vector + '[1,1]', ARRAY[1,2]::vector(2);
SELECT v FROM t ORDER BY v DESC;
INSERT INTO t VALUES (ARRAY[5,6]);
DROP EXTENSION drift_pg;
DROP TABLE t;
DROP EXTENSION drift_pg;
SELECT count(*) FROM pg_proc WHERE pronamespace = '"Other Place"'::regnamespace;

-- installed elsewhere from the start
RESET search_path;
CREATE EXTENSION drift_pg SCHEMA "Other Place";
SELECT '[1,2]'::"Other Place".vector(2);
SELECT "Other Place".cosine_distance('[1,0]', '[0,1]');
