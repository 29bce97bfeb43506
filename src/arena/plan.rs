//! Which rows go where in an arena, worked out before the first is encoded.

use super::format::{BucketShape, SpilledRow};
use crate::cluster::NO_BUCKET;

/// The buckets of a segment, with the rows spilled into each.
#[derive(Clone, Debug)]
pub struct Plan {
    shapes: Vec<BucketShape>,
    /// The segment's number of the first row of each entry.
    first_rows: Vec<u64>,
    /// Where each entry's spilled rows begin in `spilled`; one more than there are entries.
    starts: Vec<usize>,
    spilled: Vec<SpilledRow>,
}

impl Plan {
    /// Plans an arena of buckets, ids ascending, that have so many rows of their own.
    /// `second` names, for each row in order, the bucket it is spilled into, or [`NO_BUCKET`]; it
    /// is empty where nothing is spilled.
    ///
    /// # Panics
    /// When `second` has another number of rows.
    pub fn new(own: &[(u32, u32)], second: &[u32]) -> Plan {
        let rows: usize = own.iter().map(|(_, rows)| *rows as usize).sum();
        assert!(second.is_empty() || second.len() == rows, "a second bucket for each row");
        let ids = own.iter().map(|(bucket, _)| *bucket).chain(second.iter().copied());
        let ids = ids.filter(|id| *id != NO_BUCKET).max().map_or(0, |most| most as usize + 1);
        let (mut own_rows, mut spilled_rows) = (vec![0u32; ids], vec![0u32; ids]);
        own.iter().for_each(|(bucket, rows)| own_rows[*bucket as usize] = *rows);
        for bucket in second.iter().filter(|bucket| **bucket != NO_BUCKET) {
            spilled_rows[*bucket as usize] += 1;
        }

        let mut entries = vec![0u32; ids];
        let (mut shapes, mut first_rows, mut starts) = (Vec::new(), Vec::new(), vec![0]);
        let (mut row, mut start) = (0u64, 0usize);
        for (bucket, (rows, spilled)) in (0..).zip(own_rows.into_iter().zip(spilled_rows)) {
            if rows == 0 && spilled == 0 {
                continue;
            }
            entries[bucket as usize] = shapes.len() as u32;
            shapes.push(BucketShape { bucket, rows, spilled });
            first_rows.push(row);
            row += u64::from(rows);
            start += spilled as usize;
            starts.push(start);
        }

        let mut next = starts.clone();
        let mut spilled = vec![SpilledRow { entry: 0, place: 0 }; start];
        let mut second = second.iter();
        for (entry, shape) in (0..).zip(&shapes) {
            for (place, bucket) in (0..shape.rows).zip(&mut second) {
                if *bucket != NO_BUCKET {
                    let into = &mut next[entries[*bucket as usize] as usize];
                    spilled[*into] = SpilledRow { entry, place };
                    *into += 1;
                }
            }
        }
        Plan { shapes, first_rows, starts, spilled }
    }

    /// The buckets that have rows, of their own or spilled.
    pub fn shapes(&self) -> &[BucketShape] {
        &self.shapes
    }

    /// The segment's number of an entry's first own row.
    pub fn first_row(&self, entry: usize) -> u64 {
        self.first_rows[entry]
    }

    /// The rows spilled into an entry's bucket.
    pub fn spilled(&self, entry: usize) -> &[SpilledRow] {
        &self.spilled[self.starts[entry]..self.starts[entry + 1]]
    }

    /// The segment's number of a spilled row.
    pub fn row(&self, spilled: SpilledRow) -> u64 {
        self.first_rows[spilled.entry as usize] + u64::from(spilled.place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_is_spilled_into_its_second_bucket() {
        let second = [5, 2, NO_BUCKET, 9, 2];
        let plan = Plan::new(&[(2, 2), (5, 3)], &second);
        let shapes: Vec<_> =
            plan.shapes().iter().map(|shape| (shape.bucket, shape.rows, shape.spilled)).collect();
        assert_eq!(shapes, [(2, 2, 2), (5, 3, 1), (9, 0, 1)]);
        let rows = |entry| plan.spilled(entry).iter().map(|row| plan.row(*row)).collect::<Vec<_>>();
        assert_eq!([rows(0), rows(1), rows(2)], [vec![1, 4], vec![0], vec![3]]);
        assert_eq!((plan.first_row(1), plan.first_row(2)), (2, 5));
    }

    #[test]
    fn without_second_buckets_nothing_is_spilled() {
        let plan = Plan::new(&[(1, 4)], &[]);
        assert_eq!(plan.shapes(), [BucketShape { bucket: 1, rows: 4, spilled: 0 }]);
        assert!(plan.spilled(0).is_empty());
        assert!(Plan::new(&[], &[]).shapes().is_empty());
    }
}
