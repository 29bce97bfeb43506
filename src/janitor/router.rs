//! The router as a column of pages, and its training.

use super::crew::Crew;
use super::rows::{RowStore, Sample};
use crate::cluster::{self, kmeans, Router, Stopped, Trained, VectorSpace};
use crate::metric::Metric;
use crate::page::{Column, Fault, Index, Read, RouterRef};
use crate::quant::{self, Projection, Subspace};
use crate::search::Trial;
use crate::simd::kernels;
use rayon::prelude::*;
use std::mem::size_of;

/// Rows a bucket is meant to have at least: finer buckets are looked into for their own sake.
const ROWS_PER_BUCKET: u64 = 50;
/// Buckets for each square root of a row at most: scoring them all is to stay a small part of a
/// search.
const BUCKETS_PER_ROOT: f64 = 8.0;
/// With fewer rows than this, one bucket holds them all.
const FEWEST_ROWS: u64 = 2_000;
/// Rows trained on, for each bucket.
const SAMPLES_PER_BUCKET: usize = 64;
/// Rows trained on for each bucket at least, or there will be fewer buckets.
const FEWEST_SAMPLES_PER_BUCKET: usize = 8;
const ITERATIONS: usize = 10;

/// Queries of the trial that calibrates a router, unless the rows are too many or too long.
const TRIAL_QUERIES: usize = 512;
const FEWEST_TRIAL_QUERIES: usize = 48;
/// Components compared in a trial, about.
const TRIAL_WORK: usize = 80_000_000_000;

/// Trains centroids for the rows of `store`, and picks rows to try them with.
pub fn train(crew: &Crew, metric: Metric, dims: usize, store: &mut RowStore) -> (Trained, Trial) {
    let rows = store.len() as u64;
    let wanted = buckets_for(rows);
    let queries =
        (TRIAL_WORK / (store.len() * dims).max(1)).clamp(FEWEST_TRIAL_QUERIES, TRIAL_QUERIES);
    // One bucket needs no trial: it is looked at whole.
    let queries = if wanted == 1 { 0 } else { queries };
    // What a router is tried with is not what it was trained on.
    let Sample { rows: sample, apart } = store.sample(wanted * SAMPLES_PER_BUCKET, queries);
    let trial = Trial::new(metric, dims, apart);
    let clusters = wanted.min(sample.len() / dims / FEWEST_SAMPLES_PER_BUCKET).max(1);
    let params = kmeans::Params {
        clusters,
        iterations: ITERATIONS,
        seed: rows,
        spherical: metric == Metric::Cosine,
    };
    let trained = crew.run(move |stop| {
        let mut sample = sample;
        if metric == Metric::Cosine && !are_unit(dims, &sample) {
            quant::normalize_rows(dims, sample.to_mut());
        }
        cluster::train(&sample, metric, dims, &params, stop)
    });
    // A stopped job has already ended the statement.
    let nothing =
        |Stopped| Trained { centroids: vec![0.0; dims], space: VectorSpace::plain(metric, dims) };
    (trained.unwrap_or_else(nothing), trial)
}

/// Whether all rows are of length one, as far as training is concerned.
fn are_unit(dims: usize, rows: &[f32]) -> bool {
    const TOLERANCE: f32 = 1e-4;
    let squared = |row: &[f32]| (kernels().inner_product)(row, row);
    rows.par_chunks(dims).all(|row| (squared(row) - 1.0).abs() <= TOLERANCE)
}

/// How many buckets so many rows are to have.
fn buckets_for(rows: u64) -> usize {
    if rows < FEWEST_ROWS {
        return 1;
    }
    let most = (rows as f64).sqrt() * BUCKETS_PER_ROOT;
    (rows / ROWS_PER_BUCKET).min(most as u64) as usize
}

/// The bytes of a router's column: centroids, then radii, then its space if it is another than
/// that of rows from which nothing was learned.
pub fn encode(router: &Router) -> Vec<u8> {
    let mut bytes = bytemuck::cast_slice(router.centroids()).to_vec();
    bytes.extend_from_slice(bytemuck::cast_slice(router.radii()));
    let space = router.space();
    let subspace = space.projection.subspace();
    if subspace != Subspace::PLAIN {
        bytes.extend_from_slice(bytemuck::bytes_of(&subspace));
        bytes.extend_from_slice(bytemuck::cast_slice(&space.basis));
    }
    bytes
}

/// Length of the column of a router of so many buckets, but for its space.
pub fn encoded_len(dims: usize, buckets: usize) -> u64 {
    (buckets * (dims + 1) * size_of::<f32>()) as u64
}

/// Reads the router all segments are sorted by.
pub fn load(index: Index, metric: Metric, dims: usize, stored: &RouterRef) -> Read<Router> {
    let column: &Column = &stored.column;
    let block = column.extents.first().map_or(0, |extent| extent.start);
    let buckets = stored.buckets as usize;
    if column.bytes < encoded_len(dims, buckets) {
        return Err(Fault::damaged(block, "router length"));
    }
    let bytes = column.read_all(index)?;
    let (numbers, space) = bytes.split_at(encoded_len(dims, buckets) as usize);
    let space = decode_space(metric, dims, space).ok_or(Fault::damaged(block, "router space"))?;
    let values: Vec<f32> = bytemuck::pod_collect_to_vec(numbers);
    let (centroids, radii) = values.split_at(buckets * dims);
    Ok(Router::within(space, metric, centroids.to_vec(), radii.to_vec()))
}

/// The space of a router from what follows its radii.
fn decode_space(metric: Metric, dims: usize, bytes: &[u8]) -> Option<VectorSpace> {
    if bytes.is_empty() {
        return Some(VectorSpace::plain(metric, dims));
    }
    let (subspace, basis) = bytes.split_at_checked(size_of::<Subspace>())?;
    let subspace: Subspace = bytemuck::pod_read_unaligned(subspace);
    let projection = Projection::stored(metric, dims, subspace)?;
    let fits = basis.len() == subspace.basis_len(dims) * size_of::<f32>();
    fits.then(|| VectorSpace { projection, basis: bytemuck::pod_collect_to_vec(basis) })
}
