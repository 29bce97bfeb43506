//! Reading an arena in place.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use memmap2::{Advice, Mmap};

use super::format::{
    block, data_offset, words_offset, Block, Footer, Header, IdWord, RowShape, Walk, ALIGN,
    FOOTER_BYTES, FOOTER_MAGIC, MAGIC, TABLE, VERSION,
};
use super::proofs::{Part, Proofs};
use super::{mapping, ArenaError, ArenaName, BucketEntry, Identity, SignCodes};
use crate::courtesy;
use crate::quant::Factors;
use crate::simd::{self, SignRows};

/// A mapped arena. Its header and table are sound; a bucket is checked when it is first touched.
#[derive(Debug)]
pub struct Arena {
    map: Mmap,
    identity: Identity,
    shape: RowShape,
    /// Where the entries of the table are.
    table: Range<usize>,
    /// Where the words of its directory are.
    words: Range<usize>,
    /// One bit a bucket: its block was found to be what was written.
    sound: Box<[AtomicU64]>,
    /// What other processes have found.
    proofs: Proofs,
}

const OUTSIDE: ArenaError = ArenaError::Damaged("block outside the file");

/// The codes of one bucket, row by row.
#[derive(Clone, Copy, Debug)]
pub struct BucketCodes<'a> {
    /// Number, within the segment, of the first row.
    pub first_row: u64,
    /// Factors of the rows.
    pub factors: &'a [Factors],
    /// Codes of the rows, `stride` bytes each.
    pub codes: &'a [i8],
    /// Bytes from one row's codes to the next.
    pub stride: usize,
    /// Sign codes, if rows have any.
    pub signs: Option<SignCodes<'a>>,
}

/// Where a row's sign code stands besides in its own bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SecondPlace {
    /// Index of the other bucket in the table.
    pub entry: u32,
    /// Place among that one's sign codes.
    pub place: u32,
}

impl SecondPlace {
    /// It stands nowhere else.
    pub(super) const NONE: SecondPlace = SecondPlace { entry: u32::MAX, place: 0 };
}

impl Arena {
    /// Opens and maps the arena of a segment, in a time that grows with the number of buckets and
    /// not with that of rows.
    ///
    /// # Errors
    /// Any of [`ArenaError`] but [`ArenaError::Layout`], when the file is not the whole and sound
    /// arena of this identity.
    pub fn open(dir: &Path, name: &ArenaName, identity: &Identity) -> Result<Arena, ArenaError> {
        match File::open(name.path(dir)) {
            Ok(file) => Arena::map(&file, identity),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(ArenaError::Missing),
            Err(e) => Err(e.into()),
        }
    }

    /// Maps an open file.
    pub(super) fn map(file: &File, identity: &Identity) -> Result<Arena, ArenaError> {
        let (map, proofs) = mapping::map(file, TABLE + FOOTER_BYTES)?;
        Arena::check(map, identity, proofs)
    }

    /// Checks all of an arena but its blocks.
    pub(super) fn check(
        map: Mmap,
        identity: &Identity,
        proofs: Proofs,
    ) -> Result<Arena, ArenaError> {
        let length = map.len() as u64;
        let header: Header = read(&map, 0).ok_or(ArenaError::Truncated)?;
        if header.magic != MAGIC {
            return Err(ArenaError::Damaged("magic"));
        }
        if header.version != VERSION {
            return Err(ArenaError::Version);
        }
        if header.crc != header.checksum() {
            return Err(ArenaError::Damaged("header"));
        }
        if length < header.length {
            return Err(ArenaError::Truncated);
        }
        if header.segment != identity.segment.to_le_bytes()
            || header.dim != identity.dim
            || header.metric != identity.metric as u8
            || header.rows != identity.rows
            || header.buckets != identity.buckets
            || header.code_bits != identity.code_bits
        {
            return Err(ArenaError::OtherSegment);
        }
        let shape =
            RowShape::new(header.dim, header.code_bits).ok_or(ArenaError::Damaged("dimensions"))?;
        if header.stride as usize != shape.stride
            || header.table != TABLE
            || header.data != data_offset(header.entries, header.words)
            || header.length != length
            || header.footer.checked_add(FOOTER_BYTES) != Some(length)
            || !length.is_multiple_of(ALIGN)
            || header.data > header.footer
        {
            return Err(ArenaError::Damaged("offsets"));
        }
        let footer: Footer = read(&map, header.footer).ok_or(ArenaError::Truncated)?;
        if footer.magic != FOOTER_MAGIC
            || footer.length != length
            || footer.segment != header.segment
            || footer.crc != footer.checksum()
        {
            return Err(ArenaError::Damaged("footer"));
        }
        let start = TABLE as usize;
        let table = start..start + header.entries as usize * size_of::<BucketEntry>();
        let first_word = start + words_offset(header.entries);
        let words = first_word..first_word + header.words as usize * size_of::<IdWord>();
        let sound = (0..header.entries.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        let arena = Arena { map, identity: *identity, shape, table, words, sound, proofs };
        let mut found = Ok(());
        proofs.hold(Part::Whole, || {
            found = arena.check_table(&header);
            found.is_ok()
        });
        found.map(|()| arena)
    }

    /// Checks the table: its entries say where everything is.
    fn check_table(&self, header: &Header) -> Result<(), ArenaError> {
        let room = slice(&self.map, TABLE, header.data).ok_or(ArenaError::Truncated)?;
        if crc32fast::hash(room) != header.table_crc {
            return Err(ArenaError::Damaged("table"));
        }
        let mut walk = Walk::new(header.data, self.shape);
        for entry in self.buckets() {
            if !walk.ascends(entry.bucket)
                || entry.first_row != walk.row
                || entry.offset != walk.offset
                || (entry.spilled > 0 && self.shape.code_bits == 0)
                || walk.step(entry).is_none()
                || walk.offset > header.footer
            {
                return Err(ArenaError::Damaged("entry of the table"));
            }
        }
        let ids = || self.buckets().iter().map(|entry| entry.bucket);
        let words = ids().next_back().map_or(0, |highest| IdWord::of_id(highest) + 1);
        if words != header.words || IdWord::of(ids()) != self.words() {
            return Err(ArenaError::Damaged("directory of the table"));
        }
        let own = self.buckets().iter().filter(|entry| entry.rows > 0).count();
        if own != header.buckets as usize {
            return Err(ArenaError::Damaged("buckets of the table"));
        }
        if walk.row != header.rows || walk.offset != header.footer {
            return Err(ArenaError::Damaged("sum of the table"));
        }
        Ok(())
    }

    /// Checks the table once more, whatever others have found.
    pub fn is_table_sound(&self) -> bool {
        read(&self.map, 0).is_some_and(|header| self.check_table(&header).is_ok())
    }

    /// Checks the block of the bucket at this index once more, whatever others have found.
    pub fn is_block_sound(&self, index: usize) -> bool {
        self.block(index).is_ok_and(|(entry, _, bytes)| crc32fast::hash(bytes) == entry.crc)
    }

    /// The entry of a bucket, and its block.
    fn block(&self, index: usize) -> Result<(&BucketEntry, Block, &[u8]), ArenaError> {
        let entry = self.buckets().get(index).ok_or(ArenaError::Layout("index of a bucket"))?;
        let parts = block(entry.rows, entry.spilled, self.shape);
        let end = entry.offset.checked_add(parts.length).ok_or(OUTSIDE)?;
        let bytes = slice(&self.map, entry.offset, end).ok_or(OUTSIDE)?;
        Ok((entry, parts, bytes))
    }

    /// What the arena was made of.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Bytes from one row's codes to the next.
    pub fn stride(&self) -> usize {
        self.shape.stride
    }

    /// The table, bucket ids ascending.
    pub fn buckets(&self) -> &[BucketEntry] {
        // A map begins on a page and the table at a multiple of 64: entries are aligned.
        self.map.get(self.table.clone()).map_or(&[], bytemuck::cast_slice)
    }

    /// Index in the table of the bucket of this id.
    pub fn find(&self, bucket: u32) -> Option<usize> {
        IdWord::find(self.words(), bucket)
    }

    fn words(&self) -> &[IdWord] {
        // A map begins on a page and the directory at a multiple of 64: words are aligned.
        self.map.get(self.words.clone()).map_or(&[], bytemuck::cast_slice)
    }

    /// The codes of the bucket at this index of the table.
    ///
    /// # Errors
    /// [`ArenaError::Damaged`] when its bytes are not what was written, [`ArenaError::Layout`] when
    /// there is no such index.
    pub fn bucket(&self, index: usize) -> Result<BucketCodes<'_>, ArenaError> {
        let (entry, parts, bytes) = self.sound_block(index)?;
        let signs = if self.shape.code_bits > 0 {
            let part = |start, end| slice(bytes, start, end).ok_or(OUTSIDE);
            let numbers = |start, end| -> Result<&[f32], ArenaError> {
                bytemuck::try_cast_slice(part(start, end)?).map_err(|_| OUTSIDE)
            };
            let column = (parts.spilled - parts.columns) / 3;
            let at = |nth| parts.columns + nth * column;
            let spilled = part(parts.spilled, parts.spilled_end)?;
            Some(SignCodes {
                codes: part(0, parts.columns)?,
                rows: SignRows {
                    add: numbers(at(0), at(1))?,
                    scale: numbers(at(1), at(2))?,
                    error: numbers(at(2), at(3))?,
                },
                spilled: bytemuck::try_cast_slice(spilled).map_err(|_| OUTSIDE)?,
            })
        } else {
            None
        };
        Ok(BucketCodes { signs, ..self.int8_codes(entry, parts, bytes)? })
    }

    /// The same but for sign codes.
    ///
    /// # Errors
    /// As [`Arena::bucket`].
    pub fn own_rows(&self, index: usize) -> Result<BucketCodes<'_>, ArenaError> {
        let (entry, parts, bytes) = self.sound_block(index)?;
        self.int8_codes(entry, parts, bytes)
    }

    /// The entry of a bucket, and its block, whose bytes somebody has checked.
    fn sound_block(&self, index: usize) -> Result<(&BucketEntry, Block, &[u8]), ArenaError> {
        let (entry, parts, bytes) = self.block(index)?;
        let (word, bit) = (self.sound.get(index / 64).ok_or(OUTSIDE)?, 1 << (index % 64));
        if word.load(Ordering::Relaxed) & bit == 0 {
            if !self.proofs.hold(Part::Block(index), || crc32fast::hash(bytes) == entry.crc) {
                return Err(ArenaError::Damaged("block"));
            }
            word.fetch_or(bit, Ordering::Relaxed);
        }
        Ok((entry, parts, bytes))
    }

    fn int8_codes<'a>(
        &self,
        entry: &BucketEntry,
        parts: Block,
        bytes: &'a [u8],
    ) -> Result<BucketCodes<'a>, ArenaError> {
        let part = |start, end| slice(bytes, start, end).ok_or(OUTSIDE);
        let factors = part(parts.factors, parts.factors_end)?;
        Ok(BucketCodes {
            first_row: entry.first_row,
            factors: bytemuck::try_cast_slice(factors).map_err(|_| OUTSIDE)?,
            codes: bytemuck::cast_slice(part(parts.codes, parts.end)?),
            stride: self.shape.stride,
            signs: None,
        })
    }

    /// Whether rows have sign codes.
    pub(super) fn has_signs(&self) -> bool {
        self.shape.code_bits > 0
    }

    /// Where the sign code of each row stands besides in its own bucket. For this all bytes are
    /// checked, whatever others have found, so that what is copied from here on is what was written.
    ///
    /// # Errors
    /// [`ArenaError::Damaged`] when some byte is not.
    pub(super) fn second_places(&self, stop: &AtomicBool) -> Result<Vec<SecondPlace>, ArenaError> {
        let rows = usize::try_from(self.identity.rows).map_err(|_| OUTSIDE)?;
        let mut second = vec![SecondPlace::NONE; rows];
        if !self.is_table_sound() {
            return Err(ArenaError::Damaged("table"));
        }
        for (entry, of) in (0..).zip(self.buckets()) {
            if stop.load(Ordering::Relaxed) {
                return Err(ArenaError::Layout("stopped"));
            }
            courtesy::give_way();
            if !self.is_block_sound(entry as usize) {
                return Err(ArenaError::Damaged("block"));
            }
            let spilled = self.bucket(entry as usize)?.signs.map_or(&[][..], |signs| signs.spilled);
            for (spilled, place) in spilled.iter().zip(of.rows..) {
                let own = self.buckets().get(spilled.entry as usize).ok_or(OUTSIDE)?;
                let row = own.first_row.saturating_add(u64::from(spilled.place));
                let row = usize::try_from(row).ok().and_then(|row| second.get_mut(row));
                *row.ok_or(OUTSIDE)? = SecondPlace { entry, place };
            }
        }
        Ok(second)
    }

    /// What a search will look at of every row of the bucket at this index, not checked: for the
    /// processor to be asked for.
    pub fn codes_ahead(&self, index: usize) -> &[u8] {
        let Ok((_, parts, bytes)) = self.block(index) else { return &[] };
        // Of most rows the sign codes are all that is looked at.
        let wanted = if parts.columns > 0 { parts.spilled } else { parts.end };
        slice(bytes, 0, wanted).unwrap_or(&[])
    }

    /// Asks the processor for the table at this index. A hint.
    pub fn prefetch_entry(&self, index: usize) {
        if let Some(entry) = self.buckets().get(index) {
            simd::prefetch(bytemuck::bytes_of(entry));
        }
    }

    /// Asks the system to read the bucket at this index ahead. A hint: nothing depends on it.
    pub fn will_need(&self, index: usize) {
        let Some(entry) = self.buckets().get(index) else { return };
        let length = block(entry.rows, entry.spilled, self.shape).length;
        if let (Ok(offset), Ok(length)) = (usize::try_from(entry.offset), usize::try_from(length)) {
            // A hint that is refused leaves the reading to the first touch.
            let _ = self.map.advise_range(Advice::WillNeed, offset, length);
        }
    }

    /// The bytes of the arena.
    #[cfg(test)]
    pub(super) fn bytes(&self) -> &[u8] {
        &self.map
    }
}

/// Bytes from one offset to another, if they are there.
fn slice(bytes: &[u8], start: u64, end: u64) -> Option<&[u8]> {
    bytes.get(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
}

/// A structure at an offset, if it is there.
fn read<T: bytemuck::AnyBitPattern>(bytes: &[u8], offset: u64) -> Option<T> {
    let end = offset.checked_add(size_of::<T>() as u64)?;
    Some(bytemuck::pod_read_unaligned(slice(bytes, offset, end)?))
}
