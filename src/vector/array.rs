//! The arrays of SQL, read and written.
//!
//! A header (varlena header, number of dimensions, offset of the data or 0 without a bitmap of
//! nulls, element type), then per dimension its length and lower bound, then the bitmap if there
//! is one, then at a multiple of 8 the elements.

use std::ptr::NonNull;
use std::slice;

use pgrx::pg_sys;

use super::datum::RawDatum;

/// Where the elements of an array of one dimension without a bitmap begin.
const DATA: usize = data_offset(1);

const fn data_offset(ndim: usize) -> usize {
    (size_of::<pg_sys::ArrayType>() + 2 * size_of::<i32>() * ndim).next_multiple_of(8)
}

/// Element types that are stored as Rust stores them.
///
/// # Safety
/// Every element of an array of type `OID` is a valid `Self`, aligned as `Self` demands.
pub(super) unsafe trait Element: Copy {
    /// The SQL type.
    const OID: pg_sys::Oid;
}

// SAFETY: a by-value type of the same representation.
unsafe impl Element for i32 {
    const OID: pg_sys::Oid = pg_sys::INT4OID;
}
// SAFETY: as above.
unsafe impl Element for f32 {
    const OID: pg_sys::Oid = pg_sys::FLOAT4OID;
}
// SAFETY: as above.
unsafe impl Element for f64 {
    const OID: pg_sys::Oid = pg_sys::FLOAT8OID;
}

/// An array argument. A copy detoasting made is freed on drop.
pub(super) struct SqlArray {
    array: NonNull<pg_sys::ArrayType>,
    copied: bool,
}

impl SqlArray {
    /// Reads the array a datum points at.
    ///
    /// # Safety
    /// `datum` is a non-null array and outlives the result. The thread is the backend's own.
    pub(super) unsafe fn from_datum(datum: pg_sys::Datum) -> SqlArray {
        let given: *mut pg_sys::varlena = datum.cast_mut_ptr();
        // SAFETY: an array is a varlena; detoasting returns it or a palloc'd copy, never null.
        unsafe {
            let plain = pg_sys::pg_detoast_datum(given);
            SqlArray { array: NonNull::new_unchecked(plain.cast()), copied: plain != given }
        }
    }

    fn header(&self) -> &pg_sys::ArrayType {
        // SAFETY: `from_datum` was given an array, which begins with this header.
        unsafe { self.array.as_ref() }
    }

    /// Whether this is a copy, and not the datum itself.
    pub(super) fn is_copy(&self) -> bool {
        self.copied
    }

    /// The number of dimensions, 0 if the array is empty.
    pub(super) fn ndim(&self) -> usize {
        usize::try_from(self.header().ndim).unwrap_or(0)
    }

    /// The type of the elements.
    pub(super) fn element_type(&self) -> pg_sys::Oid {
        self.header().elemtype
    }

    /// Whether there is a bitmap of nulls, though perhaps without a null in it.
    pub(super) fn has_null_bitmap(&self) -> bool {
        self.header().dataoffset != 0
    }

    /// Whether an element is NULL.
    pub(super) fn contains_nulls(&self) -> bool {
        // SAFETY: a plain array; the function only reads it.
        self.has_null_bitmap() && unsafe { pg_sys::array_contains_nulls(self.array.as_ptr()) }
    }

    /// The number of elements of an array of at most one dimension.
    pub(super) fn len(&self) -> usize {
        if self.ndim() == 0 {
            return 0;
        }
        // SAFETY: the length of the first dimension follows the header.
        let length = unsafe { self.array.as_ptr().add(1).cast::<i32>().read() };
        usize::try_from(length).unwrap_or(0)
    }

    /// Where the elements are, unless they are of another type than `T`, the array has more
    /// dimensions than one or contains nulls, or it is shorter than its header says.
    fn data<T: Element>(&self) -> Option<NonNull<T>> {
        let offset = match usize::try_from(self.header().dataoffset) {
            Ok(0) => data_offset(self.ndim()),
            Ok(offset) => offset,
            Err(_) => return None,
        };
        // SAFETY: a plain varlena.
        let size = unsafe { pgrx::varsize_4b(self.array.as_ptr().cast()) };
        let fits = self.len().checked_mul(size_of::<T>())?.checked_add(offset)? <= size;
        if !fits || self.ndim() > 1 || self.element_type() != T::OID || self.contains_nulls() {
            return None;
        }
        // SAFETY: within the array, as just checked.
        Some(unsafe { self.array.byte_add(offset).cast() })
    }

    /// The elements, on the conditions of [`SqlArray::data`].
    pub(super) fn elements<T: Element>(&self) -> Option<&[T]> {
        let data = self.data::<T>()?;
        // SAFETY: `data` found `len` elements of this type there; arrays are aligned to 8 in
        // memory of their own and to their elements in a row.
        Some(unsafe { slice::from_raw_parts(data.as_ptr(), self.len()) })
    }

    /// The elements, to be written, on the conditions of [`SqlArray::data`].
    ///
    /// # Safety
    /// The array belongs to the caller: it is an aggregate's own state.
    pub(super) unsafe fn elements_mut<T: Element>(&mut self) -> Option<&mut [T]> {
        let data = self.data::<T>()?;
        // SAFETY: as in `elements`; the caller answers for exclusive access.
        Some(unsafe { slice::from_raw_parts_mut(data.as_ptr(), self.len()) })
    }

    /// The elements of an array of numeric, as datums that point into it.
    pub(super) fn numeric_elements(&self) -> &[pg_sys::Datum] {
        let mut elements = std::ptr::null_mut();
        let mut count = 0;
        // SAFETY: length -1, by reference and int alignment describe numeric; without a place for
        // null flags the function raises an error at a null. The list it makes is palloc'd.
        unsafe {
            pg_sys::deconstruct_array(
                self.array.as_ptr(),
                pg_sys::NUMERICOID,
                -1,
                false,
                pg_sys::TYPALIGN_INT as _,
                &mut elements,
                std::ptr::null_mut(),
                &mut count,
            );
            slice::from_raw_parts(elements, usize::try_from(count).unwrap_or(0))
        }
    }
}

impl Drop for SqlArray {
    fn drop(&mut self) {
        if self.copied {
            // SAFETY: `from_datum` got this memory from detoasting and nothing else knows it.
            unsafe { pg_sys::pfree(self.array.as_ptr().cast()) };
        }
    }
}

/// Makes an array of one dimension in the current memory context and has `fill` write its
/// elements, which are zero before.
pub(super) fn new_array<T: Element, E>(
    len: usize,
    fill: impl FnOnce(&mut [T]) -> Result<(), E>,
) -> Result<RawDatum, E> {
    let size = DATA + len * size_of::<T>();
    // SAFETY: palloc0 returns `size` zeroed bytes aligned to 8, or raises an error if that is more
    // than 1 GB; so `len` fits an int4. Dimensions follow the header, elements follow them.
    unsafe {
        let array: *mut pg_sys::ArrayType = pg_sys::palloc0(size).cast();
        pgrx::set_varsize_4b(array.cast(), size as i32);
        (*array).ndim = 1;
        (*array).elemtype = T::OID;
        array.add(1).cast::<[i32; 2]>().write([len as i32, 1]);
        fill(slice::from_raw_parts_mut(array.byte_add(DATA).cast(), len))?;
        Ok(RawDatum(pg_sys::Datum::from(array)))
    }
}
