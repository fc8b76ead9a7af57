//! Resources -> proxies: the store of encoded resources, one delta stream a proxy, acks, and drain bookkeeping.
