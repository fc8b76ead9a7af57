//! gRPC over one HTTP/2 connection.

use std::net::SocketAddr;
use std::sync::Arc;

use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use super::tally::Fate;
use super::{Answer, Args};
use crate::app::echo::echo_client::EchoClient;
use crate::app::echo::{RepeatRequest, SayReply, SayRequest};

/// Every so many calls one is a stream of answers.
const STREAM_EVERY: u64 = 10;
/// Answers in a stream.
const ANSWERS: u32 = 5;

/// One connection's worth of calls.
pub struct Speaker {
    args: Arc<Args>,
    to: SocketAddr,
    client: Option<EchoClient<Channel>>,
    calls: u64,
}

impl Speaker {
    /// Connects at the first call.
    pub fn new(args: Arc<Args>, to: SocketAddr) -> Self {
        Self { args, to, client: None, calls: 0 }
    }

    /// Makes one call; a stream is read to its end.
    pub async fn call(&mut self) -> Result<Answer, String> {
        let mut client = match self.client.take() {
            Some(client) => client,
            None => self.connect().await?,
        };
        self.calls += 1;
        let reply = if self.calls.is_multiple_of(STREAM_EVERY) {
            let asked = RepeatRequest { message: "hello".to_owned(), count: ANSWERS, every_ms: 0 };
            stream(client.repeat(self.request(asked)).await).await
        } else {
            let asked = SayRequest { message: "hello".to_owned(), delay_ms: 0 };
            client.say(self.request(asked)).await.map(tonic::Response::into_inner)
        };
        // tonic's channel connects anew by itself.
        self.client = Some(client);
        match reply {
            Ok(reply) => {
                let seen = self.args.seen.as_ref().and_then(|name| reply.metadata.get(name).cloned());
                Ok(Answer { fate: Fate::Ok, version: Some(reply.version), seen })
            }
            Err(status) => refused(&status),
        }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let mut headers = std::mem::take(request.metadata_mut()).into_headers();
        headers.extend(self.args.header.iter().cloned());
        *request.metadata_mut() = tonic::metadata::MetadataMap::from_headers(headers);
        request
    }

    async fn connect(&self) -> Result<EchoClient<Channel>, String> {
        let to = self.to;
        let endpoint = Endpoint::from_shared(format!("http://{}", self.args.to)).map_err(|error| error.to_string())?;
        let connector = tower::service_fn(move |_: http::Uri| async move {
            let stream = TcpStream::connect(to).await?;
            stream.set_nodelay(true)?;
            Ok::<_, std::io::Error>(TokioIo::new(stream))
        });
        let channel = endpoint.connect_with_connector(connector).await.map_err(|error| format!("connect: {error}"))?;
        Ok(EchoClient::new(channel))
    }
}

async fn stream(started: Result<tonic::Response<tonic::Streaming<SayReply>>, Status>) -> Result<SayReply, Status> {
    let mut answers = started?.into_inner();
    let (mut last, mut count) = (None, 0);
    while let Some(reply) = answers.message().await? {
        count += 1;
        last = Some(reply);
    }
    match last {
        Some(reply) if count == ANSWERS => Ok(reply),
        _ => Err(Status::data_loss(format!("the stream ended after {count} of {ANSWERS} answers"))),
    }
}

fn refused(status: &Status) -> Result<Answer, String> {
    let why = status.metadata().get("x-weft-reason").and_then(|why| why.to_str().ok());
    let why = format!("{:?} {}", status.code(), why.unwrap_or_else(|| status.message()));
    let fate = match status.code() {
        Code::PermissionDenied => Fate::Denied,
        Code::ResourceExhausted => Fate::Limited,
        _ => return Err(why),
    };
    Ok(Answer { fate, version: Some(why), seen: None })
}
