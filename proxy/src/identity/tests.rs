//! Renewal against a fake CA.
