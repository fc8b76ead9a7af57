//! Where objects come from, one file a source. A source gives a whole [`Model`](crate::model::Model) at first and after each
//! change, with what was wrong; one that is lost or stale keeps its last good objects and says so.
