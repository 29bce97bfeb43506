//! The router's own arena: what a search needs of all centroids, in one mmapped file.
//!
//! Like a segment's arena it is derived, recognised by a random id, checked before it is used, and
//! never changed once it has its name. It has each centroid twice: whole, for int8 codes, and as a
//! point of the space that was learned with it ([`Projection`]), for all else. The points are in
//! groups about centres: of many, a search looks at those of the nearest groups only. [`format`]
//! draws the bytes.

mod encode;
mod format;

pub use format::RoutingIdentity;

use super::directory::Temporary;
use super::mapping::{self, anonymous};
use super::proofs::{Part, Proofs};
use super::{ArenaError, ArenaName};
use crate::cluster::{Groups, Routed, Router};
use crate::metric::Metric;
use crate::quant::sign::{self, Coding};
use crate::quant::{Projection, Rotation};
use crate::simd::{self, SignRows, SIGN_BLOCK};
use encode::{encode, identity};
use format::{padded, Header, Parts, MAGIC, NO_CENTROID, VERSION};
use memmap2::Mmap;
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// A mapped routing arena. All but its points and centroids was checked when it was opened.
#[derive(Debug)]
pub struct RoutingArena {
    map: Mmap,
    /// What was found to be what was written.
    sound_points: Bits,
    sound_centroids: Bits,
    damaged: AtomicBool,
    identity: RoutingIdentity,
    groups: usize,
    parts: Parts,
    body_crc: u32,
    typical: f32,
    rotation: Rotation,
    projection: Projection,
}

/// One bit a bucket.
#[derive(Debug)]
struct Bits(Box<[AtomicU64]>);

impl Bits {
    fn new(count: u32) -> Bits {
        Bits((0..count.div_ceil(64)).map(|_| AtomicU64::new(0)).collect())
    }

    fn is_set(&self, number: usize) -> bool {
        self.0[number / 64].load(Ordering::Relaxed) & 1 << (number % 64) != 0
    }

    fn set(&self, number: usize) {
        self.0[number / 64].fetch_or(1 << (number % 64), Ordering::Relaxed);
    }
}

/// Centroids that are near to each other.
#[derive(Clone, Debug)]
pub struct Group<'a> {
    /// A point, as those of the centroids.
    pub centre: &'a [f32],
    /// The root mean square distance of the rows of its buckets to the centre.
    pub spread: f32,
    /// Where its centroids are in the columns.
    pub places: Range<usize>,
}

impl RoutingArena {
    /// Writes the arena of a router, of which all is known, under its name in `dir`, and maps it.
    ///
    /// # Errors
    /// [`ArenaError::Io`], or [`ArenaError::Layout`] when it would be too large.
    pub fn create(
        dir: &Path,
        name: &ArenaName,
        router_id: u128,
        router: &Router,
        routed: &Routed<'_>,
    ) -> Result<RoutingArena, ArenaError> {
        let bytes = encode(router_id, router, routed)?;
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
    pub fn in_memory(
        router_id: u128,
        router: &Router,
        routed: &Routed<'_>,
    ) -> Result<RoutingArena, ArenaError> {
        let bytes = encode(router_id, router, routed)?;
        let mut map = anonymous(bytes.len())?;
        map.copy_from_slice(&bytes);
        RoutingArena::check(map.make_read_only()?, &identity(router_id, router), Proofs::none())
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
        let (map, proofs) = mapping::map(file, size_of::<Header>() as u64)?;
        RoutingArena::check(map, identity, proofs)
    }

    fn check(
        map: Mmap,
        identity: &RoutingIdentity,
        proofs: Proofs,
    ) -> Result<RoutingArena, ArenaError> {
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
        let dim = identity.dim as usize;
        let projection = Projection::stored(identity.metric, dim, header.subspace);
        let projection = projection.ok_or(ArenaError::Damaged("subspace"))?;
        let parts = Parts::of(identity, &projection, header.groups, header.places);
        let parts = parts.ok_or(ArenaError::Damaged("dimensions"))?;
        if header.length != map.len() as u64
            || parts.length != map.len()
            || header.padded as usize != padded(identity)
        {
            return Err(ArenaError::Damaged("length"));
        }
        let body = size_of::<Header>()..parts.points.start;
        let is_sound = || crc32fast::hash(&map[body.clone()]) == header.body_crc;
        if !proofs.hold(Part::Whole, is_sound) {
            return Err(ArenaError::Damaged("codes of centroids"));
        }
        check_groups(&map, &header, &parts)?;
        Ok(RoutingArena {
            typical: header.typical,
            body_crc: header.body_crc,
            groups: header.groups as usize,
            identity: *identity,
            sound_points: Bits::new(identity.buckets),
            sound_centroids: Bits::new(identity.buckets),
            damaged: AtomicBool::new(false),
            rotation: Rotation::new(identity.metric, dim),
            projection,
            parts,
            map,
        })
    }

    /// What the arena was made of.
    pub fn identity(&self) -> &RoutingIdentity {
        &self.identity
    }

    /// What whole centroids and rows are rotated by.
    pub fn rotation(&self) -> &Rotation {
        &self.rotation
    }

    /// What makes points of centroids, rows and queries.
    pub fn projection(&self) -> &Projection {
        &self.projection
    }

    /// How rows' points become codes, if they do.
    pub fn coding(&self) -> Option<&Coding> {
        self.projection.coding()
    }

    /// Bits of a row's sign code; zero if rows have none.
    pub fn code_bits(&self) -> u32 {
        self.coding().map_or(0, |coding| coding.code_bits() as u32)
    }

    /// The directions of the space, as [`Projection::project`] takes them.
    pub fn basis(&self) -> &[f32] {
        self.floats(&self.parts.basis)
    }

    /// The point of a vector.
    ///
    /// # Panics
    /// When it has another number of dimensions.
    pub fn project(&self, vector: &[f32]) -> Vec<f32> {
        let mut point = vec![0.0; self.projection.components()];
        self.projection.project(self.basis(), vector, &mut point);
        point
    }

    /// How many buckets there are.
    pub fn len(&self) -> usize {
        self.identity.buckets as usize
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Length of a typical centroid in the components with a code.
    pub fn typical(&self) -> f32 {
        self.typical
    }

    /// The mean of all points, which sign codes are told.
    pub fn middle(&self) -> &[f32] {
        self.floats(&self.parts.middle)
    }

    /// Spares a router that is this arena's what has been found out about it already. Does nothing
    /// where that is damaged, or of another space.
    pub fn teach(&self, router: &Router) {
        let of_router = (router.len(), router.space().projection.subspace());
        if of_router != (self.len(), self.projection.subspace()) {
            return;
        }
        let points: Vec<f32> =
            (0..self.identity.buckets).flat_map(|bucket| self.point(bucket)).copied().collect();
        if self.is_damaged() {
            return;
        }
        let members = |nth| {
            let places = self.group(nth).places;
            places.filter_map(|place| self.bucket_at(place)).collect()
        };
        let members: Vec<Vec<u32>> = (0..self.groups).map(members).collect();
        if members.iter().map(Vec::len).sum::<usize>() == self.len() {
            let centres = self.floats(&self.parts.centres).to_vec();
            let groups = Groups::known(centres, self.projection.components(), members);
            router.learn(points, groups);
        }
    }

    /// How many groups the centroids are in.
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// A group. Panics when there is no such group.
    pub fn group(&self, nth: usize) -> Group<'_> {
        let components = self.projection.components();
        let first: &[u32] = bytemuck::cast_slice(&self.map[self.parts.first_places.clone()]);
        Group {
            centre: &self.floats(&self.parts.centres)[nth * components..][..components],
            spread: self.floats(&self.parts.spreads)[nth],
            places: first[nth] as usize..first[nth + 1] as usize,
        }
    }

    /// The bucket whose centroid is at a place, if there is one. Panics when there is no such
    /// place.
    pub fn bucket_at(&self, place: usize) -> Option<u32> {
        let numbers: &[u32] = bytemuck::cast_slice(&self.map[self.parts.numbers.clone()]);
        Some(numbers[place]).filter(|number| *number != NO_CENTROID)
    }

    /// For each bucket the root mean square distance of its rows to the centroid.
    pub fn radii(&self) -> &[f32] {
        self.floats(&self.parts.radii)
    }

    /// The centroid of a bucket as a point. One that is not what was written makes the arena
    /// [`RoutingArena::is_damaged`]; searches are led astray by it. Panics when there is no such
    /// bucket.
    pub fn point(&self, bucket: u32) -> &[f32] {
        if !self.projection.is_learned() {
            return self.centroid(bucket);
        }
        let (parts, components) = (&self.parts, self.projection.components());
        self.checked(&parts.points, &parts.point_crcs, &self.sound_points, components, bucket)
    }

    /// The rotated centroid of a bucket, for its int8 codes. Of one that is not what was written
    /// the same is true as of a [`RoutingArena::point`]. Panics when there is no such bucket.
    pub fn centroid(&self, bucket: u32) -> &[f32] {
        let (parts, padded) = (&self.parts, padded(&self.identity));
        self.checked(&parts.centroids, &parts.centroid_crcs, &self.sound_centroids, padded, bucket)
    }

    /// Asks for the rotated centroid of a bucket to be brought near.
    pub fn prefetch_centroid(&self, bucket: u32) {
        let (all, padded) = (self.floats(&self.parts.centroids), padded(&self.identity));
        let centroid = all.chunks_exact(padded).nth(bucket as usize);
        simd::prefetch(bytemuck::cast_slice(centroid.unwrap_or_default()));
    }

    fn checked(
        &self,
        vectors: &Range<usize>,
        crcs: &Range<usize>,
        sound: &Bits,
        components: usize,
        bucket: u32,
    ) -> &[f32] {
        let number = bucket as usize;
        let vector = &self.floats(vectors)[number * components..][..components];
        if !sound.is_set(number) {
            let crcs: &[u32] = bytemuck::cast_slice(&self.map[crcs.clone()]);
            if crc32fast::hash(bytemuck::cast_slice(vector)) == crcs[number] {
                sound.set(number);
            } else {
                self.damaged.store(true, Ordering::Relaxed);
            }
        }
        vector
    }

    /// Whether a point or centroid that was touched was not what was written.
    pub fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }

    /// Checks all, whatever others have found. Points and centroids are checked once.
    pub fn is_sound(&self) -> bool {
        let body = size_of::<Header>()..self.parts.points.start;
        if crc32fast::hash(&self.map[body]) != self.body_crc {
            self.damaged.store(true, Ordering::Relaxed);
        }
        (0..self.identity.buckets).for_each(|bucket| {
            self.point(bucket);
            self.centroid(bucket);
        });
        !self.is_damaged()
    }

    /// Sign codes of a group's centroids about its centre, and their columns; none if the index has
    /// none.
    pub fn signs(&self, group: &Group<'_>) -> Option<(&[u8], SignRows<'_>)> {
        let codes = &self.map[self.parts.codes.clone()];
        let block_bytes = sign::block_bytes(self.coding()?.code_bits());
        let Range { start, end } = group.places;
        let codes = &codes[start / SIGN_BLOCK * block_bytes..end / SIGN_BLOCK * block_bytes];
        let columns = self.parts.columns.each_ref();
        let [add, scale, error] = columns.map(|part| &self.floats(part)[start..end]);
        Some((codes, SignRows { add, scale, error }))
    }

    /// A part within the map, aligned to 64 from its begin on.
    fn floats(&self, part: &Range<usize>) -> &[f32] {
        bytemuck::cast_slice(&self.map[part.clone()])
    }
}

/// What centroids are ordered by, for rows that are searched by `metric`: centroids are not of
/// length one, so a cosine is the inner product.
pub fn routed_by(metric: Metric) -> Metric {
    match metric {
        Metric::Cosine => Metric::InnerProduct,
        other => other,
    }
}

/// Checks what says where the centroids are.
fn check_groups(map: &Mmap, header: &Header, parts: &Parts) -> Result<(), ArenaError> {
    let first_places: &[u32] = bytemuck::cast_slice(&map[parts.first_places.clone()]);
    let numbers: &[u32] = bytemuck::cast_slice(&map[parts.numbers.clone()]);
    let in_blocks = |place: &u32| (*place as usize).is_multiple_of(SIGN_BLOCK);
    if !first_places.is_sorted()
        || !first_places.iter().all(in_blocks)
        || first_places.first() != Some(&0)
        || first_places.last() != Some(&header.places)
        || numbers.iter().any(|number| *number >= header.buckets && *number != NO_CENTROID)
    {
        return Err(ArenaError::Damaged("groups of centroids"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::VectorSpace;
    use crate::quant::Subspace;
    use rand::{rngs::SmallRng, Rng, SeedableRng};

    static STOP: AtomicBool = AtomicBool::new(false);

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
            let (points, components) = router.points(&STOP).unwrap();
            let groups = match buckets {
                0..50 => Groups::one(points, components),
                _ => Groups::new(points, components, &STOP).unwrap(),
            };
            let routed = Routed { groups: &groups, ..router.routed(&STOP).unwrap() };
            let written = RoutingArena::create(dir.path(), &name, 9, &router, &routed).unwrap();
            let opened = RoutingArena::open(dir.path(), &name, &identity(9, &router)).unwrap();
            let memory = RoutingArena::in_memory(9, &router, &routed).unwrap();
            let rotation = Rotation::new(metric, dim);
            let mut rotated = vec![0.0; rotation.padded()];
            for arena in [&written, &opened, &memory] {
                assert_eq!(arena.len(), buckets);
                assert_eq!(arena.radii(), router.radii());
                let mut grouped = Vec::new();
                for nth in 0..arena.groups() {
                    let group = arena.group(nth);
                    let signs = arena.signs(&group);
                    assert_eq!(signs.is_some(), sign::are_used(metric, dim));
                    let columns = signs.map_or(group.places.len(), |(_, rows)| rows.add.len());
                    assert_eq!(columns, group.places.len());
                    grouped.extend(group.places.filter_map(|place| arena.bucket_at(place)));
                }
                grouped.sort_unstable();
                assert_eq!(grouped, (0..buckets as u32).collect::<Vec<u32>>());
                for bucket in 0..buckets {
                    rotation.rotate(router.centroid(bucket), &mut rotated);
                    assert_eq!(arena.centroid(bucket as u32), rotated);
                }
            }
        }
    }

    /// A router of vectors that lie along few axes, in a space of these.
    fn learned(metric: Metric, dim: usize, buckets: usize) -> Router {
        let (components, lead, bits, reserved) = (48, 32, 2, 0);
        let subspace = Subspace { components, lead, bits, beyond: 5.0, usual: 1.0, reserved };
        let projection = Projection::stored(metric, dim, subspace).unwrap();
        let axis = |nth: usize| (0..dim).map(move |at| if at == nth { 1.0 } else { 0.0 });
        let basis = (0..48).flat_map(axis).collect();
        let plain = router(metric, dim, buckets);
        let space = VectorSpace { projection, basis };
        Router::within(space, metric, plain.centroids().to_vec(), plain.radii().to_vec())
    }

    #[test]
    fn a_learned_space_is_read_as_it_was_written() {
        for (metric, buckets) in [(Metric::L2, 70), (Metric::Cosine, 5)] {
            let dir = tempfile::tempdir().unwrap();
            let name = ArenaName::new("5", 9).unwrap();
            let router = learned(metric, 100, buckets);
            let (points, components) = router.points(&STOP).unwrap();
            let groups = &Groups::new(points, components, &STOP).unwrap();
            let routed = Routed { groups, ..router.routed(&STOP).unwrap() };
            RoutingArena::create(dir.path(), &name, 9, &router, &routed).unwrap();
            let arena = RoutingArena::open(dir.path(), &name, &identity(9, &router)).unwrap();
            let space = router.space();
            assert_eq!(arena.projection().subspace(), space.projection.subspace());
            assert_eq!(arena.basis(), space.basis);
            assert_eq!(arena.code_bits(), 64);
            assert_eq!(arena.middle().len(), 48);
            for bucket in 0..buckets {
                let point = arena.point(bucket as u32);
                let own = &points[bucket * 48..][..48];
                assert_eq!(point, own);
                let vector = arena.project(router.centroid(bucket));
                assert!(vector.iter().zip(own).all(|(a, b)| (a - b).abs() < 1e-4));
                assert_eq!(arena.centroid(bucket as u32).len(), 128);
            }
            assert!(arena.is_sound());
            for nth in 0..arena.groups() {
                let group = arena.group(nth);
                let (codes, rows) = arena.signs(&group).unwrap();
                assert_eq!(codes.len(), rows.add.len() * 8);
            }
            arena.teach(&Router::new(metric, 100, vec![0.0; 100 * buckets], vec![1.0; buckets]));
            arena.teach(&learned(metric, 100, buckets + 1));
            let pupil = learned(metric, 100, buckets);
            arena.teach(&pupil);
            let taught = pupil.routed(&STOP).unwrap();
            assert_eq!(taught.groups.len(), groups.len());
            assert!(taught.groups.iter().eq(groups.iter()));
        }
    }

    #[test]
    fn another_router_is_refused_and_so_is_every_damaged_byte() {
        let dir = tempfile::tempdir().unwrap();
        let name = ArenaName::new("5", 9).unwrap();
        let router = learned(Metric::L2, 64, 3);
        let own = identity(9, &router);
        let routed = router.routed(&STOP).unwrap();
        RoutingArena::create(dir.path(), &name, 9, &router, &routed).unwrap();
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
                // Of points that are damaged nothing is learned.
                let pupil = learned(Metric::L2, 64, 3);
                arena.teach(&pupil);
                assert_eq!(pupil.points(&STOP).unwrap(), router.points(&STOP).unwrap());
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
