//! A gRPC server: one unary call, one stream of answers.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::Stream;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tonic::metadata::{KeyAndValueRef, MetadataMap};
use tonic::{Request, Response, Status};

use super::echo::echo_server::{Echo, EchoServer};
use super::echo::{RepeatRequest, SayReply, SayRequest};
use super::{Server, serve};
use crate::exit::Failure;

/// Serves until it is told to stop.
pub async fn run(server: Server) -> Result<(), Failure> {
    let listener = serve::listen(server.listen).await?;
    let (stop, grace) = (serve::stop()?, server.grace());
    let service = EchoServer::new(Answerer(Arc::new(server)));
    serve::accept(listener, stop, grace, move |stream, mut stop| {
        let service = TowerToHyperService::new(service.clone());
        async move {
            let mut builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            builder.timer(TokioTimer::new());
            let connection = builder.serve_connection(TokioIo::new(stream), service);
            tokio::pin!(connection);
            tokio::select! {
                _ = connection.as_mut() => return,
                _ = stop.wait_for(|stopping| *stopping) => connection.as_mut().graceful_shutdown(),
            }
            let _ = connection.await;
        }
    })
    .await;
    Ok(())
}

#[derive(Clone)]
struct Answerer(Arc<Server>);

impl Answerer {
    fn reply(&self, message: String, metadata: &MetadataMap) -> SayReply {
        let metadata: HashMap<_, _> = metadata
            .iter()
            .filter_map(|entry| match entry {
                KeyAndValueRef::Ascii(key, value) => Some((key.to_string(), value.to_str().ok()?.to_owned())),
                KeyAndValueRef::Binary(..) => None,
            })
            .collect();
        SayReply { message, name: self.0.name.clone(), version: self.0.version_label.clone(), metadata }
    }
}

#[tonic::async_trait]
impl Echo for Answerer {
    type RepeatStream = Pin<Box<dyn Stream<Item = Result<SayReply, Status>> + Send>>;

    async fn say(&self, request: Request<SayRequest>) -> Result<Response<SayReply>, Status> {
        let wait = u64::from(request.get_ref().delay_ms) + self.0.slow;
        if wait > 0 {
            tokio::time::sleep(Duration::from_millis(wait)).await;
        }
        let (metadata, _, said) = request.into_parts();
        Ok(Response::new(self.reply(said.message, &metadata)))
    }

    async fn repeat(&self, request: Request<RepeatRequest>) -> Result<Response<Self::RepeatStream>, Status> {
        let (metadata, _, asked) = request.into_parts();
        let every = Duration::from_millis(asked.every_ms.into());
        let reply = self.reply(asked.message, &metadata);
        let answers = futures_util::stream::unfold((0, reply), move |(sent, reply)| async move {
            if sent == asked.count {
                return None;
            }
            if sent > 0 && !every.is_zero() {
                tokio::time::sleep(every).await;
            }
            Some((Ok(reply.clone()), (sent + 1, reply)))
        });
        Ok(Response::new(Box::pin(answers)))
    }
}
