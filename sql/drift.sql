CREATE FUNCTION drift_handler(internal) RETURNS index_am_handler
    AS 'MODULE_PATHNAME' LANGUAGE C;

-- A warning, if the server has not preloaded the library.
CREATE FUNCTION drift_advise_preload() RETURNS void AS 'MODULE_PATHNAME' LANGUAGE C;
SELECT drift_advise_preload();
DROP FUNCTION drift_advise_preload();

CREATE ACCESS METHOD drift TYPE INDEX HANDLER drift_handler;

COMMENT ON ACCESS METHOD drift IS 'drift vector index access method';

-- Support function 1 of an operator class says which distance it stands for.
CREATE OPERATOR CLASS vector_l2_ops DEFAULT FOR TYPE vector USING drift AS
    OPERATOR 1 <-> (vector, vector) FOR ORDER BY float_ops,
    FUNCTION 1 drift_l2_metric();

CREATE OPERATOR CLASS vector_ip_ops FOR TYPE vector USING drift AS
    OPERATOR 1 <#> (vector, vector) FOR ORDER BY float_ops,
    FUNCTION 1 drift_ip_metric();

CREATE OPERATOR CLASS vector_cosine_ops FOR TYPE vector USING drift AS
    OPERATOR 1 <=> (vector, vector) FOR ORDER BY float_ops,
    FUNCTION 1 drift_cosine_metric();

CREATE OPERATOR CLASS vector_l1_ops FOR TYPE vector USING drift AS
    OPERATOR 1 <+> (vector, vector) FOR ORDER BY float_ops,
    FUNCTION 1 drift_l1_metric();
