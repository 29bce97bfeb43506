//! The manifest: which segments are live, and where every column is.
//!
//! ```text
//! head | segment entries | extents | runs of log pages
//! ```
//!
//! It is written whole onto a chain of its own pages by each job, and becomes the truth when the
//! metapage points to it.

use super::buffer::Locked;
use super::column::Column;
use super::fault::{Fault, Read};
use super::layout::{Extent, Kind, ManifestRef, NO_BLOCK, PAYLOAD};
use super::logged::{Logged, Run};
use super::segment::Segment;
use super::wal::{tail, Change};
use super::{Identity, Index};
use crate::search::{Calibration, Margins, Shares, Strangers};
use bytemuck::{Pod, Zeroable};
use std::mem::{offset_of, size_of};

/// Bytes of the head in versions 1, 2 and 3, and of a segment's entry up to version 4.
const HEAD_1: usize = 104;
const HEAD_2: usize = 136;
const HEAD_3: usize = 200;
const SEGMENT_4: usize = 152;
const MAGIC: u32 = u32::from_le_bytes(*b"DMNF");
/// 1: its head ends with the router. 2: shares for a hundred rows follow. 3: and margins. 4: and
/// floors, and margins of strangers. 5: segments may have places in the log. 6: on several runs of
/// its pages.
const VERSION: u32 = 6;
/// Segments have one run, whose first sequence number is in the entry.
const ONE_RUN: u32 = 5;

/// The router all segments are sorted by.
#[derive(Clone, Debug, PartialEq)]
pub struct RouterRef {
    /// Buckets; their ids are the numbers below this.
    pub buckets: u32,
    /// Rows of the index when it was trained, less some for each row since that is unlike them.
    pub trained_rows: u64,
    /// What a recall costs with it.
    pub calibration: Calibration,
    /// `buckets * dims` f32 of centroids, then `buckets` f32 of radii. Behind these, unless it is
    /// that of rows from which nothing was learned, the space: a [`Subspace`], and `dims` f32 for
    /// each of its directions.
    ///
    /// [`Subspace`]: crate::quant::Subspace
    pub column: Column,
}

/// The list of live segments.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Manifest {
    /// Absent while there is no segment.
    pub router: Option<RouterRef>,
    /// Live segments.
    pub segments: Vec<Segment>,
}

/// ```text
/// 0       4         8          12        16              24      28     32            64
/// | magic | version | segments | extents | trained rows  | bckts | runs | few         | router |
/// 104    136           168            200          232           264            424
/// | many | few margins | many margins | few floors | many floors | strangers at | their margins |
/// ```
///
/// `few` and `many` are the router's calibration, with floors and margins or, where all are zero,
/// without, and so for strangers. In version 1 the head ends before `many`, in version 2 before the
/// margins, in version 3 before the floors.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct HeadEntry {
    magic: u32,
    version: u32,
    segments: u32,
    extents: u32,
    trained_rows: u64,
    buckets: u32,
    runs: u32,
    few: Shares,
    router: ColumnEntry,
    many: Shares,
    margins: [Margins; 2],
    floors: [Shares; 2],
    strangers: StrangersEntry,
}

/// ```text
/// 0                     160               416
/// | 5 strangenesses ... | 4 few, many ... |
/// ```
///
/// Of each there is one for each recall.
#[derive(Clone, Copy, Pod, Zeroable, PartialEq)]
#[repr(C)]
struct StrangersEntry {
    at: [Margins; 5],
    margins: [[Margins; 2]; 4],
}

/// ```text
/// 0    16      24    28             32             36     40
/// | id | bytes | crc | first extent | extent count | kind |
/// ```
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct ColumnEntry {
    id: Identity,
    bytes: u64,
    crc: u32,
    first_extent: u32,
    extent_count: u32,
    kind: u32,
}

/// ```text
/// 0    16     24     32     72        112       152         156    160      200
/// | id | rows | live | tids | vectors | buckets | first run | runs | places |
/// ```
///
/// Where the vectors are on pages of the log, the last three are a [`Logged`]; else they are zero,
/// as they are missing up to version 4. In version 5 the sequence number of the only run stands for
/// the runs.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct SegmentEntry {
    id: Identity,
    rows: u64,
    live: u64,
    tids: ColumnEntry,
    vectors: ColumnEntry,
    buckets: ColumnEntry,
    runs: [u32; 2],
    places: ColumnEntry,
}

const _: () = assert!(size_of::<ColumnEntry>() == 40);
const _: () = assert!(size_of::<HeadEntry>() == 680);
const _: () = assert!(offset_of!(HeadEntry, floors) == HEAD_3);
const _: () = assert!(offset_of!(StrangersEntry, margins) == 160);
const _: () = assert!(offset_of!(HeadEntry, many) == HEAD_1);
const _: () = assert!(offset_of!(HeadEntry, margins) == HEAD_2);
const _: () = assert!(size_of::<SegmentEntry>() == 200);
const _: () = assert!(offset_of!(SegmentEntry, runs) == SEGMENT_4);

impl Manifest {
    /// Rows whose TID is valid.
    pub fn live_rows(&self) -> u64 {
        self.segments.iter().map(|segment| segment.live).sum()
    }

    /// Every column the manifest reaches.
    pub fn columns(&self) -> impl Iterator<Item = &Column> {
        let segments = self.segments.iter().flat_map(|segment| segment.columns());
        self.router.iter().map(|router| &router.column).chain(segments)
    }

    /// Pages its bytes will take.
    pub fn pages(&self) -> u32 {
        (self.encode().len().div_ceil(PAYLOAD)) as u32
    }

    fn encode(&self) -> Vec<u8> {
        let mut extents = Vec::new();
        let mut entry = |column: &Column| {
            let first_extent = extents.len() as u32;
            extents.extend_from_slice(&column.extents);
            ColumnEntry {
                id: column.id,
                bytes: column.bytes,
                crc: column.crc,
                first_extent,
                extent_count: column.extents.len() as u32,
                kind: column.kind as u32,
            }
        };
        let router = self.router.as_ref();
        let calibration = router.map_or(Calibration::EVERYTHING, |router| router.calibration);
        let [few, many] = calibration.shares();
        let (floors, margins) = calibration.margins().unwrap_or_default();
        let mut head = HeadEntry {
            magic: MAGIC,
            version: VERSION,
            segments: self.segments.len() as u32,
            extents: 0,
            trained_rows: router.map_or(0, |router| router.trained_rows),
            buckets: router.map_or(0, |router| router.buckets),
            runs: 0,
            few,
            router: router.map_or(ColumnEntry::zeroed(), |router| entry(&router.column)),
            many,
            margins,
            floors,
            strangers: match calibration.strangers() {
                Some(Strangers { at, margins }) => StrangersEntry { at, margins },
                None => StrangersEntry::zeroed(),
            },
        };
        let mut runs: Vec<Run> = Vec::new();
        let segments: Vec<SegmentEntry> = self
            .segments
            .iter()
            .map(|segment| SegmentEntry {
                id: segment.id,
                rows: segment.rows,
                live: segment.live,
                tids: entry(&segment.tids),
                vectors: entry(&segment.vectors),
                buckets: entry(&segment.buckets),
                runs: segment.logged.as_ref().map_or([0; 2], |logged| {
                    runs.extend_from_slice(&logged.runs);
                    [(runs.len() - logged.runs.len()) as u32, logged.runs.len() as u32]
                }),
                places: match &segment.logged {
                    Some(logged) => entry(&logged.places),
                    None => ColumnEntry::zeroed(),
                },
            })
            .collect();
        head.extents = extents.len() as u32;
        head.runs = runs.len() as u32;
        let mut bytes = bytemuck::bytes_of(&head).to_vec();
        bytes.extend_from_slice(bytemuck::cast_slice(&segments));
        bytes.extend_from_slice(bytemuck::cast_slice(&extents));
        bytes.extend_from_slice(bytemuck::cast_slice(&runs));
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Manifest> {
        let version = bytes.get(offset_of!(HeadEntry, version)..)?.first_chunk()?;
        let (len, segment_len) = match u32::from_le_bytes(*version) {
            1 => (HEAD_1, SEGMENT_4),
            2 => (HEAD_2, SEGMENT_4),
            3 => (HEAD_3, SEGMENT_4),
            4 => (size_of::<HeadEntry>(), SEGMENT_4),
            ONE_RUN | VERSION => (size_of::<HeadEntry>(), size_of::<SegmentEntry>()),
            _ => return None,
        };
        let (known, rest) = bytes.split_at_checked(len)?;
        let mut head = HeadEntry::zeroed();
        bytemuck::bytes_of_mut(&mut head)[..len].copy_from_slice(known);
        if head.magic != MAGIC {
            return None;
        }
        let calibration = match head.version {
            1 => Calibration::from_few(head.few)?,
            _ => Calibration::from_shares([head.few, head.many])?,
        };
        let beyond = [head.floors, head.margins];
        let calibration = match beyond.as_flattened().as_flattened().iter().all(|x| *x == 0.0) {
            true => calibration,
            false => calibration.with_margins(head.floors, head.margins)?,
        };
        let StrangersEntry { at, margins } = head.strangers;
        let calibration = match head.strangers == StrangersEntry::zeroed() {
            true => calibration,
            false => calibration.with_strangers(Strangers { at, margins })?,
        };
        let table = (head.segments as usize).checked_mul(segment_len)?;
        let (table, rest) = rest.split_at_checked(table)?;
        let extents = (head.extents as usize).checked_mul(size_of::<Extent>())?;
        let (extents, rest) = rest.split_at_checked(extents)?;
        let extents: Vec<Extent> = bytemuck::pod_collect_to_vec(extents);
        if rest.len() != (head.runs as usize).checked_mul(size_of::<Run>())? {
            return None;
        }
        let all_runs: Vec<Run> = bytemuck::pod_collect_to_vec(rest);
        let runs = |entry: &SegmentEntry| {
            if head.version == ONE_RUN {
                let first_seq = bytemuck::cast(entry.runs);
                let pages = u32::try_from(Column::pages(entry.vectors.bytes)).ok()?;
                return Some(vec![Run { first_seq, pages, reserved: 0 }]);
            }
            let [first, count] = entry.runs.map(|x| x as usize);
            all_runs.get(first..first.checked_add(count)?).map(<[Run]>::to_vec)
        };
        let column = |entry: &ColumnEntry, kind: Kind| {
            let first = entry.first_extent as usize;
            let extents = extents.get(first..first.checked_add(entry.extent_count as usize)?)?;
            (entry.kind == kind as u32).then(|| Column {
                id: entry.id,
                kind,
                bytes: entry.bytes,
                crc: entry.crc,
                extents: extents.to_vec(),
            })
        };
        let router = match head.buckets {
            0 => None,
            buckets => Some(RouterRef {
                buckets,
                trained_rows: head.trained_rows,
                calibration,
                column: column(&head.router, Kind::Router)?,
            }),
        };
        let segments = table
            .chunks_exact(segment_len)
            .map(|chunk| {
                let mut entry = SegmentEntry::zeroed();
                bytemuck::bytes_of_mut(&mut entry)[..segment_len].copy_from_slice(chunk);
                let logged = match entry.vectors.kind == Kind::Log as u32 {
                    true => {
                        let places = column(&entry.places, Kind::Places)?;
                        Some(Logged { runs: runs(&entry)?, places })
                    }
                    false => None,
                };
                let kind = if logged.is_some() { Kind::Log } else { Kind::Vectors };
                Some(Segment {
                    id: entry.id,
                    rows: entry.rows,
                    live: entry.live,
                    tids: column(&entry.tids, Kind::Tids)?,
                    vectors: column(&entry.vectors, kind)?,
                    buckets: column(&entry.buckets, Kind::Buckets)?,
                    logged,
                })
            })
            .collect::<Option<Vec<_>>>()?;
        (router.is_some() || segments.is_empty()).then_some(Manifest { router, segments })
    }

    /// Reads the manifest `root` leads to, and the blocks of its chain.
    pub fn read(index: Index, root: ManifestRef) -> Read<(Manifest, Vec<u32>)> {
        if root.block == NO_BLOCK {
            return Ok((Manifest::default(), Vec::new()));
        }
        let mut bytes = Vec::with_capacity(root.bytes as usize);
        let mut blocks = Vec::new();
        let mut block = root.block;
        while bytes.len() < root.bytes as usize {
            if block >= index.blocks() {
                return Err(Fault::damaged(root.block, "manifest chain"));
            }
            let page = Locked::share(index, block);
            let tail = page.check(Kind::Manifest, root.id, blocks.len() as u32)?;
            let want = (root.bytes as usize - bytes.len()).min(PAYLOAD);
            bytes.extend_from_slice(&page.payload()[..want]);
            blocks.push(block);
            block = tail.next;
        }
        if crc32fast::hash(&bytes) != root.crc {
            return Err(Fault::damaged(root.block, "manifest checksum"));
        }
        let manifest =
            Manifest::decode(&bytes).ok_or(Fault::damaged(root.block, "manifest contents"))?;
        Ok((manifest, blocks))
    }

    /// Writes the manifest onto free `blocks`, as many as [`Manifest::pages`] says.
    pub fn write(&self, index: Index, blocks: &[u32]) -> ManifestRef {
        let bytes = self.encode();
        let id = Identity::random();
        for (ordinal, (part, block)) in bytes.chunks(PAYLOAD).zip(blocks).enumerate() {
            let page = Locked::overwrite(index, *block);
            let mut tail = tail(Kind::Manifest, id, ordinal as u32);
            tail.next = blocks.get(ordinal + 1).copied().unwrap_or(NO_BLOCK);
            let change = Change::begin(index);
            let mut image = change.fill(&page, tail);
            image.payload()[..part.len()].copy_from_slice(part);
            image.set_used(part.len());
            change.commit();
        }
        ManifestRef {
            id,
            block: blocks.first().copied().unwrap_or(NO_BLOCK),
            bytes: bytes.len() as u32,
            crc: crc32fast::hash(&bytes),
            reserved: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(kind: Kind) -> Column {
        let extents = vec![Extent { start: 7, len: 2 }, Extent { start: 30, len: 1 }];
        Column { id: Identity::NONE, kind, bytes: 20_000, crc: 5, extents }
    }

    const STRANGERS: Strangers = Strangers {
        at: [[-0.5; 8], [-0.4; 8], [-0.3; 8], [-0.2; 8], [0.0; 8]],
        margins: [[[0.8; 8], [0.9; 8]], [[1.0; 8]; 2], [[1.0; 8], [1.5; 8]], [[2.0; 8]; 2]],
    };

    fn manifest(calibration: Calibration) -> Manifest {
        let segment = Segment {
            id: Identity::NONE,
            rows: 10,
            live: 9,
            tids: column(Kind::Tids),
            vectors: column(Kind::Vectors),
            buckets: column(Kind::Buckets),
            logged: None,
        };
        let column = column(Kind::Router);
        let router = RouterRef { buckets: 4, trained_rows: 10, calibration, column };
        Manifest { router: Some(router), segments: vec![segment.clone(), segment] }
    }

    #[test]
    fn vectors_may_be_on_pages_of_the_log() {
        let mut manifest = manifest(Calibration::EVERYTHING);
        let run = |first_seq, pages| Run { first_seq, pages, reserved: 0 };
        let places = column(Kind::Places);
        for (segment, runs) in
            manifest.segments.iter_mut().zip([vec![run(1 << 40, 3)], vec![run(5, 1), run(99, 2)]])
        {
            segment.logged = Some(Logged { runs, places: places.clone() });
            segment.vectors = column(Kind::Log);
        }
        let bytes = manifest.encode();
        assert!((0..bytes.len()).all(|len| Manifest::decode(&bytes[..len]).is_none()));
        assert_eq!(Manifest::decode(&bytes), Some(manifest));
    }

    #[test]
    fn on_one_run_of_them_by_version_5() {
        let mut manifest = manifest(Calibration::EVERYTHING);
        manifest.segments.truncate(1);
        let of_one = |first_seq, pages| Logged {
            runs: vec![Run { first_seq, pages, reserved: 0 }],
            places: column(Kind::Places),
        };
        manifest.segments[0].logged = Some(of_one(1 << 40, 3));
        manifest.segments[0].vectors = column(Kind::Log);
        let mut bytes = manifest.encode();
        bytes.truncate(bytes.len() - size_of::<Run>());
        bytes[offset_of!(HeadEntry, version)] = 5;
        bytes[offset_of!(HeadEntry, runs)] = 0;
        let first_seq = size_of::<HeadEntry>() + offset_of!(SegmentEntry, runs);
        bytes[first_seq..first_seq + 8].copy_from_slice(&(1u64 << 40).to_le_bytes());
        assert_eq!(Manifest::decode(&bytes), Some(manifest));
    }

    #[test]
    fn what_was_written_is_read() {
        let without = Calibration::from_shares([[0.1; 8], [0.4; 8]]).unwrap();
        let bytes = manifest(without).encode();
        assert_eq!(Manifest::decode(&bytes), Some(manifest(without)));
        let with = without.with_margins([[0.1; 8], [0.2; 8]], [[0.7; 8], [0.9; 8]]).unwrap();
        assert_eq!(Manifest::decode(&manifest(with).encode()), Some(manifest(with)));
        let with = with.with_strangers(STRANGERS).unwrap();
        assert_eq!(Manifest::decode(&manifest(with).encode()), Some(manifest(with)));
        assert_eq!(Manifest::decode(&Manifest::default().encode()), Some(Manifest::default()));
        assert!((0..bytes.len()).all(|len| Manifest::decode(&bytes[..len]).is_none()));
    }

    #[test]
    fn earlier_versions_are_read_without_what_they_lack() {
        let shares = Calibration::from_shares([[0.1; 8], [0.9; 8]]).unwrap();
        let of_3 = shares.with_margins([[0.0; 8]; 2], [[0.7; 8]; 2]).unwrap();
        let floors = shares.with_margins([[0.1; 8]; 2], [[0.7; 8]; 2]).unwrap();
        let bytes = manifest(floors.with_strangers(STRANGERS).unwrap()).encode();
        let of_version = |version: u8, head: usize| {
            let mut bytes = bytes.clone();
            let last = size_of::<HeadEntry>() + 2 * size_of::<SegmentEntry>();
            let less = size_of::<SegmentEntry>() - SEGMENT_4;
            bytes.drain(last - less..last);
            let first = last - size_of::<SegmentEntry>();
            bytes.drain(first - less..first);
            bytes.drain(head..size_of::<HeadEntry>());
            bytes[offset_of!(HeadEntry, version)] = version;
            Manifest::decode(&bytes)
        };
        let guessed = Calibration::from_few([0.1; 8]).unwrap();
        assert_eq!(of_version(1, HEAD_1), Some(manifest(guessed)));
        assert_eq!(of_version(2, HEAD_2), Some(manifest(shares)));
        assert_eq!(of_version(3, HEAD_3), Some(manifest(of_3)));
        let of_4 = floors.with_strangers(STRANGERS).unwrap();
        assert_eq!(of_version(4, size_of::<HeadEntry>()), Some(manifest(of_4)));
        assert_eq!(of_version(7, size_of::<HeadEntry>()), None);
    }
}
