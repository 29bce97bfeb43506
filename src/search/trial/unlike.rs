//! Queries unlike the rows, and what they need.

use super::needed::needed;
use super::path::Path;
use super::GREATEST_MARGIN;
use crate::search::calibration::{Calibration, FEW, MANY, RECALLS};
use crate::search::reach::{Strangers, KNOTS};
use rand::{rngs::SmallRng, Rng, SeedableRng};

const SEED: u64 = 1;

/// Ways to be unlike the rows.
const KINDS: usize = 4;

/// Rows that some queries are the mean of: few, whose mean lies between clusters, and many, whose
/// mean lies amid all.
const MEANS: [usize; 2] = [2, 8];

/// About `count` queries unlike some row-major rows, of `dims` components: means of rows, points
/// about the middle of all as far from it as rows are but in any direction, and normal numbers.
pub fn queries(rows: &[f32], dims: usize, count: usize) -> Vec<f32> {
    let all = rows.len() / dims;
    let of_each = count / KINDS;
    let mut rng = SmallRng::seed_from_u64(SEED);
    let mut made = Vec::with_capacity(KINDS * of_each * dims);
    for rows_of_one in MEANS {
        for _ in 0..of_each {
            let mut sum = vec![0.0f64; dims];
            for _ in 0..rows_of_one {
                let row = &rows[rng.random_range(0..all) * dims..][..dims];
                sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
            }
            made.extend(sum.into_iter().map(|sum| (sum / rows_of_one as f64) as f32));
        }
    }
    let (middle, deviation) = moments(rows, dims);
    for _ in 0..of_each {
        made.extend(middle.iter().map(|middle| (middle + deviation * normal(&mut rng)) as f32));
    }
    made.extend((0..of_each * dims).map(|_| normal(&mut rng) as f32));
    made
}

/// The mean of rows, and the standard deviation of a component from its own.
fn moments(rows: &[f32], dims: usize) -> (Vec<f64>, f64) {
    let count = (rows.len() / dims).max(1) as f64;
    let mut mean = vec![0.0f64; dims];
    for row in rows.chunks_exact(dims) {
        mean.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x) / count);
    }
    let squares = rows
        .chunks_exact(dims)
        .flat_map(|row| row.iter().zip(&mean).map(|(x, mean)| (f64::from(*x) - mean).powi(2)));
    let deviation = (squares.sum::<f64>() / rows.len().max(1) as f64).sqrt();
    (mean, deviation)
}

/// A number that is about normally distributed: the sum of twelve even ones has the variance 1.
fn normal(rng: &mut SmallRng) -> f64 {
    (0..12).map(|_| rng.random::<f64>()).sum::<f64>() - 6.0
}

/// The margins that queries need, the stranger they are: those of `strange`, but never less than
/// the calibration has for usual ones among `buckets` buckets.
pub fn margins(
    calibration: &Calibration,
    usual: &[Path],
    strange: &[Path],
    buckets: usize,
) -> Option<Strangers> {
    let (floors, usual_margins) = calibration.margins()?;
    let mut at = [[0.0f32; RECALLS.len()]; KNOTS];
    let mut margins = [usual_margins; KNOTS - 1];
    for recall in 0..RECALLS.len() {
        let floors = floors.map(|floors| f64::from(floors[recall]) * buckets as f64);
        let margin = f64::from(usual_margins[0][recall]);
        let strangeness = |path: &Path| path.strangeness(floors[0], margin);
        let known = usual.iter().map(strangeness).filter(|known| known.is_finite());
        at[0][recall] = known.reduce(f32::max)?;

        let mut strangers: Vec<(f32, &Path)> =
            strange.iter().map(|path| (strangeness(path), path)).collect();
        strangers.retain(|(strangeness, _)| strangeness.is_finite());
        strangers.sort_by(|a, b| a.0.total_cmp(&b.0));
        for knot in 1..KNOTS {
            let part = strangers.len() / (KNOTS - 1);
            let part = &strangers[(knot - 1) * part..knot * part];
            let (middle, _) = part.get(part.len() / 2)?;
            at[knot][recall] = middle.max(at[knot - 1][recall]);
            for (nth, neighbours) in [FEW, MANY].into_iter().enumerate() {
                let found = |(_, path): &(f32, &Path)| path.margins(neighbours, floors[nth]);
                let found: Vec<Vec<f64>> = part.iter().map(found).collect();
                let margin = needed(&found, RECALLS[recall]).min(GREATEST_MARGIN) as f32;
                let at_least = match knot {
                    1 => usual_margins[nth][recall],
                    _ => margins[knot - 2][nth][recall],
                };
                margins[knot - 1][nth][recall] = margin.max(at_least);
            }
        }
    }
    // More recall takes no less, and more rows do not either.
    for [few, many] in &mut margins {
        for margins in [&mut *few, &mut *many] {
            for recall in 1..RECALLS.len() {
                margins[recall] = margins[recall].max(margins[recall - 1]);
            }
        }
        many.iter_mut().zip(few).for_each(|(many, few)| *many = many.max(*few));
    }
    Some(Strangers { at, margins })
}
