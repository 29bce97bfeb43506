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
mod scalar;
#[cfg(test)]
mod tests;

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
    /// `(rows, cols, products)`: adds to `products[r * TILE_COLS + c]` the sum over `j` of
    /// `rows[j * TILE_ROWS + r] * cols[j * TILE_COLS + c]`.
    pub tile_product: fn(&[f32], &[f32], &mut Tile),
    /// `(products, norms, panel, best, best_panel)`: where `norms[c] - 2 * products[r, c]` is
    /// below `best[r, c]`, puts it there, and `panel` into `best_panel[r, c]`.
    pub tile_nearest: fn(&Tile, &[f32; TILE_COLS], u32, &mut Tile, &mut TilePanels),
}

/// The longest query for which [`Kernels::dot_i8_rows`] cannot overflow.
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
