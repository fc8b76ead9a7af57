//! Who may, and how often.

use std::io::{ErrorKind, Read, Write};
use std::time::{Duration, Instant};

use http::Method;
use weft_tests::client::{Session, echo, get, request, run};
use weft_tests::{Mesh, Service, Trial, test, test_alone};

pub fn tests() -> Vec<Trial> {
    vec![
        test("policy_allow_by_identity_method_and_path", allow_by_identity_method_and_path),
        test("policy_deny_wins", deny_wins),
        test("policy_a_broken_one_closes_and_its_last_good_version_stays", a_broken_one_closes),
        test("policy_withdrawn_permission_closes_an_idle_session", withdrawn_permission),
        test_alone("policy_rate_limit_admits_rate_times_time_plus_burst", rate_limit),
    ]
}

fn policy(name: &str, action: &str, rules: &str) -> String {
    format!(
        "apiVersion: weft.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {{name: {name}, namespace: shop}}
spec:
  targetRefs: [{{group: '', kind: Service, name: web}}]
  action: {action}
  rules:
{rules}"
    )
}

fn allow_by_identity_method_and_path() {
    let mut mesh = Mesh::new();
    mesh.deploy(Service::http("web")).client("friend").client("stranger");
    mesh.write(
        "allow.yaml",
        &policy(
            "friends",
            "Allow",
            "  - from: [{identities: [shop/friend]}]\n    to: [{methods: [GET], paths: ['/open/*']}]\n",
        ),
    );
    let to = mesh.address("web");
    let [friend, stranger] = ["friend-0", "stranger-0"].map(|name| mesh.pod(name));
    mesh.until("the stranger to be refused", || match get(stranger, to, "/open/door").outcome() {
        (403, "not_allowed") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(get(friend, to, "/open/door").outcome(), (200, ""));
    assert_eq!(get(friend, to, "/closed").outcome(), (403, "not_allowed"));
    // Paths are compared as the application would understand them.
    assert_eq!(get(friend, to, "/open/../closed").outcome(), (403, "not_allowed"));
    let post = request(Method::POST, "web", "/open/door", &[]);
    assert_eq!(weft_tests::client::try_send(friend, to, post).unwrap().outcome(), (403, "not_allowed"));
    mesh.counts("web-0", "weft_refused_total", &["not_allowed"], |count| count >= 4.0);
}

fn deny_wins() {
    let mut mesh = Mesh::new();
    mesh.deploy(Service::http("web")).client("client");
    mesh.write("allow.yaml", &policy("all", "Allow", "  - {}\n"));
    mesh.write(
        "deny.yaml",
        &policy("no", "Deny", "  - from: [{identities: [shop/client]}]\n    to: [{paths: ['/admin*']}]\n"),
    );
    let (pod, to) = (mesh.pod("client-0"), mesh.address("web"));
    mesh.until("the denial", || match get(pod, to, "/admin").outcome() {
        (403, "denied_by_policy") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(get(pod, to, "/").outcome(), (200, ""));
}

fn a_broken_one_closes() {
    let mut mesh = Mesh::new();
    let good = policy("p", "Allow", "  - from: [{identities: [shop/client]}]\n");
    let broken = good.replace("action:", "acton:");
    mesh.deploy(Service::http("web")).client("client");
    let (pod, to) = (mesh.pod("client-0"), mesh.address("web"));
    // It never was right: what it targets is closed.
    mesh.write("p.yaml", &broken);
    mesh.until("a broken policy to close its target", || match get(pod, to, "/").outcome() {
        (403, "policy_invalid") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    mesh.write("p.yaml", &good);
    mesh.until("the mended policy", || match get(pod, to, "/").outcome() {
        (200, "") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    // Once it was right, its last good version holds while other files go on being read.
    mesh.write("p.yaml", &broken);
    mesh.write("deny.yaml", &policy("no", "Deny", "  - to: [{paths: ['/x']}]\n"));
    mesh.until("another policy to arrive", || match get(pod, to, "/x").outcome() {
        (403, "denied_by_policy") => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(get(pod, to, "/").outcome(), (200, ""));
}

fn withdrawn_permission() {
    let mut mesh = Mesh::new();
    mesh.deploy(Service::tcp("web").pods(1)).deploy(Service::tcp("other")).client("client");
    let pod = mesh.pod("client-0");
    let [mut idle, mut other] =
        ["web", "other"].map(|name| echo(pod, mesh.address(name), &format!("{name}-0 v1"), "a word"));
    mesh.write("deny.yaml", &policy("no", "Deny", "  - from: [{identities: [shop/client]}]\n"));
    let written = Instant::now();
    // Nobody says anything on either.
    let ended = idle.read(&mut [0; 16]);
    assert!(ended.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
    assert!(written.elapsed() < Duration::from_secs(4), "{:?}", written.elapsed());
    mesh.counts("web-0", "weft_refused_total", &["direction=\"inbound\"", "denied_by_policy"], |count| count >= 1.0);
    // The other service's is as it was.
    other.write_all(b"again").unwrap();
    let mut heard = [0; 5];
    other.read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"again");
}

fn rate_limit() {
    let mut mesh = Mesh::new();
    mesh.deploy(Service::http("web")).client("client").client("other");
    mesh.write(
        "limit.yaml",
        "apiVersion: weft.dev/v1alpha1
kind: RateLimitPolicy
metadata: {name: calm, namespace: shop}
spec:
  targetRefs: [{group: '', kind: Service, name: web}]
  limits: [{requests: 50, per: 1s, burst: 10, key: ClientIdentity, match: [{path: {type: PathPrefix, value: /limited}}]}]
",
    );
    let (pod, to) = (mesh.pod("client-0"), mesh.address("web"));
    mesh.until("the limit to take effect", || {
        let got = get(pod, to, "/limited");
        if got.header("ratelimit-policy").is_empty() && got.status == 200 { Err(format!("{got:?}")) } else { Ok(()) }
    });
    // As fast as it goes for three seconds, after the allowance is full again.
    let (admitted, limited, took) = run(async {
        let mut session = Session::open(pod, to).await.unwrap();
        tokio::time::sleep(Duration::from_millis(500)).await;
        let (mut admitted, mut limited) = (0_u32, None);
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(3) {
            let got = session.send(request(Method::GET, "web", "/limited", &[])).await.unwrap();
            match got.outcome() {
                (200, "") => admitted += 1,
                (429, "rate_limited") => limited = Some(got),
                other => panic!("{other:?}"),
            }
        }
        (admitted, limited.expect("some were limited"), start.elapsed())
    });
    let expected = 50.0 * took.as_secs_f64() + 10.0;
    assert!((f64::from(admitted) - expected).abs() / expected < 0.05, "{admitted} admitted, {expected} expected");
    assert!(limited.header("retry-after").parse::<u32>().is_ok(), "{limited:?}");
    assert!(limited.header("ratelimit-policy").contains("q=50"), "{limited:?}");
    assert!(limited.header("ratelimit").contains("r=0"), "{limited:?}");
    // Each identity has its own allowance, and other paths have none.
    assert_eq!(get(mesh.pod("other-0"), to, "/limited").outcome(), (200, ""));
    assert_eq!(get(pod, to, "/free").outcome(), (200, ""));
}
