//! Blocks that nobody uses, for the next that asks.

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

/// Blocks that nobody uses, and how much memory there is.
pub struct Kept {
    /// Of these the first `count`.
    blocks: [Block; MOST],
    count: usize,
    /// Bytes of these, of blocks in use, and the most there have been in use.
    unused: usize,
    used: usize,
    most: usize,
    is_on: bool,
}

impl Kept {
    /// None, and none will be kept.
    pub const fn new() -> Kept {
        let blocks = [Block { start: 0, len: 0 }; MOST];
        Kept { blocks, count: 0, unused: 0, used: 0, most: 0, is_on: false }
    }

    /// From now on blocks are kept.
    pub fn turn_on(&mut self) {
        self.is_on = true;
    }

    /// So many bytes of the least block that has them, for use; what else it has is kept.
    pub fn take(&mut self, len: usize) -> Option<Block> {
        let blocks = self.blocks[..self.count].iter().enumerate();
        let (place, block) =
            blocks.filter(|(_, block)| block.len >= len).min_by_key(|(_, b)| b.len)?;
        let block = *block;
        let rest = Block { start: block.start + len, len: block.len - len };
        if rest.len > 0 {
            self.blocks[place] = rest;
            self.unused -= len;
        } else {
            self.remove(place);
        }
        self.count_in(len);
        Some(Block { start: block.start, len })
    }

    /// Counts bytes that have come from the system for use.
    pub fn count_in(&mut self, len: usize) {
        self.used += len;
        self.most = self.most.max(self.used);
    }

    /// Takes back a block that was in use; false where it is to go to the system.
    pub fn give(&mut self, block: Block) -> bool {
        self.used = self.used.saturating_sub(block.len);
        let keeps = self.is_on && self.count < MOST;
        if keeps {
            self.blocks[self.count] = block;
            self.count += 1;
            self.unused += block.len;
        }
        keeps
    }

    /// A block that is to go to the system, where there is more memory than was ever in use.
    pub fn excess(&mut self) -> Option<Block> {
        let least = (0..self.count).min_by_key(|place| self.blocks[*place].len)?;
        (self.used + self.unused > self.most).then(|| self.remove(least))
    }

    fn remove(&mut self, place: usize) -> Block {
        let block = self.blocks[place];
        self.count -= 1;
        self.blocks[place] = self.blocks[self.count];
        self.unused -= block.len;
        block
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(kept: &mut Kept, start: usize, len: usize) -> Block {
        kept.count_in(len);
        Block { start, len }
    }

    #[test]
    fn nothing_is_kept_unless_asked_to() {
        let mut kept = Kept::new();
        let block = used(&mut kept, 100, 50);
        assert!(!kept.give(block));
        assert_eq!(kept.take(10), None);
        assert_eq!(kept.excess(), None);
    }

    #[test]
    fn the_least_block_that_will_do_is_taken_and_its_rest_stays() {
        let mut kept = Kept::new();
        kept.turn_on();
        let blocks = [(1000, 60), (2000, 30), (3000, 40)].map(|(s, l)| used(&mut kept, s, l));
        assert!(blocks.into_iter().all(|block| kept.give(block)));
        assert_eq!(kept.take(35), Some(Block { start: 3000, len: 35 }));
        assert_eq!(kept.take(5), Some(Block { start: 3035, len: 5 }));
        assert_eq!(kept.take(61), None);
        assert_eq!(kept.take(60), Some(Block { start: 1000, len: 60 }));
        assert_eq!(kept.take(31), None);
        assert_eq!((kept.used, kept.unused, kept.most), (100, 30, 130));
    }

    #[test]
    fn there_is_never_more_than_was_in_use() {
        let mut kept = Kept::new();
        kept.turn_on();
        let blocks = [(1000, 60), (2000, 30)].map(|(start, len)| used(&mut kept, start, len));
        assert!(blocks.into_iter().all(|block| kept.give(block)));
        assert_eq!(kept.excess(), None);
        let large = used(&mut kept, 5000, 70);
        assert_eq!(kept.excess(), Some(Block { start: 2000, len: 30 }));
        assert_eq!(kept.excess(), Some(Block { start: 1000, len: 60 }));
        assert_eq!(kept.excess(), None);
        assert!(kept.give(large));
        assert_eq!(kept.excess(), None);
    }

    #[test]
    fn what_finds_no_place_goes_to_the_system() {
        let mut kept = Kept::new();
        kept.turn_on();
        let blocks: Vec<Block> = (0..MOST + 1).map(|nth| used(&mut kept, nth, 1)).collect();
        let given = blocks.into_iter().filter(|block| kept.give(*block)).count();
        assert_eq!(given, MOST);
        assert_eq!((kept.used, kept.unused), (0, MOST));
    }
}
