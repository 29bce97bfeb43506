//! Codes of few rows, without the room for others.
//!
//! A block has room for [`SIGN_BLOCK`] rows, and a bucket of a small segment has one or two. Up to
//! half as many are kept in as many places as the next power of two: of each group of the code
//! these places' halves of bytes, two a byte.
//!
//! ```text
//! block    group 0: 0|16  1|17  2|18 ... 15|31   group 1: 0|16 ...     16 bytes a group
//! narrow   group 0: 0|1   2|3                    group 1: 0|1   2|3    4 places: 2 bytes a group
//! ```
//!
//! They are brought back into the form of a block to be looked up.

use super::Query;
use crate::simd::{SignRows, SignTerms, SIGN_BLOCK, SIGN_GROUP};

/// Rows of a code's byte in a block are so many apart.
const HALF: usize = SIGN_BLOCK / 2;

/// Places that so many rows are kept in: those of whole blocks, or of a narrow one.
pub const fn places(rows: usize) -> usize {
    match rows {
        0 => 0,
        1 => 2,
        2..=HALF => rows.next_power_of_two(),
        _ => rows.next_multiple_of(SIGN_BLOCK),
    }
}

/// Whether so many places are a narrow block.
pub const fn is_narrow(places: usize) -> bool {
    places > 0 && places <= HALF
}

/// Bytes of the codes in so many places, of so many bits each.
pub const fn codes_bytes(code_bits: usize, places: usize) -> usize {
    code_bits * places / 8
}

/// What a block has in its first places.
///
/// # Panics
/// When that is not a narrow block's number of places.
pub fn narrow(block: &[u8], places: usize) -> Vec<u8> {
    assert!(is_narrow(places) && places.is_multiple_of(2), "places of a narrow block");
    let groups = block.as_chunks::<HALF>().0.iter();
    let pairs = groups.flat_map(|group| group[..places].as_chunks::<2>().0);
    pairs.map(|[first, second]| first & 15 | second << 4).collect()
}

/// Copies the code of a row that stands at `place` of so many `places` to place `into` of whole
/// blocks, which held zeroes there.
///
/// # Panics
/// When there are no such places.
pub fn copy_code(from: &[u8], places: usize, place: usize, blocks: &mut [u8], into: usize) {
    let groups = from.len() / places.max(1) * 8 / SIGN_GROUP;
    // Bytes from a group to the next, where in the first one the code is, and its bits there.
    let (step, at, upper) = match is_narrow(places) {
        true => (places / 2, place / 2, place % 2),
        false => (HALF, place / SIGN_BLOCK * groups * HALF + place % HALF, place / HALF % 2),
    };
    let (low, high) = (upper * SIGN_GROUP, into / HALF % 2 * SIGN_GROUP);
    let block = &mut blocks[into / SIGN_BLOCK * groups * HALF..][..groups * HALF];
    let codes = from[at..].iter().step_by(step);
    let into = block[into % HALF..].iter_mut().step_by(HALF);
    into.zip(codes).for_each(|(into, code)| *into |= (code >> low & 15) << high);
}

/// Room to bring a narrow block back into the form of a whole one.
#[derive(Clone, Debug, Default)]
pub struct Widened {
    codes: Vec<u8>,
    columns: [[f32; SIGN_BLOCK]; 3],
    bounds: [f32; SIGN_BLOCK],
}

impl Query {
    /// As [`Query::bounds`], of the rows of a narrow block.
    ///
    /// # Panics
    /// When the lengths do not fit.
    pub fn narrow_bounds(
        &self,
        terms: &SignTerms,
        rows: &SignRows<'_>,
        codes: &[u8],
        ahead: &[u8],
        widened: &mut Widened,
        out: &mut [f32],
    ) {
        let places = out.len();
        // Tables have 16 entries a group, and codes 16 bytes.
        assert!(codes.len() * SIGN_BLOCK == self.tables.len() * places, "codes of a narrow block");
        widened.codes.resize(self.tables.len(), 0);
        match places {
            2 => widen::<1>(codes, &mut widened.codes),
            4 => widen::<2>(codes, &mut widened.codes),
            8 => widen::<4>(codes, &mut widened.codes),
            16 => widen::<8>(codes, &mut widened.codes),
            _ => panic!("places of a narrow block"),
        }
        let [add, scale, error] = &mut widened.columns;
        add[..places].copy_from_slice(rows.add);
        scale[..places].copy_from_slice(rows.scale);
        error[..places].copy_from_slice(rows.error);
        let rows = SignRows { add, scale, error };
        self.bounds(terms, &rows, &widened.codes, ahead, &mut widened.bounds);
        out.copy_from_slice(&widened.bounds[..places]);
    }
}

/// Writes codes of `2 * BYTES` places to the first places of a block. What is in the others is of
/// no account.
fn widen<const BYTES: usize>(codes: &[u8], block: &mut [u8]) {
    let groups = block.as_chunks_mut::<HALF>().0;
    for (codes, group) in codes.as_chunks::<BYTES>().0.iter().zip(groups) {
        for (code, pair) in codes.iter().zip(group.as_chunks_mut::<2>().0) {
            *pair = [code & 15, code >> 4];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metric::Metric;
    use crate::quant::sign::{block_bytes, Coding, DEVIATIONS};
    use rand::{rngs::SmallRng, Rng, SeedableRng};

    #[test]
    fn few_rows_have_few_places() {
        let places: Vec<usize> = [0, 1, 2, 3, 5, 9, 16, 17, 32, 33].map(places).into();
        assert_eq!(places, [0, 2, 2, 4, 8, 16, 16, 32, 32, 64]);
        assert_eq!(codes_bytes(128, 2), 32);
        assert_eq!(codes_bytes(128, 32), block_bytes(128));
        assert!(!is_narrow(0) && is_narrow(2) && is_narrow(16) && !is_narrow(32));
    }

    #[test]
    fn narrow_rows_have_the_bounds_of_a_block() {
        let mut rng = SmallRng::seed_from_u64(3);
        for (components, bits) in [(64, 1), (128, 1), (192, 2), (128, 4)] {
            let coding = Coding { bits, ..Coding::signs(components) };
            let mut random =
                |n: usize| -> Vec<f32> { (0..n).map(|_| rng.random_range(-1.0f32..1.0)).collect() };
            let (query, middle, centroid) =
                (random(components), random(components), random(components));
            let query = Query::new(Metric::L2, &coding, &query, 0.0, 1.0, &middle);
            let terms = query.for_bucket(&centroid, DEVIATIONS).unwrap();
            let columns = [random(SIGN_BLOCK), random(SIGN_BLOCK), random(SIGN_BLOCK)];
            let mut block = vec![0u8; block_bytes(coding.code_bits())];
            rng.fill(&mut block[..]);
            let [add, scale, error] = columns.each_ref().map(Vec::as_slice);
            let mut whole = [0.0; SIGN_BLOCK];
            query.bounds(&terms, &SignRows { add, scale, error }, &block, &[], &mut whole);
            // One after the other in the same room.
            let mut widened = Widened::default();
            for places in [16, 2, 8, 4] {
                let codes = narrow(&block, places);
                assert_eq!(codes.len(), codes_bytes(coding.code_bits(), places));
                let [add, scale, error] = columns.each_ref().map(|column| &column[..places]);
                let rows = SignRows { add, scale, error };
                let mut out = vec![0.0; places];
                query.narrow_bounds(&terms, &rows, &codes, &[], &mut widened, &mut out);
                assert_eq!(out, whole[..places], "{components} of {bits}, {places} places");
            }
        }
    }
}
