//! What a job does to the segments of an index, beside what it is for.

use super::background::{self, pace};
use super::tiers::{due, overdue, untidy, MOST_MERGED};
use crate::page::{Manifest, Segment};

/// Rows grow so many times over before the router is trained anew on all of them: by a flush; by
/// one that would keep writers waiting for long, as the rows have many components; and when
/// nobody writes.
const RETRAIN_GROWTH: f64 = 4.0;
const LATE_GROWTH: f64 = 8.0;
const IDLE_GROWTH: f64 = 1.4;
/// Components of all rows together from which on to write them takes long.
const MANY_COMPONENTS: u64 = 32 << 20;
/// A log so many times as long as one is to be grows much faster than it is flushed.
const LONG_LOG: u32 = 2;
/// Of pages of the log of which less is alive, the rows that are are written anew.
const FEWEST_ALIVE: f64 = 0.5;

/// Whether segments would be put in order if nobody wrote.
pub fn is_untidy(manifest: &Manifest, dims: usize) -> bool {
    !Due::of(manifest, dims, 0, Zeal::Tidy).is_none()
}

/// What a job is out for.
#[derive(Clone, Copy, PartialEq)]
pub enum Zeal {
    /// To empty the log at once.
    Rush,
    /// To empty the log.
    Hurry,
    /// To write few rows.
    Flush,
    /// To leave searches little to do.
    Tidy,
}

impl Zeal {
    /// The same beside a log of so many pages: the janitor hurries where rows come faster than they
    /// are flushed, and more if much faster.
    pub fn beside(self, log_pages: u32, log_limit: u32) -> Zeal {
        let may_hurry = pace::is_background() && matches!(self, Zeal::Flush | Zeal::Hurry);
        match self {
            _ if may_hurry && log_pages / LONG_LOG >= log_limit => Zeal::Rush,
            _ if may_hurry && background::is_behind(log_pages, log_limit) => Zeal::Hurry,
            zeal => zeal,
        }
    }
}

/// What is to be done to the segments.
pub struct Due {
    /// The router is trained anew on all rows.
    pub retrain: bool,
    /// Which become one, with the rows of the log.
    pub merged: Vec<bool>,
    /// Vectors stay on the log's pages, as far as they can.
    pub in_place: bool,
}

/// Whether a job that writes so many rows takes seconds.
pub fn is_long(rows: u64, dims: usize) -> bool {
    rows.saturating_mul(dims as u64) > MANY_COMPONENTS
}

/// Whether a segment becomes one with others like it while its rows stay where they are.
fn may_join(segment: &Segment, dims: usize) -> bool {
    segment.logged.as_ref().is_some_and(|logged| {
        logged.may_join(MOST_MERGED) && is_mostly_alive(segment.live, logged.room(dims))
    })
}

/// Whether so many rows are worth the pages they have so much room on.
pub fn is_mostly_alive(rows: u64, room: u64) -> bool {
    rows as f64 >= room as f64 * FEWEST_ALIVE
}

/// Of the chosen segments those that are untidy, as if there were no others.
fn untidy_of(sizes: &[(u64, u64)], chosen: impl Iterator<Item = bool>) -> Vec<bool> {
    let mut chosen: Vec<bool> = chosen.collect();
    let of: Vec<(u64, u64)> =
        sizes.iter().zip(&chosen).filter(|(_, chosen)| **chosen).map(|(size, _)| *size).collect();
    let untidy = untidy(&of);
    let kept = chosen.iter_mut().filter(|chosen| **chosen);
    kept.zip(untidy).for_each(|(chosen, untidy)| *chosen = untidy);
    chosen
}

/// Those segments too whose vectors are not in order yet.
fn put_in_order(manifest: &Manifest, mut merged: Vec<bool>) -> Vec<bool> {
    let segments = manifest.segments.iter().zip(&mut merged);
    segments.for_each(|(segment, merged)| *merged |= segment.logged.is_some());
    merged
}

impl Due {
    /// With so many rows from the log.
    pub fn of(manifest: &Manifest, dims: usize, fresh: u64, zeal: Zeal) -> Due {
        let sizes: Vec<(u64, u64)> = manifest.segments.iter().map(|s| (s.rows, s.live)).collect();
        let total = manifest.live_rows() + fresh;
        let trained_rows = manifest.router.as_ref().map_or(0, |router| router.trained_rows);
        let growth = total as f64 / trained_rows as f64;
        let retrain = match zeal {
            Zeal::Tidy => total > 0 && growth >= IDLE_GROWTH,
            _ if is_long(total, dims) => fresh > 0 && growth >= LATE_GROWTH,
            _ => fresh > 0 && growth >= RETRAIN_GROWTH,
        };
        let cheap = || manifest.segments.iter().map(|segment| may_join(segment, dims));
        let mut in_place = matches!(zeal, Zeal::Rush | Zeal::Hurry);
        let merged = match zeal {
            Zeal::Tidy if retrain => {
                // What takes long may be cut short: first comes what does not.
                let joined = untidy_of(&sizes, cheap());
                if joined.iter().filter(|joined| **joined).count() > 1 {
                    return Due { retrain: false, merged: joined, in_place: true };
                }
                vec![true; sizes.len()]
            }
            _ if retrain => vec![true; sizes.len()],
            Zeal::Rush | Zeal::Hurry => {
                overdue(&sizes, &cheap().collect::<Vec<_>>(), zeal == Zeal::Rush)
            }
            // Who is no worker may be all there is.
            Zeal::Flush if !pace::is_background() => put_in_order(manifest, due(&sizes, fresh)),
            Zeal::Flush => {
                let joined = overdue(&sizes, &cheap().collect::<Vec<_>>(), false);
                in_place = joined.contains(&true);
                if in_place {
                    joined
                } else {
                    due(&sizes, fresh)
                }
            }
            Zeal::Tidy => put_in_order(manifest, untidy(&sizes)),
        };
        Due { retrain, merged, in_place }
    }

    /// Whether nothing is.
    pub fn is_none(&self) -> bool {
        !self.retrain && !self.merged.contains(&true)
    }
}
