//! Each thread's buffer for reading: bytes pass through it, so that an idle connection holds none.

use std::cell::RefCell;
use std::io;
use std::task::Poll;

/// Its size in bytes: what is moved at a time.
pub const SIZE: usize = 64 << 10;

thread_local! {
    static SCRATCH: RefCell<Vec<u8>> = RefCell::new(vec![0; SIZE]);
}

/// Lends the thread's buffer to `read`. It is free: nothing that reads into it polls another reader meanwhile. Should that ever be
/// broken, reading fails with an error; nothing is mixed up.
///
/// # Errors
/// Those of `read`.
pub fn with<T>(read: impl FnOnce(&mut [u8]) -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
    SCRATCH.with(|scratch| match scratch.try_borrow_mut() {
        Ok(mut memory) => read(&mut memory),
        Err(_) => Poll::Ready(Err(io::Error::other("two readers at a time on one thread"))),
    })
}
