//! PostgreSQL's temporary files: counted by `temp_file_limit`, placed by `temp_tablespaces`, gone
//! with the transaction.

use pgrx::{pg_sys, PgSqlErrorCode};

/// A temporary file that is written to its end and then read from its start, and may then be
/// written on from its end.
pub struct TempFile {
    file: *mut pg_sys::BufFile,
}

impl TempFile {
    /// Creates an empty file.
    pub fn new() -> TempFile {
        // SAFETY: called in a transaction on the backend's own thread. The file's memory is taken
        // from the transaction's context so that it outlives the caller's.
        let file = unsafe {
            let caller = pg_sys::MemoryContextSwitchTo(pg_sys::CurTransactionContext);
            let file = pg_sys::BufFileCreateTemp(false);
            pg_sys::MemoryContextSwitchTo(caller);
            file
        };
        TempFile { file }
    }

    /// Appends bytes.
    pub fn write(&mut self, bytes: &[u8]) {
        // SAFETY: the file is open; BufFileWrite only reads from the pointer it is given.
        unsafe {
            pg_sys::BufFileWrite(self.file, bytes.as_ptr().cast_mut().cast(), bytes.len());
        }
    }

    /// Goes back to the start.
    pub fn rewind(&mut self) {
        // SAFETY: the file is open.
        let result = unsafe { pg_sys::BufFileSeek(self.file, 0, 0, libc::SEEK_SET) };
        if result != 0 {
            short();
        }
    }

    /// Fills `bytes` from the present place on.
    pub fn read(&mut self, bytes: &mut [u8]) {
        // SAFETY: the file is open and `bytes` has the length given.
        let read =
            unsafe { pg_sys::BufFileRead(self.file, bytes.as_mut_ptr().cast(), bytes.len()) };
        if read != bytes.len() {
            short();
        }
    }
}

fn short() {
    pgrx::ereport!(
        ERROR,
        PgSqlErrorCode::ERRCODE_IO_ERROR,
        "could not read back a temporary file of an index build"
    );
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // SAFETY: the file was opened by `new` and is closed once; at abort its resource
            // owner closes it.
            unsafe { pg_sys::BufFileClose(self.file) }
        }
    }
}
