//! Which endpoint: power of two choices over peak-EWMA load (Mitzenmacher 2001; Finagle's `PeakEwma`), weights honoured.
