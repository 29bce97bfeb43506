-- COPY of vectors, and with it the binary form. Programs of COPY run in the data directory.

CREATE TABLE t (id int, v vector(3));
INSERT INTO t VALUES (1, '[0,0,0]'), (2, '[1,2.5,-3]'), (3, NULL), (4, '[3.4028235e38,1e-45,-0]');
CREATE TABLE u (id int, v vector(3));

COPY t TO STDOUT;
COPY t TO STDOUT (FORMAT csv);
COPY u FROM STDIN;
1	[0,0,0]
2	[1, 2.5, -3]
3	\N
4	[3.4028235e38,1e-45,-0]
\.
SELECT t.v::text IS NOT DISTINCT FROM u.v::text AS same FROM t JOIN u USING (id) ORDER BY id;
COPY u FROM STDIN;
5	[1,2]
\.
COPY u FROM STDIN;
5	[1,2,x]
\.
TRUNCATE u;

COPY t TO PROGRAM 'cat > drift_vector_copy.bin' (FORMAT binary);
COPY u FROM PROGRAM 'cat drift_vector_copy.bin; rm drift_vector_copy.bin' (FORMAT binary);
SELECT t.v::text IS NOT DISTINCT FROM u.v::text AS same, u.v FROM t JOIN u USING (id) ORDER BY id;

-- the bytes: int16 dimensions, int16 0, float4s, all big-endian
SELECT vector_send('[1,-2.5]'), vector_send('[1,-2.5]') = '\x00020000' || float4send(1) || float4send(-2.5) AS as_documented;
SELECT length(vector_send(array_fill(1, ARRAY[16000])::vector));

-- large vectors
CREATE TABLE large (id int, v vector);
INSERT INTO large SELECT dim, (SELECT array_agg(sin(i * dim) ORDER BY i) FROM generate_series(1, dim) i)::vector
FROM unnest(ARRAY[1, 30, 31, 1536, 16000]) dim;
CREATE TABLE large2 (LIKE large);
COPY large TO PROGRAM 'cat > drift_vector_large.bin' (FORMAT binary);
COPY large2 FROM PROGRAM 'cat drift_vector_large.bin; rm drift_vector_large.bin' (FORMAT binary);
SELECT id, l.v = l2.v AS same FROM large l JOIN large2 l2 USING (id) ORDER BY id;
TRUNCATE large2;
COPY large TO PROGRAM 'cat > drift_vector_large.txt';
COPY large2 FROM PROGRAM 'cat drift_vector_large.txt; rm drift_vector_large.txt';
SELECT id, l.v = l2.v AS same FROM large l JOIN large2 l2 USING (id) ORDER BY id;

-- messages that are no vector: a binary COPY of one row of one column, whose bytes follow
CREATE TABLE w (v vector);
CREATE FUNCTION receive(bytes text, OUT code text, OUT message text) AS $$
BEGIN
    EXECUTE format('COPY w FROM PROGRAM %L (FORMAT binary)', format(
        'printf ''PGCOPY\n\377\r\n\0\0\0\0\0\0\0\0\0\0\001\0\0\0\%s%s\377\377''',
        lpad(to_oct, 3, '0'), bytes)) FROM (
            SELECT CASE WHEN n < 8 THEN n::text ELSE (n / 8)::text || (n % 8)::text END AS to_oct
            FROM (SELECT length(regexp_replace(bytes, '\\[0-7]{3}', 'x', 'g')) AS n) s) s;
    message := 'no error';
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT;
END
$$ LANGUAGE plpgsql;
SELECT what, (receive(bytes)).* FROM (VALUES
    (1, 'good',                  '\000\001\000\000\077\200\000\000'),
    (2, 'no dimensions',         '\000\000\000\000'),
    (3, 'negative',              '\377\377\000\000\077\200\000\000'),
    (4, '16001 dimensions',      '\076\201\000\000\077\200\000\000'),
    (5, 'unused is 1',           '\000\001\000\001\077\200\000\000'),
    (6, 'unused is -1',          '\000\001\377\377\077\200\000\000'),
    (7, 'NaN',                   '\000\001\000\000\177\300\000\000'),
    (8, 'infinite',              '\000\001\000\000\177\200\000\000'),
    (9, 'negative infinite',     '\000\002\000\000\077\200\000\000\377\200\000\000'),
    (10, 'a component too few',  '\000\002\000\000\077\200\000\000'),
    (11, 'a component too many', '\000\001\000\000\077\200\000\000\077\200\000\000'),
    (12, 'half a header',        '\000\001'),
    (13, 'empty',                '')
) m (n, what, bytes) ORDER BY n;
SELECT v FROM w;
ALTER TABLE w ALTER COLUMN v TYPE vector(1);
SELECT (receive('\000\002\000\000\077\200\000\000\077\200\000\000')).*;
DROP TABLE t, u, large, large2, w;
DROP FUNCTION receive;
