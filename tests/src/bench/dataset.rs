//! Vectors, queries and exact answers, and the files they come in: fvecs, bvecs, ivecs, and the
//! HDF5 files of ann-benchmarks.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::thread;

use anyhow::{bail, ensure, Context, Result};
use hdf5_reader::Hdf5File;

use super::synthetic;
use crate::data::each_row;
use crate::oracle::{Distance, DISTANCES};

/// How many nearest rows are asked for, if the command line does not say.
pub const NEAREST: usize = 10;

/// By how much, relatively, a row may be farther than the tenth of the exact answer and still be
/// one of those equally far: servers compute distances in single precision.
const TIE: f64 = 1e-6;

/// A distance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// Euclidean.
    L2,
    /// Negative inner product.
    InnerProduct,
    /// Cosine.
    Cosine,
    /// Taxicab.
    L1,
}

impl Metric {
    /// The metric of that name on the command line.
    ///
    /// # Errors
    /// There is none.
    pub fn named(name: &str) -> Result<Metric> {
        Ok(match name {
            "l2" => Metric::L2,
            "ip" => Metric::InnerProduct,
            "cosine" => Metric::Cosine,
            "l1" => Metric::L1,
            _ => bail!("{name}: no such metric; there are l2, ip, cosine and l1"),
        })
    }

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Metric::L2 => "l2",
            Metric::InnerProduct => "ip",
            Metric::Cosine => "cosine",
            Metric::L1 => "l1",
        }
    }

    /// Its operator and operator class.
    pub fn sql(self) -> Distance {
        match self {
            Metric::L2 => DISTANCES[0],
            Metric::InnerProduct => DISTANCES[1],
            Metric::Cosine => DISTANCES[2],
            Metric::L1 => DISTANCES[3],
        }
    }

    /// A number that orders rows as the distance does: squared for L2; NaN for a zero vector under
    /// cosine.
    pub fn rank(self, a: &[f32], b: &[f32]) -> f64 {
        match self {
            Metric::L2 => sum(a, b, |a, b| (a - b) * (a - b)),
            Metric::L1 => sum(a, b, |a, b| (a - b).abs()),
            Metric::InnerProduct => -sum(a, b, |a, b| a * b),
            Metric::Cosine => {
                let lengths = sum(a, a, |a, b| a * b) * sum(b, b, |a, b| a * b);
                if lengths > 0.0 {
                    1.0 - sum(a, b, |a, b| a * b) / lengths.sqrt()
                } else {
                    f64::NAN
                }
            }
        }
    }
}

/// Sums over pairs of elements, eight at a time so that the compiler can use its vectors.
fn sum(a: &[f32], b: &[f32], term: impl Fn(f64, f64) -> f64) -> f64 {
    let (chunks_a, rest_a) = a.as_chunks::<8>();
    let (chunks_b, rest_b) = b.as_chunks::<8>();
    let mut sums = [0.0; 8];
    for (a, b) in chunks_a.iter().zip(chunks_b) {
        for lane in 0..8 {
            sums[lane] += term(f64::from(a[lane]), f64::from(b[lane]));
        }
    }
    let rest: f64 =
        rest_a.iter().zip(rest_b).map(|(a, b)| term(f64::from(*a), f64::from(*b))).sum();
    sums.iter().sum::<f64>() + rest
}

/// Rows of one length, one after the other.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Matrix {
    dimensions: usize,
    elements: Vec<f32>,
}

impl Matrix {
    /// Rows of `dimensions` elements.
    ///
    /// # Errors
    /// There are no rows, they are not whole, or have more dimensions than a `vector` may.
    pub fn new(dimensions: usize, elements: Vec<f32>) -> Result<Matrix> {
        ensure!((1..=16_000).contains(&dimensions), "vectors of {dimensions} dimensions");
        ensure!(!elements.is_empty(), "no vectors");
        ensure!(elements.len().is_multiple_of(dimensions), "the last vector is cut off");
        ensure!(elements.iter().all(|it| it.is_finite()), "an element is not finite");
        Ok(Matrix { dimensions, elements })
    }

    /// Elements a row.
    pub fn dimensions(&self) -> usize {
        self.dimensions
    }

    /// The number of rows.
    pub fn len(&self) -> usize {
        self.elements.len() / self.dimensions.max(1)
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.elements.is_empty()
    }

    /// A row, if there is one of that number.
    pub fn row(&self, number: usize) -> Option<&[f32]> {
        let start = number.checked_mul(self.dimensions)?;
        self.elements.get(start..start.checked_add(self.dimensions)?)
    }

    /// All rows.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = &[f32]> {
        self.elements.chunks_exact(self.dimensions.max(1))
    }

    /// The rows of a range, or as many of it as there are.
    pub fn part(&self, range: Range<usize>) -> Matrix {
        let rows = range.start.min(self.len())..range.end.min(self.len());
        let elements = rows.start * self.dimensions..rows.end * self.dimensions;
        Matrix { dimensions: self.dimensions, elements: self.elements[elements].to_vec() }
    }

    /// Reads `.fvecs` or `.bvecs`.
    ///
    /// # Errors
    /// The file cannot be read, is neither, ends within a row, or its rows differ in length.
    pub fn read(path: &Path) -> Result<Matrix> {
        let width = match extension(path) {
            "fvecs" => 4,
            "bvecs" => 1,
            other => bail!("{}: .{other} is neither .fvecs nor .bvecs", path.display()),
        };
        let (mut dimensions, mut elements) = (None, Vec::new());
        each_row(path, width, |row| {
            let length = row.len() / width;
            let first = *dimensions.get_or_insert(length);
            ensure!(length == first, "{length} dimensions after rows of {first}");
            if width == 1 {
                elements.extend(row.iter().map(|&byte| f32::from(byte)));
            } else {
                let (words, _) = row.as_chunks::<4>();
                elements.extend(words.iter().map(|word| f32::from_le_bytes(*word)));
            }
            Ok(())
        })?;
        Matrix::new(dimensions.unwrap_or_default(), elements)
            .with_context(|| path.display().to_string())
    }
}

fn extension(path: &Path) -> &str {
    path.extension().and_then(|it| it.to_str()).unwrap_or_default()
}

/// Where a set's files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Files {
    /// One file each; the exact answers are computed if there is none of them.
    Separate {
        /// The rows.
        base: PathBuf,
        /// The queries.
        query: PathBuf,
        /// Row numbers, nearest first.
        truth: Option<PathBuf>,
    },
    /// A file of ann-benchmarks, with `train`, `test` and `neighbors`.
    Hdf5(PathBuf),
    /// None: [clusters](super::synthetic::clusters) are made.
    Synthetic {
        /// How many rows.
        rows: usize,
        /// Elements a row.
        dimensions: usize,
    },
}

impl Files {
    /// The files of a named set: `NAME.hdf5`, or `NAME_base`, `NAME_query` (both `.fvecs` or
    /// `.bvecs`) and, if it is there, `NAME_truth.ivecs`.
    ///
    /// # Errors
    /// The directory has no such set.
    pub fn named(dir: &Path, name: &str) -> Result<Files> {
        let hdf5 = dir.join(format!("{name}.hdf5"));
        if hdf5.exists() {
            return Ok(Files::Hdf5(hdf5));
        }
        let find = |part: &str| {
            let paths = ["fvecs", "bvecs"].map(|it| dir.join(format!("{name}_{part}.{it}")));
            paths.into_iter().find(|path| path.exists()).with_context(|| {
                format!("no {name}_{part}.fvecs or .bvecs, nor {name}.hdf5, in {}", dir.display())
            })
        };
        let truth = dir.join(format!("{name}_truth.ivecs"));
        let truth = truth.exists().then_some(truth);
        Ok(Files::Separate { base: find("base")?, query: find("query")?, truth })
    }
}

/// What is searched, with what, and how far the answers are.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// What it is called in reports.
    pub name: String,
    /// The distance that orders its answers.
    pub metric: Metric,
    /// The rows; their numbers are their ids.
    pub base: Matrix,
    /// The queries.
    pub queries: Matrix,
    /// Each query's [rank](Metric::rank) of the last of its nearest rows that are asked for.
    bounds: Vec<f64>,
    /// How many rows an answer has.
    pub nearest: usize,
}

impl Dataset {
    /// Reads a set; at most `queries` of its queries, each for `limit` rows. `metric` may be
    /// left out where the file or the set's name (`sift...`, `glove...`) tells.
    ///
    /// # Errors
    /// A file cannot be read or is malformed, files do not fit together, or nothing tells the
    /// metric.
    pub fn read(
        name: &str,
        files: &Files,
        metric: Option<Metric>,
        queries: usize,
        limit: usize,
    ) -> Result<Dataset> {
        let (base, asked, truth, told) = match files {
            Files::Separate { base, query, truth } => {
                let truth = truth.as_deref().map(|path| read_truth(path).map(|it| (it, path)));
                let truth = truth.transpose()?;
                (Matrix::read(base)?, Matrix::read(query)?, truth, None)
            }
            Files::Hdf5(path) => {
                let (base, asked, truth, told) =
                    read_hdf5(path).with_context(|| path.display().to_string())?;
                (base, asked, truth.map(|it| (it, path.as_path())), told)
            }
            Files::Synthetic { rows, dimensions } => {
                let (base, asked) = synthetic::clusters(*rows, *dimensions, queries)?;
                (base, asked, None, Some(Metric::L2))
            }
        };
        let by_name = if name.starts_with("sift") {
            Some(Metric::L2)
        } else if name.starts_with("glove") {
            Some(Metric::Cosine)
        } else {
            None
        };
        let metric =
            metric.or(told).or(by_name).context("nothing tells the metric: name it by --metric")?;
        ensure!(
            base.dimensions() == asked.dimensions(),
            "rows have {} dimensions, queries {}",
            base.dimensions(),
            asked.dimensions()
        );
        let all = asked.len();
        let queries = asked.part(0..queries);
        ensure!(!queries.is_empty(), "no queries");
        let nearest = limit.min(base.len());
        let bounds = match truth {
            Some((truth, path)) => {
                ensure!(
                    truth.len() == all,
                    "{}: {} answers to {all} queries",
                    path.display(),
                    truth.len()
                );
                let bounds = queries.rows().zip(&truth).enumerate();
                let bounds = bounds
                    .map(|(number, (query, answer))| {
                        bound(metric, &base, query, answer, nearest)
                            .with_context(|| format!("{}: row {number}", path.display()))
                    })
                    .collect::<Result<_>>()?;
                bounds
            }
            None => exact(metric, &base, &queries, nearest),
        };
        Ok(Dataset { name: name.to_owned(), metric, base, queries, bounds, nearest })
    }

    /// The set of the first `rows` rows, its exact answers computed.
    pub fn head(&self, rows: usize) -> Dataset {
        let base = self.base.part(0..rows);
        let nearest = self.nearest.min(base.len());
        let bounds = exact(self.metric, &base, &self.queries, nearest);
        let name = format!("{} (first {})", self.name, base.len());
        Dataset { name, base, nearest, bounds, queries: self.queries.clone(), ..*self }
    }

    /// How many rows of an answer are no farther than the last of the exact one: of rows equally
    /// far, any will do.
    pub fn hits(&self, query: usize, answer: &[i32]) -> usize {
        let (Some(row), Some(&bound)) = (self.queries.row(query), self.bounds.get(query)) else {
            return 0;
        };
        let mut ids: Vec<i32> = answer.to_vec();
        ids.sort_unstable();
        ids.dedup();
        let near = |id: &i32| {
            let found = usize::try_from(*id).ok().and_then(|id| self.base.row(id));
            found.is_some_and(|found| self.within(self.metric.rank(row, found), bound))
        };
        ids.iter().filter(|id| near(id)).count().min(self.nearest)
    }

    /// Whether a rank is no farther than a bound, but for what single precision makes of it.
    pub fn within(&self, rank: f64, bound: f64) -> bool {
        rank <= bound + TIE * bound.abs()
    }

    /// The ranks of the rows of an answer.
    ///
    /// # Errors
    /// An id is not one of the set.
    pub fn ranks(&self, query: &[f32], answer: &[i32]) -> Result<Vec<f64>> {
        ranks(self.metric, &self.base, query, answer)
    }
}

fn read_truth(path: &Path) -> Result<Vec<Vec<i32>>> {
    let mut answers = Vec::new();
    each_row(path, 4, |row| {
        let (words, _) = row.as_chunks::<4>();
        answers.push(words.iter().map(|word| i32::from_le_bytes(*word)).collect());
        Ok(())
    })?;
    Ok(answers)
}

type Hdf5 = (Matrix, Matrix, Option<Vec<Vec<i32>>>, Option<Metric>);

fn read_hdf5(path: &Path) -> Result<Hdf5> {
    let file = Hdf5File::open(path).context("cannot read it as HDF5")?;
    let matrix = |name: &str| {
        let dataset = file.dataset(name)?;
        let &[_, width] = dataset.shape() else { bail!("{name} is not a matrix") };
        let elements = match dataset.read_array::<f32>() {
            Ok(array) => array.into_iter().collect(),
            Err(_) => dataset.read_array::<f64>()?.into_iter().map(|it| it as f32).collect(),
        };
        Matrix::new(usize::try_from(width)?, elements)
    };
    let base = matrix("train").context("train")?;
    let queries = matrix("test").context("test")?;
    let root = file.root_group()?;
    let truth = match root.datasets()?.into_iter().find(|it| it.name() == "neighbors") {
        None => None,
        Some(dataset) => {
            let &[_, width] = dataset.shape() else { bail!("neighbors is not a matrix") };
            let numbers: Vec<i32> = match dataset.read_array::<i32>() {
                Ok(array) => array.into_iter().collect(),
                Err(_) => {
                    let wide = dataset.read_array::<i64>().context("neighbors")?;
                    wide.into_iter().map(i32::try_from).collect::<Result<_, _>>()?
                }
            };
            let width = usize::try_from(width)?.max(1);
            Some(numbers.chunks(width).map(<[i32]>::to_vec).collect())
        }
    };
    let metric = match root.attributes()?.into_iter().find(|it| it.name == "distance") {
        None => None,
        Some(attribute) => match attribute.read_string()?.as_str() {
            "euclidean" => Some(Metric::L2),
            "angular" => Some(Metric::Cosine),
            "ip" => Some(Metric::InnerProduct),
            other => bail!("its distance, {other}, is none of drift's"),
        },
    };
    Ok((base, queries, truth, metric))
}

/// The rank of the last of an exact answer's first `nearest` rows.
fn bound(
    metric: Metric,
    base: &Matrix,
    query: &[f32],
    answer: &[i32],
    nearest: usize,
) -> Result<f64> {
    let answer = answer.get(..nearest);
    let answer = answer.with_context(|| format!("an answer of less than {nearest} rows"))?;
    let ranks = ranks(metric, base, query, answer)?;
    Ok(ranks.into_iter().fold(f64::NEG_INFINITY, f64::max))
}

fn ranks(metric: Metric, base: &Matrix, query: &[f32], answer: &[i32]) -> Result<Vec<f64>> {
    let rank = |id: &i32| {
        let row = usize::try_from(*id).ok().and_then(|id| base.row(id));
        let row = row.with_context(|| format!("row {id} is not one of {}", base.len()))?;
        Ok(metric.rank(query, row))
    };
    answer.iter().map(rank).collect()
}

/// Each query's rank of its `nearest`th row, by looking at all rows, on all cores.
fn exact(metric: Metric, base: &Matrix, queries: &Matrix, nearest: usize) -> Vec<f64> {
    /// Rows compared with all of a thread's queries while they are in the cache.
    const BLOCK: usize = 512;
    let threads = thread::available_parallelism().map_or(1, |it| it.get());
    let share = queries.len().div_ceil(threads).max(1);
    let mut bounds = vec![f64::INFINITY; queries.len()];
    thread::scope(|scope| {
        for (number, bounds) in bounds.chunks_mut(share).enumerate() {
            scope.spawn(move || {
                // The nearest ranks of each query so far, the farthest last.
                let mut heads = vec![vec![f64::INFINITY; nearest]; bounds.len()];
                for start in (0..base.len()).step_by(BLOCK) {
                    for (at, head) in heads.iter_mut().enumerate() {
                        let Some(query) = queries.row(number * share + at) else { continue };
                        for row in start..(start + BLOCK).min(base.len()) {
                            let Some(row) = base.row(row) else { continue };
                            let rank = metric.rank(query, row);
                            if head.last().is_some_and(|last| rank < *last) {
                                let place = head.partition_point(|it| *it <= rank);
                                head.insert(place, rank);
                                head.pop();
                            }
                        }
                    }
                }
                for (bound, head) in bounds.iter_mut().zip(heads) {
                    // Fewer rows than asked for have a rank when some are zero under cosine.
                    let last = head.iter().rev().find(|it| it.is_finite());
                    *bound = last.copied().unwrap_or(f64::NEG_INFINITY);
                }
            });
        }
    });
    bounds
}

#[cfg(test)]
#[path = "dataset_tests.rs"]
mod tests;
