//! The bytes of an arena: its structures, and where they go.

use std::mem::offset_of;

use bytemuck::{Pod, Zeroable};

use super::ArenaError;
use crate::metric::Metric;
use crate::quant::{self, Factors};

#[cfg(not(target_endian = "little"))]
compile_error!("arenas are used in place and are little-endian");

pub(super) const MAGIC: [u8; 8] = *b"driftSQ8";
pub(super) const FOOTER_MAGIC: [u8; 8] = *b"8QStfird";
pub(super) const VERSION: u32 = 1;
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
    /// CRC32 of the table and the zeroes behind it.
    pub table_crc: u32,
    /// Bytes from one row's codes to the next.
    pub stride: u32,
    /// Code of the metric.
    pub metric: u8,
    pub padding: [u8; 7],
    pub reserved: [u64; 4],
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
    assert!(offset_of!(Header, reserved) == 96);
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
    /// Zero.
    pub reserved: u32,
}

const _: () = {
    assert!(size_of::<BucketEntry>() == 32);
    assert!(offset_of!(BucketEntry, rows) == 4);
    assert!(offset_of!(BucketEntry, first_row) == 8);
    assert!(offset_of!(BucketEntry, offset) == 16);
    assert!(offset_of!(BucketEntry, crc) == 24);
    assert!(offset_of!(BucketEntry, reserved) == 28);
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
    /// Buckets of the segment, empty ones included.
    pub buckets: u32,
}

/// A bucket to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BucketShape {
    /// Id of the bucket.
    pub bucket: u32,
    /// Its number of rows.
    pub rows: u32,
}

/// Where everything of an arena goes, all of it known before the first row is encoded.
#[derive(Clone, Debug)]
pub struct Layout {
    pub(super) identity: Identity,
    pub(super) stride: usize,
    /// Checksums are filled in as blocks are written.
    pub(super) entries: Vec<BucketEntry>,
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
        let stride = stride(identity.dim).ok_or(ArenaError::Layout("dimensions"))?;
        if u64::from(identity.buckets) != shapes.len() as u64 {
            return Err(ArenaError::Layout("number of buckets"));
        }
        const TOO_LARGE: ArenaError = ArenaError::Layout("too large");
        let data = data_offset(identity.buckets);
        let mut walk = Walk::new(data, stride);
        let mut entries = Vec::with_capacity(shapes.len());
        for shape in shapes {
            if !walk.ascends(shape.bucket) {
                return Err(ArenaError::Layout("bucket ids do not ascend"));
            }
            entries.push(BucketEntry {
                bucket: shape.bucket,
                rows: shape.rows,
                first_row: walk.row,
                offset: walk.offset,
                crc: 0,
                reserved: 0,
            });
            walk.step(shape.bucket, shape.rows).ok_or(TOO_LARGE)?;
        }
        if walk.row != identity.rows {
            return Err(ArenaError::Layout("number of rows"));
        }
        let footer = walk.offset;
        let length = footer.checked_add(FOOTER_BYTES).filter(|&l| l <= isize::MAX as u64);
        let length = length.ok_or(TOO_LARGE)?;
        Ok(Layout { identity, stride, entries, data, footer, length })
    }

    /// Bytes from one row's codes to the next.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Length of the file in bytes.
    pub fn file_bytes(&self) -> u64 {
        self.length
    }

    /// Header and table with the zeroes behind it: all that precedes the first block.
    pub(super) fn head(&self) -> Vec<u8> {
        let table = bytemuck::cast_slice::<BucketEntry, u8>(&self.entries);
        let mut head = vec![0; self.data as usize];
        let (start, room) = head.split_at_mut(TABLE as usize);
        room.split_at_mut(table.len()).0.copy_from_slice(table);
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
            stride: self.stride as u32,
            metric: self.identity.metric as u8,
            ..Header::zeroed()
        };
        header.crc = header.checksum();
        start.copy_from_slice(bytemuck::bytes_of(&header));
        head
    }
}

/// The stride of an arena of `dim` dimensions, if there can be one.
pub(super) fn stride(dim: u32) -> Option<usize> {
    let dim = usize::try_from(dim).ok().filter(|&dim| dim > 0 && dim <= quant::MAX_DIM)?;
    Some(quant::stride(dim))
}

/// Where the first block begins.
pub(super) fn data_offset(buckets: u32) -> u64 {
    let table = u64::from(buckets) * size_of::<BucketEntry>() as u64;
    (TABLE + table).next_multiple_of(ALIGN)
}

/// The parts of a bucket's block, in bytes from its begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Block {
    /// Length of the factors, without the zeroes behind them.
    pub factors: u64,
    /// Where the codes begin.
    pub codes: u64,
    /// Where the codes end.
    pub end: u64,
    /// Length of the block.
    pub length: u64,
}

/// The block of so many rows. A stride has 17 bits at most, so nothing overflows.
pub(super) fn block(rows: u32, stride: usize) -> Block {
    let factors = u64::from(rows) * size_of::<Factors>() as u64;
    let codes = factors.next_multiple_of(ALIGN);
    let end = codes + u64::from(rows) * stride as u64;
    Block { factors, codes, end, length: end.next_multiple_of(ALIGN) }
}

/// Goes through a table in order, and knows what each entry has to be.
pub(super) struct Walk {
    stride: usize,
    last: Option<u32>,
    /// First row of the next bucket.
    pub row: u64,
    /// Offset of the next block.
    pub offset: u64,
}

impl Walk {
    pub(super) fn new(data: u64, stride: usize) -> Walk {
        Walk { stride, last: None, row: 0, offset: data }
    }

    /// Whether a bucket of this id may be the next.
    pub(super) fn ascends(&self, bucket: u32) -> bool {
        self.last.is_none_or(|last| last < bucket)
    }

    /// Passes over a bucket; none if the file became too large.
    pub(super) fn step(&mut self, bucket: u32, rows: u32) -> Option<()> {
        self.offset = self.offset.checked_add(block(rows, self.stride).length)?;
        self.row = self.row.checked_add(u64::from(rows))?;
        self.last = Some(bucket);
        Some(())
    }
}
