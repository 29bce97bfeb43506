"""pgvector's own client for Python, against drift_pg: python pgvector_client.py CONNECTION"""

import sys

import numpy as np
import psycopg
from pgvector import Vector
from pgvector.psycopg import register_vector

DIMENSIONS = 100
ROWS = 500


def same(found, expected):
    found = found.to_numpy() if isinstance(found, Vector) else np.asarray(found)
    assert found.dtype == np.float32, found.dtype
    assert np.array_equal(found, expected), (found, expected)


def round_trips(connection):
    """A parameter and a result, each as text and binary."""
    value = np.array([1, -2.5, 1e-7, 3.4028235e38, 1 / 3], dtype=np.float32)
    for placeholder in ("%s", "%t", "%b"):
        for binary in (False, True):
            with connection.cursor(binary=binary) as cursor:
                row = cursor.execute(f"SELECT {placeholder}::vector", (Vector(value),)).fetchone()
                same(row[0], value)
    assert connection.execute("SELECT NULL::vector").fetchone()[0] is None


def copies(connection, vectors):
    """COPY into a table and out of it, each in both formats."""
    for binary in (False, True):
        options = "WITH (FORMAT BINARY)" if binary else ""
        connection.execute("DROP TABLE IF EXISTS items")
        connection.execute(f"CREATE TABLE items (id integer, embedding vector({DIMENSIONS}))")
        with connection.cursor().copy(f"COPY items FROM STDIN {options}") as copy:
            copy.set_types(["integer", "vector"])
            for number, vector in enumerate(vectors):
                copy.write_row([number, vector])
        with connection.cursor().copy(f"COPY items TO STDOUT {options}") as copy:
            copy.set_types(["integer", "vector"])
            rows = list(copy.rows())
        assert [number for number, _ in rows] == list(range(len(vectors)))
        for (_, found), expected in zip(rows, vectors):
            same(found, expected)


def ordered(connection, vectors):
    """The nearest rows come through the index, in the right order."""
    connection.execute("CREATE INDEX ON items USING drift (embedding vector_l2_ops)")
    connection.execute("SET enable_seqscan = off")
    connection.execute("SET drift.target_recall = 1")
    query = np.random.default_rng(7).normal(size=DIMENSIONS).astype(np.float32)
    select = "SELECT id FROM items ORDER BY embedding <-> %s LIMIT 10"
    plan = "\n".join(row[0] for row in connection.execute(f"EXPLAIN {select}", (query,)))
    assert "Index Scan using items_embedding_idx" in plan, plan
    expected = np.argsort(((vectors - query).astype(np.float64) ** 2).sum(axis=1))[:10]
    for binary in (False, True):
        rows = connection.execute(select, (query,), prepare=True, binary=binary).fetchall()
        assert [row[0] for row in rows] == expected.tolist(), (rows, expected)


def main():
    with psycopg.connect(sys.argv[1], autocommit=True) as connection:
        connection.execute("CREATE EXTENSION drift_pg")
        register_vector(connection)
        vectors = np.random.default_rng(42).normal(size=(ROWS, DIMENSIONS)).astype(np.float32)
        round_trips(connection)
        copies(connection, vectors)
        ordered(connection, vectors)
    print("pgvector's client is content")


if __name__ == "__main__":
    main()
