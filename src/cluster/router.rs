//! The router: which buckets a row goes to and a query looks at.

use super::groups::Assigner;
use super::Stopped;
use crate::metric::Metric;
use crate::simd::kernels;
use std::sync::atomic::AtomicBool;
use std::sync::OnceLock;

/// Standard deviations of a bucket's rows along a query that its score is raised by, when long
/// rows are near ones.
const DEVIATIONS: f32 = 1.0;

/// The centroids of all buckets, and how far from them their rows are.
pub struct Router {
    metric: Metric,
    dim: usize,
    centroids: Vec<f32>,
    radii: Vec<f32>,
    assigner: OnceLock<Assigner>,
}

impl Router {
    /// A router of `centroids.len() / dim` buckets.
    ///
    /// `centroids` is row-major; `radii` holds for each bucket the root of the mean squared
    /// distance of its rows to its centroid. With [`Metric::Cosine`] both are those of rows brought
    /// to length one.
    ///
    /// # Panics
    /// If the lengths do not agree.
    pub fn new(metric: Metric, dim: usize, centroids: Vec<f32>, radii: Vec<f32>) -> Router {
        assert!(dim > 0 && centroids.len() == radii.len() * dim, "dimensions");
        Router { metric, dim, centroids, radii, assigner: OnceLock::new() }
    }

    /// Number of buckets.
    pub fn len(&self) -> usize {
        self.radii.len()
    }

    /// Whether there is no bucket.
    pub fn is_empty(&self) -> bool {
        self.radii.is_empty()
    }

    /// The centroid of one bucket.
    ///
    /// # Panics
    /// If there is no such bucket.
    pub fn centroid(&self, bucket: usize) -> &[f32] {
        &self.centroids[bucket * self.dim..][..self.dim]
    }

    /// All centroids, row-major.
    pub fn centroids(&self) -> &[f32] {
        &self.centroids
    }

    /// All radii, in the order of the buckets.
    pub fn radii(&self) -> &[f32] {
        &self.radii
    }

    /// Finds the bucket of each row: the one whose centroid is at the least Euclidean distance,
    /// whatever the metric. With many buckets it may, for less than one row in a hundred, be
    /// another near one.
    ///
    /// With [`Metric::Cosine`], `rows` have length one. The first call prepares the centroids.
    ///
    /// # Errors
    /// [`Stopped`] once `stop` is true; `out` is then partly written.
    ///
    /// # Panics
    /// If there is no bucket, or `rows` has not as many rows as `out` has elements.
    pub fn assign(&self, rows: &[f32], out: &mut [u32], stop: &AtomicBool) -> Result<(), Stopped> {
        assert!(!self.is_empty(), "no bucket");
        let assigner = match self.assigner.get() {
            Some(assigner) => assigner,
            None => {
                let made = Assigner::new(&self.centroids, self.dim, stop)?;
                self.assigner.get_or_init(|| made)
            }
        };
        assigner.nearest(rows, out, stop)
    }

    /// Replaces `out` by one score a bucket; the lowest should be probed first.
    ///
    /// Squared distance for [`Metric::L2`], distance for [`Metric::L1`]. The negative inner product
    /// for [`Metric::Cosine`], where the query has length one, and for [`Metric::InnerProduct`],
    /// where it is lowered by what the bucket's rows spread along the query.
    pub fn scores(&self, query: &[f32], out: &mut Vec<f32>) {
        let kernels = kernels();
        let centroids = self.centroids.chunks_exact(self.dim);
        out.clear();
        match self.metric {
            Metric::L2 => out.extend(centroids.map(|c| (kernels.l2_squared)(query, c))),
            Metric::L1 => out.extend(centroids.map(|c| (kernels.l1)(query, c))),
            Metric::Cosine => out.extend(centroids.map(|c| -(kernels.inner_product)(query, c))),
            Metric::InnerProduct => {
                let length = (kernels.inner_product)(query, query).sqrt();
                let weight = DEVIATIONS * length / (self.dim as f32).sqrt();
                out.extend(
                    centroids
                        .zip(&self.radii)
                        .map(|(c, radius)| -((kernels.inner_product)(query, c) + weight * radius)),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scores(metric: Metric, query: &[f32]) -> Vec<f32> {
        let router =
            Router::new(metric, 2, vec![0.0, 0.0, 3.0, 4.0, 0.0, 0.0], vec![0.0, 0.0, 2.0]);
        let mut scores = vec![7.0];
        router.scores(query, &mut scores);
        scores
    }

    #[test]
    fn scores_follow_the_metric() {
        assert_eq!(scores(Metric::L2, &[3.0, 0.0]), [9.0, 16.0, 9.0]);
        assert_eq!(scores(Metric::L1, &[3.0, 0.0]), [3.0, 4.0, 3.0]);
        assert_eq!(scores(Metric::Cosine, &[1.0, 0.0]), [0.0, -3.0, 0.0]);
    }

    #[test]
    fn a_wide_bucket_may_hold_a_greater_inner_product() {
        let scores = scores(Metric::InnerProduct, &[1.0, 0.0]);
        assert_eq!(scores[..2], [0.0, -3.0]);
        assert!(scores[2] < scores[0]);
    }

    #[test]
    fn rows_go_to_the_nearest_bucket_and_a_stop_leaves_the_router_usable() {
        let router = Router::new(Metric::L2, 1, vec![0.0, 10.0], vec![0.0; 2]);
        let mut out = [9; 3];
        let found = router.assign(&[1.0, 9.0, 4.0], &mut out, &AtomicBool::new(true));
        assert_eq!(found, Err(Stopped));
        router.assign(&[1.0, 9.0, 4.0], &mut out, &AtomicBool::new(false)).unwrap();
        assert_eq!(out, [0, 1, 0]);
        assert_eq!((router.len(), router.is_empty(), router.centroid(1)), (2, false, &[10.0][..]));
    }
}
