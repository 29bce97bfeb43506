//! Writing an arena, bucket by bucket.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crc32fast::Hasher;
use memmap2::MmapMut;

use super::directory::Temporary;
use super::format::{block, Footer, ALIGN};
use super::mapping::anonymous;
use super::proofs::Proofs;
use super::{Arena, ArenaError, ArenaName, EncodedBucket, Layout};
use crate::courtesy;

/// A huge page. What is written to the file as a whole at a multiple of it, the system can keep,
/// and map, as one: a search touches memory all over the arena, and each page it touches is to be
/// found in tables first.
const HUGE_PAGE: usize = 2 << 20;
/// An arena that is shorter has few pages anyway. It is written in small pieces: the system finishes
/// what it has begun to write, which is milliseconds for a huge page, before anybody else is let on
/// the core.
const SHORT: u64 = 8 * HUGE_PAGE as u64;
const PIECE: usize = 64 << 10;
const ZEROES: [u8; ALIGN as usize] = [0; ALIGN as usize];

/// An arena being written. Dropped before [`Writer::finish`] it leaves nothing behind.
#[derive(Debug)]
pub struct Writer {
    layout: Layout,
    /// Index of the bucket to be pushed next.
    next: usize,
    sink: Sink,
}

#[derive(Debug)]
enum Sink {
    File { file: Pieces, temporary: Temporary, dir: PathBuf, name: ArenaName },
    Memory { map: MmapMut, at: usize },
}

/// Writes a file from its begin, in pieces of one length.
#[derive(Debug)]
struct Pieces {
    file: File,
    /// Bytes in the file.
    written: u64,
    length: usize,
    piece: Vec<u8>,
}

impl Pieces {
    /// For a file of `total` bytes.
    fn new(file: File, total: u64) -> Pieces {
        let length = if total < SHORT { PIECE } else { HUGE_PAGE };
        Pieces { file, written: 0, length, piece: Vec::with_capacity(length) }
    }

    fn write(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(self.length - self.piece.len()));
            self.piece.extend_from_slice(now);
            bytes = later;
            if self.piece.len() == self.length {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        courtesy::give_way();
        self.file.write_all_at(&self.piece, self.written)?;
        self.written += self.piece.len() as u64;
        self.piece.clear();
        Ok(())
    }
}

impl Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Sink::File { file, .. } => file.write(bytes),
            Sink::Memory { map, at } => {
                let end = at.checked_add(bytes.len());
                let room = end.and_then(|end| map.get_mut(*at..end));
                room.ok_or(io::ErrorKind::WriteZero)?.copy_from_slice(bytes);
                *at += bytes.len();
                Ok(())
            }
        }
    }
}

impl Writer {
    /// Begins the file of an arena in the directory of its relation, under a temporary name.
    ///
    /// # Errors
    /// [`ArenaError::Io`].
    pub fn create(dir: &Path, name: &ArenaName, layout: Layout) -> Result<Writer, ArenaError> {
        let (file, temporary) = Temporary::create(dir, name)?;
        let mut file = Pieces::new(file, layout.length);
        // Header and table hold checksums of what follows: they come last.
        let head = usize::try_from(layout.data).map_err(|_| ArenaError::Layout("too large"))?;
        file.write(&vec![0; head])?;
        let sink = Sink::File { file, temporary, dir: dir.to_owned(), name: name.clone() };
        Ok(Writer { layout, next: 0, sink })
    }

    /// Begins an arena in memory of this process, for when there is no room on disk. It has the
    /// same bytes as the file would, and goes when it is dropped.
    ///
    /// # Errors
    /// [`ArenaError::Io`] when the system refuses the memory.
    pub fn in_memory(layout: Layout) -> Result<Writer, ArenaError> {
        let length = usize::try_from(layout.length).map_err(|_| ArenaError::Layout("too large"))?;
        let map = anonymous(length)?;
        let at = layout.data as usize;
        Ok(Writer { layout, next: 0, sink: Sink::Memory { map, at } })
    }

    /// Bytes from one row's codes to the next.
    pub fn stride(&self) -> usize {
        self.layout.shape.stride
    }

    /// Writes the next bucket of the layout.
    ///
    /// # Errors
    /// [`ArenaError::Layout`] when the bucket has another number of rows or there is none left,
    /// [`ArenaError::Io`] when writing fails; the writer is of no use then.
    pub fn push_bucket(&mut self, bucket: &EncodedBucket) -> Result<(), ArenaError> {
        let Some(entry) = self.layout.entries.get_mut(self.next) else {
            return Err(ArenaError::Layout("more buckets than announced"));
        };
        let block = block(entry.rows, entry.spilled, self.layout.shape);
        let [add, scale, error] = &bucket.columns;
        let column = (block.spilled - block.columns) / 3;
        // Each part with the length it has to have and the zeroes behind it.
        let parts: [(&[u8], u64, u64); 7] = [
            (&bucket.signs, block.columns, 0),
            (bytemuck::cast_slice(add), column, 0),
            (bytemuck::cast_slice(scale), column, 0),
            (bytemuck::cast_slice(error), column, 0),
            (
                bytemuck::cast_slice(&bucket.spilled),
                block.spilled_end - block.spilled,
                block.factors - block.spilled_end,
            ),
            (
                bytemuck::cast_slice(&bucket.factors),
                block.factors_end - block.factors,
                block.codes - block.factors_end,
            ),
            (
                bytemuck::cast_slice(&bucket.codes),
                block.end - block.codes,
                block.length - block.end,
            ),
        ];
        if parts.iter().any(|(bytes, length, _)| bytes.len() as u64 != *length) {
            return Err(ArenaError::Layout("rows of a bucket"));
        }
        let mut crc = Hasher::new();
        for (bytes, _, zeroes) in parts {
            for bytes in [bytes, ZEROES.split_at(zeroes as usize).0] {
                crc.update(bytes);
                self.sink.write(bytes)?;
            }
        }
        entry.crc = crc.finalize();
        self.next += 1;
        Ok(())
    }

    /// Completes the arena and maps it. A file is synced before it takes its name, and replaces
    /// one that has it.
    ///
    /// # Errors
    /// [`ArenaError::Layout`] when buckets are missing, [`ArenaError::Io`]. The temporary file is
    /// gone then; if only the directory could not be synced, the arena stands.
    pub fn finish(mut self) -> Result<Arena, ArenaError> {
        if self.next != self.layout.entries.len() {
            return Err(ArenaError::Layout("fewer buckets than announced"));
        }
        let identity = self.layout.identity;
        let footer = Footer::new(identity.segment, self.layout.length);
        self.sink.write(bytemuck::bytes_of(&footer))?;
        let head = self.layout.head();
        match self.sink {
            Sink::File { mut file, temporary, dir, name } => {
                file.flush()?;
                let file = file.file;
                file.write_all_at(&head, 0)?;
                file.sync_all()?;
                temporary.place(&dir, &name)?;
                Arena::map(&file, &identity)
            }
            Sink::Memory { mut map, .. } => {
                map.split_at_mut(head.len()).0.copy_from_slice(&head);
                Arena::check(map.make_read_only()?, &identity, Proofs::none())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_of_any_size_become_the_same_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let bytes: Vec<u8> = (0..2 * HUGE_PAGE + 12_345).map(|at| (at * at / 7) as u8).collect();
        let cases = [1 << 20, HUGE_PAGE, 3 * HUGE_PAGE, 77_777].map(|piece| (piece, SHORT));
        for (piece, total) in cases.into_iter().chain([(77_777, 0), (1 << 20, SHORT - 1)]) {
            let mut file = Pieces::new(File::create(&path).unwrap(), total);
            bytes.chunks(piece).for_each(|piece| file.write(piece).unwrap());
            file.flush().unwrap();
            assert!(std::fs::read(&path).unwrap() == bytes, "pieces of {piece}");
        }
    }
}
