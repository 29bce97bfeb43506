-- The SQLSTATE, message and detail of every error of the type vector.

CREATE FUNCTION error_of(statement text, OUT code text, OUT message text, OUT detail text, OUT hint text) AS $$
BEGIN
    EXECUTE statement;
    message := 'no error';
EXCEPTION WHEN OTHERS THEN
    GET STACKED DIAGNOSTICS code = RETURNED_SQLSTATE, message = MESSAGE_TEXT,
        detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
END
$$ LANGUAGE plpgsql;

SELECT statement, code, message, detail, hint FROM unnest(ARRAY[
    $$SELECT '[1,2,3]'::vector <-> '[1,2]'$$,
    $$SELECT '[1,2,3]'::vector <#> '[1,2]'$$,
    $$SELECT '[1,2,3]'::vector <=> '[1,2]'$$,
    $$SELECT '[1,2,3]'::vector <+> '[1,2]'$$,
    $$SELECT '[1,2,3]'::vector + '[1,2]'$$,
    $$SELECT '[1,2,3]'::vector(2)$$,
    $$SELECT avg(v) FROM unnest(ARRAY['[1,2]'::vector, '[3]']) v$$,
    $$SELECT ''::vector$$,
    $$SELECT '[1'::vector$$,
    $$SELECT '[1]1'::vector$$,
    $$SELECT '[]'::vector$$,
    $$SELECT '[4e38]'::vector$$,
    $$SELECT '[NaN]'::vector$$,
    $$SELECT '[Infinity]'::vector$$,
    $$SELECT ('[' || repeat('1,', 16000) || '1]')::vector$$,
    $$SELECT array_fill(1, ARRAY[16000])::vector || '[1]'$$,
    $$SELECT subvector('[1]'::vector, 2, 1)$$,
    $$SELECT NULL::vector(0)$$,
    $$SELECT NULL::vector(16001)$$,
    $$SELECT NULL::vector(1, 2)$$,
    $$SELECT NULL::vector('a')$$,
    $$SELECT '{NULL}'::real[]::vector$$,
    $$SELECT '{{1}}'::real[]::vector$$,
    $$SELECT '{}'::int[]::vector$$,
    $$SELECT '{1e39}'::float8[]::vector$$,
    $$SELECT '{1e39}'::numeric[]::vector$$,
    $$SELECT '[3e38]'::vector + '[3e38]'$$,
    $$SELECT '[1e-30]'::vector * '[1e-30]'$$,
    $$SELECT vector_avg('{}')$$,
    $$SELECT array_to_vector(ARRAY[true], -1, false)$$
]) statement, error_of(statement);

-- an error leaves the session as it was
BEGIN;
SAVEPOINT s;
SELECT '[1,2,3]'::vector <-> '[1]';
ROLLBACK TO s;
SELECT '[1,2,3]'::vector <-> '[1,2,4]';
COMMIT;

-- and says where it happened once
CREATE FUNCTION outer_function() RETURNS vector AS $$ BEGIN RETURN '[1]'::vector(1) || '[1]'::vector + '[1,2,3]'; END $$ LANGUAGE plpgsql;
SELECT outer_function();
DROP FUNCTION outer_function;
DROP FUNCTION error_of;
