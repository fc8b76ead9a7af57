//! Programs of others, unmodified, through two sidecars.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod bundle;
mod ca;
mod chart;
mod h2spec;
mod workload_api;

use std::path::Path;
use std::process::{Command, ExitCode, Output};

use weft::lab::{Pod, Process};
use weft_tests::mesh::SOON;
use weft_tests::sniff::{Sniffer, contains};
use weft_tests::{Mesh, Service, Trial, test_with, tools};

fn tests() -> Vec<Trial> {
    vec![
        test_with("interop_curl", &["curl"], curl),
        test_with("interop_curl_http2", &["curl"], curl_http2),
        test_with("interop_python_grpcio", &["python3", "grpcio"], python_grpcio),
        test_with("interop_redis", &["redis-server", "redis-cli"], redis),
        test_with("interop_websocket", &["python3", "websockets"], websocket),
        test_with("interop_h2spec_outbound", &["h2spec"], h2spec::outbound),
        test_with("interop_h2spec_inbound", &["h2spec"], h2spec::inbound),
        test_with(
            "interop_public_ca_proto",
            &["python3", "grpcio-tools", "ca-proto", "openssl"],
            ca::public_definition,
        ),
        test_with("interop_python_spiffe", &["python3", "spiffe", "openssl"], workload_api::python_spiffe),
        test_with("interop_go_spiffe_bundle", &["spiffe-bundle", "curl", "openssl"], bundle::go_spiffe),
        test_with("interop_svid_from_another", &["curl"], workload_api::svid_from_another),
        test_with("interop_helm_makes_the_objects_that_we_make", &["helm"], chart::helm),
        test_with("interop_helm_lints_the_chart", &["helm"], chart::lint),
        test_with("interop_helm_refuses_what_we_refuse", &["helm"], chart::refused),
        test_with("interop_nginx", &["nginx", "curl"], nginx),
    ]
}

fn main() -> ExitCode {
    weft_tests::main(env!("CARGO_BIN_EXE_weft-under-test"), tests())
}

/// A mesh with an HTTP service and a client.
fn mesh() -> Mesh {
    let mut mesh = Mesh::new();
    mesh.deploy(Service::http("web")).client("client");
    mesh
}

/// The traffic came by mutual TLS: the server's sidecar counts it so.
fn was_meshed(mesh: &Mesh, pod: &str, metric: &str) {
    mesh.counts(pod, metric, &["direction=\"inbound\"", "tls=\"mtls\""], |count| count > 0.0);
}

fn curl() {
    let mesh = mesh();
    let get = mesh.curl("client-0", &["http://web.shop/hello?a=b"]).expect(200);
    assert!(get.body().contains("\"path\":\"/hello\"") && get.body().contains("\"query\":\"a=b\""), "{get:?}");
    let file = mesh.pod("client-0").dir().unwrap().join("body");
    std::fs::write(&file, vec![b'y'; 3 << 20]).unwrap();
    // Expect: 100-continue comes with a body of this size; it is chunked, and comes back whole.
    let data = format!("@{}", file.display());
    let echo = mesh.curl(
        "client-0",
        &[
            "--header",
            "Transfer-Encoding: chunked",
            "--header",
            "Expect: 100-continue",
            "--data-binary",
            &data,
            "http://web.shop/echo",
        ],
    );
    assert_eq!(echo.body().len(), 3 << 20, "{:?} {}", echo.status, echo.error);
    let _ = mesh.curl("client-0", &["--head", "http://web.shop/"]).expect(200);
    let _ = mesh.curl("client-0", &["--http1.0", "http://web.shop/"]).expect(200);
    let _ = mesh.curl("client-0", &["http://web.shop/status/404"]).expect(404);
    let large = mesh.curl("client-0", &["http://web.shop/bytes/20000000"]).expect(200);
    assert_eq!(large.body().len(), 20_000_000);
    was_meshed(&mesh, "web-0", "weft_requests_total");
}

fn curl_http2() {
    let mesh = mesh();
    let got = mesh.curl("client-0", &["--http2-prior-knowledge", "http://web.shop/hello"]).expect(200);
    assert!(got.text.starts_with("HTTP/2 200"), "{got:?}");
    was_meshed(&mesh, "web-0", "weft_requests_total");
}

/// Runs a Python program in a pod; standard error shows in a failure.
fn python(mesh: &Mesh, pod: &str, program: &str) -> Output {
    python_in(mesh.pod(pod), &tools::python_path(), program)
}

/// [`python`] with the packages of this folder.
fn python_in(pod: &Pod, packages: &Path, program: &str) -> Output {
    // -S: without the machine's own packages, which need not go together with those that were fetched.
    let mut command = pod.command(tools::program("python3"), ["-S", "-c", program]);
    command.env("PYTHONPATH", packages).env("PYTHONUNBUFFERED", "1").env("GRPC_DNS_RESOLVER", "native");
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// Runs openssl in a folder, and gives what it says.
fn openssl(folder: &Path, args: &[&str]) -> String {
    let output = Command::new(tools::program("openssl")).current_dir(folder).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&[&output.stdout[..], &output.stderr].concat()).into_owned();
    assert!(output.status.success(), "openssl {args:?}: {said}");
    said
}

fn python_grpcio() {
    let mut mesh = Mesh::new();
    mesh.deploy(Service::grpc("say").pods(2)).client("client");
    // Messages as bytes, so that nothing need be generated: field 1 is the message, 2 a number.
    let output = python(
        &mesh,
        "client-0",
        r#"
import grpc
same = lambda b: b
with grpc.insecure_channel("say.shop:50051") as channel:
    say = channel.unary_unary("/echo.v1.Echo/Say", request_serializer=same, response_deserializer=same)
    calls = [say.future(b"\x0a\x02hi", timeout=20) for _ in range(40)]
    replies = [call.result() for call in calls]
    assert all(b"hi" in reply for reply in replies), replies
    # Balanced by request, although the client has one connection.
    assert {name for name in (b"say-0", b"say-1") if any(name in reply for reply in replies)} == {b"say-0", b"say-1"}
    repeat = channel.unary_stream("/echo.v1.Echo/Repeat", request_serializer=same, response_deserializer=same)
    assert len(list(repeat(b"\x0a\x02hi\x10\x05\x18\x0a", timeout=20))) == 5
    try:
        channel.unary_unary("/echo.v1.Echo/Nothing", request_serializer=same, response_deserializer=same)(b"", timeout=20)
        raise SystemExit("an unknown method was answered")
    except grpc.RpcError as error:
        assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error
print("well")
"#,
    );
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "well");
    was_meshed(&mesh, "say-0", "weft_requests_total");
}

fn redis() {
    let mut mesh = Mesh::new();
    mesh.deploy(Service::own("redis").ports(6379, 6379)).client("client");
    let pod = mesh.pod("redis-0");
    let args = ["--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--appendonly", "no"];
    let mut command = pod.command(tools::program("redis-server"), args);
    command.current_dir(pod.dir().unwrap());
    let _server = pod.start("redis", command).unwrap();
    let cli = |args: &[&str]| {
        let mut all = vec!["-h", "redis.shop"];
        all.extend(args);
        let output = mesh.pod("client-0").output(tools::program("redis-cli"), all).unwrap();
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).trim().to_owned()
    };
    mesh.until("redis to answer", || match cli(&["ping"]).as_str() {
        "PONG" => Ok(()),
        other => Err(other.to_owned()),
    });
    let sniffer = Sniffer::start(&mesh.lab);
    assert_eq!(cli(&["set", "key", "canary-77aa51"]), "OK");
    assert_eq!(cli(&["get", "key"]), "canary-77aa51");
    assert!(!contains(&sniffer.stop(), "canary-77aa51"), "redis spoke plaintext on the wire");
    // Many requests in flight on one connection, and values larger than any buffer.
    let many = cli(&["eval", "return #string.rep('x', 5000000) + redis.call('strlen', KEYS[1])", "1", "key"]);
    assert_eq!(many, "5000013");
    was_meshed(&mesh, "redis-0", "weft_tcp_connections_opened_total");
}

fn websocket() {
    let mut mesh = Mesh::new();
    mesh.deploy(Service::own("chat")).client("client");
    let _server = python_server(
        &mesh,
        "chat-0",
        r#"
import asyncio, websockets
async def echo(socket):
    async for message in socket:
        await socket.send(message)
async def main():
    async with websockets.serve(echo, "0.0.0.0", 8080, max_size=None):
        print("listening", flush=True)
        await asyncio.Future()
asyncio.run(main())
"#,
    );
    let output = python(
        &mesh,
        "client-0",
        r#"
import asyncio, websockets
async def main():
    async with websockets.connect("ws://chat.shop/room", max_size=None, open_timeout=20) as socket:
        for message in ["hello", b"\x00" * 1_000_000, "x" * 70_000]:
            await socket.send(message)
            assert await socket.recv() == message
        await socket.ping()
print("well" if asyncio.run(main()) is None else "")
"#,
    );
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "well");
    was_meshed(&mesh, "chat-0", "weft_requests_total");
}

/// A Python program that prints `listening` once it does.
fn python_server(mesh: &Mesh, pod: &str, program: &str) -> Process {
    let pod = mesh.pod(pod);
    let mut command = pod.command(tools::program("python3"), ["-c", program]);
    command.env("PYTHONPATH", tools::python_path());
    let mut server = pod.start("server", command).unwrap();
    mesh.until("the server to listen", || {
        server.check_alive().map_err(|error| error.to_string())?;
        if server.log().contains("listening") { Ok(()) } else { Err(server.log()) }
    });
    server
}

fn nginx() {
    let mut mesh = Mesh::new();
    mesh.deploy(Service::own("files")).client("client");
    let pod = mesh.pod("files-0");
    let dir = pod.dir().unwrap();
    std::fs::write(dir.join("page.txt"), "from nginx\n").unwrap();
    let config = dir.join("nginx.conf");
    let here = dir.display();
    // One process and all paths in the pod's directory: there is one uid (called root here, whatever it is outside), and nothing else
    // may be written.
    std::fs::write(
        &config,
        format!(
            "user root; daemon off; master_process off; pid {here}/pid; error_log {here}/error.log;
events {{ worker_connections 128; }}
http {{
  access_log off; client_body_temp_path {here}; proxy_temp_path {here}; fastcgi_temp_path {here};
  uwsgi_temp_path {here}; scgi_temp_path {here};
  server {{ listen 8080; root {here}; }}
}}
"
        ),
    )
    .unwrap();
    let mut server = pod.spawn("nginx", tools::program("nginx"), ["-c", &config.display().to_string()]).unwrap();
    mesh.until("nginx to answer", || {
        server.check_alive().map_err(|error| error.to_string())?;
        let got = mesh.curl("client-0", &["http://files.shop/page.txt"]);
        if got.status == 200 && got.body() == "from nginx\n" { Ok(()) } else { Err(format!("{got:?}")) }
    });
    let range = mesh.curl("client-0", &["--range", "5-9", "http://files.shop/page.txt"]).expect(206);
    assert_eq!(range.body(), "nginx");
    server.terminate();
    server.wait(SOON).unwrap();
    was_meshed(&mesh, "files-0", "weft_requests_total");
}
