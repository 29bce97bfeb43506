//! Blocks that nobody uses, for the next that asks.

use super::LARGE;

/// Blocks there may be.
const MOST: usize = 32;

/// Where a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// Its address.
    pub start: usize,
    /// Its bytes.
    pub len: usize,
}

/// Blocks that nobody uses, and how much memory there is. A block is a part of one mapping: two that
/// lie side by side stay two, as what moves must not span mappings.
pub struct Kept {
    /// Of these the first `count`, in the order they came.
    blocks: [Block; MOST],
    count: usize,
    /// Bytes of these, and of blocks in use.
    unused: usize,
    used: usize,
    /// The most that was in use at a time in this period, and in the one before.
    most: usize,
    most_before: usize,
    is_on: bool,
}

impl Kept {
    /// None, and none will be kept.
    pub const fn new() -> Kept {
        let blocks = [Block { start: 0, len: 0 }; MOST];
        Kept { blocks, count: 0, unused: 0, used: 0, most: 0, most_before: 0, is_on: false }
    }

    /// From now on blocks are kept.
    pub fn turn_on(&mut self) {
        self.is_on = true;
    }

    /// So many bytes of the least block that has them, for use, and what else it has.
    pub fn take(&mut self, len: usize) -> Option<(Block, Block)> {
        let blocks = self.blocks[..self.count].iter().enumerate();
        let enough = blocks.filter(|(_, block)| block.len >= len);
        let (place, _) = enough.min_by_key(|(_, block)| block.len)?;
        let Block { start, len: all } = self.remove(place);
        self.count_in(len);
        Some((Block { start, len }, Block { start: start + len, len: all - len }))
    }

    /// Counts bytes that have come from the system for use.
    pub fn count_in(&mut self, len: usize) {
        self.used += len;
        self.most = self.most.max(self.used);
    }

    /// Counts bytes that are used no more.
    pub fn count_out(&mut self, len: usize) {
        debug_assert!(len <= self.used);
        self.used = self.used.saturating_sub(len);
    }

    /// Keeps a block that is not in use; false where it is to go to the system: nothing is kept,
    /// or it is too small to be of use.
    pub fn keep(&mut self, block: Block) -> bool {
        let keeps = self.is_on && block.len >= LARGE && self.count < MOST;
        if keeps {
            self.blocks[self.count] = block;
            self.count += 1;
            self.unused += block.len;
        }
        keeps
    }

    /// A block that is to go to the system, if with so many bytes more in use there is more memory
    /// than was in use at a time in this period or the one before.
    pub fn excess(&mut self, more: usize) -> Option<Block> {
        let used = self.used.saturating_add(more);
        let most = self.most.max(self.most_before).max(used);
        if used.saturating_add(self.unused) > most {
            self.oldest()
        } else {
            None
        }
    }

    /// The block that has been kept for longest, to go to the system.
    pub fn oldest(&mut self) -> Option<Block> {
        (self.count > 0).then(|| self.remove(0))
    }

    /// Ends a period, of which only the next one will know.
    pub fn end_period(&mut self) {
        (self.most_before, self.most) = (self.most, self.used);
    }

    fn remove(&mut self, place: usize) -> Block {
        let block = self.blocks[place];
        self.blocks.copy_within(place + 1..self.count, place);
        self.count -= 1;
        self.unused -= block.len;
        block
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: usize = 1 << 20;

    fn block(start: usize, mb: usize) -> Block {
        Block { start: start * MB, len: mb * MB }
    }

    /// Blocks that were in use and are given back.
    fn keeping(blocks: &[Block]) -> Kept {
        let mut kept = Kept::new();
        kept.turn_on();
        blocks.iter().for_each(|block| kept.count_in(block.len));
        for block in blocks {
            kept.count_out(block.len);
            assert!(kept.keep(*block));
        }
        kept
    }

    #[test]
    fn nothing_is_kept_unless_asked_to() {
        let mut kept = Kept::new();
        assert!(!kept.keep(block(100, 50)));
        assert_eq!(kept.take(10), None);
        assert_eq!((kept.excess(0), kept.oldest()), (None, None));
    }

    #[test]
    fn the_least_block_that_will_do_is_taken() {
        let mut kept = keeping(&[block(1000, 60), block(2000, 30), block(3000, 40)]);
        assert_eq!(kept.take(32 * MB), Some((block(3000, 32), block(3032, 8))));
        assert_eq!(kept.take(61 * MB), None);
        assert_eq!(kept.take(60 * MB), Some((block(1000, 60), block(1060, 0))));
        assert_eq!(kept.take(31 * MB), None);
        assert!(kept.keep(block(3032, 8)));
        assert!(!kept.keep(block(5000, 7)), "too small");
        assert_eq!((kept.used, kept.unused, kept.most), (92 * MB, 38 * MB, 130 * MB));
    }

    #[test]
    fn there_is_never_more_than_was_in_use() {
        let mut kept = keeping(&[block(1000, 60), block(2000, 30)]);
        assert_eq!(kept.excess(0), None);
        assert_eq!(kept.excess(70 * MB), Some(block(1000, 60)));
        assert_eq!(kept.excess(70 * MB), Some(block(2000, 30)));
        assert_eq!(kept.excess(70 * MB), None);
    }

    #[test]
    fn what_was_needed_two_periods_ago_goes() {
        let mut kept = keeping(&[block(1000, 60), block(2000, 30), block(3000, 10)]);
        kept.end_period();
        assert_eq!(kept.excess(0), None);
        assert_eq!(kept.take(30 * MB), Some((block(2000, 30), block(2030, 0))));
        kept.count_out(30 * MB);
        assert!(kept.keep(block(2000, 30)));
        assert_eq!(kept.excess(0), None, "there may be another job as large");
        kept.end_period();
        assert_eq!(kept.excess(0), Some(block(1000, 60)));
        assert_eq!(kept.excess(0), Some(block(3000, 10)));
        assert_eq!(kept.excess(0), None);
        assert_eq!(kept.oldest(), Some(block(2000, 30)));
    }

    #[test]
    fn what_finds_no_place_goes_to_the_system() {
        let mut kept = Kept::new();
        kept.turn_on();
        let given = (0..=MOST).filter(|nth| kept.keep(block(*nth * 8, 8))).count();
        assert_eq!((given, kept.count), (MOST, MOST));
    }
}
