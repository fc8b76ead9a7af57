//! The source kubernetes against a real API server: `tests/e2e/api-source` starts one, says where it is, and starts this. Elsewhere nothing is
//! tested here.
//!
//! - `cluster`: the API server, asked as its administrator, and a way to it that can be cut.
//! - `table`: what services and slices mean, a row a test.
//! - `status`: what people are told on their objects (`tests/e2e/api-status`).
//! - `restart`: what control still knows of broken objects; `rights`: what it does with fewer rights; `replicas`: who lives by the Leases of
//!   controls (all three: `tests/e2e/api-status`).
//! - `faults`: what a subscriber sees while the way, the API server or etcd is away.
mod cluster;
mod faults;
mod replicas;
mod restart;
mod rights;
mod status;
mod table;
