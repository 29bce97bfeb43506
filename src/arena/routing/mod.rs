//! The router's own arena: what a search needs of all centroids, in one mmapped file.
//!
//! ```text
//!      0  header, 128 bytes: magic, version, CRC32 of itself, router,
//!         dimensions, padded dimensions, buckets, metric, length, CRC32 of all below
//!    128  mean of the rotated centroids, 4 bytes a padded component
//!      *  radii, 4 bytes a bucket, infinite to the next 32 buckets
//!      *  columns add, scale and error of the centroids' sign codes, as long
//!      *  sign codes of the centroids about the mean, in blocks of 32
//!      *  CRC32 of each rotated centroid
//!      *  rotated centroids, 4 bytes a padded component
//! ```
//!
//! The header's checksum of what follows it ends where the centroids begin. These are checked one
//! by one when they are first touched, so that opening takes a small part of reading the file.
//!
//! Where an index has no sign codes ([`sign::are_used`](crate::quant::sign::are_used)) the columns
//! and codes are left out, and the rotation is the identity. All numbers are little-endian, every
//! part begins at a multiple of 64. Like a segment's arena it is derived, recognised by a random
//! id, checked before it is used, and never changed once it has its name.

use super::directory::Temporary;
use super::format::signs_padded;
use super::{ArenaError, ArenaName};
use crate::cluster::Router;
use crate::metric::Metric;
use crate::quant::{self, sign, Rotation};
use crate::simd::{SignRows, SIGN_BLOCK};
use bytemuck::{Pod, Zeroable};
use memmap2::{Mmap, MmapMut};
use std::fs::File;
use std::io::{self, Write};
use std::mem::offset_of;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

const MAGIC: [u8; 8] = *b"driftrtr";
const VERSION: u32 = 1;
const ALIGN: usize = 64;
const MAX_BYTES: usize = isize::MAX as usize / 2;

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
struct Header {
    magic: [u8; 8],
    version: u32,
    /// CRC32 of the header, taken while this field is zero.
    crc: u32,
    /// Id of the router, little-endian.
    router: [u8; 16],
    dim: u32,
    padded: u32,
    buckets: u32,
    /// CRC32 of what is between the header and the centroids.
    body_crc: u32,
    /// Length of the file.
    length: u64,
    /// Length of a typical centroid.
    typical: f32,
    /// Code of the metric.
    metric: u8,
    padding: [u8; 3],
    reserved: [u64; 8],
}

const _: () = {
    assert!(size_of::<Header>() == 128);
    assert!(offset_of!(Header, crc) == 12);
    assert!(offset_of!(Header, router) == 16);
    assert!(offset_of!(Header, dim) == 32);
    assert!(offset_of!(Header, body_crc) == 44);
    assert!(offset_of!(Header, length) == 48);
    assert!(offset_of!(Header, typical) == 56);
    assert!(offset_of!(Header, metric) == 60);
    assert!(offset_of!(Header, reserved) == 64);
};

impl Header {
    fn checksum(mut self) -> u32 {
        self.crc = 0;
        crc32fast::hash(bytemuck::bytes_of(&self))
    }
}

/// What a routing arena was made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoutingIdentity {
    /// The router's random id.
    pub router: u128,
    /// Dimensions of its centroids.
    pub dim: u32,
    /// The metric rows are searched by.
    pub metric: Metric,
    /// How many centroids there are.
    pub buckets: u32,
}

/// Where the parts are, in bytes from the begin.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Parts {
    mean: Range<usize>,
    radii: Range<usize>,
    columns: [Range<usize>; 3],
    codes: Range<usize>,
    centroid_crcs: Range<usize>,
    centroids: Range<usize>,
    length: usize,
}

impl Parts {
    /// None when the file would be too large.
    fn of(identity: &RoutingIdentity) -> Option<Parts> {
        let dim =
            usize::try_from(identity.dim).ok().filter(|dim| (1..=quant::MAX_DIM).contains(dim))?;
        let buckets = identity.buckets as usize;
        let (signs, padded) = (signs_padded(identity.metric, dim), padded(identity));
        let blocks = buckets.div_ceil(SIGN_BLOCK);
        let mut end = size_of::<Header>();
        let mut part = |bytes: Option<usize>| {
            let start = end.next_multiple_of(ALIGN);
            end = start.checked_add(bytes?).filter(|end| *end <= MAX_BYTES)?;
            Some(start..end)
        };
        let column = blocks.checked_mul(SIGN_BLOCK * size_of::<f32>());
        let of_signs = if signs > 0 { column } else { Some(0) };
        let parts = Parts {
            mean: part(padded.checked_mul(size_of::<f32>()))?,
            radii: part(column)?,
            columns: [part(of_signs)?, part(of_signs)?, part(of_signs)?],
            codes: part(blocks.checked_mul(sign::block_bytes(signs)))?,
            centroid_crcs: part(buckets.checked_mul(size_of::<u32>()))?,
            centroids: part(buckets.checked_mul(padded)?.checked_mul(size_of::<f32>()))?,
            length: 0,
        };
        Some(Parts { length: end.next_multiple_of(ALIGN), ..parts })
    }
}

/// Components of a rotated centroid.
fn padded(identity: &RoutingIdentity) -> usize {
    match signs_padded(identity.metric, identity.dim as usize) {
        0 => identity.dim as usize,
        padded => padded,
    }
}

/// A mapped routing arena. All but its centroids was checked when it was opened.
#[derive(Debug)]
pub struct RoutingArena {
    map: Mmap,
    /// One bit a centroid: it was found to be what was written.
    sound: Box<[AtomicU64]>,
    damaged: AtomicBool,
    identity: RoutingIdentity,
    parts: Parts,
    typical: f32,
    rotation: Rotation,
}

impl RoutingArena {
    /// Writes the arena of a router under its name in `dir`, and maps it.
    ///
    /// # Errors
    /// [`ArenaError::Io`], or [`ArenaError::Layout`] when it would be too large.
    pub fn create(
        dir: &Path,
        name: &ArenaName,
        router_id: u128,
        router: &Router,
    ) -> Result<RoutingArena, ArenaError> {
        let bytes = encode(router_id, router)?;
        let (mut file, temporary) = Temporary::create(dir, name)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        temporary.place(dir, name)?;
        RoutingArena::map(&file, &identity(router_id, router))
    }

    /// The same in memory of this process.
    ///
    /// # Errors
    /// As [`RoutingArena::create`].
    pub fn in_memory(router_id: u128, router: &Router) -> Result<RoutingArena, ArenaError> {
        let bytes = encode(router_id, router)?;
        let mut map = MmapMut::map_anon(bytes.len())?;
        map.copy_from_slice(&bytes);
        RoutingArena::check(map.make_read_only()?, &identity(router_id, router))
    }

    /// Opens and maps the arena of a router.
    ///
    /// # Errors
    /// Any of [`ArenaError`] but [`ArenaError::Layout`], when the file is not the whole and sound
    /// arena of this identity.
    pub fn open(
        dir: &Path,
        name: &ArenaName,
        identity: &RoutingIdentity,
    ) -> Result<RoutingArena, ArenaError> {
        match File::open(name.path(dir)) {
            Ok(file) => RoutingArena::map(&file, identity),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(ArenaError::Missing),
            Err(e) => Err(e.into()),
        }
    }

    fn map(file: &File, identity: &RoutingIdentity) -> Result<RoutingArena, ArenaError> {
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(ArenaError::Damaged("not a file"));
        }
        if metadata.len() < size_of::<Header>() as u64 {
            return Err(ArenaError::Truncated);
        }
        // SAFETY: the file is in the server's data directory and is written only before it takes
        // its name: its length and bytes no longer change while it is mapped.
        let map = unsafe { Mmap::map(file) }?;
        RoutingArena::check(map, identity)
    }

    fn check(map: Mmap, identity: &RoutingIdentity) -> Result<RoutingArena, ArenaError> {
        let head = map.get(..size_of::<Header>()).ok_or(ArenaError::Truncated)?;
        let header: Header = bytemuck::pod_read_unaligned(head);
        if header.magic != MAGIC {
            return Err(ArenaError::Damaged("magic"));
        }
        if header.version != VERSION {
            return Err(ArenaError::Version);
        }
        if header.crc != header.checksum() {
            return Err(ArenaError::Damaged("header"));
        }
        if (map.len() as u64) < header.length {
            return Err(ArenaError::Truncated);
        }
        if header.router != identity.router.to_le_bytes()
            || header.dim != identity.dim
            || header.metric != identity.metric as u8
            || header.buckets != identity.buckets
        {
            return Err(ArenaError::OtherSegment);
        }
        let parts = Parts::of(identity).ok_or(ArenaError::Damaged("dimensions"))?;
        if header.length != map.len() as u64
            || parts.length != map.len()
            || header.padded as usize != padded(identity)
        {
            return Err(ArenaError::Damaged("length"));
        }
        if crc32fast::hash(&map[size_of::<Header>()..parts.centroids.start]) != header.body_crc {
            return Err(ArenaError::Damaged("codes of centroids"));
        }
        Ok(RoutingArena {
            typical: header.typical,
            identity: *identity,
            sound: (0..identity.buckets.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            damaged: AtomicBool::new(false),
            rotation: Rotation::new(identity.metric, identity.dim as usize),
            parts,
            map,
        })
    }

    /// What the arena was made of.
    pub fn identity(&self) -> &RoutingIdentity {
        &self.identity
    }

    /// What centroids and rows are rotated by.
    pub fn rotation(&self) -> &Rotation {
        &self.rotation
    }

    /// How many buckets there are.
    pub fn len(&self) -> usize {
        self.identity.buckets as usize
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Length of a typical centroid.
    pub fn typical(&self) -> f32 {
        self.typical
    }

    /// The mean of the rotated centroids.
    pub fn mean(&self) -> &[f32] {
        self.numbers(&self.parts.mean)
    }

    /// For each bucket the root mean square distance of its rows to the centroid.
    pub fn radii(&self) -> &[f32] {
        &self.numbers(&self.parts.radii)[..self.len()]
    }

    /// The rotated centroid of a bucket. One that is not what was written makes the arena
    /// [`RoutingArena::is_damaged`]; searches are led astray by it. Panics when there is no such
    /// bucket.
    pub fn centroid(&self, bucket: u32) -> &[f32] {
        let (padded, number) = (padded(&self.identity), bucket as usize);
        let centroid = &self.numbers(&self.parts.centroids)[number * padded..][..padded];
        let (word, bit) = (&self.sound[number / 64], 1 << (number % 64));
        if word.load(Ordering::Relaxed) & bit == 0 {
            let crcs: &[u32] = bytemuck::cast_slice(&self.map[self.parts.centroid_crcs.clone()]);
            if crc32fast::hash(bytemuck::cast_slice(centroid)) == crcs[number] {
                word.fetch_or(bit, Ordering::Relaxed);
            } else {
                self.damaged.store(true, Ordering::Relaxed);
            }
        }
        centroid
    }

    /// Whether a centroid that was touched was not what was written.
    pub fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }

    /// Checks all centroids, and whether the arena is what was written then.
    pub fn is_sound(&self) -> bool {
        (0..self.identity.buckets).for_each(|bucket| {
            self.centroid(bucket);
        });
        !self.is_damaged()
    }

    /// Sign codes of the centroids about their mean, and their columns; none if the index has none.
    pub fn signs(&self) -> Option<(&[u8], SignRows<'_>)> {
        let [add, scale, error] = self.parts.columns.each_ref().map(|part| self.numbers(part));
        let codes = &self.map[self.parts.codes.clone()];
        (!codes.is_empty()).then_some((codes, SignRows { add, scale, error }))
    }

    /// A part within the map, aligned to 64 from its begin on.
    fn numbers(&self, part: &Range<usize>) -> &[f32] {
        bytemuck::cast_slice(&self.map[part.clone()])
    }
}

fn identity(router_id: u128, router: &Router) -> RoutingIdentity {
    RoutingIdentity {
        router: router_id,
        dim: router.dim() as u32,
        metric: router.metric(),
        buckets: router.len() as u32,
    }
}

/// The bytes of a router's arena.
fn encode(router_id: u128, router: &Router) -> Result<Vec<u8>, ArenaError> {
    let identity = identity(router_id, router);
    let parts = Parts::of(&identity).ok_or(ArenaError::Layout("too large"))?;
    let rotation = Rotation::new(router.metric(), router.dim());
    let padded = padded(&identity);
    let mut centroids = vec![0.0f32; router.len() * padded];
    for (centroid, rotated) in
        router.centroids().chunks_exact(router.dim()).zip(centroids.chunks_exact_mut(padded))
    {
        rotation.rotate(centroid, rotated);
    }
    let count = router.len().max(1) as f64;
    let mut mean = vec![0.0f64; padded];
    let mut squares = 0.0;
    for centroid in centroids.chunks_exact(padded) {
        mean.iter_mut().zip(centroid).for_each(|(sum, x)| *sum += f64::from(*x) / count);
        squares += centroid.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / count;
    }
    let mean: Vec<f32> = mean.into_iter().map(|x| x as f32).collect();

    let mut bytes = vec![0u8; parts.length];
    let mut put = |part: &Range<usize>, numbers: &[f32]| {
        let numbers: &[u8] = bytemuck::cast_slice(numbers);
        bytes[part.start..part.start + numbers.len()].copy_from_slice(numbers);
    };
    put(&parts.mean, &mean);
    let mut radii = router.radii().to_vec();
    radii.resize(parts.radii.len() / size_of::<f32>(), f32::INFINITY);
    put(&parts.radii, &radii);
    put(&parts.centroids, &centroids);
    let crcs: Vec<u32> = centroids
        .chunks_exact(padded)
        .map(|centroid| crc32fast::hash(bytemuck::cast_slice(centroid)))
        .collect();
    let block_bytes = sign::block_bytes(signs_padded(router.metric(), router.dim()));
    if block_bytes > 0 {
        let none = sign::SignFactors::NO_ROW;
        let mut columns = [none.add, none.scale, none.error].map(|x| vec![x; radii.len()]);
        let mut codes = vec![0; parts.codes.len()];
        for (nth, centroid) in centroids.chunks_exact(padded).enumerate() {
            let residual: Vec<f64> =
                centroid.iter().zip(&mean).map(|(c, m)| f64::from(*c) - f64::from(*m)).collect();
            let block = &mut codes[nth / SIGN_BLOCK * block_bytes..][..block_bytes];
            let factors =
                sign::encode(routed_by(router.metric()), &residual, &mean, block, nth % SIGN_BLOCK);
            let numbers = [factors.add, factors.scale, factors.error];
            columns.iter_mut().zip(numbers).for_each(|(column, x)| column[nth] = x);
        }
        parts.columns.iter().zip(&columns).for_each(|(part, column)| put(part, column));
        bytes[parts.codes.clone()].copy_from_slice(&codes);
    }
    let crcs: &[u8] = bytemuck::cast_slice(&crcs);
    bytes[parts.centroid_crcs.start..][..crcs.len()].copy_from_slice(crcs);
    let (head, body) = bytes.split_at_mut(size_of::<Header>());
    let body = &body[..parts.centroids.start - size_of::<Header>()];
    let mut header = Header {
        magic: MAGIC,
        version: VERSION,
        router: router_id.to_le_bytes(),
        dim: identity.dim,
        padded: padded as u32,
        buckets: identity.buckets,
        body_crc: crc32fast::hash(body),
        length: parts.length as u64,
        typical: squares.sqrt() as f32,
        metric: identity.metric as u8,
        ..Header::zeroed()
    };
    header.crc = header.checksum();
    head.copy_from_slice(bytemuck::bytes_of(&header));
    Ok(bytes)
}

/// What centroids are ordered by, for rows that are searched by `metric`: centroids are not of
/// length one, so a cosine is the inner product.
pub fn routed_by(metric: Metric) -> Metric {
    match metric {
        Metric::Cosine => Metric::InnerProduct,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{rngs::SmallRng, Rng, SeedableRng};

    fn router(metric: Metric, dim: usize, buckets: usize) -> Router {
        let mut rng = SmallRng::seed_from_u64(7);
        let centroids = (0..dim * buckets).map(|_| rng.random_range(-1.0..1.0)).collect();
        Router::new(metric, dim, centroids, (0..buckets).map(|x| x as f32).collect())
    }

    #[test]
    fn what_is_written_is_read() {
        for (metric, dim, buckets) in [
            (Metric::L2, 100, 70),
            (Metric::Cosine, 64, 32),
            (Metric::L1, 128, 33),
            (Metric::InnerProduct, 7, 5),
            (Metric::L2, 768, 1),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let name = ArenaName::new("5", 9).unwrap();
            let router = router(metric, dim, buckets);
            let written = RoutingArena::create(dir.path(), &name, 9, &router).unwrap();
            let opened = RoutingArena::open(dir.path(), &name, &identity(9, &router)).unwrap();
            let memory = RoutingArena::in_memory(9, &router).unwrap();
            let rotation = Rotation::new(metric, dim);
            let mut rotated = vec![0.0; rotation.padded()];
            for arena in [&written, &opened, &memory] {
                assert_eq!(arena.len(), buckets);
                assert_eq!(arena.radii(), router.radii());
                assert_eq!(arena.signs().is_some(), sign::are_used(metric, dim));
                for bucket in 0..buckets {
                    rotation.rotate(router.centroid(bucket), &mut rotated);
                    assert_eq!(arena.centroid(bucket as u32), rotated);
                }
            }
        }
    }

    #[test]
    fn another_router_is_refused_and_so_is_every_damaged_byte() {
        let dir = tempfile::tempdir().unwrap();
        let name = ArenaName::new("5", 9).unwrap();
        let router = router(Metric::L2, 64, 3);
        let own = identity(9, &router);
        RoutingArena::create(dir.path(), &name, 9, &router).unwrap();
        for other in [
            RoutingIdentity { router: 8, ..own },
            RoutingIdentity { dim: 65, ..own },
            RoutingIdentity { buckets: 4, ..own },
            RoutingIdentity { metric: Metric::Cosine, ..own },
        ] {
            let refused = RoutingArena::open(dir.path(), &name, &other);
            assert!(matches!(refused, Err(ArenaError::OtherSegment)));
        }
        let path = name.path(dir.path());
        let good = std::fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            std::fs::write(&path, &bad).unwrap();
            let is_sound = RoutingArena::open(dir.path(), &name, &own).is_ok_and(|arena| {
                assert!(!arena.is_damaged(), "not touched yet");
                arena.is_sound()
            });
            assert!(!is_sound, "byte {at}");
        }
        for length in [0, 64, 127, 128, 400, good.len() - 1] {
            std::fs::write(&path, &good[..length]).unwrap();
            let refused = RoutingArena::open(dir.path(), &name, &own);
            assert!(matches!(refused, Err(ArenaError::Truncated)));
        }
    }
}
