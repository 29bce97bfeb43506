//! From a datum to a slice of components and back.

use std::marker::PhantomData;
use std::ops::Deref;
use std::ptr::{self, NonNull};
use std::slice;

use pgrx::callconv::{Arg, ArgAbi, BoxRet, FcInfo};
use pgrx::pg_sys;
use pgrx::prelude::impl_sql_translatable;

use super::error::{check_dim, VectorError};
use super::MAX_DIM;

/// Bytes before the first component: varlena header, `dim`, `unused`.
const HEADER: usize = 8;
/// Bytes between the varlena header and the first component.
const DIM_FIELDS: usize = 4;
/// Components that fit a varlena with a one-byte header, of which 126 bytes are left.
const SHORT_DIM: usize = (126 - DIM_FIELDS) / 4;

/// The components of a vector, borrowed: 1 to [`MAX_DIM`] finite numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Vector<'a>(&'a [f32]);

impl<'a> Vector<'a> {
    /// The vector a datum points at, if it can be read where it is; None if it cannot, or if it
    /// contradicts itself. [`Detoasted::from_datum`] does the rest.
    ///
    /// # Safety
    /// As for [`Detoasted::from_datum`].
    #[inline(always)]
    pub unsafe fn in_place(datum: pg_sys::Datum) -> Option<Vector<'a>> {
        let varlena: *mut pg_sys::varlena = datum.cast_mut_ptr();
        // SAFETY: the caller passes a varlena, whose first byte tells its kind; `plain` counts
        // the components that are there, for as long as the caller promises.
        unsafe {
            if !pgrx::varatt_is_4b_u(varlena) {
                return None;
            }
            let (elements, dim) = plain(varlena).ok()?;
            Some(Vector(slice::from_raw_parts(elements.as_ptr(), dim)))
        }
    }

    /// The components.
    #[inline]
    pub fn as_slice(self) -> &'a [f32] {
        self.0
    }

    /// The number of components.
    #[inline]
    pub fn dim(self) -> usize {
        self.0.len()
    }
}

/// A vector taken from a datum.
///
/// The components are read where they are if they can be: only a value that lies out of line or
/// is compressed is copied to memory of the server's, which is given back on drop. One with a
/// one-byte header, which is at no aligned address, is copied to memory of this struct's own.
pub struct Detoasted<'a> {
    place: Place,
    datum: PhantomData<&'a [f32]>,
}

enum Place {
    InDatum { elements: NonNull<f32>, dim: usize },
    // Boxed, for the struct is moved often and such short vectors are rare.
    Unpacked { elements: Box<[f32; SHORT_DIM]>, dim: usize },
    Copy { varlena: NonNull<pg_sys::varlena>, elements: NonNull<f32>, dim: usize },
}

impl<'a> Detoasted<'a> {
    /// Reads the vector a datum points at; reports a value that contradicts itself as corrupted.
    ///
    /// # Safety
    /// `datum` is a non-null datum of type `vector` that lives, unchanged, for `'a`. The calling
    /// thread is the backend's own.
    #[inline]
    pub unsafe fn from_datum(datum: pg_sys::Datum) -> Detoasted<'a> {
        let varlena: *mut pg_sys::varlena = datum.cast_mut_ptr();
        // SAFETY: the caller passes a varlena, whose first byte tells its kind.
        let place = unsafe {
            if pgrx::varatt_is_4b_u(varlena) {
                plain(varlena).map(|(elements, dim)| Place::InDatum { elements, dim })
            } else if pgrx::varatt_is_1b(varlena) && !pgrx::varatt_is_1b_e(varlena) {
                unpack(varlena)
            } else {
                fetch(varlena)
            }
        };
        match place {
            Ok(place) => Detoasted { place, datum: PhantomData },
            Err(error) => error.report(),
        }
    }

    /// The vector.
    #[inline]
    pub fn vector(&self) -> Vector<'_> {
        match &self.place {
            Place::InDatum { elements, dim } | Place::Copy { elements, dim, .. } => {
                // SAFETY: `plain` found `dim` components there; the varlena lives as long as self.
                Vector(unsafe { slice::from_raw_parts(elements.as_ptr(), *dim) })
            }
            Place::Unpacked { elements, dim } => Vector(elements.get(..*dim).unwrap_or_default()),
        }
    }
}

impl Deref for Detoasted<'_> {
    type Target = [f32];

    #[inline]
    fn deref(&self) -> &[f32] {
        self.vector().as_slice()
    }
}

impl Drop for Detoasted<'_> {
    #[inline]
    fn drop(&mut self) {
        if let Place::Copy { varlena, .. } = self.place {
            // SAFETY: `fetch` got this memory from palloc and nothing else knows it.
            unsafe { pg_sys::pfree(varlena.as_ptr().cast()) };
        }
    }
}

/// The number of components of a value with `bytes` bytes after its varlena header.
#[inline]
fn checked_dim(dim: i16, bytes: usize) -> Result<usize, VectorError> {
    match usize::try_from(dim) {
        Ok(n) if (1..=MAX_DIM).contains(&n) && bytes == DIM_FIELDS + 4 * n => Ok(n),
        _ => Err(VectorError::Corrupted { dim, bytes }),
    }
}

/// Finds the components of a varlena with a four-byte header, in place.
///
/// # Safety
/// `varlena` is one, neither compressed nor out of line, and aligned as the type demands.
#[inline]
unsafe fn plain(varlena: *mut pg_sys::varlena) -> Result<(NonNull<f32>, usize), VectorError> {
    // SAFETY: the header says how many bytes of the varlena may be read; `dim` is read only if
    // they include it. The type's alignment is that of int4, so x[0] at byte 8 is aligned.
    unsafe {
        let bytes = pgrx::varsize_4b(varlena).saturating_sub(pg_sys::VARHDRSZ);
        if bytes < DIM_FIELDS {
            return Err(VectorError::Corrupted { dim: 0, bytes });
        }
        let dim = varlena.byte_add(pg_sys::VARHDRSZ).cast::<i16>().read();
        let elements = NonNull::new_unchecked(varlena.byte_add(HEADER).cast::<f32>());
        Ok((elements, checked_dim(dim, bytes)?))
    }
}

/// Copies the components out of a varlena with a one-byte header.
///
/// # Safety
/// `varlena` is one.
#[inline]
unsafe fn unpack(varlena: *mut pg_sys::varlena) -> Result<Place, VectorError> {
    // SAFETY: the header says how many bytes may be read, 126 at most; `checked_dim` makes sure
    // that the components are all of them, and so not more than the array holds.
    unsafe {
        let bytes = pgrx::varsize_1b(varlena).saturating_sub(pg_sys::VARHDRSZ_SHORT);
        if bytes < DIM_FIELDS {
            return Err(VectorError::Corrupted { dim: 0, bytes });
        }
        let fields: *const u8 = varlena.cast::<u8>().add(pg_sys::VARHDRSZ_SHORT);
        let dim = checked_dim(fields.cast::<i16>().read_unaligned(), bytes)?;
        let mut elements = Box::new([0.0f32; SHORT_DIM]);
        ptr::copy_nonoverlapping(
            fields.add(DIM_FIELDS),
            elements.as_mut_ptr().cast::<u8>(),
            4 * dim,
        );
        Ok(Place::Unpacked { elements, dim })
    }
}

/// Copies a value that is compressed or out of line.
///
/// # Safety
/// `varlena` is a varlena of any kind; the calling thread is the backend's own.
#[cold]
unsafe fn fetch(varlena: *mut pg_sys::varlena) -> Result<Place, VectorError> {
    // SAFETY: detoasting gives a palloc'd varlena with a four-byte header, never null.
    unsafe {
        let copy = pg_sys::pg_detoast_datum(varlena);
        match plain(copy) {
            Ok((elements, dim)) => {
                Ok(Place::Copy { varlena: NonNull::new_unchecked(copy), elements, dim })
            }
            Err(error) => {
                pg_sys::pfree(copy.cast());
                Err(error)
            }
        }
    }
}

/// A new vector in the memory context that was current at its making.
///
/// The context owns the memory; dropping the struct does not free it.
pub struct OwnedVector {
    varlena: NonNull<pg_sys::varlena>,
    dim: usize,
}

impl OwnedVector {
    /// A vector of `dim` zeros.
    ///
    /// # Errors
    /// [`VectorError::NoDimensions`], [`VectorError::TooManyDimensions`].
    pub fn zeroed(dim: usize) -> Result<OwnedVector, VectorError> {
        check_dim(dim)?;
        let size = HEADER + 4 * dim;
        // SAFETY: palloc0 returns `size` zeroed bytes, aligned for any type, or does not return;
        // `size` is below 2^30 as `dim` is checked, and `dim` fits an int16.
        let varlena = unsafe {
            let varlena: *mut pg_sys::varlena = pg_sys::palloc0(size).cast();
            pgrx::set_varsize_4b(varlena, size as i32);
            varlena.byte_add(pg_sys::VARHDRSZ).cast::<i16>().write(dim as i16);
            NonNull::new_unchecked(varlena)
        };
        Ok(OwnedVector { varlena, dim })
    }

    /// A copy of `elements`.
    ///
    /// # Errors
    /// [`VectorError::NoDimensions`], [`VectorError::TooManyDimensions`].
    pub fn from_slice(elements: &[f32]) -> Result<OwnedVector, VectorError> {
        let mut vector = OwnedVector::zeroed(elements.len())?;
        vector.as_mut_slice().copy_from_slice(elements);
        Ok(vector)
    }

    /// The components, to be written. What is stored must be finite.
    pub fn as_mut_slice(&mut self) -> &mut [f32] {
        // SAFETY: `zeroed` made room for `dim` components behind the header; they are reached
        // through this struct alone.
        unsafe {
            slice::from_raw_parts_mut(
                self.varlena.as_ptr().byte_add(HEADER).cast::<f32>(),
                self.dim,
            )
        }
    }

    /// The vector as a datum of type `vector`.
    pub fn into_datum(self) -> pg_sys::Datum {
        pg_sys::Datum::from(self.varlena.as_ptr())
    }
}

/// A datum that passes between SQL and a function as it is. The SQL declaration gives its type.
pub(super) struct RawDatum(pub(super) pg_sys::Datum);

// SAFETY: an argument declared `vector` is what `from_datum` asks for, and lives for the call.
unsafe impl<'fcx> ArgAbi<'fcx> for Detoasted<'fcx> {
    unsafe fn unbox_arg_unchecked(arg: Arg<'_, 'fcx>) -> Self {
        // SAFETY: the functions are STRICT, so the datum is not null.
        unsafe { Detoasted::from_datum(RawDatum::unbox_arg_unchecked(arg).0) }
    }
}

// SAFETY: any datum is one.
unsafe impl<'fcx> ArgAbi<'fcx> for RawDatum {
    unsafe fn unbox_arg_unchecked(arg: Arg<'_, 'fcx>) -> Self {
        // SAFETY: as above; a null of a STRICT function does not get here.
        RawDatum(unsafe { arg.unbox_arg_using_from_datum() }.unwrap_or_else(pg_sys::Datum::null))
    }
}

// SAFETY: the image is palloc'd in the context the function was called in.
unsafe impl BoxRet for OwnedVector {
    unsafe fn box_into<'fcx>(self, fcinfo: &mut FcInfo<'fcx>) -> pgrx::datum::Datum<'fcx> {
        // SAFETY: a complete value of the declared return type.
        unsafe { fcinfo.return_raw_datum(self.into_datum()) }
    }
}

// SAFETY: the function that makes one answers for its type and lifetime.
unsafe impl BoxRet for RawDatum {
    unsafe fn box_into<'fcx>(self, fcinfo: &mut FcInfo<'fcx>) -> pgrx::datum::Datum<'fcx> {
        // SAFETY: see above.
        unsafe { fcinfo.return_raw_datum(self.0) }
    }
}

// The names below appear in no generated SQL: the functions are declared by hand.
impl_sql_translatable!(Detoasted<'_>, "vector");
impl_sql_translatable!(OwnedVector, "vector");
impl_sql_translatable!(RawDatum, "internal");
