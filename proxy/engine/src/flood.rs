//! Frames of an HTTP/2 client that cost us something and bring nothing (RFC 9113 section 10.5): counted from the bytes as they come, below
//! whatever parses them.
//!
//! Invariants
//! - A client pays for frames that are no progress with frames that are: a request or a piece of a body earns several of them, and so does
//!   what is sent to it. What it did not earn it may send at a low rate. No client that means its requests comes near either bound.
//! - Nothing is parsed twice: nine bytes a frame are looked at, whatever its size.

use std::time::Duration;

/// The preface of RFC 9113 section 3.4, which stands before the first frame.
const PREFACE: u32 = 24;
const HEAD: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const END_STREAM: u8 = 1;

/// What a client has done too much of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flood {
    /// Requests that it gave up (rapid reset, CVE-2023-44487).
    Resets,
    /// PING, SETTINGS, PRIORITY, WINDOW_UPDATE, CONTINUATION, empty DATA, and frames of no known type.
    Control,
}

impl Flood {
    /// The bound's name, for people and metrics.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Resets => "h2_resets",
            Self::Control => "h2_control_frames",
        }
    }
}

// A bucket of tokens.
#[derive(Clone, Debug)]
struct Bucket {
    left: u32,
    capacity: u32,
    // Tokens a second.
    rate: u32,
    filled: Duration,
}

impl Bucket {
    const fn new(capacity: u32, rate: u32) -> Self {
        Self { left: capacity, capacity, rate, filled: Duration::ZERO }
    }

    fn earn(&mut self, tokens: u32) {
        self.left = self.left.saturating_add(tokens).min(self.capacity);
    }

    // Time is asked for only when the bucket seems empty.
    fn pay(&mut self, tokens: u32, now: impl Fn() -> Duration) -> bool {
        if self.left < tokens {
            let now = now();
            let passed = now.saturating_sub(self.filled).as_millis();
            let gained = passed.saturating_mul(u128::from(self.rate)) / 1000;
            if gained > 0 {
                self.filled = now;
                self.earn(u32::try_from(gained).unwrap_or(u32::MAX));
            }
        }
        let paid = self.left >= tokens;
        if paid {
            self.left -= tokens;
        }
        paid
    }
}

/// Bytes sent to a client that earn it one control frame: less than what a WINDOW_UPDATE is for, more than the answer to a PING.
const SENT_BYTES: u32 = 64;
/// Control frames that a request, or a piece of a body, earns.
const EARNED: u32 = 4;

/// The frames of one connection.
#[derive(Clone, Debug)]
pub struct Frames {
    head: [u8; HEAD],
    have: u8,
    // Bytes of the preface or of a payload that are still to come.
    skip: u32,
    begun: bool,
    progress: bool,
    sent: u32,
    resets: Bucket,
    control: Bucket,
}

impl Default for Frames {
    fn default() -> Self {
        Self {
            head: [0; HEAD],
            have: 0,
            skip: PREFACE,
            begun: false,
            progress: false,
            sent: 0,
            // Tokens are halves of a reset: a request earns one, a reset costs two. Who resets half of its requests may do so for ever;
            // who resets all of them has 2,000 in a burst, and 200 a second.
            resets: Bucket::new(2000, 200),
            control: Bucket::new(4000, 1000),
        }
    }
}

impl Frames {
    /// Looks at bytes that have come; `now` tells a time that only goes forward.
    ///
    /// # Errors
    /// There were too many frames of a kind: the connection is to be closed.
    pub fn came(&mut self, mut bytes: &[u8], now: impl Fn() -> Duration + Copy) -> Result<(), Flood> {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let skipped = bytes.len().min(self.skip as usize);
                self.skip -= u32::try_from(skipped).unwrap_or(self.skip);
                bytes = &bytes[skipped..];
                continue;
            }
            let have = usize::from(self.have);
            let taken = bytes.len().min(HEAD - have);
            self.head[have..have + taken].copy_from_slice(&bytes[..taken]);
            bytes = &bytes[taken..];
            self.have += u8::try_from(taken).unwrap_or_default();
            if usize::from(self.have) == HEAD {
                self.have = 0;
                self.count(now)?;
            }
        }
        Ok(())
    }

    // A frame's head is whole.
    fn count(&mut self, now: impl Fn() -> Duration + Copy) -> Result<(), Flood> {
        let [high, middle, low, kind, flags, ..] = self.head;
        self.skip = u32::from_be_bytes([0, high, middle, low]);
        self.begun = true;
        match kind {
            HEADERS => {
                self.progress = true;
                self.control.earn(EARNED);
                self.resets.earn(1);
            }
            DATA if self.skip > 0 || flags & END_STREAM != 0 => {
                self.progress = true;
                self.control.earn(EARNED);
            }
            RST_STREAM => return if self.resets.pay(2, now) { Ok(()) } else { Err(Flood::Resets) },
            _ => return if self.control.pay(1, now) { Ok(()) } else { Err(Flood::Control) },
        }
        Ok(())
    }

    /// So many bytes were sent to the client.
    pub fn sent(&mut self, bytes: usize) {
        let sent = self.sent.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        self.control.earn(sent / SENT_BYTES);
        self.sent = sent % SENT_BYTES;
    }

    /// Whether the preface and the head of a frame behind it have come.
    pub fn begun(&self) -> bool {
        self.begun
    }

    /// Whether a request or a piece of a body has come since this was asked last.
    pub fn take_progress(&mut self) -> bool {
        std::mem::take(&mut self.progress)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PING: u8 = 6;
    const SETTINGS: u8 = 4;
    const WINDOW_UPDATE: u8 = 8;

    fn frame(kind: u8, flags: u8, length: u8) -> Vec<u8> {
        let mut bytes = vec![0, 0, length, kind, flags, 0, 0, 0, 1];
        bytes.resize(HEAD + usize::from(length), 0xff);
        bytes
    }

    fn begun() -> Frames {
        let mut frames = Frames::default();
        frames.came(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", || Duration::ZERO).unwrap();
        assert!(!frames.begun());
        frames
    }

    // How many rounds of these frames pass at once, 100,000 at most.
    fn rounds(round: &[Vec<u8>]) -> usize {
        let mut frames = begun();
        let bytes = round.concat();
        (0..100_000).find(|_| frames.came(&bytes, || Duration::ZERO).is_err()).unwrap_or(usize::MAX)
    }

    #[test]
    fn floods_end_and_work_does_not() {
        let (request, reset) = (frame(HEADERS, 5, 30), frame(RST_STREAM, 0, 4));
        let (ping, window) = (frame(PING, 0, 8), frame(WINDOW_UPDATE, 0, 4));
        let piece = frame(DATA, 0, 20);
        for (name, round, passes) in [
            ("pings", vec![ping.clone()], 4000),
            ("settings", vec![frame(SETTINGS, 0, 0)], 4000),
            ("empty pieces", vec![frame(DATA, 0, 0)], 4000),
            ("continuations", vec![frame(9, 0, 0)], 4000),
            ("unknown frames", vec![frame(0xbe, 0, 3)], 4000),
            ("requests that are all given up", vec![request.clone(), reset.clone()], 2000),
            (
                "a quarter is given up",
                vec![request.clone(), request.clone(), request.clone(), request.clone(), reset.clone()],
                usize::MAX,
            ),
            ("half is given up", vec![request.clone(), request.clone(), reset], usize::MAX),
            (
                "requests with a ping and two updates each",
                vec![request, ping, window.clone(), window.clone()],
                usize::MAX,
            ),
            ("pieces with two updates each", vec![piece, window.clone(), window], usize::MAX),
            ("ends of bodies", vec![frame(DATA, END_STREAM, 0)], usize::MAX),
        ] {
            let got = rounds(&round);
            assert!(got == passes || passes < usize::MAX && got.abs_diff(passes) <= 1, "{name}: {got}");
        }
    }

    #[test]
    fn what_is_sent_to_a_client_earns_it_updates_but_not_pings() {
        let passes = |kind, answer: usize| {
            let (mut frames, bytes) = (begun(), frame(kind, 0, 8));
            (0..100_000).position(|_| {
                frames.sent(answer);
                frames.came(&bytes, || Duration::ZERO).is_err()
            })
        };
        assert_eq!(passes(WINDOW_UPDATE, 64), None);
        assert!(passes(PING, 17).unwrap() < 6000);
    }

    #[test]
    fn a_low_rate_costs_nothing() {
        let (mut frames, bytes) = (begun(), frame(PING, 0, 8));
        for millis in 0..20_000 {
            frames.came(&bytes, || Duration::from_millis(millis)).unwrap();
        }
    }

    #[test]
    fn pieces_of_any_size_are_counted_alike() {
        let bytes = [frame(SETTINGS, 0, 6), frame(HEADERS, 4, 200), frame(DATA, 1, 100)].concat();
        for size in 1..bytes.len() {
            let mut frames = begun();
            for piece in bytes.chunks(size) {
                frames.came(piece, || Duration::ZERO).unwrap();
            }
            assert!(frames.begun() && frames.skip == 0 && frames.have == 0, "{size}");
            assert_eq!((frames.take_progress(), frames.take_progress()), (true, false));
            assert_eq!(frames.control.left, 4000);
        }
    }
}
