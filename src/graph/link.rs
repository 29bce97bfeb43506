//! Linking published rows into the graph.

use super::level::{joins, top};
use super::region::{Graph, Region};
use super::search::Scratch;
use super::{Corrupt, Rank, BASE_LINKS, CONSTRUCTION_EFFORT, NEW_LINKS, UPPER_LINKS};
use std::sync::atomic::{AtomicU32, Ordering};

/// A full list of links is cut down to so many of its places, in quarters: choosing costs a
/// distance for each pair, so not every new link should make it necessary.
const KEPT_QUARTERS: usize = 3;

impl<R: Region> Graph<'_, R> {
    /// Links the oldest rows that are not linked, at most `rows` of them; returns how many.
    ///
    /// One linker at a time; searches may go on meanwhile. One that was interrupted leaves a graph
    /// that the next one goes on with.
    ///
    /// # Errors
    /// [`Corrupt`] if the memory is not what this code has written.
    pub fn link(&self, scratch: &mut Scratch, rows: u32) -> Result<u32, Corrupt> {
        let first = self.linked();
        let end = self.len().min(first.saturating_add(rows));
        for row in first..end {
            self.join(scratch, 0, row, row)?;
            for (level, member) in joins(row) {
                // On its own level the group that is being completed does not count yet.
                self.join(scratch, level, member, row)?;
            }
            self.set_linked(row + 1);
        }
        Ok(end.saturating_sub(first))
    }

    /// Gives `row` its links on `level` (algorithm 1 of the paper), among the first `linked` rows.
    fn join(
        &self,
        scratch: &mut Scratch,
        level: u32,
        row: u32,
        linked: u32,
    ) -> Result<(), Corrupt> {
        let vector = self.vector(row)?;
        let mut near = Vec::new();
        if linked > 0 && top(linked) >= level {
            let start = self.descend(vector, linked, level)?;
            let others = |other| other != row;
            self.explore(scratch, level, vector, linked, start, CONSTRUCTION_EFFORT, others)?;
            near = scratch.take_found();
        }
        let chosen = self.choose(near, NEW_LINKS, true)?;
        self.with_links(level, row, |words| {
            write(words, &chosen);
            Ok(())
        })?;
        for (rank, neighbour) in chosen {
            self.with_links(level, neighbour, |words| {
                self.link_back(words, neighbour, (rank, row), linked)
            })?;
        }
        Ok(())
    }

    /// Adds a link to a list that may be full.
    fn link_back(
        &self,
        words: &[&AtomicU32],
        owner: u32,
        new: (Rank, u32),
        linked: u32,
    ) -> Result<(), Corrupt> {
        let link = new.1.wrapping_add(1);
        for word in words {
            match word.load(Ordering::Relaxed) {
                0 => {
                    word.store(link, Ordering::Release);
                    return Ok(());
                }
                present if present == link => return Ok(()),
                _ => {}
            }
        }
        let vector = self.vector(owner)?;
        let mut near = vec![new];
        for word in words {
            let row = word.load(Ordering::Relaxed).wrapping_sub(1);
            if row > linked {
                return Err(Corrupt);
            }
            near.push((self.rank(vector, row)?, row));
        }
        near.sort_unstable();
        let kept = self.choose(near, words.len() * KEPT_QUARTERS / 4, false)?;
        write(words, &kept);
        Ok(())
    }

    /// Chooses links in different directions (algorithm 4 of the paper): of rows sorted by their
    /// rank, one that is nearer to its owner than to any that was chosen before. With `fill`,
    /// places left over go to the nearest of the others.
    fn choose(
        &self,
        near: Vec<(Rank, u32)>,
        most: usize,
        fill: bool,
    ) -> Result<Vec<(Rank, u32)>, Corrupt> {
        if near.len() <= most && fill {
            return Ok(near);
        }
        let mut chosen: Vec<(Rank, u32)> = Vec::with_capacity(most);
        let mut others = Vec::new();
        for candidate in near {
            if chosen.len() == most {
                break;
            }
            let vector = self.vector(candidate.1)?;
            let mut apart = true;
            for (_, earlier) in &chosen {
                if self.rank(vector, *earlier)? < candidate.0 {
                    apart = false;
                    break;
                }
            }
            if apart {
                chosen.push(candidate);
            } else {
                others.push(candidate);
            }
        }
        if fill {
            let places = most - chosen.len();
            chosen.extend(others.into_iter().take(places));
        }
        Ok(chosen)
    }

    fn with_links(
        &self,
        level: u32,
        row: u32,
        with: impl FnOnce(&[&AtomicU32]) -> Result<(), Corrupt>,
    ) -> Result<(), Corrupt> {
        if level > 0 {
            return with(&self.upper_links(level, row)?);
        }
        let words = self.base_links(row)?;
        let mut list = [&words[0]; BASE_LINKS];
        for (place, word) in list.iter_mut().zip(words) {
            *place = word;
        }
        with(&list)
    }
}

/// Makes `links` the list.
fn write(words: &[&AtomicU32], links: &[(Rank, u32)]) {
    for (nth, word) in words.iter().enumerate() {
        let link = links.get(nth).map_or(0, |(_, row)| row.wrapping_add(1));
        word.store(link, Ordering::Release);
    }
}

const _: () = assert!(NEW_LINKS <= UPPER_LINKS && NEW_LINKS <= BASE_LINKS);
