//! Which components of a learned space have a code, and of how many bits.
//!
//! Pairs of rows in a cluster, one of them in the place of a query, tell what each kind of code
//! would miss of rows like these; the cheapest kind is taken.

use crate::quant::sign::{Coding, DIM_MULTIPLE, MOST_BITS};
use crate::quant::Subspace;

/// Pairs that are looked at.
const PAIRS: usize = 4096;

/// What it costs that codes of 128 dimensions miss as much as one bit for each does, to what they
/// cost themselves. Of more dimensions each bit misses less. Measured on image descriptors, word
/// vectors and made vectors of 768 dimensions, with codes of 8 to 192 bytes.
const COST_OF_MISSED: f64 = 2.0;
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
    let dim = sample.dim.next_multiple_of(DIM_MULTIPLE);
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

/// Sums over pairs of rows.
struct Measured {
    dim: usize,
    pairs: usize,
    /// Products of the two rows' squared distances from their centroid.
    squares: f64,
    /// What codes of the first components would miss, by their number.
    by_lead: Vec<Missed>,
}

/// What codes of the first components would miss, a sum over pairs.
#[derive(Clone, Copy, Default)]
struct Missed {
    /// Products of squared distances from the centroid in these components: what their codes are
    /// off by is a part of it.
    near: f64,
    /// Squared products of what is beyond them, and products of its squares.
    beyond_products: f64,
    beyond_squares: f64,
    /// Squares of what is beyond.
    beyond: f64,
}

impl Measured {
    fn of(sample: &Sample<'_>) -> Measured {
        let mut measured = Measured {
            dim: sample.dim,
            pairs: 0,
            squares: 0.0,
            by_lead: vec![Missed::default(); sample.components + 1],
        };
        let mut last = vec![None; sample.centroids.len() / sample.dim];
        let step = (sample.cluster_of.len() / (2 * PAIRS)).max(1);
        for (row, cluster) in sample.cluster_of.iter().enumerate() {
            let other = last[*cluster as usize].replace(row);
            if let Some(other) = other.filter(|_| row % step == 0 && measured.pairs < PAIRS) {
                measured.add(sample, row, other, *cluster as usize);
            }
        }
        measured
    }

    /// Adds a row and another one of its cluster.
    fn add(&mut self, sample: &Sample<'_>, row: usize, other: usize, cluster: usize) {
        let Sample { dim, components, .. } = *sample;
        let vector = |nth: usize| &sample.rows[nth * dim..][..dim];
        let point = |nth: usize| &sample.points[nth * components..][..components];
        let (a, b) = (vector(row), vector(other));
        let centroid = &sample.centroids[cluster * dim..][..dim];
        self.pairs += 1;
        self.squares += distance(a, centroid) * distance(b, centroid);
        // Of the components passed so far, and of all that is beyond them.
        let (mut near, mut far) = (0.0, 0.0);
        let (mut product, mut square, mut other_square) = (dot(a, b), dot(a, a), dot(b, b));
        let centre = &sample.centres[cluster * components..][..components];
        let parts = point(row).iter().zip(point(other)).zip(centre);
        for (((a, b), c), sum) in parts.zip(&mut self.by_lead[1..]) {
            let [a, b, c] = [*a, *b, *c].map(f64::from);
            near += (a - c) * (a - c);
            far += (b - c) * (b - c);
            product -= a * b;
            square = (square - a * a).max(0.0);
            other_square = (other_square - b * b).max(0.0);
            sum.near += near * far;
            sum.beyond_products += product * product;
            sum.beyond_squares += square * other_square;
            sum.beyond += square;
        }
    }

    /// Codes of the first components of the space.
    fn learned_kinds(&self) -> impl Iterator<Item = (Coding, Subspace)> + '_ {
        let components = self.by_lead.len() - 1;
        let leads = move |bits| (1..=components).map(move |lead| (lead, bits));
        let kinds = (0..=MOST_BITS.ilog2()).flat_map(move |power| leads(1 << power));
        kinds.filter(|(lead, bits)| (lead * bits).is_multiple_of(DIM_MULTIPLE)).map(
            move |(lead, bits)| {
                let sums = &self.by_lead[lead];
                // Rows to come may be unlike these, so nothing is taken to be beyond only where
                // there is no direction left.
                let beyond = if lead == self.dim {
                    0.0
                } else if sums.beyond_products > 0.0 {
                    let directions = sums.beyond_squares / sums.beyond_products;
                    directions.clamp(1.0, self.dim as f64) as f32
                } else {
                    1.0
                };
                let usual = (UNUSUAL * sums.beyond / self.pairs as f64) as f32;
                let coding = Coding { components: lead, bits, beyond, usual };
                let (components, lead, bits) = (components as u32, lead as u32, bits as u32);
                (coding, Subspace { components, lead, bits, beyond, usual, reserved: 0 })
            },
        )
    }

    /// Squares of what codes would be off by, a sum over pairs.
    fn missed(&self, coding: &Coding, subspace: &Subspace) -> f64 {
        let (near, beyond) = match self.by_lead.get(subspace.lead as usize) {
            Some(sums) if subspace.components > 0 => (sums.near, sums.beyond_products),
            _ => (self.squares, 0.0),
        };
        let beyond = if coding.beyond > 0.0 { beyond / QUERY_SQUARE } else { 0.0 };
        near * f64::from(coding.variance()) + beyond
    }

    /// The same of one bit for each of so many dimensions.
    fn missed_by_signs(&self, dim: usize) -> f64 {
        self.squares * f64::from(Coding::signs(dim).variance())
    }
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(x, y)| (f64::from(*x) - f64::from(*y)).powi(2)).sum()
}
