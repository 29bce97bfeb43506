#!/usr/bin/env python3
"""In-process libraries on the files of `cargo bench-sql`: hnswlib, faiss and SVS, one thread.

    python3 -m venv target/peers
    target/peers/bin/pip install numpy hnswlib faiss-cpu scalable-vs h5py
    target/peers/bin/python benches/peers.py --data DIR sift200k
    cargo bench-sql --data DIR sift200k --with target/bench-sql/sift200k.peers.json

h5py is needed for HDF5 files only. All queries go to a library in one call, which spares it what
Python costs a call; --single asks one by one instead. Building uses all cores, searching one.
"""

import argparse
import json
import os
import sys
import time

import numpy as np

NEAREST = 10
# By how much, relatively, a row may be farther than the tenth and still count as equally far.
TIE = 1e-6


def read_vectors(path):
    """Rows of a .fvecs or .bvecs file, as float32."""
    kind = {".fvecs": "<f4", ".bvecs": "u1"}.get(os.path.splitext(path)[1])
    if kind is None:
        sys.exit(f"{path}: neither .fvecs nor .bvecs")
    return read_rows(path, kind).astype(np.float32)


def read_rows(path, kind):
    raw = np.fromfile(path, dtype="u1")
    if len(raw) < 4:
        sys.exit(f"{path}: no rows")
    width = int(raw[:4].view("<i4")[0])
    length = 4 + width * np.dtype(kind).itemsize
    if width <= 0 or len(raw) % length:
        sys.exit(f"{path}: not rows of one length")
    rows = raw.reshape(-1, length)
    if (rows[:, :4] != rows[0, :4]).any():
        sys.exit(f"{path}: not rows of one length")
    return np.ascontiguousarray(rows[:, 4:]).view(kind)


def read_set(options):
    """Name, metric, base, queries and exact answers (or None)."""
    if options.hdf5:
        import h5py

        with h5py.File(options.hdf5) as file:
            told = {"euclidean": "l2", "angular": "cosine"}.get(file.attrs.get("distance"))
            base, queries = (np.asarray(file[part], dtype=np.float32) for part in ("train", "test"))
            truth = np.asarray(file["neighbors"]) if "neighbors" in file else None
        name = os.path.splitext(os.path.basename(options.hdf5))[0]
        return name, options.metric or told, base, queries, truth
    if options.data:
        directory, name = options.data
        if os.path.exists(whole := os.path.join(directory, f"{name}.hdf5")):
            options.hdf5 = whole
            return read_set(options)
        paths = {}
        for part, kinds in (("base", "fb"), ("query", "fb"), ("truth", "i")):
            found = [os.path.join(directory, f"{name}_{part}.{kind}vecs") for kind in kinds]
            paths[part] = next((path for path in found if os.path.exists(path)), None)
        if not paths["base"] or not paths["query"]:
            sys.exit(f"no {name}_base and {name}_query in {directory}")
    else:
        if not options.base or not options.query:
            sys.exit("name a set: --data DIR NAME, --hdf5 FILE, or --base and --query")
        paths = {"base": options.base, "query": options.query, "truth": options.truth}
        name = os.path.splitext(os.path.basename(options.base))[0].removesuffix("_base")
    by_name = "l2" if name.startswith("sift") else "cosine" if name.startswith("glove") else None
    truth = read_rows(paths["truth"], "<i4") if paths["truth"] else None
    base, queries = read_vectors(paths["base"]), read_vectors(paths["query"])
    return name, options.metric or by_name, base, queries, truth


def ranks(metric, queries, rows):
    """Numbers that order rows as the distance does; queries n x d, rows n x k x d."""
    queries, rows = queries.astype(np.float64)[:, None, :], rows.astype(np.float64)
    if metric == "l2":
        return ((rows - queries) ** 2).sum(-1)
    if metric == "l1":
        return np.abs(rows - queries).sum(-1)
    return -(rows * queries).sum(-1)


class Truth:
    """The rank of each query's tenth nearest row."""

    def __init__(self, metric, base, queries, ids):
        import faiss

        if ids is None:
            kind = {"l2": faiss.METRIC_L2, "l1": faiss.METRIC_L1}
            flat = faiss.IndexFlat(base.shape[1], kind.get(metric, faiss.METRIC_INNER_PRODUCT))
            flat.add(base)
            ids = flat.search(queries, NEAREST)[1]
        self.metric, self.base, self.queries = metric, base, queries
        self.bounds = ranks(metric, queries, base[ids[:, :NEAREST]]).max(1, keepdims=True)

    def recall(self, ids):
        ids = np.asarray(ids, dtype=np.int64)[:, :NEAREST]
        near = ranks(self.metric, self.queries, self.base[np.maximum(ids, 0)])
        hits = (near <= self.bounds + TIE * np.abs(self.bounds)) & (ids >= 0)
        return float(hits.sum() / hits.size)


def hnswlib_curve(metric, base, queries):
    import hnswlib

    cores = len(os.sched_getaffinity(0))
    index = hnswlib.Index({"l2": "l2", "ip": "ip", "cosine": "ip"}[metric], base.shape[1])
    index.init_index(len(base), M=16, ef_construction=200)
    index.add_items(base, num_threads=cores)

    def search(ef):
        return lambda: index.set_ef(ef), lambda part: index.knn_query(part, NEAREST, num_threads=1)[0]

    efforts = [10, 15, 20, 30, 40, 60, 80, 120, 160, 240, 400, 800]
    return "M 16, ef_construction 200", [(f"ef = {ef}", search(ef)) for ef in efforts]


def faiss_curve(kind):
    def build(metric, base, queries):
        import faiss

        rows, dimensions = base.shape
        measure = {"l2": faiss.METRIC_L2, "l1": faiss.METRIC_L1}
        measure = measure.get(metric, faiss.METRIC_INNER_PRODUCT)
        if kind == "ivf":
            lists = 2 ** int(np.round(np.log2(4 * np.sqrt(rows))))
            factory = f"IVF{lists},PQ{dimensions // 2}x4fs,RFlat"
            index = faiss.index_factory(dimensions, factory, measure)
        else:
            factory = "HNSW16,Flat"
            index = faiss.index_factory(dimensions, factory, measure)
            index.hnsw.efConstruction = 200
        faiss.omp_set_num_threads(len(os.sched_getaffinity(0)))
        index.train(base)
        index.add(base)
        faiss.omp_set_num_threads(1)
        space = faiss.ParameterSpace()
        space.initialize(index)

        def search(setting):
            return (
                lambda: space.set_index_parameters(index, setting),
                lambda part: index.search(part, NEAREST)[1],
            )

        if kind == "ivf":
            settings = [
                f"nprobe={probes},k_factor_rf={factor}"
                for probes in (4, 8, 16, 32, 64, 128, 256)
                for factor in (4, 10, 30)
            ]
        else:
            settings = [f"efSearch={ef}" for ef in (10, 20, 40, 60, 80, 120, 160, 240, 400, 800)]
        return factory, [(setting, search(setting)) for setting in settings]

    return build


def svs_curve(metric, base, queries):
    import svs

    distance = svs.DistanceType.L2 if metric == "l2" else svs.DistanceType.MIP
    alpha = 1.2 if metric == "l2" else 0.95
    parameters = svs.VamanaBuildParameters(alpha=alpha, graph_max_degree=64, window_size=128)
    cores = len(os.sched_getaffinity(0))
    index = svs.Vamana.build(parameters, base, distance, num_threads=cores)
    index.num_threads = 1

    def search(window):
        def turn():
            index.search_window_size = window

        return turn, lambda part: index.search(part, NEAREST)[0]

    windows = [10, 15, 20, 30, 40, 60, 80, 120, 160, 240, 400]
    return "degree 64, window 128", [(f"window = {window}", search(window)) for window in windows]


# What each can search; cosine is the inner product of rows of unit length.
PEERS = {
    "hnswlib": (hnswlib_curve, ("l2", "ip", "cosine")),
    "faiss ivf": (faiss_curve("ivf"), ("l2", "ip", "cosine")),
    "faiss hnsw": (faiss_curve("hnsw"), ("l2", "ip", "cosine", "l1")),
    "svs vamana": (svs_curve, ("l2", "ip", "cosine")),
}


def measure(ask, queries, single, seconds):
    """Queries a second, and the answers."""
    parts = [queries[at : at + 1] for at in range(len(queries))] if single else [queries]
    answers = np.concatenate([ask(part) for part in parts])
    done, started = 0, time.perf_counter()
    while True:
        for part in parts:
            ask(part)
        done += len(queries)
        elapsed = time.perf_counter() - started
        if elapsed >= seconds:
            return done / elapsed, answers


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", nargs=2, metavar=("DIR", "NAME"))
    for name in ("base", "query", "truth", "hdf5", "out"):
        parser.add_argument(f"--{name}", metavar="FILE")
    parser.add_argument("--metric", choices=("l2", "ip", "cosine", "l1"))
    parser.add_argument("--queries", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--single", action="store_true", help="one query a call")
    parser.add_argument("--only", help="names, with commas in between: " + ", ".join(PEERS))
    options = parser.parse_args()
    name, metric, base, queries, truth = read_set(options)
    if metric is None:
        sys.exit("nothing tells the metric: name it by --metric")
    queries = np.ascontiguousarray(queries[: options.queries])
    truth = None if truth is None else truth[: len(queries)]
    if metric == "cosine":
        base, queries = (
            np.ascontiguousarray(part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-30))
            for part in (base, queries)
        )
    exact = Truth(metric, base, queries, truth)
    print(f"{name}: {len(base)} rows, {base.shape[1]} dimensions, {metric}, {len(queries)} queries")
    print(f"{'':40}{'recall':>8}{'queries/s':>12}")
    engines = []
    wanted = options.only.split(",") if options.only else list(PEERS)
    for peer in wanted:
        if peer not in PEERS:
            sys.exit(f"{peer}: no such library; there are {', '.join(PEERS)}")
        build, metrics = PEERS[peer]
        if metric not in metrics:
            print(f"{peer}: has no {metric}")
            continue
        started = time.perf_counter()
        how, settings = build(metric, base, queries)
        seconds = time.perf_counter() - started
        print(f"{peer}: {how}, built in {seconds:.1f} s")
        everywhere = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {max(everywhere)})
        rounds = {knob: [] for knob, _ in settings}
        recalls = {}
        for _ in range(options.rounds):
            for knob, (turn, ask) in settings:
                turn()
                speed, answers = measure(ask, queries, options.single, options.seconds)
                rounds[knob].append(speed)
                recalls[knob] = exact.recall(answers)
        os.sched_setaffinity(0, everywhere)
        points = []
        for knob, speeds in rounds.items():
            speed = float(np.median(speeds))
            print(f"  {knob:38}{recalls[knob]:8.4f}{speed:12.0f}")
            load = {"clients": 1, "qps": speed, "rounds": [{"qps": it} for it in speeds]}
            points.append({"knob": knob, "recall": recalls[knob], "loads": [load]})
        calls = "one query a call" if options.single else "all queries in one call"
        engines.append(
            {
                "name": peer,
                "through_sql": False,
                "rows": len(base),
                "build": f"{how}; {calls}",
                "build_seconds": seconds,
                "points": points,
            }
        )
    results = {
        "name": name,
        "metric": metric,
        "rows": len(base),
        "dimensions": base.shape[1],
        "queries": len(queries),
        "engines": engines,
    }
    out = options.out or os.path.join("target", "bench-sql", f"{name}.peers.json")
    os.makedirs(os.path.dirname(os.path.abspath(out)), exist_ok=True)
    with open(out, "w", encoding="utf-8") as file:
        json.dump(results, file, indent=1)
    print(f"written: {out}")


if __name__ == "__main__":
    main()
