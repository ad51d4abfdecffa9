//! What policies do to packets besides the truth of a table: to flows that are open, to pods that start, to nodes,
//! through Services, while the agent is away; and how what was dropped is told.
#![cfg(not(netd_bpf_stub))]

mod policy {
    mod away;
    mod drops;
    mod first;
    mod node;
    mod open;
    mod scene;
    mod service;
    mod stream;
    mod told;
    mod unsynced;
}
