//! Distance kernels.
//!
//! Every caller goes through [`kernels`], a table chosen once for the processor at hand, so that
//! a distance has one value wherever it is computed: the SQL operators and the index's exact
//! stage agree to the last bit.
//!
//! No kernel's result depends on how its slices lie in memory.

use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod prefetch;
mod scalar;
pub mod select;
#[cfg(test)]
mod tests;
mod vectorised;

pub use prefetch::prefetch;
pub(crate) use vectorised::vectorised;

/// The environment variable that forces a [`Level`] by its [`Level::name`].
pub const LEVEL_VARIABLE: &str = "DRIFT_SIMD";

/// Rows of the left factor in one [`Tile`].
pub const TILE_ROWS: usize = 12;

/// Columns of the right factor in one [`Tile`].
pub const TILE_COLS: usize = 32;

/// A block of a matrix product, `TILE_ROWS` rows of `TILE_COLS` columns.
pub type Tile = [f32; TILE_ROWS * TILE_COLS];

/// For each element of a [`Tile`], the number of the panel its value came from.
pub type TilePanels = [u32; TILE_ROWS * TILE_COLS];

/// Components of a coded row or column that stand together.
pub const CODE_GROUP: usize = 4;

/// Rows of codes, some of which are the left factor of a tile.
#[derive(Clone, Copy, Debug)]
pub struct CodedRows<'a> {
    /// Row-major, all below 128.
    pub codes: &'a [u8],
    /// Codes of a row, of whole groups of [`CODE_GROUP`].
    pub dim: usize,
    /// For each row what its products are multiplied with.
    pub scales: &'a [f32],
    /// The tile's rows; one may be there several times.
    pub tile: &'a [u32; TILE_ROWS],
}

/// Columns of codes, the right factor of a tile.
#[derive(Clone, Copy, Debug)]
pub struct CodedCols<'a> {
    /// For each [`CODE_GROUP`] components those of all [`TILE_COLS`] columns.
    pub codes: &'a [i8],
    /// What is added to the products of a column.
    pub starts: &'a [i32; TILE_COLS],
    /// What the products of a column are taken from.
    pub norms: &'a [f32; TILE_COLS],
    /// What all products are multiplied with, beside what those of their row are.
    pub scale: f32,
}

/// What was found for rows so far: for each row and column the least score, and the number of the
/// panel it is from.
#[derive(Debug)]
pub struct CodedBest<'a> {
    /// The scores.
    pub scores: &'a mut [[f32; TILE_COLS]],
    /// The panels.
    pub panels: &'a mut [[u32; TILE_COLS]],
}

/// What [`Kernels::cosine`] needs of a pair of vectors in one pass.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CosineParts {
    /// Inner product of the two vectors.
    pub dot: f32,
    /// Squared length of the first vector.
    pub norm_a: f32,
    /// Squared length of the second vector.
    pub norm_b: f32,
}

/// An instruction set the kernels are written for, the better ones last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Level {
    /// Plain Rust.
    Scalar,
    /// NEON of 64-bit ARM.
    Neon,
    /// AVX2 with FMA.
    Avx2,
    /// AVX-512 F, BW and VL, with VNNI where the processor has it.
    Avx512,
}

impl Level {
    /// All levels, of every architecture, the better ones last.
    pub const ALL: [Level; 4] = [Level::Scalar, Level::Neon, Level::Avx2, Level::Avx512];

    /// The name [`LEVEL_VARIABLE`] knows it by.
    pub fn name(self) -> &'static str {
        match self {
            Level::Scalar => "scalar",
            Level::Neon => "neon",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
        }
    }

    /// The level of that name.
    pub fn from_name(name: &str) -> Option<Level> {
        Level::ALL.into_iter().find(|level| level.name() == name)
    }
}

/// The kernels of one instruction set.
///
/// Slices passed together have the same length; where they do not, the shorter one counts.
pub struct Kernels {
    /// The instruction set they use.
    pub level: Level,
    /// Squared Euclidean distance; zero for equal finite vectors.
    pub l2_squared: fn(&[f32], &[f32]) -> f32,
    /// Inner product.
    pub inner_product: fn(&[f32], &[f32]) -> f32,
    /// Sum of absolute differences.
    pub l1: fn(&[f32], &[f32]) -> f32,
    /// Inner product and both squared lengths; all three are equal for equal vectors.
    pub cosine: fn(&[f32], &[f32]) -> CosineParts,
    /// `(query, rows, stride, out)`: `out[i]` is the inner product of the query and of
    /// `rows[i * stride..][..query.len()]`. Exact up to [`MAX_I8_DIM`] components.
    ///
    /// Panics when a stride is shorter than the query, or `rows` shorter than `out.len()` strides.
    pub dot_i8_rows: fn(&[i8], &[i8], usize, &mut [i32]),
    /// `(query, codes, scale)`: the sum of `|query[j] - scale * codes[j]|`.
    pub l1_i8: fn(&[f32], &[i8], f32) -> f32,
    /// `(query, centroid, codes)`: the sum of `(query[j] - centroid[j]) * codes[j]`.
    pub residual_i8: fn(&[f32], &[f32], &[i8]) -> f32,
    /// `(rows, cols, products)`: adds to `products[r * TILE_COLS + c]` the sum over `j` of
    /// `rows[j * TILE_ROWS + r] * cols[j * TILE_COLS + c]`.
    pub tile_product: fn(&[f32], &[f32], &mut Tile),
    /// `(products, norms, panel, best, best_panel)`: where `norms[c] - 2 * products[r, c]` is
    /// below `best[r, c]`, puts it there, and `panel` into `best_panel[r, c]`.
    pub tile_nearest: fn(&Tile, &[f32; TILE_COLS], u32, &mut Tile, &mut TilePanels),
    /// `(rows, cols, panel, best)`: for each row r of the tile, where
    /// `norms[c] - scales[r] * scale * (starts[c] + p)`, p being the inner product of the codes of
    /// row r and column c, is below `scores[r][c]` of the best, puts it there, and `panel` into
    /// `panels[r][c]`. Exact up to [`MAX_I8_DIM`] components.
    ///
    /// Panics when rows and columns are not whole or not as long, or there is no such row.
    pub tile_nearest_coded: fn(CodedRows<'_>, CodedCols<'_>, u32, CodedBest<'_>),
    /// `(values, factors)`: in place, the product of the values, each times its factor, with the
    /// Hadamard matrix of as many rows, which has only 1 and -1. Their number is a power of two.
    pub hadamard: fn(&mut [f32], &[f32]),
    /// `(query, tables)`: for every [`SIGN_GROUP`] components of the query the sums over each of
    /// their subsets, bit j of a subset's number standing for component j, less the least of them
    /// and in steps of the result's `step`. `tables` has 16 bytes a group.
    ///
    /// Panics when the lengths do not fit.
    pub sign_tables: fn(&[f32], &mut [u8]) -> SignScale,
    /// `(tables, codes, rows, terms, ahead, out)`: a bound for each row of blocks of sign codes, see
    /// [`SignTerms`]. The processor is asked for the bytes `ahead` meanwhile.
    ///
    /// Panics when the lengths do not fit.
    pub sign_bounds: SignBounds,
    /// `(row, grid, digits)`: writes to `digits` where each component of the residual is on the
    /// grid, and returns sums over them.
    ///
    /// Panics when the lengths differ or are no multiple of [`GRID_GROUP`].
    pub grid: fn(GridRow<'_>, &Grid, &mut [u8]) -> GridSums,
    /// `(values, shift, codes)`: writes to `codes` the nearest multiples of the returned step to
    /// `values - shift`. The largest absolute is 127 steps.
    pub quantize: fn(&[f32], &[f32], &mut [i8]) -> f32,
    /// `(values, least)`: the least of every [`LEAST_OF`] values; what is not a number is passed
    /// over. `least` has one for each whole or broken run.
    pub least_of_runs: fn(&[f32], &mut [f32]),
    /// `(values, high)`: how many of the values are up to `high`.
    pub count_up_to: fn(&[f32], f32) -> usize,
    /// `(values, high, places)`: appends to `places`, ascending, those of the values up to `high`.
    pub up_to: fn(&[f32], f32, &mut Vec<u32>),
}

/// See [`Kernels::sign_bounds`].
pub type SignBounds = fn(&[u8], &[u8], &SignRows<'_>, &SignTerms, &[u8], &mut [f32]);

/// Components that share a table of sign codes.
pub const SIGN_GROUP: usize = 4;

/// Rows of a block of sign codes. Of each group of components a block has 16 bytes: byte j holds
/// the codes of row j, in its low half, and of row j + 16.
pub const SIGN_BLOCK: usize = 32;

/// Values that [`Kernels::least_of_runs`] takes the least of.
pub const LEAST_OF: usize = 16;

/// What turns a sum of entries of tables back into a sum of a query's components.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SignScale {
    /// Unit of the entries.
    pub step: f32,
    /// Sum of the components when every entry is zero.
    pub least: f32,
}

/// Components that [`Kernels::grid`] takes at a time.
pub const GRID_GROUP: usize = 16;

/// What is put on a grid, and what its points are multiplied with.
#[derive(Clone, Copy, Debug)]
pub struct GridRow<'a> {
    /// A row less its centroid.
    pub residual: &'a [f32],
    /// The centroid.
    pub centroid: &'a [f32],
    /// What queries are taken about.
    pub middle: &'a [f32],
}

/// A grid of points one step apart, `top + 1` of them, as many below zero as above.
#[derive(Clone, Copy, Debug)]
pub struct Grid {
    /// One divided by the step.
    pub inverse: f32,
    /// Points below zero.
    pub half: f32,
    /// Number of the highest point; the lowest has number zero.
    pub top: i32,
}

/// Sums over the components of a row, whose points on the grid are in steps from its middle.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GridSums {
    /// Of residuals and points.
    pub along: f32,
    /// Of the points' squares.
    pub lengths: f32,
    /// Of residuals and the centroid's components.
    pub product: f32,
    /// Of points and the centroid's components less the middle's.
    pub shifted: f32,
}

/// Three numbers a row, as many rows as there are codes.
#[derive(Clone, Copy, Debug)]
pub struct SignRows<'a> {
    /// Summand of the bound.
    pub add: &'a [f32],
    /// Factor of the row's product with the query.
    pub scale: &'a [f32],
    /// Factor of what the product may be off by.
    pub error: &'a [f32],
}

/// The bound of a row whose entries add up to `sum` is
/// `base + weight * (add + scale * (step * sum + shift) - reach * error)`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct SignTerms {
    /// Summand of all rows.
    pub base: f32,
    /// Factor of all rows.
    pub weight: f32,
    /// Unit of the entries.
    pub step: f32,
    /// What the product is when every entry is zero.
    pub shift: f32,
    /// How far the error is to reach.
    pub reach: f32,
}

/// Bytes of a block of sign codes of so many groups.
pub const fn sign_block_bytes(groups: usize) -> usize {
    groups * (SIGN_BLOCK / 2)
}

/// Checks the contract of [`Kernels::sign_bounds`] before a kernel reads through pointers.
fn check_signs(tables: &[u8], codes: &[u8], rows: &SignRows<'_>, out: &[f32]) {
    let groups = tables.len() / 16;
    assert!(tables.len().is_multiple_of(64), "tables of whole registers");
    assert!(out.len().is_multiple_of(SIGN_BLOCK), "whole blocks");
    let needed = (out.len() / SIGN_BLOCK).checked_mul(sign_block_bytes(groups));
    assert!(needed.is_some_and(|needed| codes.len() >= needed), "fewer codes than results");
    let columns = [rows.add, rows.scale, rows.error];
    assert!(columns.iter().all(|column| column.len() >= out.len()), "fewer rows than results");
}

/// Checks the contract of [`Kernels::tile_nearest_coded`] before a kernel reads through pointers.
fn check_coded(rows: CodedRows<'_>, cols: CodedCols<'_>, best: &CodedBest<'_>) {
    assert!(rows.dim.is_multiple_of(CODE_GROUP), "whole groups of codes");
    assert_eq!(cols.codes.len(), rows.dim * TILE_COLS, "columns as long as rows");
    let lens = [rows.scales.len(), best.scores.len(), best.panels.len()];
    let count = lens.into_iter().min().unwrap_or(0);
    assert!(rows.tile.iter().all(|row| (*row as usize) < count), "rows that are there");
    let needed = rows.dim.checked_mul(count);
    assert!(needed.is_some_and(|needed| rows.codes.len() >= needed), "codes of all rows");
}

/// Checks the contract of [`Kernels::grid`].
fn check_grid(row: GridRow<'_>, digits: &[u8]) {
    assert!(row.residual.len().is_multiple_of(GRID_GROUP), "whole groups");
    let lengths = [row.centroid.len(), row.middle.len(), digits.len()];
    assert_eq!(lengths, [row.residual.len(); 3], "one of each a component");
}

/// Checks the contract of [`Kernels::sign_tables`].
fn check_tables(query: &[f32], tables: &[u8]) {
    assert!(query.len().is_multiple_of(SIGN_GROUP), "whole groups");
    assert_eq!(tables.len(), query.len() / SIGN_GROUP * 16, "a table for each group");
}

/// The most components for which products of codes cannot overflow.
pub const MAX_I8_DIM: usize = 1 << 16;

/// The kernels for this processor: the best level it has, or the one [`LEVEL_VARIABLE`] names if
/// it has that.
pub fn kernels() -> &'static Kernels {
    static CHOSEN: OnceLock<&'static Kernels> = OnceLock::new();
    CHOSEN.get_or_init(|| choose(std::env::var(LEVEL_VARIABLE).ok().as_deref()))
}

/// The kernels of a level, if this processor has it.
pub fn kernels_at(level: Level) -> Option<&'static Kernels> {
    match level {
        Level::Scalar => Some(&scalar::KERNELS),
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => avx2::available(),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => avx512::with_vnni().or_else(avx512::without_vnni),
        #[cfg(target_arch = "aarch64")]
        Level::Neon => neon::available(),
        _ => None,
    }
}

fn choose(wanted: Option<&str>) -> &'static Kernels {
    wanted
        .and_then(Level::from_name)
        .and_then(kernels_at)
        .or_else(|| Level::ALL.into_iter().rev().find_map(kernels_at))
        .unwrap_or(&scalar::KERNELS)
}

/// Checks the contract of [`Kernels::dot_i8_rows`] before a kernel reads through pointers.
fn check_rows(query: &[i8], rows: &[i8], stride: usize, out: &[i32]) {
    assert!(stride >= query.len(), "rows overlap: stride {stride}, length {}", query.len());
    let needed = out.len().checked_mul(stride);
    assert!(needed.is_some_and(|needed| rows.len() >= needed), "fewer rows than results");
}
