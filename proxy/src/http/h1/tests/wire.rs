//! What is read ahead.

use std::future::poll_fn;
use std::task::{Context, Poll, Waker};

use super::super::wire::{MOST, Wire};
use super::streams::{Given, Taken};

#[tokio::test]
async fn what_was_read_ahead_is_given_in_its_order() {
    let mut wire = Wire::new(Given::new(b"one two three", &[5]));
    while poll_fn(|cx| wire.poll_more(cx)).await.unwrap() > 0 {}
    assert_eq!(wire.split(4), b"one ");
    wire.consume(4);
    wire.hold(b"!");
    assert_eq!(wire.held(), b"three!");
    assert_eq!(wire.split(100), b"three!");
    assert!(wire.held().is_empty());
    wire.consume(1);
    assert!(wire.split(1).is_empty());
}

#[tokio::test]
async fn a_peer_that_sends_ahead_is_read_so_far_and_no_further() {
    let mut wire = Wire::new(Given::new(&vec![0; MOST * 4], &[MOST / 4]));
    let mut cx = Context::from_waker(Waker::noop());
    for _ in 0..100 {
        assert!(wire.poll_gone(&mut cx).is_pending());
    }
    assert_eq!(wire.held().len(), MOST);
    wire.consume(MOST);
    assert_eq!(wire.held().len(), 0);
    assert!(wire.poll_gone(&mut cx).is_pending());
}

#[tokio::test]
async fn a_peer_that_ends_is_noticed_behind_what_it_sent() {
    for broken in [false, true] {
        let mut wire = Wire::new(Given::new(b"GET", &[1]).breaking(broken));
        poll_fn(|cx| wire.poll_gone(cx)).await;
        assert_eq!(wire.held(), b"GET");
    }
}

#[tokio::test]
async fn who_takes_nothing_is_an_error() {
    let mut wire = Wire::new(Taken::new(0));
    let error = poll_fn(|cx| wire.poll_write(cx, b"a")).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::WriteZero);
    let mut wire = Wire::new(Taken::new(1));
    assert!(matches!(poll_fn(|cx| wire.poll_write(cx, b"ab")).await, Ok(1)));
    assert!(matches!(wire.poll_flush(&mut Context::from_waker(Waker::noop())), Poll::Ready(Ok(()))));
}
