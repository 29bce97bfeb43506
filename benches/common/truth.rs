//! The true nearest rows of queries.

use crate::common::{little_endian, read_records, read_vectors, Result, Rows};
use drift_pg::metric::Metric;
use rayon::prelude::*;

/// Neighbours a query looks for.
pub const K: usize = 10;

/// Reads base vectors, queries and the numbers of each query's nearest rows; `truth` may be `-` to
/// compute them.
pub fn read(
    base: &str,
    query: &str,
    truth: &str,
    metric: Metric,
) -> Result<(Rows, Rows, Vec<Vec<usize>>)> {
    let (mut base, mut queries) = (read_vectors(base)?, read_vectors(query)?);
    if base.dim != queries.dim {
        return Err("base and queries differ in dimensions".into());
    }
    if metric == Metric::Cosine {
        base.normalize();
        queries.normalize();
    }
    let truth = match truth {
        "-" => nearest_rows(&base, &queries, metric),
        path => read_records(path, 4)?
            .1
            .into_iter()
            .map(|row| row.chunks_exact(4).take(K).map(|x| little_endian(x) as usize).collect())
            .collect(),
    };
    Ok((base, queries, truth))
}

/// The true nearest rows of each query.
fn nearest_rows(base: &Rows, queries: &Rows, metric: Metric) -> Vec<Vec<usize>> {
    let nearest = |q| {
        let mut ranked: Vec<(f64, usize)> =
            (0..base.len()).map(|i| (metric.rank(queries.row(q), base.row(i)), i)).collect();
        ranked.sort_by(|a, b| a.0.total_cmp(&b.0));
        ranked.into_iter().take(K).map(|(_, i)| i).collect()
    };
    (0..queries.len()).into_par_iter().map(nearest).collect()
}
