//! Where routing takes place, and the codes that are looked at first.
//!
//! Vectors of many dimensions mostly lie near a space of few. Centroids, and the codes of [`sign`],
//! are of a vector's components in such a space, along directions that were learned from rows: they
//! are shorter, which is most of a search's and of a build's work, and as exact. The first
//! [`Coding::components`] of them have a code; a random [`Rotation`] makes these alike. What a row
//! has beyond goes into its bound, so no row is lost that is unlike those learned from.
//!
//! ```text
//! vector, dim components -> basis -> components, of which `lead` are rotated -> codes of `lead`
//! ```
//!
//! Where nothing was learned, because rows are few, short, or lie in all directions alike, it is
//! the rotation of all dimensions, and one bit or two for each.

use super::{sign, Rotation};
use crate::metric::Metric;
use crate::quant::sign::Coding;
use crate::simd::kernels;
use bytemuck::{Pod, Zeroable};

/// A learned space, as it is stored; the directions are beside it, row-major.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Pod, Zeroable)]
pub struct Subspace {
    /// How many directions there are; none where the space is that of all dimensions.
    pub components: u32,
    /// For how many of them rows have a code.
    pub lead: u32,
    /// Bits of a component's code; zero, for one, where there were no rows to choose by.
    pub bits: u32,
    /// [`Coding::beyond`].
    pub beyond: f32,
    /// [`Coding::usual`].
    pub usual: f32,
    /// Zero.
    pub reserved: u32,
}

const _: () = assert!(size_of::<Subspace>() == 24 && align_of::<Subspace>() == 4);

impl Subspace {
    /// That of rows from which nothing was learned.
    pub const PLAIN: Subspace =
        Subspace { components: 0, lead: 0, bits: 0, beyond: 0.0, usual: 0.0, reserved: 0 };

    /// Numbers in its directions, for vectors of `dim` dimensions.
    pub fn basis_len(&self, dim: usize) -> usize {
        self.components as usize * dim
    }
}

/// What takes vectors of `dim` dimensions to their components.
#[derive(Clone, Debug)]
pub struct Projection {
    dim: usize,
    components: usize,
    subspace: Subspace,
    coding: Option<Coding>,
    rotation: Rotation,
}

impl Projection {
    /// That of rows from which nothing was learned.
    pub fn plain(metric: Metric, dim: usize) -> Projection {
        let rotation = Rotation::new(metric, dim);
        let components = rotation.padded();
        let coding = sign::are_used(metric, dim).then(|| Coding::signs(components));
        Projection { dim, components, subspace: Subspace::PLAIN, coding, rotation }
    }

    /// That of a stored space. None when there is no such space for rows of that kind.
    pub fn stored(metric: Metric, dim: usize, subspace: Subspace) -> Option<Projection> {
        let plain = Projection::plain(metric, dim);
        if subspace == Subspace::PLAIN {
            return Some(plain);
        }
        let (components, lead) = (subspace.components as usize, subspace.lead as usize);
        let is_learned = components > 0;
        let coding = Coding {
            components: if is_learned { lead } else { plain.components },
            bits: subspace.bits as usize,
            beyond: subspace.beyond,
            usual: subspace.usual,
        };
        let fits = if is_learned {
            lead <= components && components <= dim
        } else {
            lead == 0 && subspace.beyond == 0.0 && subspace.usual == 0.0
        };
        if !fits || !coding.is_sound() || !sign::are_used(metric, dim) {
            return None;
        }
        let coding = Some(coding);
        Some(match is_learned {
            true => {
                Projection { dim, components, subspace, coding, rotation: Rotation::square(lead) }
            }
            false => Projection { subspace, coding, ..plain },
        })
    }

    /// Dimensions of a vector.
    pub fn dim(&self) -> usize {
        self.dim
    }

    /// How many components a vector has.
    pub fn components(&self) -> usize {
        self.components
    }

    /// How the first of them become codes, if rows have any.
    pub fn coding(&self) -> Option<&Coding> {
        self.coding.as_ref()
    }

    /// How many components have a code.
    pub fn lead(&self) -> usize {
        self.coding.map_or(0, |coding| coding.components)
    }

    /// The space as it is stored.
    pub fn subspace(&self) -> Subspace {
        self.subspace
    }

    /// Whether it was learned, and needs a basis.
    pub fn is_learned(&self) -> bool {
        self.subspace.components > 0
    }

    /// Writes the components of a vector to `out`. `basis` has the directions of a learned space.
    ///
    /// # Panics
    /// When the lengths do not fit.
    pub fn project(&self, basis: &[f32], vector: &[f32], out: &mut [f32]) {
        assert_eq!((vector.len(), out.len()), (self.dim, self.components), "dimensions");
        if !self.is_learned() {
            return self.rotation.rotate(vector, out);
        }
        assert_eq!(basis.len(), self.subspace.basis_len(self.dim), "directions");
        let product = kernels().inner_product;
        for (direction, out) in basis.chunks_exact(self.dim).zip(out.iter_mut()) {
            *out = product(direction, vector);
        }
        self.mix(out);
    }

    /// Rotates the components with a code, once a vector's products with the directions are known.
    ///
    /// # Panics
    /// When there are fewer.
    pub fn mix(&self, components: &mut [f32]) {
        if self.is_learned() {
            self.rotation.rotate_in_place(&mut components[..self.lead()]);
        }
    }

    /// The square of what a vector of this squared length has beyond the components with a code.
    pub fn beyond(&self, square: f32, components: &[f32]) -> f32 {
        match self.coding {
            Some(coding) if coding.beyond > 0.0 => {
                let lead = &components[..coding.components];
                (square - (kernels().inner_product)(lead, lead)).max(0.0)
            }
            _ => 0.0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{rngs::SmallRng, Rng, SeedableRng};

    const LEARNED: Subspace =
        Subspace { components: 48, lead: 32, bits: 2, beyond: 9.0, usual: 1.0, reserved: 0 };

    /// Unit vectors, each along another dimension.
    fn axes(dim: usize, count: usize) -> Vec<f32> {
        let axis = |nth: usize| (0..dim).map(move |at| if at == nth * 3 % dim { 1.0 } else { 0.0 });
        (0..count).flat_map(axis).collect()
    }

    #[test]
    fn products_with_directions_are_kept() {
        let mut rng = SmallRng::seed_from_u64(4);
        let projection = Projection::stored(Metric::L2, 100, LEARNED).unwrap();
        assert_eq!((projection.components(), projection.lead()), (48, 32));
        let basis = axes(100, 48);
        let vector: Vec<f32> = (0..100).map(|_| rng.random_range(-1.0..1.0)).collect();
        let mut point = vec![f32::NAN; 48];
        projection.project(&basis, &vector, &mut point);
        // What has no code is not rotated.
        for (nth, x) in point.iter().enumerate().skip(32) {
            assert_eq!(*x, vector[nth * 3 % 100]);
        }
        let square = |vector: &[f32]| vector.iter().map(|x| x * x).sum::<f32>();
        let lead: Vec<f32> = (0..32).map(|nth| vector[nth * 3 % 100]).collect();
        assert!((square(&point[..32]) - square(&lead)).abs() < 1e-4);
        assert_ne!(point[..32], lead);
        let beyond = projection.beyond(square(&vector), &point);
        assert!((beyond - (square(&vector) - square(&lead))).abs() < 1e-4);
    }

    #[test]
    fn nothing_learned_is_a_rotation_of_all_dimensions() {
        for bits in [0, 2] {
            let subspace = Subspace { bits, ..Subspace::PLAIN };
            let projection = Projection::stored(Metric::L2, 100, subspace).unwrap();
            assert!(!projection.is_learned());
            let coding = projection.coding().unwrap();
            assert_eq!((coding.components, coding.bits), (128, bits.max(1) as usize));
            let mut point = vec![0.0; 128];
            projection.project(&[], &[0.1; 100], &mut point);
            let square: f32 = point.iter().map(|x| x * x).sum();
            assert!((square - 1.0).abs() < 1e-4);
            assert_eq!(projection.beyond(1.0, &point), 0.0);
        }
        assert_eq!(Projection::plain(Metric::L1, 100).coding(), None);
        assert_eq!(Projection::plain(Metric::L2, 20).coding(), None);
    }

    #[test]
    fn a_space_that_cannot_be_is_refused() {
        let refused = |subspace, metric, dim| Projection::stored(metric, dim, subspace).is_none();
        assert!(!refused(LEARNED, Metric::L2, 100));
        assert!(refused(LEARNED, Metric::L1, 100), "no codes");
        assert!(refused(LEARNED, Metric::L2, 40), "more directions than dimensions");
        for wrong in [
            Subspace { lead: 64, ..LEARNED },
            Subspace { lead: 0, ..LEARNED },
            Subspace { lead: 33, ..LEARNED },
            Subspace { bits: 3, ..LEARNED },
            Subspace { bits: 0, ..LEARNED },
            Subspace { beyond: f32::NAN, ..LEARNED },
            Subspace { usual: -1.0, ..LEARNED },
            Subspace { components: 0, ..LEARNED },
            Subspace { components: u32::MAX, ..LEARNED },
            Subspace { bits: 7, ..Subspace::PLAIN },
            Subspace { beyond: 1.0, bits: 2, ..Subspace::PLAIN },
        ] {
            assert!(refused(wrong, Metric::L2, 100), "{wrong:?}");
        }
    }
}
