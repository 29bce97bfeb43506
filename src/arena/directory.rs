//! Names of arenas, and the directory they live in: that of the relation's own files.
//!
//! Backups, pg_checksums and pg_rewind leave files alone whose names begin with `pgsql_tmp`, and
//! the server removes such files only from its own temporary directories.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

const PREFIX: &str = "pgsql_tmp_drift.";
const TEMPORARY_SUFFIX: &str = ".tmp";

/// The name of an arena: `pgsql_tmp_drift.<relation>.<segment>`, the segment as 32 hexadecimal
/// digits.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ArenaName {
    relation: String,
    segment: u128,
}

impl ArenaName {
    /// Names the arena of a segment. `relation` is the file name of the main fork of the index:
    /// `16384`, or `t3_16384` if it is temporary; none for anything else.
    pub fn new(relation: &str, segment: u128) -> Option<ArenaName> {
        let number = |digits: &str| {
            digits.bytes().all(|b| b.is_ascii_digit())
                && !digits.starts_with('0')
                && digits.parse::<u32>().is_ok()
        };
        let valid = match relation.strip_prefix('t').and_then(|rest| rest.split_once('_')) {
            Some((backend, relation)) => (backend == "0" || number(backend)) && number(relation),
            None => number(relation),
        };
        valid.then(|| ArenaName { relation: relation.to_owned(), segment })
    }

    /// The file name of the relation's main fork.
    pub fn relation(&self) -> &str {
        &self.relation
    }

    /// The segment's id.
    pub fn segment(&self) -> u128 {
        self.segment
    }

    /// Reads a file name; none if it is not that of an arena.
    pub fn parse(file_name: &str) -> Option<ArenaName> {
        let (relation, segment) = file_name.strip_prefix(PREFIX)?.split_once('.')?;
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if segment.len() != 32 || !segment.bytes().all(hex) {
            return None;
        }
        ArenaName::new(relation, u128::from_str_radix(segment, 16).ok()?)
    }

    /// Where the arena is, in the directory of its relation.
    pub fn path(&self, dir: &Path) -> PathBuf {
        dir.join(self.to_string())
    }
}

/// The file name.
impl fmt::Display for ArenaName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}.{:032x}", self.relation, self.segment)
    }
}

/// A file of ours in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listed {
    /// An arena.
    Arena(ArenaName),
    /// An arena being written, or left behind by a process that is no more.
    Temporary {
        /// The arena it is to become.
        name: ArenaName,
        /// The process that writes it.
        pid: u32,
        /// Where it is.
        path: PathBuf,
    },
}

/// Lists the arenas in a directory and those being written, in no order. Other files are passed
/// over.
///
/// # Errors
/// Those of reading the directory.
pub fn list(dir: &Path) -> io::Result<Vec<Listed>> {
    let mut listed = Vec::new();
    for entry in fs::read_dir(dir)? {
        let file_name = entry?.file_name();
        let Some(file_name) = file_name.to_str() else { continue };
        if let Some(name) = ArenaName::parse(file_name) {
            listed.push(Listed::Arena(name));
        } else if let Some((name, pid)) = parse_temporary(file_name) {
            listed.push(Listed::Temporary { name, pid, path: dir.join(file_name) });
        }
    }
    Ok(listed)
}

/// Removes an arena; that there is none is no error. Those who have it mapped keep it.
///
/// # Errors
/// Those of unlinking.
pub fn remove(dir: &Path, name: &ArenaName) -> io::Result<()> {
    match fs::remove_file(name.path(dir)) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// Reads `<arena>.<pid>-<number>.tmp`.
fn parse_temporary(file_name: &str) -> Option<(ArenaName, u32)> {
    let (arena, process) = file_name.strip_suffix(TEMPORARY_SUFFIX)?.rsplit_once('.')?;
    let (pid, number) = process.split_once('-')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    if !digits(pid) || !digits(number) {
        return None;
    }
    Some((ArenaName::parse(arena)?, pid.parse().ok()?))
}

/// A file under a temporary name, which is removed unless it was put in its place.
#[derive(Debug)]
pub(super) struct Temporary {
    path: PathBuf,
    placed: bool,
}

impl Temporary {
    /// Creates the file an arena is to be written to, open for reading and writing.
    pub(super) fn create(dir: &Path, name: &ArenaName) -> io::Result<(File, Temporary)> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let pid = std::process::id();
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = dir.join(format!("{name}.{pid}-{number}{TEMPORARY_SUFFIX}"));
            let mut options = OpenOptions::new();
            options.read(true).write(true).create_new(true).mode(0o600);
            match options.open(&path) {
                Ok(file) => return Ok((file, Temporary { path, placed: false })),
                // Left by a process that had this pid before us: no number is used twice here.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e),
            }
        }
    }

    /// Gives the file its final name, in place of one that has it, and makes that durable.
    pub(super) fn place(mut self, dir: &Path, name: &ArenaName) -> io::Result<()> {
        fs::rename(&self.path, name.path(dir))?;
        self.placed = true;
        File::open(dir)?.sync_all()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.placed {
            // Nobody is left to tell; a sweep finds what stays behind.
            let _ = fs::remove_file(&self.path);
        }
    }
}
