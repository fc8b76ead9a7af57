//! What became of an attempt, and whether another one is safe.
