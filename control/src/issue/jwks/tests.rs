use std::sync::atomic::{AtomicUsize, Ordering};

use jsonwebtoken::DecodingKey;
use jsonwebtoken::jwk::Jwk;
use parking_lot::Mutex as Lock;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

fn key_set(kid: &str) -> String {
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let public = DecodingKey::from_ec_der(pair.public_key_raw());
    let mut key = serde_json::to_value(Jwk::from_decoding_key(&public, None).unwrap()).unwrap();
    key["kid"] = kid.into();
    serde_json::json!({ "keys": [key] }).to_string()
}

/// An issuer on loopback that says what it is told to, and counts.
struct Issuer {
    says: Arc<Lock<Option<String>>>,
    asked: Arc<AtomicUsize>,
    url: String,
}

async fn issuer(says: Option<String>) -> Issuer {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/keys", listener.local_addr().unwrap());
    let issuer = Issuer { says: Arc::new(Lock::new(says)), asked: Arc::default(), url };
    let (says, asked) = (Arc::clone(&issuer.says), Arc::clone(&issuer.asked));
    tokio::spawn(async move {
        loop {
            let (mut tcp, _) = listener.accept().await.unwrap();
            asked.fetch_add(1, Ordering::Relaxed);
            let answer = match says.lock().clone() {
                Some(text) => format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len()),
                None => "HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n".to_owned(),
            };
            let mut request = [0; 4096];
            let _ = tcp.read(&mut request).await;
            let _ = tcp.write_all(answer.as_bytes()).await;
        }
    });
    issuer
}

fn jwks(issuer: &Issuer) -> Jwks {
    let place = Place::Url(Box::new(Server::new(&issuer.url, None).unwrap()), None);
    Jwks::new("issuer", place, Arc::new(Metrics::new().unwrap()))
}

#[tokio::test]
async fn a_key_that_is_not_held_is_looked_for_at_most_every_ten_seconds() {
    let issuer = issuer(Some(key_set("one"))).await;
    let (jwks, start) = (jwks(&issuer), Instant::now());
    jwks.begin(start).await.unwrap();
    let asked = || issuer.asked.load(Ordering::Relaxed);
    assert!(jwks.with("one", start).await.unwrap().has("one"));
    assert_eq!(asked(), 1);
    *issuer.says.lock() = Some(key_set("two"));
    for _ in 0..50 {
        assert!(!jwks.with("two", start + Duration::from_secs(9)).await.unwrap().has("two"));
    }
    assert_eq!(asked(), 1, "a flood of unknown keys costs the issuer nothing");
    assert!(jwks.with("two", start + AGAIN).await.unwrap().has("two"));
    assert_eq!(asked(), 2);
    // What the issuer has withdrawn is gone.
    assert!(!jwks.with("one", start + AGAIN).await.unwrap().has("one"));
}

#[tokio::test]
async fn keys_grow_old_and_the_last_good_ones_stay() {
    let issuer = issuer(Some(key_set("one"))).await;
    let (jwks, start) = (jwks(&issuer), Instant::now());
    jwks.begin(start).await.unwrap();
    for bad in [None, Some("no keys".to_owned()), Some("x".repeat(600 * 1024))] {
        *issuer.says.lock() = bad;
        let before = issuer.asked.load(Ordering::Relaxed);
        let late = start + FRESH + AGAIN * u32::try_from(before).unwrap();
        assert!(jwks.with("one", late).await.unwrap().has("one"));
        assert_eq!(issuer.asked.load(Ordering::Relaxed), before + 1);
    }
    assert_eq!(jwks.metrics.key_reads.with_label_values(&["failed"]).get(), 3);
}

#[tokio::test]
async fn an_issuer_may_come_up_later_but_a_file_must_be_there() {
    let issuer = issuer(None).await;
    let (jwks, start) = (jwks(&issuer), Instant::now());
    jwks.begin(start).await.unwrap();
    assert_eq!(jwks.with("one", start).await.unwrap_err().cause, Cause::Unavailable);
    *issuer.says.lock() = Some(key_set("one"));
    assert!(jwks.with("one", start + AGAIN).await.unwrap().has("one"));

    let absent = Jwks::new("issuer", Place::File("/nowhere/keys.json".into()), Arc::clone(&jwks.metrics));
    assert!(absent.begin(start).await.unwrap_err().contains("/nowhere/keys.json"));
}
