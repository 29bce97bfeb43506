//! Checks an operator class.

use pgrx::{pg_guard, pg_sys, PgSqlErrorCode};

/// Whether the operator class has its ordering operator and its distance function.
#[pg_guard]
pub unsafe extern "C-unwind" fn amvalidate(class: pg_sys::Oid) -> bool {
    // SAFETY: the syscache entry is released before the function returns, and its struct is only
    // read while it is held.
    unsafe {
        let tuple = pg_sys::SearchSysCache1(
            pg_sys::SysCacheIdentifier::CLAOID as i32,
            pg_sys::Datum::from(class),
        );
        if tuple.is_null() {
            pgrx::ereport!(
                ERROR,
                PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
                format!("cache lookup failed for operator class {}", class.to_u32())
            );
        }
        let form = &*pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_opclass>();
        let (family, input) = (form.opcfamily, form.opcintype);
        let name =
            std::ffi::CStr::from_ptr(form.opcname.data.as_ptr()).to_string_lossy().into_owned();
        pg_sys::ReleaseSysCache(tuple);

        let operator = pg_sys::get_opfamily_member(family, input, input, 1);
        let function = pg_sys::get_opfamily_proc(family, input, input, 1);
        let mut valid = true;
        let checks = [
            (operator != pg_sys::InvalidOid, "operator 1"),
            (function != pg_sys::InvalidOid, "support function 1"),
        ];
        for (found, what) in checks {
            if !found {
                valid = false;
                pgrx::ereport!(
                    INFO,
                    PgSqlErrorCode::ERRCODE_INVALID_OBJECT_DEFINITION,
                    format!("operator class \"{name}\" of access method drift lacks {what}")
                );
            }
        }
        valid
    }
}
