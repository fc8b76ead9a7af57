//! The scraper's page.

use std::sync::Arc;

use http::{Method, Response, StatusCode};

use super::{Admin, Body, only, plain, reads, typed};
use crate::telemetry::scrape;

pub(super) async fn answer(admin: &Admin, method: &Method, path: &str) -> Response<Body> {
    if path != "/metrics" {
        return plain(StatusCode::NOT_FOUND, "there is only /metrics here");
    }
    if !reads(method) {
        return only("GET");
    }
    let shared = Arc::clone(&admin.shared);
    // Thousands of series take some time, which the control stream and renewals on this thread must not wait for.
    match tokio::task::spawn_blocking(move || scrape::text(&shared)).await {
        Ok(Ok(text)) => typed(StatusCode::OK, prometheus::TEXT_FORMAT, text.into()),
        Ok(Err(error)) => plain(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
        Err(error) => plain(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
    }
}
