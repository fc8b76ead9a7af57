//! How often: GCRA (the generic cell rate algorithm, ITU-T I.371 appendix I), one atomic word a key, time as argument.
//!
//! A limit of `requests` per `per` with `burst` admits at most `rate x time + burst` requests in any span.
