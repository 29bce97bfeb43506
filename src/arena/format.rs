//! The bytes of an arena: its structures, and where they go.

use std::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use super::ArenaError;
use crate::metric::Metric;
use crate::quant::{self, sign, Factors};

#[cfg(not(target_endian = "little"))]
compile_error!("arenas are used in place and are little-endian");

pub(super) const MAGIC: [u8; 8] = *b"driftseg";
pub(super) const FOOTER_MAGIC: [u8; 8] = *b"gestfird";
pub(super) const VERSION: u32 = 5;
/// Every part begins at a multiple of this: a cache line, and the widest register.
pub(super) const ALIGN: u64 = 64;
/// Where the table begins.
pub(super) const TABLE: u64 = size_of::<Header>() as u64;
pub(super) const FOOTER_BYTES: u64 = size_of::<Footer>() as u64;

/// The first bytes of an arena.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub(super) struct Header {
    pub magic: [u8; 8],
    pub version: u32,
    /// CRC32 of the header, taken while this field is zero.
    pub crc: u32,
    /// Id of the segment, little-endian.
    pub segment: [u8; 16],
    pub rows: u64,
    pub dim: u32,
    pub buckets: u32,
    /// Offset of the table.
    pub table: u64,
    /// Offset of the first block.
    pub data: u64,
    /// Offset of the footer.
    pub footer: u64,
    /// Length of the file.
    pub length: u64,
    /// CRC32 of the table, the directory and the zeroes behind them.
    pub table_crc: u32,
    /// Bytes from one row's codes to the next.
    pub stride: u32,
    /// Code of the metric.
    pub metric: u8,
    pub padding: [u8; 3],
    /// Entries of the table.
    pub entries: u32,
    /// Bits of a row's sign code.
    pub code_bits: u32,
    /// Words of the directory of ids.
    pub words: u32,
    pub reserved: [u32; 6],
}

const _: () = {
    assert!(size_of::<Header>() == 128);
    assert!(offset_of!(Header, version) == 8);
    assert!(offset_of!(Header, crc) == 12);
    assert!(offset_of!(Header, segment) == 16);
    assert!(offset_of!(Header, rows) == 32);
    assert!(offset_of!(Header, dim) == 40);
    assert!(offset_of!(Header, buckets) == 44);
    assert!(offset_of!(Header, table) == 48);
    assert!(offset_of!(Header, data) == 56);
    assert!(offset_of!(Header, footer) == 64);
    assert!(offset_of!(Header, length) == 72);
    assert!(offset_of!(Header, table_crc) == 80);
    assert!(offset_of!(Header, stride) == 84);
    assert!(offset_of!(Header, metric) == 88);
    assert!(offset_of!(Header, padding) == 89);
    assert!(offset_of!(Header, entries) == 92);
    assert!(offset_of!(Header, code_bits) == 96);
    assert!(offset_of!(Header, words) == 100);
    assert!(offset_of!(Header, reserved) == 104);
};

/// One bucket of an arena's table.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct BucketEntry {
    /// Id of the bucket.
    pub bucket: u32,
    /// Its number of rows.
    pub rows: u32,
    /// Number, within the segment, of its first row.
    pub first_row: u64,
    /// Offset of its block in the file.
    pub offset: u64,
    /// CRC32 of its block.
    pub crc: u32,
    /// Rows of other buckets that were spilled into it.
    pub spilled: u32,
}

const _: () = {
    assert!(size_of::<BucketEntry>() == 32);
    assert!(offset_of!(BucketEntry, rows) == 4);
    assert!(offset_of!(BucketEntry, first_row) == 8);
    assert!(offset_of!(BucketEntry, offset) == 16);
    assert!(offset_of!(BucketEntry, crc) == 24);
    assert!(offset_of!(BucketEntry, spilled) == 28);
};

/// Which of 64 successive bucket ids the table has, and where: to find one takes a look at its word
/// and no search.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub(super) struct IdWord {
    /// One bit an id, the lowest first.
    pub ids: u64,
    /// Entries of the table before the first of these.
    pub before: u32,
    pub reserved: u32,
}

const _: () = {
    assert!(size_of::<IdWord>() == 16);
    assert!(offset_of!(IdWord, before) == 8);
    assert!(offset_of!(IdWord, reserved) == 12);
};

impl IdWord {
    /// Ids of a word.
    const IDS: u32 = u64::BITS;

    /// The words of a table's ids, which ascend.
    pub(super) fn of(ids: impl Iterator<Item = u32>) -> Vec<IdWord> {
        let mut words: Vec<IdWord> = Vec::new();
        for (id, before) in ids.zip(0..) {
            let word = IdWord::of_id(id) as usize;
            words.resize(words.len().max(word + 1), IdWord { before, ..IdWord::zeroed() });
            words[word].ids |= 1 << (id % IdWord::IDS);
        }
        words
    }

    /// The word of an id.
    pub(super) fn of_id(id: u32) -> u32 {
        id / IdWord::IDS
    }

    /// Index of an id in the table whose words these are.
    pub(super) fn find(words: &[IdWord], id: u32) -> Option<usize> {
        let word = words.get(IdWord::of_id(id) as usize)?;
        let bit = 1u64 << (id % IdWord::IDS);
        let lower = (word.ids & (bit - 1)).count_ones();
        (word.ids & bit != 0).then(|| word.before as usize + lower as usize)
    }
}

/// Where a spilled row's int8 codes are: in the bucket that is its own.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
pub struct SpilledRow {
    /// Index of that bucket in the table.
    pub entry: u32,
    /// The row's place among the bucket's rows.
    pub place: u32,
}

const _: () = {
    assert!(size_of::<SpilledRow>() == 8);
    assert!(offset_of!(SpilledRow, place) == 4);
};

/// The last bytes of an arena.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub(super) struct Footer {
    pub magic: [u8; 8],
    /// Length of the file.
    pub length: u64,
    /// Id of the segment, little-endian.
    pub segment: [u8; 16],
    /// CRC32 of the footer, taken while this field is zero.
    pub crc: u32,
    pub reserved: [u8; 28],
}

const _: () = {
    assert!(size_of::<Footer>() == 64);
    assert!(offset_of!(Footer, length) == 8);
    assert!(offset_of!(Footer, segment) == 16);
    assert!(offset_of!(Footer, crc) == 32);
    assert!(offset_of!(Footer, reserved) == 36);
};

impl Header {
    pub(super) fn checksum(mut self) -> u32 {
        self.crc = 0;
        crc32fast::hash(bytemuck::bytes_of(&self))
    }
}

impl Footer {
    pub(super) fn new(segment: u128, length: u64) -> Footer {
        let mut footer = Footer {
            magic: FOOTER_MAGIC,
            length,
            segment: segment.to_le_bytes(),
            ..Footer::zeroed()
        };
        footer.crc = footer.checksum();
        footer
    }

    pub(super) fn checksum(mut self) -> u32 {
        self.crc = 0;
        crc32fast::hash(bytemuck::bytes_of(&self))
    }
}

/// What an arena was made of. An arena whose identity is not the one expected is not used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The segment's random id.
    pub segment: u128,
    /// Dimensions of its vectors.
    pub dim: u32,
    /// The metric the codes were made for.
    pub metric: Metric,
    /// Rows of the segment.
    pub rows: u64,
    /// Buckets that the segment has rows of.
    pub buckets: u32,
    /// Bits of a row's sign code, as its router has it; zero where there is none.
    pub code_bits: u32,
}

/// A bucket to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketShape {
    /// Id of the bucket.
    pub bucket: u32,
    /// Its number of rows.
    pub rows: u32,
    /// Rows of other buckets spilled into it; none where there are no sign codes.
    pub spilled: u32,
}

/// Where everything of an arena goes, all of it known before the first row is encoded.
#[derive(Clone, Debug)]
pub struct Layout {
    pub(super) identity: Identity,
    pub(super) shape: RowShape,
    /// Checksums are filled in as blocks are written.
    pub(super) entries: Vec<BucketEntry>,
    pub(super) words: Vec<IdWord>,
    pub(super) data: u64,
    pub(super) footer: u64,
    pub(super) length: u64,
}

impl Layout {
    /// Lays an arena out.
    ///
    /// # Errors
    /// [`ArenaError::Layout`] when bucket ids do not ascend, shapes and identity do not agree, the
    /// dimensions are zero or above [`quant::MAX_DIM`], or the file could not be mapped.
    pub fn new(identity: Identity, shapes: &[BucketShape]) -> Result<Layout, ArenaError> {
        let shape = RowShape::new(identity.dim, identity.code_bits)
            .ok_or(ArenaError::Layout("dimensions"))?;
        const TOO_LARGE: ArenaError = ArenaError::Layout("too large");
        let own = shapes.iter().filter(|shape| shape.rows > 0).count();
        if own != identity.buckets as usize {
            return Err(ArenaError::Layout("number of buckets"));
        }
        if !shapes.is_sorted_by(|before, after| before.bucket < after.bucket) {
            return Err(ArenaError::Layout("bucket ids do not ascend"));
        }
        let words = IdWord::of(shapes.iter().map(|of| of.bucket));
        let count = u32::try_from(shapes.len()).map_err(|_| TOO_LARGE)?;
        let data = data_offset(count, words.len() as u32);
        let mut walk = Walk::new(data, shape);
        let mut entries = Vec::with_capacity(shapes.len());
        for of in shapes {
            if of.spilled > 0 && shape.code_bits == 0 {
                return Err(ArenaError::Layout("spilled rows without sign codes"));
            }
            let entry = BucketEntry {
                bucket: of.bucket,
                rows: of.rows,
                first_row: walk.row,
                offset: walk.offset,
                crc: 0,
                spilled: of.spilled,
            };
            entries.push(entry);
            walk.step(&entry).ok_or(TOO_LARGE)?;
        }
        if walk.row != identity.rows {
            return Err(ArenaError::Layout("number of rows"));
        }
        let footer = walk.offset;
        let length = footer.checked_add(FOOTER_BYTES).filter(|&l| l <= isize::MAX as u64);
        let length = length.ok_or(TOO_LARGE)?;
        Ok(Layout { identity, shape, entries, words, data, footer, length })
    }

    /// Bytes from one row's int8 codes to the next.
    pub fn stride(&self) -> usize {
        self.shape.stride
    }

    /// Length of the file in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.length
    }

    /// Header, table and directory with the zeroes behind them: all that precedes the first block.
    pub(super) fn head(&self) -> Vec<u8> {
        let table = bytemuck::cast_slice::<BucketEntry, u8>(&self.entries);
        let words = bytemuck::cast_slice::<IdWord, u8>(&self.words);
        let mut head = vec![0; self.data as usize];
        let (start, room) = head.split_at_mut(TABLE as usize);
        let (tables, directory) = room.split_at_mut(words_offset(self.entries.len() as u32));
        tables.split_at_mut(table.len()).0.copy_from_slice(table);
        directory.split_at_mut(words.len()).0.copy_from_slice(words);
        let mut header = Header {
            magic: MAGIC,
            version: VERSION,
            segment: self.identity.segment.to_le_bytes(),
            rows: self.identity.rows,
            dim: self.identity.dim,
            buckets: self.identity.buckets,
            table: TABLE,
            data: self.data,
            footer: self.footer,
            length: self.length,
            table_crc: crc32fast::hash(room),
            stride: self.shape.stride as u32,
            metric: self.identity.metric as u8,
            entries: self.entries.len() as u32,
            code_bits: self.identity.code_bits,
            words: self.words.len() as u32,
            ..Header::zeroed()
        };
        header.crc = header.checksum();
        start.copy_from_slice(bytemuck::bytes_of(&header));
        head
    }
}

/// How much room a row takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RowShape {
    /// Bytes from one row's int8 codes to the next.
    pub stride: usize,
    /// Bits of a sign code; zero where there are none.
    pub code_bits: usize,
}

impl RowShape {
    /// The shape of rows of `dim` dimensions, if there can be any.
    pub fn new(dim: u32, code_bits: u32) -> Option<RowShape> {
        let dim = usize::try_from(dim).ok().filter(|&dim| dim > 0 && dim <= quant::MAX_DIM)?;
        let code_bits = usize::try_from(code_bits).ok()?;
        let is_whole = code_bits.is_multiple_of(sign::DIM_MULTIPLE);
        let most = sign::MOST_BITS * sign::padded(dim);
        (is_whole && code_bits <= most).then(|| RowShape { stride: quant::stride(dim), code_bits })
    }
}

/// Where the directory of ids begins, from the begin of the table.
pub(super) fn words_offset(entries: u32) -> usize {
    (entries as usize * size_of::<BucketEntry>()).next_multiple_of(ALIGN as usize)
}

/// Where the first block begins.
pub(super) fn data_offset(entries: u32, words: u32) -> u64 {
    let words = u64::from(words) * size_of::<IdWord>() as u64;
    TABLE + words_offset(entries) as u64 + words.next_multiple_of(ALIGN)
}

/// The parts of a bucket's block, in bytes from its begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// Where the columns of the sign codes begin, which themselves are first.
    pub columns: u64,
    /// Where the places of spilled rows begin.
    pub spilled: u64,
    /// Where they end.
    pub spilled_end: u64,
    /// Where the factors begin.
    pub factors: u64,
    /// Where they end.
    pub factors_end: u64,
    /// Where the int8 codes begin.
    pub codes: u64,
    /// Where they end.
    pub end: u64,
    /// Length of the block.
    pub length: u64,
}

/// The block of so many rows. A stride has 17 bits at most, so nothing overflows.
pub(super) fn block(rows: u32, spilled: u32, shape: RowShape) -> Block {
    let (own, spilled_rows) = (u64::from(rows), u64::from(spilled));
    let places = match shape.code_bits {
        0 => 0,
        _ => sign::places(rows as usize + spilled as usize),
    };
    let columns = sign::codes_bytes(shape.code_bits, places) as u64;
    let spilled = columns + (3 * places * size_of::<f32>()) as u64;
    let spilled_end = spilled + spilled_rows * size_of::<SpilledRow>() as u64;
    let factors = match sign::is_narrow(places) {
        true => spilled_end,
        false => spilled_end.next_multiple_of(ALIGN),
    };
    let factors_end = factors + own * size_of::<Factors>() as u64;
    let codes = factors_end.next_multiple_of(ALIGN);
    let end = codes + own * shape.stride as u64;
    let length = end.next_multiple_of(ALIGN);
    Block { columns, spilled, spilled_end, factors, factors_end, codes, end, length }
}

/// Goes through a table in order, and knows what each entry has to be.
pub(super) struct Walk {
    shape: RowShape,
    last: Option<u32>,
    /// First row of the next bucket.
    pub row: u64,
    /// Offset of the next block.
    pub offset: u64,
}

impl Walk {
    pub(super) fn new(data: u64, shape: RowShape) -> Walk {
        Walk { shape, last: None, row: 0, offset: data }
    }

    /// Whether a bucket of this id may be the next.
    pub(super) fn ascends(&self, bucket: u32) -> bool {
        self.last.is_none_or(|last| last < bucket)
    }

    /// Passes over a bucket; none if the file became too large.
    pub(super) fn step(&mut self, entry: &BucketEntry) -> Option<()> {
        let block = block(entry.rows, entry.spilled, self.shape);
        self.offset = self.offset.checked_add(block.length)?;
        self.row = self.row.checked_add(u64::from(entry.rows))?;
        self.last = Some(entry.bucket);
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_finds_what_the_table_has() {
        let ids = [0, 1, 63, 64, 200, 201, 640];
        let words = IdWord::of(ids.into_iter());
        assert_eq!(words.len(), 11);
        for id in 0..1000 {
            assert_eq!(IdWord::find(&words, id), ids.iter().position(|known| *known == id), "{id}");
        }
        assert!(IdWord::of(std::iter::empty()).is_empty());
        assert_eq!(IdWord::find(&[], 0), None);
    }

    #[test]
    fn a_bucket_of_few_rows_takes_little_room() {
        let shape = RowShape::new(128, 128).unwrap();
        assert_eq!(block(1, 1, shape).length, 256);
        assert_eq!(block(3, 3, shape).length, 704);
        assert_eq!(block(20, 20, shape).columns, 1024);
    }
}
