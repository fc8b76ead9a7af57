//! Control whole, over real TLS and gRPC, a module a part. One binary, since each one links all of control.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod common;
mod federation;
mod grpc;
mod issuing;
mod picture;
mod replicas;
mod rotation;
mod signing;
mod watching;
