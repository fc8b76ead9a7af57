//! Messages under way: whatever the pieces, the receiver gets the same message.

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use proptest::prelude::*;
use tokio::io::AsyncWrite;
use weft_engine::framing::{Body, BodyLength};
use weft_engine::head::{ResponseBody, read_trailers};

use super::super::pump::{Fault, Pump, REPLAY_BYTES};
use super::super::wire::Wire;
use super::streams::{Given, Taken};
use crate::http::h1::wire::READ;

const HEAD: &[u8] = b"HEAD\r\n\r\n";
const CHUNKS: &str = "4;x=\"y\"\r\n\r\n\r\n\r\n0A \r\n0123456789\r\n000\r\nX-Sum: 5\r\nContent-Length: 7\r\nx_real_ip: 1\r\nGrpc-Status: 0\r\n\r\n";
const CONTENT: &[u8] = b"\r\n\r\n0123456789";
const TRAILERS: &[u8] = b"X-Sum: 5\r\nGrpc-Status: 0\r\n\r\n";

// Runs it to its end.
fn run(pump: &mut Pump, from: &mut Wire<Given>, to: &mut Wire<Taken>) -> Result<(), Fault> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(poll_fn(|cx| pump.poll(cx, from, to)))
}

// What comes of `bytes`: the bytes that arrive, and how it ended. Behind a message nothing is taken for it.
fn moved(length: ResponseBody, decoded: bool, bytes: &[u8], steps: (&[usize], usize)) -> (Vec<u8>, Result<(), Fault>) {
    let pump = Pump::new(HEAD.to_vec(), length);
    let mut pump = if decoded { pump.decoded() } else { pump };
    let (mut from, mut to) = (Wire::new(Given::new(bytes, steps.0)), Wire::new(Taken::new(steps.1)));
    let ended = run(&mut pump, &mut from, &mut to);
    assert_eq!(pump.is_done(), ended.is_ok());
    assert!(!pump.is_done() || pump.is_read());
    let mut got = to.into_parts().0.bytes;
    assert_eq!(got[..got.len().min(HEAD.len())], HEAD[..got.len().min(HEAD.len())]);
    got.drain(..HEAD.len().min(got.len()));
    (got, ended)
}

// A chunked body as a receiver reads it: its content, and its trailer section.
fn read(bytes: &[u8]) -> (Vec<u8>, &[u8]) {
    let (mut body, mut content) = (Body::new(BodyLength::Chunked), Vec::new());
    let at = body.decode(bytes, &mut content).unwrap();
    assert!(body.at_trailers(), "{}", bytes.escape_ascii());
    let section = &bytes[at..];
    assert_eq!(read_trailers(section, 1 << 20, &mut Vec::new()), Ok(Some(section.len())));
    (content, section)
}

const STEPS: [(&[usize], usize); 4] = [(&[1], 1), (&[1], usize::MAX), (&[usize::MAX], 1), (&[3, 1, 50], 7)];

#[test]
fn a_body_of_known_length_passes_and_nothing_behind_it() {
    for steps in STEPS {
        let mut pump = Pump::new(HEAD.to_vec(), ResponseBody::Known(4));
        let (mut from, mut to) = (Wire::new(Given::new(b"bodyGET", steps.0)), Wire::new(Taken::new(steps.1)));
        run(&mut pump, &mut from, &mut to).unwrap();
        assert_eq!(to.get_ref().bytes, b"HEAD\r\n\r\nbody");
        assert!(b"GET".starts_with(from.held()), "{}", from.held().escape_ascii());
        // Polled again it moves nothing.
        run(&mut pump, &mut from, &mut to).unwrap();
        assert_eq!(to.get_ref().bytes.len(), 12);
    }
}

#[test]
fn chunks_are_framed_anew_and_keep_their_trailers() {
    for steps in STEPS {
        let (got, ended) = moved(ResponseBody::Chunked, false, format!("{CHUNKS}GET").as_bytes(), steps);
        ended.unwrap();
        assert_eq!(read(&got), (CONTENT.to_vec(), TRAILERS), "{}", got.escape_ascii());
        assert!(!got.contains(&b';'));
    }
}

#[test]
fn who_knows_no_chunks_gets_their_content() {
    for steps in STEPS {
        let (got, ended) = moved(ResponseBody::Chunked, true, CHUNKS.as_bytes(), steps);
        ended.unwrap();
        assert_eq!(got, CONTENT);
    }
}

#[test]
fn until_the_end_is_until_the_end() {
    for steps in STEPS {
        let (got, ended) = moved(ResponseBody::UntilClose, false, b"all of it", steps);
        ended.unwrap();
        assert_eq!(got, b"all of it");
    }
}

#[test]
fn what_breaks_off_is_not_ended() {
    let short = [
        (ResponseBody::Known(10), "123456789"),
        (ResponseBody::Chunked, "a\r\n123456789"),
        (ResponseBody::Chunked, "4\r\nbody\r\n0\r\n"),
        (ResponseBody::Chunked, "4\r\nbody\r\n0\r\nX: y\r\n"),
    ];
    for (length, bytes) in short {
        for steps in STEPS {
            let (got, ended) = moved(length, false, bytes.as_bytes(), steps);
            assert!(matches!(ended, Err(Fault::From)), "{ended:?}");
            assert!(!got.ends_with(b"0\r\n\r\n"));
        }
    }
    let mut pump = Pump::new(HEAD.to_vec(), ResponseBody::UntilClose);
    let mut from = Wire::new(Given::new(b"some", &[2]).breaking(true));
    let ended = run(&mut pump, &mut from, &mut Wire::new(Taken::new(1)));
    assert!(matches!(ended, Err(Fault::From)), "an error is no end");
}

#[test]
fn what_is_framed_wrongly_never_becomes_right() {
    for bytes in ["4\r\nbodyx0\r\n\r\n", "x\r\n0\r\n\r\n", "0\r\nX y\r\n\r\n0\r\n\r\n", "1\r\na\r\n1\nb\r\n0\r\n\r\n"] {
        for steps in STEPS {
            let mut pump = Pump::new(HEAD.to_vec(), ResponseBody::Chunked);
            let (mut from, mut to) = (Wire::new(Given::new(bytes.as_bytes(), steps.0)), Wire::new(Taken::new(steps.1)));
            for _ in 0..3 {
                assert!(matches!(run(&mut pump, &mut from, &mut to), Err(Fault::Malformed)), "{bytes:?}");
            }
            assert!(!pump.is_read() && !to.get_ref().bytes.ends_with(b"0\r\n\r\n"));
        }
    }
}

#[test]
fn trailers_are_bounded() {
    let many = format!("0\r\nX: {}\r\n\r\n", "y".repeat(17 << 10));
    let (_, ended) = moved(ResponseBody::Chunked, false, many.as_bytes(), (&[4096], usize::MAX));
    assert!(matches!(ended, Err(Fault::Malformed)), "{ended:?}");
}

#[test]
fn what_is_kept_is_sent_again_whole() {
    let body = "x".repeat(REPLAY_BYTES / 2);
    let mut pump = Pump::new(HEAD.to_vec(), ResponseBody::Known(body.len() as u64)).kept();
    let mut from = Wire::new(Given::new(body.as_bytes(), &[1000]));
    for most in [0, 1, 5, 5000, 30_000] {
        assert!(pump.rewind() && pump.is_unsent());
        let broken = run(&mut pump, &mut from, &mut Wire::new(Taken::until(most)));
        assert!(matches!(broken, Err(Fault::To(_))));
        assert_eq!(pump.is_unsent(), most == 0);
    }
    for _ in 0..2 {
        assert!(pump.rewind() && !pump.is_done());
        let mut to = Wire::new(Taken::new(usize::MAX));
        run(&mut pump, &mut from, &mut to).unwrap();
        assert_eq!(to.get_ref().bytes, [HEAD, body.as_bytes()].concat());
    }
    pump.commit();
    assert!(!pump.is_whole() && !pump.rewind(), "it is gone, and nobody is told that it was not sent");
    assert!(!pump.is_unsent() && pump.is_done());
}

#[test]
fn what_is_too_large_to_be_kept_is_sent_once() {
    let body = "x".repeat(REPLAY_BYTES * 2);
    for first in [1, REPLAY_BYTES / 2, REPLAY_BYTES + 10_000] {
        let mut pump = Pump::new(HEAD.to_vec(), ResponseBody::Known(body.len() as u64)).kept();
        let mut from = Wire::new(Given::new(body.as_bytes(), &[60_000]));
        // As far as it is kept it can be sent again.
        let broken = run(&mut pump, &mut from, &mut Wire::new(Taken::until(first)));
        assert!(matches!(broken, Err(Fault::To(_))));
        let mut to = Wire::new(Taken::new(usize::MAX));
        if !pump.rewind() {
            assert!(first > HEAD.len(), "what is all there is not lost");
            assert!(!pump.is_unsent(), "{first}");
            continue;
        }
        run(&mut pump, &mut from, &mut to).unwrap();
        assert_eq!(to.get_ref().bytes.len(), HEAD.len() + body.len());
        assert!(!pump.rewind() && !pump.is_unsent());
    }
}

#[test]
fn a_refused_request_is_read_over_from_where_it_is() {
    // Half of a chunk was taken, and what follows looks like the end of a body.
    let mut pump = Pump::new(HEAD.to_vec(), ResponseBody::Chunked).kept();
    let mut from = Wire::new(Given::new(b"8\r\nabc0\r\n\r\n\r\n0\r\n\r\nGET", &[6, 100]));
    let broken = run(&mut pump, &mut from, &mut Wire::new(Taken::until(0)));
    assert!(matches!(broken, Err(Fault::To(_))));
    run(&mut pump, &mut from, &mut Wire::new(Taken::new(usize::MAX))).unwrap();
    assert_eq!(from.held(), b"GET");
}

proptest! {
    #[test]
    fn whatever_the_pieces_the_message_is_the_same(
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..6),
        trailers in prop::collection::vec(("[a-zA-Z-]{1,12}", "[ -~]{0,10}"), 0..4),
        given in prop::collection::vec(1usize..50, 1..5),
        taken in 1usize..60,
    ) {
        let content = chunks.concat();
        let mut bytes = Vec::new();
        for chunk in &chunks {
            bytes.extend_from_slice(format!("{:X}\r\n", chunk.len()).as_bytes());
            bytes.extend_from_slice(chunk);
            bytes.extend_from_slice(b"\r\n");
        }
        bytes.extend_from_slice(b"0\r\n");
        for (name, value) in &trailers {
            bytes.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
        }
        bytes.extend_from_slice(b"\r\n");
        let steps = (&given[..], taken);
        let (again, ended) = moved(ResponseBody::Chunked, false, &bytes, steps);
        prop_assert!(ended.is_ok());
        let (at_once, _) = moved(ResponseBody::Chunked, false, &bytes, (&[usize::MAX], usize::MAX));
        prop_assert_eq!(&read(&again).0, &content);
        prop_assert_eq!(read(&again), read(&at_once));
        let (decoded, ended) = moved(ResponseBody::Chunked, true, &bytes, steps);
        prop_assert!(ended.is_ok());
        prop_assert_eq!(&decoded, &content);
        let (known, ended) = moved(ResponseBody::Known(content.len() as u64), false, &content, steps);
        prop_assert!(ended.is_ok());
        prop_assert_eq!(known, content);
    }
}

/// Takes all it is given, as TLS does, and gets rid of nothing.
struct Clogged(usize);

impl AsyncWrite for Clogged {
    fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.0 += buf.len();
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[test]
fn a_receiver_that_holds_back_is_given_no_more() {
    let mut pump = Pump::new(HEAD.to_vec(), ResponseBody::UntilClose);
    let body = vec![b'x'; READ * 4];
    let (mut from, mut to) = (Wire::new(Given::new(&body, &[READ * 2])), Wire::new(Clogged(0)));
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..10 {
        assert!(pump.poll(&mut cx, &mut from, &mut to).is_pending());
    }
    // Not even the first of the body, as the head has not left.
    assert_eq!((to.get_ref().0, from.held().len()), (HEAD.len(), 0));
}
