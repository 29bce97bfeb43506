//! Mishaps, for tests.

use super::{Held, CHANGING};
use std::sync::atomic::Ordering;

impl Held {
    /// Leaves the slot as an error in the middle of a change does.
    pub fn leave_changing(&self) {
        self.slot().state.store(CHANGING, Ordering::SeqCst);
    }

    /// Takes the slot for one of longer rows.
    pub fn lengthen_rows(&self) {
        self.slot().dims.fetch_add(64, Ordering::Relaxed);
    }

    /// Makes all links of the active generation lead nowhere.
    pub fn scribble_links(&self) {
        let number = self.slot().active();
        let (Some((generation, graph)), Some(shape)) = (self.graph(number), self.slot().shape())
        else {
            return;
        };
        let table = self.area.table(self.number, number);
        let chunks = generation.chunks.load(Ordering::Relaxed) as usize;
        let vectors = shape.rows_per_chunk() as usize * self.slot().dims() as usize;
        for nth in table.iter().take(chunks) {
            let words = self.area.chunk(nth.load(Ordering::Relaxed)).unwrap_or_default();
            let links = shape.rows_per_chunk() as usize * 32;
            for word in words.iter().skip(vectors).take(links) {
                word.store(u32::MAX - 1, Ordering::Relaxed);
            }
        }
        assert!(graph.linked() > 0);
    }
}
