//! Each thread's buffer for reading: bytes pass through it, so that an idle connection holds none.

use std::cell::RefCell;
use std::io;
use std::task::Poll;

/// What is moved at a time, in bytes.
pub const SIZE: usize = 64 << 10;
/// What is moved at a time of a stream that fills what it is given. More no longer fits the caches: 512 KiB were slower.
pub const BULK: usize = 256 << 10;

thread_local! {
    // Of zeroes that the kernel gives: what is not used is not resident.
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; BULK]);
}

/// Lends [`SIZE`] bytes of the thread's buffer to `read`. It is free: nothing that reads into it polls another reader meanwhile. Should that ever be
/// broken, reading fails with an error; nothing is mixed up.
///
/// # Errors
/// Those of `read`.
pub fn with<T>(read: impl FnOnce(&mut [u8]) -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
    with_size(SIZE, read)
}

/// As [`with`], and `size` bytes, [`BULK`] at most.
///
/// # Errors
/// Those of `read`.
pub fn with_size<T>(size: usize, read: impl FnOnce(&mut [u8]) -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
    SCRATCH.with(|scratch| match scratch.try_borrow_mut() {
        Ok(mut memory) => read(&mut memory[..size.min(BULK)]),
        Err(_) => Poll::Ready(Err(io::Error::other("two readers at a time on one thread"))),
    })
}
