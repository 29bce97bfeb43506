//! Rows on their way from a worker to the leader, as one message.
//!
//! ```text
//! 0      4                        4 + 4 x rows x dims        + 6 x rows
//! +------+------------------------+--------------------------+
//! | rows | components, row by row | TIDs                     |
//! | u32  | f32                    | block high, low, offset  |
//! +------+------------------------+--------------------------+
//! ```
//!
//! Both ends are processes of one server: numbers are in the machine's order.

use crate::page::Tid;
use std::mem::size_of;

/// Bytes a message has at most, unless a single row is longer.
const BYTES: usize = 64 << 10;

const HEAD: usize = size_of::<u32>();

/// Rows that wait for others, to be sent with them.
pub struct Batch {
    most: usize,
    rows: u32,
    vectors: Vec<f32>,
    tids: Vec<Tid>,
}

impl Batch {
    /// An empty batch of rows of so many components.
    pub fn new(dims: usize) -> Batch {
        let most = (BYTES / bytes_of_row(dims)).max(1);
        let (vectors, tids) = (Vec::with_capacity(most * dims), Vec::with_capacity(most));
        Batch { most, rows: 0, vectors, tids }
    }

    /// Adds a row, and says whether the batch is full now.
    pub fn push(&mut self, tid: Tid, vector: &[f32]) -> bool {
        self.vectors.extend_from_slice(vector);
        self.tids.push(tid);
        self.rows += 1;
        self.tids.len() >= self.most
    }

    /// Whether there is no row in it.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// The message, in parts to be joined.
    pub fn parts(&self) -> [&[u8]; 3] {
        [
            bytemuck::bytes_of(&self.rows),
            bytemuck::cast_slice(&self.vectors),
            bytemuck::cast_slice(&self.tids),
        ]
    }

    /// Forgets the rows.
    pub fn clear(&mut self) {
        self.rows = 0;
        self.vectors.clear();
        self.tids.clear();
    }
}

/// The rows of a message: their TIDs and row-major vectors. `None` if it is no message of rows of so
/// many components, or at no address for them.
pub fn read(dims: usize, message: &[u8]) -> Option<(&[Tid], &[f32])> {
    let (head, rest) = message.split_at_checked(HEAD)?;
    let rows = bytemuck::pod_read_unaligned::<u32>(head) as usize;
    if rows.checked_mul(bytes_of_row(dims))? != rest.len() {
        return None;
    }
    let (vectors, tids) = rest.split_at(rows * dims * size_of::<f32>());
    Some((bytemuck::try_cast_slice(tids).ok()?, bytemuck::try_cast_slice(vectors).ok()?))
}

fn bytes_of_row(dims: usize) -> usize {
    dims * size_of::<f32>() + size_of::<Tid>()
}

#[cfg(feature = "pg_test")]
#[pgrx::pg_schema]
mod tests {
    use super::*;
    use pgrx::prelude::*;

    /// The parts joined at an address for numbers.
    fn message(batch: &Batch) -> Vec<u32> {
        let mut bytes = batch.parts().concat();
        let length = bytes.len();
        bytes.resize(length.next_multiple_of(size_of::<u32>()), 0);
        bytemuck::pod_collect_to_vec(&bytes)
    }

    fn length(batch: &Batch) -> usize {
        batch.parts().iter().map(|part| part.len()).sum()
    }

    #[pg_test]
    fn rows_arrive_as_they_were_sent() {
        for dims in [1, 3, 128, 16_000] {
            let mut batch = Batch::new(dims);
            for fill in 0..3 {
                let (mut tids, mut vectors) = (Vec::new(), Vec::new());
                loop {
                    let nth = tids.len() as u32 + fill * 100_000;
                    let vector: Vec<f32> = (0..dims).map(|at| nth as f32 - at as f32).collect();
                    tids.push(Tid::new(nth, 1 + nth as u16 % 7));
                    vectors.extend_from_slice(&vector);
                    if batch.push(tids[tids.len() - 1], &vector) {
                        break;
                    }
                }
                assert!(length(&batch) <= BYTES + HEAD || tids.len() == 1, "{dims}");
                let sent = message(&batch);
                let sent = &bytemuck::cast_slice(&sent)[..length(&batch)];
                assert_eq!(read(dims, sent), Some((&tids[..], &vectors[..])));
                batch.clear();
                assert!(batch.is_empty());
            }
        }
    }

    #[pg_test]
    fn messages_of_another_length_are_refused() {
        let mut batch = Batch::new(4);
        batch.push(Tid::new(1, 1), &[1.0; 4]);
        let sent = message(&batch);
        let sent: &[u8] = bytemuck::cast_slice(&sent);
        let whole = length(&batch);
        assert!(read(4, &sent[..whole]).is_some());
        assert_eq!(read(5, &sent[..whole]), None);
        for length in 0..whole {
            assert_eq!(read(4, &sent[..length]), None, "{length}");
        }
        let many = [u32::MAX, 0, 0, 0, 0, 0, 0];
        assert_eq!(read(4, &bytemuck::cast_slice(&many)[..whole]), None);
    }
}
