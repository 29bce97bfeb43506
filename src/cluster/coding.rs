//! Which components of a learned space have a code, and of how many bits.
//!
//! Rows and the nearest ones of their clusters, which stand for queries, tell what each kind of
//! code would miss of rows like these; the cheapest kind is taken.

use crate::quant::sign::{padded, Coding, DEVIATIONS, DIM_MULTIPLE, MOST_BITS};
use crate::quant::Subspace;
use crate::simd::kernels;

/// Pairs that are looked at, and rows among which the nearest is sought for each.
const PAIRS: usize = 4096;
const LOOKED_AT: usize = 128;

/// The share of pairs for which what is beyond the code is to be within the reach of a bound.
const WITHIN_REACH: f64 = 0.95;

/// What it costs that codes of 128 dimensions miss as much as one bit for each does, to what they
/// cost themselves. Of more dimensions each bit misses less. Measured on image descriptors, word
/// vectors and made vectors of 768 dimensions, with codes of 8 to 192 bytes.
const COST_OF_MISSED: f64 = 1.7;
const MISSED_DIMENSIONS: f64 = 128.0;

/// A row has more than usual beyond the components with a code if it has so many times as much as
/// the mean row.
const UNUSUAL: f64 = 4.0;

/// The square of a query's distance from the centroids it looks at, to that of their rows.
const QUERY_SQUARE: f64 = 2.0;

/// Rows in clusters, and as points of a space. All vectors are row-major.
pub(super) struct Sample<'a> {
    /// Dimensions of a row.
    pub dim: usize,
    pub rows: &'a [f32],
    /// The means of the clusters.
    pub centroids: &'a [f32],
    /// The cluster of each row.
    pub cluster_of: &'a [u32],
    /// Components of a point, those with most of the scatter first.
    pub components: usize,
    /// The points of the rows, and of the centroids.
    pub points: &'a [f32],
    pub centres: &'a [f32],
}

/// Chooses for rows like these.
pub(super) fn choose(sample: &Sample<'_>) -> Subspace {
    let measured = Measured::of(sample);
    let dim = padded(sample.dim);
    let of_missed = COST_OF_MISSED * (MISSED_DIMENSIONS / dim as f64).sqrt();
    let mut least = f64::INFINITY;
    let mut cheapest = Subspace::PLAIN;
    for (coding, subspace) in plain_kinds(dim).chain(measured.learned_kinds()) {
        let bytes = (coding.code_bits() / 8 + 3 * size_of::<f32>()) as f64;
        // The more is missed, the more rows are looked at in full.
        let missed = measured.missed(&coding, &subspace);
        let cost = bytes * (1.0 + of_missed * missed / measured.missed_by_signs(dim));
        if cost < least {
            (least, cheapest) = (cost, subspace);
        }
    }
    cheapest
}

/// Codes of all dimensions, of which there are `dim` after padding.
fn plain_kinds(dim: usize) -> impl Iterator<Item = (Coding, Subspace)> {
    [1, 2].into_iter().map(move |bits| {
        let coding = Coding { bits, ..Coding::signs(dim) };
        (coding, Subspace { bits: bits as u32, ..Subspace::PLAIN })
    })
}

/// What pairs of rows say.
struct Measured {
    dim: usize,
    components: usize,
    pairs: usize,
    /// Squares of the rows' squared distances from their centroid, a sum over pairs.
    squares: f64,
    /// What codes of the first components would miss.
    by_lead: Vec<Missed>,
}

/// What codes of the first components would miss.
#[derive(Clone, Default)]
struct Missed {
    lead: usize,
    /// Squares of the rows' squared distances from their centroid in these components, a sum over
    /// pairs: what their codes are off by is a part of it.
    near: f64,
    /// Squares of what is beyond them, and products of those of a pair, sums over pairs.
    beyond: f64,
    beyond_squares: f64,
    /// For each pair the cosine of what is beyond.
    cosines: Vec<f32>,
}

impl Missed {
    /// How many directions what is beyond seems to be spread over: the product of a pair is within
    /// the reach of a bound for nearly all. Rows that are near to each other may well be so there,
    /// too.
    fn directions(&self, dim: usize) -> f32 {
        let mut cosines = self.cosines.clone();
        let place = (cosines.len() as f64 * WITHIN_REACH) as usize;
        if place >= cosines.len() {
            return 1.0;
        }
        let (_, cosine, _) = cosines.select_nth_unstable_by(place, f32::total_cmp);
        if *cosine <= 0.0 {
            return dim as f32;
        }
        (DEVIATIONS / *cosine).powi(2).clamp(1.0, dim as f32)
    }
}

impl Measured {
    fn of(sample: &Sample<'_>) -> Measured {
        let leads = (1..=sample.components).filter(|lead| is_lead(*lead, sample.dim));
        let mut measured = Measured {
            dim: sample.dim,
            components: sample.components,
            pairs: 0,
            squares: 0.0,
            by_lead: leads.map(|lead| Missed { lead, ..Missed::default() }).collect(),
        };
        let mut members = vec![Vec::new(); sample.centroids.len() / sample.dim];
        for (row, cluster) in sample.cluster_of.iter().enumerate() {
            members[*cluster as usize].push(row);
        }
        let step = sample.cluster_of.len().div_ceil(PAIRS).max(1);
        for (row, cluster) in sample.cluster_of.iter().enumerate().step_by(step) {
            let others = &members[*cluster as usize];
            if let Some(other) = nearest(sample, row, others) {
                measured.add(sample, row, other, *cluster as usize);
            }
        }
        measured
    }

    /// Adds a row and a near one of its cluster.
    fn add(&mut self, sample: &Sample<'_>, row: usize, other: usize, cluster: usize) {
        let Sample { dim, components, .. } = *sample;
        let vector = |nth: usize| &sample.rows[nth * dim..][..dim];
        let point = |nth: usize| &sample.points[nth * components..][..components];
        let (a, b) = (vector(row), vector(other));
        let centroid = &sample.centroids[cluster * dim..][..dim];
        self.pairs += 1;
        self.squares += distance(a, centroid).powi(2);
        // Of the components passed so far, and of all that is beyond them.
        let mut near = 0.0;
        let (mut product, mut square, mut other_square) = (dot(a, b), dot(a, a), dot(b, b));
        let centre = &sample.centres[cluster * components..][..components];
        let mut parts = point(row).iter().zip(point(other)).zip(centre);
        let mut passed = 0;
        for sum in &mut self.by_lead {
            for ((a, b), c) in parts.by_ref().take(sum.lead - passed) {
                let [a, b, c] = [*a, *b, *c].map(f64::from);
                near += (a - c) * (a - c);
                product -= a * b;
                square = (square - a * a).max(0.0);
                other_square = (other_square - b * b).max(0.0);
            }
            passed = sum.lead;
            sum.near += near * near;
            sum.beyond += square;
            sum.beyond_squares += square * other_square;
            let lengths = (square * other_square).sqrt();
            sum.cosines.push(if lengths > 0.0 { (product / lengths) as f32 } else { 0.0 });
        }
    }

    /// Codes of the first components of the space.
    fn learned_kinds(&self) -> impl Iterator<Item = (Coding, Subspace)> + '_ {
        let kinds = (0..=MOST_BITS.ilog2()).map(|power| 1 << power);
        let kinds = kinds.flat_map(|bits: usize| self.by_lead.iter().map(move |sums| (sums, bits)));
        kinds.filter(|(sums, bits)| (sums.lead * bits).is_multiple_of(DIM_MULTIPLE)).map(
            |(sums, bits)| {
                let usual = (UNUSUAL * sums.beyond / self.pairs as f64) as f32;
                let beyond = sums.directions(self.dim);
                let coding = Coding { components: sums.lead, bits, beyond, usual };
                let (components, lead) = (self.components as u32, sums.lead as u32);
                let bits = bits as u32;
                (coding, Subspace { components, lead, bits, beyond, usual, reserved: 0 })
            },
        )
    }

    /// Squares of what codes would be off by, a sum over pairs.
    fn missed(&self, coding: &Coding, subspace: &Subspace) -> f64 {
        let learned = self.by_lead.iter().find(|sums| sums.lead == subspace.lead as usize);
        let (near, beyond) = match learned {
            Some(sums) => (sums.near, sums.beyond_squares / f64::from(coding.beyond)),
            None => (self.squares, 0.0),
        };
        near * f64::from(coding.variance()) + beyond / QUERY_SQUARE
    }

    /// The same of one bit for each of so many dimensions.
    fn missed_by_signs(&self, dim: usize) -> f64 {
        self.squares * f64::from(Coding::signs(dim).variance())
    }
}

/// Whether so many components may have a code. The two overlapping matrices of a rotation that is
/// of no power of two mix well what many components are in both of. And rows to come may be unlike
/// these, so that something is always taken to be beyond.
fn is_lead(lead: usize, dim: usize) -> bool {
    let overlap = 2 * (1usize << lead.ilog2()) - lead;
    let mixes = lead.is_power_of_two() || overlap * 4 >= lead;
    lead < dim && mixes && (lead * MOST_BITS).is_multiple_of(DIM_MULTIPLE)
}

/// The nearest of the other rows of a cluster, by their points.
fn nearest(sample: &Sample<'_>, row: usize, others: &[usize]) -> Option<usize> {
    let point = |nth: usize| &sample.points[nth * sample.components..][..sample.components];
    let l2_squared = kernels().l2_squared;
    let ranked = others
        .iter()
        .take(LOOKED_AT)
        .filter(|other| **other != row)
        .map(|other| (l2_squared(point(row), point(*other)), *other));
    ranked.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, other)| other)
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum()
}
