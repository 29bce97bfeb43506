//! An arena made of others: the codes of a row are the same in any segment of one router, so that
//! rows that move need no arithmetic.

use super::reader::SecondPlace;
use super::{Arena, ArenaError, BucketCodes, EncodedBucket, Plan, SignCodes};
use crate::cluster::NO_BUCKET;
use crate::courtesy;
use crate::quant::sign;
use rayon::prelude::*;
use std::ops::Range;
use std::sync::atomic::AtomicBool;

/// Where the codes of a merged arena's row are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// Number of the arena among the parts.
    pub part: u32,
    /// Number of the row in its segment.
    pub row: u32,
}

/// What becomes one arena.
pub struct Merge<'p> {
    parts: &'p [Arena],
    /// Of each row, in the order of the merged segment.
    origins: &'p [Origin],
    /// Of each part's rows.
    seconds: Vec<Vec<SecondPlace>>,
    plan: Plan,
}

const NOT_THERE: ArenaError = ArenaError::Damaged("row to be merged");

impl<'p> Merge<'p> {
    /// Plans an arena of buckets, ids ascending, that have so many rows of their own, whose origins
    /// are given in order. All parts are of one router.
    ///
    /// # Errors
    /// [`ArenaError::Damaged`] when a part is not what was written, which is checked byte by byte, or
    /// has not such a row; [`ArenaError::Layout`] when the flag went up.
    ///
    /// # Panics
    /// When there is another number of origins than of rows.
    pub fn new(
        parts: &'p [Arena],
        own: &[(u32, u32)],
        origins: &'p [Origin],
        stop: &AtomicBool,
    ) -> Result<Merge<'p>, ArenaError> {
        let seconds: Vec<Vec<SecondPlace>> =
            parts.par_iter().map(|part| part.second_places(stop)).collect::<Result<_, _>>()?;
        let mut second = Vec::new();
        if parts.iter().any(Arena::has_signs) {
            second.reserve_exact(origins.len());
            for origin in origins {
                let part = origin.part as usize;
                let place = seconds.get(part).and_then(|part| part.get(origin.row as usize));
                second.push(match *place.ok_or(NOT_THERE)? {
                    SecondPlace::NONE => NO_BUCKET,
                    place => parts[part].buckets()[place.entry as usize].bucket,
                });
            }
        }
        let plan = Plan::new(own, &second);
        Ok(Merge { parts, origins, seconds, plan })
    }

    /// Which rows go where.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Copies the codes of a run of the plan's entries on the current rayon pool.
    ///
    /// # Errors
    /// [`ArenaError::Damaged`] when a part is not what was written, or has not such a row.
    pub fn copy_run(&self, entries: Range<usize>) -> Result<Vec<EncodedBucket>, ArenaError> {
        entries.into_par_iter().map(|entry| self.bucket(entry)).collect()
    }

    fn bucket(&self, entry: usize) -> Result<EncodedBucket, ArenaError> {
        courtesy::give_way();
        let shape = self.plan.shapes()[entry];
        let mut parts: Vec<Option<BucketCodes<'_>>> = Vec::with_capacity(self.parts.len());
        for part in self.parts {
            parts.push(part.find(shape.bucket).map(|at| part.bucket(at)).transpose()?);
        }
        let part = |origin: Origin| parts.get(origin.part as usize)?.as_ref();

        let (own, spilled) = (shape.rows as usize, self.plan.spilled(entry));
        let stride = self.parts.first().map_or(0, Arena::stride);
        let code_bits = self.parts.first().map_or(0, |part| part.identity().code_bits as usize);
        let mut out = EncodedBucket::with_room(own, spilled.len(), stride, code_bits);
        let first = self.plan.first_row(entry) as usize;
        for (place, origin) in self.origins[first..first + own].iter().enumerate() {
            let from = part(*origin).ok_or(NOT_THERE)?;
            let row = u64::from(origin.row).checked_sub(from.first_row).ok_or(NOT_THERE)? as usize;
            let codes = from.codes.chunks_exact(stride).nth(row).ok_or(NOT_THERE)?;
            out.factors.push(*from.factors.get(row).ok_or(NOT_THERE)?);
            out.codes[place * stride..][..stride].copy_from_slice(codes);
            if let Some(signs) = &from.signs {
                out.copy_sign(signs, row, place)?;
            }
        }
        for (spilled, place) in spilled.iter().zip(own..) {
            let origin = self.origins[self.plan.row(*spilled) as usize];
            // A row that is spilled stands in a bucket of this id in its part.
            let at = self.seconds[origin.part as usize][origin.row as usize].place as usize;
            let signs = part(origin).and_then(|from| from.signs.as_ref()).ok_or(NOT_THERE)?;
            out.copy_sign(signs, at, place)?;
            out.spilled.push(*spilled);
        }
        out.close();
        Ok(out)
    }
}

impl EncodedBucket {
    /// Copies what is known of a row beside its int8 codes.
    fn copy_sign(
        &mut self,
        from: &SignCodes<'_>,
        place: usize,
        into: usize,
    ) -> Result<(), ArenaError> {
        let columns = [from.rows.add, from.rows.scale, from.rows.error];
        for (column, from) in self.columns.iter_mut().zip(columns) {
            column[into] = *from.get(place).ok_or(NOT_THERE)?;
        }
        sign::copy_code(from.codes, from.rows.add.len(), place, &mut self.signs, into);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
