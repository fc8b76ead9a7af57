//! The protocol by which certificates are asked for is the ecosystem's: a client that grpcio-tools generates from the public `ca.proto` gets
//! one from a live control, for a key and a request that openssl has made, and openssl verifies what comes.

use std::time::{Duration, SystemTime};

use weft::lab::NODE;
use weft_certs::token;
use weft_engine::identity::Identity;
use weft_tests::{Mesh, tools};

use super::{openssl, python_in};

/// Generates the client, asks by a token, by it again, and by the certificate that was had.
const ASK: &str = r#"
import os, sys
import grpc, grpc_tools
from grpc_tools import protoc
out, protos = "FOLDER", os.path.join(os.path.dirname(grpc_tools.__file__), "_proto")
args = ["protoc", "-IPROTO", f"-I{protos}", f"--python_out={out}", f"--grpc_python_out={out}", "ca.proto"]
assert protoc.main(args) == 0
sys.path.insert(0, out)
import ca_pb2, ca_pb2_grpc

read = lambda name: open(os.path.join(out, name)).read()
root = read("root.pem").encode()

def ask(request, token=None, key=None, chain=None):
    credentials = grpc.ssl_channel_credentials(root, key, chain)
    name = [("grpc.ssl_target_name_override", "weft-control")]
    with grpc.secure_channel("CONTROL", credentials, name) as channel:
        service = ca_pb2_grpc.IstioCertificateServiceStub(channel)
        wanted = ca_pb2.IstioCertificateRequest(csr=request, validity_duration=600)
        wanted.metadata.update({"WorkloadName": "of no importance"})
        bearer = [("authorization", f"Bearer {token}")] if token else []
        return list(service.CreateCertificate(wanted, metadata=bearer, timeout=20).cert_chain)

def refused(code, *args):
    try:
        ask(*args)
        raise SystemExit("a certificate was had")
    except grpc.RpcError as error:
        assert error.code() == code, error
        print(error.details())

chain = ask(read("request.pem"), read("token"))
for name, certificate in zip(["leaf.pem", "issuer.pem", "last.pem"], chain, strict=True):
    with open(os.path.join(out, name), "w") as file:
        file.write(certificate)
refused(grpc.StatusCode.UNAUTHENTICATED, read("another.pem"), read("token"))
refused(grpc.StatusCode.UNAUTHENTICATED, read("another.pem"))
renewed = ask(read("another.pem"), None, read("key.pem").encode(), "".join(chain[:-1]).encode())
with open(os.path.join(out, "renewed.pem"), "w") as file:
    file.write(renewed[0])
"#;

pub fn public_definition() {
    let mesh = Mesh::new();
    let control = mesh.control.as_ref().unwrap();
    let folder = mesh.lab.dir().join("client");
    std::fs::create_dir(&folder).unwrap();
    let root = std::fs::read_to_string(control.ca_dir().join("root.pem")).unwrap();
    let asker = Identity::new("cluster.local", "shop", "asker").unwrap();
    let token = token::sign(control.ca_dir(), &asker, Duration::from_mins(10), SystemTime::now()).unwrap();
    for (name, text) in [("root.pem", &root), ("token", &token)] {
        std::fs::write(folder.join(name), text).unwrap();
    }
    // A request may name nobody, or whom the token proves.
    let name = format!("subjectAltName=URI:{asker}");
    for (key, request, names) in [("key.pem", "request.pem", None), ("new-key.pem", "another.pem", Some(&name))] {
        openssl(&folder, &["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", key]);
        let mut make = vec!["req", "-new", "-key", key, "-subj", "/", "-out", request];
        make.extend(names.iter().flat_map(|names| ["-addext", names]));
        openssl(&folder, &make);
    }

    let proto = tools::program("ca-proto");
    let program = ASK
        .replace("FOLDER", &folder.display().to_string())
        .replace("PROTO", &proto.parent().unwrap().display().to_string())
        .replace("CONTROL", &format!("{NODE}:15012"));
    let pod = mesh.lab.plain_pod("shop", "asker", None).unwrap();
    let output = python_in(&pod, &tools::program("grpcio-tools"), &program);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let lines: Vec<&str> = said.lines().collect();
    assert!(matches!(lines[..], [used, nothing] if used.contains("used") && nothing.contains("Bearer")), "{said}");

    for leaf in ["leaf.pem", "renewed.pem"] {
        let verified = openssl(&folder, &["verify", "-CAfile", "root.pem", "-untrusted", "issuer.pem", leaf]);
        assert_eq!(verified.trim(), format!("{leaf}: OK"));
        let names = openssl(&folder, &["x509", "-in", leaf, "-noout", "-ext", "subjectAltName"]);
        let names: Vec<&str> = names.lines().skip(1).map(str::trim).collect();
        assert_eq!(names, [format!("URI:{asker}")]);
    }
    let public = |args: &[&str]| openssl(&folder, &[args, &["-pubkey", "-noout"]].concat());
    assert_eq!(public(&["x509", "-in", "leaf.pem"]), public(&["req", "-in", "request.pem"]));
    assert_eq!(openssl(&folder, &["x509", "-in", "last.pem"]), openssl(&folder, &["x509", "-in", "root.pem"]));
    let audit = control.process.log();
    for (what, count) in [("certificate issued", 2), ("cause=\"token_replayed\"", 1), ("cause=\"unauthenticated\"", 1)]
    {
        assert_eq!(audit.lines().filter(|line| line.contains(what)).count(), count, "{what}: {audit}");
    }
}
