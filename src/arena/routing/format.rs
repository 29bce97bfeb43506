//! The bytes of a router's arena.
//!
//! ```text
//!      0  header, 128 bytes: magic, version, CRC32 of itself, router,
//!         dimensions, padded dimensions, buckets, metric, length,
//!         CRC32 of what follows up to the points, groups, places, subspace
//!    128  directions of the subspace, 4 bytes a dimension
//!      *  middle of the points, 4 bytes a component
//!      *  centres of the groups, 4 bytes a component
//!      *  spreads of the groups, 4 bytes each
//!      *  first place of each group, 4 bytes, and the number of places
//!      *  number of the centroid at each place, 4 bytes, or !0 for none
//!      *  radii, 4 bytes a bucket
//!      *  columns add, scale and error of the sign codes, 4 bytes a place
//!      *  sign codes of the centroids about their group's centre, in blocks
//!         of 32 places
//!      *  CRC32 of each point, and of each rotated centroid
//!      *  points, 4 bytes a component
//!      *  rotated centroids, 4 bytes a padded component
//! ```
//!
//! A point is a centroid in the subspace ([`Projection`]). Where none was learned, there are no
//! directions and no points: these are the rotated centroids then.
//!
//! The places of a group begin at a multiple of 32; those left over have no centroid. The header's
//! checksum of what follows it ends where the points begin. These are checked one by one when they
//! are first touched, so that opening takes a small part of reading the file.
//!
//! Where an index has no sign codes ([`sign::are_used`]) the columns and codes are left out, and
//! the rotation is the identity. All numbers are little-endian, every part begins at a multiple
//! of 64.

use crate::metric::Metric;
use crate::quant::sign::{self, Coding};
use crate::quant::{self, Projection, Subspace};
use crate::simd::SIGN_BLOCK;
use bytemuck::{Pod, Zeroable};
use std::mem::offset_of;
use std::ops::Range;

pub const MAGIC: [u8; 8] = *b"driftrtr";
pub const VERSION: u32 = 5;
const ALIGN: usize = 64;
const MAX_BYTES: usize = isize::MAX as usize / 2;

/// Stands at a place without a centroid.
pub const NO_CENTROID: u32 = u32::MAX;

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct Header {
    pub magic: [u8; 8],
    pub version: u32,
    /// CRC32 of the header, taken while this field is zero.
    pub crc: u32,
    /// Id of the router, little-endian.
    pub router: [u8; 16],
    pub dim: u32,
    pub padded: u32,
    pub buckets: u32,
    /// CRC32 of what is between the header and the points.
    pub body_crc: u32,
    /// Length of the file.
    pub length: u64,
    /// Length of a typical centroid in the components with a code.
    pub typical: f32,
    /// Code of the metric.
    pub metric: u8,
    pub padding: [u8; 3],
    pub groups: u32,
    pub places: u32,
    pub subspace: Subspace,
    pub reserved: [u32; 8],
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
    assert!(offset_of!(Header, groups) == 64);
    assert!(offset_of!(Header, places) == 68);
    assert!(offset_of!(Header, subspace) == 72);
    assert!(offset_of!(Header, reserved) == 96);
};

impl Header {
    /// The header's checksum.
    pub fn checksum(mut self) -> u32 {
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

/// Components of a rotated centroid.
pub fn padded(identity: &RoutingIdentity) -> usize {
    let dim = identity.dim as usize;
    if sign::are_used(identity.metric, dim) {
        sign::padded(dim)
    } else {
        dim
    }
}

/// Where the parts are, in bytes from the begin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parts {
    pub basis: Range<usize>,
    pub middle: Range<usize>,
    pub centres: Range<usize>,
    pub spreads: Range<usize>,
    pub first_places: Range<usize>,
    pub numbers: Range<usize>,
    pub radii: Range<usize>,
    pub columns: [Range<usize>; 3],
    pub codes: Range<usize>,
    pub point_crcs: Range<usize>,
    pub centroid_crcs: Range<usize>,
    pub points: Range<usize>,
    pub centroids: Range<usize>,
    pub length: usize,
}

impl Parts {
    /// None when the numbers do not fit together, or the file would be too large.
    pub fn of(
        identity: &RoutingIdentity,
        projection: &Projection,
        groups: u32,
        places: u32,
    ) -> Option<Parts> {
        let dim =
            usize::try_from(identity.dim).ok().filter(|dim| (1..=quant::MAX_DIM).contains(dim))?;
        let (buckets, places) = (identity.buckets as usize, places as usize);
        let groups = groups as usize;
        if !places.is_multiple_of(SIGN_BLOCK) || places < buckets || groups == 0 {
            return None;
        }
        let (padded, components) = (padded(identity), projection.components());
        let code_bits = projection.coding().map_or(0, Coding::code_bits);
        let mut end = size_of::<Header>();
        let mut part = |count: usize, bytes_each: usize| {
            let start = end.next_multiple_of(ALIGN);
            let bytes = count.checked_mul(bytes_each)?;
            end = start.checked_add(bytes).filter(|end| *end <= MAX_BYTES)?;
            Some(start..end)
        };
        const NUMBER: usize = size_of::<u32>();
        let coded = if code_bits > 0 { places } else { 0 };
        let points = if projection.is_learned() { buckets } else { 0 };
        let parts = Parts {
            basis: part(projection.subspace().basis_len(dim), NUMBER)?,
            middle: part(components, NUMBER)?,
            centres: part(groups, components.checked_mul(NUMBER)?)?,
            spreads: part(groups, NUMBER)?,
            first_places: part(groups.checked_add(1)?, NUMBER)?,
            numbers: part(places, NUMBER)?,
            radii: part(buckets, NUMBER)?,
            columns: [part(coded, NUMBER)?, part(coded, NUMBER)?, part(coded, NUMBER)?],
            codes: part(places / SIGN_BLOCK, sign::block_bytes(code_bits))?,
            point_crcs: part(points, NUMBER)?,
            centroid_crcs: part(buckets, NUMBER)?,
            points: part(points, components.checked_mul(NUMBER)?)?,
            centroids: part(buckets, padded.checked_mul(NUMBER)?)?,
            length: 0,
        };
        Some(Parts { length: end.next_multiple_of(ALIGN), ..parts })
    }
}
