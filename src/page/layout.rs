//! The bytes of a page.
//!
//! ```text
//! 0      24                                            8160      8192
//! +------+---------------------------------------------+---------+
//! | page | payload: 8136 bytes                         | tail:   |
//! | head |                                             | 32 bytes|
//! +------+---------------------------------------------+---------+
//! ```
//!
//! 8136 holds 2034 f32 or 1356 TIDs without a rest. Everything is little-endian.

use super::Identity;
use bytemuck::{Pod, Zeroable};
use std::mem::{offset_of, size_of};

#[cfg(not(target_endian = "little"))]
compile_error!("pages are little-endian and read in place");

/// Bytes of a page.
pub const PAGE: usize = 8192;
/// PostgreSQL's own page header.
pub const HEAD: usize = 24;
/// Bytes of a page that are ours to fill.
pub const PAYLOAD: usize = PAGE - HEAD - size_of::<Tail>();
/// TIDs on a page.
pub const TIDS_PER_PAGE: usize = PAYLOAD / size_of::<Tid>();
/// No block; the end of a chain.
pub const NO_BLOCK: u32 = u32::MAX;
/// The metapage's block.
pub const META_BLOCK: u32 = 0;

/// The format this code writes, and the newest it reads.
///
/// 1: the first. 2: a router may have a learned space. 3: calibration for a hundred rows too. 4: a
/// segment may have its vectors on pages of the log. 5: on several runs of them.
pub const FORMAT: u32 = 5;
/// First bytes of a metapage's payload: `DRIFTIDX`.
pub const META_MAGIC: u64 = u64::from_le_bytes(*b"DRIFTIDX");
/// Last bytes of every page's tail.
pub const TAIL_MAGIC: u16 = 0xD71F;

/// What a page belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// Block 0.
    Meta = 1,
    /// A page of log records.
    Log = 2,
    /// A page of the manifest's chain.
    Manifest = 3,
    /// A page of a segment's TIDs.
    Tids = 4,
    /// A page of a segment's vectors.
    Vectors = 5,
    /// A page of a segment's bucket table.
    Buckets = 6,
    /// A page of the router.
    Router = 7,
    /// A page of a segment's places in the log.
    Places = 8,
    /// What was the log's last page when a segment took it over, copied: nothing is appended here.
    LogCopy = 9,
}

/// The special area of every page.
///
/// ```text
/// 0        16        20      24      26      28       32
/// | owner  | ordinal | next  | kind  | magic | zero   |
/// ```
#[derive(Clone, Copy, Debug, Pod, Zeroable, PartialEq, Eq)]
#[repr(C)]
pub struct Tail {
    /// The manifest, column or log this page is a part of.
    pub owner: Identity,
    /// The page's place in it, from 0.
    pub ordinal: u32,
    /// The next page of a chain.
    pub next: u32,
    /// A [`Kind`].
    pub kind: u16,
    /// [`TAIL_MAGIC`].
    pub magic: u16,
    /// Zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<Tail>() == 32 && offset_of!(Tail, magic) == 26);
const _: () = assert!(PAYLOAD == 8136 && PAYLOAD.is_multiple_of(size_of::<Tid>()));

/// A heap tuple's address as PostgreSQL lays it out: block (high, low half), offset.
#[derive(Clone, Copy, Debug, Pod, Zeroable, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Tid {
    block_high: u16,
    block_low: u16,
    offset: u16,
}

const _: () = assert!(size_of::<Tid>() == 6);

impl Tid {
    /// What vacuum leaves in the place of a dead row's TID.
    pub const INVALID: Tid = Tid { block_high: u16::MAX, block_low: u16::MAX, offset: 0 };

    /// The address of tuple `offset` (from 1) in heap block `block`.
    pub fn new(block: u32, offset: u16) -> Tid {
        Tid { block_high: (block >> 16) as u16, block_low: block as u16, offset }
    }

    /// The heap block.
    pub fn block(self) -> u32 {
        u32::from(self.block_high) << 16 | u32::from(self.block_low)
    }

    /// The line pointer's number, from 1.
    pub fn offset(self) -> u16 {
        self.offset
    }

    /// Whether a row is (still) there.
    pub fn is_valid(self) -> bool {
        self.offset != 0
    }
}

/// A run of consecutive blocks.
#[derive(Clone, Copy, Debug, Pod, Zeroable, PartialEq, Eq, PartialOrd, Ord)]
#[repr(C)]
pub struct Extent {
    /// First block.
    pub start: u32,
    /// Number of blocks.
    pub len: u32,
}

impl Extent {
    /// Whether `block` is one of the run's.
    pub fn contains(self, block: u32) -> bool {
        block >= self.start && block - self.start < self.len
    }
}

/// Where the manifest is and how it is recognised.
///
/// ```text
/// 0      16      20      24     28      32
/// | id   | block | bytes | crc  | zero  |
/// ```
#[derive(Clone, Copy, Debug, Pod, Zeroable, PartialEq, Eq)]
#[repr(C)]
pub struct ManifestRef {
    /// The manifest's own id, on each of its pages.
    pub id: Identity,
    /// First page, or [`NO_BLOCK`] while there is no segment.
    pub block: u32,
    /// Length.
    pub bytes: u32,
    /// CRC32 of the bytes.
    pub crc: u32,
    /// Zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<ManifestRef>() == 32);

impl ManifestRef {
    /// No manifest.
    pub const NONE: ManifestRef =
        ManifestRef { id: Identity::NONE, block: NO_BLOCK, bytes: 0, crc: 0, reserved: 0 };
}

/// Extents the metapage keeps for the log's next pages.
pub const LOG_RESERVE: usize = 64;

/// The metapage's payload.
///
/// ```text
/// 0       8        12       16     20      24         32         64       80
/// | magic | format | metric | dims | kills | version  | manifest | log id |
/// 80         88         92         96      100     104            616
/// | head seq | head blk | tail blk | pages | crc   | reserve      |
/// ```
///
/// `crc` covers the payload with `crc` itself zero.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct MetaPayload {
    /// [`META_MAGIC`].
    pub magic: u64,
    /// [`FORMAT`] of the writer.
    pub format: u32,
    /// Code of a [`crate::metric::Metric`].
    pub metric: u32,
    /// Components of every vector.
    pub dims: u32,
    /// Counts the times TIDs in the log were overwritten.
    pub log_kills: u32,
    /// Counts the flips of the manifest.
    pub manifest_version: u64,
    /// The current manifest.
    pub manifest: ManifestRef,
    /// Owner of all log pages, those that segments have taken over included.
    pub log_id: Identity,
    /// Records before this sequence number are in segments.
    pub log_head_seq: u64,
    /// The page that holds it.
    pub log_head_block: u32,
    /// A page near the end of the chain, usually its last.
    pub log_tail_block: u32,
    /// Pages from head to tail.
    pub log_pages: u32,
    /// CRC32 of this struct.
    pub crc: u32,
    /// Free runs the log may grow into.
    pub log_reserve: [Extent; LOG_RESERVE],
}

const _: () = assert!(
    size_of::<MetaPayload>() == 104 + 8 * LOG_RESERVE
        && offset_of!(MetaPayload, manifest) == 32
        && offset_of!(MetaPayload, log_head_seq) == 80
        && offset_of!(MetaPayload, crc) == 100
);

/// First bytes of a log page's payload.
///
/// ```text
/// 0           8       12      16
/// | first seq | count | used  | records ...
/// ```
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct LogHead {
    /// Sequence number of the first record that starts here.
    pub first_seq: u64,
    /// Records that start here.
    pub count: u32,
    /// Bytes of the payload in use, this header included.
    pub used: u32,
}

const _: () = assert!(size_of::<LogHead>() == 16);

impl LogHead {
    /// Sequence number of the record that would follow those on the page.
    pub fn next_seq(&self) -> u64 {
        self.first_seq + u64::from(self.count)
    }
}

/// A log record's header; the vector's `dims * 4` bytes follow.
///
/// A record that fits a page stands whole on one. A longer one has a chain of pages of its own,
/// on which nothing else is written; those after the first count no record and name the next
/// sequence number as their first.
///
/// ```text
/// 0     4      8     16    22          24
/// | crc | dims | seq | tid | tid check | f32 ...
/// ```
///
/// `crc` covers dims, seq and the vector; `tid check` covers tid and seq, apart, since vacuum
/// overwrites the TID.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct RecordHead {
    /// CRC32 of what never changes.
    pub crc: u32,
    /// Components of the vector.
    pub dims: u32,
    /// Sequence number.
    pub seq: u64,
    /// The row.
    pub tid: Tid,
    /// Low half of the CRC32 of seq and tid.
    pub tid_check: u16,
}

const _: () = assert!(size_of::<RecordHead>() == 24 && offset_of!(RecordHead, tid_check) == 22);

/// Bytes a record of `dims` components takes.
pub fn record_bytes(dims: usize) -> usize {
    size_of::<RecordHead>() + dims * size_of::<f32>()
}

/// Records a log page takes, none where one is longer than a page.
pub fn records_per_page(dims: usize) -> usize {
    (PAYLOAD - size_of::<LogHead>()) / record_bytes(dims)
}

impl RecordHead {
    /// The header of row `tid` with `vector`.
    pub fn new(seq: u64, tid: Tid, vector: &[f32]) -> RecordHead {
        let mut head = RecordHead { crc: 0, dims: vector.len() as u32, seq, tid, tid_check: 0 };
        head.crc = head.frame_crc(bytemuck::cast_slice(vector));
        head.set_tid(tid);
        head
    }

    /// Puts another TID in the record's place.
    pub fn set_tid(&mut self, tid: Tid) {
        self.tid = tid;
        self.tid_check = self.tid_crc();
    }

    /// Whether header and vector are as they were written.
    pub fn is_sound(&self, vector: &[u8]) -> bool {
        self.crc == self.frame_crc(vector) && self.tid_check == self.tid_crc()
    }

    fn frame_crc(&self, vector: &[u8]) -> u32 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.dims.to_le_bytes());
        hasher.update(&self.seq.to_le_bytes());
        hasher.update(vector);
        hasher.finalize()
    }

    fn tid_crc(&self) -> u16 {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&self.seq.to_le_bytes());
        hasher.update(bytemuck::bytes_of(&self.tid));
        hasher.finalize() as u16
    }
}
