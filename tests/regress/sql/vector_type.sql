-- Text in and out, type modifiers, storage of the type vector.

-- what is read, and how it is written
SELECT '[1,2,3]'::vector;
SELECT '[-1,-2.50,+3]'::vector;
SELECT '[1.,.5,1e3,1E-3]'::vector;
SELECT E' \t[\n 1 ,\r  2\x0B,\f3 ] '::vector;
SELECT '[0x1F]'::vector;
SELECT '[0,-0]'::vector;
SELECT '[0.1,1.23456,123456,1234567,12345678]'::vector;
SELECT '[1e5,1e6,1e14,1e15,1e16,0.0001,0.00001]'::vector;

-- ends of the range
SELECT '[3.4028235e38,-3.4028235e38]'::vector;
SELECT '[1.17549435e-38,1e-45]'::vector;
SELECT '[1e-46,-1e-46]'::vector;
SELECT '[4e38,1]'::vector;
SELECT '[1, -4e38]'::vector;
SELECT '[1e400]'::vector;
SELECT '[NaN,1]'::vector;
SELECT '[nan(1)]'::vector;
SELECT '[Infinity,1]'::vector;
SELECT '[1,-inf]'::vector;

-- what is no vector
SELECT ''::vector;
SELECT ' '::vector;
SELECT '1,2'::vector;
SELECT '{1,2}'::vector;
SELECT '['::vector;
SELECT '[ '::vector;
SELECT '[,'::vector;
SELECT '[]'::vector;
SELECT '[ ]'::vector;
SELECT '[,]'::vector;
SELECT '[1'::vector;
SELECT '[1,'::vector;
SELECT '[1,]'::vector;
SELECT '[1,,2]'::vector;
SELECT '[1, ,2]'::vector;
SELECT '[1 2]'::vector;
SELECT '[1x]'::vector;
SELECT '[word,1]'::vector;
SELECT '[1]2'::vector;
SELECT '[1] ]'::vector;
SELECT '[[1]]'::vector;
SELECT '[ä]'::vector;

-- number of dimensions
SELECT vector_dims(('[' || repeat('1,', 15999) || '1]')::vector);
SELECT vector_dims(('[' || repeat('1,', 16000) || '1]')::vector);

-- vector(n)
SELECT '[1,2,3]'::vector(3);
SELECT '[1,2,3]'::vector(2);
SELECT '[1,2,3]'::vector(1) IS NULL;
SELECT NULL::vector(2) IS NULL;
SELECT '[1]'::vector(0);
SELECT '[1]'::vector(-1);
SELECT '[1]'::vector(16000);
SELECT '[1]'::vector(16001);
SELECT '[1]'::vector(1, 1);
SELECT '[1]'::vector('1');
SELECT '[1]'::vector('one');
SELECT '{"[1,2,3]","[4,5,6]"}'::vector(3)[];
SELECT '{"[1,2,3]"}'::vector(2)[];
SELECT unnest('{"[1,2,3]",NULL,"[4]"}'::vector[]);

-- columns
CREATE TABLE t (id int GENERATED ALWAYS AS IDENTITY, free vector, three vector(3));
SELECT attname, format_type(atttypid, atttypmod), attstorage, attalign, attlen
FROM pg_attribute WHERE attrelid = 't'::regclass AND atttypid = 'vector'::regtype ORDER BY attnum;
INSERT INTO t (free, three) VALUES ('[1]', '[1,2,3]'), ('[1,2]', NULL), (NULL, '[4,5,6]');
INSERT INTO t (three) VALUES ('[1,2]');
INSERT INTO t (three) SELECT free FROM t;
UPDATE t SET three = three || '[1]';
UPDATE t SET three = subvector(three || '[7]', 2, 3);
SELECT * FROM t ORDER BY id;
ALTER TABLE t ALTER COLUMN free TYPE vector(2);
ALTER TABLE t ALTER COLUMN three TYPE vector;
INSERT INTO t (three) VALUES ('[1,2]');
SELECT three FROM t ORDER BY id;
DROP TABLE t;

-- values of any size, in line with a short and a long header, and out of line, come back as stored
CREATE TABLE sizes (dim int, v vector);
INSERT INTO sizes
SELECT dim, (SELECT array_agg((i % 97) / 7.0 - dim ORDER BY i) FROM generate_series(1, dim) i)::vector
FROM unnest(ARRAY[1, 2, 29, 30, 31, 32, 128, 500, 1536, 2001, 16000]) dim;
SELECT dim, pg_column_size(v), vector_dims(v), v = v::text::vector AS same,
       v = (SELECT array_agg((i % 97) / 7.0 - dim ORDER BY i) FROM generate_series(1, dim) i)::vector AS right,
       v <-> v AS distance, subvector(v, dim, 1) = subvector(v::text::vector, dim, 1) AS last
FROM sizes ORDER BY dim;

-- compressed, which the type's storage forbids and a column's may allow
CREATE TABLE zeros (v vector);
ALTER TABLE zeros ALTER COLUMN v SET STORAGE EXTENDED;
INSERT INTO zeros VALUES (array_fill(0, ARRAY[16000])::vector);
SELECT pg_column_size(v) < 2000 AS compressed, v = array_fill(0, ARRAY[16000])::vector AS right,
       l2_distance(v, v), vector_dims(v) FROM zeros;
DROP TABLE sizes, zeros;

-- text is that of float4, over the whole range
SELECT setseed(0.25);
WITH numbers AS (
    SELECT ((random() - 0.5) * 10::float8 ^ (random() * 80 - 42))::float4 AS x
    FROM generate_series(1, 100000)
    UNION ALL
    SELECT (2::float8 ^ e)::float4 FROM generate_series(-149, 127) e
    UNION ALL
    SELECT (10::float8 ^ e)::float4 FROM generate_series(-45, 38) e
    UNION ALL
    SELECT i::float4 FROM generate_series(16777000, 16777300) i
)
SELECT count(*) > 100000 AS many,
       count(*) FILTER (WHERE ARRAY[x]::vector::text <> '[' || x || ']') AS differ,
       count(*) FILTER (WHERE ('[' || x || ']')::vector::float4[] <> ARRAY[x]) AS not_back
FROM numbers;
SET extra_float_digits = -5;
SELECT 1::float4 / 3 AS float4, ARRAY[1::float4 / 3]::vector;
RESET extra_float_digits;

-- a value whose header contradicts its size is noticed before it is read
CREATE CAST (bytea AS vector) WITHOUT FUNCTION;
CREATE TABLE broken (what text, image bytea);
ALTER TABLE broken ALTER COLUMN image SET STORAGE EXTERNAL;
INSERT INTO broken VALUES
    ('nothing', ''), ('half a header', '\x0100'), ('no components', '\x00000000'),
    ('one missing', '\x02000000' || '\x0000803f'::bytea),
    ('one too many', '\x01000000' || '\x0000803f0000803f'::bytea),
    ('negative', '\xffff0000' || '\x0000803f'::bytea),
    ('in the middle of one', '\x02000000' || '\x0000803f00'::bytea),
    ('long header', '\x03000000' || decode(repeat('00', 400), 'hex')),
    ('too many', '\x813e0000' || decode(repeat('00', 64004), 'hex')),
    ('out of line', '\x04000000' || decode(repeat('00', 40000), 'hex'));
CREATE FUNCTION try(image bytea, OUT code text, OUT message text, OUT detail text, OUT hint text) AS $$
BEGIN
    PERFORM vector_dims(image::vector);
    message := 'no error';
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT,
        detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
END
$$ LANGUAGE plpgsql;
SELECT what, (try(image)).* FROM broken;
SELECT vector_dims('\x010000000000803f'::bytea::vector), '\x010000000000803f'::bytea::vector;
DROP TABLE broken;
DROP FUNCTION try;
DROP CAST (bytea AS vector);
