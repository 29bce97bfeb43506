//! Rows on their way into a segment: in memory while they fit, in a temporary file beyond.

use super::temp_file::TempFile;
use crate::courtesy;
use crate::page::Tid;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::borrow::Cow;
use std::mem::size_of;

/// Rows with their TIDs, kept in the order they came.
pub struct RowStore {
    dims: usize,
    /// Bytes of vectors to hold in memory.
    budget: usize,
    tids: Vec<Tid>,
    /// Not more than `budget`; the latest rows once there is a file.
    vectors: Vec<f32>,
    file: Option<TempFile>,
    /// Of all rows, once there is a file.
    sample: Reservoir,
}

/// Of so many rows of a sample one is set apart, at most.
const OTHERS: usize = 8;

/// Some rows of a store, as row-major vectors.
pub struct Sample<'s> {
    /// As many as were asked for.
    pub rows: Cow<'s, [f32]>,
    /// Others.
    pub apart: Vec<f32>,
}

/// A fair sample of rows that passed by.
struct Reservoir {
    vectors: Vec<f32>,
    capacity: usize,
    seen: u64,
    rng: SmallRng,
}

impl RowStore {
    /// An empty store that keeps to `budget` bytes, TIDs aside.
    pub fn new(dims: usize, budget: usize) -> RowStore {
        let row = dims * size_of::<f32>();
        RowStore {
            dims,
            budget: (budget / 2).max(row),
            tids: Vec::new(),
            vectors: Vec::new(),
            file: None,
            sample: Reservoir {
                vectors: Vec::new(),
                capacity: (budget / 4 / row).max(1),
                seen: 0,
                rng: SmallRng::seed_from_u64(0),
            },
        }
    }

    /// Makes room for so many bytes of vectors at once, as far as they may be in memory, if there is
    /// as much.
    pub fn reserve(&mut self, bytes: usize) {
        // Otherwise it grows with the rows.
        let _ = self.vectors.try_reserve_exact(bytes.min(self.budget) / size_of::<f32>());
    }

    /// Appends a row.
    pub fn push(&mut self, tid: Tid, vector: &[f32]) {
        courtesy::give_way();
        if size_of_val(self.vectors.as_slice()) + size_of_val(vector) > self.budget {
            self.spill();
        }
        self.tids.push(tid);
        self.vectors.extend_from_slice(vector);
        if self.file.is_some() {
            self.sample.offer(vector);
        }
    }

    fn spill(&mut self) {
        if self.file.is_none() {
            // While all rows are in memory, a sample can be taken at any time.
            self.vectors.chunks_exact(self.dims).for_each(|row| self.sample.offer(row));
        }
        let file = self.file.get_or_insert_with(TempFile::new);
        file.write(bytemuck::cast_slice(&self.vectors));
        self.vectors.clear();
    }

    /// Components of a row.
    pub fn dims(&self) -> usize {
        self.dims
    }

    /// Rows pushed.
    pub fn len(&self) -> usize {
        self.tids.len()
    }

    /// TIDs in the order of the rows.
    pub fn tids(&self) -> &[Tid] {
        &self.tids
    }

    /// Whether all rows are in memory; then their vectors.
    pub fn in_memory(&self) -> Option<&[f32]> {
        self.file.is_none().then_some(&self.vectors)
    }

    /// Bytes of vectors that may be held at a time.
    pub fn budget(&self) -> usize {
        self.budget
    }

    /// At most `rows` rows, each as likely as any other, and at most `apart` others, of eight rows
    /// one. The others go to the end of the store, if it is in memory.
    pub fn sample(&mut self, rows: usize, apart: usize) -> Sample<'_> {
        let dims = self.dims;
        if self.file.is_some() {
            let mut sample = std::mem::take(&mut self.sample.vectors);
            sample.truncate(rows.saturating_add(apart).saturating_mul(dims));
            let apart = apart.min(sample.len() / dims / OTHERS);
            let others = sample.split_off(sample.len() - apart * dims);
            return Sample { rows: Cow::Owned(sample), apart: others };
        }
        let mut rng = SmallRng::seed_from_u64(1);
        let apart = apart.min(self.len() / OTHERS);
        let left = self.len() - apart;
        for place in left..self.len() {
            let pick = rng.random_range(0..=place);
            self.tids.swap(pick, place);
            let (before, from) = self.vectors.split_at_mut(place * dims);
            if let Some(picked) = before.get_mut(pick * dims..(pick + 1) * dims) {
                picked.swap_with_slice(&mut from[..dims]);
            }
        }
        let (vectors, others) = self.vectors.split_at(left * dims);
        let others = others.to_vec();
        if rows >= left {
            return Sample { rows: Cow::Borrowed(vectors), apart: others };
        }
        let mut picks = rand::seq::index::sample(&mut rng, left, rows).into_vec();
        picks.sort_unstable();
        let row = |nth: usize| &vectors[nth * dims..(nth + 1) * dims];
        let mut picked = Vec::with_capacity(rows * dims);
        picks.into_iter().for_each(|nth| picked.extend_from_slice(row(nth)));
        Sample { rows: Cow::Owned(picked), apart: others }
    }

    /// Calls `block` with successive runs of vectors, in order, and the number of the first.
    pub fn for_each_block(&mut self, mut block: impl FnMut(usize, &[f32])) {
        let block_rows = (BLOCK_BYTES / (self.dims * size_of::<f32>())).max(1);
        let mut first = 0;
        if let Some(file) = &mut self.file {
            // The latest rows join the others, so that there is one order to read.
            file.write(bytemuck::cast_slice(&self.vectors));
            self.vectors = Vec::new();
            file.rewind();
            while first < self.tids.len() {
                let rows = block_rows.min(self.tids.len() - first);
                let mut vectors = vec![0f32; rows * self.dims];
                file.read(bytemuck::cast_slice_mut(&mut vectors));
                block(first, &vectors);
                first += rows;
            }
        } else {
            for vectors in self.vectors.chunks(block_rows * self.dims) {
                block(first, vectors);
                first += vectors.len() / self.dims;
            }
        }
    }
}

/// Vectors handled at a time.
const BLOCK_BYTES: usize = 8 << 20;

impl Reservoir {
    /// Algorithm R (Vitter, "Random sampling with a reservoir", 1985).
    fn offer(&mut self, vector: &[f32]) {
        self.seen += 1;
        if self.seen <= self.capacity as u64 {
            self.vectors.extend_from_slice(vector);
            return;
        }
        let place = self.rng.random_range(0..self.seen);
        if let Some(start) = usize::try_from(place).ok().filter(|place| *place < self.capacity) {
            let start = start * vector.len();
            self.vectors[start..start + vector.len()].copy_from_slice(vector);
        }
    }
}
