//! What has been found sound, for all processes that map the same files.
//!
//! A check of a checksum holds for as long as nobody writes to the file, and nobody does. So a new
//! process need not repeat what others have checked: a search by a new connection would spend most
//! of its time on that. Proofs are kept in a table of fixed size that forgets: each is a number
//! made of the file and the part of it, and those of one file are side by side, since a new process
//! meets each page of the table for the first time. Whatever is not found there is checked once
//! more. Exact searches rely on no proof: a medium may fail later.

use std::fs::Metadata;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock};

/// Places of the table that a server has: 1 MB.
pub const PROOFS: usize = 1 << 17;

static SHARED: RwLock<&[AtomicU64]> = RwLock::new(&[]);

/// Has the proofs of this process kept in memory it shares with others. All zero is no proof.
pub fn share_proofs(table: &'static [AtomicU64]) {
    *SHARED.write().unwrap_or_else(PoisonError::into_inner) = table;
}

/// Parts of an arena, each with a checksum of its own.
#[derive(Clone, Copy, Debug, Hash)]
pub(super) enum Part {
    /// What is checked when it is opened.
    Whole,
    /// The block of the bucket at this index.
    Block(usize),
}

/// What is known of one file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Proofs {
    table: &'static [AtomicU64],
    /// The file, and the state it was in.
    file: u64,
}

impl Proofs {
    /// Those of a file, which is another one once it was written to or replaced.
    pub(super) fn of(metadata: &Metadata) -> Proofs {
        let table = *SHARED.read().unwrap_or_else(PoisonError::into_inner);
        let mut hasher = DefaultHasher::new();
        (metadata.dev(), metadata.ino(), metadata.len()).hash(&mut hasher);
        (metadata.mtime(), metadata.mtime_nsec()).hash(&mut hasher);
        (metadata.ctime(), metadata.ctime_nsec()).hash(&mut hasher);
        Proofs { table, file: hasher.finish() }
    }

    /// Those of memory of this process: none are kept.
    pub(super) fn none() -> Proofs {
        Proofs { table: &[], file: 0 }
    }

    /// Whether the part was found sound; `check` finds out if nobody has yet.
    pub(super) fn hold(&self, part: Part, check: impl FnOnce() -> bool) -> bool {
        let proof = self.proof(part);
        let nth = match part {
            Part::Whole => 0,
            Part::Block(nth) => nth.wrapping_add(1),
        };
        let place = (self.file as usize).wrapping_add(nth) % self.table.len().max(1);
        let place = self.table.get(place);
        if place.is_some_and(|place| place.load(Ordering::Relaxed) == proof) {
            return true;
        }
        let sound = check();
        if let Some(place) = place.filter(|_| sound) {
            place.store(proof, Ordering::Relaxed);
        }
        sound
    }

    /// A number that is not zero.
    fn proof(&self, part: Part) -> u64 {
        let mut hasher = DefaultHasher::new();
        (self.file, part).hash(&mut hasher);
        hasher.finish().max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File, OpenOptions};
    use std::os::unix::fs::FileExt;
    use std::time::{Duration, SystemTime};

    fn proofs(places: usize, file: u64) -> Proofs {
        let table = (0..places).map(|_| AtomicU64::new(0)).collect::<Vec<_>>().leak();
        Proofs { table, file }
    }

    #[test]
    fn what_was_sound_is_not_checked_again() {
        let one = proofs(1 << 10, 1);
        let other = Proofs { file: 2, ..one };
        assert!(!one.hold(Part::Whole, || false), "what is not sound");
        assert!(one.hold(Part::Whole, || true), "is checked again");
        assert!(one.hold(Part::Whole, || unreachable!()));
        assert!(!one.hold(Part::Block(0), || false), "another part");
        assert!(!other.hold(Part::Whole, || false), "of another file");
    }

    #[test]
    fn a_file_that_was_written_to_is_another_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let file = || Proofs::of(&fs::metadata(&path).unwrap()).file;
        fs::write(&path, b"sound").unwrap();
        let sound = file();
        assert_eq!(sound, file());
        let later = SystemTime::now() + Duration::from_secs(1);
        let opened = OpenOptions::new().write(true).open(&path).unwrap();
        opened.write_all_at(b"S", 0).unwrap();
        // As if some time had passed: file systems count it in steps.
        opened.set_modified(later).unwrap();
        let written = file();
        assert_ne!(sound, written);
        let other = dir.path().join("other");
        fs::write(&other, b"Sound").unwrap();
        File::open(&other).unwrap().set_modified(later).unwrap();
        fs::rename(&other, &path).unwrap();
        assert_ne!(written, file());
    }

    #[test]
    fn a_full_table_forgets() {
        let proofs = proofs(8, 1);
        assert!((0..100).all(|nth| proofs.hold(Part::Block(nth), || true)));
        let checked = (0..100).filter(|nth| !proofs.hold(Part::Block(*nth), || false)).count();
        assert!((92..100).contains(&checked), "{checked}");
    }

    #[test]
    fn without_a_table_all_is_checked() {
        for _ in 0..2 {
            assert!(Proofs::none().hold(Part::Whole, || true));
            assert!(!Proofs::none().hold(Part::Whole, || false));
        }
    }
}
