//! From a router to the bytes of its arena.

use super::format::{padded, Header, Parts, RoutingIdentity, MAGIC, NO_CENTROID, VERSION};
use super::routed_by;
use crate::arena::ArenaError;
use crate::cluster::{Routed, Router};
use crate::metric::Metric;
use crate::quant::sign::{self, Coding};
use crate::quant::{Projection, Rotation};
use crate::simd::{kernels, SIGN_BLOCK};
use bytemuck::{Pod, Zeroable};
use std::ops::Range;

/// What the arena of a router is recognised by.
pub fn identity(router_id: u128, router: &Router) -> RoutingIdentity {
    RoutingIdentity {
        router: router_id,
        dim: router.dim() as u32,
        metric: router.metric(),
        buckets: router.len() as u32,
    }
}

/// The bytes of a router's arena.
pub fn encode(router_id: u128, router: &Router, routed: &Routed) -> Result<Vec<u8>, ArenaError> {
    let Routed { points, groups } = *routed;
    let too_large = || ArenaError::Layout("too large");
    let identity = identity(router_id, router);
    let padded = padded(&identity);
    let rotation = Rotation::new(router.metric(), router.dim());
    let centroids = rotate_all(&rotation, router.centroids(), router.dim(), padded);
    let projection = &router.space().projection;
    let components = projection.components();
    let centres = groups.centres();
    let middle = middle(points, components);

    let (mut first_places, mut numbers) = (vec![0u32], Vec::new());
    for (_, members) in groups.iter() {
        numbers.extend_from_slice(members);
        numbers.resize(numbers.len().next_multiple_of(SIGN_BLOCK), NO_CENTROID);
        first_places.push(u32::try_from(numbers.len()).map_err(|_| too_large())?);
    }
    let (groups, places) = (groups.len() as u32, numbers.len() as u32);
    let parts = Parts::of(&identity, projection, groups, places).ok_or_else(too_large)?;
    let point = |number: u32| &points[number as usize * components..][..components];

    let none = sign::SignFactors::NO_ROW;
    let mut columns = [none.add, none.scale, none.error].map(|x| vec![x; numbers.len()]);
    let mut codes = vec![0; parts.codes.len()];
    let mut spreads = Vec::new();
    for (centre, group) in centres.chunks_exact(components).zip(first_places.windows(2)) {
        let mut squares = 0.0;
        let mut count = 0;
        for place in group[0] as usize..group[1] as usize {
            let number = numbers[place];
            if number == NO_CENTROID {
                continue;
            }
            let (point, radius) = (point(number), router.radii()[number as usize]);
            squares += f64::from((kernels().l2_squared)(point, centre) + radius * radius);
            count += 1;
            let Some(coding) = projection.coding() else { continue };
            let block_bytes = sign::block_bytes(coding.code_bits());
            let block = &mut codes[place / SIGN_BLOCK * block_bytes..][..block_bytes];
            let metric = routed_by(router.metric());
            let factors =
                encode_point(metric, coding, point, centre, &middle, block, place % SIGN_BLOCK);
            let values = [factors.add, factors.scale, factors.error];
            columns.iter_mut().zip(values).for_each(|(column, x)| column[place] = x);
        }
        spreads.push((squares / f64::from(count.max(1))).sqrt() as f32);
    }
    let crcs = |vectors: &[f32], components: usize| -> Vec<u32> {
        let crc = |vector| crc32fast::hash(bytemuck::cast_slice(vector));
        vectors.chunks_exact(components).map(crc).collect()
    };

    let mut bytes = vec![0u8; parts.length];
    put(&mut bytes, &parts.basis, &router.space().basis);
    put(&mut bytes, &parts.middle, &middle);
    put(&mut bytes, &parts.centres, centres);
    put(&mut bytes, &parts.spreads, &spreads);
    put(&mut bytes, &parts.first_places, &first_places);
    put(&mut bytes, &parts.numbers, &numbers);
    put(&mut bytes, &parts.radii, router.radii());
    if projection.coding().is_some() {
        parts.columns.iter().zip(&columns).for_each(|(part, column)| put(&mut bytes, part, column));
    }
    put(&mut bytes, &parts.codes, &codes);
    if projection.is_learned() {
        put(&mut bytes, &parts.point_crcs, &crcs(points, components));
        put(&mut bytes, &parts.points, points);
    }
    put(&mut bytes, &parts.centroid_crcs, &crcs(&centroids, padded));
    put(&mut bytes, &parts.centroids, &centroids);
    let (head, body) = bytes.split_at_mut(size_of::<Header>());
    let body = &body[..parts.points.start - size_of::<Header>()];
    let mut header = Header {
        magic: MAGIC,
        version: VERSION,
        router: router_id.to_le_bytes(),
        dim: identity.dim,
        padded: padded as u32,
        buckets: identity.buckets,
        body_crc: crc32fast::hash(body),
        length: parts.length as u64,
        typical: typical(points, components, projection),
        metric: identity.metric as u8,
        groups,
        places,
        subspace: projection.subspace(),
        ..Header::zeroed()
    };
    header.crc = header.checksum();
    head.copy_from_slice(bytemuck::bytes_of(&header));
    Ok(bytes)
}

fn rotate_all(rotation: &Rotation, vectors: &[f32], dim: usize, padded: usize) -> Vec<f32> {
    let mut all = vec![0.0; vectors.len() / dim * padded];
    for (vector, rotated) in vectors.chunks_exact(dim).zip(all.chunks_exact_mut(padded)) {
        rotation.rotate(vector, rotated);
    }
    all
}

/// The mean of rotated vectors.
fn middle(vectors: &[f32], padded: usize) -> Vec<f32> {
    let mut sums = vec![0.0f64; padded];
    for vector in vectors.chunks_exact(padded) {
        sums.iter_mut().zip(vector).for_each(|(sum, x)| *sum += f64::from(*x));
    }
    let count = (vectors.len() / padded).max(1) as f64;
    sums.into_iter().map(|sum| (sum / count) as f32).collect()
}

/// The root mean square length of points, as far as they have a code.
fn typical(points: &[f32], components: usize, projection: &Projection) -> f32 {
    let length = projection.coding().map_or(components, |coding| coding.components);
    let square = |point: &[f32]| point[..length].iter().map(|x| f64::from(*x).powi(2)).sum::<f64>();
    let squares: f64 = points.chunks_exact(components).map(square).sum();
    (squares / (points.len() / components).max(1) as f64).sqrt() as f32
}

/// The code of a point about its group's centre.
fn encode_point(
    metric: Metric,
    coding: &Coding,
    point: &[f32],
    centre: &[f32],
    middle: &[f32],
    block: &mut [u8],
    place: usize,
) -> sign::SignFactors {
    let (lead, beyond) = point.split_at(coding.components);
    let residual: Vec<f32> = lead.iter().zip(centre).map(|(c, m)| c - m).collect();
    let row = sign::Row {
        residual: &residual,
        centroid: &centre[..coding.components],
        middle: &middle[..coding.components],
        beyond: beyond.iter().map(|x| f64::from(*x).powi(2)).sum(),
    };
    sign::encode(metric, coding, &row, block, place)
}

fn put<T: Pod>(bytes: &mut [u8], part: &Range<usize>, values: &[T]) {
    bytes[part.clone()].copy_from_slice(bytemuck::cast_slice(values));
}
