//! Made vectors: clusters of low intrinsic dimension, as embeddings are, in as many dimensions as
//! wanted.

use anyhow::{ensure, Context, Result};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::dataset::Matrix;

/// Dimensions that the rows really vary in.
const INTRINSIC: usize = 24;

/// Rows a cluster, about.
const CLUSTER: usize = 400;

/// How wide a cluster is against the distances between clusters, and how far rows lie off the
/// space that they vary in.
const WIDTH: f32 = 1.0;
const NOISE: f32 = 0.05;

/// Rows and queries, the same ones for the same arguments.
///
/// # Errors
/// There are no rows, or they have more dimensions than a `vector` may.
pub fn clusters(rows: usize, dimensions: usize, queries: usize) -> Result<(Matrix, Matrix)> {
    ensure!(rows > 0 && queries > 0, "no rows or no queries");
    ensure!((1..=16_000).contains(&dimensions), "vectors of {dimensions} dimensions");
    let mut random = StdRng::seed_from_u64(0x5eed);
    let count = rows.div_ceil(CLUSTER);
    let centres: Vec<f32> = (0..count * INTRINSIC).map(|_| normal(&mut random)).collect();
    // One direction of the space after the other, each of `dimensions` elements.
    let length = (dimensions as f32).sqrt();
    let directions: Vec<f32> =
        (0..INTRINSIC * dimensions).map(|_| normal(&mut random) / length).collect();
    let mut make = |rows: usize| {
        let mut elements = Vec::with_capacity(rows * dimensions);
        for _ in 0..rows {
            let centre = random.random_range(0..count) * INTRINSIC;
            let centre = centres.get(centre..centre + INTRINSIC).context("a centre is missing")?;
            let start = elements.len();
            elements.extend((0..dimensions).map(|_| NOISE * normal(&mut random) / length));
            for (at, direction) in centre.iter().zip(directions.chunks_exact(dimensions)) {
                let at = at + WIDTH * normal(&mut random);
                for (element, direction) in elements[start..].iter_mut().zip(direction) {
                    *element += at * direction;
                }
            }
        }
        Matrix::new(dimensions, elements)
    };
    Ok((make(rows)?, make(queries)?))
}

/// A number from the standard normal distribution (Box and Muller 1958).
fn normal(random: &mut StdRng) -> f32 {
    let radius = (-2.0 * (1.0 - random.random::<f32>()).ln()).sqrt();
    radius * (std::f32::consts::TAU * random.random::<f32>()).cos()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_rows_are_the_same_each_time() {
        let (base, queries) = clusters(1000, 48, 5).unwrap();
        assert_eq!((base.len(), base.dimensions(), queries.len()), (1000, 48, 5));
        assert_eq!(clusters(1000, 48, 5).unwrap(), (base, queries));
        assert!(clusters(0, 48, 5).is_err() && clusters(10, 0, 5).is_err());
    }

    #[test]
    fn normal_numbers_are_normal() {
        let mut random = StdRng::seed_from_u64(1);
        let numbers: Vec<f64> = (0..20_000).map(|_| f64::from(normal(&mut random))).collect();
        let mean = numbers.iter().sum::<f64>() / numbers.len() as f64;
        let square = numbers.iter().map(|it| it * it).sum::<f64>() / numbers.len() as f64;
        assert!(mean.abs() < 0.03 && (square - 1.0).abs() < 0.05, "{mean} {square}");
    }
}
