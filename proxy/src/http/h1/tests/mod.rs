//! HTTP/1 room by room: streams that give and take in any pieces, and no network.

mod heads;
mod pump;
mod reader;

mod streams;
mod wire;
