//! The command as a process. One binary, since each one links all of Weft.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod chart;
mod cli;
mod common;
mod elf;
mod live;
mod rotate;
