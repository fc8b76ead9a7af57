//! What this replica tells those that follow it.
//!
//! Invariants
//! - Nobody but control is answered: its own certificate is asked for, of our own trust domain.
//! - What is told of a proxy is one look at its streams: connected and answers belong together.
//! - A follower that reads slowly costs the names of what it has not been told; one that misses something is told all anew.
//! - To which resources proxies stand otherwise than before is told while it is asked, once in [`GATHER`] at most, [`MOST_TOLD`] names at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::broadcast::Receiver;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};
use weft_api::wire::replicas as wire;
use weft_api::wire::replicas::ask::About;
use weft_api::wire::replicas::replicas_server::SERVICE_NAME;
use weft_certs::tls::control_identity;

use super::Moved;
use super::question::{Open, Stands};
use crate::auth::{self, Proved};
use crate::distribute::Hub;
use crate::model::Name;
use crate::rotation::Authority;
use crate::server::admin::Admin;
use crate::status::inbox::{Ear, MOST_TOLD};

/// Of one message.
const NAMES: usize = 1024;
/// Pictures of objects in one answer.
pub(super) const OBJECTS: usize = 256;
/// A rush of acknowledgements is told at once.
const GATHER: Duration = Duration::from_millis(100);
/// Messages made and not taken yet.
const IN_HAND: usize = 2;
/// Of what a replica says of itself.
const LONGEST_TEXT: usize = 128;

type Told = Result<wire::Told, Status>;

/// Whether a request is for this service.
pub(crate) fn is_for<B>(request: &http::Request<B>) -> bool {
    let path = request.uri().path().strip_prefix('/');
    path.and_then(|path| path.strip_prefix(SERVICE_NAME)).is_some_and(|method| method.starts_with('/'))
}

/// The gRPC service.
#[derive(Debug)]
pub struct Service {
    /// The store.
    pub hub: Arc<Hub>,
    /// Whose certificates are control's.
    pub ca: Authority,
    /// What we call ourselves.
    pub name: String,
    /// Our pages.
    pub pages: Admin,
    /// When we cease to serve.
    pub stopping: CancellationToken,
}

impl Service {
    fn must_be_control<T>(&self, request: &Request<T>) -> Result<(Proved, SocketAddr), Status> {
        let addr = auth::peer(request)?.addr;
        let refuse = |status: Status| {
            self.hub.audit("replica", "", addr, &status);
            status
        };
        let proved = auth::proved(request).cloned().map_err(refuse)?;
        let called = self.ca.borrow().called();
        let ours = called.every().any(|name| control_identity(name).is_ok_and(|control| control == proved.identity));
        if !ours || proved.further {
            let who = &proved.identity;
            return Err(refuse(Status::permission_denied(format!(
                "{who} is no control: only its replicas may ask this"
            ))));
        }
        Ok((proved, addr))
    }
}

#[tonic::async_trait]
impl wire::replicas_server::Replicas for Service {
    type FollowStream = ReceiverStream<Told>;

    async fn follow(&self, request: Request<Streaming<wire::Ask>>) -> Result<Response<Self::FollowStream>, Status> {
        let (proved, addr) = self.must_be_control(&request)?;
        let (out, told) = mpsc::channel(IN_HAND);
        let (hub, name, stopping) = (Arc::clone(&self.hub), self.name.clone(), self.stopping.clone());
        let mut incoming = request.into_inner();
        tokio::spawn(async move {
            let served = tokio::select! {
                served = serve(&hub, name, addr, &mut incoming, &out) => served,
                () = auth::ends(&proved) => Err(auth::expired()),
                () = stopping.cancelled() => Err(Status::unavailable("control is stopping")),
            };
            if let Err(status) = served {
                let _ = out.try_send(Err(status));
            }
        });
        Ok(Response::new(ReceiverStream::new(told)))
    }

    async fn look(&self, request: Request<wire::LookRequest>) -> Result<Response<wire::Page>, Status> {
        self.must_be_control(&request)?;
        let page = request.into_inner().page;
        let (path, query) = page.split_once('?').map_or((&*page, None), |(path, query)| (path, Some(query)));
        let (status, body) = self.pages.here(path, query);
        Ok(Response::new(wire::Page { status: status.as_u16().into(), body: body.into() }))
    }

    async fn objects(&self, request: Request<wire::ObjectsRequest>) -> Result<Response<wire::Page>, Status> {
        self.must_be_control(&request)?;
        let names = request.into_inner().names;
        if names.len() > OBJECTS {
            return Err(Status::invalid_argument(format!("{} objects; ask for {OBJECTS} at a time", names.len())));
        }
        let hub = Arc::clone(&self.hub);
        let pictures = move || {
            let objects = names.iter().filter_map(|name| name.split_once('/'));
            serde_json::to_vec(&objects.filter_map(|(kind, name)| hub.object(kind, name)).collect::<Vec<_>>())
        };
        match tokio::task::spawn_blocking(pictures).await {
            Ok(Ok(body)) => Ok(Response::new(wire::Page { status: 200, body: body.into() })),
            Ok(Err(error)) => Err(Status::internal(error.to_string())),
            Err(error) => Err(Status::internal(error.to_string())),
        }
    }
}

async fn serve(
    hub: &Arc<Hub>,
    name: String,
    addr: SocketAddr,
    incoming: &mut Streaming<wire::Ask>,
    out: &mpsc::Sender<Told>,
) -> Result<(), Status> {
    let Some(hello) = incoming.message().await? else { return Ok(()) };
    let (id, theirs) = (hello.id, hello.name);
    let port = u16::try_from(hello.port).ok().filter(|port| *port != 0);
    let back = port.map(|port| SocketAddr::new(addr.ip(), port));
    let Some(back) = back.filter(|_| !id.is_empty() && id.len() <= LONGEST_TEXT && theirs.len() <= LONGEST_TEXT) else {
        return Err(Status::invalid_argument("the first message says who asks, and the port that it serves at"));
    };
    tracing::info!(replica = theirs, %addr, "another control follows this one");
    let following = hub.replicas.followed(id, theirs, back);
    let mut teller = Teller::new(hub, name);
    let ended = teller.run(incoming, out).await;
    drop(following);
    ended
}

/// One follower.
struct Teller<'h> {
    hub: &'h Arc<Hub>,
    moved: Receiver<Moved>,
    /// Only while there are questions.
    progress: Option<Receiver<Name>>,
    questions: BTreeMap<u64, Open>,
    /// Only while it is asked to which resources proxies stand otherwise: the number of that question.
    objects: Option<(u64, Arc<Ear>)>,
    /// Something was heard of that: more may come until then.
    gathers: Option<Instant>,
    /// To be told, in this order, as soon as the follower takes it.
    next: wire::Told,
    names: BTreeSet<Name>,
    answered: Vec<u64>,
}

impl<'h> Teller<'h> {
    fn new(hub: &'h Arc<Hub>, name: String) -> Self {
        // Before anything is looked at.
        let moved = hub.moved.subscribe();
        let next = wire::Told { id: hub.replicas.id.clone(), name, ..wire::Told::default() };
        let (names, answered, questions) = (BTreeSet::new(), Vec::new(), BTreeMap::new());
        let mut teller =
            Self { hub, moved, progress: None, questions, objects: None, gathers: None, next, names, answered };
        teller.all_anew();
        teller
    }

    fn all_anew(&mut self) {
        self.next.anew = true;
        self.next.whole = false;
        self.next.leaves = self.hub.leaves(None);
        self.names = self.hub.streams().iter().map(|stream| stream.client.workload.clone()).collect();
        self.answered =
            self.questions.keys().copied().chain(self.objects.as_ref().map(|(number, _)| *number)).collect();
    }

    async fn run(&mut self, incoming: &mut Streaming<wire::Ask>, out: &mpsc::Sender<Told>) -> Result<(), Status> {
        let mut told_all = false;
        let (mut loaded, mut stopping) = (self.hub.loaded(), self.hub.replicas.stopping.subscribe());
        let mut zone = self.hub.replicas.zone.subscribe();
        loaded.mark_changed();
        stopping.mark_changed();
        zone.mark_changed();
        loop {
            let due = !self.names.is_empty() || !self.answered.is_empty() || self.next != wire::Told::default();
            tokio::select! {
                biased;
                ask = incoming.message() => match ask? {
                    Some(ask) => self.asked(ask).await,
                    None => return Ok(()),
                },
                moved = self.moved.recv() => match moved {
                    Ok(Moved::Proxy(name)) => drop(self.names.insert(name)),
                    Ok(Moved::Leave(name)) => self.next.leaves.extend(self.hub.leaves(Some(&name))),
                    Err(RecvError::Lagged(_)) => {
                        self.all_anew();
                        told_all = false;
                    }
                    Err(RecvError::Closed) => return Ok(()),
                },
                Ok(()) = loaded.changed() => self.next.serves |= *loaded.borrow_and_update(),
                Ok(()) = stopping.changed() => self.next.stopping |= *stopping.borrow_and_update(),
                Ok(()) = zone.changed() => self.next.zone = Some(zone.borrow_and_update().clone()),
                heard = heard(&mut self.progress) => match heard {
                    Ok(name) => drop(self.names.insert(name)),
                    // Of connections nothing was missed; of answers anything may have been.
                    Err(_) => self.names.extend(self.hub.streams().iter().map(|stream| stream.client.workload.clone())),
                },
                () = stirred(self.objects.as_ref()), if self.gathers.is_none() => self.gathers = Some(Instant::now() + GATHER),
                () = until(self.gathers) => self.has_stirred(),
                permit = out.reserve(), if due => {
                    let Ok(permit) = permit else { return Ok(()) };
                    let mut told = self.batch();
                    told.whole = !told_all && self.names.is_empty();
                    told_all |= told.whole;
                    permit.send(Ok(told));
                }
            }
        }
    }

    async fn asked(&mut self, ask: wire::Ask) {
        let Some(about) = ask.about else {
            self.objects = self.objects.take().filter(|(number, _)| *number != ask.question);
            self.questions.remove(&ask.question);
            self.progress = self.progress.take().filter(|_| !self.questions.is_empty());
            return;
        };
        if let About::Objects(_) = about {
            self.objects = Some((ask.question, self.hub.status.listen()));
            // What was before may be anything.
            self.next.all_stirred = true;
            self.answered.push(ask.question);
            return;
        }
        // Before anything is looked at.
        self.progress.get_or_insert_with(|| self.hub.progress.subscribe());
        let hub = Arc::clone(self.hub);
        match tokio::task::spawn_blocking(move || Open::begin(&hub, about)).await {
            Ok((open, names)) => {
                self.questions.insert(ask.question, open);
                self.names.extend(names);
                self.answered.push(ask.question);
            }
            Err(error) => tracing::error!(%error, "a question of another control could not be answered"),
        }
    }

    /// Takes over what the ear has heard: more than one message can name is all.
    fn has_stirred(&mut self) {
        self.gathers = None;
        let Some((_, ear)) = &self.objects else { return };
        let heard = ear.take();
        let room = MOST_TOLD.saturating_sub(self.next.stirred.len());
        if heard.all || heard.names.len() > room {
            self.hub.metrics.bound("stirred", 1);
            (self.next.all_stirred, self.next.stirred) = (true, Vec::new());
        } else if !self.next.all_stirred {
            self.next.stirred.extend(heard.names.iter().map(ToString::to_string));
        }
    }

    /// What is to be told next.
    fn batch(&mut self) -> wire::Told {
        let mut told = std::mem::take(&mut self.next);
        while told.proxies.len() < NAMES
            && let Some(name) = self.names.pop_first()
        {
            told.proxies.push(self.look_at(&name));
        }
        if self.names.is_empty() {
            told.answered = std::mem::take(&mut self.answered);
        }
        told
    }

    fn look_at(&mut self, name: &Name) -> wire::Proxy {
        let streams = self.hub.streams_of(name);
        let mut proxy =
            wire::Proxy { workload: name.to_string(), connected: !streams.is_empty(), ..wire::Proxy::default() };
        for (number, open) in &mut self.questions {
            match open.look_at(self.hub, name, &streams) {
                Stands::Waits => proxy.waiting.push(*number),
                Stands::Done => proxy.done.push(*number),
                Stands::Aside => {}
            }
        }
        proxy
    }
}

async fn stirred(objects: Option<&(u64, Arc<Ear>)>) {
    match objects {
        Some((_, ear)) => ear.heard().await,
        None => std::future::pending().await,
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn heard(progress: &mut Option<Receiver<Name>>) -> Result<Name, RecvError> {
    match progress {
        Some(progress) => progress.recv().await,
        None => std::future::pending().await,
    }
}
