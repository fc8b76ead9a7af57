//! A control in this process, and proxies that call it over real TLS.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::format_push_string)]

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::TlsConnector;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};
use weft_api::names::{self, ResourceType};
use weft_api::wire::ca::IstioCertificateRequest;
use weft_api::wire::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use weft_api::wire::core::Node;
use weft_api::wire::discovery::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use weft_api::wire::discovery::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use weft_api::wire::v1;
use weft_certs::ca::Ca;
use weft_certs::svid::{KeyPair, Svid};
use weft_certs::tls::{CONTROL_SERVER_NAME, control_client_config};
use weft_control::{Config, Control};
use weft_engine::identity::Identity;

pub const TD: &str = "cluster.local";

pub struct Mesh {
    pub dir: TempDir,
    pub ca: Arc<Ca>,
    pub listen: SocketAddr,
    pub metrics: SocketAddr,
    pub bundle_endpoint: Option<SocketAddr>,
    pub hub: Arc<weft_control::distribute::Hub>,
    stop: Option<oneshot::Sender<()>>,
    ran: Option<tokio::task::JoinHandle<anyhow::Result<()>>>,
}

pub fn pod(name: &str, account: &str, last: u8) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: shop, annotations: {{weft.dev/injected: \"true\"}}}}\n\
         spec: {{serviceAccountName: {account}}}\nstatus: {{podIP: 10.0.0.{last}}}\n---\n"
    )
}

pub fn service(name: &str, last: u8) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\n\
         spec: {{clusterIP: 10.96.0.{last}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}\n---\n"
    )
}

pub fn slice(service: &str, pods: &[(&str, u8)]) -> String {
    let mut text = format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\nmetadata: {{name: {service}-x, namespace: shop, \
         labels: {{kubernetes.io/service-name: {service}}}}}\nports: [{{name: http, port: 8080, protocol: TCP}}]\nendpoints:\n"
    );
    for (pod, last) in pods {
        text += &format!(
            "- addresses: [10.0.0.{last}]\n  conditions: {{ready: true}}\n  targetRef: {{kind: Pod, name: {pod}, namespace: shop}}\n"
        );
    }
    text + "---\n"
}

pub fn write(dir: &Path, file: &str, text: &str) {
    std::fs::write(dir.join("files").join(file), text).unwrap();
}

impl Mesh {
    /// `shop/web` with web-1 and web-2, `shop/cart` with cart-1.
    pub async fn start() -> Self {
        Self::with(|_| {}).await
    }

    pub async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("files")).unwrap();
        write(dir.path(), "pods.yaml", &(pod("web-1", "web", 1) + &pod("web-2", "web", 2) + &pod("cart-1", "cart", 3)));
        write(dir.path(), "services.yaml", &(service("web", 1) + &service("cart", 2)));
        write(dir.path(), "web.yaml", &slice("web", &[("web-1", 1), ("web-2", 2)]));
        write(dir.path(), "cart.yaml", &slice("cart", &[("cart-1", 3)]));
        let mut mesh = Self {
            ca: Arc::new(Ca::open(&dir.path().join("ca"), TD).unwrap()),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            metrics: SocketAddr::from(([127, 0, 0, 1], 0)),
            bundle_endpoint: None,
            hub: Arc::new(weft_control::distribute::Hub::new(
                weft_control::distribute::session::Limits::default(),
                Arc::new(weft_control::metrics::Metrics::new().unwrap()),
            )),
            dir,
            stop: None,
            ran: None,
        };
        mesh.run(change).await;
        mesh
    }

    /// Starts control, again on the same ports if it ran before.
    pub async fn run(&mut self, change: impl FnOnce(&mut Config)) {
        let mut config = Config::new(vec![self.dir.path().join("files")], self.dir.path().join("ca"));
        (config.listen, config.metrics) = (self.listen, self.metrics);
        change(&mut config);
        let control = Control::start(config).await.unwrap();
        (self.listen, self.metrics, self.hub) = (control.listen, control.metrics, Arc::clone(&control.hub));
        self.bundle_endpoint = control.bundle_endpoint;
        let (stop, stopped) = oneshot::channel::<()>();
        self.stop = Some(stop);
        self.ran = Some(tokio::spawn(control.until(async {
            let _ = stopped.await;
        })));
    }

    pub async fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        self.ran.take().unwrap().await.unwrap().unwrap();
    }

    /// Ends control as kill -9 does: nothing of it is told or given back.
    pub async fn kill(&mut self) {
        let ran = self.ran.take().unwrap();
        ran.abort();
        assert!(ran.await.unwrap_err().is_cancelled());
    }

    pub fn edit(&self, file: &str, text: &str) {
        write(self.dir.path(), file, text);
    }

    pub fn identity(account: &str) -> Identity {
        Identity::new(TD, "shop", account).unwrap()
    }

    pub fn svid(&self, account: &str, life: Duration) -> Svid {
        let (key, identity) = (KeyPair::generate().unwrap(), Self::identity(account));
        let csr = key.csr(&identity).unwrap();
        Svid::new(key, &self.ca.issue(&csr, &identity, life, SystemTime::now()).unwrap()).unwrap()
    }

    pub async fn channel(&self, svid: Option<&Svid>) -> Channel {
        self.channel_to(self.listen, svid).await
    }

    /// A connection that control may refuse.
    pub async fn try_channel(&self, svid: &Svid) -> Result<Channel, tonic::transport::Error> {
        self.connect(self.listen, Some(svid)).await
    }

    /// A connection to another replica.
    pub async fn channel_to(&self, listen: SocketAddr, svid: Option<&Svid>) -> Channel {
        self.connect(listen, svid).await.unwrap()
    }

    async fn connect(&self, listen: SocketAddr, svid: Option<&Svid>) -> Result<Channel, tonic::transport::Error> {
        // Control is known by the name that a client was started with, and by no other.
        let roots = self.ca.roots().own_and(self.ca.roots());
        let tls = TlsConnector::from(control_client_config(svid, &roots, TD).unwrap());
        let connector = tower::service_fn(move |_| {
            let tls = tls.clone();
            async move {
                let tcp = TcpStream::connect(listen).await?;
                let name = CONTROL_SERVER_NAME.try_into().unwrap();
                Ok::<_, std::io::Error>(TokioIo::new(tls.connect(name, tcp).await?))
            }
        });
        Endpoint::from_static("http://weft-control").connect_with_connector(connector).await
    }

    /// A proxy of `shop/POD` with the certificate of an account.
    pub async fn proxy(&self, pod: &str, account: &str) -> Result<Proxy, Status> {
        let svid = self.svid(account, Duration::from_mins(10));
        Proxy::open(self.channel(Some(&svid)).await, pod, &[]).await
    }

    pub async fn certificate(
        &self,
        svid: Option<&Svid>,
        token: Option<&str>,
        csr: &str,
        seconds: i64,
    ) -> Result<Vec<String>, Status> {
        let client = IstioCertificateServiceClient::new(self.channel(svid).await);
        Self::create(client, token, csr, seconds).await
    }

    pub async fn create(
        mut client: IstioCertificateServiceClient<Channel>,
        token: Option<&str>,
        csr: &str,
        seconds: i64,
    ) -> Result<Vec<String>, Status> {
        let message = IstioCertificateRequest { csr: csr.to_owned(), validity_duration: seconds, ..Default::default() };
        let mut request = Request::new(message);
        if let Some(token) = token {
            request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
        }
        Ok(client.create_certificate(request).await?.into_inner().cert_chain)
    }

    /// What a page of the metrics port says, as JSON.
    pub async fn json(&self, path: &str) -> serde_json::Value {
        let answer = self.get(path).await;
        let (_, body) = answer.split_once("\r\n\r\n").unwrap();
        let json: Result<_, String> = serde_json::from_str(body).map_err(|error| format!("{path}: {error}: {answer}"));
        json.unwrap()
    }

    /// An HTTP/1 GET of the metrics port.
    pub async fn get(&self, path: &str) -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut tcp = TcpStream::connect(self.metrics).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        tcp.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        tcp.read_to_string(&mut text).await.unwrap();
        text
    }
}

/// One delta stream.
pub struct Proxy {
    pub out: mpsc::Sender<DeltaDiscoveryRequest>,
    pub incoming: Streaming<DeltaDiscoveryResponse>,
}

pub fn ask(type_url: &str, names: &[&str], versions: &[(&str, &str)]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: type_url.to_owned(),
        resource_names_subscribe: names.iter().map(|name| (*name).to_owned()).collect(),
        initial_resource_versions: versions.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect(),
        ..Default::default()
    }
}

impl Proxy {
    pub async fn open(channel: Channel, pod: &str, versions: &[(&str, &str)]) -> Result<Self, Status> {
        let (out, requests) = mpsc::channel(16);
        let mut first = ask(v1::MeshExtent::TYPE_URL, &[names::MESH_EXTENT], versions);
        first.node = Some(Node { id: format!("shop/{pod}"), ..Default::default() });
        out.send(first).await.unwrap();
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let incoming = client.delta_aggregated_resources(ReceiverStream::new(requests)).await?.into_inner();
        Ok(Self { out, incoming })
    }

    pub async fn ask(&self, type_url: &str, names: &[&str]) {
        self.out.send(ask(type_url, names, &[])).await.unwrap();
    }

    /// The next response, not acknowledged.
    pub async fn hear(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        let next = tokio::time::timeout(Duration::from_secs(10), self.incoming.message()).await;
        next.expect("control said nothing")?.ok_or_else(|| Status::cancelled("the stream ended"))
    }

    /// Refuses one resource of a response.
    pub async fn refuse(&self, response: &DeltaDiscoveryResponse, name: &str) {
        let error =
            v1::ResourceError { name: name.into(), code: "bad".into(), message: "no".into(), ..Default::default() };
        let details = prost::Message::encode_to_vec(&v1::NackDetails { errors: vec![error] });
        let any = prost_types::Any { type_url: v1::NackDetails::TYPE_URL.to_owned(), value: details };
        let status = weft_api::wire::rpc::Status { code: 3, message: "refused".to_owned(), details: vec![any] };
        let nack = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            error_detail: Some(status),
            ..Default::default()
        };
        self.out.send(nack).await.unwrap();
    }

    pub async fn ack(&self, response: &DeltaDiscoveryResponse) {
        let ack = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..Default::default()
        };
        self.out.send(ack).await.unwrap();
    }

    /// The names of the next response, acknowledged.
    pub async fn next(&mut self) -> Vec<String> {
        let response = self.hear().await.unwrap();
        self.ack(&response).await;
        let removed = response.removed_resources.iter().map(|name| format!("-{name}"));
        response.resources.iter().map(|resource| resource.name.clone()).chain(removed).collect()
    }
}
