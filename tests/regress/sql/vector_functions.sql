-- Functions and operators of the type vector.

-- distances
SELECT l2_distance('[0,0]'::vector, '[3,4]'), '[0,0]'::vector <-> '[3,4]' AS op,
       vector_l2_squared_distance('[0,0]', '[3,4]') AS squared;
SELECT l2_distance('[1,1,1,1,1,1,1,1,1]'::vector, '[1,1,1,1,1,1,1,4,5]');
SELECT l2_distance('[3e38]'::vector, '[-3e38]');
SELECT l2_distance('[1,2]'::vector, '[3]');
SELECT inner_product('[1,2]'::vector, '[3,4]'), '[1,2]'::vector <#> '[3,4]' AS op,
       vector_negative_inner_product('[1,2]', '[3,4]') AS negative;
SELECT inner_product('[1,1,1,1,1,1,1,1,1]'::vector, '[1,2,3,4,5,6,7,8,9]');
SELECT inner_product('[3e38]'::vector, '[3e38]'), '[0]'::vector <#> '[0]' AS zero;
SELECT inner_product('[1,2]'::vector, '[3]');
SELECT '[1,2]'::vector <#> '[3]';
SELECT cosine_distance('[1,2]'::vector, '[2,4]'), '[1,2]'::vector <=> '[2,4]' AS op;
SELECT cosine_distance('[1,0]'::vector, '[0,2]') AS right_angle,
       cosine_distance('[1,1]'::vector, '[-1,-1]') AS opposite;
-- rounding takes a cosine beyond 1; distances stay from 0 to 2
SELECT cosine_distance('[1,1]'::vector, '[1.1,1.1]'), cosine_distance('[1,1]'::vector, '[-1.1,-1.1]');
SELECT min('[1,1,1]'::vector <=> ARRAY[x, x, x]::vector) AS least,
       max('[1,1,1]'::vector <=> ARRAY[-x, -x, -x]::vector) AS most
FROM (SELECT i / 1000.0 AS x FROM generate_series(1, 10000) i) s;
SELECT cosine_distance('[1,2]'::vector, '[0,0]') AS zero, cosine_distance('[3e38]'::vector, '[3e38]') AS overflow;
SELECT cosine_distance('[1,2]'::vector, '[3]');
SELECT l1_distance('[0,0]'::vector, '[3,-4]'), '[0,0]'::vector <+> '[3,-4]' AS op;
SELECT l1_distance('[1,2,3,4,5,6,7,8,9]'::vector, '[0,3,2,5,4,7,6,9,8]');
SELECT l1_distance('[3e38]'::vector, '[-3e38]');
SELECT l1_distance('[1,2]'::vector, '[3]');
SELECT vector_spherical_distance('[1,0]', '[1,0]') AS same, vector_spherical_distance('[1,0]', '[0,1]') AS right_angle,
       vector_spherical_distance('[1,0]', '[-1,0]') AS opposite, vector_spherical_distance('[2,0]', '[2,0]') AS clamped;
SELECT vector_spherical_distance('[1,2]', '[3]');
SELECT vector_l2_squared_distance('[1,2]', '[3]');
SELECT l2_distance(NULL, '[1]'::vector) IS NULL AND ('[1]'::vector <=> NULL) IS NULL AS strict;

-- every length of a tail gives the distance that the components add up to
SELECT bool_and(a <-> b = sqrt(squares)) AS l2, bool_and(a <#> b = -products) AS ip, bool_and(a <+> b = differences) AS l1
FROM (
    SELECT array_agg(i % 11 ORDER BY i)::vector AS a, array_agg(i % 7 ORDER BY i)::vector AS b,
           sum((i % 11 - i % 7) ^ 2) AS squares, sum((i % 11) * (i % 7)) AS products,
           sum(abs(i % 11 - i % 7)) AS differences
    FROM generate_series(1, 300) dim, generate_series(1, dim) i GROUP BY dim
) s;

-- one vector
SELECT vector_dims('[1,2,3]'::vector);
SELECT vector_norm('[3,4]'), vector_norm('[0,0]') AS zero, vector_norm('[3e37,4e37]')::real AS large,
       vector_norm('[1e-45]') > 0 AS small;
SELECT l2_normalize('[3,4]'::vector), l2_normalize('[0,0.1]'::vector), l2_normalize('[0,0]'::vector) AS zero,
       l2_normalize('[3e38]'::vector) AS large, l2_normalize('[1e-45]'::vector) AS small;
SELECT binary_quantize('[1,0,-1]'::vector), binary_quantize('[0,-0,1e-45]'::vector) AS zeros,
       binary_quantize('[1,-1,1,-1,1,1,-1,-1]'::vector) AS eight,
       binary_quantize('[1,-1,1,-1,1,1,-1,-1,1]'::vector) AS nine;
SELECT pg_typeof(binary_quantize('[1]'::vector)), length(binary_quantize(array_fill(1, ARRAY[16000])::vector)),
       binary_quantize('[1,-1,1]'::vector)::bit(3) = B'101' AS comparable;
SELECT subvector('[1,2,3,4,5]'::vector, 1, 3), subvector('[1,2,3,4,5]'::vector, 3, 9) AS past_end,
       subvector('[1,2,3,4,5]'::vector, -1, 3) AS before_start, subvector('[1,2,3,4,5]'::vector, 5, 1) AS last;
SELECT subvector('[1,2,3,4,5]'::vector, 1, 0);
SELECT subvector('[1,2,3,4,5]'::vector, 3, -1);
SELECT subvector('[1,2,3,4,5]'::vector, -1, 2);
SELECT subvector('[1,2,3,4,5]'::vector, 6, 1);
SELECT subvector('[1,2,3,4,5]'::vector, 2147483647, 10);
SELECT subvector('[1,2,3,4,5]'::vector, 3, 2147483647), subvector('[1,2,3,4,5]'::vector, -2147483644, 2147483647);
SELECT subvector('[1,2,3,4,5]'::vector, -2147483648, -2147483648);

-- arithmetic
SELECT '[1,2,3]'::vector + '[4,5,6]' AS sum, '[1,2,3]'::vector - '[4,5,6]' AS difference, '[1,2,3]'::vector * '[4,5,6]' AS product,
       '[1,2,3]'::vector || '[4,5]' AS concatenation;
SELECT vector_add('[1]', '[2]'), vector_sub('[1]', '[2]'), vector_mul('[1]', '[2]'), vector_concat('[1]', '[2]');
SELECT '[3e38]'::vector + '[3e38]';
SELECT '[-3e38]'::vector - '[3e38]';
SELECT '[1e37]'::vector * '[1e37]';
SELECT '[1e-37]'::vector * '[1e-37]';
SELECT '[1e-20]'::vector * '[1e-20]' AS subnormal, '[0]'::vector * '[1e-45]' AS zero;
SELECT '[1,2]'::vector + '[3]';
SELECT '[1,2]'::vector - '[3]';
SELECT '[1,2]'::vector * '[3]';
SELECT vector_dims(array_fill(0, ARRAY[15999])::vector || '[1]');
SELECT array_fill(0, ARRAY[16000])::vector || '[1]';

-- comparison
SELECT a, b, vector_cmp(a, b), a < b AS lt, a <= b AS le, a = b AS eq, a <> b AS ne, a >= b AS ge, a > b AS gt
FROM (VALUES ('[1,2,3]'::vector, '[1,2,3]'::vector), ('[1,2,3]', '[1,2]'), ('[1,2]', '[1,2,3]'), ('[1,2]', '[2,3,4]'),
             ('[2,3]', '[1,2,3]'), ('[0]', '[-0]'), ('[-1]', '[1]')) v (a, b);
SELECT '[1]'::vector != '[2]' AS other_name, vector_cmp(NULL, '[1]') IS NULL AS strict;

-- what the catalog knows
SELECT * FROM (SELECT proname, pg_get_function_identity_arguments(p.oid) AS arguments, prorettype::regtype AS result,
       provolatile, proisstrict, proparallel, procost
FROM pg_proc p JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e'
JOIN pg_extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
WHERE extname = 'drift_pg' AND (prorettype = 'vector'::regtype OR 'vector'::regtype = ANY (proargtypes)
      OR proname LIKE 'vector\_%')) f
ORDER BY proname COLLATE "C", arguments COLLATE "C";
SELECT oprname, oprresult::regtype, oprcode, oprcom::regoperator, oprnegate::regoperator, oprrest, oprjoin, oprcanmerge, oprcanhash
FROM pg_operator WHERE oprleft = 'vector'::regtype OR oprright = 'vector'::regtype
ORDER BY oprname COLLATE "C";
