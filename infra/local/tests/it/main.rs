//! The control plane, driven as a stranger would: the local runner started for real, requests over HTTP.
//!
//! One binary, because linking is what costs. A file per family of routes, named like its URL, and a file per promise that crosses them.

mod harness;

mod whoami;
