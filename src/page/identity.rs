//! Random 128-bit names.

use bytemuck::{Pod, Zeroable};
use rand::rngs::OsRng;
use rand::TryRngCore;
use std::fmt;

/// A random name that is never given twice: of a segment's column, a blob, a log.
#[derive(Clone, Copy, Pod, Zeroable, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(C)]
pub struct Identity([u64; 2]);

impl Identity {
    /// The name of nothing.
    pub const NONE: Identity = Identity([0, 0]);

    /// A new name, from the operating system's randomness: a generator of the process's own would
    /// be repeated by every backend forked after its first use.
    pub fn random() -> Identity {
        let (Ok(low), Ok(high)) = (OsRng.try_next_u64(), OsRng.try_next_u64()) else {
            pgrx::ereport!(
                ERROR,
                pgrx::PgSqlErrorCode::ERRCODE_SYSTEM_ERROR,
                "could not get random bytes from the operating system"
            );
        };
        Identity([low | 1, high])
    }

    /// The name as a number.
    pub fn as_u128(self) -> u128 {
        u128::from(self.0[1]) << 64 | u128::from(self.0[0])
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.as_u128())
    }
}
