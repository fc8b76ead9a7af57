//! Capture without an init container: the rules of a pod are written by the node, before any container of the pod exists.
//!
//! One binary, two parts:
//! - [`plugin`]: the chained CNI plugin that the container runtime calls for each pod. It is given the pod's annotations by the runtime,
//!   enters the pod's network namespace and installs the rules that the annotation `weft.dev/capture` asks for. It asks nobody: no
//!   credentials, no socket, no file. So a pod starts whether or not the agent runs.
//! - [`agent`]: a DaemonSet that puts the binary and its entry into the node's CNI configuration ([`node`], [`conflist`]), keeps it there,
//!   takes it away on uninstall, and repairs the pods that started without the plugin ([`agent::repair`], [`find`]).
//!
//! Why no pod that asks for capture runs without: its init container `weft-validate` proves capture from within and fails otherwise, whoever
//! failed to write the rules: a plugin that was not there yet, was taken out by somebody, or a runtime that gives no annotations. The agent
//! finds such pods and writes their rules; the init container's next try passes. All other pods never depend on any of this.

pub mod agent;
pub mod conflist;
pub mod find;
pub mod node;
pub mod plugin;
