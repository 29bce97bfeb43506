//! Rows that have a lower bound and no exact rank yet.

/// A row stage 1 has seen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// No more than the row's rank.
    pub lower: f32,
    /// Number of its segment.
    pub segment: u32,
    /// Its place in the segment.
    pub row: u64,
}

/// Candidates in the order of their lower bounds, sorted only as far as anybody looks.
#[derive(Default)]
pub struct Frontier {
    /// The lowest ones, lowest last.
    near: Vec<Candidate>,
    /// All others, in no order; none is below those in `near` unless `stale`.
    far: Vec<Candidate>,
    stale: bool,
    sorted_before: usize,
}

/// Candidates sorted at first; each further time twice as many.
const FIRST: usize = 32;

impl Frontier {
    /// The unsorted rest, for stage 1 to append to.
    pub fn extend(&mut self) -> &mut Vec<Candidate> {
        self.stale = true;
        &mut self.far
    }

    /// The lowest bound there is.
    pub fn lowest(&mut self) -> Option<f32> {
        self.sort_some();
        self.near.last().map(|candidate| candidate.lower)
    }

    /// Takes the candidate with the lowest bound.
    pub fn pop(&mut self) -> Option<Candidate> {
        self.sort_some();
        self.near.pop()
    }

    /// Up to `count` candidates that will come next, as far as they are sorted.
    pub fn upcoming(&self, count: usize) -> &[Candidate] {
        &self.near[self.near.len().saturating_sub(count)..]
    }

    fn sort_some(&mut self) {
        if self.far.is_empty() || (!self.stale && !self.near.is_empty()) {
            return;
        }
        if self.stale {
            self.far.append(&mut self.near);
            self.stale = false;
        }
        let by_bound = |a: &Candidate, b: &Candidate| a.lower.total_cmp(&b.lower);
        let count = self.sorted_before.max(FIRST).min(self.far.len());
        self.sorted_before = count * 2;
        if count < self.far.len() {
            self.far.select_nth_unstable_by(count, by_bound);
        }
        self.near.extend(self.far.drain(..count));
        self.near.sort_unstable_by(|a, b| by_bound(b, a));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{rngs::SmallRng, Rng, SeedableRng};

    #[test]
    fn candidates_come_lowest_first_however_they_are_added() {
        let mut rng = SmallRng::seed_from_u64(1);
        for _ in 0..50 {
            let mut frontier = Frontier::default();
            let mut model: Vec<f32> = Vec::new();
            for _ in 0..rng.random_range(1..6) {
                for row in 0..rng.random_range(0..700) {
                    let lower = if rng.random_bool(0.05) {
                        f32::NEG_INFINITY
                    } else {
                        rng.random_range(-5.0..5.0)
                    };
                    model.push(lower);
                    frontier.extend().push(Candidate { lower, segment: 0, row });
                }
                model.sort_by(|a, b| b.total_cmp(a));
                for _ in 0..rng.random_range(0..300) {
                    assert_eq!(frontier.lowest(), model.last().copied());
                    assert_eq!(frontier.pop().map(|c| c.lower), model.pop());
                }
            }
        }
    }
}
