//! The random rotation that codes are made under.
//!
//! Signs of components say most of a vector whose components are alike. A random rotation makes
//! them so whatever the data. It is a product of diagonal matrices of random signs and of Hadamard
//! matrices (Ailon and Chazelle, "The fast Johnson-Lindenstrauss transform", SIAM J. Comput. 39,
//! 2009), which takes `d log d` additions. Where `d` is no power of two, Hadamard matrices over the
//! first components and over the last ones take turns.

use super::sign;
use crate::metric::Metric;
use crate::simd::kernels;

/// Rounds of signs and a Hadamard matrix over all components.
const ROUNDS: usize = 3;

/// Rounds when no Hadamard matrix is over all components.
const ROUNDS_IN_PARTS: usize = 4;

/// Half a unit in the last place of f32, relative, with room for terms of second order.
const ROUND: f64 = 1.01 / (1u64 << 24) as f64;

/// A rotation of vectors of `dim` components into at least as many.
///
/// Of an index's vectors it is the identity where there are no sign codes ([`sign::are_used`]).
/// Otherwise it depends on the dimensions alone.
#[derive(Clone, Debug)]
pub struct Rotation {
    dim: usize,
    padded: usize,
    /// For each round a sign a component, divided by the root of the matrix's size where that is
    /// over it; none for the identity.
    signs: Vec<f32>,
}

impl Rotation {
    /// The rotation of an index's vectors.
    pub fn new(metric: Metric, dim: usize) -> Rotation {
        if !sign::are_used(metric, dim) {
            return Rotation { dim, padded: dim, signs: Vec::new() };
        }
        Rotation::padding(dim, sign::padded(dim))
    }

    /// A rotation of so many components into as many, whatever it is for.
    pub fn square(dim: usize) -> Rotation {
        Rotation::padding(dim, dim)
    }

    fn padding(dim: usize, padded: usize) -> Rotation {
        let mut state = dim as u64;
        let rounds = if padded.is_power_of_two() { ROUNDS } else { ROUNDS_IN_PARTS };
        let block = largest_power(padded);
        let scale = 1.0 / (block as f32).sqrt();
        let signs = (0..rounds * padded).map(|at| {
            let sign = if split_mix(&mut state) >> 63 == 0 { 1.0 } else { -1.0 };
            let first = first_of_block(at / padded, padded, block);
            if (first..first + block).contains(&(at % padded)) {
                sign * scale
            } else {
                sign
            }
        });
        Rotation { dim, padded, signs: signs.collect() }
    }

    /// Components of a vector.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// Components of a rotated vector.
    pub fn padded(&self) -> usize {
        self.padded
    }

    /// Writes the rotated `vector` to `out`, which has [`Rotation::padded`] components.
    ///
    /// # Panics
    /// When the lengths are others.
    pub fn rotate(&self, vector: &[f32], out: &mut [f32]) {
        assert_eq!((vector.len(), out.len()), (self.dim, self.padded), "dimensions");
        let (copy, padding) = out.split_at_mut(self.dim);
        copy.copy_from_slice(vector);
        padding.fill(0.0);
        self.rotate_in_place(out);
    }

    /// The same for a vector that is there already, with zeroes behind it.
    ///
    /// # Panics
    /// When it has not [`Rotation::padded`] components.
    pub fn rotate_in_place(&self, out: &mut [f32]) {
        assert_eq!(out.len(), self.padded, "dimensions");
        let block = largest_power(self.padded);
        for (round, signs) in self.signs.chunks_exact(self.padded).enumerate() {
            let first = first_of_block(round, self.padded, block);
            let span = first..first + block;
            for rest in [0..span.start, span.end..self.padded] {
                let rest = out[rest.clone()].iter_mut().zip(&signs[rest]);
                rest.for_each(|(x, sign)| *x *= sign);
            }
            (kernels().hadamard)(&mut out[span.clone()], &signs[span]);
        }
    }

    /// Bounds the length of what rounding adds to a rotated vector, relative to the vector's.
    pub fn rounding(&self) -> f64 {
        if self.signs.is_empty() {
            return 0.0;
        }
        // Each step of a butterfly rounds each component once, the scale twice.
        let steps = f64::from(largest_power(self.padded).ilog2()) + 2.0;
        (self.signs.len() / self.padded) as f64 * steps * ROUND
    }
}

/// The largest power of two not above so many components: the size of the Hadamard matrices.
fn largest_power(padded: usize) -> usize {
    1 << padded.max(1).ilog2()
}

/// The first component a round's matrix is over.
fn first_of_block(round: usize, padded: usize, block: usize) -> usize {
    if round.is_multiple_of(2) {
        0
    } else {
        padded - block
    }
}

/// SplitMix64 (Steele, Lea and Flood, OOPSLA 2014): signs that will never be others.
fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{rngs::SmallRng, Rng, SeedableRng};

    fn rotated(rotation: &Rotation, vector: &[f32]) -> Vec<f32> {
        let mut out = vec![f32::NAN; rotation.padded()];
        rotation.rotate(vector, &mut out);
        out
    }

    #[test]
    fn lengths_and_products_are_kept_within_the_rounding() {
        let mut rng = SmallRng::seed_from_u64(1);
        for dim in [64, 65, 100, 128, 200, 384, 768, 1000, 1536, 4095] {
            let rotation = Rotation::new(Metric::L2, dim);
            let draw = |rng: &mut SmallRng| -> Vec<f32> {
                (0..dim).map(|_| 5.0 + rng.random_range(-1.0f32..1.0)).collect()
            };
            let (a, b) = (draw(&mut rng), draw(&mut rng));
            let (c, d) = (rotated(&rotation, &a), rotated(&rotation, &b));
            let product = |x: &[f32], y: &[f32]| -> f64 {
                x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
            };
            let allowed =
                2.0 * rotation.rounding() * product(&a, &a).sqrt() * product(&b, &b).sqrt();
            assert!((product(&a, &b) - product(&c, &d)).abs() <= allowed * 1.1, "{dim}");
        }
    }

    #[test]
    fn one_component_is_spread_over_all() {
        for dim in [64, 100, 128, 768, 1000] {
            let rotation = Rotation::new(Metric::Cosine, dim);
            for at in [0, dim / 2, dim - 1] {
                let mut vector = vec![0.0; dim];
                vector[at] = 1.0;
                let spread = rotated(&rotation, &vector);
                let largest = spread.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                assert!(largest < 6.0 / (dim as f32).sqrt(), "{dim}: {largest}");
            }
        }
    }

    #[test]
    fn without_sign_codes_nothing_turns() {
        for (metric, dim) in [(Metric::L1, 300), (Metric::L2, 63)] {
            let rotation = Rotation::new(metric, dim);
            let vector: Vec<f32> = (0..dim).map(|x| x as f32).collect();
            assert_eq!(rotated(&rotation, &vector), vector);
            assert_eq!(rotation.rounding(), 0.0);
        }
    }
}
