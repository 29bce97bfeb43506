//! The router: which buckets a row belongs to, and in what order a query looks into them.

use std::borrow::Cow;
use std::sync::atomic::AtomicBool;
use std::sync::OnceLock;

use super::assign::PackedCentroids;
use super::best::Nearest;
use super::groups::Groups;
use super::spill::{spill, Near};
use super::subspace::VectorSpace;
use super::two_level::{GroupedCentroids, LEAST_CENTROIDS, LEAST_ROWS};
use super::{get_or_try_init, Stopped};
use crate::metric::Metric;
use crate::simd::kernels;

/// By how many standard deviations the best row of a bucket is taken to exceed the product of the
/// query and the centroid. Rows scatter about the centroid by `radius / sqrt(dim)` along a
/// direction; three of them take the fewest rows to a recall on word vectors and image descriptors.
const PRODUCT_REACH: f32 = 3.0;

/// The square of a distance at which a row is a stranger, to the usual one.
const STRANGE: f32 = 4.0;

/// The factor of a bucket's radius by which its best row is taken to exceed the product of a query,
/// in `dim` dimensions, and the centroid.
pub fn product_reach(query: &[f32], dim: usize) -> f32 {
    PRODUCT_REACH * (kernels().inner_product)(query, query).sqrt() / (dim as f32).sqrt()
}

/// What is found out about a router once and used by all searches and assignments.
#[derive(Clone, Copy)]
pub struct Routed<'r> {
    /// The centroids as they are compared, row-major.
    pub points: &'r [f32],
    /// The groups of these.
    pub groups: &'r Groups,
}

/// Centroids of buckets, and how far the rows of each scatter.
pub struct Router {
    metric: Metric,
    dim: usize,
    centroids: Vec<f32>,
    radii: Vec<f32>,
    space: VectorSpace,
    /// The centroids there.
    points: OnceLock<Vec<f32>>,
    groups: OnceLock<Groups>,
    /// Made by the first assignment; a search has no use for them.
    packed: OnceLock<PackedCentroids>,
    grouped: OnceLock<GroupedCentroids>,
}

impl Router {
    /// A router over row-major centroids of `dim` components. For each there is a radius, the root
    /// mean square distance of its bucket's rows to it.
    ///
    /// # Panics
    /// When the numbers of centroids and radii differ.
    pub fn new(metric: Metric, dim: usize, centroids: Vec<f32>, radii: Vec<f32>) -> Router {
        Router::within(VectorSpace::plain(metric, dim), metric, centroids, radii)
    }

    /// The same where rows and centroids are compared in a space.
    ///
    /// # Panics
    /// When the numbers of centroids and radii differ.
    pub fn within(
        space: VectorSpace,
        metric: Metric,
        centroids: Vec<f32>,
        radii: Vec<f32>,
    ) -> Router {
        let dim = space.projection.dim();
        assert_eq!(Some(centroids.len()), radii.len().checked_mul(dim), "one radius a centroid");
        Router {
            metric,
            dim,
            centroids,
            radii,
            space,
            points: OnceLock::new(),
            groups: OnceLock::new(),
            packed: OnceLock::new(),
            grouped: OnceLock::new(),
        }
    }

    /// The same router with other radii.
    ///
    /// # Panics
    /// When there are more or fewer of them.
    pub fn with_radii(self, radii: Vec<f32>) -> Router {
        assert_eq!(self.radii.len(), radii.len(), "one radius a centroid");
        Router { radii, ..self }
    }

    /// The distance the buckets are searched by.
    pub fn metric(&self) -> Metric {
        self.metric
    }

    /// Components of a centroid.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// How many buckets there are.
    pub fn len(&self) -> usize {
        self.radii.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.radii.is_empty()
    }

    /// The centroid of a bucket. Panics when there is no such bucket.
    pub fn centroid(&self, bucket: usize) -> &[f32] {
        &self.centroids[bucket * self.dim..][..self.dim]
    }

    /// All centroids, row-major.
    pub fn centroids(&self) -> &[f32] {
        &self.centroids
    }

    /// For each bucket the root mean square distance of its rows to the centroid.
    pub fn radii(&self) -> &[f32] {
        &self.radii
    }

    /// The space rows and centroids are compared in.
    pub fn space(&self) -> &VectorSpace {
        &self.space
    }

    /// The centroids as they are compared, row-major, and how many components each has there.
    ///
    /// # Errors
    /// [`Stopped`] when the flag went up.
    pub fn points(&self, stop: &AtomicBool) -> Result<(&[f32], usize), Stopped> {
        let made = || Ok(self.space.project_rows(&self.centroids, stop)?.into_owned());
        Ok((get_or_try_init(&self.points, made)?, self.space.projection.components()))
    }

    /// The groups of the points that a search looks into one by one.
    ///
    /// # Errors
    /// [`Stopped`] when the flag went up.
    pub fn groups(&self, stop: &AtomicBool) -> Result<&Groups, Stopped> {
        let (points, components) = self.points(stop)?;
        get_or_try_init(&self.groups, || Groups::of(points, components, stop))
    }

    /// All that a search or an assignment needs to know.
    ///
    /// # Errors
    /// [`Stopped`] when the flag went up.
    pub fn routed(&self, stop: &AtomicBool) -> Result<Routed<'_>, Stopped> {
        let (points, _) = self.points(stop)?;
        Ok(Routed { points, groups: self.groups(stop)? })
    }

    /// Tells which rows are unlike those the buckets were trained on, from their buckets and
    /// squared distances to the centroids: twice as far as rows usually are, there and in all
    /// buckets.
    pub fn strangers(&self) -> impl Fn(u32, f32) -> bool + '_ {
        // A bucket that has had no rows has no radius.
        let radii = self.radii.iter().filter(|radius| **radius > 0.0);
        let (sum, count) = radii.fold((0.0, 0u32), |(sum, count), radius| {
            (sum + f64::from(*radius).powi(2), count + 1)
        });
        let mean = (sum / f64::from(count.max(1))) as f32;
        // All rows are in the one bucket there is, and found wherever they lie.
        let is_trained = self.len() > 1;
        move |bucket, square| {
            let usual = mean.max(self.radii[bucket as usize].powi(2));
            is_trained && square > STRANGE * usual
        }
    }

    /// Takes what has been found out about these centroids before.
    ///
    /// # Panics
    /// When it is of other numbers of centroids.
    pub fn learn(&self, points: Vec<f32>, groups: Groups) {
        assert_eq!(points.len(), self.len() * self.space.projection.components(), "points");
        let _ = self.points.set(points);
        let members: usize = groups.iter().map(|(_, members)| members.len()).sum();
        assert_eq!(members, self.len(), "a group for each centroid");
        let _ = self.groups.set(groups);
    }

    /// Writes the bucket of each row to `out`: that of the centroid at the least Euclidean
    /// distance, whatever the metric. For [`Metric::Cosine`] the rows have unit length.
    ///
    /// Where there are many buckets and rows, one row in a hundred may get a bucket that is
    /// only nearly the nearest; in a learned space distances are those there.
    ///
    /// # Errors
    /// [`Stopped`] when the flag went up.
    pub fn assign(&self, rows: &[f32], out: &mut [u32], stop: &AtomicBool) -> Result<(), Stopped> {
        self.nearest(&self.space.project_rows(rows, stop)?, out, stop)
    }

    /// [`Router::assign`] and [`Router::spill`] at once; returns the rows as they are compared, which
    /// are [`Projection::components`](crate::quant::Projection::components) each.
    ///
    /// # Errors
    /// [`Stopped`] when the flag went up.
    pub fn assign_and_spill<'r>(
        &self,
        rows: &'r [f32],
        first: &mut [u32],
        second: &mut [u32],
        stop: &AtomicBool,
    ) -> Result<Cow<'r, [f32]>, Stopped> {
        let ((centroids, dim), rows) = (self.points(stop)?, self.space.project_rows(rows, stop)?);
        let mut near = vec![Near::default(); first.len()];
        self.nearest(&rows, &mut near, stop)?;
        near.iter().zip(&mut *first).for_each(|(near, first)| *first = near.first);
        spill(centroids, &rows, dim, &near, first, second, stop)?;
        Ok(rows)
    }

    /// Writes the bucket of each row, as it is compared, to `out`.
    fn nearest<T: Nearest>(
        &self,
        rows: &[f32],
        out: &mut [T],
        stop: &AtomicBool,
    ) -> Result<(), Stopped> {
        let (centroids, dim) = self.points(stop)?;
        if self.len() >= LEAST_CENTROIDS && rows.len() / dim >= LEAST_ROWS {
            let groups = self.groups(stop)?;
            let grouped = get_or_try_init(&self.grouped, || {
                GroupedCentroids::new(centroids, dim, groups, stop)
            })?;
            if grouped.nearest(rows, out, stop)? {
                return Ok(());
            }
        }
        let packed = get_or_try_init(&self.packed, || PackedCentroids::new(centroids, dim, stop))?;
        packed.nearest(rows, out, stop)
    }

    /// Writes a second bucket for each row to `out`, of which `first` are the ones that
    /// [`Router::assign`] found: a bucket where a query is likely to look that misses the first.
    /// [`NO_BUCKET`](super::NO_BUCKET) where there is no other.
    ///
    /// # Errors
    /// [`Stopped`] when the flag went up.
    pub fn spill(
        &self,
        rows: &[f32],
        first: &[u32],
        out: &mut [u32],
        stop: &AtomicBool,
    ) -> Result<(), Stopped> {
        let ((centroids, dim), rows) = (self.points(stop)?, self.space.project_rows(rows, stop)?);
        let mut near = vec![Near::default(); first.len()];
        self.nearest(&rows, &mut near, stop)?;
        spill(centroids, &rows, dim, &near, first, out, stop)
    }

    /// Writes a score for each bucket to `out`; the least is to be looked into first.
    ///
    /// For [`Metric::Cosine`] the query has unit length.
    pub fn scores(&self, query: &[f32], out: &mut Vec<f32>) {
        out.clear();
        let k = kernels();
        let centroids = self.centroids.chunks_exact(self.dim);
        match self.metric {
            Metric::L2 => out.extend(centroids.map(|c| (k.l2_squared)(query, c))),
            Metric::L1 => out.extend(centroids.map(|c| (k.l1)(query, c))),
            Metric::Cosine => out.extend(centroids.map(|c| -(k.inner_product)(query, c))),
            Metric::InnerProduct => {
                let reach = product_reach(query, self.dim);
                let scored = centroids.zip(&self.radii);
                out.extend(
                    scored.map(|(c, radius)| -((k.inner_product)(query, c) + reach * radius)),
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn router(metric: Metric) -> Router {
        let centroids = vec![1.0, 0.0, 0.0, 2.0, -1.0, -1.0];
        Router::new(metric, 2, centroids, vec![0.5, 0.25, 4.0])
    }

    fn order(metric: Metric, query: &[f32]) -> Vec<usize> {
        let mut scores = vec![f32::NAN; 7];
        router(metric).scores(query, &mut scores);
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|&a, &b| scores[a].total_cmp(&scores[b]));
        order
    }

    #[test]
    #[should_panic(expected = "one radius a centroid")]
    fn parts_that_do_not_fit_are_refused() {
        Router::new(Metric::L2, 2, vec![0.0; 6], vec![0.0; 2]);
    }

    #[test]
    fn what_went_in_comes_out() {
        let router = router(Metric::L1);
        assert_eq!((router.metric(), router.dim(), router.len()), (Metric::L1, 2, 3));
        assert_eq!(router.centroid(1), [0.0, 2.0]);
        assert_eq!(router.centroids().len(), 6);
        assert_eq!(router.radii(), [0.5, 0.25, 4.0]);
    }

    #[test]
    fn rows_go_to_the_nearest_centroid_whatever_the_metric() {
        for metric in [Metric::L2, Metric::InnerProduct, Metric::Cosine, Metric::L1] {
            let mut out = [9; 4];
            let rows = [5.0, 0.0, 0.1, 1.5, -9.0, 0.0, 0.9, 0.1];
            router(metric).assign(&rows, &mut out, &AtomicBool::new(false)).unwrap();
            assert_eq!(out, [0, 1, 2, 0]);
        }
        let stop = AtomicBool::new(true);
        assert_eq!(router(Metric::L2).assign(&[0.0; 2], &mut [0], &stop), Err(Stopped));
    }

    #[test]
    fn strangers_are_far_from_every_bucket() {
        // Radii 0.5, 0.25 and 4; the mean square is about 5.4.
        let router = router(Metric::L2);
        let is_stranger = router.strangers();
        assert!(!is_stranger(0, 21.0) && is_stranger(0, 22.0));
        assert!(!is_stranger(2, 63.0) && is_stranger(2, 65.0));
        let one = Router::new(Metric::L2, 2, vec![0.0; 2], vec![1.0]);
        assert!(!one.strangers()(0, 1e9));
    }

    #[test]
    fn many_rows_and_buckets_make_no_difference() {
        // A lattice of centroids, and rows that are each nearer to one than to all others.
        let centroids: Vec<f32> =
            (0..4096).flat_map(|i| [i / 256, i / 16 % 16, i % 16].map(|x| x as f32)).collect();
        let rows: Vec<f32> = [&centroids[..]; 3].concat().iter().map(|x| x + 0.2).collect();
        let buckets = centroids.len() / 3;
        let router = Router::new(Metric::L2, 3, centroids, vec![0.0; buckets]);
        let mut out = vec![u32::MAX; rows.len() / 3];
        router.assign(&rows, &mut out, &AtomicBool::new(false)).unwrap();
        assert!(router.grouped.get().is_some());
        let right = out.iter().enumerate().filter(|(i, &b)| i % buckets == b as usize).count();
        assert!(right * 1000 >= out.len() * 990, "{right} of {}", out.len());
    }

    #[test]
    fn the_nearest_bucket_is_looked_into_first() {
        assert_eq!(order(Metric::L2, &[0.0, 1.1]), [1, 0, 2]);
        assert_eq!(order(Metric::L1, &[-1.0, -0.6]), [2, 0, 1]);
        assert_eq!(order(Metric::Cosine, &[0.8, 0.6]), [1, 0, 2]);
    }

    #[test]
    fn a_wide_bucket_may_hold_the_greatest_product() {
        // The third centroid's own product is the least, but its rows lie far about it.
        let query = [1.0, 0.0];
        let mut scores = Vec::new();
        router(Metric::InnerProduct).scores(&query, &mut scores);
        let expected: Vec<f32> = [(1.0, 0.5), (0.0, 0.25), (-1.0, 4.0)]
            .map(|(product, radius): (f32, f32)| -(product + PRODUCT_REACH * radius / 2f32.sqrt()))
            .to_vec();
        for (score, expected) in scores.iter().zip(&expected) {
            assert!((score - expected).abs() < 1e-6);
        }
        assert_eq!(order(Metric::InnerProduct, &query)[0], 2);
    }
}
