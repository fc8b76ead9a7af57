//! Responses that nobody gets: read to their end, if that is near, so that their connection can be used again.

use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::timeout;
use weft_engine::head::ResponseBody;

use super::pump::Pump;
use super::sending::Answer;
use super::wire::Wire;
use crate::Shared;
use crate::discovery::snapshot::Endpoint;
use crate::upstream::Pool;

/// Bytes of a body that are cheaper to read than another connection is to open.
const NEAR: u64 = 64 << 10;
/// How long that may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// Reads what is left of a response. A request that was sent whole has brought it.
pub(super) async fn drain(shared: Arc<Shared>, endpoint: Arc<Endpoint>, mut answer: Answer) {
    let answered = shared.clock.now();
    let near = match answer.head.body {
        ResponseBody::None | ResponseBody::Chunked => true,
        ResponseBody::Known(bytes) => bytes <= NEAR,
        ResponseBody::UntilClose => false,
    };
    if !near || answer.head.close || answer.head.status == 101 {
        return;
    }
    let mut rest = Pump::new(Vec::new(), answer.head.body);
    let mut nobody = Wire::new(tokio::io::sink());
    let wire = &mut answer.conn.wire;
    let read = timeout(PATIENCE, poll_fn(|cx| rest.poll(cx, wire, &mut nobody))).await;
    if matches!(read, Ok(Ok(()))) && answer.conn.wire.held().is_empty() {
        Pool::put(&shared, &endpoint, answer.conn, answered);
    }
}
