//! What only a server can show: datums as it stores them, its memory, its own text of numbers.

use std::ffi::CString;

use pgrx::prelude::*;
use pgrx::{pg_sys, PgMemoryContexts};

use super::datum::{Detoasted, OwnedVector};
use super::{VectorError, MAX_DIM};

#[pg_schema]
mod tests {
    use super::*;

    /// Runs a query of one row and column and hands its datum, as the row holds it, to `f`.
    fn with_datum<T>(query: &str, f: impl FnOnce(pg_sys::Datum) -> T) -> T {
        let query = CString::new(query).expect("a query without a zero byte");
        // SAFETY: plain use of SPI; the row lives until SPI_finish.
        unsafe {
            assert_eq!(pg_sys::SPI_connect(), pg_sys::SPI_OK_CONNECT as i32);
            assert_eq!(pg_sys::SPI_execute(query.as_ptr(), false, 0), pg_sys::SPI_OK_SELECT as i32);
            let rows = pg_sys::SPI_processed;
            assert_eq!(rows, 1);
            let table = &*pg_sys::SPI_tuptable;
            let mut null = false;
            let datum = pg_sys::SPI_getbinval(*table.vals, table.tupdesc, 1, &mut null);
            assert!(!null);
            let result = f(datum);
            pg_sys::SPI_finish();
            result
        }
    }

    /// Components that repeat, so that they can be compressed.
    fn expected(dim: usize) -> Vec<f32> {
        (1..=dim).map(|i| (i / 20) as f32 + 0.25).collect()
    }

    /// A table `t` of such vectors, by length, with the storage named.
    fn table(storage: &str) {
        Spi::run(&format!(
            "CREATE TABLE t (dim int, v vector);
             ALTER TABLE t ALTER COLUMN v SET STORAGE {storage};
             INSERT INTO t SELECT dim, (SELECT array_agg(i / 20 + 0.25 ORDER BY i)
                 FROM generate_series(1, dim) i)::vector
             FROM unnest(ARRAY[1, 2, 29, 30, 31, 100, 500, 2000, 16000]) dim"
        ))
        .expect("a table");
    }

    #[pg_test]
    fn every_kind_of_datum_is_read() {
        for storage in ["EXTERNAL", "EXTENDED", "MAIN"] {
            table(storage);
            let mut kinds = [0; 4];
            for dim in [1, 2, 29, 30, 31, 100, 500, 2000, 16000] {
                with_datum(&format!("SELECT v FROM t WHERE dim = {dim}"), |datum| {
                    // SAFETY: the datum of a row that is still there.
                    unsafe {
                        let varlena = datum.cast_mut_ptr();
                        let kind = if pgrx::varatt_is_1b_e(varlena) {
                            0
                        } else if pgrx::varatt_is_1b(varlena) {
                            1
                        } else if pgrx::varatt_is_4b_u(varlena) {
                            2
                        } else {
                            3
                        };
                        kinds[kind] += 1;
                        let vector = Detoasted::from_datum(datum);
                        assert_eq!(vector.vector().as_slice(), expected(dim), "{storage} {dim}");
                        assert_eq!(vector.vector().dim(), dim);
                    }
                });
            }
            assert_eq!(kinds[1], 4, "up to 30 components have a one-byte header");
            assert!(kinds[2] > 0, "some value is plain with {storage}");
            assert_eq!(kinds[0] > 0, storage != "MAIN", "{kinds:?} with {storage}");
            assert_eq!(kinds[3] > 0, storage != "EXTERNAL", "{kinds:?} with {storage}");
            Spi::run("DROP TABLE t").expect("dropped");
        }
    }

    #[pg_test]
    fn what_is_made_is_read_back() {
        for dim in [1, 30, 31, MAX_DIM] {
            let vector = OwnedVector::from_slice(&expected(dim)).expect("a vector");
            // SAFETY: a vector in the current memory context.
            let read = unsafe { Detoasted::from_datum(vector.into_datum()) };
            assert_eq!(&*read, expected(dim));
        }
        assert_eq!(OwnedVector::zeroed(0).err(), Some(VectorError::NoDimensions));
        assert_eq!(OwnedVector::zeroed(MAX_DIM + 1).err(), Some(VectorError::TooManyDimensions));
    }

    /// Bytes the context of memory that is current has from the system.
    fn allocated() -> usize {
        // SAFETY: the current context is a valid one.
        unsafe { pg_sys::MemoryContextMemAllocated(pg_sys::CurrentMemoryContext, true) }
    }

    #[pg_test]
    fn copies_are_given_back() {
        table("EXTERNAL");
        for dim in [30, 16000] {
            with_datum(&format!("SELECT v FROM t WHERE dim = {dim}"), |datum| {
                // SAFETY: the new context is current for this closure alone; the datum is that of
                // a row that is still there.
                unsafe {
                    PgMemoryContexts::new("copies").switch_to(|_| {
                        drop(Detoasted::from_datum(datum));
                        let before = allocated();
                        for _ in 0..1000 {
                            let vector = Detoasted::from_datum(datum);
                            assert_eq!(vector.last(), expected(dim).last());
                        }
                        assert_eq!(allocated(), before, "after 1000 vectors of {dim} components");
                    });
                }
            });
        }
    }

    #[pg_test]
    fn text_of_any_number_is_that_of_float4() {
        // Odd, so that its multiples pass through all bit patterns.
        let step = 0x9e37_79b9_u32 | 1;
        let numbers: Vec<f32> = (0..400_000_u32)
            .map(|i| f32::from_bits(i.wrapping_mul(step)))
            .filter(|x| x.is_finite())
            .take(MAX_DIM * 20)
            .collect();
        assert_eq!(numbers.len(), MAX_DIM * 20);
        for block in numbers.chunks(MAX_DIM) {
            let (text, floats): (Option<String>, Option<String>) = Spi::get_two_with_args(
                "SELECT $1::vector::text, '[' || array_to_string($1, ',') || ']'",
                &[block.to_vec().into()],
            )
            .expect("two texts");
            assert!(text.is_some());
            assert_eq!(text, floats);
            let back: Option<Vec<f32>> =
                Spi::get_one_with_args("SELECT $1::text::vector::real[]", &[text.into()])
                    .expect("an array");
            let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            assert_eq!(back.map(|v| bits(&v)), Some(bits(block)));
        }
    }
}
