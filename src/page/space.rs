//! Free pages: all that neither the manifest nor the log reaches.

use super::extension::extend_by;
use super::fault::{Fault, Read};
use super::layout::{Extent, META_BLOCK};
use super::manifest::Manifest;
use super::meta::View;
use super::Index;

/// Pages added to the relation at a time.
const EXTENSION: u32 = 256;

/// The free pages of an index, handed out by the one job that holds the job lock.
pub struct Space {
    index: Index,
    /// Free now, longest run last.
    free: Vec<Extent>,
    /// Free once the job's manifest is current.
    released: Vec<Extent>,
    /// The log's: the file may have lost these pages, and get them again as it is extended.
    reserve: Vec<Extent>,
}

impl Space {
    /// Finds what is free of the first `blocks`, which were counted when `view` was taken.
    ///
    /// `manifest_blocks` and `log_blocks` are the pages of the current manifest's chain and of the
    /// log.
    pub fn new(
        index: Index,
        view: &View,
        blocks: u32,
        manifest: &Manifest,
        manifest_blocks: &[u32],
        log_blocks: &[u32],
    ) -> Read<Space> {
        let single = |block: &u32| Extent { start: *block, len: 1 };
        let reserve: Vec<Extent> = view.log_reserve().collect();
        // The log may have grown into its reserve since the view was taken.
        let reserved = |block: &u32| reserve.iter().any(|extent| extent.contains(*block));
        let mut used: Vec<Extent> = vec![single(&META_BLOCK)];
        used.extend(manifest_blocks.iter().map(single));
        used.extend(log_blocks.iter().filter(|block| !reserved(block)).map(single));
        used.extend(manifest.columns().flat_map(|column| column.extents.iter().copied()));
        used.extend(&reserve);
        let free = gaps(used, blocks).ok_or(Fault::damaged(META_BLOCK, "space map"))?;
        Ok(Space { index, free, released: Vec::new(), reserve })
    }

    /// Takes `pages` pages, extending the relation for those that are not free.
    pub fn take(&mut self, pages: u64) -> Vec<Extent> {
        let mut want = u32::try_from(pages).unwrap_or_else(|_| too_large());
        let mut taken: Vec<Extent> = Vec::new();
        while want > 0 {
            let Some(mut run) = self.free.pop() else { break };
            if run.len > want {
                self.free.push(Extent { start: run.start + want, len: run.len - want });
                run.len = want;
            }
            want -= run.len;
            taken.push(run);
        }
        while want > 0 {
            let batch = want.min(EXTENSION);
            let first = extend_by(self.index, batch);
            let end = first.checked_add(batch).unwrap_or_else(|| too_large());
            for block in first..end {
                if self.reserve.iter().any(|extent| extent.contains(block)) {
                    continue;
                }
                want -= 1;
                match taken.last_mut() {
                    Some(run) if run.start + run.len == block => run.len += 1,
                    _ => taken.push(Extent { start: block, len: 1 }),
                }
            }
            pgrx::check_for_interrupts!();
        }
        taken
    }

    /// Gives back extents that the manifest to be published no longer reaches.
    pub fn release(&mut self, extents: impl IntoIterator<Item = Extent>) {
        self.released.extend(extents);
    }

    /// Gives back single pages.
    pub fn release_blocks(&mut self, blocks: &[u32]) {
        self.release(runs_of(blocks));
    }

    /// What will be free after the flip, at most `pages` of it.
    pub fn spare(mut self, pages: u32) -> Vec<Extent> {
        self.released.sort_unstable();
        for extent in self.released {
            match self.free.iter_mut().find(|run| run.start + run.len == extent.start) {
                Some(run) => run.len += extent.len,
                None => self.free.push(extent),
            }
        }
        self.free.sort_by_key(|run| run.len);
        let mut left = pages;
        let mut spare = Vec::new();
        while let (true, Some(mut run)) = (left > 0, self.free.pop()) {
            run.len = run.len.min(left);
            left -= run.len;
            spare.push(run);
        }
        spare
    }
}

/// Blocks in order, as runs.
pub fn runs_of(blocks: &[u32]) -> Vec<Extent> {
    let mut runs: Vec<Extent> = Vec::new();
    for block in blocks {
        match runs.last_mut() {
            Some(run) if run.start.checked_add(run.len) == Some(*block) => run.len += 1,
            _ => runs.push(Extent { start: *block, len: 1 }),
        }
    }
    runs
}

fn too_large() -> ! {
    pgrx::ereport!(
        ERROR,
        pgrx::PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
        "index exceeds the maximum size of a relation"
    );
}

/// The runs below `blocks` that are in none of `used`, shortest first; nothing if two overlap.
fn gaps(mut used: Vec<Extent>, blocks: u32) -> Option<Vec<Extent>> {
    used.retain(|extent| extent.len > 0);
    used.sort_unstable();
    let mut free = Vec::new();
    let mut next = 0u32;
    for extent in used {
        if extent.start < next {
            return None;
        }
        if extent.start > next && next < blocks {
            free.push(Extent { start: next, len: extent.start.min(blocks) - next });
        }
        next = extent.start.checked_add(extent.len)?;
    }
    if next < blocks {
        free.push(Extent { start: next, len: blocks - next });
    }
    free.sort_by_key(|run| run.len);
    Some(free)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extent(start: u32, len: u32) -> Extent {
        Extent { start, len }
    }

    #[test]
    fn pages_that_follow_one_another_are_a_run() {
        let runs = [extent(3, 3), extent(9, 1), extent(8, 1), extent(7, 1), extent(10, 2)];
        assert_eq!(runs_of(&[3, 4, 5, 9, 8, 7, 10, 11]), runs);
        assert!(runs_of(&[]).is_empty());
    }

    #[test]
    fn gaps_are_what_nothing_uses() {
        let used = vec![extent(0, 1), extent(5, 2), extent(1, 1), extent(10, 0)];
        assert_eq!(gaps(used, 12), Some(vec![extent(2, 3), extent(7, 5)]));
    }

    #[test]
    fn pages_used_twice_are_noticed() {
        assert_eq!(gaps(vec![extent(0, 3), extent(2, 1)], 5), None);
    }

    #[test]
    fn pages_past_the_counted_end_are_nobodys() {
        assert_eq!(gaps(vec![extent(0, 1), extent(8, 4)], 5), Some(vec![extent(1, 4)]));
    }
}
