//! A watch against an API server that says what the test has written down, on a clock that the test owns.

use std::collections::VecDeque;
use std::convert::Infallible;

use http::Response;
use http_body_util::StreamBody;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Frame;
use parking_lot::Mutex;
use tokio::sync::mpsc::{Receiver, channel};
use tokio_stream::StreamExt as _;

use super::super::kind::WATCHED;
use super::*;

/// One answer: its status, its lines, and whether it goes on after them.
struct Answer(u16, &'static str, bool);

#[derive(Default)]
struct Script {
    answers: VecDeque<Answer>,
    asked: Vec<(String, Instant)>,
}

/// A follower of a kind; what it tells, and what it has asked.
fn follow(kind: &str, answers: impl IntoIterator<Item = Answer>) -> (Receiver<(usize, Event)>, Arc<Mutex<Script>>) {
    let script = Arc::new(Mutex::new(Script { answers: answers.into_iter().collect(), asked: Vec::new() }));
    let theirs = Arc::clone(&script);
    let service = tower::service_fn(move |request: Request<Body>| {
        let script = Arc::clone(&theirs);
        async move {
            let uri = request.uri().to_string();
            script.lock().asked.push((uri, Instant::now()));
            let next = script.lock().answers.pop_front();
            // At its end the server does not answer any more.
            let Some(Answer(status, text, goes_on)) = next else { std::future::pending().await };
            let lines = tokio_stream::iter([Ok::<_, Infallible>(Frame::data(Bytes::from(text)))]);
            let body: UnsyncBoxBody<_, _> = if goes_on {
                StreamBody::new(lines.chain(tokio_stream::pending())).boxed_unsync()
            } else {
                StreamBody::new(lines).boxed_unsync()
            };
            Ok::<_, Infallible>(Response::builder().status(status).body(body).unwrap())
        }
    });
    let (number, watched) = WATCHED.iter().enumerate().find(|(_, watched)| watched.kind == kind).unwrap();
    let (out, told) = channel(64);
    let metrics = Arc::new(Metrics::new().unwrap());
    tokio::spawn(Follower::new(Client::new(service, "default"), number, watched, out, metrics).run());
    (told, script)
}

async fn next(told: &mut Receiver<(usize, Event)>) -> String {
    match told.recv().await.unwrap().1 {
        Event::Found(seen) => format!("found {}", seen.name.name),
        Event::Gone(name) => format!("gone {}", name.name),
        Event::Failed(why) => format!("failed: {why}"),
        Event::Forbidden(why) => format!("forbidden: {why}"),
        event => format!("{event:?}").to_lowercase(),
    }
}

async fn hears(told: &mut Receiver<(usize, Event)>, wanted: &[&str]) {
    for wanted in wanted {
        assert_eq!(next(told).await, *wanted);
    }
}

const LIST: &str = r#"{"type":"ADDED","object":{"metadata":{"name":"a","namespace":"shop","resourceVersion":"5"}}}
{"type":"ADDED","object":{"metadata":{"name":"b","namespace":"shop","resourceVersion":"3"}}}
{"type":"BOOKMARK","object":{"kind":"Service","metadata":{"resourceVersion":"7","annotations":{"k8s.io/initial-events-end":"true"}}}}
"#;
const GONE: &str = r#"{"type":"DELETED","object":{"metadata":{"name":"b","namespace":"shop","resourceVersion":"9"}}}
"#;

#[tokio::test(start_paused = true)]
async fn a_watch_that_says_nothing_for_long_is_opened_again_where_it_was() {
    let (mut told, script) =
        follow("Service", [Answer(200, LIST, true), Answer(200, GONE, true), Answer(200, "", true)]);
    hears(&mut told, &["begins", "found a", "found b", "whole"]).await;
    hears(&mut told, &["failed: nothing was said for too long", "alive", "gone b"]).await;
    hears(&mut told, &["failed: nothing was said for too long", "alive"]).await;
    let asked = &script.lock().asked;
    assert!(asked[0].0.contains("sendInitialEvents=true&resourceVersionMatch=NotOlderThan"), "{}", asked[0].0);
    assert!(!asked[0].0.contains("resourceVersion="), "{}", asked[0].0);
    assert!(asked[1].0.ends_with("&resourceVersion=7") && asked[2].0.ends_with("&resourceVersion=9"), "{}", asked[2].0);
    assert!(asked[1].1 - asked[0].1 >= SILENCE && asked[1].1 - asked[0].1 < SILENCE + MOST_PAUSE);
}

#[tokio::test(start_paused = true)]
async fn a_list_that_breaks_off_is_never_whole_and_begins_anew() {
    let half = LIST.split_once('\n').unwrap().0;
    let half: &'static str = Box::leak(format!("{half}\n").into_boxed_str());
    let error = "{\"type\":\"ERROR\",\"object\":{\"code\":500,\"message\":\"RequestWatchProgress is disabled\"}}\n";
    let broken: &'static str = Box::leak(format!("{half}{error}").into_boxed_str());
    let page = r#"{"metadata":{"resourceVersion":"7"},"items":[{"metadata":{"name":"b","namespace":"shop"}}]}"#;
    let cut = &page[..60];
    let pages = [Answer(200, cut, false), Answer(200, page, false), Answer(200, GONE, true)];
    let (mut told, script) = follow("Service", std::iter::once(Answer(200, broken, false)).chain(pages));
    hears(&mut told, &["begins", "found a"]).await;
    assert!(next(&mut told).await.starts_with("failed: EOF"));
    hears(&mut told, &["begins", "found b", "whole", "alive", "gone b"]).await;
    assert!(script.lock().asked[2].0.ends_with("?limit=500"));
}

#[tokio::test(start_paused = true)]
async fn what_is_too_long_ago_is_listed_again() {
    let gone = "{\"type\":\"ERROR\",\"object\":{\"code\":410,\"reason\":\"Expired\"}}\n";
    let refused = Answer(410, "{\"message\":\"too old resource version\"}", false);
    let (mut told, script) = follow(
        "Service",
        [
            Answer(200, LIST, false),
            Answer(200, gone, false),
            Answer(200, LIST, false),
            refused,
            Answer(200, LIST, true),
        ],
    );
    hears(&mut told, &["begins", "found a", "found b", "whole", "alive"]).await;
    hears(&mut told, &["begins", "found a", "found b", "whole"]).await;
    hears(&mut told, &["begins", "found a", "found b", "whole"]).await;
    assert!(script.lock().asked[2].0.contains("sendInitialEvents"));
}

#[tokio::test(start_paused = true)]
async fn a_server_without_streaming_lists_is_asked_for_pages() {
    let refused = Answer(422, "{\"message\":\"sendInitialEvents is forbidden\"}", false);
    let one = r#"{"metadata":{"resourceVersion":"7","continue":"abc"},"items":[{"metadata":{"name":"a","namespace":"shop"}}]}"#;
    let two = r#"{"metadata":{"resourceVersion":"7"},"items":[{"metadata":{"name":"b","namespace":"shop"}}]}"#;
    let answers = [refused, Answer(200, one, false), Answer(200, two, false), Answer(200, GONE, true)];
    let (mut told, script) = follow("Service", answers);
    hears(&mut told, &["begins", "found a", "found b", "whole", "alive", "gone b"]).await;
    let asked: Vec<String> = script.lock().asked.iter().map(|(uri, _)| uri.clone()).collect();
    assert!(
        asked[1].ends_with("/api/v1/services?limit=500") && asked[2].ends_with("?limit=500&continue=abc"),
        "{asked:?}"
    );
    assert!(asked[3].ends_with("&resourceVersion=7"), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn a_kind_that_is_not_installed_is_looked_for_again_and_the_version_that_is_served_is_taken() {
    let none = || Answer(404, "404 page not found\n", false);
    let answers = [none(), none(), none(), none(), none(), Answer(200, LIST, true)];
    let (mut told, script) = follow("TLSRoute", answers);
    hears(&mut told, &["absent", "begins", "found a", "found b", "whole"]).await;
    let asked: Vec<String> = script.lock().asked.iter().map(|(uri, _)| uri.clone()).collect();
    assert!(asked[0].contains("/v1/tlsroutes") && asked[5].contains("/v1alpha2/tlsroutes"), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_is_told_and_tried_again_at_a_slowing_pace() {
    let refusals = (0..20).map(|_| Answer(403, "{\"message\":\"services is forbidden\"}", false));
    let (mut told, script) = follow("Service", refusals);
    for _ in 0..20 {
        hears(&mut told, &["forbidden: services is forbidden"]).await;
    }
    let asked = &script.lock().asked;
    assert!(asked[1].1 - asked[0].1 <= FIRST_PAUSE);
    assert!(asked[19].1 - asked[18].1 >= MOST_PAUSE / 2 && asked[19].1 - asked[18].1 <= MOST_PAUSE + FIRST_PAUSE);
}

#[tokio::test(start_paused = true)]
async fn what_may_not_be_read_and_is_not_installed_is_absent() {
    let refused = || Answer(403, "{\"message\":\"no\"}", false);
    let has = |text| Answer(200, text, false);
    let nothing = || Answer(404, "404 page not found\n", false);
    let others = r#"{"resources":[{"name":"httproutes"},{"name":"tcproutes/status"}]}"#;
    let answers = [
        // Neither version has it; then one does; then nobody says.
        [refused(), nothing(), has(others)],
        [refused(), nothing(), has(r#"{"resources":[{"name":"tcproutes"}]}"#)],
        [refused(), has(others), Answer(500, "", false)],
        // It may be read; then not any more.
        [Answer(200, LIST, false), refused(), has(r#"{"resources":[{"name":"tcproutes"}]}"#)],
    ];
    let (mut told, script) = follow("TCPRoute", answers.into_iter().flatten());
    hears(&mut told, &["absent", "forbidden: no", "forbidden: no"]).await;
    hears(&mut told, &["begins", "found a", "found b", "whole", "failed: 403: no"]).await;
    let asked: Vec<String> = script.lock().asked.iter().map(|(uri, _)| uri.clone()).collect();
    assert!(asked[1].ends_with("/apis/gateway.networking.k8s.io/v1"), "{asked:?}");
    assert!(asked[2].ends_with("/apis/gateway.networking.k8s.io/v1alpha2"), "{asked:?}");
}

#[test]
fn pauses_grow_to_a_bound_and_are_spread() {
    let pauses: Vec<_> = (0..40).map(|failures| pause(failures, 255)).collect();
    assert!(pauses.is_sorted() && pauses[0] <= FIRST_PAUSE && pauses[39] <= MOST_PAUSE);
    assert!(pauses[39] > MOST_PAUSE * 9 / 10);
    assert_eq!(pause(40, 0), MOST_PAUSE / 2);
}

#[tokio::test]
async fn lines_are_cut_wherever_the_frames_end() {
    let body = Body::from(b"{\"a\":1}\n\n{\"b\"".to_vec());
    let mut lines = Lines::of(body);
    assert_eq!(lines.next().await.unwrap().unwrap(), "{\"a\":1}\n");
    assert_eq!(lines.next().await.unwrap().unwrap(), "\n");
    assert_eq!(lines.next().await.unwrap(), None);
}

#[test]
fn a_refusal_is_said_in_the_words_of_the_server() {
    let text = br#"{"kind":"Status","code":403,"message":"pods is forbidden"}"#;
    assert_eq!(refusal(&Bytes::from_static(text)), "pods is forbidden");
    assert_eq!(refusal(&Bytes::from_static(b"404 page not found\n")), "404 page not found");
    let status = |text: &str| error(&serde_json::from_str(text).unwrap());
    assert!(matches!(status(r#"{"code":410,"message":"too old"}"#), Ended::Expired));
    assert!(matches!(status(r#"{"code":500,"message":"no"}"#), Ended::Failed(why) if why == "no"));
}
