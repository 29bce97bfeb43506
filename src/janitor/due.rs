//! What a job does to the segments of an index, beside what it is for.

use super::background::{self, pace};
use super::tiers::{due, joined, overdue, untidy, MOST_MERGED};
use crate::page::{Manifest, Segment};

/// Rows grow so many times over before the router is trained anew on all of them: by a flush; by
/// one that would keep writers waiting for long, as the rows have many components; and when
/// nobody writes.
const RETRAIN_GROWTH: f64 = 4.0;
const LATE_GROWTH: f64 = 8.0;
const IDLE_GROWTH: f64 = 1.4;
/// Components of all rows together from which on to write them takes long.
const MANY_COMPONENTS: u64 = 32 << 20;
/// Rows that stay where they are take so much less time.
const CHEAPER: u64 = 4;
/// A log so many times as long as one is to be grows much faster than it is flushed.
const LONG_LOG: u32 = 2;
/// Of pages of the log of which less is alive, the rows that are are written anew.
const FEWEST_ALIVE: f64 = 0.5;

/// Whether segments would be put in order if nobody wrote.
pub fn is_untidy(manifest: &Manifest, dims: usize) -> bool {
    !Due::of(manifest, dims, Fresh::NONE, Zeal::Tidy).is_none()
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

/// Rows of the log that a job has in hand.
#[derive(Clone, Copy)]
pub struct Fresh {
    /// How many.
    pub rows: u64,
    /// They may stay on the log's pages, or there are none.
    pub may_stay: bool,
}

impl Fresh {
    /// None.
    pub const NONE: Fresh = Fresh { rows: 0, may_stay: true };
}

/// Of the chosen segments those that are untidy, as if there were no others, not too many.
fn untidy_of(sizes: &[(u64, u64)], chosen: impl Iterator<Item = bool>) -> Vec<bool> {
    let mut chosen: Vec<bool> = chosen.collect();
    let of: Vec<(u64, u64)> =
        sizes.iter().zip(&chosen).filter(|(_, chosen)| **chosen).map(|(size, _)| *size).collect();
    let mut untidy = untidy(&of);
    let mut by_size: Vec<usize> = (0..of.len()).filter(|nth| untidy[*nth]).collect();
    by_size.sort_by_key(|nth| of[*nth].1);
    by_size.iter().skip(MOST_MERGED).for_each(|nth| untidy[*nth] = false);
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
    /// With these rows from the log.
    pub fn of(manifest: &Manifest, dims: usize, fresh: Fresh, zeal: Zeal) -> Due {
        let Fresh { rows: fresh, may_stay } = fresh;
        let sizes: Vec<(u64, u64)> = manifest.segments.iter().map(|s| (s.rows, s.live)).collect();
        let total = manifest.live_rows() + fresh;
        let trained_rows = manifest.router.as_ref().map_or(0, |router| router.trained_rows);
        let growth = total as f64 / trained_rows as f64;
        let retrain = match zeal {
            Zeal::Tidy => total > 0 && growth >= IDLE_GROWTH,
            _ if is_long(total, dims) => fresh > 0 && growth >= LATE_GROWTH,
            _ => fresh > 0 && growth >= RETRAIN_GROWTH,
        };
        // What is not left where it is would all have to be read.
        let cheap: Vec<bool> =
            manifest.segments.iter().map(|of| may_stay && may_join(of, dims)).collect();
        let mut in_place = matches!(zeal, Zeal::Rush | Zeal::Hurry);
        let merged = match zeal {
            Zeal::Tidy if retrain => {
                // What takes long may be cut short: first comes what does not.
                let joined = untidy_of(&sizes, cheap.into_iter());
                if joined.iter().filter(|joined| **joined).count() > 1 {
                    return Due { retrain: false, merged: joined, in_place: true };
                }
                vec![true; sizes.len()]
            }
            _ if retrain => vec![true; sizes.len()],
            Zeal::Rush | Zeal::Hurry => overdue(&sizes, &cheap, zeal == Zeal::Rush),
            // Who is no worker may be all there is.
            Zeal::Flush if !pace::is_background() => put_in_order(manifest, due(&sizes, fresh)),
            Zeal::Flush => {
                let joined = joined(&sizes, &cheap);
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

    /// Whether it takes little time.
    pub fn is_short(&self, manifest: &Manifest, dims: usize) -> bool {
        let merged = manifest.segments.iter().zip(&self.merged).filter(|(_, merged)| **merged);
        let rows: u64 = merged.map(|(segment, _)| segment.live).sum();
        self.in_place && !is_long(rows / CHEAPER, dims)
    }

    /// Whether nothing is.
    pub fn is_none(&self) -> bool {
        !self.retrain && !self.merged.contains(&true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::page::{Column, Identity, Kind, Logged, RouterRef, Run};
    use crate::search::Calibration;

    const DIMS: usize = 128;
    const FRESH: Fresh = Fresh { rows: 1000, may_stay: true };

    fn column(kind: Kind) -> Column {
        Column { id: Identity::NONE, kind, bytes: 0, crc: 0, extents: Vec::new() }
    }

    /// A segment of so many rows, on so many pages of the log if any.
    fn segment(rows: u64, pages: Option<u32>) -> Segment {
        let run = |pages| Run { first_seq: 0, pages, reserved: 0 };
        let logged = |pages| Logged { runs: vec![run(pages)], places: column(Kind::Places) };
        Segment {
            id: Identity::NONE,
            rows,
            live: rows,
            tids: column(Kind::Tids),
            vectors: column(Kind::Vectors),
            buckets: column(Kind::Buckets),
            logged: pages.map(logged),
        }
    }

    /// An index that was trained on so many rows.
    fn manifest(trained_rows: u64, segments: Vec<Segment>) -> Manifest {
        let (calibration, column) = (Calibration::EVERYTHING, column(Kind::Router));
        let router = RouterRef { buckets: 9, trained_rows, calibration, column };
        Manifest { router: Some(router), segments }
    }

    fn merged(due: &Due) -> Vec<usize> {
        (0..due.merged.len()).filter(|nth| due.merged[*nth]).collect()
    }

    #[test]
    fn a_few_segments_on_the_logs_pages_are_joined_unless_there_is_a_rush() {
        let mut segments = vec![segment(1_000_000, None)];
        segments.resize(5, segment(10_000, Some(720)));
        let manifest = manifest(1_000_000, segments);
        let of = |fresh, zeal| Due::of(&manifest, DIMS, fresh, zeal);
        let due = of(FRESH, Zeal::Hurry);
        assert!(due.in_place && merged(&due) == [1, 2, 3, 4]);
        assert!(merged(&of(FRESH, Zeal::Rush)).is_empty());
        // Where the log's rows cannot stay, all would be written.
        let fresh = Fresh { may_stay: false, ..FRESH };
        assert!(merged(&of(fresh, Zeal::Hurry)).is_empty());
    }

    #[test]
    fn pages_that_are_mostly_dead_are_not_kept() {
        let mut segments = vec![segment(1_000_000, None)];
        segments.resize(5, segment(10_000, Some(1600)));
        let due = Due::of(&manifest(1_000_000, segments), DIMS, FRESH, Zeal::Hurry);
        assert!(merged(&due).is_empty());
    }

    #[test]
    fn what_is_short_comes_before_what_is_long() {
        let mut segments = vec![segment(100_000, None)];
        segments.resize(12, segment(10_000, Some(720)));
        let mut manifest = manifest(100_000, segments);
        let due = Due::of(&manifest, DIMS, Fresh::NONE, Zeal::Tidy);
        assert!(due.in_place && !due.retrain && due.is_short(&manifest, DIMS));
        assert_eq!(merged(&due).len(), MOST_MERGED);
        // One that others have become; then all are trained on.
        manifest.segments.truncate(1);
        manifest.segments.push(segment(110_000, Some(7900)));
        let due = Due::of(&manifest, DIMS, Fresh::NONE, Zeal::Tidy);
        assert!(due.retrain && merged(&due) == [0, 1] && !due.is_short(&manifest, DIMS));
        // Where rows are many that takes its time, too.
        manifest.segments[1] = segment(300_000, Some(21_000));
        manifest.segments.push(segment(1_000_000, Some(72_000)));
        let due = Due::of(&manifest, DIMS, Fresh::NONE, Zeal::Tidy);
        assert!(due.in_place && merged(&due) == [1, 2] && !due.is_short(&manifest, DIMS));
    }
}
