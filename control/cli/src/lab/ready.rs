//! Waiting for conditions, and a plain HTTP question to ask them with.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use weft_capture::netns::NetNs;

use super::Error;
use crate::plain_http::{self, Answer};

/// Between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(10);

/// Looks again and again until `look` gives something; the text it gives otherwise is how things stand.
///
/// # Errors
/// [`Error::Waited`] with the last look's text after `limit`.
pub fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<T, String>) -> Result<T, Error> {
    let start = Instant::now();
    loop {
        match look() {
            Ok(found) => return Ok(found),
            Err(last) if start.elapsed() >= limit => {
                return Err(Error::Waited { what: what.to_owned(), waited: start.elapsed(), last });
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

/// [`plain_http::get`] from inside a namespace.
pub fn http_get(net: &NetNs, address: SocketAddr, path: &str) -> std::io::Result<Answer> {
    net.run(|| plain_http::get(address, path)).map_err(std::io::Error::other)?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_with_the_last_look() {
        let error = until::<()>("the moon", Duration::ZERO, || Err("it is new".to_owned())).unwrap_err();
        assert!(error.to_string().contains("for the moon") && error.to_string().contains("it is new"));
    }
}
